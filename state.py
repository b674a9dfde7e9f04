"""What has reading changed?  The running state of a model, one per sequence, and its files.

A tree: in every block the state of its mixer, and of each level what it has drifted from its initial state. It is never
changed, only replaced; so whoever gives up in the middle still has the old one.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

import mixers
from autograd import Tensor, host, tree_leaves, tree_map
from cms import LevelState
from config import Config
from layers import AttentionState
from memory import MatrixState, OmegaState
from titans import TitansState


@dataclass(frozen=True)
class BlockState:
    """What reading has changed in one block."""

    mixer: Any  # its mixer's state; None before the first token
    levels: tuple[LevelState, ...]


@dataclass
class State:
    """What reading has changed, in every block."""

    blocks: list[BlockState]
    clock: int = 0  # of the levels: how often they have learned

    @classmethod
    def start(cls, config: Config) -> State:
        """The state before the first token."""
        return cls([BlockState(None, tuple(LevelState() for _ in config.block_chunks(b)))
                    for b in range(config.layers)])

    def leaves(self) -> list[Tensor]:
        """Its distinct tensors; the first axis of each is the batch."""
        return tree_leaves(self.blocks)

    def map(self, f: Callable) -> State:
        """The same state with f applied to every tensor."""
        return State(tree_map(f, self.blocks), self.clock)

    def detach(self) -> State:
        """The same values without history: gradients end here."""
        return self.map(Tensor.detach)

    def reset(self, what: str = "all") -> State:
        """A state without its memories ("memory"), what its levels learned ("levels"), or both ("all")."""
        if what not in ("all", "memory", "levels"):
            raise ValueError(f"reset {what!r}; choose all, memory or levels")
        blocks = [BlockState(b.mixer if what == "levels" else None,
                             b.levels if what == "memory" else tuple(LevelState() for _ in b.levels))
                  for b in self.blocks]
        return State(blocks, self.clock if what == "memory" else 0)

    @property
    def nbytes(self) -> int:
        """Size in memory, tensors that are shared counted once."""
        return int(np.sum([t.data.nbytes for t in self.leaves()]))

    def pack(self) -> dict[str, np.ndarray]:
        """Flat arrays for an .npz: every distinct tensor, and the shape of the tree as JSON."""
        leaves = self.leaves()
        number = {id(t): i for i, t in enumerate(leaves)}

        def spell(tree: Any) -> Any:
            if isinstance(tree, Tensor):
                return {"array": number[id(tree)]}
            if is_dataclass(tree):
                return {"is": type(tree).__name__} | {f.name: spell(getattr(tree, f.name)) for f in fields(tree)}
            if isinstance(tree, dict):
                return {key: spell(branch) for key, branch in tree.items()}
            return [spell(branch) for branch in tree] if isinstance(tree, (list, tuple)) else tree
        text = json.dumps({"blocks": spell(self.blocks), "clock": self.clock})
        return {"state": np.array(text)} | {f"state.{i}": np.asarray(host(t.data)) for i, t in enumerate(leaves)}

    @classmethod
    def unpack(cls, arrays: Any) -> State:
        """The state that `pack` flattened; tensors that were shared are shared again."""
        tensors: dict[int, Tensor] = {}

        def read(tree: Any) -> Any:
            if isinstance(tree, list):
                return tuple(read(branch) for branch in tree)
            if not isinstance(tree, dict):
                return tree
            if "array" in tree:
                i = tree["array"]
                tensors.setdefault(i, Tensor(arrays[f"state.{i}"]))
                return tensors[i]
            branches = {key: read(branch) for key, branch in tree.items() if key != "is"}
            return STATES[tree["is"]](**branches) if "is" in tree else branches
        found = json.loads(str(arrays["state"]))
        blocks = [read(block) for block in found["blocks"]]
        return cls([b if isinstance(b, BlockState) else block_before_types(b) for b in blocks], found["clock"])

    def save(self, path: str | Path) -> None:
        """Write the state to an .npz file (beside it first, then renamed)."""
        write_npz(path, self.pack())

    @classmethod
    def load(cls, path: str | Path) -> State:
        """Read a state that `save` wrote."""
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            return cls.unpack(arrays)


STATES = {kind.__name__: kind for kind in (
    BlockState, LevelState, AttentionState, MatrixState, OmegaState, TitansState, mixers.AdaState,
    mixers.GeneratorState, mixers.Bank, mixers.BanksState, mixers.CellState, mixers.RecurrentState)}


def write_npz(path: str | Path, arrays: dict[str, Any]) -> None:
    """Write arrays so that the file at `path` is at every moment either the old one or the new one, whole."""
    with replacing(Path(path)) as file:
        np.savez(file, **{name: host(array) for name, array in arrays.items()})


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Any]:
    """A file beside the one at `path`, to write bytes into; whole, it takes that one's place, else it is removed."""
    beside = path.with_name(path.name + ".part")
    try:
        with open(beside, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def block_before_types(block: dict[str, Any]) -> BlockState:
    """A block's state from a file written when states were plain dicts."""
    def typed(mixer: Any) -> Any:
        if isinstance(mixer, tuple):
            return tuple(typed(one) for one in mixer)
        if "now" in mixer:  # what is not shared with the state now is of a chunk that is not over
            begun = {name: list(layers) for name, layers in mixer["start"].items()
                     if layers[0] is not mixer["now"][name][0]}
            drift = {name: list(layers) for name, layers in mixer["now"].items()}
            return TitansState(mixer["tail"], mixer["position"], drift, begun, {})
        if "banks" in mixer:
            banks = tuple(mixers.Bank(**bank) for bank in mixer["banks"])
            return mixers.BanksState(mixer["tail"], mixer["position"], banks)
        for kind in (AttentionState, MatrixState, mixers.GeneratorState, mixers.CellState, mixers.RecurrentState):
            if {f.name for f in fields(kind)} == set(mixer):
                return kind(**mixer)
        raise ValueError(f"a state with {', '.join(mixer)} is of no mixer")
    levels = zip(block["drift"], block["pending"], strict=True)
    return BlockState(block["mixer"] and typed(block["mixer"]), tuple(LevelState(*level) for level in levels))
