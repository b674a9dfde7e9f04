"""One text read to 8,192 bytes by every model, and on to a million by one; time is the processor's.

What is judged is the cost of reading on, not what is remembered.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from apps.claims.study import Study, bits_per_byte, corpus, equal, trained
from apps.evaluate import BIT
from autograd import no_grad
from config import Config
from hope import Hope, count

PAPER = "accuracy held to 10 million tokens of BABILong, after fine-tuning (Fig. 9)"


def measure(study: Study) -> dict[str, Any]:
    base = Config(width=32, layers=2, heads=1, segment=128, chunks=(1,), hidden=64)
    models = {"self-modifying": base, "Transformer": equal(replace(base, mixer="attention"), count(base))}
    places = [2 ** i for i in range(9, 21)]  # tokens read
    far, near = (2 ** 20, 2 ** 13) if study.share == 1 else (2 ** 11, 2 ** 10)
    bits: dict[str, list[list[float]]] = {}
    found: dict[str, Any] = {}
    for name, config in models.items():
        study.parameters[name] = count(config)

        def learned(rate: float, seed: int, config: Config = config) -> float:
            return -bits_per_byte(trained(study, config, rate, seed, study.steps(200)))
        rate = study.sweep(name, (3e-3, 1e-2, 3e-2), learned)
        for seed in range(study.seeds):
            model = trained(study, config, rate, seed, study.steps(200))
            end = far if seed == 0 and name == "self-modifying" else near  # one model reads to the end
            read = read_on(model, seed, [n for n in places if n <= end], study.bar)
            close = [line["bits per byte"] for line in read if line["tokens"] <= near]
            bits.setdefault(name, []).append(close)
            found.setdefault(name, read)
    measures, growth, parts = ("microseconds per token", "state bytes"), {}, []
    for name, read in found.items():
        first, last = read[0], read[-1]
        growth[name] = {what: last[what] / first[what] for what in measures}
        time_grew, state_grew = growth[name].values()
        parts.append(f"{name}, {first['tokens']:,} to {last['tokens']:,} tokens: time per token "
                     f"× {time_grew:.2f}, state × {state_grew:.2f}, bits per byte "
                     f"{first['bits per byte']:.2f} → {last['bits per byte']:.2f}")
    flat = all(grew < 1.1 for grew in growth["self-modifying"].values())
    return {"x": ("tokens read", [n for n in places if n <= near]), "y": "bits per byte there",
            "lines": {name: np.array(scores) for name, scores in bits.items()}, "reading on": found,
            "growth": growth, "holds": "yes" if flat else "no", "here": "; ".join(parts)}


def read_on(model: Hope, seed: int, places: Sequence[int], bar: Any) -> list[dict[str, float]]:
    """Read on from a place of its own; what reading is like just before each number of tokens in `places`."""
    text, segment = corpus()[0], model.config.segment
    nats: list[float] = []
    found: list[dict[str, float]] = []
    state, since, started = None, 0, time.process_time()
    begin = seed * (len(text) - places[-1] - 1) // 10
    for t in range(0, places[-1], segment):
        window = text.read(begin + t, begin + t + segment + 1).astype(np.int64)
        with no_grad():
            loss, state = model.loss(window[None], state)
        nats.append(loss.item())
        bar.update()
        if t + segment == places[len(found)]:
            seconds, tokens = time.process_time() - started, t + segment - since
            found.append({"tokens": t + segment, "bits per byte": float(np.mean(nats)) / BIT,
                          "state bytes": state.nbytes, "microseconds per token": 1e6 * seconds / tokens})
            nats, since, started = [], t + segment, time.process_time()
    return found
