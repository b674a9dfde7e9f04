"""What has a model learned, and what does it learn while it reads?

    python -m apps.evaluate text --run RUN --learn all --files book.txt    bits per byte, by position
    python -m apps.evaluate recall|needle|passkey --run RUN                what it finds again, how far back
    python -m apps.evaluate languages --run RUN                            trained on short words, asked long
    python -m apps.evaluate forgetting --run RUN --tasks a.txt b.txt       what is left of a after b
    python -m apps.evaluate multiple-choice --run RUN --questions q.jsonl  scored by likelihood
    python -m apps.evaluate claims recall                                  the paper's claims, one by one

Every task prints a table and writes TASK.json and TASK.png into the folder `evaluate` of the run, or into
--out. The weights in the run are never changed: a task that trains (--steps) trains a copy.

A text is read segment by segment. Within a segment a memory always writes: that is how the model reads.
`--learn` says what may outlast the segment: off nothing, memory what the memories hold (for attention: its
cache, which grows), levels what the levels of the continuum memory learned, all both. With `--threshold` only
a segment that surprises, with more bits per token than that, leaves anything behind. `--reset never` keeps
the state from one sample to the next.

Legend: B batch, T time, V vocabulary.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import hope
import optimizers
from apps.tasks import formal_language
from autograd import Tensor, enable_grad, grad, no_grad, tree_flatten
from config import Config
from data import IGNORE, Corpus, Text, encode, fixed
from hope import Hope, State, drifted
from layers import cross_entropy
from tools.command import Parser, typed
from tools.folder import vocabulary
from tools.plots import COLOURS, canvas

LEARN = ("off", "memory", "levels", "all")
LANGUAGES = ("parity", "aa", "abab", "anbn", "anbncn", "shuffle-dyck")
BIT = math.log(2)  # nats

Drawn = tuple[np.ndarray, np.ndarray]  # tokens and targets, both (B,T), IGNORE where nothing is asked

# Reading --------------------------------------------------------------------------------------------------


@dataclass
class Reader:
    """A model that reads, segment after segment, and what it may carry from one to the next."""

    model: Hope
    learn: str = "memory"
    threshold: float = 0.0  # bits per token
    reset: str = "sample"
    rate: float | None = None  # of the levels; None = the model's own
    segment: int = 0  # 0 = the model's own
    state: State | None = None

    def __post_init__(self) -> None:
        for name, allowed in (("learn", LEARN), ("reset", ("sample", "never"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose from {', '.join(allowed)}")
        self.segment = self.segment or self.model.config.segment

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


@enable_grad()
def learn_on(model: Hope, tokens: np.ndarray, state: State | None, rate: float, mean: bool = False
             ) -> tuple[Tensor, State]:
    """`Hope.learn` for training in the midst of it: logits of a segment (B,T+1), and the state after it.

    The logits can be trained on: their gradient reaches the initial states, as they have drifted; the drift itself
    is held still (first order). The mixer begins anew with every segment, so what is known of earlier ones is
    what the levels keep. mean: a level moves by the mean of its last C gradients, not by their sum.
    """
    state = (state or State.start(model.config)).reset("memory")
    drifts = [block.cms.drifts(past.levels, len(tokens))
              for block, past in zip(model.blocks, state.blocks, strict=True)]
    logits = model(tokens[:, :-1], drifted(state, drifts))[0]
    nats = cross_entropy(logits, tokens[:, 1:], reduction="sum") * (1 / (tokens.shape[1] - 1))
    leaves, rebuild = tree_flatten(drifts)
    grads = rebuild(grad(nats, leaves, retain_graph=True))
    rates = [rate / chunk if mean else rate for chunk in model.config.chunks]
    return logits, model.move_levels(state, state, drifts, grads, state.clock + 1, rates).detach()


def share_right(guesses: np.ndarray, targets: np.ndarray, whole: bool = False) -> float:
    """The share of asked positions that were answered rightly; `whole`: of rows without a wrong answer."""
    asked, right = targets != IGNORE, guesses == targets
    return float(np.mean(np.all(right | ~asked, axis=1)) if whole else np.mean(right[asked]))


def fit(model: Hope, draw: Callable[[], tuple[Any, Any]], steps: int, lr: float = 2e-3, *,
        schedule: str = "cosine", optimizer: optimizers.Optimizer | None = None, bar: Any = None,
        loss: Callable[[Any, Any], Tensor] | None = None) -> list[float]:
    """Train a model on what `draw` gives, by AdamW unless told otherwise; returns the losses, in nats."""
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
    return losses


# The tasks: their data ------------------------------------------------------------------------------------


def written_recall(rng: np.random.Generator, batch: int, pairs: int) -> Drawn:
    """Multi-query recall in bytes: "ab:37 cd:12 …", then the same pairs in another order, values asked."""
    names = rng.permuted(np.tile(np.arange(26 * 26), (batch, 1)), axis=1)[:, :pairs]
    values = rng.integers(100, size=(batch, pairs))
    order = rng.permuted(np.tile(np.arange(pairs), (batch, 1)), axis=1)
    colon, space = np.full_like(names, ord(":")), np.full_like(names, ord(" "))
    shown = np.stack([97 + names // 26, 97 + names % 26, colon, 48 + values // 10, 48 + values % 10, space],
                     axis=2)  # (B,pairs,6)
    again = np.take_along_axis(shown, order[:, :, None], axis=1)
    text = np.concatenate([shown, again], axis=1).reshape(batch, -1)
    asked = np.tile(np.repeat([False, True], pairs)[:, None] & np.isin(np.arange(6), (3, 4)), (batch, 1, 1))
    return text[:, :-1], np.where(asked.reshape(batch, -1), text, IGNORE)[:, 1:]


GRASS = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "
KINDS = ("single", "multi-key", "multi-value")


def hidden(rng: np.random.Generator, batch: int, length: int, kind: str, hay: Text | None = None) -> Drawn:
    """A number hidden in `length` bytes of hay (repeated sentences, if none), and asked for at the end.

    multi-key hides four sentences with four names and asks for one; multi-value hides two numbers of one name
    and asks for both, in their order. ValueError if the sentences do not fit.
    """
    rows = []
    for _ in range(batch):
        count = {"single": 1, "multi-key": 4, "multi-value": 2}[kind]
        names = [f"key {i}" for i in 10 + rng.choice(90, count, replace=False)]
        if kind != "multi-key":
            names = ["pass"] * count
        numbers = [str(n) for n in rng.integers(10000, 100000, count)]
        said = [f"The {name} number is {number}. " for name, number in zip(names, numbers, strict=True)]
        i = int(rng.integers(count))
        question = "".join(said) if kind == "multi-value" else said[i]
        answers = numbers if kind == "multi-value" else numbers[i:i + 1]
        room = length + 1 - sum(map(len, said)) - len(question)
        if room < count:
            raise ValueError(f"{kind} needs a context of {length + count - room} bytes, not {length}")
        if hay:
            start = int(rng.integers(max(len(hay) - room, 1)))
            noise = hay.read(start, min(start + room, len(hay))).tobytes().ljust(room)
        else:
            noise = (GRASS * (room // len(GRASS) + 1)).encode()[:room]
        cuts = [0, *sorted(rng.integers(room + 1, size=count).tolist()), room]
        text = b"".join(noise[a:b] + sentence.encode() for (a, b), sentence
                        in zip(pairwise(cuts), [*said, question], strict=True))
        tokens = np.frombuffer(text, np.uint8).astype(np.int64)
        target, at = np.full_like(tokens, IGNORE), len(text) - len(question)
        for number in answers:
            at = text.index(f"is {number}".encode(), at) + 3
            target[at:at + 5] = tokens[at:at + 5]
        rows.append((tokens[:-1], target[1:]))
    return np.stack([r[0] for r in rows]), np.stack([r[1] for r in rows])


def words(rng: np.random.Generator, rows: int, length: int, names: Sequence[str] = LANGUAGES) -> Drawn:
    """Words of formal languages, `rows` of each; a first token, 8 + its number, names the language."""
    tokens, targets = [], []
    for name in names:
        word, following = formal_language(name, rng, rows, length)
        tokens.append(np.hstack([np.full((rows, 1), 8 + LANGUAGES.index(name)), word]))
        targets.append(np.hstack([np.full((rows, 1), IGNORE), following]))
    return np.vstack(tokens), np.vstack(targets)


# The tasks ------------------------------------------------------------------------------------------------


def text(given: argparse.Namespace, model: Hope) -> dict[str, Any]:
    """Bits per byte by position, with and without learning while reading, in constant memory."""
    texts = [Text([d], d.name) for d in Corpus.from_paths(given.files).documents] if given.files else [
        Corpus.default().split("validation")]
    found = {}
    for learn in dict.fromkeys(("off", given.learn)):
        reader, segment = given.reader(model, learn=learn), given.segment or model.config.segment
        bits, seen, size, seconds = np.zeros(64), np.zeros(64), 0, time.perf_counter()
        total = sum(min(len(t) - 1, given.limit) for t in texts)
        with tqdm(total=total, unit="B", unit_scale=True, desc=learn, disable=given.quiet) as bar:
            for document in texts:
                reader.begin()
                end = min(len(document) - 1, given.limit)
                for t in range(0, end, segment):
                    n = min(segment, end - t)
                    nats = reader.step(document.read(t, t + n + 1).astype(np.int64)[None])[0][0]
                    bins = np.log2(np.arange(t, t + n) + 1).astype(int)  # 2ⁱ − 1 … 2ⁱ⁺¹ − 2 are one
                    np.add.at(bits, bins, nats / BIT)
                    np.add.at(seen, bins, 1)
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


def recall(given: argparse.Namespace, model: Hope) -> dict[str, Any]:
    """Multi-query associative recall: the share of the values told rightly, by the number of pairs."""
    counts = given.pairs
    return searched(given, model, "pairs", counts, {
        "values": lambda rng, n: written_recall(rng, given.batch, n)}, min(counts[len(counts) // 2], 700))


def needle(given: argparse.Namespace, model: Hope) -> dict[str, Any]:
    """A number hidden in real text: the share of samples in which every digit is told rightly, by context."""
    hay = (Corpus.from_paths(given.files) if given.files else Corpus.default()).split("validation")
    lengths = given.contexts or tuple(model.config.segment << i for i in range(4))
    return searched(given, model, "context", lengths, {
        kind: lambda rng, n, kind=kind: hidden(rng, given.batch, n, kind, hay) for kind in KINDS}, lengths[0])


def passkey(given: argparse.Namespace, model: Hope) -> dict[str, Any]:
    """A number hidden in repeated sentences: the share of samples told rightly, by context."""
    lengths = given.contexts or tuple(model.config.segment << i for i in range(4))
    return searched(given, model, "context", lengths, {
        "single": lambda rng, n: hidden(rng, given.batch, n, "single")}, lengths[0])


def searched(given: argparse.Namespace, model: Hope, what: str, sizes: Sequence[int],
             kinds: dict[str, Callable[[np.random.Generator, int], Drawn]], trained: int) -> dict[str, Any]:
    """What recall, needle and passkey share: train if asked to (kinds in turn), then ask at every size."""
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
    """Formal languages, trained on words of the first length, asked at every length: share of words known."""
    lengths = given.lengths
    rng = np.random.default_rng(given.seed)
    with tqdm(total=given.steps + len(lengths) * len(LANGUAGES), disable=given.quiet) as bar:
        fit(model, lambda: words(rng, given.batch, lengths[0]), given.steps, given.lr, bar=bar)
        found: dict[str, list[float]] = {name: [] for name in LANGUAGES}
        for length in lengths:
            for name in LANGUAGES:
                reader = given.reader(model).begin()
                same = np.random.default_rng([given.seed, length])
                tokens, targets = words(same, 32, length, [name])
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
    names = [Path(path).name for path in given.tasks]
    found, rows = {}, []
    for chunks in given.chunks or [config.chunks]:
        if chunks != config.chunks:
            model = Hope(with_levels(config, chunks), np.random.default_rng(given.seed))
        draws = [text_batches(c.split("train"), given.batch, config.segment, given.seed) for c in corpora]
        with tqdm(total=given.steps * len(draws), desc=str(chunks), disable=given.quiet) as bar:
            matrix = stream(model, draws, [lambda m, c=c: next_byte_accuracy(m, c.split("validation"), given)
                                           for c in corpora], given.steps, given.lr, bar)
        found[",".join(map(str, chunks))] = {"matrix": matrix.tolist(), **transfer(matrix)}
    for name, result in found.items():
        rows += [[f"{name}: {when}", *scores] for when, scores in
                 zip(["before", *(f"after {name}" for name in names)], result["matrix"], strict=True)]
        summed = ", ".join(f"{k} {v:+.3f}" for k, v in result.items() if k != "matrix")
        rows.append([summed, *[""] * len(names)])
    return {"head": ["accuracy on", *names], "rows": rows, "results": found, "y": "accuracy",
            "x": ("tasks learned", list(range(len(names) + 1))),
            "lines": {f"{chunks}: {name}": [row[i] for row in result["matrix"]]
                      for chunks, result in found.items() for i, name in enumerate(names)}}


def with_levels(config: Config, chunks: Sequence[int]) -> Config:
    """The same configuration with other levels and, but for rounding, as many parameters in them together."""
    hidden = config.hidden * len(config.chunks) // len(chunks)
    return replace(config, chunks=tuple(chunks), hidden=max(1, hidden))


def text_batches(text: Text, batch: int, segment: int, seed: int) -> Callable[[], Drawn]:
    """Random segments of a text, the next bytes to be predicted."""
    text.require(1, segment)
    rng = np.random.default_rng(seed)

    def draw() -> Drawn:
        windows = text.stack(rng.integers(len(text) - segment, size=batch).tolist(), segment)
        return windows[:, :-1], windows[:, 1:]
    return draw


def next_byte_accuracy(model: Hope, held_out: Text, given: argparse.Namespace) -> float:
    reader, right = given.reader(model), []
    for window in fixed(held_out, given.batch, min(model.config.segment, len(held_out) - 1), 8):
        right.append(np.mean(reader.begin().step(window)[1] == window[:, 1:]))
    return float(np.mean(right))


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


def multiple_choice(given: argparse.Namespace, model: Hope) -> dict[str, Any]:
    """Questions with choices: how often the likeliest choice, plain or per byte, is right."""
    if not given.questions:
        raise ValueError('give --questions FILE, with lines like {"context": "1 + 1 =", "choices": [" 2", '
                         '" 3"], "answer": 0}')
    right: dict[str, list[bool]] = {"plain": [], "per byte": []}
    reader, asked = given.reader(model), list(questions(Path(given.questions)))
    for context, choices, answer in tqdm(asked, disable=given.quiet):
        reader.begin()
        head, at = encode(context), 0
        while len(head) - at > reader.segment:  # all but what the choices follow directly
            reader.step(head[None, at:at + reader.segment + 1])
            at += reader.segment
        before, nats = reader.state, []
        for choice in choices:
            tail = encode(choice)
            reader.state = before
            found = reader.step(np.concatenate([head[at:], tail])[None])[0][0]
            nats.append((float(np.sum(found[-len(tail):])), len(tail)))
        reader.state = before
        if len(head) - at > 1:
            reader.step(head[None, at:])
        right["plain"].append(int(np.argmin([n for n, _ in nats])) == answer)
        right["per byte"].append(int(np.argmin([n / size for n, size in nats])) == answer)
    found = {name: float(np.mean(hits)) for name, hits in right.items()}
    found["chance"] = float(np.mean([1 / len(choices) for _, choices, _ in asked]))
    return {"head": ["score", "share right"], "rows": [[name, value] for name, value in found.items()],
            "results": found | {"questions": len(asked)}, "lines": {n: [v, v] for n, v in found.items()},
            "x": ("", [0, 1]), "y": "share right"}


def questions(path: Path) -> Iterator[tuple[str, list[str], int]]:
    """The lines of a file, checked; ValueError names the first that is not a question."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    for number, line in enumerate(filter(str.strip, lines), 1):
        try:
            found = json.loads(line)
            context, choices, answer = found["context"], found["choices"], found["answer"]
            if not (context and all(choices) and len(choices) > 1 and 0 <= answer < len(choices)):
                raise ValueError("it needs a context, choices, none empty, and an answer that counts from 0")
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, question {number}: {error}") from None
        yield context, choices, answer
    if not any(map(str.strip, lines)):
        raise ValueError(f"{path} is empty; give at least one question")


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
    figure, (panel,) = canvas(title, 1)
    label, xs = found["x"]
    if min(xs) > 0 and max(xs) / min(xs) > 4:
        panel.set_xscale("log", base=2)
        panel.set_xticks(xs[::len(xs) // 8 + 1], [f"{x:,}" for x in xs[::len(xs) // 8 + 1]])
    for i, (name, ys) in enumerate(found["lines"].items()):
        panel.plot(xs, ys, marker="o", markersize=3, color=COLOURS[i % len(COLOURS)], label=name,
                   linestyle="-" if i < len(COLOURS) else "--")
    panel.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    panel.set(xlabel=label, ylabel=found["y"])
    figure.savefig(path)


def parser() -> Parser:
    """All flags; each task reads those that concern it."""
    made = Parser(prog="python -m apps.evaluate", description=__doc__, allow_abbrev=False,
                  formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("task", choices=[*TASKS, "claims"])
    made.add_argument("names", nargs="*", metavar="CLAIM", help="with claims: which ones; none = all")
    for name, default, meaning in (
        ("run", "", "the folder of a run, with its checkpoint.npz"),
        ("out", "", "folder for TASK.json and TASK.png [the run's own; claims: docs/claims]"),
        ("learn", "memory", f"what may outlast a segment: {', '.join(LEARN)}"),
        ("threshold", 0.0, "bits per token below which a segment leaves nothing behind"),
        ("reset", "sample", "when the state is forgotten: sample or never"),
        ("rate", 0.0, "learning rate of the levels while reading; 0 = the model's"),
        ("segment", 0, "tokens read at a time; 0 = the model's"),
        ("seed", 0, "of the questions, and of training"),
        ("steps", -1, "train a copy first, so many steps; languages and forgetting: 200, others 0"),
        ("lr", 2e-3, "learning rate of that training"),
        ("batch", 8, "samples side by side"),
        ("samples", 4, "recall, needle, passkey: batches of each size"),
        ("limit", 1 << 20, "text: bytes of each file"),
        ("pairs", (2, 4, 8, 16, 32), "recall: how many pairs"),
        ("contexts", (), "needle, passkey: bytes; none = 1, 2, 4 and 8 segments"),
        ("lengths", (32, 64, 128, 256), "languages: of the words; training takes the first"),
        ("questions", "", "multiple-choice: a file of JSON lines"),
    ):
        kind = whole_numbers if isinstance(default, tuple) else type(default)
        made.add_argument(f"--{name}", type=kind, default=default, help=f"{meaning} [{typed(default)}]")
    made.add_argument("--files", nargs="+", help="text, needle: files, folders [this Python's own]")
    made.add_argument("--tasks", nargs="+", default=[], help="forgetting: files or folders, one per task")
    made.add_argument("--chunks", nargs="+", type=whole_numbers, help="forgetting: levels: 1 1,4 1,4,16")
    made.add_argument("--fresh", action="store_true", help="begin with new weights instead of the run's")
    made.add_argument("--quick", action="store_true", help="claims: two seeds, few steps; shows that it runs")
    made.add_argument("--quiet", action="store_true", help="no progress bar")
    return made


def whole_numbers(text: str) -> tuple[int, ...]:
    return tuple(int(item) for item in text.split(","))


def evaluate(given: argparse.Namespace) -> None:
    """Run one task on one run, and show what it found."""
    if not given.run:
        raise ValueError("which model? give the folder of a run: --run runs/…")
    for name in ("batch", "samples", "limit", "pairs", "contexts", "lengths", "segment", "threshold", "rate"):
        value, least = getattr(given, name), 0 if name in ("segment", "threshold", "rate") else 1
        if not all(least <= v < math.inf for v in (value if isinstance(value, tuple) else [value])):
            raise ValueError(f"{name} is {typed(value)}; it must be at least {least}")
    path = Path(given.run) / "checkpoint.npz"
    if not path.exists():
        raise ValueError(f"there is no checkpoint in {given.run}; give the folder of a run: --run runs/…")
    if vocabulary(path.parent).unit != "byte":
        raise ValueError(f"{given.run} is an adopted model with words of its own; only runs whose tokens are bytes are "
                         "evaluated")
    model = hope.load(path)[0]
    if given.fresh:
        model = Hope(model.config, np.random.default_rng(given.seed))
    if given.steps < 0:
        given.steps = 200 if given.task in ("languages", "forgetting") else 0
    given.reader = lambda model, learn=given.learn: Reader(
        model, learn, given.threshold, given.reset, given.rate or None, given.segment)
    given.reader(model)  # complains, if at all, before anything is read
    started = time.perf_counter()
    found = TASKS[given.task](given, model)
    out = Path(given.out or Path(given.run) / "evaluate")
    out.mkdir(parents=True, exist_ok=True)
    asked = {name: value for name, value in vars(given).items() if name != "reader"}
    kept = {"task": given.task, "asked": asked, "config": asdict(model.config), "results": found["results"],
            "seconds": round(time.perf_counter() - started, 1)}
    (out / f"{given.task}.json").write_text(json.dumps(kept, indent=1), encoding="utf-8")
    title = f"{given.task}: {TASKS[given.task].__doc__}".split(".")[0]
    draw_lines(found, title, out / f"{given.task}.png")
    print(f"{title}\n\n{table(found['head'], found['rows'])}\n\nwritten to {out / given.task}.json and .png")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns 0, 1 where training diverged, 2 for bad input, 130 after Ctrl+C."""
    try:
        given = parser().parse_args(arguments)
        if given.task == "claims":
            from apps import claims  # claims are made of tasks, so they import this file

            claims.run(given.names, Path(given.out) if given.out else None, given.quick, given.quiet)
        else:
            evaluate(given)
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"evaluate: error: {error}", file=sys.stderr)
        return 1 if isinstance(error, FloatingPointError) else 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
