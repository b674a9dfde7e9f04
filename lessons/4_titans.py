# %% [markdown]
# # 4. A memory that learns while it reads
#
# **You will know** how a small network takes the place of the matrix: how it is read, how it is written by its own
# gradients, and the whole of it, *Titans*, in sixty plain lines that give the project's numbers to the last digits.
# Then: what momentum does to a memory, and why a memory that counts needs a negative eigenvalue.
#
# - **Time** 75 minutes with the exercises; running it takes seconds.
# - **You need** lessons 2 and 3: exact steps, retention, delta gradient descent.
# - **Equations** [A 76–78], [A 88–90], [A 93].

# %%
import check
import matplotlib.pyplot as plt
import numpy as np

from autograd import Tensor, no_grad
from config import Config
from memory import RULES, momentum_rule, printed, proximal, recurrent
from titans import SelfModifyingTitans

rng = np.random.default_rng(0)

# %% [markdown]
# ## A network for a memory
#
# A matrix of 16 × 16 has room for some 16 pairs, as we saw. A network of two layers has room for more, and it can learn
# maps that are not linear. The memory of Titans is
#
#     M(x) = x + W₁ σ(W₂ x)                                                                 [A 89]
#
# W₂ makes h hidden numbers of the d numbers of x; σ bends each of them; W₁ makes d numbers again. The `x +` in front, a
# *residual connection*, means that an empty memory answers with the question. For σ the project takes SiLU:
# σ(a) = a/(1 + e^(−a)).

# %%
def sigma(a):
    return a / (1 + np.exp(-a))


a = np.linspace(-6, 6, 121)
plt.plot(a, sigma(a), label="σ = SiLU")
plt.plot(a[1:], np.diff(sigma(a)) / np.diff(a), label="its slope, by differences")
plt.xlabel("a")
plt.legend()
plt.show()

# %% [markdown]
# The next four exercises are the parts of Titans. Do them before you read on, for the program below puts them
# together, and so contains their answers.
#
# ### Exercise 4.1: read
#
# `W2` has the shape (h, d), `W1` the shape (d, h), x is one vector.

# %%
def memory_read(W2, W1, x):
    """M(x) = x + W₁ σ(W₂ x)."""
    return ...


check.memory_read(memory_read)

# %% [markdown]
# ## Write, by its own gradients
#
# As before, the memory shall answer the key k with the value v: it lowers ½‖M(k) − v‖². Now the way back has two
# layers. By lesson 1, each weight has an outer product, error times input:
#
#     layer W₁:   input z₁ = σ(W₂ k),   error δ₁ = M(k) − v
#     layer W₂:   input z₂ = k,         error δ₂ = (W₁ᵀ δ₁) · σ′(W₂ k)
#
# The second error is the first, sent back through W₁, and times the slope of σ where it was. That slope is
# s + a s (1 − s), with s = 1/(1 + e^(−a)) and a = W₂ k; the orange line above.
#
# ### Exercise 4.2: both gradients
#
# Return that of W₂ first.

# %%
def memory_gradients(W2, W1, k, v):
    """The gradients of ½‖M(k) − v‖² by W2 and by W1."""
    return ..., ...


check.memory_gradients(memory_gradients)

# %% [markdown]
# ## The step
#
# A layer that is trained on its input z and its error δ is a memory of its own: a matrix with the key z, under which
# a gradient step writes −δ (lesson 2). So each layer is written as in lesson 3, by delta gradient descent, with −δ in
# the place of v [A 88]:
#
#     W ← W (α I − η′ z zᵀ) − η′ δ zᵀ,      η′ = η/(1 + η‖z‖²)
#
# The paper prints it with η in place of η′, and for one matrix. Four things stand around this line in the project;
# PAPER.md numbers them among its choices.
#
# - *The step is exact* ([choice 1](../PAPER.md#choice-1)): η′ is the one of lesson 2, with which no step is too long.
# - *It applies to each layer* ([choice 4](../PAPER.md#choice-4)), with its own input and its own error.
# - *Errors are clipped* ([choice 11](../PAPER.md#choice-11)): a δ whose RMS, √(mean δ²), is above 1 is scaled down to
#   an RMS of 1. One odd token shall not wreck the memory. (That is for the memory of this lesson. The memories that
#   lesson 5 adds are held shorter.)
# - *Forgetting leads back to the start* ([choice 8](../PAPER.md#choice-8)). A trained memory starts from weights M₀
#   that training has found. If α took away from all of W, those would fade as well. So W = M₀ + S, and only S, the
#   **drift**, fades (put it into the line above, with α before S alone, and take M₀ away on both sides):
#
#         S ← α S − η′ ((S + M₀) z + δ) zᵀ
#
# Lesson 5 shows what happens without the last, and comes back to the clipping.
#
# ### Exercise 4.3: clip

