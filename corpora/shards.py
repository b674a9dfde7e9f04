"""How does text become tokens on a disk?  Documents in units, each unit a shard per split, all of them in an index.

    index.json          format, vocabulary, shards with their checksums, sources with their statistics
    vocabulary.json     and the file that encodes, copied: the folder is whole
    train-00000.npy     one-dimensional little-endian uint16; after every document the end token
    progress.jsonl      while it is made: a line per unit that is on the disk

A unit is cut by the text alone, so how many processes encode changes no byte. A killed run goes on after its last unit.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from corpora.mixture import Mixture
from corpora.pool import ordered
from corpora.sources import Document, Source, documents, fingerprint
from corpora.vocabulary import Encoder, encoder
from data import PART
from shards import DTYPE, FORMAT, INDEX, VERSION, VOCABULARY, digest
from tools.folder import locked, read_json, write_text

PROGRESS = "progress.jsonl"
UNIT = 64 << 20  # bytes of text in a unit
SPLITS = ("train", "validation")


@dataclass
class Unit:
    """Documents of one source that become shards together; `last` if the source ends with it."""

    number: int
    source: str
    documents: list[Document]
    last: bool


def write(folder: Path, tokenizer: Path, mixture: Mixture, unit: int = UNIT, processes: int = 1,
          told: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Write the shards of a mixture, or go on where that was broken off; returns the index.

    ValueError if the folder is in use for something else, if a source is bad, if nothing would be held out.
    """
    if unit < 1:
        raise ValueError(f"a unit of {unit} bytes is too small")
    words = encoder(tokenizer.resolve())
    made_of = {"vocabulary": words.sha256, "unit": unit, "validation": mixture.validation, "sources": [
        asdict(source) | {"weight": None, "files": fingerprint(source)} for source in mixture.sources]}
    made_of = {"made of": hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()}
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, "writing shards"):
        done = begun(folder, made_of)
        before = read_json(folder / INDEX) if (folder / INDEX).exists() else None
        if not before:
            for name in (VOCABULARY, words.file):
                shutil.copyfile(words.folder / name, folder / name)
            if done:
                told(f"going on after {len(done)} units")
            where = str(folder), str(words.folder)
            pieces = ((*where, found, mixture.validation) for found in units(mixture, unit, done))
            for record in ordered(encode, pieces, processes):
                append(folder / PROGRESS, record)
                done.append(record)
                told(f"unit {record['unit']:05d} of {record['source']}: {record['documents']:,} documents, "
                     f"{sum(shard['tokens'] for shard in record['shards']):,} tokens")
        index = indexed(mixture, words, done, before) | made_of
        write_text(folder / INDEX, json.dumps(index, indent=1))
        (folder / PROGRESS).unlink(missing_ok=True)
    return index


def begun(folder: Path, made_of: dict[str, Any]) -> list[dict[str, Any]]:
    """What is on the disk already: the records of its units; leftovers of a broken one are removed."""
    if (folder / INDEX).exists():
        if read_json(folder / INDEX).get("made of") != made_of["made of"]:
            raise ValueError(f"{folder} holds other shards; choose another --out")
        return []
    path = folder / PROGRESS
    if not path.exists():
        if other := next(folder.iterdir(), None):
            raise ValueError(f"{folder} is in use (it holds {other.name}); choose another --out")
        append(path, made_of)
        return []
    lines = path.read_bytes().split(b"\n")
    records = []
    for line in lines[:-1]:  # what follows the last end of a line was not written to its end
        with suppress(ValueError):
            records.append(json.loads(line))
    if not records:
        records = [made_of]
    if records[0] != made_of:
        raise ValueError(f"{folder} was begun with other sources, another tokenizer, validation or unit (or a "
                         "source has changed since): put them back, or choose another --out")
    write_text(path, "".join(json.dumps(record) + "\n" for record in records))
    known = {shard["file"] for record in records[1:] for shard in record["shards"]}
    for file in folder.iterdir():
        if file.suffix == ".part" or (file.suffix == ".npy" and file.name not in known):
            file.unlink()
    if gone := sorted(name for name in known if not (folder / name).is_file()):
        raise ValueError(f"{folder / gone[0]} is gone, which was written before: put it back, or choose another --out")
    return records[1:]


