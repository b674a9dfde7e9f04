# %% [markdown]
# # 7. Optimisers as memories
#
# **You will know** what each rung of the ladder of optimisers remembers of the gradients it has seen, what it reads
# back, and what it has forgotten when the task changes; why Newton–Schulz is itself a piece of learning; and what M3,
# the paper's optimiser with two clocks, adds.
#
# - **Time** 50 minutes with the exercises; running it takes some seconds.
# - **You need** lesson 2: momentum is a memory; lesson 1 for a check.
# - **Equations** [A 33], [A 42–45], [A 75], [A 101–105].

# %%
import check
import matplotlib.pyplot as plt
import numpy as np

from autograd import Tensor, grad
from optimizers import CUBIC, M3, QUINTIC, best_walk, in_turn, newton_schulz, orthogonal_tasks, regression

rng = np.random.default_rng(0)

# %% [markdown]
# ## The same question, asked of optimisers
#
# An optimiser sees one gradient after the other, as a memory layer sees tokens. What does it keep, and what does it
# read back? The project's ladder has thirteen rungs. Here are six of them.
#
# | rung | keeps | reads back |
# | --- | --- | --- |
# | SGD | nothing | g |
# | momentum | m, a fading sum of g | m |
# | AdaGrad | V, the sum of g² | g/√V |
# | AdamW | fading averages m of g, V of g² | m/√V |
# | Muon | m, a fading average | the matrix nearest to m that only turns, and does not stretch |
# | M3 | a fast m, a slow m, and V | both, turned likewise |
#
# We let them run on one small problem, a layer of 2 × 3 weights and eight tokens, each at its best learning rate.
# `best_walk` takes 50 steps at each of nine rates from 0.001 to 10, two per factor of ten, and returns the best.

# %%
names = ("sgd", "momentum", "adagrad", "adamw", "muon", "m3")
with np.errstate(all="ignore"):                # some of the rates overflow
    for name in names:
        rate, points, losses = best_walk(name, np.zeros((2, 3)), regression, 50, 2)
        plt.semilogy(losses, label=f"{name}, η = {rate:.2g}")
plt.xlabel("step")
plt.ylabel("loss")
plt.legend(ncols=2)
plt.show()

# %% [markdown]
# Do not read a ranking into this: it is one problem with six numbers. (`docs/ladder.md` has all rungs on a language
# model.) But one can see characters: SGD and AdaGrad go down smoothly; whatever holds past gradients swings, for it
# goes on where they pointed; and M3, with its slow memory, goes on for longest.
#
# ## AdaGrad remembers sizes
#
# Momentum remembers where gradients pointed. AdaGrad remembers how large they were, number by number:
#
#     V ← V + g²,      W ← W − η g/√V                                       [A 105 with g in place of M̃]
#
# It is a memory of the kind you know. Ask, for one weight: which factor n brings its gradients g_i closest to targets
# P_i, in the sense of the least Σ (n g_i − P_i)²? The slope by n is zero at n = Σ g_i P_i / Σ g_i², with V below the
# line. AdaGrad's targets are √V for the newest gradient and 0 for all older ones, and n is g/√V. What it does: a
# weight whose gradients are always large takes smaller steps. (g², √V and the quotient are taken number by number.)
#
# ### Exercise 7.1: AdaGrad

# %%
def adagrad_step(W, V, g, eta):
    V = ...
    W = ...
    return W, V


check.adagrad_step(adagrad_step)

# %% [markdown]
# ## What is left when the task changes?
#
# Four tasks, one after the other: W u_i = y_i, where the u_i are at right angles. Then nobody has to forget anything:
# one W answers all four. Let five of the rungs learn them in turn, 25 steps each, and look at the loss of the *first*
# task all along [A 45].

# %%
tasks = orthogonal_tasks()
rates = {"sgd": 0.5, "momentum": 0.1, "adagrad": 1.0, "adamw": 0.3, "m3": 0.2}
for name, rate in rates.items():
    _, losses, _ = in_turn(name, rate, tasks, 25)
    plt.semilogy(np.maximum(losses[:, 0], 1e-9), label=name)
for turn in (25, 50, 75):
    plt.axvline(turn, color="grey", linewidth=0.5)
plt.xlabel("step; a new task at each line")
plt.ylabel("loss of the first task")
plt.legend()
plt.show()

# %% [markdown]
# SGD writes under u_1 while task 1 is on, and never again: its line stays flat. (The picture ends at 10⁻⁹.) Momentum
# is different. When the second task begins, m is full of the first. It goes on writing under u_1 for a while, though
# nobody asked, and spoils what was right. AdaGrad and AdamW divide by √V, number by number, which turns the direction
# of a step: what they write for one task is heard under the keys of the others. And M3 makes every direction in its
# memories count the same, also one that is nearly forgotten (how, we shall see): it walks on along u_1 to the end.
#
# The memory of an optimiser is not the weight's memory: it is short, and knows nothing of tasks.
#
# Muon, the next rung, keeps m as an average, and reads it a step ahead.
#
# ### Exercise 7.2: look ahead
#
# First m ← μ m + (1 − μ) g. The direction is what m would become if the same g came once more. Return the direction and
# m (which must not look ahead: it takes in g once).

# %%
def look_ahead(m, g, mu):
    m = ...
    direction = ...
    return direction, m


check.look_ahead(look_ahead)