# %%
def clip_error(delta):
    """delta, scaled down to an RMS of 1 where its RMS is larger."""
    return ...


check.clip_error(clip_error)

# %% [markdown]
# ### Exercise 4.4: write one layer
#
# Return the drift after the write. (δ has been clipped already.)

# %%
def layer_write(S, M0, z, delta, alpha, eta):
    return ...


check.layer_write(layer_write)

# %% [markdown]
# ## The whole, in sixty lines
#
# First the small parts, as you have written them.

# %%
def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def unit(x):
    """Rows of length 1."""
    return x / np.sqrt(np.sum(x * x, axis=-1, keepdims=True) + 1e-12)


def rms(x):
    """Rows of RMS 1."""
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + 1e-6)


def read(W2, W1, x):
    return x + W1 @ sigma(W2 @ x)


def errors(W2, W1, k, v):
    """(input, error) of W₂ and of W₁, for ½‖M(k) − v‖² [A 93]."""
    a = W2 @ k
    s = sigmoid(a)
    delta = read(W2, W1, k) - v
    return (k, (W1.T @ delta) * (s + a * s * (1 - s))), (sigma(a), delta)


def write(S, M0, z, delta, alpha, eta):
    """The drift of one layer after a write [A 88]."""
    delta = delta * min(1.0, 1 / np.sqrt(np.mean(delta * delta) + 1e-12))
    step = eta / (1 + eta * (z @ z))
    return alpha * S - step * np.outer((S + M0) @ z + delta, z)


# %% [markdown]
# Does it learn? Take eight random pairs, show them again and again, and look at the error *before* each write.

# %%
d, h = 8, 32
M2, M1 = rng.standard_normal((h, d)), 0.1 * rng.standard_normal((d, h))
keys, values = unit(rng.standard_normal((8, d))), rms(rng.standard_normal((8, d)))
S2, S1, surprise = np.zeros((h, d)), np.zeros((d, h)), []
for t in range(240):
    k, v = keys[t % 8], values[t % 8]
    (z2, delta2), (z1, delta1) = errors(M2 + S2, M1 + S1, k, v)
    surprise.append(np.mean(delta1 ** 2))
    S2 = write(S2, M2, z2, delta2, 0.999, 0.05)
    S1 = write(S1, M1, z1, delta1, 0.999, 0.05)
plt.plot(surprise, linewidth=0.7)
plt.plot(np.arange(4, 240, 8), np.reshape(surprise, (30, 8)).mean(axis=1), "o-", label="mean of a round")
plt.xlabel("tokens read; every eighth is the same pair")
plt.ylabel("error before the write")
plt.legend()
plt.show()

# %% [markdown]
# It learns while it reads, and no optimiser is in sight: writing *is* the learning. It does not reach zero. The rule
# forgets twice, once by (I − η′ z zᵀ) and once in the error, so that a pair that comes again and again rests between
# what was there and what was shown (finding 2 of [PAPER.md](../PAPER.md#what-we-found)).
#
# Now the layer around the memory, the **mixer**: a short filter, a weighted sum of the last four tokens, with weights
# of its own for each of the D numbers of a token (before a text stand zeros); fixed linear maps that make q, k, v and
# two gates of every token; the memory; an output map. The gates are one number each. They say for each token how much
# to write (η, between 0 and a bound η_max) and how much to keep (α, between 0 and 1). A mixer can have several
# **heads**, each with a memory of its own for a part of the width; ours has one.
#
# One more thing, for speed. Errors are found with the weights as they were at the start of the **chunk** that a token
# lies in [A 90], so that all errors of a chunk can be computed side by side. The writes are still exact, token by
# token.

