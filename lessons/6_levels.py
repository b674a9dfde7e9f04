# %% [markdown]
# # 6. What moves when
#
# **You will know** what a level is: weights with a clock of their own. You will draw which of them move when, see what
# "moves by all that it has gathered" means, and let models learn one small language and then another, to see who knows
# the first one afterwards.
#
# - **Time** 60 minutes with the exercises; running it takes about a minute.
# - **You need** lesson 2 (steps that write) and lesson 5 (memories have chunks of tokens).
# - **Equations** [A 70–71, 73]; §7.1.

# %%
import check
import matplotlib.pyplot as plt
import numpy as np

import optimizers
from autograd import Tensor, grad, mean, no_grad
from cms import CMS, LevelState, due
from config import PRESETS, Config
from hope import Hope, count
from tools.timetable import timetable

rng = np.random.default_rng(0)

# %% [markdown]
# ## A network whose parts have clocks
#
# A **Transformer** is a stack of blocks. Each has *attention*, in which a token asks all earlier ones: it has a
# query, each of them has a key and a value, and it takes an average of the values, weighed by how well their keys fit
# the query. And each has one **MLP**, a network of two layers for every token by itself. It moves at every step of
# training, and never again afterwards. The paper puts several in a row, the **levels** of a *continuum memory
# system*:
#
#     y = MLP_k( … MLP_2(MLP_1(x)) … )                                                      [A 70]
#
# and each has a **chunk size** C. The clock i counts steps, from 1. A level moves when i is a multiple of its C, and
# rests otherwise. Here are three of them.

# %%
chunks = (1, 4, 16)
for n, C in enumerate(chunks):
    steps = [i for i in range(1, 33) if due(i, C)]
    plt.plot(steps, [n] * len(steps), "|", markersize=25, markeredgewidth=3)
plt.yticks(range(3), [f"C = {C}" for C in chunks])
plt.ylim(-0.7, 2.7)
plt.xlabel("step i")
plt.show()

# %% [markdown]
# Fast levels follow what is going on now. Slow ones stand still, and so keep what was going on before. That is the
# idea.
#
# ### Exercise 6.1: who moves?
#
# Return, for each chunk size, whether the level moves at step i.

# %%
def due_levels(i, chunks):
    """A list of True and False."""
    return ...


check.due_levels(due_levels)

# %% [markdown]
# ### Exercise 6.2: how often?
#
# The paper measures how often a level moves by its frequency f, relative to the slowest level, which has f = 1.
# Return the frequencies of all levels, as a list.

# %%
def frequencies(chunks):
    return ...


check.frequencies(frequencies)

# %% [markdown]
# ## It moves by what it has gathered
#
# A slow level does not skip the steps in between: it gathers their gradients, and then moves by their sum:
#
#     θ ← θ − η Σ_{last C steps} g        if i is a multiple of C, else unchanged            [A 71]
#
# Here θ is all weights of the level, and g the gradient of the loss by them. All of these gradients were found at the
# weights as they stood, since they did not move. Below, two levels learn y = A x, a fixed map, while they "read"
# segments of 64 random x. `learn` is the project's line for A 71. (A level is y = W_down σ(W_up x); so there are two
# gradients for each. `states` holds, for each level, its drift and what it has gathered; the 1 in `drifts` is the
# number of texts.)

# %%
settings = Config(width=8, heads=2, layers=1, hidden=32, mixer="attention", chunks=(1, 4), cms="sequential",
                  moves="optimizer", learn_rate=0.5, level_drift="kept")
chain = CMS(np.random.default_rng(0), settings, 0)
A = rng.standard_normal((8, 8)).astype(np.float32) / np.sqrt(8)
states, losses, sizes = chain.start(), [], []
for i in range(1, 25):
    x = rng.standard_normal((1, 64, 8), dtype=np.float32)
    drifts = chain.drifts(states, 1)           # what each level has learned so far
    y = chain(Tensor(x), [LevelState(drift) for drift in drifts])
    loss = mean((y - x @ A.T) ** 2)
    up1, down1, up2, down2 = grad(loss, [drift[name] for drift in drifts for name in ("up", "down")])
    states = chain.learn(states, drifts, [{"up": up1, "down": down1}, {"up": up2, "down": down2}], i)
    losses.append(loss.item())
    sizes.append([np.sqrt(sum(np.sum(w.data ** 2) for w in (state.drift or {}).values())) for state in states])

figure, (left, right) = plt.subplots(1, 2)
left.plot(range(1, 25), losses, ".-")
left.set(xlabel="segment", ylabel="loss")
right.step(range(1, 25), sizes, where="post", label=["C = 1", "C = 4"])
right.set(xlabel="segment", ylabel="how far the level has moved")
right.legend()
plt.show()

