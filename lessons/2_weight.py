# %% [markdown]
# # 2. A weight is an associative memory
#
# **You will know** what a gradient step writes into a weight, and under which key; that three well-known descriptions
# of gradient descent are one; what changes if a step is taken exactly; and what an optimiser with momentum remembers.
#
# - **Time** 45 minutes with the exercises; running it takes seconds.
# - **You need** lesson 1: the gradient of a layer is error times input.
# - **Equations** [A 1–3], [A 8–13], [A 33], [A 98–99], [A 113–121].

# %%
import check
import matplotlib.pyplot as plt
import numpy as np

from autograd import Tensor
from layers import linear
from optimizers import DGD, Momentum

rng = np.random.default_rng(0)

# %% [markdown]
# ## A step of learning writes
#
# A layer answers y = W x. Lesson 1 found the gradient of its weight: error times input, ȳ xᵀ. A step of gradient
# descent is then
#
#     W ← W − η ȳ xᵀ                                                                        [A 8]
#
# Read it as *writing into a memory*: under the **key** x the **value** −η ȳ is added. What does the layer answer
# afterwards?
#
#     (W − η ȳ xᵀ) x = W x − η (xᵀx) ȳ
#
# Under the same key the answer has moved against the error. Let us see that, for the loss ½‖W x − target‖², whose
# error ȳ is W x − target.

# %%
W = rng.standard_normal((2, 3))
x = np.array([0.6, 0.8, 0.0])                  # a key of length 1
target = np.array([1.0, -1.0])
error = W @ x - target
W_after = W - 0.5 * np.outer(error, x)

print("wanted          ", target)
print("answered before ", (W @ x).round(3))
print("answered after  ", (W_after @ x).round(3))

# %% [markdown]
# Half of the error is gone, since η = ½ and the key has length 1.
#
# ## Who else hears it?
#
# What was written under x is also heard under other keys: under x′ the answer has moved by −η (xᵀx′) ȳ. Keys of
# length 1 at an angle hear as much as the cosine of that angle. At a right angle they hear nothing.

# %%
angles = np.linspace(0, np.pi, 73)
keys = np.stack([np.cos(angles), np.sin(angles)], axis=1)
written = np.outer([1.0], keys[0])             # the value 1, written under the first key
plt.plot(np.degrees(angles), keys @ written[0])
plt.axhline(0, color="grey", linewidth=0.5)
plt.xticks([0, 45, 90, 135, 180])
plt.xlabel("angle between the key that was written and the key that is asked")
plt.ylabel("what is heard")
plt.show()

# %% [markdown]
# This is all there is to an **associative memory**: it maps keys to values, and it learns that map by lowering some
# loss. A weight matrix trained by gradient descent is one. Its keys are the inputs of the layer, and its values are the
# errors that the layer made. The paper begins with this remark, and sees everything as such memories.
#
# ### Exercise 2.1: one step, as a write
#
# Return the weight after it, as in [A 8].

# %%
def gradient_step(W, x, error, eta):
    """W after one step of gradient descent; error is the gradient ȳ of the layer's output W x."""
    return ...


check.gradient_step(gradient_step)

# %% [markdown]
# ## The same step, as a compromise
#
# There is a second way to describe the step. Where would one like to go? Downhill: make ⟨g, V⟩ small, where g is the
# gradient and ⟨g, V⟩ = Σ g_ij V_ij. But not far, since the slope is known here only: keep ‖V − W‖², the sum of the
# squares of all numbers in V − W, small. So look for the V with the best compromise:
#
#     W_next = argmin_V  ⟨g, V⟩ + ‖V − W‖²/(2η)                                             [A 2]
#
# `argmin_V` means: the V where what follows is least. Here is that compromise for one weight, W = 1 with slope g = 2.

# %%
V = np.linspace(-1.5, 2, 200)
for eta in (0.25, 0.5, 1.0):
    compromise = 2 * V + (V - 1) ** 2 / (2 * eta)
    line, = plt.plot(V, compromise, label=f"η = {eta}")
    at = 1 - eta * 2                           # the gradient step
    plt.plot(at, 2 * at + (at - 1) ** 2 / (2 * eta), "o", color=line.get_color())
