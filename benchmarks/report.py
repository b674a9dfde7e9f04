"""What was found?  Tables of numbers, targets and whether they are met, as JSON and in README.md.

README.md holds the latest result of every benchmark, between two markers, made from results.json: nothing in
these tables is written by hand.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
AVX2 = ", AVX2"  # what a result's name ends with if a machine without AVX-512 was imitated
BEGIN, END = "<!-- results: python -m benchmarks --readme -->\n", "\n<!-- end of results -->"


@dataclass
class Target:
    """A number that was aimed at; `met` is None if it could not be measured."""

    what: str
    wanted: str
    measured: str
    met: bool | None

    @classmethod
    def least(cls, what: str, value: float | None, least: float, unit: str = "") -> Target:
        """At least so much is wanted."""
        return cls._of(what, value, f"≥ {cell(least)}{unit}", unit, lambda v: v >= least)

    @classmethod
    def most(cls, what: str, value: float | None, most: float, unit: str = "") -> Target:
        """At most so much is wanted."""
        return cls._of(what, value, f"≤ {cell(most)}{unit}", unit, lambda v: v <= most)

    @classmethod
    def _of(cls, what: str, value: float | None, wanted: str, unit: str, met: Any) -> Target:
        if value is None or math.isnan(value):
            return cls(what, wanted, "not measured", None)
        return cls(what, wanted, f"{cell(value)}{unit}", bool(met(value)))


@dataclass
class Table:
    """Rows of numbers and words under names."""

    title: str
    columns: list[str]
    rows: list[list[Any]] = field(default_factory=list)


@dataclass
class Result:
    """What one benchmark found."""

    name: str
    tables: list[Table]
    targets: list[Target] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    others: float | None = None  # share of the machine that other programs took

    def finished(self, command: str, seconds: float) -> dict[str, Any]:
        """As JSON, with all that one needs to do it again."""
        from tools import machine

        versions = machine.versions()
        for package in ("torch", "transformers", "jax"):
            with suppress(importlib.metadata.PackageNotFoundError):
                versions[package] = importlib.metadata.version(package)
        return asdict(self) | {"date": time.strftime("%Y-%m-%d"), "command": command, "seconds": seconds,
                               "machine": machine.machine(), "versions": versions}


def cell(value: Any) -> str:
    """A number as one reads it: three digits that count."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, float) and value and abs(value) < 1000:
        digits = max(0, 2 - math.floor(math.log10(abs(value))))
        text = f"{value:.{digits}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    return f"{value:,.0f}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)


def markdown(columns: list[str], rows: list[list[Any]]) -> str:
    lines = [columns, ["---"] * len(columns), *([cell(v) for v in row] for row in rows)]
    return "\n".join("| " + " | ".join(text.replace("|", "\\|") for text in line) + " |" for line in lines)


def section(name: str, found: dict[str, Any]) -> str:
    """One benchmark's part of the page; that of the other kind of machine is folded."""
    versions = ", ".join(f"{package} {version}" for package, version in found["versions"].items())
    busy = found["others"]
    noise = "" if busy is None or math.isnan(busy) else f" Other programs took {busy:.0%} of the machine."
    parts = [f"### {name}", f"`{found['command']}`, {found['date']}, {found['seconds']:.0f} s, on "
             f"{found['machine']} ({versions}).{noise}"]
    for table in found["tables"]:
        parts += [f"**{table['title']}**", markdown(table["columns"], table["rows"])]
    parts += [f"- {note}" for note in found["notes"]]
    if name.endswith(AVX2):
        parts = [parts[0], f"<details><summary>{name}</summary>", *parts[1:], "</details>"]
    return "\n\n".join(parts).replace("\n\n- ", "\n- ")


def page(results: dict[str, dict[str, Any]]) -> str:
    """All results: first the targets, then every benchmark."""
    if not results:
        return "Nothing has been measured yet: `python -m benchmarks --readme`, on a quiet machine."
    words = {True: "yes", False: "no", None: "–"}
    rows: dict[tuple[str, str], list[str]] = {}
    for name, found in results.items():
        kind = int(name.endswith(AVX2))
        for t in found["targets"]:
            one = name.removesuffix(AVX2)
            row = rows.setdefault((one, t["what"]), [f"[{one}](#{one})", t["what"], t["wanted"], *"––––"])
            row[3 + 2 * kind:5 + 2 * kind] = t["measured"], words[t["met"]]
    targets = markdown(["benchmark", "target", "wanted", "measured", "met", "with AVX2", "met"], list(rows.values()))
    return "\n\n".join([targets, *(section(name, found) for name, found in results.items())])


def read(path: Path) -> dict[str, dict[str, Any]]:
    """The results in a JSON file, none if there is no such file; ValueError if it holds something else."""
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(found, dict) or not all(isinstance(v, dict) and "tables" in v for v in found.values()):
        raise ValueError(f"{path} does not hold results of benchmarks; give another file")
    return found


def merge(path: Path, new: dict[str, dict[str, Any]], order: list[str]) -> dict[str, dict[str, Any]]:
    """Write new results into a JSON file, beside those of other benchmarks that it holds."""
    found = read(path) | new
    found = {name: found[name] for name in order if name in found}
    beside = path.with_name(path.name + ".part")
    beside.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    beside.replace(path)
    return found


def rewrite(readme: str, results: dict[str, dict[str, Any]]) -> str:
    """The text of README.md with these results between its markers."""
    if readme.count(BEGIN) != 1 or readme.count(END) != 1:
        raise ValueError(f"README.md must hold {BEGIN.strip()!r} and {END.strip()!r} once each")
    start = readme.index(BEGIN) + len(BEGIN)
    return readme[:start] + page(results) + readme[readme.index(END):]
