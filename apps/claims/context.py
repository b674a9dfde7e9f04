"""Facts in long text: learned in texts of up to 512 words (2 thousand bytes), asked in texts of up to a million bytes.

A miniature of BABILong's first task: four people go to two places each, somewhere in a long text of words that say
nothing; at its end it is asked where each of them is, each for itself, no other answer shown. Who knows no names and
always tells the last place is right in 0.30. Words are tokens; bytes are those that they have when written out. The
models are those of the claim on needles, trained in the same way. Each reads on segment by segment, four texts side by
side, its state carried on; attention over everything is asked up to 8,192 words, as its time grows with the square.
Beside it stand the processor's time per word and the size of the state, at the longest text over the shortest. Up to
8,192 words a seed has 64 answers, beyond them 16. Five seeds. What they learned in texts of up to 512 words, Hope's
models still know at a million bytes; plain Titans, as sure in short texts, then tell a third of the places wrongly, and
attention is lost long before.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from apps.claims.needles import best, learned, models
from apps.claims.study import Study, interval, said, verdict
from apps.tasks import VALUES, WORDS, needles
from autograd import no_grad
from hope import Hope, State

PAPER = ("facts in long text: after fine-tuning Hope holds its accuracy to 10 million tokens of BABILong, Titans to a "
         "million; large models fail at 128 to 256 thousand (Fig. 9)")
LONG = True  # more than ten minutes of a core
LENGTHS = (512, 2048, 8192, 32768, 65536, 262144)  # words
FAR = 8192  # that attention over everything is asked up to
SEGMENT, ASKED, ROWS = 512, 8, 4


def read(model: Hope, length: int, times: int) -> dict[str, float]:
    """Read four texts of so many words, so many times over, and answer: the share that is right, microseconds per word,
    bytes of state.
    """
    right, seconds = [], 0.0
    for n in range(times):
        tokens, targets = needles(np.random.default_rng([7, length, n]), ROWS, length, "facts")
        state, started = State.start(model.config), time.process_time()
        with no_grad():
            for t in range(0, length - ASKED, SEGMENT):
                state = model.read(tokens[:, t:min(t + SEGMENT, length - ASKED)], state)[1]
            seconds += time.process_time() - started
            for t in range(length - ASKED, length, 2):  # a name, its place
                x, _ = model.read(tokens[:, t:t + 1], state)
                right.append(np.argmax(model.unembed(x).data[:, 0], axis=-1) == targets[:, t])
    return {"right": float(np.mean(right)), "state bytes": state.nbytes / ROWS,
            "microseconds per word": 1e6 * seconds / (times * ROWS * (length - ASKED))}


def measure(study: Study) -> dict[str, Any]:
    found, costs = {}, {}
    lengths = LENGTHS if study.share == 1 else LENGTHS[:2]
    for name, config in models().items():
        rate = best(study, name, config)
        study.bar.set_postfix_str(name)
        asked = [n for n in lengths if name != "attention" or n <= FAR]
        made = [learned(study, config, rate, seed) for seed in range(study.seeds)]
        runs = [[read(model, n, 4 if n <= FAR else 1) for n in asked] for model in made]
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
            "here": f"facts told rightly (by chance {1 / len(VALUES):.2f}, by the last place 0.30) in texts of "
                    f"{near:,} words, and of {far:,}, which are {size * far / 1e6:.1f} million bytes: "
                    + "; ".join(parts)}
