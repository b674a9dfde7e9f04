# %% [markdown]
# # 5. Every projection a memory
#
# **You will know** what self-modifying Titans are: layers in which even the maps that make keys, values and rates learn
# while they read, from targets they make themselves. You will see three ways in which this goes wrong if it is read
# literally (extinction, blow-up, chaos), each as a picture, and what mends each of them.
#
# - **Time** 60 minutes with the exercises; running it takes some seconds.
# - **You need** lesson 4: Titans, the drift S = M − M₀, chunks.
# - **Equations** [A 83–88], [A 90], [A 93].

# %%
import check
import matplotlib.pyplot as plt
import numpy as np

from autograd import Tensor, no_grad
from config import Config
from titans import SelfModifyingTitans

rng = np.random.default_rng(0)

# %% [markdown]
# ## What still stood still
#
# In lesson 4 a memory learned, but the maps around it did not: k = W_k x came from a matrix that only training moves.
# The paper asks: why should these be fixed? A map from x to k is an associative memory as well. So let each of them
# be one, a little network M_□ where □ is k, v, η, α or the main memory:
#
#     k_t = M_k(x_t),   v_t = M_v(x_t),   η_t = M_η(x_t),   α_t = M_α(x_t)                  [A 83]
#     y_t = M_memory(q_t)
#
# (Only q_t = W_q x_t stays fixed. η and α are one number each: M_η and M_α end in one number, and a sigmoid brings it
# between its bounds.) At every token *each* of these memories is written, by the rule that you know, [A 88]. All that
# is missing is: what shall each of them learn? For the main memory, "answer k_t with v_t" was natural. The paper lets
# every memory make its own target, of the value:
#
#     v̂_□ = M_□(v_t),      M_□ lowers  ½‖M_□(k_t) − v̂_□‖²                                   [A 84–85]
#
# In words: *say of the key what you would say of the value*. A memory that teaches itself: self-modifying.
#
# ### Exercise 5.1: a self-made target
#
# M is the network of lesson 4, M(x) = x + W₁ σ(W₂ x) with σ(a) = a/(1 + e^(−a)). In the project the target is brought
# to RMS 1; we will see why. Return it.

# %%
def self_target(W2, W1, k, v):
    return ...


check.self_target(self_target)

# %% [markdown]
# ## Watch them
#
# Here is the project's mixer with five memories. It reads 128 random tokens. How far does each memory drift from where
# it began?

# %%
def make(**settings):
    """Self-modifying Titans of width 16, one head; the project's choices, unless others are given."""
    chosen = {"adaptive": ("k", "v", "eta", "alpha", "memory"), "targets": "self", "memory": "mlp",
              "memory_hidden": 16, "objective": "l2", "error_power": 2.0, "reads": "exact", "memory_chunk": 1,
              "projection_chunk": 1, "eta_max": 0.5, "eta_start": 0.05, "momentum": False,
              "retention": "initial", "step": "proximal", "form": "recurrent"}
    config = Config(width=16, layers=1, heads=1, segment=64, hidden=16, mixer="titans", **(chosen | settings))
    return SelfModifyingTitans(np.random.default_rng(1), config).astype(np.float64)


def size(layers):
    """How large a memory's weights are, both layers together."""
    return np.sqrt(sum(np.sum(layer.data ** 2) for layer in layers))


mixer, state = make(), None
drifts = {name: [] for name in mixer.initial}
for x in rng.standard_normal((128, 1, 1, 16)):
    with no_grad():
        _, state = mixer(Tensor(x), state)     # one token; the state says what has been read
    for name, layers in state.drift.items():
        drifts[name].append(size(layers))
for name, sizes in drifts.items():
    plt.plot(sizes, label=f"M_{name}")
plt.xlabel("tokens read")
plt.ylabel("size of the drift")
plt.legend()
plt.show()

# %% [markdown]
# All five move, the main memory farthest. Behind this quiet picture stand a few decisions of the project. We now take
# them away, one by one, and follow the letter of the paper.
#
# ## Extinction
#
# Retention in [A 88] multiplies *all* of M by α. Initial states are what training has found. How much of them is left
# after t tokens? α^t, whatever is written meanwhile. Here is a network that is written by plain gradient steps. (It
# goes without the `x +` of lesson 4: that part has no weights, so it cannot fade.)

