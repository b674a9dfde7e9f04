"""Which tokens?  Unigram or BPE over bytes, learned from a sample of the text and measured on what is set aside.

Both begin with all 256 bytes, so that every text, and what is none, is spelled without loss. Text is cut into words
as GPT-2's is. BPE is learned by `tokenizers`. CHOICE: unigram is learned by `sentencepiece`, from words and their
numbers, since that of `tokenizers` differs from run to run; `tokenizers` computes with both.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from apps.adopt.words import byte_letters
from corpora import vocabulary
from corpora.lowest import Lowest
from corpora.mixture import Mixture
from corpora.pool import ordered, pieces
from corpora.sources import documents, needed
from corpora.vocabulary import Encoder
from shards import TOKENIZERS

KINDS = ("unigram", "bpe")
SMALLEST, LARGEST = 257, vocabulary.LARGEST  # every byte and the end
END = "< end >"  # no text spells it: within words a space is another letter
ASIDE = 20  # of so many documents one is not learned from, but measured on


class Sample:
    """Documents of every source by its weight, those with the lowest hashes: `learned`, and `aside` to measure on."""

    def __init__(self, mixture: Mixture, size: int) -> None:
        self.learned: list[bytes] = []
        self.aside: dict[str, list[bytes]] = {}
        for source in mixture.sources:
            room = max(int(size * mixture.shares()[source.name]), 1)
            lowest = Lowest[bytes](room)
            for document in documents(source):
                if text := document.text[:room]:
                    lowest.add(hashlib.sha256(document.text).digest(), len(text), text)
            found = list(lowest)
            self.aside[source.name] = found[::ASIDE] if len(found) > 1 else found
            self.learned += [text for n, text in enumerate(found) if n % ASIDE or len(found) == 1]
        if not self.learned:
            raise ValueError("there is no text in the sources")


def train(sample: Sample, kind: str, size: int, processes: int = 1) -> Any:
    """A tokenizer of at most `size` tokens, the end among them: fewer where the text has no more to offer."""
    if kind not in KINDS:
        raise ValueError(f"there is no kind {kind!r}: choose {' or '.join(KINDS)}")
    if not SMALLEST <= size <= LARGEST:
        raise ValueError(f"a vocabulary of {size} is out of range: from {SMALLEST} (bytes and the end) to {LARGEST}")
    tokenizers = needed("tokenizers", "python -m corpora tokenizer")
    model = (unigram if kind == "unigram" else bpe)(sample.learned, size - 1, processes)
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = words()
    made.decoder = tokenizers.decoders.ByteLevel()
    return made


def words() -> Any:
    """Cuts a text into words, a space before each, in letters that stand for bytes."""
    return needed("tokenizers", "corpora").pre_tokenizers.ByteLevel(add_prefix_space=False)


def bpe(texts: Sequence[bytes], size: int, processes: int) -> Any:
    tokenizers = needed("tokenizers", "corpora")
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = words()
    made.train_from_iterator((text.decode("utf-8", "replace") for text in texts), tokenizers.trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=byte_letters(), show_progress=False))
    found = json.loads(made.to_str())["model"]
    vocab = found["vocab"] | {END: len(found["vocab"])}
    return tokenizers.models.BPE(vocab=vocab, merges=list(map(tuple, found["merges"])))


def unigram(texts: Sequence[bytes], size: int, processes: int) -> Any:
    """Pieces and their log-probabilities; bytes that do not occur get the lowest of all."""
    tokenizers, sentencepiece = needed("tokenizers", "corpora"), needed("sentencepiece", "corpora")
    counts: Counter[str] = Counter()
    for found in ordered(count, ((piece,) for piece in pieces(texts, len)), processes):
        counts.update(found)
    missing = sorted(set(byte_letters()).difference(*counts))
    lines = (f"{word}\t{n}" for word, n in sorted(counts.items(), key=lambda item: (-item[1], item[0])))
    out = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines, model_writer=out, model_type="unigram", input_format="tsv",
            vocab_size=size - len(missing) + 1, hard_vocab_limit=False, character_coverage=1.0, num_threads=1,
            normalization_rule_name="identity", add_dummy_prefix=False, remove_extra_whitespaces=False,
            split_by_unicode_script=False, split_by_number=False, split_by_whitespace=False,
            max_sentence_length=1 << 20, unk_id=0, bos_id=-1, eos_id=-1, minloglevel=2)
    except RuntimeError as error:
        raise ValueError(f"sentencepiece cannot learn from this text: {' '.join(str(error).split())}") from None
    model = sentencepiece.SentencePieceProcessor(model_proto=out.getvalue())
    scored = [(model.id_to_piece(i), model.get_score(i)) for i in range(1, model.get_piece_size())]
    least = min(score for _, score in scored) - 10
    return tokenizers.models.Unigram([*scored, *((letter, least) for letter in missing), (END, least)], None, False)


def count(texts: Sequence[bytes]) -> Counter[str]:
    """How often each word occurs."""
    cut = words()
    return Counter(word for text in texts for word, _ in cut.pre_tokenize_str(text.decode("utf-8", "replace")))


def write(made: Any, folder: Path, name: str, kind: str) -> None:
    """Write tokenizer.json and vocabulary.json."""
    made.save(str(folder / TOKENIZERS[0]))
    letter = {character: byte for byte, character in enumerate(byte_letters())}
    tokens = [made.id_to_token(i) for i in range(made.get_vocab_size())]
    spelled = [b"" if token == END else bytes(letter[c] for c in token) for token in tokens]
    vocabulary.write(folder, name or f"{kind}-{len(tokens)}", kind, tokens.index(END), spelled, TOKENIZERS[0])


def report(encoder: Encoder, texts: dict[str, list[bytes]]) -> dict[str, Any]:
    """How well tokens do on texts, by source and in all.

    coverage: share of the bytes within tokens that are whole characters; used: share of the vocabulary that occurs.
    """
    whole = np.array([is_text(piece) for piece in encoder.pieces])
    rows, seen, started = {}, np.zeros(encoder.size, np.int64), time.perf_counter()
    for name, found in texts.items():
        row, held = {"documents": len(found), "bytes": 0, "tokens": 0, "lossless": True}, 0
        for text in found:
            ids = encoder.encode(text)
            seen += np.bincount(ids, minlength=encoder.size)
            row["bytes"] += len(text)
            row["tokens"] += len(ids)
            row["lossless"] &= encoder.spell(ids) == text
            held += int(encoder.lengths[ids][whole[ids]].sum())
        rows[name] = row | {"bytes per token": row["bytes"] / max(row["tokens"], 1),
                            "coverage": held / max(row["bytes"], 1)}
    total = {key: sum(row[key] for row in rows.values()) for key in ("documents", "bytes", "tokens")}
    return {"name": encoder.name, "size": encoder.size, "sha256": encoder.sha256, "sources": rows, "all": total | {
        "lossless": all(row["lossless"] for row in rows.values()),
        "bytes per token": total["bytes"] / max(total["tokens"], 1),
        "coverage": sum(row["coverage"] * row["bytes"] for row in rows.values()) / max(total["bytes"], 1),
        "used": float(np.mean(seen > 0)), "seconds": time.perf_counter() - started}}


def is_text(piece: bytes) -> bool:
    """Whether bytes are whole characters."""
    try:
        return bool(piece.decode())
    except UnicodeDecodeError:
        return False