# %% [markdown]
# The level with C = 4 stands still for three segments and then takes a step of four.
#
# ### Exercise 6.3: what does it move by?
#
# `gradients[0]` is the gradient of step 1, `gradients[1]` of step 2, and so on. Return the sum that a level of chunk
# size C moves by at step i, or zeros if it is not due.

# %%
def moved_by(gradients, i, C):
    return ...


check.moved_by(moved_by)

# %% [markdown]
# ## The clocks of a whole model
#
# In a model, memories have clocks as well (lesson 5: chunks of tokens). Here is the timetable of `tiny`, when one step
# of training reads 4 segments of 64 tokens. A chunk is in tokens; f is relative to the slowest.

# %%
print(f"{'component':52} {'chunk':>6} {'f':>6}")
for component, chunk, f, _ in timetable(PRESETS["tiny"][0], 256):
    print(f"{component:52} {chunk:6.0f} {f:6.0f}")

# %% [markdown]
# Clocks tick in two places, and mixing them up is the usual misunderstanding:
#
# - **In training**, a step is a step of the optimiser. A level with C = 16 then moves its *initial state* every 16th
#   step.
# - **In reading**, a step is a segment of the text that is read. Each text has a *running state* of its own: what the
#   levels have drifted while reading it. A new text begins without.
#
# ## Two small languages
#
# Now to the question that levels are for. A language here has eight words with a meaning each. A segment of text is all
# eight in random order, each followed by its meaning. First come segments of language A, then segments of language B,
# which has other words. Meanings are dealt out anew in every text, so nobody can know them before.

# %%
WORDS = 8                                      # tokens: words of A, words of B, meanings


def segment(meaning, language):
    """word meaning word meaning …: 16 tokens for each text of a batch.  meaning (B,8) → (B,16)"""
    order = rng.permuted(np.tile(np.arange(WORDS), (len(meaning), 1)), axis=1)
    pairs = [order + WORDS * language, 2 * WORDS + np.take_along_axis(meaning, order, axis=1)]
    return np.stack(pairs, axis=2).reshape(len(meaning), -1)


def new_languages(batch):
    return [rng.permuted(np.tile(np.arange(WORDS), (batch, 1)), axis=1) for _ in "AB"]


def text(languages, order):
    """Segments in an order such as AAABBB, and the first token once more: what comes last has a next one, too."""
    whole = np.concatenate([segment(languages["AB".index(name)], "AB".index(name)) for name in order], axis=1)
    return np.concatenate([whole, whole[:, :1]], axis=1)


one = text(new_languages(1), "AB")[0]
print("language A:", " ".join(f"{'abcdefgh'[w]}={m - 16}" for w, m in one[:16].reshape(8, 2)))
print("language B:", " ".join(f"{'ijklmnop'[w - 8]}={m - 16}" for w, m in one[16:32].reshape(8, 2)))

# %% [markdown]
# Who can learn such a thing while reading? Two kinds of models:
#
# - **In-context learning** (ICL): a Transformer whose MLPs stand still. All it can do is look back, here over the last
#   32 tokens: two segments.
# - **Levels**: a smaller one, whose MLP is a level and moves after every segment, in reading *and in training*. Its
#   initial state is then learned *through* those moves (`moves="context"`, [A 73]): it learns to be a good beginning.
#
# A model with one level is trained on texts AAAABBBB, and a second one on texts AAABBBAB, where language A is asked for
# again later. On these a model with two levels is trained as well: one moves after every segment, the other after
# every fourth. (The Transformer gets two blocks and four times as many steps. With one block, or fewer steps, it does
# not learn to look a word up, and there would be nothing to compare. `tick` is how many tokens the clock calls a step:
# 16, one segment. `window` is how far attention looks back.)

# %%
common = {"width": 32, "heads": 2, "segment": 128, "vocabulary": 24, "mixer": "attention", "window": 32,
          "cms": "sequential", "tick": 16, "level_drift": "kept"}
icl = Config(**common, layers=2, hidden=32, chunks=(1,), moves="optimizer")
one_level = Config(**common, layers=1, hidden=64, chunks=(1,), moves="context", learn_rate=1.0)
two_levels = Config(**common, layers=1, hidden=32, chunks=(1, 4), moves="context", learn_rate=1.0)


