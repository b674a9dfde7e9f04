"""What is timed?  One program in a process of its own, which does its work when it is asked to.

BLAS and OpenMP read their number of threads once, while they are imported, and a library's threads may spin
where another's should run. So everything that is compared lives in its own process, one working at a time.

A program is made by a function, named "module:function", that returns a `Contender`. This file imports
neither our engine nor another's: what a program needs, its function imports.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Contender(NamedTuple):
    """A program to be timed."""

    step: Callable[..., Any]  # the work, once; what it returns is passed on, so JSON must be able to hold it
    answer: Callable[[], dict[str, np.ndarray]] | None = None  # what must be the same in all that is compared
    about: dict[str, Any] | None = None  # what else is worth knowing about it


def peak_memory() -> int:
    """The most memory this process ever had resident, in bytes."""
    try:  # ru_maxrss would include the parent's, from before this process became another program
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return 1024 * int(status.split("VmHWM:")[1].split()[0])
    except (OSError, IndexError):
        import psutil

        found = psutil.Process().memory_info()
        return getattr(found, "peak_wset", found.rss)


def build(path: str, arguments: dict[str, Any]) -> Contender:
    """The program that "module:function" makes."""
    module, _, function = path.partition(":")
    return getattr(importlib.import_module(module), function)(**arguments)


def scheduled(trainer: Any, batches: Any, nats: Callable[[], float], steps: int, warmup: int, final: float
              ) -> Contender:
    """Training for so many steps: asked to work, it takes one, or all up to the step that is named.

    The rate rises for `warmup` steps and falls as a cosine of them to `final` times the highest. What comes back is the
    number of steps taken and, of those up to a step, the bits per byte after them, by `nats`.
    """
    def step(until: int = 0) -> dict[str, float]:
        for _ in range(max(until - trainer.clock, 0) if until else 1):
            cosine = (1 + math.cos(math.pi * min(trainer.clock / steps, 1.0))) / 2
            scale = min(1.0, (trainer.clock + 1) / warmup) * (final + (1 - final) * cosine)
            trainer.step(batches[trainer.clock % len(batches)], scale)
        return {"steps": trainer.clock, **({"bits": nats() / math.log(2)} if until else {})}
    return Contender(step)


def serve() -> None:
    """Answer one line of JSON with another, until there are no more.

    {"build": path, "arguments": {…}}, then any number of {"steps": n, "arguments": {…}} and
    {"answer": file}; every reply tells the peak of memory so far.
    """
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints does not get between
    contender: Any = None
    for line in sys.stdin:
        asked: dict[str, Any] = json.loads(line)
        reply: dict[str, Any] = {"times": [], "values": []}
        try:
            if "build" in asked:
                contender = build(asked["build"], asked["arguments"])
                reply["about"] = contender.about
            elif "answer" in asked:
                np.savez(asked["answer"], **contender.answer())
            for _ in range(asked.get("steps", 0)):
                started = time.perf_counter()
                value = contender.step(**asked["arguments"])
                reply["times"].append(time.perf_counter() - started)
                reply["values"].append(value)
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        print(json.dumps(reply | {"peak": peak_memory()}), file=replies, flush=True)