# %%
def titans(w, x, chunk, eta_max):
    """Plain Titans with one head.  x (T,D), w: the weights by name → (T,D)"""
    T, D = x.shape
    past = np.concatenate([np.zeros((3, D)), x])
    x = sum(w["filter"][i] * past[3 - i:3 - i + T] for i in range(4))

    q, k = unit(x @ w["q"].T), unit(x @ w["k"].T)                            # [A 76]
    v = rms(x @ w["v"].T)
    gate = x @ w["gate"].T
    eta = eta_max * sigmoid(gate @ w["eta"] + w["eta bias"])
    alpha = sigmoid(gate @ w["alpha"] + w["alpha bias"])

    M2, M1 = w["M2"], w["M1"]
    S2, S1, o = np.zeros_like(M2), np.zeros_like(M1), []
    for t in range(T):
        if t % chunk == 0:
            seen2, seen1 = M2 + S2, M1 + S1                                  # what errors see
        o.append(read(M2 + S2, M1 + S1, q[t]))                               # [A 78]: read, then write
        (z2, delta2), (z1, delta1) = errors(seen2, seen1, k[t], v[t])
        S2 = write(S2, M2, z2, delta2, alpha[t], eta[t])
        S1 = write(S1, M1, z1, delta1, alpha[t], eta[t])
    return rms(np.array(o)) @ w["output"].T


# %% [markdown]
# Is it the project's? We make its mixer, take out its weights, and let both read 50 random tokens in chunks of 8.
# (The settings switch off what comes later, such as the memories of lesson 5. What each of them means stands in
# [config.py](../config.py); nothing here depends on it.)

# %%
config = Config(width=16, layers=1, heads=1, segment=64, hidden=16, mixer="plain-titans", adaptive=("memory",),
                targets="value", memory="mlp", memory_hidden=24, objective="l2", error_power=2.0, reads="exact",
                memory_chunk=8, projection_chunk=8, eta_max=0.5, eta_start=0.2, momentum=False,
                retention="initial", step="proximal", form="chunked")
mixer = SelfModifyingTitans(np.random.default_rng(1), config).astype(np.float64)
w = {"filter": mixer.conv.weight, "output": mixer.output.weight,
     "M2": mixer.initial["memory"][0][0], "M1": mixer.initial["memory"][1][0],
     "eta": mixer.readout["eta"][0, 0], "eta bias": mixer.bias["eta"],
     "alpha": mixer.readout["alpha"][0, 0], "alpha bias": mixer.bias["alpha"]}
w |= {name: layer.weight for name, layer in mixer.projection.items()}
w = {name: tensor.data for name, tensor in w.items()}

x = rng.standard_normal((50, 16))
with no_grad():
    theirs, state = mixer(Tensor(x[None]))
ours = titans(w, x, chunk=8, eta_max=0.5)
print("largest number:    ", abs(ours).max().round(3))
print("largest difference:", abs(ours - theirs.data[0]).max())

# %% [markdown]
# The difference is rounding. `titans.py` does the same for several heads and many texts at once, takes derivatives
# through all of it, and does not take one token at a time. Everything else about it you have read.
#
# ## Momentum: what is written goes on
#
# Lesson 2's momentum lets an optimiser move on in a direction for a while. A memory can do so, too (Table 6 of the
# paper takes it away, and the model gets worse). A second matrix N holds what is being written:
#
#     N ← β N + η v kᵀ,      S ← S (α I − η k kᵀ) + N
#
# What is read was written by the last tokens together. Here the value 1 is written once, under one key, at token 5.
# (`momentum_rule` takes for every token: q, k, v; what does not go through N, here nothing; log α; the rates of
# forgetting along k, here 0, and of writing; log β.)

# %%
k, v = np.ones((30, 1)), np.zeros((30, 1))
v[5] = 1.0
rate = np.zeros(30)
rate[5] = 0.5
for beta in (0.01, 0.5, 0.8):
    row = [Tensor(x) for x in (k, k, v, 0 * v, np.log(np.full(30, 0.98)), 0 * rate, rate, np.log(np.full(30, beta)))]
    reads, _, _ = momentum_rule(*row, Tensor(np.zeros((1, 1))), Tensor(np.zeros((1, 1))), "recurrent")
    plt.plot(reads.data[:, 0], ".-", label=f"β = {beta}")
