"""What does an adopted model forget when it goes on with another text, by the levels its MLPs are placed in?

    pip install -r apps/adopt/requirements.txt
    python -m apps.adopt.example            writes docs/adopt.json and the tables in docs/adopt.md
    python -m apps.adopt.example --table    the tables alone, of what was measured

A small Llama learns the documentation of Python (the topics of `help`), and is written as transformers writes it. It is
adopted in several ways, and each goes on with the source of Python's library. Measured are bits per byte of validation
texts of both, with all levels standing still. Chunk sizes count steps of the optimiser; a chunk of 1,000,000 steps is
never over: such levels are frozen.

The model as it was adopted also reads some source twice, learning while it reads, its levels in 1, 4, 16.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import optimizers
from apps.adopt import architectures, models, words
from autograd import no_grad
from data import Corpus, Segments, Text, fixed
from hope import Hope, State
from tools.console import amount
from tools.folder import write_text

NEVER = 1_000_000
WAYS = {"one level": (1,), "three levels, 1, 4, 16": (1, 4, 16), "the slowest third frozen": (1, 4, NEVER),
        "two thirds frozen": (1, NEVER, NEVER), "all MLPs frozen": (NEVER,)}
ABOUT = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 6, "num_attention_heads": 4,
         "num_key_value_heads": 2, "intermediate_size": 128, "rms_norm_eps": 1e-5, "hidden_act": "silu",
         "max_position_embeddings": 512, "tie_word_embeddings": True, "eos_token_id": 0}
SEEDS, FIRST, SECOND, BATCH, SEGMENT, WINDOWS, BYTES = (0, 1, 2), 300, 100, 8, 128, 32, 2 << 20
READINGS = ((16, 0.1), (16, 1.0), (0, 0.1), (0, 1.0))  # rank, and rate of every level


def corpora() -> dict[str, Corpus]:
    """Documentation and source, of what every Python brings along."""
    found = Corpus.default().documents
    kinds = {"documentation": [d for d in found if d.name.startswith("topics/")], "source": []}
    size = 0
    for document in found:
        if document.name.startswith("stdlib/") and size < BYTES:
            kinds["source"].append(document)
            size += document.size
    return {name: Corpus(documents) for name, documents in kinds.items()}


def vocabulary(folder: Path, texts: list[Text]) -> words.Words:
    """A tokenizer of 2,000 tokens that learned from both training texts, in the files of a run."""
    import tokenizers
    from tokenizers import decoders, pre_tokenizers, trainers

    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.train_from_iterator((text.read(0, len(text)).tobytes().decode("utf-8", "replace") for text in texts),
                             trainers.BpeTrainer(vocab_size=2000, special_tokens=["<|endoftext|>"],
                                                 initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                                 show_progress=False))
    made.save(str(folder / words.TOKENIZER))
    write_text(folder / words.ABOUT, json.dumps({"config": ABOUT, "files": {}}))
    return words.Words(folder)


def train(model: Hope, text: Text, steps: int, lr: float, seed: int) -> None:
    optimizer = optimizers.build("adamw", model.groups(weight_decay=0.0), lr=lr)
    segments = Segments(text, BATCH, SEGMENT, seed=seed)
    for step in range(steps):
        optimizer.lr_scale = optimizers.schedule("cosine", step, steps, 20, 0.1)
        optimizer.zero_grad()
        model.loss(next(segments))[0].backward()
        optimizers.clip_grad_norm(optimizer.params, 1.0)
        optimizer.step()


def bits(model: Hope, text: Text, known: words.Words, state: State | None = None) -> float:
    """Bits per byte of a validation text, by what the levels have learned so far."""
    nats, size = 0.0, 0
    with no_grad():
        for tokens in fixed(text, 1 if state else BATCH, SEGMENT, 12 * (BATCH if state else 1)):
            nats += model.loss(tokens, state)[0].item() * tokens[:, 1:].size
            size += known.count(tokens[:, 1:])
    return nats / size / math.log(2)


def read(model: Hope, text: Text, state: State | None, known: words.Words) -> tuple[float, State]:
    """Bits per byte of a text that is learned from while it is read, a window at a time, and the state then."""
    nats, size = 0.0, 0
    for tokens in fixed(text, 1, SEGMENT, WINDOWS):
        loss, state = model.learn(tokens, state.reset("memory") if state else None)
        nats += loss * (tokens.shape[1] - 1)
        size += known.count(tokens[:, 1:])
    assert state
    return nats / size / math.log(2), state.reset("memory")


def measure(seed: int) -> Iterator[dict[str, Any]]:
    """A model that learned the one text, and what going on with the other makes of it in each way."""
    both = corpora()
    with tempfile.TemporaryDirectory() as folder:
        known = vocabulary(Path(folder), [corpus.split("train") for corpus in both.values()])
        learn, held = ({name: corpus.split(side).encoded(known) for name, corpus in both.items()}
                       for side in ("train", "validation"))
        about, theirs = ABOUT | {"vocab_size": known.size}, Path(folder) / "theirs"
        first = Hope(architectures.config(about, theirs), np.random.default_rng(seed))
        train(first, learn["documentation"], FIRST, 2e-3, seed)
        models.write(theirs, first, about)
        for way, chunks in {"before": (1,), **WAYS}.items():
            model = models.read(theirs, chunks=chunks)
            if way != "before":
                train(model, learn["source"], SECOND, 1e-3, seed)
            yield {"seed": seed, "way": way, **{name: bits(model, text, known) for name, text in held.items()}}


        for rank, rate in READINGS:
            model = models.read(theirs, chunks=(1, 4, 16), drift_rank=rank, learn_rate=rate)
            once, state = read(model, learn["source"], None, known)
            twice, state = read(model, learn["source"], state, known)
            size = sum(d.data.nbytes for block in state.blocks for level in block.levels
                       for d in (level.drift or {}).values())
            yield {"seed": seed, "rank": rank, "rate": rate, "once": once, "twice": twice, "bytes": size,
                   "documentation": bits(model, held["documentation"], known, state)}


def readings(found: list[dict[str, Any]]) -> str:
    """The same of reading twice."""
    lines = ["| what a session may learn | rate | source, once | read again | documentation then (before) | size |",
             "| --- | --- | --- | --- | --- | --- |"]
    before = np.mean([line["documentation"] for line in found if line.get("way") == "before"])
    for rank, rate in READINGS:
        same = [line for line in found if (line.get("rank"), line.get("rate")) == (rank, rate)]
        once, twice, then = (np.mean([line[name] for line in same]) for name in ("once", "twice", "documentation"))
        lines.append(f"| {f'rank {rank}' if rank else 'all'} | {rate:g} | {once:.3f} | {twice:.3f} | {then:.3f} "
                     f"({before:.3f}) | {amount(same[0]['bytes'])} |")
    return "\n".join(lines)


def table(found: list[dict[str, Any]]) -> str:
    """The means over seeds, and how far seeds differ."""
    lines = ["| the model | documentation, read first | source, read then | forgotten | learned |",
             "| --- | --- | --- | --- | --- |"]
    of = {way: {name: np.array([line[name] for line in found if line.get("way") == way])
                for name in ("documentation", "source")} for way in ("before", *WAYS)}
    for way, now in of.items():
        forgot = now["documentation"] - of["before"]["documentation"]
        learned = of["before"]["source"] - now["source"]
        change = ["", ""] if way == "before" else [f"{x.mean():.3f} ± {x.std():.3f}" for x in (forgot, learned)]
        lines.append(f"| {way} | {now['documentation'].mean():.3f} | {now['source'].mean():.3f} | {change[0]} | "
                     f"{change[1]} |")
    return "\n".join(lines)


def main() -> None:
    made = argparse.ArgumentParser(prog="python -m apps.adopt.example", description=__doc__, allow_abbrev=False,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--table", action="store_true", help="the tables alone, of what was measured")
    given = made.parse_args()
    docs = Path(__file__).resolve().parents[2] / "docs"
    path, page = docs / "adopt.json", docs / "adopt.md"
    if not given.table:
        found = []
        for seed in SEEDS:
            for line in measure(seed):
                found.append(line)
                print(line, flush=True)
        write_text(path, "[" + ",\n ".join(json.dumps(line) for line in found) + "]\n")
    found = json.loads(path.read_text(encoding="utf-8"))
    for name, text in (("forgetting", table(found)), ("reading", readings(found))):
        print(text)
        begin, end = f"<!-- {name}: python -m apps.adopt.example -->\n", f"\n<!-- end of {name} -->"
        before, _, rest = page.read_text(encoding="utf-8").partition(begin)
        write_text(page, before + begin + text + end + rest.partition(end)[2])


if __name__ == "__main__":
    main()
