"""How long will it take?  Minutes of every task of the evaluation: its tokens, times what one took just now.

    python -m apps.evaluate --list --run RUN
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping

import numpy as np

from autograd import no_grad
from hope import Hope
from tools.console import duration


def contexts(given: argparse.Namespace, model: Hope) -> tuple[int, ...]:
    """The bytes in which needles and passkeys are hidden, if none are asked for: all of them fit into 160."""
    return given.contexts or tuple(max(model.config.segment, 160) << i for i in range(4))


def tokens(task: str, given: argparse.Namespace, model: Hope) -> tuple[int, int]:
    """How many tokens a task reads, and how many it is trained on, with these flags."""
    segment, steps = model.config.segment, given.steps
    lengths = contexts(given, model)
    sizes = {"recall": [12 * n for n in given.pairs], "needle": [*lengths] * 3, "passkey": [*lengths]}
    if task in sizes:
        return sum(sizes[task]) * given.batch * given.samples, max(steps, 0) * given.batch * sizes[task][0]
    steps = 200 if steps < 0 else steps
    if task == "languages":
        return 6 * 32 * sum(given.lengths), steps * 6 * given.batch * given.lengths[0]
    if task == "forgetting":  # two texts of two files, before, between and after
        return 3 * 2 * 8 * given.batch * segment, 2 * steps * given.batch * segment
    return 2 * given.limit, 0


def listed(given: argparse.Namespace, model: Hope, tasks: Mapping[str, Callable[..., object]]) -> str:
    """Every task, about how long it would take here, and what it asks: one segment is timed, there and back."""
    text = np.random.default_rng(0).integers(0, model.config.vocabulary, (1, model.config.segment + 1))
    for _ in range(2):  # the first time compiles
        started = time.perf_counter()
        with no_grad():
            model.loss(text)
        read = (time.perf_counter() - started) / model.config.segment
        started = time.perf_counter()
        model.loss(text)[0].backward()
        trained = (time.perf_counter() - started) / model.config.segment
    rows = []
    for name, task in tasks.items():
        about = " ".join((task.__doc__ or "").split("\n\n")[0].split()).rstrip(".")
        if name == "multiple-choice":
            found = f"{duration(1e3 * read)} per kB"
        else:
            n, m = tokens(name, given, model)
            found = duration(n * read + m * trained)
        rows.append((name, found, about))
    rows += [("optimisers", "see its flags", "Which optimiser suits a setting: a sweep of rates, then several seeds"),
             ("claims", "see claims --list", "What the paper claims, in small")]
    return "\n".join(f"{name:16} {takes:20} {about}" for name, takes, about in rows)
