"""A trained model reads on through unseen text, 4,096 bytes at each of eight places, its levels learning.

Each level by itself and all; the rate of learning is tuned on text that was trained on. Attention sees the 64 bytes of
its segment and begins anew with the next, learning or not: what is gained is over a model that keeps nothing. A model
with one level and as many parameters stands beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from apps.claims.study import SWEEP, Study, bits_per_byte, corpus, equal, interval, said, trained, verdict
from apps.evaluate import BIT
from autograd import no_grad
from cms import LevelState
from config import Config
from data import Text
from hope import BlockState, Hope, State, count

PAPER = "nothing of the kind (nearest: perplexity over the context used, Fig. 10)"


def measure(study: Study) -> dict[str, Any]:
    chunks, segment, steps, length = (1, 4, 16), 64, study.steps(200), max(512, study.steps(4096))
    base = Config(width=48, layers=2, heads=2, segment=segment, mixer="attention", chunks=chunks, hidden=64)
    subsets = {"off": (), **{f"only chunk size {c}": (c,) for c in chunks}, "all levels": chunks}
    one = equal(replace(base, chunks=(1,)), count(base))
    train, held_out = corpus()

    def read(model: Hope, learning: Sequence[int], rate: float, text: Text, rows: int = 8) -> float:
        """Bits per byte of `rows` places of the text, each read on for `length` bytes."""
        starts, state, nats = [i * (len(text) - length - 1) // rows for i in range(rows)], None, []
        for t in range(0, length - segment + 1, segment):
            window = text.stack([s + t for s in starts], segment)
            if learning:
                loss, state = model.learn(window, state, rate)
                state = State([BlockState(None, tuple(its if chunk in learning else LevelState()
                                                      for chunk, its in zip(chunks, past.levels, strict=False)))
                               for past in state.blocks], state.clock)
            else:
                with no_grad():
                    loss = model.loss(window)[0].item()
            nats.append(loss)
        return float(np.mean(nats)) / BIT

    found: dict[str, np.ndarray] = {}
    for name, config in {"": base, "one level: ": one}.items():
        study.parameters[name or "three levels"] = count(config)
        def learned(rate: float, seed: int, config: Config = config) -> float:
            return -bits_per_byte(trained(study, config, rate, seed, steps))
        rate = study.sweep(f"{name}training", (2e-3, 5e-3, 1e-2, 2e-2, 4e-2), learned)
        models = [trained(study, config, rate, seed, steps) for seed in (SWEEP, *range(study.seeds))]
        for learning, levels in (subsets if not name else {"off": (), "learning": (1,)}).items():
            inner = 0.0
            if levels:  # tuned on text that was trained on, so as not to peep
                def again(rate: float, seed: int, model: Hope = models[0], levels: Any = levels) -> float:
                    return -read(model, levels, rate, train)
                inner = study.sweep(name + learning, (0.1, 0.3, 1.0, 3.0, 10.0), again)
            found[name + learning] = np.array([[read(m, levels, inner, held_out)] for m in models[1:]])
    gain = (found["off"] - found["all levels"])[:, 0]
    gains = {name: interval((found["off" if not name.startswith("one") else "one level: off"] - bits)[:, 0])
             for name, bits in found.items() if not name.endswith("off")}
    return {"x": ("", [0]), "y": "bits per byte of unseen text", "lines": found, "holds": verdict(gain),
            "here": "bits per byte: " + ", ".join(
                f"{name} {said(interval(found[name]), 3)}" for name in found if name.endswith(("off", "levels")))
                + "; learning lowers them by " + ", ".join(f"{n} {said(g, 3)}" for n, g in gains.items())}
