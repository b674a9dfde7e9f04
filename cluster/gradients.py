"""How do the gradients of all ranks become one sum, with the same bits whatever the number of ranks?

A step reads K batches; in every round each of N ranks takes the next one, so that rank r has batches r, N + r, 2N + r …
In the order of the batches, as one process with `--accumulate K` does it,

    g = ((g₀ + g₁) + g₂) + …        g_m the gradient of batch m

Gradients travel in buckets: as soon as the way back has passed the last use of all parameters in one, each rank is sent
its part of it (reduce-scatter), while the way back goes on, and adds up what it gets in the order of the ranks.
Who owns whole parameters keeps the sums of those; otherwise the parts are equal, and every rank is sent all sums
(all-gather).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from autograd import Tensor
from cluster.fabric import Array, Mpi, Request, starts

IN_FLIGHT = 4  # buckets under way at once, at most: they take memory


class Layout:
    """Parameters one after another in one long array, cut into a part for each rank.

    owners: of each parameter the rank whose part it lies in, so that parts are whole parameters; None: equal parts.
    """

    def __init__(self, params: Sequence[Any], owners: dict[int, int] | None, fabric: Mpi):
        self.fabric, self.owners = fabric, owners
        self.params = sorted(params, key=lambda p: owners[id(p)]) if owners else list(params)
        sizes = [p.data.size for p in self.params]
        at, total, size = starts(sizes), sum(sizes), fabric.size
        self.slices = {id(p): slice(a, a + n) for p, a, n in zip(self.params, at, sizes, strict=True)}
        self.counts = [total * (r + 1) // size - total * r // size for r in range(size)] if owners is None else [
            sum(p.data.size for p in params if owners[id(p)] == r) for r in range(size)]
        self.start, self.total = starts(self.counts)[fabric.rank], total

    def own(self, p: Any) -> bool:
        return self.owners is None or self.owners[id(p)] == self.fabric.rank

    def view(self, whole: Array, p: Any, offset: int = 0) -> Array:
        """The place of a parameter in an array that begins at `offset` of the whole one."""
        here = self.slices[id(p)]
        return whole[here.start - offset:here.stop - offset].reshape(p.data.shape)

    def spread(self, arrays: Callable[[Any], Array]) -> Request:
        """Send all ranks what this one owns of it: an array for each parameter."""
        mine = [arrays(p).reshape(-1) for p in self.params if self.own(p)]
        like = self.params[0].data
        return self.fabric.spread(np.concatenate(mine) if mine else np.empty_like(like, shape=(0,)), self.counts)


class Bucket(Layout):
    """Parameters whose gradients travel together."""

    def __init__(self, params: Sequence[Any], owners: dict[int, int] | None, fabric: Mpi):
        super().__init__(params, owners, fabric)
        self.here: Array | None = None  # gradients of this round, as far as they have come
        self.missing: set[int] = set()
        self.request: Request | None = None
        self.active = 0  # ranks whose gradients count in the round under way
        self.sum: Array | None = None  # of this rank's part
        self.axes: dict[int, tuple[int, ...]] = {}  # of each gradient its axes, as they lie in memory

    def put(self, p: Any) -> None:
        if self.here is None:
            self.here = np.zeros_like(p.data, shape=(self.total,))
        self.view(self.here, p)[...] = p.grad
        self.axes.setdefault(id(p), outermost_first(p.grad))
        p.grad = None
        self.missing.discard(id(p))

    def launch(self, active: int) -> None:
        """Send every rank its part."""
        whole = np.zeros_like(self.params[0].data, shape=(self.total,)) if self.here is None else self.here
        self.request, self.here, self.active = self.fabric.exchange(whole, self.counts), None, active

    def fold(self) -> None:
        """Add what the ranks have sent, in their order."""
        if self.request is not None:
            for part in self.request.wait()[:self.active]:
                if self.sum is None:
                    self.sum = part.copy()
                else:
                    self.sum += part
            self.request = None


class Gradients:
    """The gradients of a model on all ranks."""

    def __init__(self, groups: Iterable[Sequence[Any]], owners: dict[int, int] | None, fabric: Mpi, size: int,
                 after: Callable[[Any], None] = lambda p: None):
        """groups: parameters that may travel together; size: bytes of a bucket, about; after: called of each gradient
        that was taken in."""
        self.buckets: list[Bucket] = []
        self.after = after
        for group in groups:
            together: list[Any] = []
            for p in reversed(group):  # the way back meets the last ones first
                together.append(p)
                if sum(q.data.nbytes for q in together) >= size:
                    self.buckets.append(Bucket(together, owners, fabric))
                    together = []
            if together:
                self.buckets.append(Bucket(together, owners, fabric))
        self.bucket = {id(p): bucket for bucket in self.buckets for p in bucket.params}
        self.arrived: set[int] = set()  # parameters that have a gradient in this step
        self.next = self.active = 0
        self.flying: list[Bucket] = []

    def backward(self, loss: Tensor, active: int) -> None:
        """Send a loss back, and gradients on their way; those of the first `active` ranks count."""
        self.next, self.active = 0, active
        for bucket in self.buckets:
            bucket.missing = {id(p) for p in bucket.params}
        loss.backward(ready=self.ready)
        for bucket in self.buckets:  # what has no gradient
            bucket.missing.clear()
        self.launch()

    def ready(self, p: Tensor) -> None:
        """A gradient is complete."""
        if id(p) not in self.bucket:  # a leaf that is no parameter
            return
        self.bucket[id(p)].put(p)
        self.arrived.add(id(p))
        self.after(p)
        self.launch()

    def launch(self) -> None:
        """Send the buckets that are full, in an order that is the same on all ranks."""
        self.flying = [bucket for bucket in self.flying if not self.landed(bucket)]
        while self.next < len(self.buckets) and not self.buckets[self.next].missing:
            bucket = self.buckets[self.next]
            bucket.fold()
            while len(self.flying) >= IN_FLIGHT:
                self.flying.pop(0).fold()
            bucket.launch(self.active)
            self.flying.append(bucket)
            self.next += 1

    def landed(self, bucket: Bucket) -> bool:
        if bucket.request is not None and bucket.request.done():
            bucket.fold()
        return bucket.request is None

    def reduce(self) -> None:
        """Let `.grad` be the sum over all ranks: of all parameters, or of those that are owned here, None elsewhere."""
        for bucket in self.buckets:
            bucket.fold()
        self.flying = []
        sums = [bucket.sum for bucket in self.buckets]
        wholes: list[Request | None] = [
            None if bucket.owners else bucket.fabric.spread(sum_, bucket.counts)
            for bucket, sum_ in zip(self.buckets, sums, strict=True)]
        for bucket, whole in zip(self.buckets, wholes, strict=True):
            array, offset = (bucket.sum, bucket.start) if whole is None else (whole.wait(), 0)
            for p in bucket.params:
                here = bucket.own(p) and id(p) in self.arrived
                p.grad = laid(bucket.view(array, p, offset), bucket.axes[id(p)]) if here else None
            bucket.axes.clear()
            bucket.sum = None
        self.arrived.clear()


def outermost_first(array: Array) -> tuple[int, ...]:
    """The axes of an array in the order in which they lie in memory."""
    return tuple(sorted(range(array.ndim), key=lambda axis: -array.strides[axis]))


def laid(array: Array, axes: tuple[int, ...]) -> Array:
    """The array with axes in that order in memory, as one process has it: what an optimiser computes, it does in it."""
    if axes == tuple(range(len(axes))):
        return array
    back = sorted(range(len(axes)), key=axes.__getitem__)
    return np.ascontiguousarray(np.transpose(array, axes)).transpose(back)
