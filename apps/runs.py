"""What do the programs that talk share?  A trained run, and a place in a text: what was read, felt and moved.

    run = Run.open("runs/nano-20260101-120000")          Run.open() takes the newest
    for piece in read(run.model, Place(), tokens, learn=True):
        piece.tokens, piece.moved, piece.place

Tokens are bytes, or those of shards or of an adopted model. A `Place` is all that a reader keeps: the running state,
and the last token, which the state has not read yet. Places are never changed, only replaced; so whoever gives up in
the middle still has the old one.

Legend: T tokens of one piece, V vocabulary.
"""

from __future__ import annotations

import codecs
import hashlib
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

import cms
import hope
from autograd import no_grad
from data import Vocabulary
from hope import BlockState, Hope, State
from tools.checkpoint import find
from tools.folder import vocabulary

READ = 128  # tokens read at once; others get their turn in between
LEARN = 32  # CHOICE: tokens in a segment while talking; every clock ticks once per so many bytes of text
DEMO = Path(__file__).parent / "demo"  # a small trained run, for those who have none yet
END = 0     # the byte between two documents: a text begins after it, and the model writes it to stop


@dataclass
class Run:
    """A trained model, its name, and where its sessions are kept. Its files are only read."""

    folder: Path
    model: Hope
    fingerprint: str  # of configuration and weights: a state is of use only to the model it was made with
    words: Vocabulary = field(default_factory=Vocabulary)  # what its tokens stand for

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def sessions(self) -> Path:
        """Where sessions of its programs are kept: with the run, those of the demonstration below runs/."""
        return (Path("runs/demo").absolute() if self.folder == DEMO else self.folder) / "sessions"

    @classmethod
    def open(cls, folder: str | Path = "") -> Run:
        """The run in a folder, or of a checkpoint in it such as best.npz; by default the newest below runs/, else the
        demonstration. ValueError if there is none.
        """
        path = find(folder or newest(Path("runs")))
        folder, model = path.parent, hope.load(path)[0]
        words = vocabulary(folder)
        if words.unit == "byte" and model.config.vocabulary != words.size:
            raise ValueError(f"{folder} has a vocabulary of {model.config.vocabulary}; only bytes, 256, can "
                             "be talked to, or tokens with a vocabulary beside them")
        with np.load(path, allow_pickle=False) as file:  # settings as saved: newer ones are not its own
            sha = hashlib.sha256(str(file["config"]).encode())
        for name, weights in model.state_dict().items():
            sha.update(name.encode() + np.ascontiguousarray(weights).tobytes())
        return cls(folder.absolute(), model, sha.hexdigest(), words)


def newest(below: Path) -> Path:
    """The folder with the latest checkpoint, or else the demonstration; ValueError if there is neither."""
    found = sorted(below.glob("*/checkpoint.npz"), key=lambda path: path.stat().st_mtime)
    if not found and (DEMO / "checkpoint.npz").exists():
        return DEMO
    if not found:
        raise ValueError(f"no run is in {below.absolute()}; train one (python train.py --preset tiny) or "
                         "name its folder")
    return found[-1].parent


# Reading and writing ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """Where a reader stands: the running state, and the last token, unread (None before the very first)."""

    state: State | None = None
    last: int | None = END

    @property
    def drifted(self) -> bool:
        """Whether levels have learned, so that this sequence has weights of its own."""
        if self.state is None or isinstance(self.state, Row):  # who has drifted goes alone, not in a batch
            return False
        return any(level.drift is not None for block in self.state.blocks for level in block.levels)

    @property
    def nbytes(self) -> int:
        return self.state.nbytes if self.state else 0


@dataclass(frozen=True)
class Token:
    """A byte (or a token of another vocabulary), how probable it was before it came, and what was likelier."""

    byte: int
    log_p: float | None  # nats; None where nothing came before
    top: tuple[tuple[int, float], ...] = ()  # the likeliest bytes and their log-probabilities

    @property
    def bits(self) -> float | None:
        """How surprising it was, −log₂ p."""
        return None if self.log_p is None else -self.log_p / math.log(2)