def train(config, order, steps):
    model = Hope(config, np.random.default_rng(0))
    optimizer = optimizers.build("adamw", model.groups(), lr=0.01)
    for step in range(steps):
        tokens = text(new_languages(16), order)
        optimizer.zero_grad()
        if config.moves == "context":          # levels move within the text, and the gradient goes through that
            loss, _ = model.context_loss(tokens, first_order=True)   # (without gradients of gradients: faster)
        else:
            loss, _ = model.loss(tokens)
        loss.backward()
        optimizers.clip_grad_norm(optimizer.params, 1.0)                           # a longer one is shortened
        optimizer.lr_scale = optimizers.schedule("cosine", step, steps, 10, 0.1)   # the rate rises, then falls
        optimizer.step()
    return model


# %% [markdown]
# What is measured: after each segment, ask for every word of A and of B, on a copy of the state, so that asking teaches
# nothing. The share of right meanings is the accuracy. Guessing blindly gives 1/8. Who keeps track of the meanings that
# are already given in the segment, and guesses among the others, gets (1/8 + 1/7 + … + 1)/8 = 0.34.

# %%
def accuracies(model, order):
    """After every segment, how well A and B are known.  → (segments,2)"""
    languages, state, found = new_languages(64), None, []
    for name in order:
        tokens = segment(languages["AB".index(name)], "AB".index(name))
        if model.config.moves == "context":
            _, state = model.learn(np.concatenate([tokens, tokens[:, :1]], axis=1), state)
        else:
            with no_grad():
                _, state = model(tokens, state)
        known = []
        for language in (0, 1):
            asked = segment(languages[language], language)
            with no_grad():
                logits, _ = model(asked, state)
            guesses = np.argmax(logits.data[:, ::2], axis=-1)
            known.append(np.mean(guesses == asked[:, 1::2]))
        found.append(known)
    return np.array(found)


runs = {}
for name, config, order, steps in (
        ("ICL", icl, "AAABBBAB", 1000),
        ("one level, trained on AAAABBBB", one_level, "AAAABBBB", 250),
        ("one level, trained on AAABBBAB", one_level, "AAABBBAB", 250),
        ("levels 1 and 4, trained on AAABBBAB", two_levels, "AAABBBAB", 250)):
    model = train(config, order, steps)
    runs[name] = accuracies(model, "AAAABBBB")
    print(f"{name}: {count(config):,} parameters")

# %%
figure, panels = plt.subplots(2, 2, sharex=True, sharey=True, figsize=(8, 5))
for panel, (name, found) in zip(panels.flat, runs.items(), strict=True):
    panel.plot(range(1, 9), found[:, 0], "o-", label="language A")
    panel.plot(range(1, 9), found[:, 1], "s--", label="language B")
    panel.axhline(0.34, color="grey", linewidth=0.5)
    panel.axvline(4.5, color="grey", linewidth=0.5)
    panel.set_title(name, fontsize=9)
panels[0, 0].legend()
panels[0, 0].set_ylabel("accuracy")
panels[1, 0].set(xlabel="segments read: four of A, four of B", ylabel="accuracy")
plt.show()

# %% [markdown]
# Go through the panels one by one.
#
# *ICL* knows language A, to some three quarters, while A stands among its last 32 tokens, and loses it as B moves in.
# Its memory is its window.
#
# *One level, trained on AAAABBBB* knows a language after a segment or two, and then loses much of it to the next, even
# though the words are others. (How much differs from seed to seed.) Nothing in its training ever asked for A again, so
# why should it be careful?
#
# *One level, trained on AAABBBAB* keeps A to the end. The architecture is the same, and so is the rule by which it
# moves. What differs is the state that it begins with: it was learned, through the moves, to be one in which both
# languages find room.
#
# *Two levels* do as well here, and not better. The paper (Fig. 8) has more levels forget less; this small case does
# not show it, since one level is enough. Lesson 9 has what a larger measurement says.
#
# ### Exercise 6.4: a number for it
#
# `accuracy` has a row per moment and a column per task; the tasks came in the order of their columns. **Forgetting** is
# how far a task has fallen at the last moment from its best, averaged over all tasks but the last one. Write it.

# %%
def forgetting(accuracy):
    return ...


check.forgetting(forgetting)

# %%
for name, found in runs.items():
    print(f"{name:36} A at its best {found[:, 0].max():.2f}, at the end {found[-1, 0]:.2f}")

# %% [markdown]
# ## What you know now
#
# - A level is weights with a clock: it gathers, and moves every C-th step by the sum.
# - In training, clocks move initial states; in reading, the running state of one text.
# - What a level keeps of a text depends on what its initial state was trained for.
#
# [cms.py](../cms.py) is the whole of it; [what moves when](../docs/clocks.md) has the table for every part of a model.
# Next: [optimisers as memories](7_optimisers.ipynb).