# %% [markdown]
# ## Newton–Schulz is learning
#
# A matrix turns a ball into an egg, an ellipsoid; its **singular values** are the lengths of the egg's axes. Muon makes
# all singular values of that direction equal to 1, a ball again: every direction that m knows counts the same, weak or
# strong. How, without computing them? Here is a loss whose lowest points are just such matrices:
#
#     L(X) = ¼ ‖X Xᵀ − I‖²                                              [A 43, but for the ¼ and the side of ᵀ]
#
# Its gradient is (X Xᵀ − I) X. So begin at the matrix, and go down. Is the gradient right? Lesson 1 has taught us to
# check.

# %%
X = rng.standard_normal((3, 4))
leaf = Tensor(X, requires_grad=True)
distance = leaf @ leaf.mT - np.eye(3)
(slope,) = grad((distance * distance).sum() * 0.25, [leaf])
print("largest difference:", abs(slope.data - (X @ X.T - np.eye(3)) @ X).max())

# %% [markdown]
# ### Exercise 7.3: one step of Newton–Schulz
#
# Take a step of ½ down that gradient. (It becomes a polynomial in X: the *cubic* iteration.)

# %%
def newton_schulz_step(X):
    return ...


check.newton_schulz_step(newton_schulz_step)

# %% [markdown]
# An optimiser, inside the step of an optimiser. Here are singular values under the cubic iteration, and under Muon's
# own polynomial, the *quintic*, which is tuned to be fast and does not care to be exact. (First the matrix is divided
# by its length, so that no singular value is above 1. From far above 1 a step of ½ would lead astray.)

# %%
start = np.diag([0.9, 0.4, 0.1, 0.02])         # its singular values stand on its diagonal
start = start / np.linalg.norm(start)
figure, panels = plt.subplots(1, 2, sharey=True)
for panel, coefficients, title in ((panels[0], CUBIC, "cubic"), (panels[1], QUINTIC, "quintic")):
    found = [np.linalg.svd(newton_schulz(start, n, coefficients), compute_uv=False) for n in range(13)]
    panel.plot(found, ".-")
    panel.axhline(1, color="grey", linewidth=0.5)
    panel.set(title=title, xlabel="steps")
panels[0].set_ylabel("singular values")
plt.show()

# %% [markdown]
# The cubic tends to 1; small values take long, since each step makes them at most 1.5 times larger. The quintic lifts
# them 3.4 times per step, and then wavers between 0.68 and 1.14. Five steps are what Muon takes.
#
# (As it is printed, [A 44] also pulls X back to where it began, and then it stops on the way: finding 16 of PAPER.md.)
#
# ## M3: a second clock
#
# An average with β = 0.95 has forgotten after some hundred steps. A larger β would remember longer, and be slow for
# everything. The paper's M3 keeps *two* memories. The fast one moves at every step. The slow one gathers f gradients,
# and moves once in f steps, by their sum:
#
#     M₁ ← β₁ M₁ + (1 − β₁) g                               at every step
#     M₂ ← β₃ M₂ + (1 − β₃) Σ_{last f} g                    at every f-th step              [A 75, Algorithm 1]
#     W ← W − η (NS(M₁) + α NS(M₂)),  shaped by √V
#
# NS is Newton–Schulz from above, and α says how much the slow memory counts. *Shaped*: the step is divided by √V,
# number by number, and brought back to the length that it had. (The averages are the project's reading; printed are
# sums, which never fade.) Let us ask M3 what it holds: feed it one gradient of 1 and then zeros, and look.

# %%
class Weight:                                  # what an optimiser needs of a parameter
    def __init__(self, data):
        self.data, self.grad, self.tap = data, None, None


p = Weight(np.zeros((2, 2)))
m3 = M3([p], lr=0.1, momentum=0.95, beta3=0.9, slow_period=16)
fast, slow = [], []
for step in range(200):
    p.grad = np.eye(2) * (step == 3)
    m3.step()
    memory = m3.state[0]
    fast.append(memory["fast"][0, 0])
    slow.append(memory["slow"][0, 0] if "slow" in memory else 0.0)
plt.plot(fast, label="fast, β₁ = 0.95")
plt.step(np.arange(200), slow, where="post", label="slow, β₃ = 0.9, every 16 steps")
plt.xlabel("step; one gradient came at step 3")
plt.ylabel("how much of it is held")
plt.legend()
plt.show()

# %% [markdown]
# The fast memory has forgotten it after a hundred steps. The slow one hears of it late, at the end of its window, and
# at the end of the picture still holds a third of what it took in. That is a *level*, as in lesson 6, only that its
# weights are gradients.
#
# ### Exercise 7.4: the slow memory
#
# Return M₂ after all of `gradients`, which has the shape (t, out, in). It begins at zero; a window that is not full at
# the end has not been written yet.

# %%
def slow_memory(gradients, f, beta):
    return ...


check.slow_memory(slow_memory)

# %% [markdown]
# ## What you know now
#
# - An optimiser is a memory of gradients: of their directions (m), of their sizes (V), or of both.
# - What it holds is short, and when the task changes it can spoil what was learned.
# - Newton–Schulz is gradient descent on the distance from orthogonality.
# - M3 adds a memory on a slower clock. (Whether that pays was measured here, in small: lesson 9.)
#
# [optimizers.py](../optimizers.py) has all thirteen rungs; `python optimizers.py --context` prints what each still
# holds of an earlier task. Next: [Hope, whole](8_hope.ipynb).
