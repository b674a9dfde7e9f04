"""Two levels put together in three ways, against one level; nested levels also move while they are measured.

A chain of two has half the width and twice the depth of one level, and its slow level moves once in four steps. The
readings ask whether it is only slower, and which of the two makes it so.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from apps.claims.study import Study, bits_per_byte, corpus, equal, interval, said, trained, verdict
from apps.evaluate import BIT, fit, text_batches
from config import Config
from data import fixed
from hope import Hope, count

PAPER = "nested, sequential and independent levels are defined, none compared (§7.1)"


def measure(study: Study) -> dict[str, Any]:
    steps, chunks = study.steps(250), (1, 4)
    base = Config(width=48, layers=2, heads=2, segment=64, mixer="attention", chunks=chunks, hidden=64)
    models = {"sequential": base, "independent": equal(replace(base, cms="independent"), count(base)),
              "nested": replace(base, cms="nested", form="chunked"),
              "one level": equal(replace(base, chunks=(1,)), count(base))}

    def score(config: Config, rate: float, seed: int) -> list[float]:
        if config.cms != "nested":
            return [-bits_per_byte(trained(study, config, rate, seed, steps))]
        model, draw = Hope(config, np.random.default_rng(seed)), text_batches(corpus()[0], 8, 64, seed)
        fit(model, draw, steps, rate, bar=study.bar, loss=lambda tokens, targets: model.context_loss(
            np.hstack([tokens, targets[:, -1:]]))[0])
        windows = fixed(corpus()[1], 16, 64, 8)  # read as it was trained: its levels move while they read
        nats = [model.context_loss(window, first_order=True)[0].item() for window in windows]
        return [-float(np.mean(nats)) / BIT]
    found = {name: -scores for name, scores in study.compare(models, (2e-3, 5e-3, 1e-2, 2e-2), score).items()}
    gains = {name: verdict((found["one level"] - found[name])[:, 0]) for name in list(models)[:3]}

    def longer(name: str) -> np.ndarray:
        long = [trained(study, models[name], study.best[name], seed, 3 * steps) for seed in range(study.seeds)]
        return np.array([bits_per_byte(model) for model in long])
    again = {name: longer(name) for name in ("sequential", "one level")}
    chain, one = (found[name][:, 0] for name in ("sequential", "one level"))
    one_clock = np.array([bits_per_byte(trained(study, replace(base, chunks=(1, 1)), study.best["sequential"], seed,
                                                steps)) for seed in range(study.seeds)])
    cause = {
        "both levels move with every step": {
            "kept": {"sequential": interval(chain), "one clock": interval(one_clock)},
            "the slow clock costs": verdict(chain - one_clock), "a chain costs more": verdict(one_clock - one)},
        "they learn for three times as many steps": {
            "kept": {name: interval(s) for name, s in again.items()},
            "sequential below one level": verdict(again["one level"] - again["sequential"])}}
    return {"x": ("", [0]), "y": "bits per byte of validation text", "lines": found, "cause": cause,
            "holds": "; ".join(f"{name} below one level: {v}" for name, v in gains.items()),
            "here": ", ".join(f"{name} {said(interval(b), 3)}" for name, b in found.items())}