def append(path: Path, record: dict[str, Any]) -> None:
    with open(path, "ab") as file:
        file.write(json.dumps(record).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def units(mixture: Mixture, size: int, done: Sequence[dict[str, Any]]) -> Iterator[Unit]:
    """The units of all sources that are not done, in their order."""
    read, over, number = Counter[str](), set(), len(done)
    for record in done:
        read[record["source"]] += record["documents"] + record["empty"]
        if record["last"]:
            over.add(record["source"])
    for source in mixture.sources:
        for some, last in () if source.name in over else cut(source, read[source.name], size):
            yield Unit(number, source.name, some, last)
            number += 1


def cut(source: Source, skip: int, size: int) -> Iterator[tuple[list[Document], bool]]:
    """Documents until their text reaches `size`, and whether no more follow."""
    some, held = list[Document](), 0
    for document in documents(source, skip):
        if held >= size:
            yield some, False
            some, held = [], 0
        some.append(document)
        held += len(document.text)
    yield some, True


def encode(folder: str, tokenizer: str, unit: Unit, validation: float) -> dict[str, Any]:
    """Write the shards of a unit; returns its record."""
    words, started = encoder(Path(tokenizer)), time.perf_counter()
    parts: dict[str, list[Any]] = {split: [] for split in SPLITS}
    sizes, end = Counter[str](), np.array([words.start], np.uint16)
    for document in unit.documents:
        if document.text:
            split = SPLITS[int(hashlib.sha256(document.text).hexdigest()[:8], 16) < validation * 2**32]
            parts[split] += [words.encode(document.text), end]
            sizes[split] += len(document.text)
    shards: list[dict[str, Any]] = []
    for split, found in parts.items():
        if found:
            tokens = np.concatenate(found).astype(DTYPE)
            name = f"{split}-{unit.number:05d}.npy"
            sha = save(Path(folder, name), tokens)
            shards.append({"file": name, "split": split, "source": unit.source, "tokens": len(tokens),
                           "documents": len(found) // 2, "bytes": sizes[split], "sha256": sha})
    kept = sum(shard["documents"] for shard in shards)
    return {"unit": unit.number, "source": unit.source, "documents": kept, "empty": len(unit.documents) - kept,
            "last": unit.last, "seconds": time.perf_counter() - started, "shards": shards}


def save(path: Path, tokens: Any) -> str:
    """Write an array that is there whole or not at all; returns the sha256 of the file."""
    out = io.BytesIO()
    np.save(out, tokens)
    beside = path.with_name(f"{path.name}.{os.getpid()}.part")  # a process of a killed run may be at it still
    with open(beside, "wb") as file:
        file.write(out.getbuffer())
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
    return hashlib.sha256(out.getbuffer()).hexdigest()


def indexed(mixture: Mixture, words: Encoder, done: Sequence[dict[str, Any]],
            before: dict[str, Any] | None) -> dict[str, Any]:
    """The index of what is done, or of what an index tells already, with the weights of this mixture."""
    if before:
        shards, statistics = before["shards"], before["sources"]
    else:
        shards = [shard for record in done for shard in record["shards"]]
        statistics = {source.name: statistic([record for record in done if record["source"] == source.name])
                      for source in mixture.sources}
    if empty := [name for name, found in statistics.items() if not found["documents"]]:
        raise ValueError(f"the source {empty[0]} has no text in it: leave it out")
    count = sum(found["documents"] for found in statistics.values())
    for split in SPLITS:
        if split not in {shard["split"] for shard in shards}:
            raise ValueError(f"of {count:,} documents none is in the {split} text at --validation "
                             f"{mixture.validation}: choose another share, or give more documents")
    tokens = {name: found["tokens"] for name, found in statistics.items()}
    shares = mixture.shares() if mixture.sources[0].weight else {n: t / sum(tokens.values()) for n, t in tokens.items()}
    about = {"file": VOCABULARY, "name": words.name, "sha256": words.sha256, "size": words.size, "end": words.start}
    return {"format": FORMAT, "version": VERSION, "dtype": DTYPE.name, "vocabulary": about, "shards": shards,
            "sources": {name: found | {"weight": shares[name]} for name, found in statistics.items()}}


def statistic(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the units of a source hold together, and the seconds that processes spent on them."""
    shards = [shard for record in records for shard in record["shards"]]
    return {"documents": sum(shard["documents"] for shard in shards), "empty": sum(r["empty"] for r in records),
            "tokens": sum(shard["tokens"] for shard in shards), "bytes": sum(shard["bytes"] for shard in shards),
            "seconds": round(sum(record["seconds"] for record in records), 3)}


# what is on the disk ----------------------------------------------------------------------------------------


def check(folder: Path) -> list[str]:
    """What is wrong with a folder of shards, a line for each file; nothing if all is well. ValueError if it is none."""
    index = read_json(folder / INDEX)
    if index.get("format") != FORMAT or index.get("version") != VERSION:
        raise ValueError(f"{folder / INDEX} is no index of {FORMAT}, version {VERSION}")
    try:
        about, shards = index["vocabulary"], index["shards"]
        wrong = [f"{folder / shard['file']} {why}" for shard in shards if (why := damage(folder, shard, about))]
        known = {shard["file"] for shard in shards}
        file = folder / about["file"]
        if not file.is_file():
            wrong.append(f"{file} is missing")
        elif digest(file) != about["sha256"]:
            wrong.append(f"{file} is another vocabulary than the shards were written with")
        else:
            Encoder(folder)
    except (KeyError, TypeError) as error:
        why = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{folder / INDEX} is damaged: {why}") from None
    except ValueError as error:
        wrong.append(str(error))
    return wrong + [f"{path} is foreign: the index does not name it"
                    for path in sorted(folder.glob("*.npy")) if path.name not in known]


def damage(folder: Path, shard: dict[str, Any], about: dict[str, Any]) -> str:
    """Why a shard is refused; empty if it is what the index says."""
    path = folder / shard["file"]
    if path.parent != folder or not path.is_file():
        return "is missing"
    if digest(path) != shard["sha256"]:
        return "is damaged: its sha256 is not that of the index"
    try:
        tokens = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError:
        return "is no .npy file"
    if tokens.dtype != DTYPE or tokens.ndim != 1:
        return f"holds {tokens.ndim}-dimensional {tokens.dtype}, not one row of uint16"
    if len(tokens) != shard["tokens"]:
        return f"has {len(tokens):,} tokens, and the index says {shard['tokens']:,}"
    highest, ends = 0, 0
    for start in range(0, len(tokens), PART):
        some = np.asarray(tokens[start : start + PART])
        highest, ends = max(highest, int(some.max())), ends + int(np.sum(some == about["end"]))
    if highest >= about["size"]:
        return f"is of another vocabulary: it has token {highest}, and the vocabulary {about['size']:,}"
    if ends != shard["documents"] or tokens[-1] != about["end"]:
        return f"has {ends:,} ends of documents, and the index says {shard['documents']:,}"
    return ""
