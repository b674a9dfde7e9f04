"""Streams of tasks, read by levels that learn meanwhile: what is known at the end, by how many levels there are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

import optimizers
from apps.claims.study import Study, equal, interval, said, verdict
from apps.evaluate import fit, learn_on, share_right, transfer
from apps.tasks import Part
from autograd import Tensor, no_grad
from cms import LevelState
from config import Config
from hope import Hope, State, count
from layers import cross_entropy

LEVELS = {"1 level": (1,), "2 levels": (1, 4), "3 levels": (1, 2, 4), "4 levels": (1, 2, 4, 8)}
READINGS: dict[str, dict[str, Any]] = {  # what keeps more levels from forgetting less: is it this?
    "slow levels move by the mean gradient": {"mean": True},
    "training asks for all tasks at the end": {"asked": True},
    "every level is as wide as the one": {"wide": True},
}
Family = Callable[[np.random.Generator, int], tuple[Part, Part]]


def by_levels(study: Study, family: Family, tasks: int, segments: int, steps: int, config: Config, chance: float,
              readings: Sequence[str] = tuple(READINGS)) -> dict[str, Any]:
    """New tasks read one after the other by levels that learn: what is known at the end, by number of levels.

    Models are trained on streams of random tasks, their levels learning meanwhile, to predict the next answer;
    what is measured are streams of new tasks. family: (rng, batch) → (read, ask), a segment of task i
    to learn from, and one with questions, each a window (B,T+1) with targets (B,T).
    """
    batch, width = 8, 96
    total = count(replace(config, chunks=(1,), hidden=width))
    models = {name: equal(replace(config, chunks=chunks), total) for name, chunks in LEVELS.items()}
    curves: dict[tuple[str, int], np.ndarray] = {}  # of the main reading: (segments+1,tasks) by model and seed
    slow: dict[tuple[str, int], list[float]] = {}  # and what the slow levels know by themselves

    def known(model: Hope, state: State, ask: Part) -> list[float]:
        with no_grad():
            answers = [(model(tokens[:, :-1], state)[0], targets) for tokens, targets in map(ask, range(tasks))]
        return [share_right(np.argmax(logits.data, -1), targets) for logits, targets in answers]

    def score(name: str, rate: float, inner: float, seed: int, *, mean: bool = False, asked: bool = False,
              wide: bool = False) -> list[float]:
        model = Hope(replace(models[name], hidden=width) if wide else models[name], np.random.default_rng(seed))
        rng = np.random.default_rng([seed, 3])

        def loss(read: Part, ask: Part) -> Tensor:
            state, nats = State.start(model.config), Tensor(np.float32(0))
            for task in np.repeat(np.arange(tasks), segments).tolist():
                tokens, targets = read(task)
                logits, state = learn_on(model, tokens, state, inner, mean)
                nats = nats + cross_entropy(logits, targets) * (1 / segments)
            for task in range(tasks if asked else 0):
                tokens, targets = ask(task)
                nats = nats + cross_entropy(model(tokens[:, :-1], state)[0], targets)
            return nats * (1 / tasks)
        initial = [{**group, "period": 1} for group in model.groups()]  # states that every stream begins with
        fit(model, lambda: family(rng, batch), steps, rate, bar=study.bar, loss=loss,
            optimizer=optimizers.build("adamw", initial, rate))
        read, ask = family(np.random.default_rng([seed, 7]), 64)
        state, curve = State.start(model.config), []
        for task in np.repeat(np.arange(tasks), segments).tolist():
            curve.append(known(model, state, ask))
            state = learn_on(model, read(task)[0], state, inner, mean)[1]
        curve.append(known(model, state, ask))
        if not (mean or asked or wide):
            curves[name, seed] = np.array(curve)
            state = State([replace(b, levels=(LevelState(), *b.levels[1:])) for b in state.blocks], state.clock)
            slow[name, seed] = known(model, state, ask)
        return curve[-1]

    @cache
    def trial(name: str, rate: float, inner: float, seed: int, **options: Any) -> float:
        return float(np.mean(score(name, rate, inner, seed, **options)))

    def measure(name: str, note: str = "", rate: float = 0.0, **options: Any) -> tuple[float, np.ndarray]:
        """The best outer rate, and accuracy at the end at it and the best inner rate, (seeds,tasks)."""
        rate = rate or study.sweep(f"{name}, training", (5e-3, 1e-2, 2e-2),
                                   lambda r, seed: trial(name, r, 3.0, seed))
        inner = study.sweep(f"{name}, while reading{note}", (1.0, 3.0, 10.0),
                            lambda r, seed: trial(name, rate, r, seed, **options))
        study.bar.set_postfix_str(name + note)
        return rate, np.array([score(name, rate, inner, seed, **options) for seed in range(study.seeds)])

    def both(found: dict[str, np.ndarray]) -> dict[str, Any]:
        kept = {name: np.mean(s, axis=1) for name, s in found.items()}
        return {"kept": {name: interval(k) for name, k in kept.items()},
                "4 levels keep more": verdict(kept["4 levels"] - kept["1 level"])}
    rates, found = {}, {}
    for name, one in models.items():
        study.parameters[name] = count(one)
        rates[name], found[name] = measure(name)
    ends = {name: found[name] for name in ("1 level", "4 levels")}
    alone = np.array([slow["4 levels", seed] for seed in range(study.seeds)])
    cause = {"of the four only the three slow levels are asked": both({**ends, "4 levels": alone})}
    for reading in readings:
        options = READINGS[reading]
        same = () if "asked" in options else ("1 level",)  # one level of chunk size 1: nothing is changed
        cause[reading] = both({name: ends[name] if name in same else
                               measure(name, f", {reading}", rates[name], **options)[1] for name in ends})
    lines = {name: np.array([curves[name, seed][:, 0] for seed in range(study.seeds)]) for name in models}
    matrices = {name: [curves[name, seed][::segments] for seed in range(study.seeds)] for name in models}
    each = {name: [interval(task) for task in found[name].T] for name in models}
    main = both(found)
    return {"x": ("segments read; the first task's come first", list(range(tasks * segments + 1))),
            "y": "accuracy on the first task", "lines": lines, "holds": main["4 levels keep more"],
            "known at the end": main["kept"], "of each task": each, "chance": chance, "cause": cause,
            "just learned": {name: interval([np.mean(np.diag(m[1:])) for m in ms]) for name, ms in matrices.items()},
            "forgetting": {name: interval([transfer(m)["forgetting"] for m in ms])
                           for name, ms in matrices.items()},
            "here": f"accuracy at the end on all tasks (by chance {chance:.2f}), and on the first: " + ", ".join(
                f"{name} {said(kept)}, {said(each[name][0])}" for name, kept in main["kept"].items())}
