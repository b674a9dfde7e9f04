"""What moved, and how far?  The numbers that a line of the log has about levels and memories."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from hope import Hope, State


class Telemetry:
    """What the levels of a model were when they were last looked at."""

    def __init__(self, model: Hope):
        self.model = model
        self.before = self.weights()

    def weights(self) -> dict[int, list[np.ndarray]]:
        """A copy of the weights of all levels, by chunk size."""
        found: dict[int, list[np.ndarray]] = {}
        for block in self.model.blocks:
            for level in block.cms.levels:
                found.setdefault(level.chunk, []).extend(p.data.copy() for p in level.parameters())
        return found

    def measure(self, state: State) -> dict[str, dict[str, float]]:
        """How far each level has moved since the last time, ‖Δθ‖/‖θ‖, its ‖θ‖, and how much its memories hold."""
        moved, sizes = self.levels()
        return {"level_change": moved, "level_norm": sizes, "memory_writes": self.writes(state)}

    def levels(self) -> tuple[dict[str, float], dict[str, float]]:
        before, self.before = self.before, self.weights()
        moved = {str(chunk): norm([a - b for a, b in zip(self.before[chunk], before[chunk], strict=True)])
                 / norm(before[chunk]) for chunk in before}
        return moved, {str(chunk): norm(arrays) for chunk, arrays in self.before.items()}

    def writes(self, state: State) -> dict[str, float]:
        """Root mean square of what each kind of memory holds beyond its initial state."""
        found: dict[str, list[np.ndarray]] = {}
        for block, past in zip(self.model.blocks, state.blocks, strict=True):
            for name, drifts in (block.mixer.drift(past.mixer) if past.mixer else {}).items():
                found.setdefault(name, []).extend(change for change, _ in drifts)
        return {name: norm(arrays) / sum(a.size for a in arrays) ** 0.5 for name, arrays in found.items()}


def norm(arrays: Sequence[np.ndarray]) -> float:
    return math.sqrt(float(sum(map(square, arrays))))


def square(array: np.ndarray) -> np.float64:
    return np.sum(np.square(array, dtype=np.float64))
