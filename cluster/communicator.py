"""What do the ranks of a run agree on?  The communicator that train.py is handed: see tools/alone.py for one process.

    shard ""          data parallel: weights and what the optimiser remembers are on every rank
    shard optimizer   what it remembers of a parameter, and its gradient, are on the rank that owns it (as ZeRO 1 and 2)
    shard weights     so are the matrices of the blocks, gathered while a block computes (as ZeRO 3, FSDP)

Batches are dealt so that the numbers are those of one process that reads them all (gradients.py). In the consecutive
order, where every row goes on where it ended, each rank keeps its rows instead, and their running state.
"""

from __future__ import annotations

import ctypes
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from itertools import chain, islice, zip_longest
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from autograd import Tensor, host, tree_map
from cluster import weights
from cluster.fabric import Mpi
from cluster.gradients import Gradients
from config import Training
from hope import Hope, State
from optimizers import Optimizer
from tools import stopping
from tools.alone import Alone
from tools.machine import versions
from tools.telemetry import Telemetry, square

ROOT = Path(__file__).resolve().parent.parent
SHARDS = ("", "optimizer", "weights")


class Ranks(Alone):
    """The communicator of one of several processes."""

    def __init__(self, fabric: Mpi, shard: str = "", bucket: float = 4.0):
        """bucket: MB of gradients that travel together."""
        self.fabric, self.shard, self.bytes = fabric, shard, round(bucket * 2**20)
        self.rank, self.size = fabric.rank, fabric.size
        self.active, self.rows = self.size, False  # ranks whose batches count in this round; whether each has rows
        self.params: list[Any] = []
        self.owner: dict[int, int] | None = None
        self.gathered: dict[int, weights.Gathered] = {}

    # beginning ----------------------------------------------------------------------------------------------

    def spread(self, training: Training) -> Training:
        """A step takes `--accumulate` batches of each rank; in the consecutive order, `--batch` rows."""
        if training.order == "consecutive":
            return replace(training, batch=training.batch * self.size)
        return replace(training, accumulate=training.accumulate * self.size)

    def join(self, run: Any) -> None:
        self.rows = run.training.order == "consecutive"
        if self.rows and run.training.batch < self.size:
            raise ValueError(f"a batch of {run.training.batch} rows is too few for {self.size} ranks: each reads one "
                             "or more")
        self.params = run.optimizer.params
        self.owner = weights.owners(self.params, self.size) if self.shard else None
        self.gathered = {}
        for p, state in zip(self.params, run.optimizer.state, strict=True):
            if not self.own(p):
                state.clear()
        if self.shard == "weights" and self.owner:
            self.gathered = weights.shard(run.model, self.owner, self.fabric)
        named = run.model.parameters()
        groups = [[p for p in named if id(p) not in self.gathered], [p for p in named if id(p) in self.gathered]]
        self.gradients = Gradients(groups, self.owner, self.fabric, self.bytes, self.after)
        if self.rows and run.state:
            here = self.share(run.training.batch)
            run.state = run.state.map(lambda t: Tensor(t.data[here].copy()))
        trim()

    def meet(self, run: Any) -> None:
        """ValueError, on all ranks, unless all run the same program with the same packages, settings and data."""
        settings = asdict(run.config) | asdict(run.training)
        here = versions() | {"program": program(), "data": run.corpus.manifest()["sha256"], "step": run.step,
                             "weights": digest(p.data for p in run.optimizer.params)}
        here |= {name: settings[name] for name in settings if name not in ("data", "out", "quiet", "origin")}
        found = self.fabric.all(here)
        for rank, other in enumerate(found):
            for name, value in found[0].items():
                if other.get(name) != value:
                    both = [str(x)[:12] for x in (other.get(name), value)]
                    raise ValueError(f"rank {rank} has {both[0]} for {name}, and rank 0 has {both[1]}: all ranks need "
                                     "the same packages, files and data")

    def own(self, p: Any) -> bool:
        return self.owner is None or self.owner[id(p)] == self.rank

    def after(self, p: Any) -> None:
        if id(p) in self.gathered:
            self.gathered[id(p)].after(p)

    # a step -------------------------------------------------------------------------------------------------

    @contextmanager
    def in_step(self) -> Iterator[None]:
        asked = None
        try:
            with stopping.shielded() as asked:
                yield
        finally:
            if asked is not None:
                asked.held = False

    def share(self, rows: int) -> slice:
        """The rows of a batch that this rank reads."""
        return slice(rows * self.rank // self.size, rows * (self.rank + 1) // self.size)

    def deal(self, batches: Iterable[np.ndarray], rows: bool = False) -> Iterator[tuple[np.ndarray, float]]:
        if rows:
            for tokens in batches:
                self.active, here = self.size, tokens[self.share(len(tokens))]
                yield here, len(here) / len(tokens)
            return
        following = iter(batches)
        while dealt := list(islice(following, self.size)):
            self.active = len(dealt)  # where a last round is not full, the others read along, and it counts for nothing
            yield dealt[min(self.rank, len(dealt) - 1)], float(self.rank < len(dealt))

    def backward(self, loss: Tensor) -> None:
        taps = [(p, len(p.tap)) for bucket in self.gradients.buckets for p in bucket.params if p.tap is not None]
        self.gradients.backward(loss, self.active)
        for gathered in {id(g): g for g in self.gathered.values()}.values():
            gathered.free()
        for p, before in taps:  # the inputs of a layer, which a rung learns of itself
            found = self.fabric.all([x for x, _ in p.tap[before:]])[:self.active]
            p.tap[before:] = [(x, None) for x in chain(*found)] if self.own(p) else []

    def reduce(self) -> None:
        self.gradients.reduce()

    def add(self, squares: list[Any]) -> Any:
        if not self.owner:
            return sum(squares)
        own = [i for i, p in enumerate(self.params) if p.grad is not None]
        found = [pair for pairs in self.fabric.all(list(zip(own, squares, strict=True))) for pair in pairs]
        return sum(square for _, square in sorted(found, key=lambda pair: pair[0]))

    def step(self, optimizer: Optimizer) -> list[int]:
        fired = optimizer.step()
        if self.owner:
            moving = {id(p) for group in optimizer.groups if optimizer.clock % group["period"] == 0
                      for p in group["params"]} - self.gathered.keys()
            buckets = [b for b in self.gradients.buckets if any(id(p) in moving for p in b.params)]
            for bucket, sent in [(bucket, bucket.spread(lambda p: p.data)) for bucket in buckets]:
                whole = sent.wait()
                for p in bucket.params:
                    if not bucket.own(p):
                        p.data[...] = bucket.view(whole, p)
                        p.mark_changed()
        return fired

    # what all know ------------------------------------------------------------------------------------------

    def gather(self, found: list[Any]) -> list[Any]:
        missing = object()
        rounds = zip_longest(*self.fabric.all(found), fillvalue=missing)
        return [one for ranks in rounds for one in ranks if one is not missing]

    def any(self, here: object) -> bool:
        return any(self.fabric.all(bool(here)))

    def first(self, make: Callable[[], Any]) -> Any:
        made, refused = None, ""
        if self.rank == 0:
            try:
                made = make()
            except ValueError as error:  # all of them are told: none waits for ever
                refused = str(error)
        made, refused = self.fabric.first((made, refused))
        if refused:
            raise ValueError(refused)
        return made

    def telemetry(self, model: Hope) -> Any:
        return Shared(self, model)

    def whole(self, model: Any, state: State | None, optimizer: Optimizer
              ) -> tuple[Any, State | None, dict[str, Any]] | None:
        if state and self.rows:
            state = self.all_rows(state)
        if not self.owner:
            return (model, state, optimizer.state_dict()) if self.rank == 0 else None
        def owner_of(name: str) -> int:
            return self.owner[id(optimizer.params[index(name)])] if index(name) >= 0 else 0  # type: ignore[index]
        parts = {f"weights.{name}": p.data for name, p in model.named_parameters()
                 if (self.owner[id(p)] if id(p) in self.gathered else 0) == self.rank}
        parts |= {name: value for name, value in optimizer.state_dict().items() if owner_of(name) == self.rank}
        described = self.fabric.all({name: (value.shape, value.dtype) if np.ndim(value) else value
                                     for name, value in parts.items()})
        if self.rank:
            for value in parts.values():
                if np.ndim(value):
                    self.fabric.send(value)
            return None
        found: dict[str, Any] = dict(parts)
        for rank, theirs in enumerate(described[1:], 1):
            found |= {name: Remote(self.fabric, rank, *what) if isinstance(what, tuple) else what
                      for name, what in theirs.items()}
        arrays = {name: found.pop(f"weights.{name}") for name, _ in model.named_parameters()}
        kept = dict(sorted(found.items(), key=lambda item: index(item[0])))
        return SimpleNamespace(config=model.config, state_dict=lambda: arrays), state, kept

    def all_rows(self, state: State) -> State:
        """The running state of all rows, in their order."""
        columns = zip(*self.fabric.all([t.data for t in state.leaves()]), strict=True)
        following = iter([Tensor(np.concatenate(parts)) for parts in columns])
        return State(tree_map(lambda t: next(following), state.blocks), state.clock)


class Remote:
    """An array of another rank, which comes when it is written: the whole of a model need not have room here."""

    def __init__(self, fabric: Mpi, rank: int, shape: tuple[int, ...], dtype: Any):
        self.come = lambda: fabric.receive(rank, shape, dtype)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.come()


class Shared(Telemetry):
    """What moved, and how far, of a model on several ranks."""

    def __init__(self, ranks: Ranks, model: Hope):
        self.ranks = ranks
        super().__init__(model)

    def weights(self) -> dict[int, list[np.ndarray]]:
        if not self.ranks.gathered:
            return super().weights() if self.ranks.rank == 0 else {}
        return {chunk: [p.data.copy() for p in params if self.ranks.own(p)] for chunk, params in self.params().items()}

    def params(self) -> dict[int, list[Any]]:
        found: dict[int, list[Any]] = {}
        for block in self.model.blocks:
            for level in block.cms.levels:
                found.setdefault(level.chunk, []).extend(level.parameters())
        return found

    def levels(self) -> tuple[dict[str, float], dict[str, float]]:
        if not self.ranks.gathered:
            return super().levels()
        before, self.before = self.before, self.weights()
        moved, sizes = {}, {}
        for chunk, params in self.params().items():
            own = [i for i, p in enumerate(params) if self.ranks.own(p)]
            squares = sorted(chain(*self.ranks.fabric.all([
                (i, square(new - old), square(old), square(new))
                for i, new, old in zip(own, self.before[chunk], before[chunk], strict=True)])))
            change, was, size = (math.sqrt(float(sum(column))) for column in list(zip(*squares, strict=True))[1:])
            moved[str(chunk)], sizes[str(chunk)] = change / was, size
        return moved, sizes

    def writes(self, state: State) -> dict[str, float]:
        held = super().writes(state)
        found = self.ranks.fabric.all((held, len(state.leaves()[0]) if held else 0))
        if not self.ranks.rows:
            return found[self.ranks.active - 1][0]  # of the last batch
        rows = sum(n for _, n in found)
        return {name: math.sqrt(math.fsum(n * one[name] ** 2 for one, n in found) / rows) for name in held}


def index(name: str) -> int:
    """Of which parameter this is, in a saved state of an optimiser: AdamW.3.m → 3; −1 of none."""
    number = name.split(".")[1]
    return int(number) if number.isdigit() else -1


def program() -> str:
    """A hash of all that the ranks run."""
    sha = hashlib.sha256()
    for path in sorted([*ROOT.glob("*.py"), *(p for room in ("kernels", "tools", "cluster", "gpu")
                                              for p in (ROOT / room).rglob("*.py"))]):
        sha.update(path.read_bytes())
    return sha.hexdigest()


def digest(arrays: Iterable[Any]) -> str:
    sha = hashlib.sha256()
    for array in arrays:
        sha.update(np.ascontiguousarray(host(array)).data)
    return sha.hexdigest()


def trim() -> None:
    """Give back to the system what was freed; kernels/runtime.py lets the allocator keep it."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
