# %% [markdown]
# # 0. Quickstart
#
# **You will know** how to train a tiny model on text in ten lines, let it write, and check for yourself that its way
# forward (from text to predictions) and its way back (from the error to every weight) are right. The lessons after
# this one open the box.
#
# - **Time** 25 minutes with the exercises. Running it takes some seconds; the first time a minute more, in which the
#   project compiles its *kernels*, loops that have to be fast.
# - **You need** Python and NumPy. No equations yet.

# %%
import check
import matplotlib.pyplot as plt
import numpy as np

from autograd import no_grad
from config import PRESETS
from data import Corpus, Segments, decode, encode
from hope import Hope, count
from optimizers import build

# %% [markdown]
# ## Ten lines from text to a trained model
#
# The text is that of the Python you run, which every machine has. A token is a byte. The model is `tiny`: a *Hope* of
# two small blocks. What it is made of comes in lessons 4 to 8.

# %%
config, training = PRESETS["tiny"]
text = Corpus.default()
segments = Segments(text.split("train"), 8, config.segment, "shuffled", 0)   # batches of 8 windows of 64 bytes
model = Hope(config, np.random.default_rng(0))
optimizer = build("adamw", model.groups(), lr=0.01)
bits = []
for _ in range(80):
    optimizer.zero_grad()
    loss, state = model.loss(next(segments))
    loss.backward()
    optimizer.step()
    bits.append(loss.item() / np.log(2))

print(f"{count(config):,} parameters read {80 * 8 * config.segment:,} bytes")
print(f"bits per byte: {bits[0]:.2f} at the first step, {np.mean(bits[-5:]):.2f} over the last five")

# %% [markdown]
# The loop is the loop of every network: forget the old gradients, read and see how wrong you are, send the error
# back, move. Four words for it:
#
# - A **weight** is a number that training may change. The model has 39,464 of them.
# - The **loss** is one number: how wrong the model was on a *batch*, here eight windows side by side.
# - The **gradient** of a weight says how much the loss would change if that weight were pushed. `backward` finds all
#   of them at once; lesson 1 shows how.
# - The **optimiser** moves every weight against its gradient. `lr` sets how far. (`adamw` is one of many: lesson 7.)
#
# **Bits per byte** say how surprised the model is: with 8 bits it knows nothing (a byte *is* 8 bits), and what it
# knows, it need not be told. (The loss has natural logarithms. Divided by log 2 it is in bits.)

# %%
plt.plot(bits)
plt.axhline(8, color="grey", linestyle="--")
plt.xlabel("step")
plt.ylabel("bits per byte")
plt.show()

# %% [markdown]
# ## Let it write
#
# `generate` gives one token after the other: the model says how likely each byte is, one is drawn, and read in its
# turn. (`encode` makes bytes of a text, `decode` makes text of bytes.)

# %%
written = [token for token, _ in model.generate(encode("def "), 120, temperature=0.8, seed=3)]
print("def " + decode(written))

# %% [markdown]
# No Python yet. It has learned which bytes are frequent, and that spaces come in rows, from forty thousand bytes:
# some twenty pages of a book. (`python train.py --preset nano` reads a megabyte, in some minutes.)
#
# ## Check the way forward: does it add up?
#
# The model gives 256 numbers for each position, called *logits*. e to the power of each, divided by the sum, makes
# probabilities of them. The loss is −log of the probability of the byte that came, on average. Let us do it by hand.
#
# (What a model gives is a `Tensor`. Its `data` is a NumPy array; `item()` takes out the number where there is but one.)

# %%
tokens = next(segments)[:1]                    # one window: 64 bytes to read, and each has a next one
with no_grad():                                # only look: remember nothing for a way back
    logits, _ = model(tokens[:, :-1])
    loss, _ = model.loss(tokens)
z = logits.data[0].astype(np.float64)
p = np.exp(z) / np.sum(np.exp(z), axis=1, keepdims=True)
by_hand = -np.mean(np.log(p[np.arange(64), tokens[0, 1:]]))
print("probabilities add up to", np.sum(p, axis=1).round(12)[:3], "…")
print(f"loss by hand {by_hand:.6f}, by the model {loss.item():.6f}")

# %% [markdown]
# ### Exercise 0.1: bits per byte
#
# `p` has a row of probabilities per position, `targets` has one number per position: the byte that came. Return the
# average of −log₂ of what the model gave to the byte that came.

# %%
def bits_per_byte(p, targets):
    return ...


check.bits_per_byte(bits_per_byte)

# %% [markdown]
# ### Exercise 0.2: temperature
#
# `temperature` in `generate` divides the logits before they become probabilities. Below 1 the likely bytes become
# likelier. `logits` is one row of them. Return their probabilities at this temperature. (No need to care about
# overflow.)

# %%
def tempered(logits, temperature):
    return ...


check.tempered(tempered)

# %% [markdown]
# ## Check the way forward: does it look ahead?
#
# A model that could see the next byte would predict it with ease, and be worth nothing. So change the last byte that it
# reads: no earlier prediction may change, not even in the last digit.

# %%
changed = tokens.copy()
changed[0, 63] = (changed[0, 63] + 1) % 256
with no_grad():
    other, _ = model(changed[:, :-1])
differences = np.max(np.abs(other.data - logits.data), axis=2)[0]
print("positions where something changed:", np.flatnonzero(differences))

# %% [markdown]
# ## Check the way forward: does it read on?
#
# The model returns a *state*, what it has read. Reading 40 bytes and then 24 with that state must be the same as
# reading 64, but for the rounding of float32. (Its memories have moved meanwhile, and it goes on from there. That is
# what this course is about.)

# %%
with no_grad():
    first, state = model(tokens[:, :40])
    rest, _ = model(tokens[:, 40:-1], state)
both = np.concatenate([first.data, rest.data], axis=1)
print(f"largest difference: {np.max(np.abs(both - logits.data)):.1e}, where logits are up to {np.max(np.abs(z)):.1f}")

# %% [markdown]
# ## Check the way back: push a weight
#
# `loss.backward()` says of each weight how much the loss would change if it were pushed. Let us push one and see. A
# small push drowns in the rounding of float32, so we make the model anew in float64, as it was before training.

# %%
exact = Hope(config, np.random.default_rng(0)).astype(np.float64)
exact.loss(tokens)[0].backward()
weight = dict(exact.named_parameters())["blocks.0.mixer.projection.k.weight"]


def loss_with(push):
    """The loss with the weight in row 3, column 5 pushed by so much."""
    old = weight.data.copy()
    weight.data[3, 5] += push
    with no_grad():
        found = exact.loss(tokens)[0].item()
    weight.data = old
    return found


print("the way back says ", weight.grad[3, 5])
print("pushing it says   ", (loss_with(1e-5) - loss_with(-1e-5)) / 2e-5)

# %% [markdown]
# The two agree to many digits, through two blocks, with memories that are written 64 times.
#
# ### Exercise 0.3: push it yourself
#
# `f` is a function of one number. Return its slope at x, by pushing to both sides by ε.

# %%
def central_difference(f, x, eps):
    return ...


check.central_difference(central_difference)

# %% [markdown]
# ## What you know now
#
# - Ten lines train a model, and 8 bits per byte is where every model begins.
# - Three checks of the way forward (it adds up, it does not look ahead, it reads on), and one of the way back.
#
# Next: how a program takes derivatives of itself, [a gradient finds its way back](1_gradient.ipynb).