# %%
def literal_network(tokens, alpha, eta):
    """The size of a network's two layers while it learns random pairs, and all of it fades."""
    def sigma(a):
        return a / (1 + np.exp(-a))

    W2, W1, sizes = rng.standard_normal((16, 8)), 0.3 * rng.standard_normal((8, 16)), []
    for _ in range(tokens):
        k, v = rng.standard_normal((2, 8))
        k = k / np.linalg.norm(k)
        a = W2 @ k
        s = 1 / (1 + np.exp(-a))
        delta = W1 @ sigma(a) - v
        down = (W1.T @ delta) * (s + a * s * (1 - s))
        W2 = alpha * W2 - eta * np.outer(down, k)
        W1 = alpha * W1 - eta * np.outer(delta, sigma(a))
        sizes.append((np.linalg.norm(W2), np.linalg.norm(W1)))
    return np.array(sizes)


sizes = literal_network(800, alpha=0.98, eta=0.01)
plt.semilogy(sizes[:, 0], label="W₂")
plt.semilogy(sizes[:, 1], label="W₁")
plt.semilogy(sizes[0, 0] * 0.98 ** np.arange(800), "k:", label="what is left of the first W₂")
plt.xlabel("tokens read, α = 0.98")
plt.ylabel("size")
plt.legend()
plt.show()

# %% [markdown]
# Both layers die, though the network is written at every token. Why do the writes not save it? Look at the gradients:
# that of W₁ is δ σ(W₂ k)ᵀ, which is zero if W₂ is; that of W₂ has W₁ᵀ δ in it, which is zero if W₁ is. **At zero
# there is no gradient to leave zero by.** Near zero there is next to none, and fading wins.
#
# What mends it ([choice 8](../PAPER.md#choice-8)): let only what was *learned while reading* fade, the drift
# S = M − M₀.
#
# ### Exercise 5.2: fade to where you began
#
# Return M after one token of such a retention. Nothing is written.

# %%
def pull_to_start(M, M0, alpha):
    return ...


check.pull_to_start(pull_to_start)

# %% [markdown]
# ### Exercise 5.3: how long is α?
#
# A retention is easier to think of as a **half-life**: after how many tokens is half of it left?

# %%
def half_life(alpha):
    return ...


check.half_life(half_life)

# %% [markdown]
# ## Blow-up
#
# A memory makes its own target. Take the smallest case: M is one number m, the key is 1, the input is 1. Then the value
# is v = M_v(1). Let M_v be the very memory that is taught (in the paper it is one of them): v = m. Its target is
# v̂ = m·v = m². A gradient step with η = 1 puts m where the target is: m ← m². If m begins above 1, that is the end.

# %%
with np.errstate(over="ignore", invalid="ignore"):
    for start in (0.9, 1.05, 2.0):
        m, literal, bounded = start, [start], [start]
        n = start
        for _ in range(12):
            m = m * m                          # the target as printed
            n = np.tanh(n * np.tanh(n))        # value and target kept within −1 … 1
            literal.append(m)
            bounded.append(n)
        line, = plt.semilogy(literal, "o-", label=f"m begins at {start}")
        plt.semilogy(bounded, ":", color=line.get_color())
plt.ylim(1e-6, 1e30)
plt.xlabel("tokens (dotted: with bounds)")
plt.ylabel("m")
plt.legend()
plt.show()

# %% [markdown]
# 2, 4, 16, 256, 65,536: after ten tokens m is beyond what a float64 can hold. A target that grows with the memory,
# and a memory that grows with its target, feed on each other. And below 1 it dies.
#
# What mends it ([choice 10](../PAPER.md#choice-10), [choice 11](../PAPER.md#choice-11)): values and targets have a
# fixed scale, RMS 1, or go through tanh where they are one number; and errors are clipped, as in lesson 4: to an RMS
# of 1 in the main memory, to a *length* of 1 in the memories that make k, v, η and α. (A vector of d numbers with an
# RMS of 1 is √d long, so a length of 1 is the tighter bound. What a change of k or η does comes back in everything
# that is written afterwards.) A memory can then still be wrong, but not by more and more. (The dotted lines all die,
# for tanh(n·tanh(n)) is less than n. That is so in this smallest case only: a vector that is brought to an RMS of 1
# neither grows nor dies.)
#
# ## Chaos
#
# Bounded is not yet good. Let two copies of the same mixer read the same 300 tokens, but push the very first number by
# 10⁻⁹. How far are their answers apart later on? We try several bounds η_max of the inner learning rate.

