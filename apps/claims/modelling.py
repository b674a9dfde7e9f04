"""Small models of one size read the same bytes of text, then unseen text: whose bits per byte are fewest?

All have two layers, one level, and Muon at the best rate of one sweep. Then the two that take least time, attention
and the gated delta rule, get as many steps as fit into the processor time of Hope's. Hope reads the unseen text with
its writes switched off, too: what they are worth to a model that was trained with them. The reading gives Hope the
Transformer's steps, and time be what it may: is it by the step or by the clock that Hope loses? Three seeds.
"""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import count as counting
from typing import Any

import numpy as np

import optimizers
from apps.claims.study import Study, bits_per_byte, corpus, equal, interval, said, trained, verdict
from apps.evaluate import fit, text_batches
from autograd import Tensor
from config import Config
from hope import Hope, count
from layers import cross_entropy

PAPER = "language modelling: Hope below Titans, these below RetNet, DeltaNet and Transformer++ (Table 2)"
STEPS, OPTIMIZER, RATES = 150, "muon", (1e-1, 2e-1)
BASE = Config(width=64, layers=2, heads=2, segment=128, chunks=(1,), hidden=192, memory_hidden=32)


def without_writes(model: Hope) -> float:
    """Bits per byte of the model while its memories write nothing: η is nearly 0."""
    mixers = [block.mixer for block in model.blocks]
    kept = [mixer.config for mixer in mixers]
    for mixer in mixers:
        mixer.config = replace(mixer.config, eta_max=1e-9, eta_start=1e-10)
    bits = bits_per_byte(model)
    for mixer, config in zip(mixers, kept, strict=True):
        mixer.config = config
    return bits


def watched(study: Study, config: Config, rate: float, steps: int) -> dict[int, tuple[float, float]]:
    """Bits per byte with and without writes, of one training, after 50, 150, … steps and at its end."""
    model, seen = Hope(config, np.random.default_rng(0)), counting()
    marks, found = [n for n in (50, 150, 300, 450, 600) if n < steps], {}

    def lowered(tokens: Any, targets: Any) -> Tensor:
        if (n := next(seen)) in marks:
            found[n] = bits_per_byte(model), without_writes(model)
        return cross_entropy(model(tokens)[0], targets)
    fit(model, text_batches(corpus()[0], 8, config.segment, 0), steps, rate, bar=study.bar, loss=lowered,
        optimizer=optimizers.build(OPTIMIZER, model.groups(), rate))
    return found | {steps: (bits_per_byte(model), without_writes(model))}


def measure(study: Study) -> dict[str, Any]:
    steps = study.steps(STEPS)
    study.seeds = min(study.seeds, 3)
    mixers = {"Hope": "titans", "plain Titans": "plain-titans", "gated delta": "gated", "delta": "delta",
              "retention": "retention", "Transformer": "attention"}
    models = {name: equal(replace(BASE, mixer=mixer), count(BASE)) for name, mixer in mixers.items()}
    written_off, seconds = [], {}

    def score(config: Config, rate: float, seed: int) -> list[float]:
        started = time.process_time()
        model = trained(study, config, rate, seed, steps, OPTIMIZER)
        seconds[config.mixer] = time.process_time() - started  # of the last, which compiles nothing
        if config.mixer == "titans" and seed < study.seeds:
            written_off.append(without_writes(model))
        return [-bits_per_byte(model)]
    bits = {name: -scores for name, scores in study.compare(models, RATES, score).items()}
    longer = {name: max(steps, round(steps * seconds["titans"] / seconds[mixers[name]]))
              for name in ("Transformer", "gated delta")}
    for name, n in longer.items():
        bits[f"{name}, equal time"] = np.array([
            [bits_per_byte(trained(study, models[name], study.best[name], seed, n, OPTIMIZER))]
            for seed in range(study.seeds)])
    bits["Hope, writes off"] = np.array(written_off)[:, None]
    others = [name for name in bits if not name.startswith("Hope")]
    worth = watched(study, models["Hope"], study.best["Hope"], longer["Transformer"])
    first = ", ".join(f"{name} {bits[f'{name}, equal time'][0, 0]:.3f} after {n}" for name, n in longer.items())
    cause = {f"Hope takes {longer['Transformer']} steps, in more time (seed 0)": {
        "bits per byte": f"Hope {worth[longer['Transformer']][0]:.3f}, {first}",
        "what writes are worth on the way": ", ".join(
            f"{off - on:.3f} after {n} steps" for n, (on, off) in worth.items())}}
    return {"x": ("", [0]), "y": "bits per byte of validation text", "lines": bits, "steps": {"equal": steps, **longer},
            "cause": cause,
            "holds": "; ".join(f"Hope below {name}: {verdict((bits[name] - bits['Hope'])[:, 0])}" for name in others),
            "here": ", ".join(f"{name} {said(interval(b), 3)}" for name, b in bits.items()) + " bits per byte"}
