"""The five tasks of MAD (Poli et al. 2024) in miniature: who solves which?

One layer of width 32 and a short filter for every model, half of whose channels start on the token before. Hope's
memories are networks of two layers, five per head, that make their own targets; plain Titans have one, with v for a
target; gated delta has a matrix per head; attention sees all. What Hope spends on memories the others have in a wider
MLP. Compression: 16 symbols and a mark, at which the model's last vector must hold them all; an MLP of its own reads a
symbol from that vector and a position. Recall: 8 pairs, all asked. Fuzzy recall: 6 pairs of one to three tokens each.
Selective copying: 8 symbols among 16 blanks. Memorisation: 511 keys, whose values stand nowhere but in the weights.
1,000 steps of 16 samples; the rate of every model is the best for each task. Scores are shares of answers that are
right. Five seeds. (Twenty minutes of a core.) All memorise, which tells nothing apart, and nobody compresses much in so
few steps (by chance 0.06). Recall comes all at once: Hope has it in every seed, plain Titans and gated delta not yet in
one of five. Alignment of keys of several tokens, fuzzy recall, is attention's own: it compares each with each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

import optimizers
from apps.claims.study import Study, alike, interval, looking_back, said, verdict
from apps.evaluate import fit, share_right
from apps.tasks import Drawn, associative_recall, fuzzy_recall, memorized, selective_copy
from autograd import Tensor, no_grad
from config import Config
from hope import Hope, count
from layers import Linear, Module, cross_entropy, gelu, normal

PAPER = ("the tasks of MAD: Hope 51.2, 100, 52.1, 99.7, 85.2 in compression, recall, fuzzy recall, selective copying, "
         "memorisation; Titans 49.8, 100, 50.0, 99.4, 83.4; Transformer 49.4, 100, 47.9, 96.2, 83.7 (Table 4)")
LONG = True  # more than ten minutes of a core
STEPS, BATCH, RATES, LENGTH, SYMBOLS = 1000, 16, (2.5e-3, 5e-3, 1e-2), 16, 16
BASE = Config(width=32, layers=1, heads=2, segment=64, vocabulary=64, chunks=(1,), hidden=32, memory_hidden=16,
              memory_chunk=16, projection_chunk=16)


def compressed(rng: np.random.Generator, batch: int) -> Drawn:
    """16 symbols 1 … 16 and a 0, at which they are asked for all at once: (B,17), (B,16)"""
    word = rng.integers(1, SYMBOLS + 1, (batch, LENGTH))
    return np.hstack([word, np.zeros((batch, 1), np.int64)]), word


TASKS: dict[str, Callable[[np.random.Generator, int], Drawn]] = {  # (rng, batch) → tokens, targets
    "compression": compressed,
    "recall": lambda rng, batch: associative_recall(rng, batch, 8, 8, 16, 16),
    "fuzzy recall": lambda rng, batch: fuzzy_recall(rng, batch, 6, 16, 16),
    "selective copying": lambda rng, batch: selective_copy(rng, batch, 24, 8, 16),
    "memorisation": lambda rng, batch: memorized(rng, batch, 16, 511, 512)}


class Unpacking(Module):
    """A model, and an MLP that tells the symbol at every position from what the model holds at the last one."""

    def __init__(self, model: Hope, rng: np.random.Generator):
        D = model.config.width
        self.model, self.places = model, normal(rng, (LENGTH, D), 1.0)
        self.inner, self.outer = Linear(rng, D, 4 * D), Linear(rng, 4 * D, D)

    def __call__(self, tokens: np.ndarray) -> tuple[Tensor, Any]:
        x, state = self.model.read(tokens)
        packed = self.model.norm(x[:, -1:]) + self.places  # (B,16,D)
        return self.model.unembed(packed + self.outer(gelu(self.inner(packed)))), state


def score(study: Study, config: Config, rate: float, seed: int, task: str) -> float:
    """The share of answers of a task that are right after training."""
    rng, draw = np.random.default_rng([seed, 4]), TASKS[task]
    model = looking_back(replace(config, vocabulary=512) if task == "memorisation" else config, seed)
    told: Any = Unpacking(model, rng) if task == "compression" else model
    groups = model.groups()
    if told is not model:
        groups.append({"params": told.parameters()[len(model.parameters()):]})

    def lost(tokens: np.ndarray, targets: np.ndarray) -> Tensor:
        return cross_entropy(told(tokens)[0], targets)
    fit(model, partial(draw, rng, BATCH), study.steps(STEPS), rate, bar=study.bar, loss=lost,
        optimizer=optimizers.build("adamw", groups, rate))
    tokens, targets = draw(np.random.default_rng(7), 128)
    with no_grad():
        return share_right(np.argmax(told(tokens)[0].data, -1), targets)


def measure(study: Study) -> dict[str, Any]:
    models = alike(BASE, {"Hope": "titans", "plain Titans": "plain-titans", "gated delta": "gated",
                          "attention": "attention"})

    def scores(name: str, task: str) -> list[float]:
        """At the best rate, for every seed."""
        best = study.sweep(f"{name}, {task}", RATES, lambda rate, seed: score(study, models[name], rate, seed, task))
        study.bar.set_postfix_str(f"{name}, {task}")
        return [score(study, models[name], best, seed, task) for seed in range(study.seeds)]
    found = {name: np.array([scores(name, task) for task in TASKS]).T for name in models}
    study.parameters.update({name: count(config) + 4 * BASE.width * (name == "attention")  # with its filter
                             for name, config in models.items()})
    return {"x": ("", list(range(len(TASKS)))), "ticks": list(TASKS), "y": "share of answers right", "lines": found,
            "holds": "; ".join(f"Hope over {other}: " + ", ".join(
                f"{name} {verdict(found['Hope'][:, i] - found[other][:, i])}" for i, name in enumerate(TASKS))
                for other in found if other != "Hope"),
            "here": f"{', '.join(TASKS)}: " + "; ".join(
                f"{name} " + ", ".join(said(interval(column)) for column in scores.T)
                for name, scores in found.items())}
