"""The same small model, trained for as many steps as fit into the processor time of 300 steps of AdamW.

M3 is Muon with a slow memory of gradients and with V [A 75]; the readings leave one or both of them out. The
slow memory is what holds M3 back: without it, M3 and Muon do not differ. In so few steps it is read a dozen
times, and what it holds is by then old; whether it pays in a long run, or in equal steps as in the paper, is not
asked here.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from apps.claims.study import Study, bits_per_byte, interval, said, trained, verdict
from config import Config

PAPER = ("a vision transformer in equal steps: M3 below AdamW and Muon (Fig. 11), slower per step than Muon "
         "(Fig. 12)")


def measure(study: Study) -> dict[str, Any]:
    config = Config(width=64, layers=2, heads=2, segment=64, mixer="attention", chunks=(1, 4), hidden=96)

    def cost(name: str) -> float:  # of a step, by the processor's clock
        times = []
        for _ in range(3):
            started = time.process_time()
            trained(study, config, 1e-3, 0, 5, name)
            times.append(time.process_time() - started)
        return float(np.median(times))
    cost("adamw")  # compiles
    costs = {name: cost(name) for name in ("adamw", "muon", "m3")}
    allowed = {name: study.steps(round(300 * costs["adamw"] / c)) for name, c in costs.items()}

    def bits(name: str, note: str = "", **options: Any) -> np.ndarray:
        def score(rate: float, seed: int) -> float:
            return -bits_per_byte(trained(study, config, rate, seed, allowed[name], name, **options))
        rates = (2e-3, 5e-3, 1e-2, 2e-2) if name == "adamw" else (1e-2, 3e-2, 1e-1, 2e-1)
        best = study.sweep(name + note, rates, score)
        return np.array([[-score(best, seed)] for seed in range(study.seeds)])
    found, cause = {name: bits(name) for name in costs}, {}
    readings: dict[str, dict[str, Any]] = {
        "M3 has no slow memory": {"slow_weight": 0.0}, "M3 has no V": {"variance": False},
        "M3 has neither": {"slow_weight": 0.0, "variance": False}}
    for reading, options in readings.items():
        again = bits("m3", f", {reading}", **options)
        cause[reading] = {"kept": {"m3": interval(again)}, "below muon": verdict((found["muon"] - again)[:, 0])}
    verdicts = {other: verdict((found[other] - found["m3"])[:, 0]) for other in ("adamw", "muon")}
    return {"x": ("", [0]), "y": "bits per byte of validation text", "lines": found, "steps": allowed, "cause": cause,
            "holds": "; ".join(f"below {other}: {v}" for other, v in verdicts.items()),
            "here": "equal time: " + ", ".join(
                f"{name} {said(interval(b), 3)} ({allowed[name]} steps)" for name, b in found.items())}
