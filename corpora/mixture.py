"""What is mixed?  Sources with weights, named on the command line or written in JSON or YAML.

    validation: 0.01              share of the documents held out, by their own hash
    sources:
      manuals: {paths: text/manuals.jsonl.zst, weight: 2}
      wiki: {dataset: wikipedia, splits: [train, validation], column: text, limit: 100000, weight: 1}

Paths are relative to the file's own folder. Without weights each source weighs as many tokens as it has.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from corpora import sources
from corpora.sources import Source

VALIDATION = 0.01
NAMES = {field.name for field in fields(Source)} - {"name"}


@dataclass(frozen=True)
class Mixture:
    """Sources, and the share of documents that is held out."""

    sources: tuple[Source, ...]
    validation: float = VALIDATION

    def __post_init__(self) -> None:
        names = [source.name for source in self.sources]
        if not names:
            raise ValueError("no sources given: name files, folders, globs, dataset:NAME, or a mixture in JSON or YAML")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two sources are called {', '.join(twice)}: give each its own name in a mixture file")
        if not 0 < self.validation < 1:
            raise ValueError(f"validation is {self.validation}: between 0 and 1 is needed, such as {VALIDATION}")
        given = [source.weight for source in self.sources if source.weight is not None]
        if given and (len(given) < len(names) or min(given) <= 0):
            raise ValueError("give every source a weight above 0, or none of them")

    def shares(self) -> dict[str, float]:
        """The weights, adding up to one; equal where there are none."""
        weights = {source.name: source.weight or 1.0 for source in self.sources}
        return {name: weight / sum(weights.values()) for name, weight in weights.items()}


def read(given: Sequence[str], validation: float | None = None) -> Mixture:
    """The mixture in one file of JSON or YAML, or of the sources named."""
    if len(given) == 1 and Path(given[0]).suffix.lower() in (".json", ".yaml", ".yml"):
        found = written(Path(given[0]))
    else:
        found = Mixture(tuple(map(sources.of, given)))
    return found if validation is None else replace(found, validation=validation)


def written(path: Path) -> Mixture:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from None
    parse = json.loads if path.suffix.lower() == ".json" else sources.needed("yaml", path).safe_load
    try:
        found = parse(text)
    except Exception as error:  # YAML has its own
        raise ValueError(f"{path} is no {path.suffix[1:].upper()}: {' '.join(str(error).split())}") from None
    known(path, "the mixture", found, {"sources", "validation"})
    entries = found.get("sources")
    if isinstance(entries, dict):
        entries = [{"name": name} | (entry if isinstance(entry, dict) else {"paths": entry})
                   for name, entry in entries.items()]
    if not isinstance(entries, list):
        raise ValueError(f"{path} has no list of sources")
    share = number(path, "validation", found.get("validation", VALIDATION))
    try:
        return Mixture(tuple(source(path, n, entry) for n, entry in enumerate(entries)), share)
    except ValueError as error:
        raise ValueError(f"{path}: {error}".replace(f"{path}: {path}", str(path))) from None


def known(path: Path, what: str, found: Any, names: set[str]) -> None:
    """ValueError unless this is an object that has no other names."""
    if not isinstance(found, dict):
        raise ValueError(f"{path}: {what} is a {type(found).__name__}, not names with values")
    for name in map(str, found):
        if name not in names:
            near = get_close_matches(name, names, 1) or sorted(names)
            raise ValueError(f"{path}: {what} has no {name!r}; did you mean {' or '.join(near)}?")


def number(path: Path, what: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{path}: {what} is {value!r}, not a number")
    return float(value)


def source(path: Path, n: int, entry: Any) -> Source:
    """One entry of a mixture."""
    what = f"source {entry.get('name', n) if isinstance(entry, dict) else n}"
    known(path, what, entry, NAMES | {"name", "split"})
    paths, name = strings(path, what, entry.get("paths", ())), entry.get("name", "")
    splits = strings(path, what, entry.get("splits", entry.get("split", ())))
    texts = {key: entry.get(key) or "" for key in ("dataset", "config", "column")}
    if wrong := [key for key, value in ({"name": name} | texts).items() if not isinstance(value, str)]:
        raise ValueError(f"{path}: {what}: {wrong[0]} is {entry[wrong[0]]!r}, not text")
    if bool(paths) == bool(texts["dataset"]):
        raise ValueError(f"{path}: {what} needs either paths or a dataset")
    if paths and (splits or texts["config"]):
        raise ValueError(f"{path}: {what}: splits and config belong to a dataset, not to paths")
    limit = number(path, f"{what}: limit", entry.get("limit") or 0)
    if limit < 0 or limit != int(limit):
        raise ValueError(f"{path}: {what}: limit is {entry['limit']}, not a number of documents")
    weight = entry.get("weight")
    local = Path(texts["dataset"] or ".")
    if texts["dataset"] and (path.parent / local).exists():
        texts["dataset"] = str(path.parent / local)
    return Source(name or sources.of((paths or (texts["dataset"],))[0]).name,
                  tuple(str(path.parent / Path(p).expanduser()) for p in paths), splits=splits, limit=int(limit),
                  weight=None if weight is None else number(path, f"{what}: weight", weight), **texts)


def strings(path: Path, what: str, value: Any) -> tuple[str, ...]:
    found = (value,) if isinstance(value, str) else value
    if not isinstance(found, list | tuple) or not all(isinstance(one, str) for one in found):
        raise ValueError(f"{path}: {what}: {value!r} is neither text nor a list of texts")
    return tuple(found)
