"""Where do the bytes come from, and in which order does the model see them?

A corpus is a list of documents; split by document it becomes two texts, train and validation; segments cut
from a text, in shuffled or in consecutive order, are what the model reads. A token is a byte, so nothing has
to be learned or downloaded before the first step. Synthetic tasks, with known answers, stand at the end.

Legend: B batch, T tokens in a segment. A lane is the part of a text that one row of the batch reads in order.
"""

import glob
import hashlib
import os
import sysconfig
import textwrap
import zlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike, NDArray

Bytes = NDArray[np.uint8]
Tokens = NDArray[np.int64]

VOCABULARY = 256
IGNORE = -100  # target of a position that asks nothing; the cross-entropy leaves it out
HELD_OUT = 0.05  # expected share of the validation text
OPEN_MAPS = 128  # every map holds a file descriptor, and some systems allow 256 in all
PIECE = 1 << 20  # bytes in memory at once while hashing and compressing
NO_LIBRARY = ("site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "pydoc_data")


def encode(text: str) -> Tokens:
    """The UTF-8 bytes of a string as tokens."""
    return np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int64)


def decode(tokens: ArrayLike) -> str:
    """The string that tokens spell; what is no byte and no UTF-8 (a character cut in half) becomes U+FFFD."""
    return bytes(np.minimum(tokens, 255).tolist()).decode("utf-8", errors="replace")  # 255 is no UTF-8


# --- documents and texts ------------------------------------------------------------------------------------


@lru_cache(maxsize=OPEN_MAPS)
def _mapped(path: Path, size: int) -> Bytes:
    if (now := path.stat().st_size) < size:
        raise ValueError(f"{path} shrank from {size} to {now} bytes since the start: put it back as it was")
    return np.memmap(path, np.uint8, mode="r")


@dataclass(frozen=True)
class Document:
    """A name and `size` bytes: `source` holds them, or is the file that is mapped to read them."""

    name: str
    source: bytes | Path
    size: int
    offset: int = 0

    def read(self, start: int, stop: int) -> Bytes:
        """A view of bytes [start, stop)."""
        start, stop = start + self.offset, stop + self.offset
        if isinstance(self.source, bytes):
            return np.frombuffer(self.source, np.uint8)[start:stop]
        return _mapped(self.source, self.offset + self.size)[start:stop]

    @cached_property
    def digest(self) -> str:
        """The sha256 of the contents, computed piece by piece."""
        sha = hashlib.sha256()
        for start in range(0, self.size, PIECE):
            sha.update(self.read(start, min(start + PIECE, self.size)).data)
        return sha.hexdigest()


class Text:
    """Documents end to end: one long array of bytes that is never in memory as a whole.

    CHOICE: one zero byte stands between neighbours. Text contains no other, so it tells the model "a document
    ends here", and is the stop token when the model writes.
    """

    def __init__(self, documents: Sequence[Document], name: str = "given") -> None:
        self.documents, self.name = list(documents), name
        self._starts = [0, *accumulate(document.size + 1 for document in self.documents)]

    def __len__(self) -> int:
        return max(self._starts[-1] - 1, 0)

    def read(self, start: int, stop: int) -> Bytes:
        """A copy of bytes [start, stop), its first document found by bisection; ValueError outside."""
        if not 0 <= start <= stop <= len(self):
            raise ValueError(f"[{start}, {stop}) is no range of the {self.name} text of {len(self)} bytes")
        out = np.zeros(stop - start, np.uint8)
        i = bisect_right(self._starts, start) - 1
        while i < len(self.documents) and (begin := self._starts[i]) < stop:
            document, at = self.documents[i], max(begin - start, 0)
            piece = document.read(max(start - begin, 0), min(stop - begin, document.size))
            out[at : at + piece.size] = piece
            i += 1
        return out

    def stack(self, starts: Sequence[int], segment: int) -> Tokens:
        """The segments that begin at `starts`, each with the token that follows it, (B,T+1)."""
        return np.stack([self.read(start, start + segment + 1) for start in starts]).astype(np.int64)

    def require(self, batch: int, segment: int, lanes: int = 1) -> None:
        """ValueError unless every lane has room for a segment, and one token follows the last."""
        if batch < 1 or segment < 1:
            raise ValueError(f"batch is {batch} and segment is {segment}: both must be at least 1")
        if len(self) < (need := lanes * segment + 1):
            what = f"{need} are needed ({lanes} × segment {segment} + 1): give more text or a shorter segment"
            raise ValueError(f"the {self.name} text has {len(self)} bytes, but {what}")


