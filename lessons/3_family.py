# %% [markdown]
# # 3. One family of memories
#
# **You will know** four rules by which a memory can be written while a text is read; that they are settings of one
# line; how eight tokens change each of them, by hand; and how a whole chunk of tokens is written at once without any
# change of the result.
#
# - **Time** 60 minutes with the exercises; running it takes seconds.
# - **You need** lesson 2: what is written under a key is heard under keys that point the same way.
# - **Equations** [A 5], [A 14–18], [A 56–57], [A 64–65], [A 92].

# %%
import time

import check
import matplotlib.pyplot as plt
import numpy as np

from autograd import Tensor, no_grad
from memory import RULES, chunked, recurrent

# %% [markdown]
# ## A memory, a key, a value, a query
#
# In lesson 2 a weight changed while a network was trained. Now we let a matrix S change *while a text is read*. Each
# token brings three vectors:
#
# - a **key** k, under which to write,
# - a **value** v, which to write,
# - a **query** q, with which to ask.
#
# The token reads S q. Then it writes its pair (k, v) into S. That is all a memory layer does. The question of this
# lesson is: *by which rule is it written?*
#
# We follow eight tokens by hand. Key 0 comes with the value 1, and key 1 with the value 5, three times each in turns;
# then two others. Keys are at right angles, so that nobody disturbs anybody. Values are single numbers, so S has one
# row: S[0, i] is what it answers to key i.

# %%
KEYS = np.eye(4)[[0, 1, 0, 1, 0, 1, 2, 3]]     # one row per token
VALUES = np.array([[1.0], [5], [1], [5], [1], [5], [9], [9]])


def follow(write):
    """Write the eight tokens, and print the memory after each."""
    S = np.zeros((1, 4))
    for k, v in zip(KEYS, VALUES, strict=True):
        S = write(S, k, v)
        print(f"key {k.argmax()}, value {v[0]:.0f}    S = {S[0].round(3)}")


# %% [markdown]
# ## First rule: add
#
#     S ← S + v kᵀ                                                                          [A 14–18]
#
# The oldest rule of learning: what comes together is bound together. It is called **Hebbian**, and a model with it is
# *linear attention*.

# %%
def hebbian_write(S, k, v):
    return S + np.outer(v, k)


follow(hebbian_write)

# %% [markdown]
# Key 0 was shown with 1, three times, and now the memory answers 3. Adding cannot know that the pair was there already.
# And nothing ever leaves: after a long text everything lies on top of everything.
#
# ### Exercise 3.1: fade
#
# **Retention** lets the past fade before the new pair is added, by a factor α below 1 [A 5]. Write it.

# %%
def retention_write(S, k, v, alpha):
    return ...


check.retention_write(retention_write)

# %% [markdown]
# Here is the same by the project's own code. `RULES` gives three numbers for each rule; we come to them. `recurrent`
# writes token by token. It takes queries (`None`: nothing is asked), keys, values, the three numbers and the memory,
# and returns what was read, and the memory. (The first number is kept as a logarithm, since near 1 a float32 has few
# digits left.) Below stand the eight tokens under retention with α = 0.9.

# %%
def project_write(name, alpha=0.9, eta=0.5):
    """One write by a rule of memory.py."""
    log_a, b, c = (np.array([float(number)]) for number in RULES[name](np.log(alpha), eta))
    return lambda S, k, v: recurrent(None, k[None], v[None], log_a, b, c, S)[1]


follow(project_write("retention"))

# %% [markdown]
# Now the answers are weighed by age. But after the fifth token key 0 answers 2.5, and it was never shown with more than
# 1. The rule still does not look at what is there.
#
# ## Second idea: look before you write
#
# Ask the memory first. It answers S k. What is missing is the difference v − S k: write only that, or a share η of it.
# This is the **delta rule**:
#
#     S ← S + η (v − S k) kᵀ   =   S (I − η k kᵀ) + η v kᵀ                                  [A 65]
#
# (Both sides are the same: S k kᵀ is the outer product of S k and k.) You know this step: it is gradient descent on
# ½‖S k − v‖², lesson 2. The right side says what it does: along k, forget a share η of what was there; then write.

# %%
follow(project_write("delta"))

# %% [markdown]
# With η = ½, key 0 answers ½, then ¾, then ⅞: it tends to 1, however often it is shown.
#
# ### Exercise 3.2: the delta rule

# %%
def delta_write(S, k, v, eta):
    return ...


check.delta_write(delta_write)

