"""What do several processes that train one model have to agree on?  `Alone`: one has nobody to ask.

The root knows no other; cluster/ has one with the same methods, for ranks that talk through MPI.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from autograd import Tensor
from config import Training
from hope import Hope, State
from optimizers import Optimizer
from tools.telemetry import Telemetry


class Alone:
    """The communicator of a single process."""

    rank, size = 0, 1  # which process this is, of how many; only rank 0 writes files

    def spread(self, training: Training) -> Training:
        """The settings of a new run of which each process reads as much as was asked for."""
        return training

    def meet(self, run: Any) -> None:
        """A run has its weights; ValueError unless all others have the same, and all that they depend on."""

    def join(self, run: Any) -> None:
        """A run is about to go on, all its weights in place."""

    def in_step(self) -> AbstractContextManager:
        """Within, no process stops before `any` has told all of them."""
        return nullcontext()

    def deal(self, batches: Iterable[np.ndarray], rows: bool = False) -> Iterator[tuple[np.ndarray, float]]:
        """Of these batches those that this process reads, or of each its `rows`; and the share in it that they are."""
        return ((tokens, 1.0) for tokens in batches)

    def backward(self, loss: Tensor) -> None:
        """Send a loss back."""
        loss.backward()

    def reduce(self) -> None:
        """Let every gradient be the sum over all processes, added up in the order of the batches."""

    def add(self, squares: list[Any]) -> Any:
        """The sum of numbers, one for each parameter whose gradient is here."""
        return sum(squares)

    def step(self, optimizer: Optimizer) -> list[int]:
        """Take a step, each process for the parameters that are its own; which levels moved."""
        return optimizer.step()

    def gather(self, found: list[Any]) -> list[Any]:
        """What all have found, in the order of the batches that were dealt."""
        return found

    def any(self, here: object) -> bool:
        """Whether it is so in one of the processes."""
        return bool(here)

    def first(self, make: Callable[[], Any]) -> Any:
        """What rank 0 makes, for all."""
        return make()

    def telemetry(self, model: Hope) -> Any:
        return Telemetry(model)

    def whole(self, model: Any, state: State | None, optimizer: Optimizer
              ) -> tuple[Any, State | None, dict[str, Any]] | None:
        """All of a model, of its running state and of what its optimiser remembers, on rank 0; None on the others."""
        return model, state, optimizer.state_dict()
