"""Eight words of a first language, then eight of a second: what is kept of the first at equal accuracy on the second?

Every language is said three times over in new streams, a word and its meaning, byte by byte (`streams.py` tells how
models were trained). ICL is the paper's "one level": MLPs that stand still, a window of two segments. An additional
level is the MLP of one more block, moving once in 1, 2 and 4 segments (16, 32 and 64 bytes). "3 MLPs, one clock" has
the same three blocks move, all of them in every segment. The rates that levels have learned are scaled by 1/4 to 4
while they read; of each model the most is taken that it keeps of the first language where it knows 0.9 of the second.
ICL learns on for six times as many steps; even so it does not learn to look words up in one seed of five, which counts
as 0 (in the others it keeps 0.1 to 0.3, and levels 0.6 to 1). It is the levels that keep the first language: asked
without them it is gone. What they need is training that asks for it again: without, in some seeds, they keep what
chance gives. How many clocks there are was not found to matter: three MLPs with one clock keep as much. Five seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from apps.claims.streams import (
    LEVELS,
    NEVER,
    Family,
    at_scales,
    best_rate,
    frontier,
    known,
    learned,
    placed,
    pretrained,
)
from apps.claims.study import Study, interval, said, verdict
from hope import Hope, count

PAPER = ("two languages in turn: in-context learning over static MLPs falls to what pre-training knew; one, two, three "
         "additional levels forget less and less; alone Hope is at least as good (Fig. 8)")
FAMILY, LEAST, BEFORE, STEPS = Family(groups=2, words=8, meanings=8, said=3), 0.9, 300, 100
LONGER = 6  # ICL learns on for so many times as many steps: in fewer some do not learn to look words up
MODELS: dict[str, tuple[int, ...]] = {**LEVELS, "3 MLPs, one clock": (1, 1, 1, NEVER)}


def measure(study: Study) -> dict[str, Any]:
    first = pretrained(study, FAMILY, BEFORE)

    def model(chunks: Sequence[int], rate: float, seed: int, **options: Any) -> Hope:
        steps = study.steps(STEPS if chunks else LONGER * STEPS)
        return learned(study, FAMILY, placed(first[seed], chunks, seed), rate, seed, steps, **options)

    def kept(made: Hope, seed: int, everything: bool = False) -> float:
        ends = at_scales(FAMILY, made, seed, everything)
        return frontier(ends[:, 1], ends[:, 0], LEAST)
    lines, old, alone, parts, made = {}, {}, {}, {}, {}
    for name, chunks in MODELS.items():
        rate = best_rate(study, FAMILY, name, partial(model, chunks))
        made = {seed: model(chunks, rate, seed) for seed in range(study.seeds)}
        study.parameters[name] = count(made[0].config) + 4 * 4 * 32  # with the filters
        lines[name] = np.array([known(FAMILY, m, seed)[:, 0] for seed, m in made.items()])
        old[name] = np.array([kept(m, seed) for seed, m in made.items()])
        alone[name] = np.array([[known(FAMILY, m, seed, order=[g] * 3)[-1][g] for g in (0, 1)]
                                for seed, m in made.items()])
        for what in ("levels", "memory") if chunks else ():
            parts[name, what] = np.array([known(FAMILY, m, seed, without=what)[-1] for seed, m in made.items()])
    three = "3 additional levels"
    best, chunks, cause = study.best[three], MODELS[three], {}
    for once, options in (("training does not ask for the first again", {"asked": False}),
                          ("levels learn from all bytes, not from meanings alone", {"everything": True})):
        reading = {k: v for k, v in options.items() if k == "everything"}
        again = np.array([kept(model(chunks, best, seed, **options), seed, **reading)
                          for seed in range(study.seeds)])
        cause[once] = {"kept": {three: interval(again)}, "costs": verdict(old[three] - again)}
    for (name, what), share in parts.items():
        cause[f"{name}: asked without {'levels' if what == 'levels' else 'the window'}"] = {
            "kept": {"first": interval(share[:, 0]), "second": interval(share[:, 1])}}
    names = list(LEVELS)
    pairs = [*((more, "ICL") for more in names[1:]), *zip(names[2:], names[1:], strict=False),
             (three, "3 MLPs, one clock")]
    return {"x": ("segments read: three of the first language, three of the second", list(range(1, 7))),
            "y": "accuracy on the first language", "lines": lines, "cause": cause,
            "kept": {name: interval(scores) for name, scores in old.items()},
            "alone": {name: [interval(column) for column in scores.T] for name, scores in alone.items()},
            "holds": "keeps more of the first: " + "; ".join(
                f"{more} over {less}: {verdict(old[more] - old[less])}" for more, less in pairs),
            "here": f"of the first language kept where {LEAST} of the second is known (by chance "
                    f"{1 / FAMILY.meanings:.2f}), and either alone: " + ", ".join(
                f"{name} {said(interval(old[name]))}, {said(interval(alone[name].mean(axis=1)))}" for name in MODELS)}
