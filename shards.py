"""What if text is tokens already?

A folder of shards is mapped into memory, read by the weights of its sources, and brings its vocabulary along.

    index.json           what is in the folder: shards, sources with their weights, the sha256 of every file
    train-00000.npy …    uint16 tokens of documents one after another, each followed by the end token
    validation-00000.npy …
    vocabulary.json      the bytes of every token, in Latin-1: enough to tell what a model writes, and to count bytes
    tokenizer.json       or tokenizer.model: the tokenizer itself, which only new text needs

Folders like this are written by corpora/. The vocabulary and the tokenizer go along into the folder of every run.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data import PART, Changed, Corpus, Document, Part, Text, Tokens, Vocabulary

INDEX, VOCABULARY, TOKENIZERS = "index.json", "vocabulary.json", ("tokenizer.json", "tokenizer.model")
FORMAT, VERSION, DTYPE = "nested-learning shards", 1, np.dtype("<u2")
MAPPED = 64  # shards that are mapped at once: each takes a file descriptor
PLAIN = {"file": str, "split": str, "source": str, "tokens": int, "bytes": int, "sha256": str}  # of every shard


def is_shards(path: str | Path) -> bool:
    """Whether a path is a folder of shards, be it damaged."""
    index = Path(path) / INDEX
    if os.path.isfile(index):  # False, too, where one may not look
        with open(index, "rb") as file:
            if FORMAT.encode() in file.read(PART):
                return True
    return os.path.isfile(Path(path) / VOCABULARY) and any(Path(path).glob("*.npy"))


# --- the vocabulary -----------------------------------------------------------------------------------------


class Words(Vocabulary):
    """The vocabulary of a tokenizer, as told in vocabulary.json; a text stands between two of its end tokens."""

    unit = "token"

    def __init__(self, folder: Path) -> None:
        path = folder / VOCABULARY
        about = read_object(path)
        self.folder, self.name, tokens, end = folder, about.get("name"), about.get("tokens"), about.get("end")
        if not (isinstance(tokens, list) and tokens and all(isinstance(token, str) for token in tokens)
                and isinstance(end, int) and 0 <= end < len(tokens) and isinstance(self.name, str)):
            raise ValueError(f"{path} is no vocabulary: it must have a name, the list of all tokens and the end token")
        try:
            self.pieces = [token.encode("latin-1") for token in tokens]
        except UnicodeEncodeError as error:
            raise ValueError(f"{path} is no vocabulary: {error.object[:20]!r} are no bytes in Latin-1") from None
        self.size, self.lengths = len(self.pieces), np.array([len(piece) for piece in self.pieces])
        self.start, self.ends, self.sha256 = end, (end,), digest(path)
        self.singles = {piece[0]: [i] for i, piece in enumerate(self.pieces) if len(piece) == 1}

    @cached_property
    def tokenizer(self) -> Callable[[str], list[int]]:
        """What makes tokens of a text: the library that the tokenizer was made with; ValueError if it is missing."""
        path = next((self.folder / name for name in TOKENIZERS if (self.folder / name).is_file()), None)
        if not path:
            raise ValueError(f"new text cannot be read with the vocabulary {self.name}: there is no "
                             f"{' and no '.join(TOKENIZERS)} in {self.folder}")
        library = "tokenizers" if path.name == TOKENIZERS[0] else "sentencepiece"
        try:
            found = importlib.import_module(library)
        except ImportError:
            raise ValueError(f"{path} needs the package {library}: pip install {library}") from None
        try:
            if library == "sentencepiece":
                return found.SentencePieceProcessor(model_file=str(path)).encode  # type: ignore[no-any-return]
            made = found.Tokenizer.from_file(str(path))
            made.encode_special_tokens = True  # no text can spell them
        except Exception as error:  # they raise nothing more special
            raise ValueError(f"{path} is no tokenizer: {' '.join(str(error).split())}") from None
        return lambda text: made.encode(text, add_special_tokens=False).ids  # type: ignore[no-any-return]

    def encode(self, text: bytes) -> Tokens:
        """The tokens of a text; of a byte that is no UTF-8 the token that stands for it, or for U+FFFD if none does."""
        ids: list[int] = []
        for i, piece in enumerate(re.split("([\udc80-\udcff]+)", text.decode("utf-8", "surrogateescape"))):
            if i % 2:
                for byte in piece.encode("utf-8", "surrogateescape"):
                    ids += self.singles.get(byte) or self.tokenizer("\ufffd")
            elif piece:
                ids += self.tokenizer(piece)
        return np.array(ids, np.int64)

    def spell(self, tokens: Any) -> bytes:
        """The bytes that tokens stand for; the end token, and those that the vocabulary lacks, for none."""
        return b"".join(self.pieces[token] for token in np.atleast_1d(tokens).tolist() if 0 <= token < self.size)

    def sizes(self, tokens: Any) -> Tokens:
        found = np.asarray(tokens, np.int64)
        known = (found >= 0) & (found < self.size)
        return np.where(known, self.lengths[np.where(known, found, 0)], 0)


# --- shards -------------------------------------------------------------------------------------------------


@lru_cache(MAPPED)
def mapped(path: Path, changed: int) -> NDArray[np.uint16]:
    """The tokens in a file that was last changed then."""
    found: NDArray[np.uint16] = np.load(path, mmap_mode="r", allow_pickle=False)
    return found


@dataclass(frozen=True)
class Shard(Document):
    """A file of tokens, mapped into memory where it is read."""

    stored: int = 0  # bytes of the file

    def read(self, start: int, stop: int) -> NDArray[Any]:
        path, found = Path(str(self.source)), None
        try:
            now = os.stat(path)
            if now.st_size >= self.stored:  # looked at first: of a mapped file that is cut short comes a bus error
                with suppress(ValueError):  # it is no array
                    found = mapped(path, now.st_mtime_ns)
        except OSError as error:
            raise Changed(f"{path} cannot be read any more ({error.strerror}): put it back as it was") from error
        if now.st_size < self.stored:
            raise Changed(f"{path} shrank from {self.stored} to {now.st_size} bytes since the start: put it back as it "
                          "was")
        if found is None or found.dtype != DTYPE or found.shape != (self.size,):
            raise Changed(f"{path} is another file than at the start: put it back as it was")
        return found[start:stop]


class ShardedText(Text):
    """Shards end to end, source after source. The end token of every document is in them."""

    gap = 0

    def encoded(self, words: Vocabulary) -> Text:
        """The text itself; ValueError if a model reads other tokens."""
        ours: Any = self.words
        if getattr(words, "pieces", None) != ours.pieces or ours.start not in words.ends:
            raise ValueError(f"the shards are in tokens of the vocabulary {ours.name} ({ours.size:,}), and the model "
                             f"reads {getattr(words, 'name', f'{words.unit}s of its own')}: make shards with its own")
        return self


class Shards(Corpus):
    """The corpus in a folder of shards.

    Every source has its part of the train text, with its share by weight (in the order consecutive all are read from
    end to end, whatever they weigh); validation is read as it is. ValueError, naming the file, for what is missing,
    damaged or another's: all of it is hashed before the first step.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = folder = Path(folder).expanduser()
        index = read_object(folder / INDEX)
        self.words = vocabulary = vouched(folder, index)
        self.note, self.documents, self._texts = "", [], {}
        weights = {name: about["weight"] for name, about in index["sources"].items()}
        for side in ("train", "validation"):
            found = sorted((shard for shard in index["shards"] if shard["split"] == side),
                           key=lambda shard: (list(weights).index(shard["source"]), shard["file"]))
            text = ShardedText([opened(folder, shard) for shard in found], side, vocabulary)
            if not text.documents:
                raise ValueError(f"{folder / INDEX} names no shard of the split {side}: one is needed")
            if side == "train":
                text.parts = parts(found, weights, folder)
            self.documents += text.documents
            self._texts[side] = text
        read = [shard for shard in index["shards"] if shard["split"] in self._texts]
        self.size = sum(shard["bytes"] for shard in read)  # of the text that was made tokens
        self._sums = [vocabulary.sha256, str([(part.name, part.share) for part in self._texts["train"].parts]),
                      *(shard["sha256"] for shard in read)]

    def manifest(self) -> dict[str, Any]:
        """What was read: names and bytes of the shards, one sha256 over all of it and the weights; the vocabulary."""
        words: Any = self.words
        return {"sha256": hashlib.sha256("".join(self._sums).encode()).hexdigest(), "bytes": self.size,
                "documents": {shard.name: 2 * shard.size for shard in self.documents},
                "tokenizer": {"name": words.name, "sha256": words.sha256, "size": words.size}}


