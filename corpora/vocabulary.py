"""What do tokens stand for?  A folder that the root reads without a library, and others with theirs.

    vocabulary.json    name, kind, end, the bytes of every token (latin-1), and which file encodes
    tokenizer.json     of the library `tokenizers`, or
    tokenizer.model    of the library `sentencepiece`
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.adopt.words import pieces
from corpora.sources import needed
from tools.folder import read_json, write_text

Ids = NDArray[np.uint16]

ABOUT, FILES = "vocabulary.json", ("tokenizer.json", "tokenizer.model")
LARGEST = 1 << 16  # what two bytes can name
ENDS = ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>", "<|im_end|>", "[SEP]")
NO_UTF8 = re.compile("([\udc80-\udcff]+)")  # bytes that are none, as "surrogateescape" has them


class Encoder:
    """Bytes to tokens and back."""

    def __init__(self, folder: Path) -> None:
        about = read_json(folder / ABOUT)
        if not {"name", "kind", "end", "tokens", "tokenizer"} <= about.keys():
            raise ValueError(f"{folder / ABOUT} was not written by python -m corpora tokenizer")
        self.folder, self.name, self.end = folder, about["name"], int(about["end"])
        self.pieces = [token.encode("latin-1") for token in about["tokens"]]
        self.size, self.sha256 = len(self.pieces), digest(folder / ABOUT)
        file = folder / about["tokenizer"]["file"]
        self.file = file.name
        if digest(file) != about["tokenizer"]["sha256"]:
            raise ValueError(f"{file} is not the one that {ABOUT} was written with: make the tokenizer again")
        self._ids = opened(file)
        self._byte = {piece[0]: i for i, piece in enumerate(self.pieces) if len(piece) == 1}
        self.lengths = np.array([len(piece) for piece in self.pieces])

    def encode(self, text: bytes) -> Ids:
        """Tokens of a text, without the end token; a byte that is no UTF-8 is the token of that byte."""
        found: list[int] = []
        for n, part in enumerate(NO_UTF8.split(text.decode("utf-8", "surrogateescape"))):
            if n % 2 == 0:
                found += self._ids(part) if part else []
            else:
                for byte in part.encode("utf-8", "surrogateescape"):
                    found += [self._byte[byte]] if byte in self._byte else self._ids("\ufffd")
        return np.array(found, np.uint16)

    def decode(self, tokens: Any) -> bytes:
        """The bytes that tokens stand for; those that end or steer a text stand for none."""
        return b"".join(self.pieces[token] for token in np.asarray(tokens).tolist())


@lru_cache(2)
def encoder(folder: Path) -> Encoder:
    """The encoder in a folder, read once."""
    return Encoder(folder)


def opened(file: Path) -> Any:
    """A function from a string to token numbers, by the library that wrote the file; no text spells a special token."""
    if file.suffix == ".json":
        made = tokenizer_json(file)
        made.encode_special_tokens = True
        return lambda text: made.encode(text, add_special_tokens=False).ids
    model = sentencepiece_model(file)
    return lambda text: model.encode(text)


def tokenizer_json(file: Path) -> Any:
    tokenizers = needed("tokenizers", file)
    try:
        return tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # it raises nothing more special
        raise ValueError(f"{file} is no tokenizer: {' '.join(str(error).split())}") from None


def sentencepiece_model(file: Path) -> Any:
    sentencepiece = needed("sentencepiece", file)
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=file.read_bytes())
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{file} is no sentencepiece model: {' '.join(str(error).split())}") from None


def digest(file: Path) -> str:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise ValueError(f"{file} cannot be read ({error.strerror})") from None


def write(folder: Path, name: str, kind: str, end: int, tokens: list[bytes], file: str) -> None:
    """Write vocabulary.json beside the tokenizer's own file."""
    if len(tokens) > LARGEST:
        raise ValueError(f"{name} has {len(tokens):,} tokens, and shards have room for {LARGEST:,}")
    write_text(folder / ABOUT, json.dumps({
        "name": name, "kind": kind, "end": end, "tokenizer": {"file": file, "sha256": digest(folder / file)},
        "tokens": [token.decode("latin-1") for token in tokens]}))


def adopt(file: Path, folder: Path, name: str = "", end: str = "") -> None:
    """Write the folder of a tokenizer that somebody else trained: tokenizer.json, or a model of sentencepiece."""
    if not file.is_file():
        raise ValueError(f"there is no file {file}")
    if file.suffix == ".json":
        made = tokenizer_json(file)
        tokens, target = pieces(made), FILES[0]
        ids = {token: made.token_to_id(token) for token in ([end] if end else ENDS)}
        at = next((i for i in ids.values() if i is not None), None)
    else:
        model = sentencepiece_model(file)
        tokens, target = [of_piece(model, i) for i in range(model.get_piece_size())], FILES[1]
        at = model.piece_to_id(end) if end else model.eos_id()
        at = None if at < 0 or (end and model.id_to_piece(at) != end) else at
    if at is None:
        raise ValueError(f"{file} has no token {end!r}" if end else
                         f"{file} does not say with which token a text ends: name it with --end")
    tokens[at] = b""
    if len(tokens) <= LARGEST:
        shutil.copyfile(file, folder / target)
    write(folder, name or file.resolve().parent.name, "foreign", at, tokens, target)


def of_piece(model: Any, i: int) -> bytes:
    """The bytes that a piece of sentencepiece stands for."""
    piece: str = model.id_to_piece(i)
    if model.is_byte(i):
        return bytes([int(piece[3:5], 16)])
    if model.is_control(i) or model.is_unknown(i) or model.is_unused(i):
        return b""
    return piece.replace("▁", " ").encode()