plt.ylim(-0.5, 6)
plt.xlabel("V")
plt.ylabel("the compromise")
plt.legend()
plt.show()

# %% [markdown]
# The dots are W − η g, the gradient step. They lie where the compromise is least. You can show it in a line: the slope
# of the compromise by V is g + (V − W)/η, and that is zero at V = W − η g. A large η lets it go far.
#
# A step that minimises something plus ‖V − W‖²/(2η) is called a **proximal step**: *proximal* is "near".
#
# ## The same again, with a memory of everything
#
# A third description looks at all gradients so far, and at the very first weight:
#
#     W_{t+1} = argmin_V  Σ_{i≤t} ⟨g_i, V⟩ + ‖V − W_1‖²/(2η)                                [A 3]
#
# It is called *follow the regularised leader*, FTRL. Set its slope to zero: Σ g_i + (V − W_1)/η = 0. It says: the
# weight is its first state plus all that was ever written. Nothing else is in it.
#
# ### Exercise 2.2: all at once
#
# Return the V that solves [A 3]. `gradients` has the shape (t, out, in): one gradient per step.

# %%
def ftrl(W1, gradients, eta):
    return ...


check.ftrl(ftrl)

# %% [markdown]
# Let us see that the first and the last agree, for gradients that were found step by step:

# %%
start, eta = rng.standard_normal((2, 3)), 0.3
W, gradients = start, []
for _ in range(5):
    x = rng.standard_normal((1, 3))
    weight = Tensor(W, requires_grad=True)
    ((linear(x, weight) - np.array([[1.0, 2.0]])) ** 2).sum().backward()
    gradients.append(weight.grad)
    W = W - eta * weight.grad
slope_of_ftrl = np.sum(gradients, axis=0) + (W - start) / eta
print("what is left of the slope of [A 3] where gradient descent has led:", abs(slope_of_ftrl).max().round(12))

# %% [markdown]
# ## A step that is taken exactly
#
# The compromise trusted the slope. But the loss of a memory is known everywhere, not only its slope here. So put the
# loss itself into the compromise:
#
#     W_next = argmin_V  ½‖V x − y‖² + ‖V − W‖²/(2η)                                        [A 98–99]
#
# The slope of this by V is (V x − y) xᵀ + (V − W)/η. It looks as if V stood on both sides, but the solution is short:
#
#     W_next = W − η′ (W x − y) xᵀ,      η′ = η/(1 + η‖x‖²)
#
# It is the gradient step with another step size: η′ is smaller than η, and it depends on how long the key is. (To see
# it, put V = W − c (W x − y) xᵀ into the slope, and find the c that makes it zero.) What is the difference? Here is how
# much of the error is left under the key after one step.

# %%
etas = np.linspace(0, 4, 100)
plt.plot(etas, 1 - etas, label="gradient step: 1 − η")
plt.plot(etas, 1 / (1 + etas), label="exact step: 1/(1 + η)")
plt.axhline(0, color="grey", linewidth=0.5)
plt.axhline(-1, color="grey", linewidth=0.5, linestyle=":")
plt.xlabel("η, for a key of length 1")
plt.ylabel("share of the error that is left")
plt.legend()
plt.show()

# %% [markdown]
# Beyond η = 1 the gradient step overshoots, and beyond η = 2 the error grows with every step. The exact step never
# overshoots: for a very large η it answers y at once. This is why a memory that learns while it reads takes it.
#
# ### Exercise 2.3: the exact step
#
# The keys of the checker are not of length 1.

# %%
def proximal_step(W, x, y, eta):
    """The V with the least ½‖V x − y‖² + ‖V − W‖²/(2η)."""
    return ...


check.proximal_step(proximal_step)

# %% [markdown]
# The project's optimiser `DGD`, delta gradient descent, takes such steps in training. It writes −ȳ under x, as any
# gradient step does, with the short step η′. As the paper prints it [A 56–57], it also takes away a share of what was
# there under x. `forget` says how much of that it does: 1 if nothing is said, and with 0 it is the step from above:

