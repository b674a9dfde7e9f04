"""Needles with several keys, by the number of levels and by the slowest period: 16 pairs, each shown once.

Eight segments of two pairs go by, eight bytes of them in the window of attention; then every pair is asked for. Models
are trained as in two-languages, on such streams; before their levels are placed, on streams in which every segment is
said twice, for else ICL does not learn to look a word up even where its window shows it. Levels are called by their
chunk sizes in segments (of four bytes): "1, 4" is two MLPs of four that move, one in every segment, the other in every
fourth. Judged is the accuracy on the first six segments, the most where the last is known to 0.9 (among the scales of
the learned rates). In two seeds of five "1" knows the last so well at no scale, in one "1, 4", which counts as 0. Five
seeds. (Fifty minutes of a slow core.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from apps.claims.streams import NEVER, Family, at_scales, best_rate, frontier, learned, placed, pretrained
from apps.claims.study import Study, interval, said, verdict
from hope import Hope, count

PAPER = ("needles with several keys: every number of levels above in-context learning, more levels better, a longer "
         "slowest period worse (Fig. 7)")
FAMILY, LEAST, BEFORE, STEPS = Family(groups=8, words=2, meanings=8, said=1), 0.9, 250, 300
LONG = True  # more than ten minutes of a core
MODELS = {"ICL": (), "1": (1, NEVER, NEVER, NEVER), "1, 2": (1, 2, NEVER, NEVER), "1, 2, 4": (1, 2, 4, NEVER),
          "1, 1": (1, 1, NEVER, NEVER), "1, 4": (1, 4, NEVER, NEVER)}


def measure(study: Study) -> dict[str, Any]:
    first = pretrained(study, replace(FAMILY, said=2), BEFORE)

    def model(chunks: Sequence[int], rate: float, seed: int) -> Hope:
        return learned(study, FAMILY, placed(first[seed], chunks, seed), rate, seed, study.steps(STEPS))
    lines, old = {}, {}
    for name, chunks in MODELS.items():
        rate = best_rate(study, FAMILY, name, partial(model, chunks))
        study.parameters[name] = count(first[0].config) + 4 * 4 * FAMILY.config.width  # with the filters
        scaled = np.array([at_scales(FAMILY, model(chunks, rate, seed), seed) for seed in range(study.seeds)])
        lines[name] = scaled[:, len(scaled[0]) // 2]
        old[name] = np.array([frontier(one[:, -1], one[:, :-2].mean(axis=1), LEAST) for one in scaled])
    pairs = [*((name, "ICL") for name in ("1", "1, 2", "1, 2, 4")), ("1, 2", "1"), ("1, 2, 4", "1, 2"),
             ("1, 1", "1, 2"), ("1, 2", "1, 4"), ("1, 1", "1, 4")]
    return {"x": ("segment of the stream", list(range(1, FAMILY.groups + 1))), "y": "accuracy at the end",
            "lines": lines,
            "kept": {name: interval(scores) for name, scores in old.items()},
            "holds": "chunk sizes: " + "; ".join(f"{a} over {b}: {verdict(old[a] - old[b])}" for a, b in pairs),
            "here": f"accuracy on the first six of eight segments, where {LEAST} of the last is known (by chance "
                    f"{1 / FAMILY.meanings:.2f}): " + ", ".join(f"{n} {said(interval(s))}" for n, s in old.items())}
