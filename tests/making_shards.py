"""Folders of shards, made with NumPy alone: what the tests of several files read."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

MERGED = [("t", "h"), ("th", "e"), ("i", "n"), ("e", "r"), ("a", "n"), ("an", "d"), ("a", "r"), ("ar", "e"), ("i", "s"),
          ("0", "0"), ("\xc3", "\xa9")]  # é is two bytes
TOKENS = ["", *map(chr, range(256)), *(a + b for a, b in MERGED)]
END = 0


def tokens_of(text: str) -> list[int]:
    """The longest token first, and bytes where there is none: enough for what no library has to agree with."""
    found, rest = [], text.encode().decode("latin-1")
    while rest:
        piece = max((token for token in TOKENS if token and rest.startswith(token)), key=len)
        found.append(TOKENS.index(piece))
        rest = rest[len(piece):]
    return found


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def make(folder: Path, sources: dict[str, tuple[float, Sequence[str], Sequence[str]]], size: int = 1000,
         change: Callable[[dict[str, Any]], None] | None = None) -> Path:
    """A folder of shards of at most about `size` tokens; sources: weight, documents to train on, held out."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocabulary.json").write_text(json.dumps(
        {"name": "bytes and a few words", "kind": "bpe", "end": END, "tokens": TOKENS}), encoding="utf-8")
    shards: list[dict[str, Any]] = []
    for split in ("train", "validation"):
        for name, source in sources.items():
            held: list[int] = []
            texts: list[str] = []

            def write(split=split, name=name, held=held, texts=texts):
                number = sum(shard["split"] == split for shard in shards)
                file = folder / f"{split}-{number:05}.npy"
                np.save(file, np.array(held, "<u2"))
                shards.append({"file": file.name, "split": split, "source": name, "tokens": len(held),
                               "documents": len(texts), "bytes": sum(len(text.encode()) for text in texts),
                               "sha256": sha(file)})
                held.clear()
                texts.clear()
            for text in source[1] if split == "train" else source[2]:
                held += [*tokens_of(text), END]
                texts.append(text)
                if len(held) >= size:
                    write()
            if held:
                write()
    index = {"format": "nested-learning shards", "version": 1, "dtype": "uint16", "shards": shards,
             "vocabulary": {"file": "vocabulary.json", "name": "bytes and a few words", "size": len(TOKENS), "end": END,
                            "sha256": sha(folder / "vocabulary.json")},
             "sources": {name: {"weight": source[0]} for name, source in sources.items()}}
    if change:
        change(index)
    (folder / "index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def tokenizer(folder: Path) -> None:
    """The same vocabulary for the package tokenizers, in tokenizer.json."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    letters = [chr(byte if byte in plain else next(others)) for byte in range(256)]

    def lettered(token: str) -> str:
        return "".join(letters[ord(character)] for character in token)
    made = Tokenizer(models.BPE(vocab={lettered(token) or "<end>": i for i, token in enumerate(TOKENS)},
                                merges=[(lettered(a), lettered(b)) for a, b in MERGED]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken("<end>", special=True)])
    made.save(str(folder / "tokenizer.json"))


def lines(seed: int, count: int) -> list[str]:
    """Documents that are easy to predict."""
    rng = np.random.default_rng(seed)
    return [" ".join(f"{n} and the {n} are {2 * n}é\n" for n in rng.integers(100, size=5)) for _ in range(count)]
