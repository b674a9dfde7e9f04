"""What does a run leave on the disk?  A folder that is its own: settings, a log, checkpoints, pictures, samples.

    config.json       settings, data, versions: all that is needed to do the same again
    log.jsonl         a line per step, one per validation, one at the end
    checkpoint.npz    the last checkpoint; with --keep N also checkpoint-STEP.npz, the last N, and best.npz
    sample.txt, loss.png, levels.png

What must not be lost is written beside, synced and renamed: at every moment it is either the old or the new, whole.
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from config import Config, Training
from data import Vocabulary
from shards import TOKENIZERS, VOCABULARY, Words
from state import replacing
from tools.machine import machine, versions

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

ADOPTED = "adopted.json"
HANDED_DOWN = (VOCABULARY, *TOKENIZERS, ADOPTED)


@contextmanager
def made(folder: Path, exact: bool = True) -> Iterator[Path]:
    """Make a folder that nobody else has, this one or (not `exact`) the first free of folder, folder-2, folder-3 …

    What cannot be begun within leaves nothing behind. ValueError if the folder is in use or cannot be made.
    """
    existed, new = exact and folder.exists(), [path for path in folder.parents if not path.exists()]
    try:
        folder = taken(folder) if exact else next(filter(None, map(free, names(folder))))
    except OSError as error:
        raise ValueError(f"{folder} cannot be made ({error.strerror}); choose another --out") from None
    try:
        yield folder
    except BaseException:
        for path in folder.iterdir():
            path.unlink()
        with suppress(OSError):  # others may have come to live there
            for path in [] if existed else [folder, *new]:
                path.rmdir()
        raise


def names(folder: Path) -> Iterator[Path]:
    yield folder
    yield from (folder.with_name(f"{folder.name}-{n}") for n in itertools.count(2))


def free(folder: Path) -> Path | None:
    """The folder, if it could be made here and now."""
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        return None
    return folder


def taken(folder: Path) -> Path:
    """The folder, new or empty so far, with a file in it that nobody else could make."""
    trained = (folder / "checkpoint.npz").exists()
    in_use = ValueError(f"{folder} is in use; choose another --out"
                        + f", or go on with it: python train.py --resume {folder}" * trained)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise in_use
    folder.mkdir(parents=True, exist_ok=True)
    try:
        (folder / "config.json").touch(exist_ok=False)
    except FileExistsError:
        raise in_use from None
    return folder


@contextmanager
def locked(folder: Path, doing: str = "training") -> Iterator[None]:
    """Within, no other process does this in the folder, as far as the system has such locks; ValueError if one does."""
    if not fcntl or not folder.is_dir():
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"another process is {doing} in {folder}; wait for it, or stop it") from None
        yield
    finally:
        os.close(handle)


def expect_writable(folder: Path, flag: str = "--out") -> None:
    """ValueError, before anything was done, unless files can be made in this folder, or it where they can."""
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.exists(path))
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        what = "not yours" if place.is_dir() else "a file"
        raise ValueError(f"nothing can be written to {folder}: {place} is {what}; choose another {flag}")


def describe(folder: Path, preset: str, config: Config, training: Training, data: dict[str, Any]) -> None:
    """Write config.json: all that is needed to do the same again."""
    write_text(folder / "config.json", json.dumps(
        {"preset": preset, "config": asdict(config), "training": asdict(training), "data": data,
         "versions": versions(), "machine": machine()}, indent=1))


def vocabulary(folder: Path) -> Vocabulary:
    """What the tokens of a run stand for: bytes, those of the shards it reads, or of the model that was adopted in it.
    """
    if (folder / VOCABULARY).exists():
        return Words(folder)
    if not (folder / ADOPTED).exists():
        return Vocabulary()
    words: Vocabulary = importlib.import_module("apps.adopt.words").Words(folder)  # by name only: it is a room's
    return words


def hand_down(origin: Path, folder: Path) -> None:
    """What a run needs of the folder of its shards, or of the run that it starts from: the files of a vocabulary."""
    for name in HANDED_DOWN:
        if (origin / name).exists():
            shutil.copyfile(origin / name, folder / name)


def expect_data(folder: Path, saved: dict[str, Any], now: dict[str, Any], by_default: bool) -> None:
    """ValueError, with what can be done, unless the data is that with which the run in this folder began."""
    then = saved["data"]
    if now["sha256"] == then["sha256"]:
        return
    if by_default:
        why, remedy = f"the library of Python {saved['versions']['python']}", "go on with that Python"
    else:
        known = then.get("documents", {})  # the demonstration names none
        names = [name for name in {**known, **now["documents"]} if known.get(name) != now["documents"].get(name)]
        why = f"{len(names)} files are others, such as {names[0]}" if names else "the same names, other contents"
        remedy = "say with --data where it lies"
    raise ValueError(f"the data is not what this run began with ({why}): {remedy}, or start from its weights: "
                     f"--from {folder}")


# Text -------------------------------------------------------------------------------------------------------


def append(path: Path, text: str) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(text)


def name_again(path: Path, other: Path) -> None:
    """Give a file another name, in place of what had it: for the same bytes where that is possible, else for a copy."""
    beside = other.with_name(other.name + ".part")
    beside.unlink(missing_ok=True)
    try:
        os.link(path, beside)
    except OSError:  # a file system without such
        shutil.copy2(path, beside)
    os.replace(beside, other)


def write_text(path: Path, text: str) -> None:
    """Write a file that is at every moment either the old one or the new one, whole."""
    with replacing(path) as file:
        file.write(text.encode("utf-8"))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; ValueError if there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ValueError(f"there is no file {path}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f'{path} holds a {type(found).__name__}, not settings such as {{"width": 64}}')
    return found


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The steps in log.jsonl, up to a line that a full disk or a power cut left unfinished."""
    return [line for line in log_lines(folder) if "loss" in line]


def log_lines(folder: Path) -> list[dict[str, Any]]:
    """All lines of log.jsonl, up to an unfinished one at its end; ValueError for one within that is none."""
    path, lines = folder / "log.jsonl", []
    pieces = path.read_bytes().split(b"\n") if path.exists() else []
    for number, piece in enumerate(pieces, 1):
        try:
            line = json.loads(piece)
        except (ValueError, RecursionError):
            line = None
        if isinstance(line, dict):
            lines.append(line)
        elif piece.strip() and number < len(pieces):
            raise ValueError(f"{path}, line {number} is not a line of a log: mend it, or take it out")
    return lines


def ours(line: dict[str, Any]) -> bool:
    """Whether a run wrote this line."""
    return isinstance(line.get("step"), int)


def rewind(folder: Path, step: int) -> list[dict[str, Any]]:
    """Let log.jsonl end where a checkpoint was taken; its lines. One without a step is somebody's own, and stays."""
    kept = [line for line in log_lines(folder)
            if not ours(line) or (line["step"] <= step and "seconds" not in line)]
    write_text(folder / "log.jsonl", "".join(json.dumps(line) + "\n" for line in kept))
    return [line for line in kept if ours(line)]
