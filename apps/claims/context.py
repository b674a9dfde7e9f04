"""Facts in long text: learned in texts of up to 512 words (2 thousand bytes), asked in texts of up to a million bytes.

A miniature of BABILong's first task: four people go to two places each, one after another, somewhere in a long text of
words that say nothing; at its end it is asked where each of them is. Words are tokens; bytes are those that they have
when written out. The models are those of the claim on needles, trained in the same way. Each reads on segment by
segment, its state carried on; attention over everything is asked up to 8,192 words, as its time grows with the square.
Beside it stand the processor's time per word and the size of the state, at the longest text over the shortest. (All of
it takes twenty minutes of a core.) Hope is as good at a million bytes as at two thousand in two seeds of three, and
falls in one; Titans fall beyond 240 thousand bytes, attention wherever a text is longer than in training. Little of it
is shown, for seeds differ: after 500 steps some know a third of the facts in short texts, one nearly all.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from apps.claims.needles import SEEDS, best, learned, models
from apps.claims.study import Study, interval, said, verdict
from apps.tasks import VALUES, WORDS, needles
from autograd import no_grad
from hope import Hope, State

PAPER = ("facts in long text: after fine-tuning Hope holds its accuracy to 10 million tokens of BABILong, Titans to a "
         "million; large models fail at 128 to 256 thousand (Fig. 9)")
LONG = True  # more than ten minutes of a core
LENGTHS = (512, 2048, 8192, 32768, 65536, 262144)  # words
FAR = 8192  # that attention over everything is asked up to
SEGMENT, ASKED = 512, 8


def read(model: Hope, length: int, rows: int) -> dict[str, float]:
    """Read texts of so many words and answer: the share that is right, microseconds per word, bytes of state."""
    tokens, targets = needles(np.random.default_rng([7, length]), rows, length, "facts")
    state, started = State.start(model.config), time.process_time()
    with no_grad():
        for t in range(0, length, SEGMENT):
            x, state = model.read(tokens[:, t:t + SEGMENT], state)
        guesses = np.argmax(model.unembed(x[:, -ASKED:]).data, axis=-1)
    seconds, told = time.process_time() - started, targets[:, -ASKED:]
    return {"right": float(np.mean((guesses == told)[told >= 0])), "state bytes": state.nbytes / rows,
            "microseconds per word": 1e6 * seconds / (rows * length)}


def measure(study: Study) -> dict[str, Any]:
    study.seeds, found, costs = min(study.seeds, SEEDS), {}, {}
    lengths = LENGTHS if study.share == 1 else LENGTHS[:2]
    for name, config in models().items():
        rate = best(study, name, config)
        study.bar.set_postfix_str(name)
        asked = [n for n in lengths if name != "attention" or n <= FAR]
        runs = [[read(learned(study, config, rate, seed), n, 16 if n <= FAR else 4) for n in asked]
                for seed in range(study.seeds)]
        found[name] = np.array([[each["right"] for each in run] for run in runs])
        costs[name] = {what: [runs[-1][i][what] for i in (0, -1)] for what in ("microseconds per word", "state bytes")}
    written = needles(np.random.default_rng(0), 1, 8192, "facts")[0][0]
    size = float(np.mean([len(WORDS[i]) + 1 for i in written]))
    lines = {name: scores for name, scores in found.items() if scores.shape[1] == len(lengths)}
    near, far, parts = lengths[0], lengths[-1], []
    for name, scores in found.items():
        grew = [last / first for first, last in costs[name].values()]
        parts.append(f"{name} {said(interval(scores[:, 0]))} → {said(interval(scores[:, -1]))}"
                     f"{'' if name in lines else f' (of {FAR:,} words)'}, time per word × {grew[0]:.2f}, "
                     f"state × {grew[1]:.2f}")
    return {"x": ("words read", list(range(len(lengths)))), "ticks": [f"{n:,}" for n in lengths], "lines": lines,
            "y": "share of facts told rightly", "bytes per word": size, "costs": costs,
            "attention": {n: interval(column) for n, column in zip(lengths, found["attention"].T, strict=False)},
            "holds": f"at {far:,} words Hope over " + ", ".join(
                f"{name}: {verdict(found['Hope'][:, -1] - scores[:, -1])}" for name, scores in lines.items()
                if name != "Hope") + f"; at most 0.05 below its accuracy at {near}: " + ", ".join(
                f"{name}: {verdict(scores[:, -1] - scores[:, 0] + 0.05)}" for name, scores in lines.items()),
            "here": f"facts told rightly (by chance {1 / len(VALUES):.2f}) in texts of {near:,} words, and of {far:,}, "
                    f"which are {size * far / 1e6:.1f} million bytes: " + "; ".join(parts)}