# --- the corpus ---------------------------------------------------------------------------------------------


def _files(path: Path, skip: Sequence[str] = ()) -> Iterator[Path]:
    if path.is_file():  # a pipe is none, and opening it would wait for ever
        yield path
    elif path.is_dir():
        for entry in sorted(path.iterdir(), key=lambda entry: entry.name):
            linked = entry.is_symlink() and entry.is_dir()  # perhaps in a circle
            if not (linked or entry.name.startswith(".") or entry.name in skip):
                yield from _files(entry, skip)


class Corpus:
    """Documents, without empty ones and duplicates, split into a train and a validation text.

    A document's own hash decides its side, so that a new document moves no other. CHOICE: one larger than a
    tenth of the corpus is not held out; where less than 1 % would be, the document nearest to 5 % is instead
    (never over half); a single document is split by position, its last tenth held out. `note` is empty or
    tells of an unusual split.
    """

    def __init__(self, documents: Sequence[Document]) -> None:
        filled = [document for document in documents if document.size]
        if not filled:
            raise ValueError(f"all {len(documents)} files are empty: give at least one with text in it")
        if len(filled) > 1:  # a large file on its own need not be hashed before the first step
            first: dict[str, Document] = {}
            filled = [d for d in filled if first.setdefault(d.digest, d) is d]
        self.documents, self.size, self.note = filled, sum(document.size for document in filled), ""
        if len(filled) == 1:
            only, cut = filled[0], self.size - max(self.size // 10, 1)
            train, held_out = [replace(only, size=cut)], [replace(only, size=self.size - cut, offset=cut)]
            self.note = f"{only.name} is the only document: its last tenth is the validation text"
        else:
            chosen = set(held_out := self._held_out())
            train = [document for document in filled if document not in chosen]
            if (share := sum(document.size for document in held_out) / self.size) > 0.2:
                self.note = f"few documents: the validation text takes {share:.0%} of the bytes"
        self._texts = {"train": Text(train, "train"), "validation": Text(held_out, "validation")}

    def _held_out(self) -> list[Document]:
        small = [d for d in self.documents if d.size <= self.size / 10]
        chosen = [d for d in small if int(d.digest[:8], 16) < HELD_OUT * 2**32]
        if sum(d.size for d in chosen) >= self.size / 100:
            return chosen
        small, aim = [d for d in self.documents if d.size <= self.size / 2], HELD_OUT * self.size
        return [min(small, key=lambda d: (max(d.size / aim, aim / d.size), d.digest))]

    @classmethod
    def default(cls) -> "Corpus":
        """What every Python brings along: its language reference, by topics, and its library's source."""
        documents, root = [], Path(sysconfig.get_path("stdlib"))
        with suppress(ImportError):  # some systems package it separately
            from pydoc_data.topics import topics

            for name, text in sorted(topics.items()):
                documents.append(Document(f"topics/{name}", data := text.encode("utf-8"), len(data)))
        for path in _files(root, NO_LIBRARY):
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
        """Your files, folders (all below but hidden names) and globs (`**` descends), mapped, not loaded.

        ValueError, naming the path, for what is missing, matches nothing, holds no file or cannot be read.
        """
        documents = []
        for given in map(str, [paths] if isinstance(paths, str | Path) else paths):
            path = str(Path(given).expanduser())
            try:
                found = [path] if os.path.exists(path) else sorted(glob.glob(path, recursive=True))
                if not found:
                    raise ValueError(f"nothing matches {given!r} in {Path.cwd()}: name files, folders, globs")
                files = [file for at in found for file in _files(Path(at))]
                if not files:
                    raise ValueError(f"{given!r} holds no files: name a file or a folder with text in it")
                for file in files:
                    with open(file, "rb") as opened:
                        documents.append(Document(file.as_posix(), file, os.fstat(opened.fileno()).st_size))
            except OSError as error:
                where = error.filename or given
                raise ValueError(f"cannot read {where} ({error.strerror}): name what you may open") from error
        if not documents:
            raise ValueError("no paths given: name at least one file, folder or glob")
        return cls(documents)

    @classmethod
    def random(cls, seed: int = 0, size: int = 1 << 20) -> "Corpus":
        """Random bytes: a text with nothing to learn, where 8 bits per byte are the best there is."""
        pieces = np.random.default_rng(seed).bytes(size)
        return cls([Document(f"random/{i}", pieces[i : i + size // 16], size // 16)
                    for i in range(0, size, size // 16)])  # fmt: skip

    def manifest(self) -> dict[str, Any]:
        """What was read, to be kept with a run: names, sizes and one sha256 over all names and contents."""
        sha = hashlib.sha256()
        for document in self.documents:
            sha.update(f"{document.name}\0{document.digest}\n".encode())
        sizes = {document.name: document.size for document in self.documents}
        return {"sha256": sha.hexdigest(), "bytes": self.size, "documents": sizes}

    def split(self, side: str) -> Text:
        """The "train" or the "validation" text."""
        if side not in self._texts:
            raise ValueError(f"there is no {side!r} text: choose 'train' or 'validation'")
        return self._texts[side]


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
                 every byte is an input once an epoch, but for at most T at either end.
    consecutive  every row goes on where it ended, in its own lane, so that a running state can be carried;
                 at most T bytes at the end of a lane are left out.

    `restarted` is about the batch returned last: True where no running state may be carried into it.
    """

    def __init__(self, text: Text, batch: int, segment: int, order: str = "shuffled", seed: int = 0) -> None:
        if order not in ("shuffled", "consecutive"):
            raise ValueError(f"there is no order {order!r}: choose 'shuffled' or 'consecutive'")
        text.require(batch, segment, lanes=batch if order == "consecutive" else 1)
        self.text, self.batch, self.segment, self.order, self.seed = text, batch, segment, order, seed
        self.epoch, self.position, self.restarted = 0, 0, True

    def __iter__(self) -> "Segments":
        return self

    def __next__(self) -> Tokens:
        if self.order == "shuffled":
            return self.text.stack([self._draw() for _ in range(self.batch)], self.segment)
        self.restarted = self.position == 0
        lane, start = (len(self.text) - 1) // self.batch, self.position * self.segment
        self._advance(lane // self.segment)
        return self.text.stack([row * lane + start for row in range(self.batch)], self.segment)

    def _draw(self) -> int:
        rng = np.random.default_rng([self.seed, self.epoch])  # an epoch's draws follow from its number
        phase = int(rng.integers(min(self.segment, len(self.text) - self.segment)))
        count = (len(self.text) - 1 - phase) // self.segment
        chosen = permuted(self.position, count, rng.integers(1, 2**61 - 1, size=6).tolist())
        self._advance(count)
        return phase + chosen * self.segment

    def _advance(self, count: int) -> None:
        wraps, self.position = divmod(self.position + 1, count)
        self.epoch += wraps

    def state(self) -> dict[str, Any]:
        """Where reading stands and what it depends on, as JSON can hold it."""
        names = ("order", "batch", "segment", "seed", "epoch", "position")
        return {"bytes": len(self.text)} | {name: getattr(self, name) for name in names}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on, bit for bit, where `state` was taken; ValueError if it was from other data or settings."""
        for name, here in self.state().items():
            if name not in ("epoch", "position") and state[name] != here:
                raise ValueError(f"the saved position is for {name} {state[name]}, but here it is {here}")
        self.epoch, self.position = state["epoch"], state["position"]


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
    for start in range(0, size, PIECE):
        piece = text.read(start, min(start + PIECE, size)).data
        for name, compressor in compressors.items():
            written[name] += len(compressor.compress(piece))
    return {name: 8 * (written[name] + len(compressors[name].flush())) / size for name in compressors}


# --- the travel stories: words instead of bytes --------------------------------------------------------------


def read_stories(path: str | Path) -> dict[str, list[list[str]]]:
    """The stories of a plain text file: name → sentences, each a list of words.

    A line "# name" names the story of the sentences below it, one a line; a name without sentences is a note.
    ValueError for a file without stories.
    """
    found: dict[str, list[list[str]]] = {}
    name = ""
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            name = line[1:].strip()
        elif words := line.split():
            found.setdefault(name, []).append(words)
    if not found or "" in found:
        raise ValueError(f"{path} holds no story: a line '# name', then one sentence a line")
    return found


def next_words(sentences: Sequence[Sequence[str]], vocabulary: Sequence[str]) -> tuple[Tokens, Tokens]:
    """Sentences as tokens, the places of words in the vocabulary, and as targets, the words that follow."""
    number, length = {word: i for i, word in enumerate(vocabulary)}, max(map(len, sentences)) - 1
    tokens = np.zeros((len(sentences), length), np.int64)
    targets = np.full_like(tokens, IGNORE)
    for row, words in enumerate(sentences):
        numbers = [number[word] for word in words]
        tokens[row, : len(words) - 1], targets[row, : len(words) - 1] = numbers[:-1], numbers[1:]
    return tokens, targets


# --- synthetic tasks: (tokens, targets), both (B,T), with IGNORE where nothing is asked ---------------------


def associative_recall(
    rng: Generator, batch: int, pairs: int, queries: int, keys: int, values: int, rewritten: int = 0
) -> tuple[Tokens, Tokens]:
    """k₁ v₁ … kₙ vₙ, then different ones of these keys, each asking for its value.

    Multi-query associative recall (Arora et al. 2023, Zoology). Keys are tokens below `keys`, values follow.
    Before the questions, `rewritten` of the keys are shown once more with another value: the last one counts.
    """
    if not max(queries, rewritten) <= pairs <= keys:
        raise ValueError(f"{queries} queries, {rewritten} rewritten, {pairs} pairs, {keys} keys: neither of the "
                         "first two may be more than the pairs, nor these than the keys")
    key = rng.permuted(np.tile(np.arange(keys), (batch, 1)), axis=1)[:, :pairs]
    value = rng.integers(keys, keys + values, (batch, pairs))
    asked, again = (rng.permuted(np.tile(np.arange(pairs), (batch, 1)), axis=1)[:, :n]
                    for n in (queries, rewritten))
    new = rng.integers(keys, keys + values, again.shape)
    shown = np.stack([np.hstack([key, np.take_along_axis(key, again, axis=1)]), np.hstack([value, new])], axis=2)
    np.put_along_axis(value, again, new, axis=1)
    shown = shown.reshape(batch, -1)  # (B, 2 (pairs + rewritten))
    tokens = np.hstack([shown, np.take_along_axis(key, asked, axis=1)])
    return tokens, np.hstack([np.full_like(shown, IGNORE), np.take_along_axis(value, asked, axis=1)])


def copy(rng: Generator, batch: int, length: int, symbols: int) -> tuple[Tokens, Tokens]:
    """A word of `length` symbols from 1 … symbols, the marker 0, and the word again, to be predicted."""
    word = rng.integers(1, symbols + 1, (batch, length))
    tokens = np.hstack([word, np.zeros((batch, 1), np.int64), word[:, :-1]])  # (B, 2 length)
    return tokens, np.hstack([np.full_like(word, IGNORE), word])


def needle(rng: Generator, batch: int, length: int, width: int, symbols: int) -> tuple[Tokens, Tokens]:
    """Noise from 1 … symbols that hides the marker 0 and a key of `width` symbols; a second 0 asks for it."""
    room = length - 2 * width
    if width < 1 or room < 1:
        raise ValueError(f"a key of {width} does not fit in {length} tokens: need 1 ≤ width < length / 2")
    tokens = rng.integers(1, symbols + 1, (batch, length))
    key = rng.integers(1, symbols + 1, (batch, width))
    marked = np.hstack([np.zeros((batch, 1), np.int64), key])
    place = rng.integers(room, size=(batch, 1)) + np.arange(width + 1)
    np.put_along_axis(tokens, place, marked, axis=1)
    tokens[:, -width:] = marked[:, :-1]
    return tokens, np.hstack([np.full((batch, length - width), IGNORE), key])


def formal_language(name: str, rng: Generator, batch: int, length: int) -> tuple[Tokens, Tokens]:
    """Words of a formal language; the target at t is the set of symbols that may follow tokens[:t+1].

    The character prediction of Bhattamishra et al. 2020, with the set {s, …} as one class, Σ 2ˢ; usually
    a word counts as known when all its targets are. Symbols are 1, 2, …; 0 ends a word and pads the row.
        parity  an even number of 2s      anbn    1ⁿ2ⁿ, n > 0     shuffle-dyck  1 opens, 3 closes; 2 opens,
        aa      (11)*      abab  (1212)*  anbncn  1ⁿ2ⁿ3ⁿ, n > 0                 4 closes, whatever 1 and 3 do
    """
    t = np.tile(np.arange(length), (batch, 1))  # (B,T)
    if name == "shuffle-dyck":
        return _shuffle_dyck(rng, batch, length)
    if name == "parity":
        tokens = rng.integers(1, 3, (batch, length))
        return tokens, 0b110 + (np.cumsum(tokens == 2, axis=1) % 2 == 0)
    if name == "aa":
        return np.ones_like(t), 0b10 + t % 2
    if name == "abab":
        return 1 + t % 2, (0b100 >> t % 2) + (t % 4 == 3)
    if name not in ("anbn", "anbncn") or length < (letters := len(name) // 2):
        names = "parity, aa, abab, anbn, anbncn, shuffle-dyck"
        raise ValueError(f"no language {name!r} with words up to {length} symbols: choose among {names}")
    n = rng.integers(1, length // letters + 1, (batch, 1))
    tokens = np.where(t < letters * n, t // n + 1, 0)
    following = np.where(t + 1 < letters * n, 0b10 << (t + 1) // n, 0b1)
    return tokens, np.where(tokens == 0, IGNORE, np.where(t < n, 0b110, following))


def _shuffle_dyck(rng: Generator, batch: int, length: int) -> tuple[Tokens, Tokens]:
    depth, even = np.zeros((batch, 2), np.int64), length - length % 2
    tokens, targets = np.zeros((batch, length), np.int64), np.full((batch, length), IGNORE)
    for t in range(even):
        can_open = np.repeat(depth.sum(axis=1, keepdims=True) < even - t, 2, axis=1)  # and close in time
        chosen = ((1 - rng.random((batch, 4))) * np.hstack([can_open, depth > 0])).argmax(axis=1)
        depth[np.arange(batch), chosen % 2] += np.where(chosen < 2, 1, -1)
        tokens[:, t] = chosen + 1
        targets[:, t] = 0b110 + (depth > 0) @ [0b1000, 0b10000] + (depth == 0).all(axis=1)
    return tokens, targets


def main() -> None:
    """Print what the default corpus consists of, and one segment of it."""
    corpus = Corpus.default()
    print(f"{len(corpus.documents):,} documents, {corpus.size:,} bytes, sha256 {corpus.manifest()['sha256']}")
    for side in ("train", "validation"):
        print(f"{side:>10}: {len(text := corpus.split(side)):,} bytes, {len(text.documents):,} documents")
    print(", ".join(f"{k} {v:.3f} bits per byte" for k, v in compressed_bits_per_byte(text, PIECE).items()))
    segment = next(Segments(corpus.split("train"), batch=1, segment=256))[0]
    print(f"one shuffled segment of {len(segment) - 1} tokens, and its last target:")
    print(textwrap.indent(decode(segment), "  | "))


if __name__ == "__main__":
    main()
