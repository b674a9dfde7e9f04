"""What is this model?  How long it was trained, on what, how well, and what to try with it: read from a run's folder.

    about = About.of(run.folder)
    about.sentence    "500 steps on Python's documentation and library, 1.96 bits per byte of text it has not seen"
    about.examples    beginnings of texts of the kind it knows
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.folder import log_lines, ours, read_json

PYTHON = ("def main(", "import os\n", "class Node:\n    ")  # for the text that every Python brings along
PLAIN = ("The ", "It was ", "In the ")  # for any other, where the run has no sample


@dataclass(frozen=True)
class About:
    """What a run's folder tells of its training; zeros and "" where it tells nothing."""

    preset: str = ""
    steps: int = 0
    corpus: str = ""
    bits_per_byte: float = 0.0
    held_out: bool = False  # measured on text that it has not seen
    examples: tuple[str, ...] = PLAIN

    @classmethod
    def of(cls, folder: Path) -> About:
        try:
            found = read_json(folder / "config.json")
            training, preset = dict(found["training"]), str(found["preset"])
            paths, noise = [Path(path).name for path in training["data"]], training.get("random_data", False)
        except (ValueError, KeyError, TypeError, OSError):  # a checkpoint alone, or no run's settings
            return cls()
        lines: list[dict[str, Any]] = []
        with suppress(ValueError):  # whose log is damaged may still be talked to
            lines = [line for line in log_lines(folder) if ours(line)]
        corpus = "random bytes" if noise else "Python's documentation and library" if not paths else (
            paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more")
        bits, held_out = score(lines)
        adopted = not lines and (folder / "adopted.json").exists()  # others trained it, on text of any kind
        tried = PLAIN if noise or adopted else beginnings(folder) if paths else PYTHON
        return cls(preset, lines[-1]["step"] if lines else 0, corpus, bits, held_out, tried)

    @property
    def sentence(self) -> str:
        """Training in a few words; "" if nothing is known."""
        if not self.steps:
            return ""
        score = f", {self.bits_per_byte:.2f} bits per byte" if self.bits_per_byte else ""
        where = " of text it has not seen" if self.held_out else " in training" if score else ""
        return f"{self.steps:,} steps on {self.corpus}{score}{where}"

    @property
    def example(self) -> str:
        """Something short to try, on one line."""
        return self.examples[0].strip()


def score(lines: list[dict[str, Any]]) -> tuple[float, bool]:
    """Bits per byte, and whether on text that was held out: the last that was measured, else the last 20 steps'."""
    for line in reversed(lines):
        if "validation_bits_per_byte" in line:
            return float(line["validation_bits_per_byte"]["this run"]), True
        if "validation" in line:
            return float(line["validation"]), True
    last = [float(line["bits_per_byte"]) for line in lines if "bits_per_byte" in line][-20:]
    return (sum(last) / len(last) if last else 0.0), False


def beginnings(folder: Path) -> tuple[str, ...]:
    """The first words of lines that the run's sample goes on from; PLAIN if there is none."""
    try:
        text = (folder / "sample.txt").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return PLAIN
    prompt = text.rpartition("\n\nstep ")[2].partition(" ▶ ")[0].partition(": ")[2]
    lines = dict.fromkeys(" ".join(line.split()[:4]) for line in prompt.splitlines() if len(line.split()) > 1)
    return (*lines, *PLAIN)[:3]


def facts(about: About) -> dict[str, Any]:
    """The same for a program."""
    return json.loads(json.dumps(vars(about))) | {"sentence": about.sentence}