def judge(tokens: Sequence[int], logits: np.ndarray, top: int = 0) -> list[Token]:
    """Tokens and the predictions (T,V) of them, whose first is left out where nothing came before."""
    x = logits.astype(np.float64)
    x -= np.max(x, axis=-1, keepdims=True)
    log_p = x - np.log(np.sum(np.exp(x), axis=-1, keepdims=True))
    found = [Token(tokens[0], None)] if len(tokens) > len(log_p) else []
    for token, row in zip(tokens[len(found):], log_p, strict=True):
        best = np.argsort(-row, kind="stable")[:top].tolist() if top else []
        found.append(Token(token, float(row[token]), tuple((i, float(row[i])) for i in best)))
    return found


@dataclass(frozen=True)
class Piece:
    """What reading a piece brought: its tokens, judged before they were read; what moved; the place after."""

    tokens: list[Token]
    moved: list[int]  # chunk sizes of the levels that changed
    place: Place


def read(model: Hope, place: Place, tokens: Sequence[int], learn: bool = False, top: int = 0
         ) -> Iterator[Piece]:
    """Read a text piece by piece; with `learn`, each is a segment that the due levels then learn from."""
    size = LEARN if learn else READ
    for start in range(0, len(tokens), size):
        piece = read_piece(model, place, list(tokens[start:start + size]), learn, top)
        place = piece.place
        yield piece


def read_piece(model: Hope, place: Place, tokens: list[int], learn: bool = False, top: int = 0) -> Piece:
    """Predict, read, and with `learn` let the levels move (the memories of the mixers always do)."""
    window = np.array([tokens if place.last is None else [place.last, *tokens]])  # (1,T+1)
    state, moved, logits = place.state, [], np.zeros((0, model.config.vocabulary))
    if window.shape[1] > 1:
        with no_grad():
            predicted, state = model(window[:, :-1], place.state)
        logits = predicted.data[0]  # (T,V)
        if learn:
            _, state = model.learn(window, place.state)
            moved = [chunk for chunk in model.config.chunks if cms.due(state.clock, chunk)]
    return Piece(judge(tokens, logits, top), moved, Place(state, tokens[-1]))


def predict(model: Hope, places: Sequence[Place]) -> list[tuple[np.ndarray, State]]:
    """Logits (V,) for the token after each place, and the state then; the places must be `alike`."""
    states = [place.state for place in places]
    logits, after = model.step(np.array([[place.last] for place in places]), stack(states))
    batch = Batch(after, len(states))
    rows = [after] if batch.size == 1 else [Row(batch, i, past) for i, past in enumerate(states) if past]
    return list(zip(logits.data[:, -1], rows, strict=True))


@dataclass(frozen=True)
class Batch:
    """Several states in one."""

    state: State
    size: int

    @cached_property
    def layout(self) -> str:
        return layout(self.state)


class Row(State):
    """One row of a batch, cut out when someone looks at it: mostly the same rows make up the next batch."""

    def __init__(self, batch: Batch, index: int, past: State):
        self.batch, self.index, self.clock = batch, index, past.clock
        self.counts = [n + 1 for n in counts(past)]

    @cached_property
    def blocks(self) -> list[BlockState]:  # type: ignore[override]  # made when someone looks
        i, own = self.index, iter(self.counts)
        return [branch(lambda t: hope.Tensor(t.data[i:i + 1].copy()), lambda _: next(own), block)
                for block in self.batch.state.blocks]


def branch(of_tensor: Callable, of_count: Callable, *trees: Any) -> Any:
    """The same tree with its tensors and its counts of tokens replaced; of several trees alike, by all of theirs.

    The trees of autograd.py will not do: to them a number is a part of the tree's shape, and counts differ by row.
    """
    first = trees[0]
    if isinstance(first, hope.Tensor):
        return of_tensor(*trees)
    if isinstance(first, int):
        return of_count(*trees)
    if isinstance(first, dict):
        return {key: branch(of_tensor, of_count, *(tree[key] for tree in trees)) for key in first}
    if isinstance(first, (list, tuple)):
        return type(first)([branch(of_tensor, of_count, *row) for row in zip(*trees, strict=True)])
    if is_dataclass(first):
        kind: Any = type(first)
        return kind(*[branch(of_tensor, of_count, *(getattr(tree, f.name) for tree in trees))
                      for f in fields(first)])
    return first