# %%
class Weight:                                  # what an optimiser needs of a parameter
    def __init__(self, data):
        self.data, self.grad, self.tap = data, None, None


W, x, y, eta = rng.standard_normal((2, 3)), rng.standard_normal(3), rng.standard_normal(2), 5.0
p = Weight(W.copy())
dgd = DGD([p], lr=eta, forget=0.0)             # it makes p.tap an empty list, for the layer to fill
error = W @ x - y
p.grad = np.outer(error, x)
p.tap.append((x[None], error[None]))           # the layer's inputs and output errors
dgd.step()
by_hand = W - eta / (1 + eta * x @ x) * np.outer(error, x)
print("largest difference:", abs(p.data - by_hand).max())

# %% [markdown]
# ## An optimiser is a memory, too
#
# Plain gradient descent (**SGD**, the S is for *stochastic*: on other data at every step) looks at the present
# gradient only. With **momentum** it keeps a matrix m, and moves by that:
#
#     m ← μ m + η g,      W ← W − m                                                         [A 33]
#
# What is in m? Unroll it: m_t = η (g_t + μ g_{t−1} + μ² g_{t−2} + …). It is a memory of gradients in which the old
# ones fade; μ is how much it keeps. And it learns as a weight does. Take −⟨m, g⟩ for its loss, which is low where m
# points along g. The slope of that by m is −g, so a gradient step adds η g [A 12–13].
#
# Here is the share that each gradient has in m, by its age. It is μ to the power of the age, divided by the sum of all
# such powers. (That sum is 1/(1 − μ).)

# %%
ages = np.arange(60)
for mu in (0.5, 0.9, 0.95):
    plt.plot(ages, (1 - mu) * mu ** ages, ".-", label=f"μ = {mu}")
plt.xlabel("age of a gradient, in steps")
plt.ylabel("its share in m")
plt.legend()
plt.show()

# %% [markdown]
# ### Exercise 2.4: one step with momentum
#
# Return the new W and the new m.

# %%
def momentum_step(W, m, g, eta, mu):
    m = ...
    W = ...
    return W, m


check.momentum_step(momentum_step)

# %% [markdown]
# ### Exercise 2.5: how long is its memory?
#
# A momentum that has run for very long consists of all gradients: the newest counts 1, the one before μ, then μ², and
# so on. Which share of the whole do the newest n have? (You may know: 1 + μ + μ² + … = 1/(1 − μ).)

# %%
def share_of_last(mu, n):
    return ...


check.share_of_last(share_of_last)

# %% [markdown]
# With the project's own `Momentum` we can simply look: give it zeros for long, then n ones, and compare with what ones
# alone would have made of it.

# %%
def m_after(gradients, mu):
    p = Weight(np.zeros((1, 1)))
    optimizer = Momentum([p], lr=1.0, momentum=mu)
    for g in gradients:
        p.grad = np.array([[g]])
        optimizer.step()
    return optimizer.state[0]["m"].item()


whole = m_after([1.0] * 500, 0.9)
for n in (6, 7, 43, 44):
    share = m_after([0.0] * (500 - n) + [1.0] * n, 0.9) / whole
    print(f"μ = 0.9: the newest {n:2} gradients make {share:.1%} of m")

# %% [markdown]
# So half of a momentum of 0.9 is made by its newest 7 gradients, and 99% by its newest 44. (The paper's §4.3 says 6 and
# 43. That is one less; PAPER.md keeps a list of such slips.) What is older is forgotten. If you train on one thing and
# then on another, the optimiser has no memory of the first. Lesson 7 draws that.
#
# ## What you know now
#
# - A gradient step writes −η times the error under the key x; a key at an angle hears its cosine.
# - Gradient step, proximal step on the slope, and FTRL are one and the same [A 1–3].
# - With the loss in place of its slope, the step is η/(1 + η‖x‖²) and never overshoots.
# - Momentum is a memory of gradients, a short one.
#
# Next: [one family of memories](3_family.ipynb), in which W is written while a text is read.