# %%
x = rng.standard_normal((1, 300, 16))
pushed = x.copy()
pushed[0, 0, 0] += 1e-9
for eta_max in (0.5, 1.0, 4.0):
    mixer = make(eta_max=eta_max, eta_start=eta_max / 2)
    with no_grad():
        apart = mixer(Tensor(x))[0].data - mixer(Tensor(pushed))[0].data
    plt.semilogy(np.linalg.norm(apart[0], axis=1) + 1e-18, label=f"η up to {eta_max}")
plt.xlabel("tokens read since the push of 10⁻⁹")
plt.ylabel("distance of the answers")
plt.legend()
plt.show()

# %% [markdown]
# With η up to 4 a push of a billionth is as large as the answers themselves after some 150 tokens. Nothing overflows:
# all numbers are bounded. But what the model says is then decided by a rounding error, and a gradient through such a
# text is as large as that ratio, 10⁹: training cannot use it. With η up to 1 the push grows some tenfold in 300
# tokens. With η up to ½ it does not grow.
#
# What mends it ([choice 9](../PAPER.md#choice-9)): η_t = η_max · sigmoid(…), with a small η_max, ½ here, and an even
# smaller start. (The tighter clip from above helps, too. With RMS 1 in all five memories, the gradient across a text
# of 1,024 tokens can reach 10⁴ at η_max = ½, in a model four times as wide as this one; as it is, it stays below 1:
# choice 11.)
#
# ### Exercise 5.4: a rate with a bound
#
# A memory's raw answer, `gate`, can be any number. Return η = η_max · sigmoid(gate + b), where b is such that a gate
# of 0 gives η_start. (sigmoid(b) = p means b = log(p/(1 − p)).)

# %%
def bounded_rate(gate, eta_max, eta_start):
    return ...


check.bounded_rate(bounded_rate)

# %% [markdown]
# ## Swing
#
# One more, a quiet one. Errors are frozen while a chunk lasts [A 90]. Show a memory one and the same pair for ever. At
# the chunk's start it sees its error, and then corrects *the same error* at every token, C times.

# %%
for C in (1, 8, 64):
    M, answers = 1.5, []
    for t in range(256):
        if t % C == 0:
            error = M - 1.0                    # a key of 1, the value 1
        M = M * (1 - 0.1) - 0.1 * error        # [A 93] with η = 0.1
        answers.append(M)
    plt.plot(answers, label=f"chunks of {C}")
plt.axhline(0.5, color="grey", linewidth=0.5)
plt.xlabel("tokens read, all the same")
plt.ylabel("what the memory answers")
plt.legend()
plt.show()

# %% [markdown]
# The memory rests at ½ and not at 1, since the rule forgets twice. With chunks of 1 and 8 it gets there. With chunks of
# 64 it swings from one side to the other and hardly settles.
#
# A frozen error does this only because it has M in it, M(k) − v. A memory can lower −⟨M(k), v⟩ instead, the **dot
# product**: then the error of what it answers is −v, whatever M is, and it cannot swing like this (finding 13 of
# [PAPER.md](../PAPER.md#what-we-found)).
#
# ### Exercise 5.5: the factor of a swing
#
# At a chunk's start M − ½ is e. By which factor has it been multiplied after C tokens? (Below zero means: M is on the
# other side of ½.) Hints: inside a chunk M ← (1 − η) M − η·error, with a fixed error = M_start − 1. Where would M come
# to rest, if the chunk went on for ever? By what is its distance from *there* multiplied at each token? (Finding 13 of
# [PAPER.md](../PAPER.md#what-we-found) has the answer; try first.)

# %%
def swing_factor(eta, C):
    return ...


check.swing_factor(swing_factor)

# %% [markdown]
# ## What you know now
#
# | read literally | what happens | what the project does |
# | --- | --- | --- |
# | α fades all of M | extinction: at zero there is no gradient | only the drift from M₀ fades (choice 8) |
# | targets of any size | blow-up: a memory squares itself | values and targets of RMS 1, errors clipped (10, 11) |
# | η of any size | chaos: a billionth decides | η has a small bound, and starts smaller (9) |
# | errors frozen for long | a swing that hardly settles | η is small (9); `--objective dot`, or short chunks |
#
# All but the bounds of values, targets and errors are settings: `--retention zero` is the literal form, `--eta-max`
# and `--memory-chunk` can be as large as you like. Extinction, blow-up and swing have a test each that shows them, in
# [test_findings.py](../tests/test_findings.py). [titans.py](../titans.py) is the whole of it; `python titans.py`
# prints which memory moves when. Next: [what moves when](6_levels.ipynb).