def counts(state: State) -> list[int]:
    """Every count of tokens in a state, in order."""
    if isinstance(state, Row):
        return state.counts
    found: list[int] = []
    branch(lambda t: t, lambda n: found.append(n) or n, state.blocks)  # type: ignore[func-returns-value]
    return found


def layout(state: State) -> str:
    """The shape of a state's tree, with the shapes of all arrays in it without the first axis, B."""
    def form(tree: Any) -> Any:
        if isinstance(tree, hope.Tensor):
            return tree.shape[1:]
        if isinstance(tree, dict):
            return list(tree), [form(branch) for branch in tree.values()]
        if isinstance(tree, (list, tuple)):
            return [form(branch) for branch in tree]
        return form(vars(tree)) if is_dataclass(tree) else 0 if isinstance(tree, int) else tree
    return str(form(state.blocks))


def alike(model: Hope, place: Place) -> Any:
    """A key: places of the same key can be predicted from together, in one batch.

    Their states have the same arrays, and are alike in whether the next token ends a chunk. A number is the
    key of one that goes alone: at the very beginning, and where levels have drifted, for weights of one's own
    save no time in a batch.
    """
    state = place.state
    if state is None or place.drifted or (not isinstance(state, Row) and state.blocks[0].mixer is None):
        return id(place)
    position, clocks = max(counts(state), default=0), model.blocks[0].mixer.clocks
    ends = [(position + 1) % C == 0 for C in clocks.values() if C > 1]
    return f"{ends} {state.batch.layout if isinstance(state, Row) else layout(state)}"


def stack(states: Sequence[State | None]) -> State | None:
    """One state for a batch; counts of tokens in it are those of the first row."""
    first = states[0]
    if first is None or len(states) == 1:
        return first
    if isinstance(first, Row) and len(states) == first.batch.size and all(
            isinstance(state, Row) and state.batch is first.batch and state.index in (0, i)
            for i, state in enumerate(states)):
        return first.batch.state  # the same rows as before; those that only fill it up may be anything
    sources: dict[int, tuple[Any, list[int], list[int]]] = {}  # where rows come from, where they go to, and which
    for i, state in enumerate(states):
        whole, row = (state.batch.state, state.index) if isinstance(state, Row) else (state or first, 0)
        _, places, rows = sources.setdefault(id(whole), (whole, [], []))
        places.append(i)
        rows.append(row)

    def gathered(*tensors: hope.Tensor) -> hope.Tensor:
        made = np.empty((len(states), *tensors[0].shape[1:]), tensors[0].dtype)
        for tensor, (_, places, rows) in zip(tensors, sources.values(), strict=True):
            made[places] = tensor.data[rows]
        return hope.Tensor(made)
    own, trees = iter(counts(first)), [whole.blocks for whole, _, _ in sources.values()]
    return State(branch(gathered, lambda *_: next(own), *trees), first.clock)


