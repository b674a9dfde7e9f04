"""Where does text come from?  Files, folders, globs and streaming data sets: one stream of documents each.

    .jsonl .ndjson (plain, .gz .bz2 .xz .zst)   a document per line, in the column chosen or found
    .parquet                                    a document per row, likewise
    any other text (.txt .md …, packed or not)  a document per file, as data.py reads it
    a data set                                  a document per row, streamed by the library `datasets`
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import lzma
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from glob import glob, has_magic
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from data import Search

COLUMNS = ("text", "content", "raw_content", "document", "article", "passage", "body")
SPLITS = ("train", "validation", "test")  # the first that is there, unless a source names others
LINES, PACKED = (".jsonl", ".ndjson"), (".gz", ".bz2", ".xz", ".zst")
KNOWN = {"wikipedia": ("wikimedia/wikipedia", "20231101.en"),
         "fineweb-edu": ("HuggingFaceFW/fineweb-edu", "sample-10BT"),
         "fineweb": ("HuggingFaceFW/fineweb", "sample-10BT"), "c4": ("allenai/c4", "en"),
         "refinedweb": ("tiiuae/falcon-refinedweb", ""), "slimpajama": ("cerebras/SlimPajama-627B", "")}


class Document(NamedTuple):
    """A name, and the text in UTF-8; what a file holds beside UTF-8 is kept as it is."""

    name: str
    text: bytes


@dataclass(frozen=True)
class Source:
    """Paths, or a data set of the library `datasets`, and how much of it is wanted."""

    name: str
    paths: tuple[str, ...] = ()  # files, folders, globs
    dataset: str = ""  # a name at the hub, one of KNOWN, a folder, or what `save_to_disk` has written
    config: str = ""  # of the data set
    splits: tuple[str, ...] = ()  # of the data set: the first of these that it has
    column: str = ""  # that holds the text; empty: found
    limit: int = 0  # documents; 0: all
    weight: float | None = None  # share of the tokens in a pass; None: as many as there are


def of(text: str) -> Source:
    """The source that a person names in one word: a path, or dataset:NAME[:CONFIG[:SPLIT]]."""
    if text.startswith("dataset:"):
        name, config, split, *more = [*text.removeprefix("dataset:").split(":"), "", ""]
        if not name or any(more):
            raise ValueError(f"{text!r} is no data set: write dataset:NAME, dataset:NAME:CONFIG or …:CONFIG:SPLIT")
        return Source(Path(name).name, dataset=name, config=config, splits=(split,) if split else ())
    path = Path(text)
    while has_magic(path.name):
        path = path.parent
    return Source(path.name.split(".")[0] or path.resolve().name or "text", (text,))


def documents(source: Source, skip: int = 0) -> Iterator[Document]:
    """The documents of a source but the first `skip`, always in the same order; ValueError says what is bad."""
    if source.dataset:
        return streamed(source, skip)
    everything = (document for file, named in files(source) for document in of_file(file, source.column, named))
    return islice(everything, skip, source.limit or None)


def files(source: Source) -> Iterator[tuple[Path, bool]]:
    """The files of a source, and whether a person named each of them; ValueError for a path with none."""
    search = Search()
    for given in source.paths:
        path, empty = str(Path(given).expanduser()), True
        try:
            if not os.path.exists(path) and "**" in Path(path).parts:
                found: Iterable[tuple[Path, bool]] = ((file, False) for file in search.matching(path))
            else:
                at = [path] if os.path.exists(path) else sorted(glob(path))
                found = ((file, file == Path(p)) for p in at for file in search.below(Path(p)))
            for each in found:
                empty = False
                yield each
        except OSError as error:
            raise ValueError(f"cannot read {error.filename or given} ({error.strerror})") from error
        if empty:
            raise ValueError(f"{given!r} is no file, no folder with files in it, and matches none")


def fingerprint(source: Source) -> str:
    """What a source was when it was first read: a hash of the names, sizes and times of its files."""
    sha = hashlib.sha256()
    for file, _ in files(source) if source.paths else ():
        found = file.stat()
        sha.update(f"{file} {found.st_size} {found.st_mtime_ns}\n".encode("utf-8", "surrogatepass"))
    return sha.hexdigest()


def of_file(file: Path, column: str, named: bool) -> Iterator[Document]:
    """The documents in one file; of those nobody named, what is no text is left out."""
    suffixes = [suffix.lower() for suffix in file.suffixes[-2:]]
    try:
        if suffixes[-1:] == [".parquet"]:
            yield from rows(of_parquet(file), column, str(file))
        elif suffixes and (suffixes[-1] in LINES or (suffixes[0] in LINES and suffixes[-1] in PACKED)):
            yield from rows(of_lines(file), column, str(file))
        else:
            for document in Search().documents([file], named):
                yield Document(str(file), document.read(0, document.size).tobytes())
    except ValueError:
        raise
    except Exception as error:  # each way of packing has its own
        raise ValueError(f"{file} is damaged, or cannot be read ({said(error)})") from error


def of_lines(file: Path) -> Iterator[Mapping[str, Any]]:
    """The objects in a file with one per line."""
    with opened(file) as lines:
        for n, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{file}:{n} is not JSON: {error}") from None
            if not isinstance(row, dict):
                raise ValueError(f'{file}:{n} holds a {type(row).__name__}, not an object such as {{"text": "…"}}')
            yield row


def opened(file: Path) -> Any:
    """A file of lines, unpacked while it is read."""
    suffix = file.suffix.lower()
    if suffix == ".zst":
        return io.BufferedReader(needed("zstandard", file).open(file, "rb"))
    openers: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
    return openers.get(suffix, open)(file, "rb")


def of_parquet(file: Path) -> Iterator[Mapping[str, Any]]:
    needed("pyarrow", file)
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=256):
                yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        raise ValueError(f"{file} is damaged, or no parquet ({said(error)})") from None


def streamed(source: Source, skip: int) -> Iterator[Document]:
    """The rows of a data set, which is never on the disk as a whole unless it was before."""
    datasets = needed("datasets", source.dataset)
    datasets.disable_progress_bars()
    name, config = KNOWN.get(source.dataset, (source.dataset, ""))
    config, at, count = source.config or config, Path(name).expanduser(), skip
    try:
        if any((at / mark).is_file() for mark in ("dataset_info.json", "dataset_dict.json")):
            found = datasets.load_from_disk(str(at))
        else:
            found = datasets.load_dataset(str(at) if at.exists() else name, config or None, streaming=True)
    except Exception as error:  # each cause has its own
        raise ValueError(f"the data set {name} cannot be opened ({said(error)})") from error
    if isinstance(found, dict):
        wanted = source.splits or (*SPLITS, *found)
        split = next((split for split in wanted if split in found), None)
        if split is None:
            raise ValueError(f"the data set {name} has none of the splits {', '.join(wanted)}, but {', '.join(found)}")
        found = found[split]
    end = source.limit or None
    try:
        some = found.skip(skip) if skip else found
        for document in rows(islice(some, None if end is None else max(end - skip, 0)), source.column, name, skip):
            yield document
            count += 1
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(f"the data set {name} broke off after {count} documents ({said(error)}): run again") from error


def said(error: Exception) -> str:
    """The last thing that a library's error says, in one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) < 300 else text[:297] + "…"


