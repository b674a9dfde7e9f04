# %% [markdown]
# # 9. What the paper claims, and what we could show
#
# **You will know** how a claim is turned into a measurement that could come out against it; what five seeds, or three,
# can and cannot decide; and what this project found for the claims of the paper, at a size that two processor cores
# train in minutes.
#
# - **Time** 45 minutes with the exercises; running it takes seconds. It reads measurements, it makes none.
# - **You need** no formulas. Lessons 3 to 8 for what the names mean.

# %%
import json
import re
import textwrap

import check
import matplotlib.pyplot as plt
import numpy as np

from config import PRESETS

# %% [markdown]
# ## The claims
#
# Each claim was measured by one command, `python -m apps.evaluate claims NAME`, which writes a file to
# `docs/claims/`. We read those files, as they are now; [what each of them asks](../docs/claims/README.md), and when it
# was measured, stands beside them. (Names that you have not met, such as Comba, RWKV-7 or LSTM, are other models; MAD
# and BABILong are collections of tasks; EWC and InCA are ways to learn that hold on to what was learned before, and
# AdaMuon is an optimiser. *Perplexity* is 2 to the power of the bits per token. A number behind ± is the half-width of
# the interval that comes below.)

# %%
folder = check.ROOT / "docs" / "claims"
files = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}
claims = {name: found for name, found in files.items() if "holds" in found}
for name, found in claims.items():
    print(name)
    for key in ("paper", "here", "holds"):
        if key in found:
            print(textwrap.fill(f"{key}: {found[key]}", 110, initial_indent="    ", subsequent_indent="        "))

# %% [markdown]
# *paper* is what the paper says, *here* what was measured, *holds* the verdict on each comparison. Read three of them
# in full, and ask each time: could it have come out otherwise?
#
# ## Yes, no, not shown
#
# Three verdicts are possible, not two. Let us count them.

# %%
words = ("yes", "not shown", "no")
counts = {}
for name, found in claims.items():
    said = re.findall(r"\b(not shown|yes|no)\b", str(found.get("holds", "")))
    counts[name] = [said.count(word) for word in words]

figure, panel = plt.subplots(figsize=(7, 0.5 + 0.3 * len(counts)))
left = np.zeros(len(counts))
for n, (word, colour) in enumerate(zip(words, ("C2", "0.8", "C3"), strict=True)):
    width = [row[n] for row in counts.values()]
    panel.barh(list(counts), width, left=left, color=colour, label=word)
    left += width
panel.invert_yaxis()
panel.set_xlabel("comparisons")
panel.legend(loc="lower right")
plt.show()
print("altogether: " + ", ".join(f"{word} {sum(row[n] for row in counts.values())}" for n, word in enumerate(words)))

# %% [markdown]
# A *no* is against the claim; *not shown* is neither for nor against it. Many comparisons of small models with few
# seeds end there, and saying so is a result.
#
# ## One training is one throw of dice
#
# Train the same model twice from other random weights, and it ends elsewhere. So every model was trained with several
# **seeds**. Here are all seeds of the claims that keep them: a dot per seed, averaged over what was measured.

# %%
def seeds_of(found):
    """A number per seed for every model of a claim; {} if the file has none."""
    kept = {}
    for model, scores in (found.get("scores") or {}).items():
        try:
            table = np.array(scores, dtype=float)
        except (TypeError, ValueError):
            continue                           # not a table of numbers
        if table.ndim == 2 and len(table) > 2:
            kept[model] = table.mean(axis=1)
    return kept


