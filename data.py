"""Where do the bytes come from, and in which order does the model see them?

A corpus is a list of documents; split by document it becomes two texts, train and validation; segments cut
from a text, in shuffled or in consecutive order, are what the model reads. A token is a byte, so nothing has
to be learned or downloaded before the first step. (Tokens that were made before are read by shards.py.)
Long, because what people name as their text comes in many forms, and each is either read or refused in one line.

Legend: B batch, T tokens in a segment. A lane is the part of a text that one row of the batch reads in order.
"""

import codecs
import fnmatch
import glob
import hashlib
import importlib
import os
import sysconfig
import textwrap
import zlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Tokens = NDArray[np.int64]

VOCABULARY = 256
IGNORE = -100  # target of a position that asks nothing; the cross-entropy leaves it out
HELD_OUT = 0.05  # expected share of the validation text
HEAD = 1 << 13  # bytes by which text is told from what is none
PART = 1 << 20  # bytes in memory at once while hashing and compressing
NO_LIBRARY = ("site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "pydoc_data")


class Vocabulary:
    """What tokens stand for: bytes, unless a model brings words of its own."""

    size, unit = VOCABULARY, "byte"
    taught = False  # whether a model was taught how conversations are written
    start: int | None = 0  # a text begins after this token, or after none
    ends: tuple[int, ...] = (0,)  # a text ends with one of these; the first stands between two documents

    def encode(self, text: bytes) -> Tokens:
        return np.frombuffer(text, np.uint8).astype(np.int64)

    def spell(self, tokens: Any) -> bytes:
        tokens = np.atleast_1d(tokens)
        return bytes(np.where((tokens >= 0) & (tokens < 256), tokens, 255).tolist())  # 255 is no UTF-8

    def sizes(self, tokens: Any) -> Tokens:
        """How many bytes each of these tokens is."""
        return np.ones(np.shape(tokens), np.int64)

    def count(self, tokens: Any) -> int:
        """How many bytes they are together."""
        return int(np.sum(self.sizes(tokens)))

    def conversation(self, messages: Sequence[tuple[str, str]], answer: bool = True) -> str | None:
        """Role and content of messages as text, as a model was taught to read them; None if it was not."""
        return None


BYTES = Vocabulary()


def encode(text: str) -> Tokens:
    """The UTF-8 bytes of a string as tokens."""
    return BYTES.encode(text.encode("utf-8"))


def decode(tokens: ArrayLike) -> str:
    """The string that tokens spell; what is no byte and no UTF-8 (a character cut in half) becomes U+FFFD."""
    return BYTES.spell(tokens).decode("utf-8", errors="replace")


# --- documents and texts ------------------------------------------------------------------------------------


class Changed(ValueError):
    """A file is no longer what it was when reading began."""


@dataclass(frozen=True)
class Document:
    """A name and `size` bytes: `source` holds them (or tokens), or is the file that is read where they are wanted."""

    name: str
    source: bytes | Path | Tokens
    size: int
    offset: int = 0

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Bytes [start, stop), or tokens. Changed if the file is not there any more or has become shorter."""
        start, stop = start + self.offset, stop + self.offset
        if isinstance(self.source, np.ndarray):
            return self.source[start:stop]
        if isinstance(self.source, bytes):
            return np.frombuffer(self.source, np.uint8)[start:stop]
        try:  # not mapped: of a mapped file that is cut short the system makes a bus error
            with open(self.source, "rb") as file:
                file.seek(start)
                found = np.frombuffer(file.read(stop - start), np.uint8)
                now = os.fstat(file.fileno()).st_size
        except OSError as error:
            raise Changed(f"{self.source} cannot be read any more ({error.strerror}): put it back as it was") from error
        if len(found) < stop - start:
            was = self.offset + self.size
            raise Changed(f"{self.source} shrank from {was} to {now} bytes since the start: put it back as it was")
        return found

    @cached_property
    def digest(self) -> str:
        """The sha256 of the contents, computed a part at a time."""
        sha = hashlib.sha256()
        for start in range(0, self.size, PART):
            sha.update(self.read(start, min(start + PART, self.size)).data)
        return sha.hexdigest()


@dataclass(frozen=True)
class Part:
    """A range of a text that is drawn from, so often that it makes up its share of what is read."""

    name: str
    start: int
    size: int
    share: float = 1.0


class Text:
    """Documents end to end: one long array of bytes that is never in memory as a whole.

    CHOICE: one zero byte stands between neighbours. Text contains no other, so it tells the model "a document
    ends here", and is the stop token when the model writes.
    """

    gap = 1  # tokens between two documents

    def __init__(self, documents: Sequence[Document], name: str = "given", words: Vocabulary | None = None) -> None:
        self.documents, self.name, self.words = list(documents), name, words or BYTES
        self._starts = [0, *accumulate(document.size + self.gap for document in self.documents)]
        self.parts = [Part(self.name, 0, len(self))]

    def __len__(self) -> int:
        return max(self._starts[-1] - self.gap, 0)

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """A copy of bytes [start, stop), its first document found by bisection; ValueError outside."""
        if not 0 <= start <= stop <= len(self):
            raise ValueError(f"[{start}, {stop}) is no range of the {self.name} text of {len(self)} bytes")
        out = np.full(stop - start, self.words.ends[0], np.uint8 if self.words.unit == "byte" else np.int64)
        i = bisect_right(self._starts, start) - 1
        while i < len(self.documents) and (begin := self._starts[i]) < stop:
            document, at = self.documents[i], max(begin - start, 0)
            piece = document.read(max(start - begin, 0), min(stop - begin, document.size))
            out[at : at + piece.size] = piece
            i += 1
        return out

    def encoded(self, words: Vocabulary) -> "Text":
        """The same text in other tokens, which are kept in memory."""
        if words.unit == "byte":
            return self
        documents = []
        for document in self.documents:
            tokens = words.encode(document.read(0, document.size).tobytes())
            documents.append(Document(document.name, tokens, len(tokens)))
        return Text(documents, self.name, words)

    def stack(self, starts: Sequence[int], segment: int) -> Tokens:
        """The segments that begin at `starts`, each with the token that follows it, (B,T+1)."""
        return np.stack([self.read(start, start + segment + 1) for start in starts]).astype(np.int64)

    def require(self, batch: int, segment: int, lanes: int = 0) -> None:
        """ValueError unless every lane (0: every part) has room for a segment, and one token follows the last."""
        if batch < 1 or segment < 1:
            raise ValueError(f"batch is {batch} and segment is {segment}: both must be at least 1")
        rows = lanes or 1
        for part in [Part(self.name, 0, len(self))] if lanes else self.parts:
            if part.size < (need := rows * segment + 1):
                what = f"{need} are needed ({rows} × segment {segment} + 1): give more text or a shorter segment"
                raise ValueError(f"the {part.name} text has {part.size} {self.words.unit}s, but {what}")


# --- files --------------------------------------------------------------------------------------------------

MARKS = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32",  # before those that they begin with
         codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
PACKED = {".gz": ("gzip",), ".bz2": ("bz2",), ".xz": ("lzma",), ".zst": ("compression.zstd", "zstandard")}


def document(file: Path) -> Document:
    """A file as a document: unpacked, UTF-16 and UTF-32 as UTF-8, without a byte order mark; else not loaded.

    ValueError if it cannot be unpacked.
    """
    name, data = file.as_posix(), _unpacked(file) if file.suffix.lower() in PACKED else None
    with open(file, "rb") as opened:
        head, size = opened.read(HEAD) if data is None else data[:HEAD], os.fstat(opened.fileno()).st_size
        if encoding := _wide(head):
            whole = head + opened.read() if data is None else data
            data = whole.decode(encoding, errors="replace").encode("utf-8")
            head = data
    size, offset = size if data is None else len(data), 3 * head.startswith(codecs.BOM_UTF8)
    return Document(name, file if data is None else data, size - offset, offset)


def _unpacked(file: Path) -> bytes:
    for module in PACKED[file.suffix.lower()]:
        with suppress(ImportError):
            opener = importlib.import_module(module).open
            try:
                with opener(file, "rb") as opened:
                    return bytes(opened.read())
            except Exception as error:  # each has its own
                raise ValueError(f"{file} cannot be unpacked ({error}): unpack it yourself") from error
    raise ValueError(f"{file} is packed, and there is no {module} to unpack it: do that yourself, or install {module}")


def _wide(head: bytes) -> str:
    """The encoding of text that takes two or four bytes for a letter: by its mark, or because it reads well."""
    for mark, encoding in MARKS.items():
        if head.startswith(mark):
            return encoding
    for encoding in ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be") if b"\0" in head else ():
        with suppress(UnicodeDecodeError):
            text = codecs.getincrementaldecoder(encoding)().decode(head)  # it may end within a letter
            plain = sum(map(str.isascii, text))  # spaces, at least
            if plain > max(3, len(text) / 20) and all(c.isprintable() or c.isspace() for c in text):
                return encoding
    return ""


class Search:
    """The files below what a person names: every folder once, however many links lead to it, without what is no text.

    `left` says what was left out, and why. Hidden names are never looked at.
    """

    def __init__(self, skip: Sequence[str] = ()) -> None:
        self.skip, self.seen, self.left = set(skip), set[tuple[int, int]](), dict[str, list[str]]()

    def below(self, path: Path, named: bool = True) -> Iterator[Path]:
        """The files in a folder, in order of their names, and in its folders; or the one file that the path is."""
        if path.is_file():  # a pipe is none, and opening it would wait for ever
            yield path
        elif path.is_dir():
            found = path.stat()
            if (found.st_dev, found.st_ino) in self.seen:
                return
            self.seen.add((found.st_dev, found.st_ino))
            if (why := _no_text(path)) and not named:
                self.left.setdefault(why, []).append(path.name)
                return
            if path.is_symlink() and not named:
                self.left.setdefault("linked folders, read once", []).append(path.name)
            for entry in sorted(path.iterdir(), key=lambda entry: entry.name):
                if not (entry.name.startswith(".") or entry.name in self.skip):
                    yield from self.below(entry, named=False)

    def matching(self, pattern: str) -> Iterator[Path]:
        """The files that match a pattern with `**`, or lie in a folder that does. (glob follows links in circles.)"""
        parts = Path(pattern).parts
        plain = next(i for i, part in enumerate(parts) if glob.has_magic(part))
        base = Path(*parts[:plain])
        for file in self.below(base):
            inside = file.relative_to(base).parts
            if any(_matches(inside[: i + 1], parts[plain:]) for i in range(len(inside))):
                yield file

    def documents(self, files: Iterable[Path], named: bool) -> Iterator[Document]:
        """Files as documents. Of those that were named one by one all, or ValueError; of others what is text."""
        for file in files:
            try:
                found = document(file)
                text = b"\0" not in found.read(0, min(found.size, HEAD)).tobytes()
            except ValueError:
                if named:
                    raise
                text = False
            if text or named:
                yield found
            if not text:
                why = "read, but hardly text" if named else "left out, as they are no text"
                self.left.setdefault(why, []).append(file.name)

    def note(self) -> str:
        """What was left out, in one line."""
        def some(names: list[str]) -> str:
            return f"{len(names)} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
        return "; ".join(f"{why}: {some(names)}" for why, names in self.left.items())


def _exists(path: str) -> bool:
    """Whether something is there; OSError where one may not look."""
    try:
        return bool(os.stat(path))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False


def _no_text(folder: Path) -> str:
    """Why a folder is left out that nobody named: what programs write, and read again as their own text."""
    def has(*names: str) -> bool:
        return all(os.path.isfile(folder / name) for name in names)  # False, too, where one may not look
    if folder.name in ("__pycache__", "node_modules") or has("CACHEDIR.TAG") or has("pyvenv.cfg"):
        return "left out, as they are caches"
    run = has("config.json", "checkpoint.npz") or has("config.json", "stories.json")
    return "left out, as they are runs" if run else ""


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a path matches a pattern, part by part; `**` stands for any number of parts."""
    if not pattern or not parts:
        return not parts and all(part == "**" for part in pattern)
    if pattern[0] == "**":
        return _matches(parts, pattern[1:]) or _matches(parts[1:], pattern)
    return fnmatch.fnmatch(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


# --- the corpus ---------------------------------------------------------------------------------------------


class Corpus:
    """Documents, without empty ones and duplicates, split into a train and a validation text.

    A document's own hash decides its side, so that a new document moves no other, unless it takes one across a limit
    that follows. CHOICE: one larger than a tenth of the corpus is not held out; where less than 1 % would be, the
    document nearest to 5 % is instead (never over half); where that is less than 1 %, too, or there is one document
    only, the last tenth of the largest. `note` is empty or tells of an unusual split.
    """

    words: Vocabulary = BYTES  # in which the texts are
    folder: Path | None = None  # where the files of a vocabulary of its own are

    def __init__(self, documents: Sequence[Document]) -> None:
        filled = [document for document in documents if document.size]
        if not filled:
            what = "the file is" if len(documents) == 1 else f"all {len(documents)} files are"
            raise ValueError(f"{what} empty: give at least one with text in it")
        if len(filled) > 1:  # a large file on its own need not be hashed before the first step
            first: dict[str, Document] = {}
            filled = [d for d in filled if first.setdefault(d.digest, d) is d]
        self.documents, self.size, self.note = filled, sum(document.size for document in filled), ""
        if held_out := self._held_out():
            chosen = set(held_out)
            train = [document for document in filled if document not in chosen]
            if (share := sum(document.size for document in held_out) / self.size) > 0.2:
                self.note = f"few documents: the validation text takes {share:.0%} of the bytes"
        else:
            large = max(filled, key=lambda d: (d.size, d.digest)) if len(filled) > 1 else filled[0]
            cut = large.size - max(large.size // 10, 1)
            train = [replace(large, size=cut) if document is large else document for document in filled]
            held_out = [replace(large, size=large.size - cut, offset=large.offset + cut)]
            self.note = (f"{large.name} is the {'largest' if len(filled) > 1 else 'only'} document: its last tenth is "
                         "the validation text")
        self._texts = {"train": Text(train, "train"), "validation": Text(held_out, "validation")}

    def _held_out(self) -> list[Document]:
        """Whole documents, or none where there are no suitable ones."""
        if len(self.documents) == 1:
            return []
        small = [d for d in self.documents if d.size <= self.size / 10]
        chosen = [d for d in small if int(d.digest[:8], 16) < HELD_OUT * 2**32]
        if sum(d.size for d in chosen) >= self.size / 100:
            return chosen
        middle = [d for d in self.documents if self.size / 100 <= d.size <= self.size / 2]
        aim = HELD_OUT * self.size
        return [min(middle, key=lambda d: (max(d.size / aim, aim / d.size), d.digest))] if middle else []

    @classmethod
    def default(cls) -> "Corpus":
        """What every Python brings along: its language reference, by topics, and its library's source."""
        documents, root = [], Path(sysconfig.get_path("stdlib"))
        with suppress(ImportError):  # some systems package it separately
            from pydoc_data.topics import topics

            for name, text in sorted(topics.items()):
                documents.append(Document(f"topics/{name}", data := text.encode("utf-8"), len(data)))
        for path in Search(NO_LIBRARY).below(root):
            with suppress(OSError, UnicodeDecodeError):  # what cannot be read as text is no document
                if path.suffix == ".py":
                    (data := path.read_bytes()).decode("utf-8")
                    name = f"stdlib/{path.relative_to(root).as_posix()}"
                    documents.append(Document(name, data, len(data)))
        if not documents:
            raise ValueError(f"no library source is in {root}: give text files of your own instead")
        return cls(documents)

    @classmethod
    def from_paths(cls, paths: str | Path | Sequence[str | Path]) -> "Corpus":
        """Your files, folders (all text below) and globs (`**` descends); see `document` and `Search`.

        Names are relative to the folder that all have in common. ValueError, naming the path, for what is
        missing, matches nothing, holds no file or cannot be read.
        """
        documents: list[Document] = []
        search = Search()
        for given in map(str, [paths] if isinstance(paths, str | Path) else paths):
            path, before = str(Path(given).expanduser()), len(documents)
            try:
                named = _exists(path)
                if not named and "**" in Path(path).parts:
                    documents += search.documents(search.matching(path), named=False)
                else:
                    found = [path] if named else sorted(glob.glob(path))
                    if not found:
                        raise ValueError(f"nothing matches {given!r} in {Path.cwd()}: name files, folders, globs")
                    for at in map(Path, found):
                        documents += search.documents(search.below(at), named and at.is_file())
            except OSError as error:
                where = error.filename or given
                raise ValueError(f"cannot read {where} ({error.strerror}): name what you may open") from error
            if len(documents) == before:
                left = f" ({search.note()})" if search.left else ""
                raise ValueError(f"{given!r} holds no files{left}: name a file or a folder with text in it")
        if not documents:
            raise ValueError("no paths given: name at least one file, folder or glob")
        corpus = cls(_relative(documents))
        corpus.note = "\n".join(filter(None, [search.note(), corpus.note]))
        return corpus

    @classmethod
    def random(cls, seed: int = 0, size: int = 1 << 20) -> "Corpus":
        """Random bytes: a text with nothing to learn, where 8 bits per byte are the best there is."""
        drawn, each = np.random.default_rng(seed).bytes(size), max(1, size // 16)
        pieces = {f"random/{i}": drawn[i : i + each] for i in range(0, size, each)}
        return cls([Document(name, piece, len(piece)) for name, piece in pieces.items()])

    def manifest(self) -> dict[str, Any]:
        """What was read, to be kept with a run: names, sizes and one sha256 over all contents in their order."""
        sha = hashlib.sha256("".join(document.digest for document in self.documents).encode())
        sizes = {document.name: document.size for document in self.documents}
        return {"sha256": sha.hexdigest(), "bytes": self.size, "documents": sizes}

    def split(self, side: str) -> Text:
        """The "train" or the "validation" text."""
        if side not in self._texts:
            raise ValueError(f"there is no {side!r} text: choose 'train' or 'validation'")
        return self._texts[side]


def _relative(documents: Sequence[Document]) -> list[Document]:
    """The documents with names as seen from the folder that all have in common, wherever that lies."""
    paths = [os.path.abspath(document.name) for document in documents]
    with suppress(ValueError):  # on several drives
        base = os.path.commonpath([os.path.dirname(path) for path in paths])
        return [replace(document, name=Path(os.path.relpath(path, base)).as_posix())
                for document, path in zip(documents, paths, strict=True)]
    return list(documents)


# --- the order of reading -----------------------------------------------------------------------------------


def permuted(index: int, size: int, keys: Sequence[int]) -> int:
    """Where a pseudo-random permutation of range(size) sends `index`, without storing the permutation.

    A Feistel network is a bijection whatever its round function, as (l, r) → (r, l ⊕ f(r)) can be undone;
    repeating it until the value is below `size` turns a bijection of a larger range into one of range(size).
    """
    half = ((size - 1).bit_length() + 1) // 2
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for key in keys:
            left, right = right, left ^ ((right + 1) * key % (2**61 - 1) & mask)
        if (index := left << half | right) < size:
            return index


class Segments:
    """An endless iterator of (B,T+1) int64 arrays: inputs [:, :-1], targets [:, 1:].

    shuffled     every epoch cuts the text anew, from a random phase on, and deals segments in random order;
                 every byte is an input once an epoch, but for at most T at either end. A text with several
                 parts is a mixture: each has epochs of its own, and the next segment is of the part that is
                 furthest behind its share: none is ever more than a segment ahead of it.
    consecutive  every row goes on where it ended, in its own lane, so that a running state can be carried;
                 at most T bytes at the end of a lane are left out.

    `restarted` is about the batch returned last: True where no running state may be carried into it.
    """

    def __init__(self, text: Text, batch: int, segment: int, order: str = "shuffled", seed: int = 0) -> None:
        if order not in ("shuffled", "consecutive"):
            raise ValueError(f"there is no order {order!r}: choose 'shuffled' or 'consecutive'")
        text.require(batch, segment, lanes=batch if order == "consecutive" else 0)
        self.text, self.batch, self.segment, self.order, self.seed = text, batch, segment, order, seed
        self.restarted, count = True, len(text.parts) if order == "shuffled" else 1
        self.epochs, self.positions, self.drawn = [0] * count, [0] * count, [0] * count  # of each part

    @property
    def epoch(self) -> int:
        """How often everything has been read: of a mixture, all parts of it."""
        return min(self.epochs)

    def __iter__(self) -> "Segments":
        return self

    def __next__(self) -> Tokens:
        if self.order == "shuffled":
            return self.text.stack([self._draw() for _ in range(self.batch)], self.segment)
        position = self.positions[0]
        self.restarted = position == 0
        lane, start = (len(self.text) - 1) // self.batch, position * self.segment
        self._advance(0, lane // self.segment)
        return self.text.stack([row * lane + start for row in range(self.batch)], self.segment)

    def _draw(self) -> int:
        total = sum(self.drawn) + 1
        behind = [part.share * total - drawn for part, drawn in zip(self.text.parts, self.drawn, strict=True)]
        i = behind.index(max(behind))
        part, more = self.text.parts[i], [i] if i else []
        rng = np.random.default_rng([self.seed, self.epochs[i], *more])  # an epoch's draws follow from its number
        phase = int(rng.integers(min(self.segment, part.size - self.segment)))
        count = (part.size - 1 - phase) // self.segment
        chosen = permuted(self.positions[i], count, rng.integers(1, 2**61 - 1, size=6).tolist())
        self._advance(i, count)
        return part.start + phase + chosen * self.segment

    def _advance(self, i: int, count: int) -> None:
        wraps, self.positions[i] = divmod(self.positions[i] + 1, count)
        self.epochs[i] += wraps
        self.drawn[i] += 1

    def state(self) -> dict[str, Any]:
        """Where reading stands and what it depends on, as JSON can hold it."""
        about = {"bytes": len(self.text), "order": self.order, "batch": self.batch, "segment": self.segment,
                 "seed": self.seed}
        if len(self.drawn) == 1:
            return about | {"epoch": self.epochs[0], "position": self.positions[0]}
        return about | {"epoch": [*self.epochs], "position": [*self.positions], "drawn": [*self.drawn]}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on, bit for bit, where `state` was taken; ValueError if it was from other data or settings."""
        for name, here in self.state().items():
            if name not in ("epoch", "position", "drawn") and state[name] != here:
                raise ValueError(f"the saved position is for {name} {state[name]}, but here it is {here}")
        places = [state[name] for name in ("epoch", "position")]
        self.epochs, self.positions = ([*place] if isinstance(place, list) else [place] for place in places)
        self.drawn = [*state.get("drawn", [0])]


def fixed(text: Text, batch: int, segment: int, count: int) -> Iterator[Tokens]:
    """The evaluation set: `count` batches, always the same, of segments evenly spaced over the text.

    Segments never overlap: a text too short for all gives as many as fit, the last batch with fewer rows.
    """
    text.require(batch, segment)
    size, room = min(batch * count, (len(text) - 1) // segment), len(text) - 1 - segment
    starts = [i * room // max(size - 1, 1) for i in range(size)]
    return (text.stack(starts[i : i + batch], segment) for i in range(0, size, batch))


def compressed_bits_per_byte(text: Text, limit: int = 1 << 24) -> dict[str, float]:
    """What gzip -9 and xz -6 (in about 100 MB) make of the first `limit` bytes, in bits per byte."""
    compressors: dict[str, Any] = {"gzip": zlib.compressobj(9, wbits=31)}
    with suppress(ImportError):  # some Pythons are built without it
        import lzma

        compressors["xz"] = lzma.LZMACompressor(preset=6)
    size, written = min(len(text), limit), dict.fromkeys(compressors, 0)
    for start in range(0, size, PART):
        piece = text.read(start, min(start + PART, size)).data
        for name, compressor in compressors.items():
            written[name] += len(compressor.compress(piece))
    return {name: 8 * (written[name] + len(compressors[name].flush())) / size for name in compressors}


def main() -> None:
    """Print what the default corpus consists of, and one segment of it."""
    corpus = Corpus.default()
    print(f"{len(corpus.documents):,} documents, {corpus.size:,} bytes, sha256 {corpus.manifest()['sha256']}")
    for side in ("train", "validation"):
        print(f"{side:>10}: {len(text := corpus.split(side)):,} bytes, {len(text.documents):,} documents")
    print(", ".join(f"{k} {v:.3f} bits per byte" for k, v in compressed_bits_per_byte(text, PART).items()))
    segment = next(Segments(corpus.split("train"), batch=1, segment=256))[0]
    print(f"one shuffled segment of {len(segment) - 1} tokens, and its last target:")
    print(textwrap.indent(decode(segment), "  | "))


if __name__ == "__main__":
    main()
