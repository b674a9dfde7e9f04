"""As training goes on, what becomes of Hope's lead by the step, and what are its writes worth?

The models of modelling, at the rates that are best there, trained for 150 steps. Each is measured on the way, while its
rate still falls; Hope a second time with its writes switched off. All three see the same bytes. A step of Hope takes
several times as long, so its loss after 50 steps stands beside that of the others after 150: what it loses by the clock
it loses there. Three seeds.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np

from apps.claims.modelling import BASE, OPTIMIZER
from apps.claims.study import Study, bits_per_byte, equal, interval, said, trained, verdict, without_writes
from config import Config
from hope import Hope, count

PAPER = "nothing of the kind: Table 2 is after 30 and 100 billion tokens"
MARKS = (50, 150)  # steps
MODELS = {"Hope": ("titans", 0.2), "gated delta": ("gated", 0.2), "Transformer": ("attention", 0.1)}  # mixer, rate


def watched(study: Study, config: Config, rate: float, seed: int, marks: list[int]) -> tuple[list[list[float]], float]:
    """Bits per byte after so many steps of one training, of Hope without writes, too; and seconds a step."""
    found: list[list[float]] = []
    looking = 0.0

    def look(model: Hope, done: int) -> None:
        nonlocal looking
        if done not in marks:
            return
        started = time.process_time()
        found.append([bits_per_byte(model), *([without_writes(model)] if config.mixer == "titans" else [])])
        looking += time.process_time() - started
    started = time.process_time()
    trained(study, config, rate, seed, marks[-1], OPTIMIZER, watch=look)
    return found, (time.process_time() - started - looking) / marks[-1]


def measure(study: Study) -> dict[str, Any]:
    study.seeds = min(study.seeds, 3)
    marks = sorted({study.steps(n) for n in MARKS})
    bits, seconds = {}, {}
    for name, (mixer, rate) in MODELS.items():
        study.bar.set_postfix_str(name)
        config = equal(replace(BASE, mixer=mixer), count(BASE))
        study.parameters[name] = count(config)
        runs = [watched(study, config, rate, seed, marks) for seed in range(study.seeds)]
        scores = np.array([found for found, _ in runs])  # (seeds, marks, 1 or 2)
        bits[name], seconds[name] = scores[..., 0], float(np.median([spent for _, spent in runs]))
        if scores.shape[2] > 1:
            bits["Hope, writes off"] = scores[..., 1]
    others = [name for name in MODELS if name != "Hope"]
    lead = {name: bits[name] - bits["Hope"] for name in ("Hope, writes off", *others)}

    def by_step(name: str) -> str:
        return ", ".join(f"{said(interval(more), 3)} after {n}" for n, more in zip(marks, lead[name].T, strict=True))
    return {"x": ("steps of training", marks), "y": "bits per byte of validation text", "lines": bits,
            "milliseconds per step": {name: round(1000 * spent, 1) for name, spent in seconds.items()},
            "holds": "; ".join(f"Hope below {name}: " + ", ".join(
                f"{verdict(more)} after {n}" for n, more in zip(marks, lead[name].T, strict=True)) for name in lead),
            "here": f"bits per byte, Hope {', '.join(said(interval(c), 3) for c in bits['Hope'].T)} after "
                    f"{', '.join(map(str, marks))} steps; more: "
                    + "; ".join(f"{name} {by_step(name)}" for name in lead) + "; a step of Hope takes " + ", ".join(
                        f"{seconds['Hope'] / seconds[name]:.1f} × as long as of {name}" for name in others)}
