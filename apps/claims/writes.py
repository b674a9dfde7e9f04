"""Self-modifying Titans trained by gradients through their writes, and by gradients cut off there.

Both are made of the same operations. What is cut off costs no time on the way back, so in equal time the
second takes more steps. Is that the price of the gradients, or of operations? The reading below gives
gradients through writes the kernel that they have (the same numbers), and the second as many steps as fit then.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np

from apps.claims.study import Study, bits_per_byte, interval, said, trained, verdict
from config import Config

PAPER = "said, not compared: initial states are learned through the writes of their context (§8.1)"
LONG = True  # more than ten minutes of a core


def measure(study: Study) -> dict[str, Any]:
    steps = study.steps(150)
    through = Config(width=32, layers=2, heads=2, segment=64, chunks=(1,), hidden=64, memory_chunk=16,
                     projection_chunk=16, form="chunked", eta_max=0.5, eta_start=0.1)
    models = {"through writes": through, "stopped": replace(through, through_writes=False)}
    seconds: dict[bool, list[float]] = {True: [], False: []}

    def score(config: Config, rate: float, seed: int) -> list[float]:
        started = time.process_time()
        model = trained(study, config, rate, seed, steps)
        seconds[config.through_writes].append(time.process_time() - started)
        return [-bits_per_byte(model)]
    bits = {name: -scores for name, scores in study.compare(models, (3e-3, 1e-2, 3e-2), score).items()}
    cost = float(np.median(seconds[True]) / np.median(seconds[False]))
    best = study.best["stopped"]
    longer = max(steps, round(steps * cost))
    again = [trained(study, models["stopped"], best, seed, longer) for seed in range(study.seeds)]
    bits["stopped, equal time"] = np.array([[bits_per_byte(model)] for model in again])
    verdicts = [verdict((bits[name] - bits["through writes"])[:, 0]) for name in list(bits)[1:]]

    def price(config: Config) -> float:  # of ten steps, by the processor's clock
        trained(study, config, 1e-3, 0, 2)  # compiles
        started = time.process_time()
        trained(study, config, 1e-3, 0, 10)
        return time.process_time() - started
    kernel = float(np.median([price(replace(through, form="fused")) / price(models["stopped"]) for _ in range(3)]))
    fewer = max(2, round(steps * kernel))
    short = np.array([bits_per_byte(trained(study, models["stopped"], best, seed, fewer))
                      for seed in range(study.seeds)])
    cause = {f"gradients through writes have their kernel, a step of which takes {kernel:.2f} times a stopped one": {
        "kept": {"through writes": interval(bits["through writes"][:, 0]), "stopped, equal time": interval(short)},
        "holds": verdict(short - bits["through writes"][:, 0])}}
    return {"x": ("", [0]), "y": "bits per byte of validation text", "lines": bits, "cause": cause,
            "holds": f"equal steps: {verdicts[0]}; equal time: {verdicts[1]}",
            "here": ", ".join(f"{name} {said(interval(b), 3)}" for name, b in bits.items())
                    + f" bits per byte; a step through writes takes {cost:.2f} times as long"}
