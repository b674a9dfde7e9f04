"""Up to 8 pairs are shown, in half of the samples all once more with new values; then every key is asked.

Judged are 16 pairs, twice as many as any model was trained on and as many as a key has dimensions in each
of the two heads. Every model has one layer and a short filter, attention too, and half of the channels of a
filter start on the token before: from random taps models learn to look back later, and in so few steps what
is compared is luck. Hope's memories are networks of two layers that make their own targets, five per head; plain
Titans have one, fixed projections and v for a target; the others have a matrix per head. What Hope spends on
memories the others have in a wider MLP. (All five tasks of MAD are another claim.) What keeps Hope from recalling more
are the targets it makes itself: with v for a target and all else the same it recalls more than with its own (the
reading below). Choice 52 in PAPER.md tells what its initial states do to that.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from apps.claims.study import Study, alike, interval, looking_back, said, verdict
from apps.evaluate import fit, share_right
from apps.tasks import Drawn, associative_recall
from autograd import no_grad
from config import Config

PAPER = ("in-context recall: Hope above Titans, Comba and RWKV-7 (Tables 3, 4); attention above Hope on real text, "
         "at most level with it in MAD")


KEYS, VALUES, COUNTS, TAUGHT, STEPS = 32, 8, (4, 8, 12, 16), 8, 800  # COUNTS of pairs are asked
RATES = (2.5e-3, 5e-3, 1e-2, 2e-2)
BASE = Config(width=32, layers=1, heads=2, segment=5 * max(COUNTS), vocabulary=KEYS + VALUES, chunks=(1,), hidden=32,
              memory_hidden=32, memory_chunk=16, projection_chunk=16)


def score(study: Study, config: Config, rate: float, seed: int) -> list[float]:
    """The share recalled after training, of every count of pairs, shown once; then of the same, rewritten."""
    rng, model = np.random.default_rng([seed, 1]), looking_back(config, seed)

    def drawn() -> Drawn:
        n = int(rng.integers(1, TAUGHT + 1))
        return associative_recall(rng, 16, n, n, KEYS, VALUES, n * int(rng.integers(2)))
    fit(model, drawn, study.steps(STEPS), rate, bar=study.bar)
    shares = []
    for again in (0, 1):
        for n in COUNTS:
            tokens, targets = associative_recall(np.random.default_rng([7, n]), 64, n, n, KEYS, VALUES, n * again)
            with no_grad():
                shares.append(share_right(np.argmax(model(tokens)[0].data, -1), targets))
    return shares


def measure(study: Study) -> dict[str, Any]:
    models = alike(BASE, {"Hope": "titans", "plain Titans": "plain-titans", "gated delta": "gated", "delta": "delta",
                          "attention": "attention"})
    found = study.compare(models, RATES, partial(score, study))
    study.parameters["attention"] += 4 * BASE.width
    last = [i for i, n in enumerate(COUNTS * 2) if n == max(COUNTS)]  # shown once, rewritten

    def judged(scores: np.ndarray) -> str:
        return " / ".join(said(interval(scores[:, i])) for i in last)

    def holds(more: np.ndarray, less: np.ndarray) -> str:
        return ", ".join(f"{once} {verdict(more[:, i] - less[:, i])}"
                         for once, i in zip(("once", "rewritten"), last, strict=True))
    best, given = study.best["Hope"], replace(models["Hope"], targets="value")
    again = np.array([score(study, given, best, seed) for seed in range(study.seeds)])
    cause = {f"Hope's targets are v itself ({max(COUNTS)} pairs, rewritten)": {
        "kept": {"Hope": interval(found["Hope"][:, last[1]]), "with v": interval(again[:, last[1]])},
        "self-made targets cost": holds(again, found["Hope"])}}
    order = (*(("Hope", name) for name in models if name not in ("Hope", "attention")), ("attention", "Hope"))
    return {"x": (f"pairs (trained on up to {TAUGHT}), shown once or rewritten", list(range(2 * len(COUNTS)))),
            "ticks": [f"{n}\n{once}" for once in ("once", "again") for n in COUNTS], "lines": found,
            "y": "share of values recalled", "cause": cause,
            "holds": "; ".join(f"{more} over {less}: {holds(found[more], found[less])}" for more, less in order),
            "here": "16 pairs, shown once / rewritten: " + ", ".join(
                f"{name} {judged(scores)}" for name, scores in found.items())}
