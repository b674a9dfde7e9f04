"""Hope with all parts of Table 6, one left out at a time, in language modelling: what is each part worth?

The rows are those of Table 6. Hope has momentum, an adaptive q among six memories, and a chain of three levels. Without
DGD a write is the plain gradient step of the same size, M ← αM − η′∇L, without −η′M k kᵀ. Without momentum β is 0;
without weight decay α is 1; without CMS one MLP stands in place of the three levels; without inner k, v or q that
projection does not adapt. One layer of width 32, 1,000 steps. Every row has as many parameters, and the rate that is
best for Hope. The slow levels move once in 4 and in 16 steps of the optimiser; the reading below lets all of them move
with every step. After 200 steps the levels cost 0.15 bits, after 1,000 a quarter of that, about half of it by the slow
clocks. Weight decay is worth 0.035; what the others are worth is less than five seeds tell. (Twenty minutes of a core.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

import optimizers
from apps.claims.study import Study, bits_per_byte, corpus, equal, interval, said, verdict
from apps.evaluate import fit, text_batches
from autograd import Tensor, exp, minimum, sqrt, sum
from config import MEMORIES, Config
from hope import Hope, count
from memory import STEPS as RATE_OF
from memory import momentum_rule
from titans import SelfModifyingTitans

PAPER = ("perplexity of Hope 12.24; without DGD 13.41, momentum 13.58, weight decay 13.71, CMS 13.04, inner k 13.77, "
         "v 13.90, q 12.19 (Table 6)")
LONG = True  # more than ten minutes of a core
STEPS, RATES = 1000, (5e-2, 1e-1, 2e-1)
BASE = Config(width=32, layers=1, heads=2, segment=64, chunks=(1, 4, 16), hidden=32, memory_hidden=16, memory_chunk=32,
              projection_chunk=32, adaptive=MEMORIES, momentum=True)


class WithoutDGD(SelfModifyingTitans):
    """The same memories, written by the plain gradient step M ← αM − η′∇L (under momentum, as all here)."""

    def write(self, S: Tensor, N: Tensor | None, M0: Tensor, z: Tensor, delta: Tensor, limit: int, gates: Any,
              q: Tensor | None = None) -> tuple[Any, Tensor, Any]:
        u = -delta * minimum(1.0, 1 / sqrt(sum(delta * delta, axis=-1, keepdims=True) / limit + 1e-12))
        rate = RATE_OF[self.config.step](gates.eta, sum(z * z, axis=-1), exp(gates.log_alpha), 2)
        assert N is not None
        reads, S, N = momentum_rule(q, z, u, u * 0, gates.log_alpha, rate * 0, rate, gates.log_beta, S, N)
        return (None if q is None else reads + q @ M0.mT), S, N

    def read(self, *given: Any) -> Any:  # there is no kernel of it
        return self.read_in_operations(*given)


def without_dgd(model: Hope) -> None:
    for block in model.blocks:
        block.mixer.__class__ = WithoutDGD


def without_decay(model: Hope) -> None:
    for block in model.blocks:  # α = sigmoid(… + 10⁴) = 1, whatever stands before it
        block.mixer.bias["alpha"].data[...] = 1e4


def same(model: Hope) -> None:
    """Nothing is changed."""


def fixed(name: str) -> dict[str, Any]:
    return {"adaptive": tuple(other for other in MEMORIES if other != name)}


Row = tuple[dict[str, Any], Callable[[Hope], None]]  # what is changed in BASE, and then in the model
ROWS: dict[str, Row] = {
    "Hope": ({}, same), "DGD": ({}, without_dgd), "momentum": ({"momentum": False}, same),
    "weight decay": ({}, without_decay), "CMS": ({"chunks": (1,)}, same), "inner k": (fixed("k"), same),
    "inner v": (fixed("v"), same), "inner q": (fixed("q"), same)}
ONE_CLOCK = {"chunks": (1, 1, 1)}, same


def sized(row: Row) -> Config:
    """As large as BASE."""
    return equal(replace(BASE, **row[0]), count(BASE))


def score(study: Study, row: Row, rate: float, seed: int) -> float:
    """Bits per byte of validation text after training."""
    config, (_, alter) = sized(row), row
    model = Hope(config, np.random.default_rng(seed))
    alter(model)
    optimizer = optimizers.build("muon", model.groups(), rate)
    fit(model, text_batches(corpus()[0], 8, config.segment, seed), study.steps(STEPS), rate, bar=study.bar,
        optimizer=optimizer)
    return bits_per_byte(model)


def measure(study: Study) -> dict[str, Any]:
    best = study.sweep("Hope", RATES, lambda rate, seed: -score(study, ROWS["Hope"], rate, seed))

    def scores(name: str, row: Row) -> np.ndarray:
        study.bar.set_postfix_str(name)
        study.parameters[name] = count(sized(row))
        return np.array([score(study, row, best, seed) for seed in range(study.seeds)])
    found = {name: scores(name, row) for name, row in ROWS.items()}
    whole, one_clock = found["Hope"], scores("one clock", ONE_CLOCK)
    worth = {name: interval(found[name] - whole) for name in ROWS if name != "Hope"}
    cause = {"all three levels move with every step": {
        "kept": {"Hope": interval(whole), "one clock": interval(one_clock), "without CMS": interval(found["CMS"])},
        "slow clocks cost": verdict(whole - one_clock), "a chain costs more": verdict(one_clock - found["CMS"])}}
    return {"x": ("", [0]), "y": "bits per byte of validation text", "worth": worth, "cause": cause,
            "lines": {name if name == "Hope" else f"without {name}": s[:, None] for name, s in found.items()},
            "holds": "Hope better than without: " + "; ".join(
                f"{name} {verdict(found[name] - whole)}" for name in worth),
            "here": f"bits per byte: Hope {said(interval(whole), 3)}; more without: " + ", ".join(
                f"{name} {found[name].mean() - whole.mean():+.3f} ± {half:.3f}" for name, (_, half) in worth.items())}