plt.xlabel("token (written at 5; no forgetting along k here, α = 0.98)")
plt.ylabel("what is read under the key")
plt.legend()
plt.show()

# %% [markdown]
# With β near 0 the write is done at once, and then fades. With β = 0.8 it goes on for a dozen tokens; without the
# fading it would add up to 1/(1 − β) = 5 times as much, 2.5.
#
# ### Exercise 4.5: a write with momentum
#
# Return the new S and the new N.

# %%
def momentum_write(S, N, k, v, alpha, beta, eta):
    N = ...
    S = ...
    return S, N


check.momentum_write(momentum_write)

# %% [markdown]
# ## The sign of an eigenvalue
#
# Here is a question that looks too simple: read zeros and ones, and say whether the ones so far are even or odd. That
# is **parity**. A memory that only fades cannot do it: for parity, each 1 must *turn something over*.
#
# Look along one key, of length 1. There, a write multiplies what the memory answers by a number, an *eigenvalue* of
# (a I − b k kᵀ): it is a − b. Adding has 1. Retention has α. The delta rule has 1 − η, which lies between 0 and 1: it
# fades. To turn over, one needs −1. The *signed* delta rule gets there by a step of 2η: 1 − 2η.
#
# (In the code below `proximal` is the exact step, η/(1 + η), and `printed` the plain η. Only DGD heeds which it is.)

# %%
etas = np.linspace(0, 1, 101)
one = Tensor(np.ones(101))
for name, step, label in (("delta", proximal, "delta, 1 − η"), ("signed", proximal, "signed delta, 1 − 2η"),
                          ("dgd-l2", proximal, "DGD on the squared error, exact step"),
                          ("dgd-l2", printed, "… with the step as printed")):
    log_a, b, c = RULES[name](Tensor(0 * etas), Tensor(etas), step)
    a, b = np.exp((one * 0 + log_a).data), (one * 0 + b).data
    plt.plot(etas, a - b, ":" if step is printed else "-", linewidth=2, label=label)
plt.axhline(0, color="grey", linewidth=0.5)
plt.xlabel("η")
plt.ylabel("eigenvalue along the key")
plt.legend()
plt.show()

# %% [markdown]
# (DGD on the squared error forgets twice, hence α − 2η′; here α = 1. With the exact step, η′ = η/(1 + η) is at most a
# half at η = 1, and the eigenvalue never gets below 0. The step as it is printed in the paper reaches −1.)
#
# Now let a memory read 24 bits. A 1 comes with η near 1 (0.999), a 0 with η = 0; nothing is ever written, v = 0. We
# ask under the key.

# %%
bits = rng.integers(0, 2, 24)
for name in ("delta", "signed"):
    S, answers = np.array([[1.0]]), []
    for bit in bits:
        log_a, b, c = (np.array([float(x)]) for x in RULES[name](0.0, 0.999 * bit))
        _, S = recurrent(None, np.ones((1, 1)), np.zeros((1, 1)), log_a, b, c, S)
        answers.append(S.item())
    plt.step(np.arange(24), answers, where="mid", label=name)
plt.plot(np.arange(24), 1 - 2 * (np.cumsum(bits) % 2), "k.", label="parity: 1 for even, −1 for odd")
plt.xticks(np.arange(24), bits)
plt.xlabel("bit")
plt.legend(loc="upper center", bbox_to_anchor=(0.5, 1.2), ncols=3)
plt.show()

# %% [markdown]
# The delta rule forgets at the first 1. The signed one turns over at every 1, and its sign is the parity. One number of
# memory is enough, if its eigenvalue may be negative.
#
# ### Exercise 4.6: parity
#
# Return S (I − b k kᵀ) with the b that turns over what lies along k for a 1, and leaves everything for a 0. Keys have
# length 1.

# %%
def parity_write(S, k, bit):
    return ...


check.parity_write(parity_write)

# %% [markdown]
# ## What you know now
#
# - The memory of Titans is a small network; its layers are written with their own inputs and errors.
# - Titans are a filter, maps to q, k, v and gates, that memory, and an output map: sixty lines.
# - Momentum lets a write go on; the sign of an eigenvalue decides what a memory can keep count of.
#
# Still, the maps that make k and v are fixed while reading. In the [next lesson](5_self_modifying.ipynb) they are
# memories, too, and things go wrong.
