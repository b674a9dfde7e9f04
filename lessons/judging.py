"""How is an answer judged?  On random inputs, beside the project's own, and beside what the usual mistakes give.

What is said is how far off an answer is and, when it is exactly what one of the usual mistakes would give, which.
What is asked stands in check.py. Importing this file also lets a lesson find the project's files, and sets the size
of its pictures.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read as NumPy is loaded: matrices are small here
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402

import autograd  # noqa: E402
from autograd import Tensor  # noqa: E402

plt.rcParams.update({"figure.figsize": (7, 3), "figure.dpi": 80, "figure.constrained_layout.use": True,
                     "axes.spines.top": False, "axes.spines.right": False, "font.size": 9})

TRIALS = 8  # random inputs that an answer has to be right on


@dataclass(frozen=True)
class Exercise:
    """What a lesson asks: inputs to try, the project's answer, and what comes out of the usual mistakes."""

    lesson: int
    inputs: Callable[[np.random.Generator], tuple]
    answer: Callable
    mistakes: dict[str, Callable]  # by what is said of them
    tolerance: float


EXERCISES: dict[str, Exercise] = {}


def exercise(lesson: int, inputs: Callable[[np.random.Generator], tuple], mistakes: dict[str, Callable],
             tolerance: float = 1e-6) -> Callable:
    """Make a checker, which prints what `judge` says, of a function that computes the answer."""
    def decorate(answer: Callable) -> Callable:
        name = answer.__name__
        EXERCISES[name] = Exercise(lesson, inputs, answer, mistakes, tolerance)

        @functools.wraps(answer)
        def checker(yours: Callable) -> None:
            print(f"{name}: {judge(name, yours)[1]}")
        return checker
    return decorate


def judge(name: str, yours: Callable) -> tuple[bool, str]:
    """Whether a function is right, and what is to be said of it in one sentence or two."""
    asked, off = EXERCISES[name], 0.0
    made = [asked.inputs(np.random.default_rng(trial)) for trial in range(TRIALS)]
    right = [parts(asked.answer(*copied(given))) for given in made]
    found = []
    for given, wanted in zip(made, right, strict=True):
        before = copied(given)
        with untouched(), np.errstate(all="ignore"):
            try:
                result = yours(*given)
            except Exception as error:
                return False, stopped(yours, error)
        if any(isinstance(x, np.ndarray) and not np.array_equal(x, y, equal_nan=True)
               for x, y in zip(given, before, strict=True)):
            return False, "not yet. It writes into what it was given; make a new array (x = x + …, not x += …)."
        if problem := unusable(result, wanted):
            return False, problem + named(asked, made, [*found, parts(result, strict=False)])
        found.append(parts(result))
        off = max(off, *(distance(mine, its) for mine, its in zip(found[-1], wanted, strict=True)))
    if off <= asked.tolerance:
        return True, f"right, on {TRIALS} random inputs."
    if not np.isfinite(off):
        return False, "not yet. What it gives back is not finite." + named(asked, made, found)
    hint = named(asked, made, found) or multiple(found, right)
    return False, f"not yet. The largest error is {off:.0%} of the largest number in the answer.{hint}"


def copied(given: tuple) -> list:
    """The same inputs in arrays of their own: the project's optimisers write into what they remember."""
    return [x.copy() if isinstance(x, np.ndarray) else x for x in given]


def stopped(yours: Callable, error: Exception) -> str:
    """What is said of a function that raised something."""
    if "ellipsis" in str(error).lower() or Ellipsis in getattr(getattr(yours, "__code__", None), "co_consts", ()):
        return f"there is still a blank (...) in it; it stopped with {type(error).__name__}."
    return f"not yet. It stopped with {type(error).__name__}: {error}".rstrip(".") + "."


def unusable(result: Any, wanted: list[np.ndarray]) -> str:
    """Why a result cannot be compared with the answer; "" if it can."""
    whole = result if isinstance(result, (tuple, list)) else [result]
    if any(part is Ellipsis for part in whole):
        return "there is still a blank (...) in it."
    if any(part is None for part in whole):
        return "not yet. It gives back nothing; is a return missing?"
    if isinstance(result, list) and len(result) == len(wanted) > 1:
        return "not yet. It gives back a list of them; write return a, b without brackets."
    try:
        shapes = [part.shape for part in parts(result)]
    except (TypeError, ValueError):
        return f"not yet. It gives back {type(result).__name__}, which is no array of numbers."
    if shapes == (expected := [part.shape for part in wanted]):
        return ""
    if len(shapes) > len(expected) == 1:
        return f"not yet. It gives back {len(shapes)} and is asked for 1: write a list, an array or a number, no tuple."
    if len(shapes) != len(expected):
        return f"not yet. It gives back {len(shapes)} and is asked for {len(expected)} arrays or numbers."
    return "not yet. The shape is " + ", ".join(
        f"{mine or 'that of one number'} where {its or 'one number'} is expected"
        for mine, its in zip(shapes, expected, strict=True) if mine != its) + "."


def parts(result: Any, strict: bool = True) -> list[np.ndarray]:
    """What a function gives back, one array of float64 for each thing."""
    whole = result if isinstance(result, tuple) else (result,)
    try:
        return [np.asarray(x.data if isinstance(x, Tensor) else x, dtype=np.float64) for x in whole]
    except (TypeError, ValueError):
        if strict:
            raise
        return []


def named(asked: Exercise, made: list[tuple], found: list[list[np.ndarray]]) -> str:
    """The usual mistake that gives exactly these results; "" if none does."""
    for words, mistake in asked.mistakes.items():
        with np.errstate(all="ignore"):
            wrong = [parts(mistake(*copied(given))) for given in made[:len(found)]]
        if all(len(a) == len(b) and all(
                x.shape == y.shape and np.allclose(x, y, 2 * asked.tolerance, 1e-9, equal_nan=True)
                for x, y in zip(a, b, strict=True)) for a, b in zip(found, wrong, strict=True)):
            return f" It looks as if {words}."
    return ""


def distance(mine: np.ndarray, its: np.ndarray) -> float:
    """The largest error, relative to the largest number in the answer (or to 1, if all of it is 0)"""
    if not np.all(np.isfinite(mine)):
        return np.inf
    return float(np.max(np.abs(mine - its), initial=0) / (np.max(np.abs(its), initial=0) or 1))


def multiple(found: list[list[np.ndarray]], right: list[list[np.ndarray]]) -> str:
    """Whether all results are one and the same multiple of the answers."""
    mine, its = (np.concatenate([part.ravel() for trial in whole for part in trial]) for whole in (found, right))
    c = float(mine @ its / max(its @ its, 1e-300))
    if abs(c) < 1e-9 or not np.allclose(mine, c * its, 1e-6, 1e-9):
        return ""
    return " Only the sign is wrong." if np.isclose(c, -1) else f" Everything is {c:.4g} times what it should be."


@contextmanager
def untouched() -> Iterator[None]:
    """Operations that an answer defines are forgotten again."""
    before = dict(autograd.OPS)
    try:
        yield
    finally:
        autograd.OPS.clear()
        autograd.OPS.update(before)