def padding(model: Hope, places: int = 12) -> int:
    """The number of rows to whose multiples a batch is filled up, lest a result depend on who else is in it.

    BLAS may add in another order for another number of rows. Tried out: the smallest of 1, 4, 8, 16 for which
    batches of several sizes, rows in any order, give the same bits; 0 if none does, and then every sequence
    goes alone.
    """
    rng, stand = np.random.default_rng(0), begun(model, places)
    for rows in (1, 4, 8, 16):
        seen: list[set[bytes]] = [set() for _ in stand]
        for size in (1, places // 2, places):
            chosen = rng.permutation(places)[:size]
            filled = [*chosen, *[chosen[0]] * (-size % rows)]
            for i, (logits, _) in zip(filled, predict(model, [stand[i] for i in filled]), strict=True):
                seen[i].add(logits.tobytes())
        if all(len(found) <= 1 for found in seen):
            return rows
    return 0


def begun(model: Hope, places: int) -> list[Place]:
    """Places after three tokens of noise each, that can be predicted from together."""
    rng, size = np.random.default_rng(0), min(256, model.config.vocabulary)
    return [read_piece(model, Place(), rng.integers(size, size=3).tolist()).place for _ in range(places)]


def price_alone(model: Hope, places: int = 8) -> float:
    """How many times the processor time of a batch it takes to predict from so many places one by one."""
    stand, seconds = begun(model, places), []
    for batches in ([stand], [[place] for place in stand]):
        predict(model, batches[0])  # compiles what is not
        started = time.process_time()
        for batch in batches:
            predict(model, batch)
        seconds.append(time.process_time() - started)
    return seconds[1] / max(seconds[0], 1e-9)


# What a person sees -----------------------------------------------------------------------------------------


def distances(model: Hope, state: State | None) -> dict[str, float]:
    """How far each kind of memory and each level has drifted, as a share of the norm of its initial state."""
    found: dict[str, list[float]] = {}

    def add(name: str, drift: Any, initial: Any) -> None:
        sums = found.setdefault(name, [0.0, 0.0])
        sums[0] += float(np.vdot(drift, drift))
        sums[1] += float(np.vdot(initial, initial))
    for block, past in zip(model.blocks, state.blocks if state else (), strict=state is not None):
        for name, pairs in (block.mixer.drift(past.mixer) if past.mixer else {}).items():
            for change, initial in pairs:
                add(name, change[0], initial)
        for level, its in zip(block.cms.levels, past.levels, strict=True):
            for name, weight in level.weights().items():
                add(f"level {level.chunk}", its.drift[name].data if its.drift else 0.0, weight.data)
    return {name: math.sqrt(moved / size) for name, (moved, size) in found.items()}


class Utf8:
    """Bytes to text as they come: a character appears when its last byte has, and a broken one as U+FFFD."""

    def __init__(self) -> None:
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, tokens: Iterable[int], final: bool = False) -> str:
        return self.decoder.decode(bytes(tokens), final)


class Stops:
    """Holds back what may be the beginning of a stop sequence."""

    def __init__(self, stops: Sequence[bytes]):
        self.stops, self.held, self.hit = list(stops), bytearray(), False

    def feed(self, token: int) -> int:
        """Take a token; returns how many of the oldest held ones are free. `hit`: a stop is complete."""
        self.held.append(token)
        whole = next((stop for stop in self.stops if self.held.endswith(stop)), None)
        self.hit = whole is not None
        begun = (n for stop in self.stops for n in range(1, len(stop)) if self.held.endswith(stop[:n]))
        keep = len(whole) if whole else max(begun, default=0)
        free = len(self.held) - keep
        del self.held[:free]
        return free


def without_start(words: Vocabulary, place: Place, tokens: Sequence[int]) -> Sequence[int]:
    """Tokens to read from a place: what begins a text is in the place, and templates write it, too."""
    twice = words.taught and place.state is None and len(tokens) > 0 and tokens[0] == place.last
    return tokens[1:] if twice else tokens


def conversation(messages: Iterable[tuple[str, str]]) -> str:
    """Role and content of each message as text that the model goes on with; TEMPLATE says the same in Jinja.

    What is sent back with an answer in it begins with what was sent before: so a session reads only what is
    new.
    """
    return "".join(f"{role}: {content}\n" for role, content in messages) + "assistant: "


TEMPLATE = ("{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
            "{% if add_generation_prompt %}assistant: {% endif %}")
TURN = b"\nuser:"  # where the model begins to speak for the person, it has said all


def process_bytes() -> int:
    """Memory that this process holds now, or, where the system does not tell, at most held."""
    with suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    with suppress(ImportError):
        import resource  # not on Windows

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    return 0
