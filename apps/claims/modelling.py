"""Small models of one size read the same bytes of text, then unseen text: whose bits per byte are fewest?

All have two layers, one level, and Muon at the best rate of one sweep. Then the two that take least time, attention
and the gated delta rule, get as many steps as fit into the processor time of Hope's. Last, Hope reads the unseen text
with its writes switched off: what they are worth to a model that was trained with them. Attention is the Transformer
of the paper, without the short filter that all the others have.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np

from apps.claims.study import Study, bits_per_byte, equal, interval, said, trained, verdict, without_writes
from config import Config
from hope import count

PAPER = "language modelling: Hope below Titans, these below RetNet, DeltaNet and Transformer++ (Table 2)"
STEPS, OPTIMIZER, RATES = 150, "muon", (2e-2, 5e-2, 1e-1, 2e-1)
BASE = Config(width=64, layers=2, heads=2, segment=128, chunks=(1,), hidden=192, memory_hidden=32)


def measure(study: Study) -> dict[str, Any]:
    steps = study.steps(STEPS)
    mixers = {"Hope": "titans", "plain Titans": "plain-titans", "gated delta": "gated", "delta": "delta",
              "retention": "retention", "Transformer": "attention"}
    models = {name: equal(replace(BASE, mixer=mixer), count(BASE)) for name, mixer in mixers.items()}
    written_off, seconds = [], {}

    def score(config: Config, rate: float, seed: int) -> list[float]:
        started = time.process_time()
        model = trained(study, config, rate, seed, steps, OPTIMIZER)
        seconds[config.mixer] = time.process_time() - started  # of the last, which compiles nothing
        bits = bits_per_byte(model)
        if config.mixer == "titans" and seed < study.seeds:
            written_off.append(without_writes(model))
        return [-bits]
    bits = {name: -scores for name, scores in study.compare(models, RATES, score).items()}
    longer = {name: max(steps, round(steps * seconds["titans"] / seconds[mixers[name]]))
              for name in ("Transformer", "gated delta")}
    for name, n in longer.items():
        bits[f"{name}, equal time"] = np.array([
            [bits_per_byte(trained(study, models[name], study.best[name], seed, n, OPTIMIZER))]
            for seed in range(study.seeds)])
    bits["Hope, writes off"] = np.array(written_off)[:, None]
    others = [name for name in bits if not name.startswith("Hope")]
    return {"x": ("", [0]), "y": "bits per byte of validation text", "lines": bits, "steps": {"equal": steps, **longer},
            "holds": "; ".join(f"Hope below {name}: {verdict((bits[name] - bits['Hope'])[:, 0])}" for name in others),
            "here": ", ".join(f"{name} {said(interval(b), 3)}" for name, b in bits.items()) + " bits per byte"}
