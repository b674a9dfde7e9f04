"""What do tokens stand for?  A folder that the root reads without a library, and others with theirs.

    vocabulary.json    name, kind, end, the bytes of every token (latin-1), and which file encodes
    tokenizer.json     of the library `tokenizers`, or
    tokenizer.model    of the library `sentencepiece`
"""

from __future__ import annotations

import json
import shutil
from functools import lru_cache
from pathlib import Path
from typing import Any

from apps.adopt.words import pieces
from corpora.sources import needed
from shards import DTYPE, TOKENIZERS, VOCABULARY, Words, digest
from tools.folder import read_json, write_text

LARGEST = 1 << 16  # what two bytes can name
ENDS = ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>", "<|im_end|>", "[SEP]")


class Encoder(Words):
    """Bytes to tokens and back, by a folder that `python -m corpora tokenizer` has written."""

    def __init__(self, folder: Path) -> None:
        about = read_json(folder / VOCABULARY)
        if not {"name", "kind", "end", "tokens", "tokenizer"} <= about.keys():
            raise ValueError(f"{folder / VOCABULARY} was not written by python -m corpora tokenizer")
        super().__init__(folder)
        self.file: str = about["tokenizer"]["file"]
        if digest(folder / self.file) != about["tokenizer"]["sha256"]:
            raise ValueError(f"{folder / self.file} is not the one that {VOCABULARY} was written with: make the "
                             "tokenizer again")

    def encode(self, text: bytes) -> Any:
        """As `Words.encode`, in the type of shards."""
        return super().encode(text).astype(DTYPE)


@lru_cache(2)
def encoder(folder: Path) -> Encoder:
    """The encoder in a folder, read once."""
    return Encoder(folder)


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


def write(folder: Path, name: str, kind: str, end: int, tokens: list[bytes], file: str) -> None:
    """Write vocabulary.json beside the tokenizer's own file."""
    if len(tokens) > LARGEST:
        raise ValueError(f"{name} has {len(tokens):,} tokens, and shards have room for {LARGEST:,}")
    write_text(folder / VOCABULARY, json.dumps({
        "name": name, "kind": kind, "end": end, "tokenizer": {"file": file, "sha256": digest(folder / file)},
        "tokens": [token.decode("latin-1") for token in tokens]}))


def adopt(file: Path, folder: Path, name: str = "", end: str = "") -> None:
    """Write the folder of a tokenizer that somebody else trained: tokenizer.json, or a model of sentencepiece."""
    if not file.is_file():
        raise ValueError(f"there is no file {file}")
    if file.suffix == ".json":
        made = tokenizer_json(file)
        tokens, target = pieces(made), TOKENIZERS[0]
        ids = {token: made.token_to_id(token) for token in ([end] if end else ENDS)}
        at = next((i for i in ids.values() if i is not None), None)
    else:
        model = sentencepiece_model(file)
        tokens, target = [of_piece(model, i) for i in range(model.get_piece_size())], TOKENIZERS[1]
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
