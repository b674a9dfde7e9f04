"""Where does a weight live?  On the rank that owns it; the others have it while its block computes.

A block is computed under a checkpoint (autograd.checkpoint): forwards its matrices are gathered, used and let go; on
the way back they are gathered again, the block is computed again, and once its gradients are on their way they are let
go. Where levels move in the context, gradients are differentiated again, and with the weights that they were computed
with: those stay from the beginning of a window until the way back has passed their last use, and nothing is computed
twice.
What has no two axes, and what stands outside of blocks (embedding, the last norm), is on every rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from autograd import Tensor, checkpoint, grad_enabled, no_grad, tree_leaves, tree_map
from cluster.fabric import Mpi
from cluster.gradients import Layout
from hope import Block, Hope
from state import BlockState


def owners(params: Sequence[Any], size: int) -> dict[int, int]:
    """A rank for each parameter, the largest first to whoever has least: the same on all ranks."""
    loads, found = [0] * size, {}
    for p in sorted(params, key=lambda p: -p.data.size):
        found[id(p)] = rank = loads.index(min(loads))
        loads[rank] += p.data.size
    return found


def replace(p: Any, array: Any) -> None:
    """Let a parameter be another array with the same numbers, so that graphs which use it stay good."""
    object.__setattr__(p, "data", array)


class Gathered(Layout):
    """The matrices of a block: whole for as long as they are used."""

    def __init__(self, params: Sequence[Any], owner: dict[int, int], fabric: Mpi):
        super().__init__(params, owner, fabric)
        self.held = True
        self.waiting: set[int] = set()  # gradients that have not come yet

    def fetch(self) -> None:
        if self.held:
            return
        whole = self.spread(lambda p: p.data)
        array = whole.wait()
        for p in self.params:
            if not self.own(p):
                replace(p, self.view(array, p))
        self.held, self.waiting = True, {id(p) for p in self.params}

    def free(self) -> None:
        """Keep what is owned here; of the others only their shapes."""
        if self.held:
            for p in self.params:
                if not self.own(p):
                    replace(p, np.broadcast_to(np.zeros_like(p.data, shape=()), p.data.shape))
            self.held = False

    def after(self, p: Any) -> None:
        """A gradient has come."""
        self.waiting.discard(id(p))
        if not self.waiting:
            self.free()


class GatheredBlock(Block):
    """A block whose matrices are there only while it computes."""

    gathered: Gathered

    def __call__(self, x: Tensor, state: BlockState, last: int = 0) -> tuple[Tensor, BlockState]:
        past, after = tree_leaves((x, state)), None

        def compute(*leaves: Tensor) -> tuple[Tensor, ...]:
            nonlocal after
            self.gathered.fetch()
            given = {id(old): new for old, new in zip(past, leaves, strict=True)}
            heard, begun = tree_map(lambda leaf: given[id(leaf)], (x, state))
            after = Block.__call__(self, heard, begun, last)
            if not grad_enabled():
                self.gathered.free()
            return tuple(tree_leaves(after))
        found = checkpoint(compute, *past, parameters=self.parameters())
        results = dict(zip(map(id, tree_leaves(after)), found, strict=True))
        read: tuple[Tensor, BlockState] = tree_map(lambda leaf: results[id(leaf)], after)
        return read


class HeldBlock(Block):
    """A block whose matrices are there from its first use until the way back has passed it."""

    gathered: Gathered

    def __call__(self, x: Tensor, state: BlockState, last: int = 0) -> tuple[Tensor, BlockState]:
        self.gathered.fetch()
        found = super().__call__(x, state, last)
        if not grad_enabled():
            self.gathered.free()
        return found


class GatheredHope(Hope):
    """A model of such blocks: all ranks ask them for every token, whatever one of them owns."""

    step = no_grad()(Hope.__call__)


def shard(model: Hope, owner: dict[int, int], fabric: Mpi) -> dict[int, Gathered]:
    """Let every block keep only what is owned here; of each matrix of a block, what gathers it."""
    found: dict[int, Gathered] = {}
    model.__class__ = GatheredHope
    for block in model.blocks:
        matrices = [p for p in block.parameters() if p.ndim >= 2]
        gathered = Gathered(matrices, owner, fabric)
        block.__class__ = HeldBlock if model.config.in_context else GatheredBlock
        block.gathered = gathered  # type: ignore[attr-defined]
        gathered.free()
        found |= {id(p): gathered for p in matrices}
    return found