# %% [markdown]
# ## Delta gradient descent
#
# The delta rule takes a plain gradient step. Lesson 2 had a better one, with η′ = η/(1 + η‖k‖²); and retention was
# useful too. Both together are **delta gradient descent**, DGD, the rule that the paper proposes:
#
#     S ← S (α I − η′ k kᵀ) + η′ v kᵀ                                                       [A 56–57, 92]
#
# (A 57 has this η′; A 92 prints η in its place, [choice 1](../PAPER.md#choice-1).)
#
# Mind where α stands: the whole of S fades by α, and along k another share η′ is taken away, of what was there
# *before* it faded.
#
# ### Exercise 3.3: delta gradient descent
#
# Keys have length 1, as is usual, so that η′ = η/(1 + η).

# %%
def dgd_write(S, k, v, alpha, eta):
    return ...


check.dgd_write(dgd_write)

# %% [markdown]
# ## One line for all
#
# Look at the rules side by side. All of them are
#
#     S ← S (a I − b k kᵀ) + c v kᵀ
#
# - a, what stays of everything,
# - b, what is forgotten along the key,
# - c, what is written.
#
# In the table, `linear` is the first rule, adding. `gated` is a neighbour that we have passed over, the *gated delta
# rule*: it fades first, and then asks the memory that has faded, so that b = α η.

# %%
alpha, eta = 0.9, 0.5
print("rule        a     b     c")
for name in ("linear", "retention", "delta", "gated", "dgd"):
    log_a, b, c = RULES[name](np.log(alpha), eta)
    print(f"{name:10} {np.exp(log_a):4.2f}  {float(b):4.2f}  {float(c):4.2f}")

# %% [markdown]
# And this is what each of them answers to key 0 after every token. The dashed line is what was shown.

# %%
for name in ("linear", "retention", "delta", "dgd"):
    S, answers = np.zeros((1, 4)), []
    for k, v in zip(KEYS, VALUES, strict=True):
        S = project_write(name)(S, k, v)
        answers.append((S @ KEYS[0]).item())
    plt.plot(np.arange(1, 9), answers, ".-", label=name)
plt.axhline(1, color="grey", linestyle="--")
plt.xlabel("tokens read (1, 3 and 5 show key 0)")
plt.ylabel("answer to key 0")
plt.legend()
plt.show()

# %% [markdown]
# `linear` climbs at each showing. `retention` climbs and fades. `delta` comes close to 1 and stays. `dgd` stays below:
# it forgets a little at every token, and its step is shorter.
#
# ## When keys are not at right angles
#
# In a text they never are. A memory of width d has room for d keys at right angles; more must share. Write n random
# pairs into a memory with keys of 16 numbers, and ask for all of them.

# %%
rng = np.random.default_rng(0)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def error_after(name, n, times=1, d=16):
    """How wrong the answers are: 1 means no better than silence. Every pair is shown so many times."""
    keys, values, S = unit(rng.standard_normal((n, d))), rng.standard_normal((n, d)), np.zeros((d, d))
    write = project_write(name, alpha=0.995, eta=0.9)
    for _ in range(times):
        for k, v in zip(keys, values, strict=True):
            S = write(S, k, v)
    return np.mean((keys @ S.T - values) ** 2)


numbers = [1, 2, 4, 8, 12, 16, 24, 32]
figure, (once, thrice) = plt.subplots(1, 2, sharey=True)
for name in ("linear", "delta", "dgd"):
    once.plot(numbers, [np.mean([error_after(name, n) for _ in range(10)]) for n in numbers], ".-", label=name)
    thrice.plot(numbers, [np.mean([error_after(name, n, 3) for _ in range(10)]) for n in numbers], ".-", label=name)
for panel, title in ((once, "each pair shown once"), (thrice, "each pair shown three times")):
    panel.set(title=title, xlabel="pairs, in a memory of 16 × 16", ylim=(0, 2))
once.set_ylabel("error, 1 = silence")
once.legend()
plt.show()

# %% [markdown]
# Shown once, adding is as good as the delta rule while pairs are few, and falls behind as they grow. Shown three
# times it is hopeless: every answer comes out three times too large, and its line lies above the picture. The delta
# rule gains from repetition while there is room. DGD takes shorter steps here (η′ is 0.47 where η is 0.9). With few
# pairs it has written too little; with many it overwrites less.
#
# ## Read, then write
#
# One thing must not go wrong: a token has to read *before* it writes. If it wrote first, it would find its own value
# under its own key: an echo, and not what the past has to say. (The paper prints both orders; the project reads first.)
#
# ### Exercise 3.4: one token of linear attention
#
# Return what the token reads, and the memory after it has written.