measured = {name: seeds_of(found) for name, found in claims.items()}
measured = {name: models for name, models in measured.items() if len(models) > 1}
rows = max(1, (len(measured) + 1) // 2)
figure, panels = plt.subplots(rows, 2, figsize=(9, 1.9 * rows), squeeze=False)
for panel in panels.flat[len(measured):]:
    panel.axis("off")
for panel, (name, models) in zip(panels.flat, measured.items(), strict=False):
    for n, scores in enumerate(models.values()):
        panel.plot(scores, np.full(len(scores), n), "o", alpha=0.6)
    panel.set_yticks(range(len(models)), list(models), fontsize=7)
    panel.set_title(name, fontsize=9)
    panel.set_xlabel(claims[name].get("y", ""), fontsize=7)
plt.show()

# %% [markdown]
# Some models scatter more than they differ. A single run of each would have "shown" anything.
#
# ## How sure is a mean?
#
# Of n numbers with mean m, let s be their standard deviation, taken with n − 1. The mean is then known to about
#
#     m ± t s/√n
#
# with t from Student's table, for 95%: 2.776 for five numbers, 4.303 for three. (Run all again, and again: 95 of 100
# such intervals would hold the true mean.)
#
# Some claims have three seeds only, and for these the interval can be wider than all that can be measured, such as ±1
# for an accuracy. The formula does not know that an accuracy ends at 1. What it says is: three numbers that lie so far
# apart decide nothing.
#
# ### Exercise 9.1: the interval

# %%
def interval(values, t):
    """The mean and the half-width of its 95% interval."""
    return ..., ...


check.interval(interval)

# %% [markdown]
# ## Compare within a seed
#
# Two models that were trained with the same seed saw the same data in the same order. If the data were hard, they were
# hard for both. So look at the difference *within* each seed, and ask how sure *that* is.
#
# ### Exercise 9.2: a paired difference
#
# `a` and `b` have a number per seed, in the same order. Return the mean of a − b and its half-width.

# %%
def paired(a, b, t):
    return ..., ...


check.paired(paired)

# %% [markdown]
# ### Exercise 9.3: the verdict
#
# The differences are counted so that the claim wants them positive. Return 1 for yes, the interval lies above zero; −1
# for no, it lies below; 0 for not shown, it holds zero.

# %%
def verdict(mean, half):
    return ...


check.verdict(verdict)

# %% [markdown]
# ## Was the comparison fair?
#
# A model at a bad learning rate proves nothing about the model. Every one was given the best of the same few rates,
# tried on a seed that is not measured. (What was measured lately tries further ones where the best is the first or the
# last.) If only the first or the last of all that were tried is the best, a better one may lie outside. Which are
# those?

# %%
for name, found in claims.items():
    edges, total = [], 0
    for model, tried in (found.get("sweep") or {}).items():
        if len(tried) < 3:
            continue                           # one cannot see an edge
        rates = sorted(tried, key=float)
        total += 1
        if max(tried.values()) not in [tried[rate] for rate in rates[1:-1]]:
            edges.append(model)
    if total:
        print(f"{name}: {len(edges)} of {total} at the edge" + (": " + "; ".join(edges)[:90] if edges else ""))

# %% [markdown]
# And they have equally many parameters, to a percent, which the files say as well. Still, all of it is small:

# %%
largest = max((n for found in claims.values() for n in (found.get("parameters") or {}).values()), default=0)
print(f"largest model in these files: {largest:,} parameters; the largest of the paper's Table 2: 1,300,000,000")
print("presets of this project:", ", ".join(PRESETS))

# %% [markdown]
# ## How to read a paper, after this
#
# - *What is compared with what?* The paper compares whole models, trained on 30 to 100 billion tokens. Most of our
#   questions are about single rules. A *no* here does not refute a table there; it says what was seen here.
# - *Which numbers have a spread?* The paper's tables have none: one run each. That is usual at that size. It also means
#   that small differences in them say little.
# - *Do the numbers add up?* Two averages of the paper's Table 2 are not the averages of their rows (finding 21 of
#   [PAPER.md](../PAPER.md#what-we-found)), and in Table 6 one part that "contributes" makes the perplexity worse.
# - *Do the formulas?* PAPER.md lists the slips in print, with a counterexample that runs for each that matters.
#   Finding them took no cleverness: only computing what is written.
#
# ## What you know now
#
# You have written every part of a model that learns while it reads, seen where it breaks, and know what was shown of it
# and what was not. What next?
#
# - Measure a claim yourself: `python -m apps.evaluate claims variants` takes some minutes.
# - Change a rule in `memory.py`, and see which test fails.
# - Take one *not shown*, and think of an experiment that would decide it.
