"""What has a model learned, and what does it learn while it reads?

    python -m apps.evaluate text --run RUN --learn all --files book.txt    bits per byte, by position
    python -m apps.evaluate recall|needle|passkey --run RUN                what it finds again, how far back
    python -m apps.evaluate languages --run RUN                            trained on short words, asked long
    python -m apps.evaluate forgetting --run RUN --tasks a.txt b.txt       what is left of a after b
    python -m apps.evaluate multiple-choice --run RUN --questions q.jsonl  scored by likelihood
    python -m apps.evaluate optimisers --preset tiny --rates 0.001,0.01    which optimiser suits a setting
    python -m apps.evaluate claims --list                                  the paper's claims, one by one
    python -m apps.evaluate --list                                         all tasks, and the minutes each takes here

Without --run it takes the newest run, else the demonstration. Every task prints a table and writes TASK.json and
TASK.png into the folder `evaluate` of the run, or into --out. The weights in the run are never changed: a task that
trains (--steps) trains a copy.

A text is read segment by segment. Within a segment a memory always writes: that is how the model reads.
`--learn` says what may outlast the segment: off nothing, memory what the memories hold (for attention: its
cache, which grows), levels what the levels of the continuum memory learned, all both. With `--threshold` only
a segment that surprises, with more bits per token than that, leaves anything behind. `--reset never` keeps
the state from one sample to the next.

Legend: B batch, T time, V vocabulary.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    from tools import early

    early.settle(sys.argv)

import argparse
import importlib
import itertools
import json
import math
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import hope
import optimizers
from apps import estimate, optimisers
from apps.questions import multiple_choice
from apps.runs import DEMO, newest
from apps.tasks import KINDS, LANGUAGES, NAMES, Drawn, hidden, words, written_recall
from autograd import Tensor, no_grad
from config import Config
from data import IGNORE, Corpus, Document, Text, Vocabulary, fixed
from hope import Hope, State
from layers import cross_entropy
from shards import is_shards
from tools import console
from tools.checkpoint import find
from tools.command import Help, Parser, reading, typed
from tools.folder import expect_writable, vocabulary, write_text
from tools.plots import COLOURS, canvas, tried

LEARN = ("off", "memory", "levels", "all")
BIT = math.log(2)  # nats

# Reading --------------------------------------------------------------------------------------------------


@dataclass
class Reader:
    """A model that reads, segment after segment, and what it may carry from one to the next."""

    model: Hope
    learn: str = "memory"
    threshold: float = 0.0  # bits per token
    reset: str = "sample"
    rate: float | None = None  # of the levels; None = the model's own
    segment: int = 0  # 0 = the model's own; a tick of it where all learns and levels were trained to move in ticks
    state: State | None = None

    def __post_init__(self) -> None:
        for name, allowed in (("learn", LEARN), ("reset", ("sample", "never"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose from {', '.join(allowed)}")
        c = self.model.config
        tick = c.segment // c.ticks if c.in_context and self.learn == "all" else c.segment
        self.segment = self.segment or tick

    def begin(self) -> Reader:
        """A new sample begins."""
        if self.reset == "sample":
            self.state = None
        return self

    def step(self, window: np.ndarray, targets: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Read a segment, window (B,T+1): nats and guesses (B,T) for targets, or else for the next tokens."""
        with no_grad():
            logits, after = self.model(window[:, :-1], self.state)
            nats = cross_entropy(logits, window[:, 1:], reduction="none").data
            asked = nats if targets is None else cross_entropy(logits, targets, reduction="none").data
        if self.learn != "off" and np.mean(nats) >= self.threshold * BIT:
            if self.learn != "memory":
                after = self.model.learn(window, self.state, self.rate)[1]
            self.state = after.reset("memory") if self.learn == "levels" else after
        return asked, np.argmax(logits.data, axis=-1)

    def read(self, tokens: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Read a sample (B,T) to its end; returns the guesses (B,T)."""
        last = np.maximum(targets[:, -1:], 0)  # the answer to the last question, which no token gives
        windows = np.hstack([tokens, last])
        starts = range(0, tokens.shape[1], self.segment)
        return np.hstack([self.step(windows[:, t:t + self.segment + 1], targets[:, t:t + self.segment])[1]
                          for t in starts])


def share_right(guesses: np.ndarray, targets: np.ndarray, whole: bool = False) -> float:
    """The share of asked positions that were answered rightly; `whole`: of rows without a wrong answer."""
    asked, right = targets != IGNORE, guesses == targets
    return float(np.mean(np.all(right | ~asked, axis=1)) if whole else np.mean(right[asked]))


def fit(model: Hope, draw: Callable[[], tuple[Any, Any]], steps: int, lr: float = 2e-3, *,
        schedule: str = "cosine", optimizer: optimizers.Optimizer | None = None, bar: Any = None,
        loss: Callable[[Any, Any], Tensor] | None = None, after: Callable[[int], None] | None = None) -> list[float]:
    """Train a model on what `draw` gives, by AdamW unless told otherwise; returns the losses, in nats.

    `after` is told after every step how many have been taken.
    """
    optimizer = optimizer or optimizers.build("adamw", model.groups(), lr)
    losses = []
    for step in range(steps):
        tokens, targets = draw()
        optimizer.zero_grad()
        lowered = loss(tokens, targets) if loss else cross_entropy(model(tokens)[0], targets)
        lowered.backward()
        optimizers.clip_grad_norm(optimizer.params, 1.0)
        optimizer.lr_scale = optimizers.schedule(schedule, step, steps, min(20, steps // 10 + 1), 0.1)
        optimizer.step()
        losses.append(lowered.item())
        if not math.isfinite(losses[-1]):
            raise FloatingPointError(f"step {step + 1}: the loss is {losses[-1]}; try a lower --lr")
        if bar is not None:
            bar.update()
        if after is not None:
            after(step + 1)
    return losses


# The tasks ------------------------------------------------------------------------------------------------


def text(given: argparse.Namespace, model: Hope) -> dict[str, Any]:
    """Bits per byte by position, with and without learning while reading, in constant memory."""
    texts = [Text([d], d.name) for d in Corpus.from_paths(given.files).documents] if given.files else [
        Corpus.default().split("validation")]
    texts = [in_words(t, given.words, given.limit) for t in texts]
    found: dict[str, dict[str, Any]] = {}
    for learn in dict.fromkeys(("off", given.learn)):
        reader = given.reader(model, learn=learn)
        segment = reader.segment
        bits, seen, size, seconds = np.zeros(64), np.zeros(64), 0, time.perf_counter()
        total = sum(min(len(t) - 1, given.limit) for t in texts)
        with tqdm(total=total, unit="B", unit_scale=True, desc=learn, disable=given.quiet) as bar:
            for document in texts:
                reader.begin()
                end = min(len(document) - 1, given.limit)
                for t in range(0, end, segment):
                    n = min(segment, end - t)
                    tokens = document.read(t, t + n + 1).astype(np.int64)
                    nats = reader.step(tokens[None])[0][0]
                    if not np.all(np.isfinite(nats)):
                        raise FloatingPointError(f"after {t:,} tokens, learning {learn}, the model predicts numbers "
                                                 "that are not finite; choose a lower --rate")
                    bins = np.log2(np.arange(t, t + n) + 1).astype(int)  # 2ⁱ − 1 … 2ⁱ⁺¹ − 2 are one
                    np.add.at(bits, bins, nats / BIT)
                    np.add.at(seen, bins, given.words.sizes(tokens[1:]))
                    size = max(size, reader.state.nbytes if reader.state else 0)
                    bar.update(n)
        if not seen.sum():
            raise ValueError("there is nothing to predict in these files; give at least two bytes")
        used = np.flatnonzero(seen)
        found[learn] = {"bits per byte": float(bits.sum() / seen.sum()), "state bytes": size,
                        "microseconds per byte": 1e6 * (time.perf_counter() - seconds) / float(seen.sum()),
                        "by position": {int(2 ** (i + 1) - 1): float(bits[i] / seen[i]) for i in used}}
    positions = list(found["off"]["by position"])
    rows = [[f"up to {p:,}", *(f["by position"][p] for f in found.values())] for p in positions]
    rows += [[name, *(f[name] for f in found.values())] for name in found["off"] if name != "by position"]
    return {"head": ["position", *found], "rows": rows, "results": found,
            "x": ("position in the context", positions), "y": "bits per byte",
            "lines": {name: list(f["by position"].values()) for name, f in found.items()}}


def in_words(text: Text, words: Vocabulary, limit: int) -> Text:
    """The text in tokens, `limit` bytes of each document, each after the token that begins one."""
    if words.unit == "byte":
        return text
    begin, found = [] if words.start is None else [words.start], []
    for document in text.documents:
        tokens = np.append(begin, words.encode(document.read(0, min(document.size, limit)).tobytes())).astype(np.int64)
        found.append(Document(document.name, tokens, len(tokens)))
    return Text(found, text.name, words)


def spelled(words: Vocabulary, draw: Callable[[np.random.Generator, int], Drawn], rng: np.random.Generator, size: int
            ) -> Drawn:
    """What `draw` gives in bytes, in a model's own tokens; a token is asked for where any of its bytes is.

    Rows that end early are filled up with the token that ends a text. ValueError if its tokenizer changes the text.
    """
    tokens, targets = draw(rng, size)
    if words.unit == "byte":
        return tokens, targets
    rows, begin = [], [] if words.start is None else [words.start]
    for row, target in zip(np.hstack([tokens, np.maximum(targets[:, -1:], 0)]), targets, strict=True):
        text = row.astype(np.uint8).tobytes().decode("utf-8", "surrogateescape")
        whole = re.sub("[\udc80-\udcff]", "?", text).encode()  # a character cut in half
        said = words.encode(whole)
        if words.spell(said.tolist()).lstrip() != whole.lstrip():
            raise ValueError("the model's tokenizer changes the text in which the answers are hidden")
        ends = np.cumsum(words.sizes(said)) - (words.count(said) - len(whole))  # some begin a text with a space
        asked = np.concatenate([[0, 0], np.cumsum(target != IGNORE)])  # how many of the bytes so far
        hit = np.diff(asked[np.maximum(ends, 0)], prepend=0) > 0
        rows.append((np.append(begin, said).astype(np.int64),
                     np.append([IGNORE] * len(begin), np.where(hit, said, IGNORE)).astype(np.int64)))
    longest = max(len(said) for said, _ in rows)
    filled = np.stack([np.pad(said, (0, longest - len(said)), constant_values=words.ends[0]) for said, _ in rows])
    wanted = np.stack([np.pad(asked, (0, longest - len(asked)), constant_values=IGNORE) for _, asked in rows])
    return filled[:, :-1], wanted[:, 1:]


def recall(given: argparse.Namespace, model: Hope) -> dict[str, Any]:
    """Multi-query associative recall: the share of the values told rightly, by the number of pairs."""
    counts = given.pairs
    return searched(given, model, "pairs", counts, {
        "values": lambda rng, n: written_recall(rng, given.batch, n)}, min(counts[len(counts) // 2], NAMES))


def needle(given: argparse.Namespace, model: Hope) -> dict[str, Any]:
    """A number hidden in real text: the share of samples in which every digit is told rightly, by context."""
    hay = (Corpus.from_paths(given.files) if given.files else Corpus.default()).split("validation")

    def drawing(kind: str) -> Callable[[np.random.Generator, int], Drawn]:
        return lambda rng, n: hidden(rng, given.batch, n, kind, hay)
    lengths = estimate.contexts(given, model)
    return searched(given, model, "context", lengths, {kind: drawing(kind) for kind in KINDS}, lengths[0])


def passkey(given: argparse.Namespace, model: Hope) -> dict[str, Any]:
    """A number hidden in repeated sentences: the share of samples told rightly, by context."""
    lengths = estimate.contexts(given, model)
    return searched(given, model, "context", lengths, {
        "single": lambda rng, n: hidden(rng, given.batch, n, "single")}, lengths[0])


def searched(given: argparse.Namespace, model: Hope, what: str, sizes: Sequence[int],
             kinds: dict[str, Callable[[np.random.Generator, int], Drawn]], trained: int) -> dict[str, Any]:
    """What recall, needle and passkey share: train if asked to (kinds in turn), then ask at every size."""
    for draw, n in itertools.product(kinds.values(), sizes):  # complains, if at all, before anything is read
        draw(np.random.default_rng(0), n)
    kinds = {kind: partial(spelled, given.words, draw) for kind, draw in kinds.items()}
    rng, turn = np.random.default_rng(given.seed), list(kinds.values())
    with tqdm(total=given.steps + len(kinds) * len(sizes) * given.samples, disable=given.quiet) as bar:
        step = iter(range(given.steps))
        fit(model, lambda: turn[next(step) % len(turn)](rng, trained), given.steps, given.lr, bar=bar)
        found: dict[str, list[float]] = {}
        for kind, draw in kinds.items():
            reader, rng = given.reader(model), np.random.default_rng(given.seed + 1)
            for size in sizes:
                scores = []
                for _ in range(given.samples):
                    tokens, targets = draw(rng, size)
                    guesses = reader.begin().read(tokens, targets)
                    scores.append(share_right(guesses, targets, whole=what == "context"))
                    bar.update()
                found.setdefault(kind, []).append(float(np.mean(scores)))
    rows = [[size, *(scores[i] for scores in found.values())] for i, size in enumerate(sizes)]
    return {"head": [what, *found], "rows": rows, "results": found, "lines": found, "x": (what, list(sizes)),
            "y": "share right"}


def languages(given: argparse.Namespace, model: Hope) -> dict[str, Any]:
    """Formal languages, trained on words of the first length, asked at every length: share of words known.

    Of longer ones, words are asked that are longer than any that was trained on, where there are such.
    """
    lengths = given.lengths
    for length in lengths:  # complains, if at all, before anything is learned
        words(np.random.default_rng(0), 1, length)
    rng = np.random.default_rng(given.seed)
    with tqdm(total=given.steps + len(lengths) * len(LANGUAGES), disable=given.quiet) as bar:
        fit(model, lambda: words(rng, given.batch, lengths[0]), given.steps, given.lr, bar=bar)
        found: dict[str, list[float]] = {name: [] for name in LANGUAGES}
        for length in lengths:
            for name in LANGUAGES:
                reader = given.reader(model).begin()
                same = np.random.default_rng([given.seed, length])
                tokens, targets = words(same, 32, length, [name], lengths[0] + 1 if length > lengths[0] else 1)
                found[name].append(share_right(reader.read(tokens, targets), targets, whole=True))
                bar.update()
    rows = [[name, *scores] for name, scores in found.items()]
    return {"head": ["language", *map(str, lengths)], "rows": rows, "results": found, "lines": found,
            "x": ("length of the words", list(lengths)), "y": "share of words known"}


def forgetting(given: argparse.Namespace, model: Hope) -> dict[str, Any]:
    """A stream of tasks, by level count: what is known of task i after learning task j."""
    if len(given.tasks) < 2:
        raise ValueError("give two files or folders or more, to be learned in turn: --tasks a.txt b.txt")
    corpora, config = [Corpus.from_paths(path) for path in given.tasks], model.config
    parts = [[c.split(part).encoded(given.words) for part in ("train", "validation")] for c in corpora]
    names = [Path(path).name for path in given.tasks]
    if len(set(names)) < len(names):
        names = list(map(str, given.tasks))
    found, rows = {}, []
    weights, starts = model.state_dict(), "new weights" if given.fresh else "the run's weights"
    for chunks in given.chunks or [config.chunks]:
        learner, start = Hope(with_levels(config, chunks), np.random.default_rng(given.seed)), "new weights"
        if chunks == config.chunks:  # every row begins at its own start, whatever the others have learned
            learner.load_state_dict(weights)
            start = starts
        draws = [text_batches(train, given.batch, config.segment, given.seed) for train, _ in parts]
        scores = [scoring(held_out, given) for _, held_out in parts]
        with tqdm(total=given.steps * len(draws), desc=str(chunks), disable=given.quiet) as bar:
            matrix = stream(learner, draws, scores, given.steps, given.lr, bar)
        found[f"{','.join(map(str, chunks))} from {start}"] = {"matrix": matrix.tolist(), **transfer(matrix)}
    for name, result in found.items():
        rows += [[f"{name}: {when}", *scores] for when, scores in
                 zip(["before", *(f"after {name}" for name in names)], result["matrix"], strict=True)]
        summed = ", ".join(f"{k} {v:+.3f}" for k, v in result.items() if k != "matrix")
        rows.append([summed, *[""] * len(names)])
    return {"head": ["accuracy on", *names], "rows": rows, "results": found, "y": "accuracy",
            "x": ("tasks learned", list(range(len(names) + 1))),
            "lines": {f"{chunks}: {name}": [row[i] for row in result["matrix"]]
                      for chunks, result in found.items() for i, name in enumerate(names)},
            "frontier": {chunks: (result["forgetting"], result["average"]) for chunks, result in found.items()}}


def with_levels(config: Config, chunks: Sequence[int]) -> Config:
    """The same configuration with other levels and, but for rounding, as many parameters in them together."""
    before, after = (1 if config.cms == "spread" else len(levels) for levels in (config.chunks, chunks))  # in a block
    rates = config.level_rates if len(chunks) == len(config.chunks) else ()
    return replace(config, chunks=tuple(chunks), level_rates=rates, hidden=max(1, config.hidden * before // after))


def text_batches(text: Text, batch: int, segment: int, seed: int) -> Callable[[], Drawn]:
    """Random segments of a text, the next tokens to be predicted."""
    text.require(1, segment)
    rng = np.random.default_rng(seed)

    def draw() -> Drawn:
        windows = text.stack(rng.integers(len(text) - segment, size=batch).tolist(), segment)
        return windows[:, :-1], windows[:, 1:]
    return draw


def scoring(held_out: Text, given: argparse.Namespace) -> Callable[[Hope], float]:
    """What share of the next tokens of a text a model tells rightly."""
    def next_token_accuracy(model: Hope) -> float:
        readers: dict[int, Reader] = {}  # by the number of rows, of which the last window may have fewer
        hits, asked = 0, 0
        for window in fixed(held_out, given.batch, min(model.config.segment, len(held_out) - 1), 8):
            reader = readers.setdefault(len(window), given.reader(model))
            right = reader.begin().step(window)[1] == window[:, 1:]
            hits, asked = hits + int(np.sum(right)), asked + right.size
        return hits / asked
    return next_token_accuracy


def stream(model: Hope, draws: Sequence[Callable[[], Drawn]], scores: Sequence[Callable[[Hope], float]],
           steps: int, lr: float, bar: Any = None) -> np.ndarray:
    """Learn tasks one after the other; returns accuracy on task i after j of them, (tasks+1,tasks)."""
    optimizer = optimizers.build("adamw", model.groups(), lr)
    matrix = [[score(model) for score in scores]]
    for draw in draws:
        fit(model, draw, steps, lr, schedule="constant", optimizer=optimizer, bar=bar)
        matrix.append([score(model) for score in scores])
    return np.array(matrix)


def transfer(matrix: np.ndarray) -> dict[str, float]:
    """What a stream of tasks comes to (Lopez-Paz and Ranzato 2017).  matrix (tasks+1,tasks)

    average accuracy at the end; forgetting: how far a task fell from its best; backward transfer: how far
    from when it was learned; forward transfer: how far earlier tasks had brought it before it was.
    """
    last, tasks = matrix[-1], np.arange(matrix.shape[1])
    just, before = matrix[tasks + 1, tasks], matrix[tasks, tasks]
    best = np.max(matrix[1:], axis=0)
    return {"average": float(np.mean(last)), "forgetting": float(np.mean((best - last)[:-1])),
            "backward": float(np.mean((last - just)[:-1])),
            "forward": float(np.mean((before - matrix[0])[1:]))}


TASKS: dict[str, Callable[[argparse.Namespace, Hope], dict[str, Any]]] = {
    "text": text, "recall": recall, "needle": needle, "passkey": passkey, "forgetting": forgetting,
    "languages": languages, "multiple-choice": multiple_choice}

# What is shown --------------------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Columns of words and numbers, numbers to three places."""
    form = {str: "{}", int: "{:,}", float: "{:.3f}"}
    cells = [list(head), *([form[type(cell)].format(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in
                       enumerate(zip(row, widths, strict=True))) for row in cells]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def draw_lines(found: dict[str, Any], title: str, path: Path) -> None:
    """The task's picture: one line per series, labelled where it ends."""
    figure, (panel, *beside) = canvas(title, *[1] * (1 + ("frontier" in found)))
    label, xs = found["x"]
    if min(xs) > 0 and max(xs) / min(xs) > 4:
        panel.set_xscale("log", base=2)
        panel.set_xticks(xs[::len(xs) // 8 + 1], [f"{x:,}" for x in xs[::len(xs) // 8 + 1]])
    for i, (name, ys) in enumerate(found["lines"].items()):
        panel.plot(xs, ys, marker="o", markersize=3, color=COLOURS[i % len(COLOURS)], label=name,
                   linestyle="-" if i < len(COLOURS) else "--")
    panel.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    panel.set(xlabel=label, ylabel=found["y"])
    for panel in beside:  # what is known at the end, and what that costs of what was known
        for i, (name, (forgotten, known)) in enumerate(found["frontier"].items()):
            panel.plot(forgotten, known, marker="o", linestyle="", color=COLOURS[i % len(COLOURS)], label=name)
        panel.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), title="levels")
        panel.set(xlabel="forgetting", ylabel="average at the end")
    figure.savefig(path)


def parser() -> Parser:
    """All flags; each task reads those that concern it."""
    made = Parser(prog="python -m apps.evaluate", description=__doc__, allow_abbrev=False,
                  formatter_class=Help)
    made.add_argument("task", nargs="?", choices=[*TASKS, "optimisers", "claims"])
    made.add_argument("names", nargs="*", metavar="CLAIM", help="with claims: which ones; none = all but the long")
    for name, default, meaning in (
        ("run", "", "the folder of a run; none = the newest, else the demonstration"),
        ("out", "", "folder for TASK.json and TASK.png [the run's own; claims: docs/claims]"),
        ("learn", "memory", f"what may outlast a segment: {', '.join(LEARN)}"),
        ("threshold", 0.0, "bits per token, in the mean of a batch, below which a segment leaves nothing behind"),
        ("reset", "sample", "when the state is forgotten: sample or never"),
        ("rate", 0.0, "learning rate of the levels while reading; 0 = the model's"),
        ("segment", 0, "tokens read at a time; 0 = the model's"),
        ("seed", 0, "of the questions, and of training"),
        ("steps", -1, "train a copy first, so many steps; languages, forgetting: 200, optimisers: the preset's"),
        ("preset", "tiny", "optimisers: whose model and training"),
        ("seeds", 3, "optimisers: runs at the best rate"),
        ("lr", 2e-3, "learning rate of that training"),
        ("batch", 8, "samples side by side"),
        ("samples", 4, "recall, needle, passkey: batches of each size"),
        ("limit", 1 << 20, "text: bytes of each file"),
        ("pairs", (2, 4, 8, 16, 32), "recall: how many pairs"),
        ("contexts", (), "needle, passkey: bytes; none = 1, 2, 4 and 8 segments, at least 160"),
        ("lengths", (32, 64, 128, 256), "languages: of the words; training takes the first"),
        ("questions", "", "multiple-choice: a file of JSON lines"),
    ):
        kind = whole_numbers if isinstance(default, tuple) else type(default)
        made.add_argument(f"--{name}", type=kind, default=default, help=f"{meaning} [{typed(default)}]")
    made.add_argument("--rates", type=numbers, default=(), help="optimisers: those to try [three around its own]")
    made.add_argument("--optimizers", nargs="+", default=["adamw", "muon", "m3"], help="[adamw muon m3]")
    made.add_argument("--files", nargs="+", help="text, needle, optimisers: files, folders [this Python's own]")
    made.add_argument("--tasks", nargs="+", default=[], help="forgetting: files or folders, one per task")
    made.add_argument("--chunks", nargs="+", type=whole_numbers, help="forgetting: levels: 1 1,4 1,4,16")
    made.add_argument("--fresh", action="store_true", help="begin with new weights instead of the run's")
    made.add_argument("--list", action="store_true", help="what can be evaluated, and how long each takes")
    made.add_argument("--quick", action="store_true", help="claims: two seeds, few steps; shows that it runs")
    made.add_argument("--quiet", action="store_true", help="no progress bar")
    made.add_argument("--long", action="store_true", help="claims: those that take more than ten minutes, too")
    made.add_argument("--mpi", action="store_true", help="claims, optimisers: share the work, under mpirun (cluster/)")
    return made


def several(like: tuple[Any, ...]) -> Callable[[str], tuple[Any, ...]]:
    """How a list of such numbers is read: at least one."""
    def read(text: str) -> tuple[Any, ...]:
        if not (found := reading("", like)["type"](text)):
            raise argparse.ArgumentTypeError("a list with nothing in it; give numbers with commas between")
        return tuple(found)
    return read


whole_numbers, numbers = several((1,)), several((1.0,))


def evaluate(given: argparse.Namespace) -> None:
    """Run one task on one run, and show what it found."""
    for name in ("batch", "samples", "limit", "pairs", "contexts", "lengths", "segment", "threshold", "rate"):
        value, least = getattr(given, name), 0 if name in ("segment", "threshold", "rate") else 1
        if not all(least <= v < math.inf for v in (value if isinstance(value, tuple) else [value])):
            raise ValueError(f"{name} is {typed(value)}; it must be at least {least}")
    if given.steps < -1:
        raise ValueError(f"steps is {given.steps}; it must be at least 0, or left out")
    for path in [*(given.files or []), *given.tasks]:
        if is_shards(path):
            raise ValueError(f"{path} is a folder of shards, and texts are wanted: name the files they were made from")
    started = time.perf_counter()
    if given.task == "optimisers":
        expect_writable(out := Path(given.out or "runs/optimisers"))
        found, about = optimisers.compare(given, given.pool.map if given.pool else map), {}
        title = f"optimisers: the preset {given.preset}, each at its best rate"
    else:
        model, run = opened(given)
        expect_writable(out := Path(given.out or (Path("runs/demo") if run == DEMO else run) / "evaluate"))
        found, title = TASKS[given.task](given, model), f"{given.task}: {TASKS[given.task].__doc__}".split(".")[0]
        about = {"config": asdict(model.config)}
    if given.pool and given.pool.rank:
        return
    out.mkdir(parents=True, exist_ok=True)
    asked = {name: value for name, value in vars(given).items() if name not in ("reader", "words", "pool")}
    kept = {"task": given.task, "asked": asked, **about, "results": found["results"],
            "seconds": round(time.perf_counter() - started, 1)}
    print(f"{title}\n\n{table(found['head'], found['rows'])}\n")
    write_text(out / f"{given.task}.json", json.dumps(kept, indent=1))
    draw = found.get("draw", lambda *where: draw_lines(found, *where))
    drawn = tried(lambda: draw(title, out / f"{given.task}.png"))
    print(f"written to {out / given.task}.json{' and .png' * drawn}")


def opened(given: argparse.Namespace) -> tuple[Hope, Path]:
    """The model that is meant and its run's folder; what is missing in `given` is filled in."""
    path = find(given.run or newest(Path("runs")))
    run, given.words = path.parent, vocabulary(path.parent)
    if given.words.unit != "byte" and given.task == "languages":
        raise ValueError(f"{run} has a model with tokens of its own, and the letters of these languages are none of "
                         "them; all other tasks can be asked")
    model = hope.load(path)[0]
    if not given.run:
        print(f"the run {run}")
    if given.fresh:
        model = Hope(model.config, np.random.default_rng(given.seed))
    if given.steps < 0 and given.task:
        given.steps = 200 if given.task in ("languages", "forgetting") else 0
    given.reader = lambda model, learn=given.learn: Reader(
        model, learn, given.threshold, given.reset, given.rate or None, given.segment)
    given.reader(model)  # complains, if at all, before anything is read
    return model, run


def pool(given: argparse.Namespace) -> Any:
    """The workers that share the task, if that was asked for: by name only, for it is another room's."""
    if not given.mpi:
        return None
    if given.task not in ("claims", "optimisers"):
        raise ValueError("--mpi shares claims and optimisers; leave it out")
    try:
        found = importlib.import_module("cluster.pool").Pool()
    except ImportError as error:
        raise ValueError(f"--mpi needs {error.name}: pip install -r cluster/requirements.txt") from None
    found.silent()
    given.quiet = given.quiet or found.rank > 0
    return found


def listed(given: argparse.Namespace) -> str:
    """All tasks, and about how long each would take with this run, here, with these flags."""
    model, run = opened(given)
    tasks = {name: task for name, task in TASKS.items() if given.words.unit == "byte" or name != "languages"}
    return (f"{estimate.listed(given, model, tasks)}\n\n(with {run.name}, of which one segment was timed; text: at "
            "most; forgetting: for two texts)")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns 0, 1 where numbers or memory overflowed, 2 for bad input, 130 after Ctrl+C."""
    console.ready()
    try:
        given = parser().parse_args(arguments)
        given.pool = pool(given)
        if not given.task and not given.list:
            raise ValueError(f"which task? choose from {', '.join([*TASKS, 'optimisers', 'claims'])}; see --list")
        if given.names and given.task != "claims":
            raise ValueError(f"{given.task} takes no name such as {given.names[0]!r}; files are given by --files")
        if not given.task or (given.list and given.task != "claims"):
            print(listed(given))
        elif given.task == "claims":
            from apps import claims  # claims are made of tasks, so they import this file

            if given.list:
                print(claims.listed())
                return 0
            claims.run(given.names, Path(given.out) if given.out else None, given.quick, given.quiet, given.pool,
                       given.long)
        else:
            evaluate(given)
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError, FloatingPointError, MemoryError) as error:
        full = "out of memory; choose a smaller --batch, or shorter texts" if isinstance(error, MemoryError) else ""
        print(f"evaluate: error: {full or console.reason(error)}", file=sys.stderr)
        return 2 if isinstance(error, (ValueError, OSError)) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