# %%
def read_then_write(S, q, k, v):
    o = ...
    S = ...
    return o, S


check.read_then_write(read_then_write)

# %% [markdown]
# ## Chunks: many tokens at once
#
# Token by token is slow. Each write needs the memory that the one before has left, and small products keep a processor
# idle. Can a chunk of C tokens be written at once? Adding can: the sum of outer products is one matrix product, VᵀK.
# But the delta rule asks the memory before each write, and there all earlier writes of the chunk already are.
#
# Write down what it asks for. S_0 is the memory at the chunk's start, S_t that after token t. Call u_t what token t
# really writes, so that S_t = S_{t−1} + u_t k_tᵀ:
#
#     u_t = η (v_t − S_{t−1} k_t),        S_{t−1} = S_0 + Σ_{i<t} u_i k_iᵀ
#
# Put the second into the first:
#
#     u_t + η Σ_{i<t} (k_iᵀ k_t) u_i  =  η (v_t − S_0 k_t)
#
# On the right is only what is known at the chunk's start. On the left, u_t appears with the u of *earlier* tokens.
# Three tokens, written out, with L_ti = η k_tᵀk_i:
#
#     u_1                              = η (v_1 − S_0 k_1)
#     L_21 u_1 +      u_2              = η (v_2 − S_0 k_2)
#     L_31 u_1 + L_32 u_2 +      u_3   = η (v_3 − S_0 k_3)
#
# That is a **triangular system** of equations: (I + L) U = η (V − K S_0ᵀ), where the matrix L holds the L_ti below the
# diagonal and zeros elsewhere, and K, V and U have one row per token. Solving it is one call. All else is products of
# large matrices.
#
# ### Exercise 3.5: solve a chunk
#
# Return U for a chunk; S is S_0, the memory at its start. Useful: `np.tril(A, -1)` keeps what lies below the diagonal,
# `np.linalg.solve(A, B)` solves A X = B.

# %%
def chunk_writes(S, K, V, eta):
    """K (C,d_k) and V (C,d_v) have one row per token; returns U (C,d_v)."""
    return ...


check.chunk_writes(chunk_writes)

# %% [markdown]
# ## Nothing changed but the time
#
# Now 2,048 tokens in chunks of several sizes, by the project's own `chunked`. Is the memory at the end the same? And
# how long did it take?

# %%
T, d = 2048, 32
k, q = unit(rng.standard_normal((2, T, d)))
v = rng.standard_normal((T, d))
log_a, b, c = np.zeros(T), np.full(T, 0.5), np.full(T, 0.5)
start = np.zeros((d, d))

started = time.perf_counter()
o, S = recurrent(q, k, v, log_a, b, c, start)
by_token = time.perf_counter() - started

sizes, seconds = [4, 16, 64, 256, 1024], []
for size in sizes:
    started = time.perf_counter()
    with no_grad():                            # only look: remember nothing for a way back
        reads, after = chunked(*map(Tensor, (q, k, v, log_a, b, c, start)), chunk=size)
    seconds.append(time.perf_counter() - started)
    print(f"chunks of {size:4}: reads differ by {abs(reads.data - o).max():.0e}, "
          f"the memory by {abs(after.data - S).max():.0e}")

plt.loglog(sizes, seconds, "o-", label="in chunks")
plt.axhline(by_token, color="C1", label="token by token")
plt.xlabel("tokens in a chunk")
plt.ylabel("seconds for 2,048 tokens")
plt.legend()
plt.show()

# %% [markdown]
# The differences are rounding, in the last digits of a float64. The time first falls, since few large products are
# faster than many small ones, and rises again, since the triangle grows with the square of C. Somewhere between it is
# below that of the plain loop. (The project then goes one further and compiles the loop: that is
# `kernels/delta_rule.py`.)
#
# ## What you know now
#
# - A memory is read with a query, then written with a key and a value.
# - Hebbian, retention, delta, gated delta and DGD are settings of S ← S (a I − b k kᵀ) + c v kᵀ.
# - A rule that looks before it writes does not count repetitions twice.
# - A chunk of such writes is a triangular system; its result is that of the loop.
#
# [memory.py](../memory.py) has all of it, and `python memory.py` prints the eight tokens under every rule.
# Next: [a memory that learns while it reads](4_titans.ipynb), a network in place of the matrix.