def vouched(folder: Path, index: dict[str, Any]) -> Words:
    """The vocabulary of a folder of shards; ValueError unless the index is one of ours and the vocabulary its own."""
    path, about, shards = folder / INDEX, index.get("vocabulary"), index.get("shards")
    if index.get("format") != FORMAT or index.get("version") != VERSION or index.get("dtype") != DTYPE.name:
        raise ValueError(f"{path} has format {index.get('format')!r}, version {index.get('version')!r} and dtype "
                         f"{index.get('dtype')!r}; only {FORMAT!r}, {VERSION} and {DTYPE.name!r} can be read")
    if not (isinstance(about, dict) and isinstance(shards, list) and isinstance(index.get("sources"), dict)):
        raise ValueError(f"{path} is damaged: it must have vocabulary, shards and sources")
    for name, source in index["sources"].items():
        if not isinstance(source, dict) or "weight" not in source:
            raise ValueError(f"{path} is damaged: the source {name} has no weight")
    for number, shard in enumerate(shards):
        for name, kind in PLAIN.items():
            if not isinstance(shard, dict) or not isinstance(shard.get(name), kind):
                raise ValueError(f"{path} is damaged: shard {number} has no {name}")
        if shard["source"] not in index["sources"] or Path(shard["file"]).name != shard["file"]:
            raise ValueError(f"{path} is damaged: {shard['file']} is of no source, or not in this folder")
    words = Words(folder)
    if words.sha256 != about.get("sha256"):
        raise ValueError(f"{folder / VOCABULARY} is not the one that these shards were made with: put that back")
    tokenizer = read_object(folder / VOCABULARY).get("tokenizer")
    if isinstance(tokenizer, dict) and digest(beside := folder / str(tokenizer.get("file"))) != tokenizer.get("sha256"):
        raise ValueError(f"{beside} is not the one that these shards were made with: put that back")
    return words


