"""Up to 8 pairs are shown, in half of the samples all once more with new values; then every key is asked.

Judged are 16 pairs, twice as many as any model was trained on and as many as a key has dimensions in each
of the two heads. Every model has one layer and a short filter, attention too, and half of the channels of a
filter start on the token before: from random taps models learn to look back later, and in so few steps what
is compared is luck (the first reading below). DGD is that of the dot product [A 92] and of the squared error
[A 93]: delta with retention, of which these questions ask nothing: all pairs count alike. Self-modifying
memories are matrices, as all others are, but make their own targets. Their seeds differ most: of 8 pairs they
recall between a quarter and five sixths, so training comes less far in so few steps. The last reading gives
them two layers, at the rate that was best for matrices. The order of rules that is judged is our question: the
paper compares whole models.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from apps.claims.study import Study, alike, equal, interval, looking_back, said, verdict
from apps.evaluate import fit, share_right
from apps.tasks import Drawn, associative_recall
from autograd import no_grad
from config import Config
from hope import count

PAPER = ("in-context recall: Hope above Titans, Comba and RWKV-7 (Tables 3, 4); attention above Hope on real text, "
         "at most level with it in MAD")


def measure(study: Study) -> dict[str, Any]:
    keys, values, counts, taught, batch, steps = 32, 8, (4, 8, 12, 16), 8, 16, study.steps(800)
    base = Config(width=32, layers=1, heads=2, segment=5 * max(counts), vocabulary=keys + values, chunks=(1,),
                  hidden=64, memory="matrix", memory_chunk=16, projection_chunk=16, eta_max=1.0, eta_start=0.3)
    models = alike(base, {"self-modifying": "titans", "DGD, squared error": "dgd-l2", "DGD": "dgd",
                          "delta": "delta", "Hebbian": "linear", "attention": "attention"})
    asked = [associative_recall(np.random.default_rng(7), 64, n, n, keys, values, n * again)
             for again in (0, 1) for n in counts]

    def score(config: Config, rate: float, seed: int, back: bool = True) -> list[float]:
        rng, model = np.random.default_rng([seed, 1]), looking_back(config, seed, back)

        def draw() -> Drawn:
            n = int(rng.integers(1, taught + 1))
            return associative_recall(rng, batch, n, n, keys, values, n * int(rng.integers(2)))
        fit(model, draw, steps, rate, bar=study.bar)
        with no_grad():
            return [share_right(np.argmax(model(tokens)[0].data, -1), targets) for tokens, targets in asked]
    found = study.compare(models, (2.5e-3, 5e-3, 1e-2, 2e-2), score)
    study.parameters["attention"] += 4 * base.width

    def tried(name: str, config: Config, **options: Any) -> dict[str, Any]:  # at the best rate of that model
        scores = np.array([score(config, study.best[name], seed, **options) for seed in range(study.seeds)])
        return {"kept": {name: interval(scores[:, counts.index(taught)])}}
    deep = equal(replace(base, memory="mlp"), count(base))
    cause = {f"all filters start from random taps ({taught} pairs)": tried("delta", models["delta"], back=False),
             f"self-modifying memories have two layers ({taught} pairs)": tried("self-modifying", deep)}
    said_at = {once: {name: s[:, half + counts.index(16)] for name, s in found.items()}
               for half, once in ((0, "once"), (len(counts), "rewritten"))}
    order = (("delta", "Hebbian"), ("DGD", "delta"), ("DGD, squared error", "delta"), ("self-modifying", "delta"),
             ("attention", "delta"))
    return {"x": (f"pairs (trained on up to {taught}), shown once or rewritten", list(range(2 * len(counts)))),
            "ticks": [f"{n}\n{once}" for once in ("once", "again") for n in counts], "lines": found,
            "y": "share of values recalled", "cause": cause,
            "holds": "; ".join(f"{more} over {less}: " + ", ".join(
                f"{once} {verdict(s[more] - s[less])}" for once, s in said_at.items()) for more, less in order),
            "here": "16 pairs, shown once / rewritten: " + ", ".join(
                f"{name} {said(interval(s))} / {said(interval(said_at['rewritten'][name]))}"
                for name, s in said_at["once"].items())}