def rows(found: Iterable[Mapping[str, Any]], column: str, where: str, first: int = 0) -> Iterator[Document]:
    """Rows as documents. A missing text is an empty one; ValueError for a column that is not there or holds no text."""
    for n, row in enumerate(found, first):
        column = column or text_column(row, where)
        if column not in row:
            raise ValueError(f"{where}, row {n + 1}, has no column {column!r}; it has {', '.join(map(str, row))}")
        text = "" if row[column] is None else row[column]
        if not isinstance(text, str):
            raise ValueError(f"{where}, row {n + 1}: {column!r} holds a {type(text).__name__}, not text")
        yield Document(f"{where}#{n}", text.encode("utf-8", "surrogatepass"))


def text_column(row: Mapping[str, Any], where: str) -> str:
    """The column that most likely holds the text: by its name, else the only or the longest string of the first row."""
    strings = {name: value for name, value in row.items() if isinstance(value, str)}
    known = (name for name in COLUMNS if name in strings or (name in row and row[name] is None))  # an empty text
    found = next(known, None) or max(strings, key=lambda n: len(strings[n]), default=None)
    if found is None:
        raise ValueError(f"{where} has no column with text; it has {', '.join(map(str, row)) or 'none at all'}")
    return found


def needed(package: str, what: Any) -> Any:
    """A package of this room, or one line that says where it is listed."""
    try:
        return __import__(package)
    except ImportError:
        raise ValueError(f"{what} needs the package {package}: pip install -r corpora/requirements.txt") from None