def opened(folder: Path, about: Mapping[str, Any]) -> Shard:
    """A shard as the index tells of it; ValueError, naming the file, if it is not that."""
    path, tokens = folder / about["file"], about["tokens"]
    if (found := digest(path)) != about["sha256"]:
        raise ValueError(f"{path} is damaged, or another's: its sha256 is {found[:8]}…, and {INDEX} says "
                         f"{about['sha256'][:8]}…; make it again")
    now = os.stat(path)
    try:
        array = mapped(path, now.st_mtime_ns)
    except ValueError as error:
        raise ValueError(f"{path} is no array of tokens: {error}") from None
    if array.dtype != DTYPE or array.shape != (tokens,):
        raise ValueError(f"{path} holds {array.dtype} {array.shape}, and {INDEX} says {tokens} tokens of {DTYPE.name}")
    return Shard(about["file"], path, tokens, stored=now.st_size)


def parts(shards: list[dict[str, Any]], weights: dict[str, Any], folder: Path) -> list[Part]:
    """The range of every source in the text of these shards, and its share of what is read."""
    found, at = [], 0
    for name in dict.fromkeys(shard["source"] for shard in shards):
        weight, size = weights[name], sum(shard["tokens"] for shard in shards if shard["source"] == name)
        if not (isinstance(weight, int | float) and 0 < weight < float("inf")):
            raise ValueError(f"{folder / INDEX} gives the source {name} the weight {weight!r}; it must be above 0")
        found.append(Part(name, at, size, weight))
        at += size
    total = sum(part.share for part in found)
    return [Part(part.name, part.start, part.size, part.share / total) for part in found]


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object from a file; ValueError if there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"there is no file {path}") from None
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged: it holds a {type(found).__name__}")
    return found


def digest(path: Path) -> str:
    """The sha256 of a file, computed a part at a time; ValueError if it cannot be read."""
    sha = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while piece := file.read(PART):
                sha.update(piece)
    except FileNotFoundError:
        raise ValueError(f"there is no file {path}") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from None
    return sha.hexdigest()
