"""Which of several choices does a model find likeliest?  Questions from a file, scored by likelihood.

    {"context": "1 + 1 =", "choices": [" 2", " 3"], "answer": 0}      one a line
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from hope import Hope


def multiple_choice(given: argparse.Namespace, model: Hope) -> dict[str, Any]:
    """Questions with choices: how often the likeliest choice, plain or per byte, is right."""
    if not given.questions:
        raise ValueError('give --questions FILE, with lines like {"context": "1 + 1 =", "choices": [" 2", '
                         '" 3"], "answer": 0}')
    right: dict[str, list[bool]] = {"plain": [], "per byte": []}
    reader, asked, words = given.reader(model), list(questions(Path(given.questions))), given.words
    begin = [] if words.unit == "byte" or words.start is None else [words.start]
    for context, choices, answer in tqdm(asked, disable=given.quiet):
        reader.begin()
        head, at = np.append(begin, words.encode(context.encode())).astype(np.int64), 0
        while len(head) - at > reader.segment:  # all but what the choices follow directly
            reader.step(head[None, at:at + reader.segment + 1])
            at += reader.segment
        before, nats = reader.state, []
        for choice in choices:
            tail = words.encode(choice.encode())
            if not words.count(tail):
                raise ValueError(f"the choice {choice!r} spells nothing in the words of this model; give it letters")
            reader.state = before
            found = reader.step(np.concatenate([head[at:], tail])[None])[0][0]
            nats.append((float(np.sum(found[-len(tail):])), words.count(tail)))
        reader.state = before
        if len(head) - at > 1:
            reader.step(head[None, at:])
        right["plain"].append(int(np.argmin([n for n, _ in nats])) == answer)
        right["per byte"].append(int(np.argmin([n / size for n, size in nats])) == answer)
    found = {name: float(np.mean(hits)) for name, hits in right.items()}
    found["chance"] = float(np.mean([1 / len(choices) for _, choices, _ in asked]))
    return {"head": ["score", "share right"], "rows": [[name, value] for name, value in found.items()],
            "results": found | {"questions": len(asked)}, "lines": {n: [v, v] for n, v in found.items()},
            "x": ("", [0, 1]), "y": "share right"}


def questions(path: Path) -> Iterator[tuple[str, list[str], int]]:
    """The lines of a file, checked; ValueError names the first line that is not a question."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # and at nothing else that JSON may hold
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield question(json.loads(line))
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}, line {number}: {error}") from None
    if not any(map(str.strip, lines)):
        raise ValueError(f"{path} is empty; give at least one question")


def question(found: Any) -> tuple[str, list[str], int]:
    """A context, its choices and the number of the right one; ValueError says what is missing."""
    if not isinstance(found, dict):
        raise ValueError("a question is an object with context, choices and answer")
    context, choices, answer = (found.get(name) for name in ("context", "choices", "answer"))
    if not (isinstance(context, str) and context):
        raise ValueError(f"context is {context!r}; it must be a text that the choices follow")
    if not (isinstance(choices, list) and len(choices) > 1 and all(isinstance(c, str) and c for c in choices)):
        raise ValueError(f"choices is {choices!r}; it must be a list of two texts or more, none empty")
    if not (type(answer) is int and 0 <= answer < len(choices)):
        raise ValueError(f"answer is {answer!r}; it must be the number of a choice, from 0 to {len(choices) - 1}")
    return context, choices, answer
