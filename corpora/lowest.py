"""Which few stand for many?  Those with the lowest hashes: the same, in whatever order they come, and a fair sample."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Lowest(Generic[Item]):
    """The items with the lowest keys, until their sizes together reach `room`; at least one."""

    def __init__(self, room: int) -> None:
        self.room, self.held, self.heap = room, 0, list[tuple[int, int, int, Item]]()
        self.count = 0

    def add(self, key: bytes, size: int, item: Item) -> None:
        self.count += 1
        heapq.heappush(self.heap, (-int.from_bytes(key, "big"), -self.count, size, item))
        self.held += size
        while len(self.heap) > 1 and self.held - self.heap[0][2] >= self.room:
            self.held -= heapq.heappop(self.heap)[2]

    def __iter__(self) -> Iterator[Item]:
        """By their keys, lowest first."""
        return (item for *_, item in sorted(self.heap, key=lambda entry: (-entry[0], -entry[1])))
