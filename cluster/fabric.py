"""How do arrays travel between ranks?  By MPI from memory to memory, or by NCCL from card to card.

A fabric has two ways for arrays, which go on while their rank computes, and three for words and numbers:

    exchange   each rank gets its part of what every rank has: reduce-scatter, before the sum
    spread     every rank gets the part that each rank has: all-gather
    all, first, send/receive   Python objects: of all, of rank 0; an array to rank 0

Sums are left to whoever receives, so that they are added up in the order of the ranks and have the same bits each time
(MPI's and NCCL's own sums promise no order).

Legend: N ranks, n numbers of a part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import accumulate
from typing import Any

import numpy as np

Array = Any  # numpy.ndarray, or cupy.ndarray


class Mpi:
    """Arrays in memory. `waiting()` is a context that is entered while this rank can do nothing but wait."""

    def __init__(self, comm: Any, waiting: Callable[[], AbstractContextManager] = nullcontext):
        self.comm, self.waiting = comm, waiting
        self.rank, self.size = comm.Get_rank(), comm.Get_size()

    def exchange(self, whole: Array, counts: Sequence[int]) -> Request:
        """Send whole (Σ counts,) in parts, one to each rank; the request gives what came: (N,n), n = counts[rank]."""
        came = np.empty((self.size, counts[self.rank]), whole.dtype)
        return Request(self, came, self.comm.Ialltoallv(
            [whole, (counts, starts(counts))], [came, ([came.shape[1]] * self.size, None)]), whole)

    def spread(self, part: Array, counts: Sequence[int]) -> Request:
        """Send the part (counts[rank],) to all; the request gives those of all, one after another: (Σ counts,)"""
        whole = np.empty(sum(counts), part.dtype)
        return Request(self, whole, self.comm.Iallgatherv(part, [whole, (counts, starts(counts))]), part)

    def all(self, found: Any) -> list[Any]:
        """What every rank has found, an object each."""
        with self.waiting():
            return list(self.comm.allgather(found))

    def first(self, found: Any) -> Any:
        """What rank 0 has found."""
        with self.waiting():
            return self.comm.bcast(found)

    def send(self, array: Array) -> None:
        """Send an array to rank 0, which waits for it."""
        with self.waiting():
            self.comm.Send(np.ascontiguousarray(array), 0)

    def receive(self, rank: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        array = np.empty(shape, dtype)
        with self.waiting():
            self.comm.Recv(array, rank)
        return array


class Request:
    """Something under way."""

    def __init__(self, fabric: Mpi, result: Array, request: Any, sent: Array):
        self.fabric, self.result, self.request = fabric, result, request
        self.sent = sent  # it is read until all is done

    def done(self) -> bool:
        """Whether it is done; asking lets it move on, which MPI does only when it is called."""
        return bool(self.request.Test())

    def wait(self) -> Array:
        if not self.request.Test():
            with self.fabric.waiting():
                self.request.Wait()
        return self.result


def starts(counts: Sequence[int]) -> list[int]:
    """Where each part begins."""
    return [0, *accumulate(counts[:-1])]


class Nccl(Mpi):
    """Arrays on cards, one card for each rank; words and numbers still go by MPI. cupy and nccl are CuPy's modules."""

    def __init__(self, comm: Any, cupy: Any, nccl: Any, waiting: Callable[[], AbstractContextManager] = nullcontext):
        super().__init__(comm, waiting)
        self.cupy, self.nccl = cupy, nccl
        self.on_cards = nccl.NcclCommunicator(self.size, self.first(nccl.get_unique_id()), self.rank)
        self.stream = cupy.cuda.Stream(non_blocking=True)  # beside the one that computes

    def kind(self, array: Array) -> int:
        return int({"float32": self.nccl.NCCL_FLOAT32, "float64": self.nccl.NCCL_FLOAT64}[array.dtype.name])

    def move(self, sent: Array, result: Array, pairs: Sequence[tuple[Array, Array]]) -> CardRequest:
        """For each rank a pair: what it is sent, and where what it sends is put; once `sent` is computed."""
        self.stream.wait_event(self.cupy.cuda.get_current_stream().record())
        self.nccl.groupStart()
        for rank, (out, into) in enumerate(pairs):
            self.on_cards.send(out.data.ptr, out.size, self.kind(out), rank, self.stream.ptr)
            self.on_cards.recv(into.data.ptr, into.size, self.kind(into), rank, self.stream.ptr)
        self.nccl.groupEnd()
        return CardRequest(self, result, self.stream.record(), sent)

    def exchange(self, whole: Array, counts: Sequence[int]) -> Request:
        came = np.empty_like(whole, shape=(self.size, counts[self.rank]))
        return self.move(whole, came, [(whole[at:at + n], came[rank]) for rank, (at, n) in
                                       enumerate(zip(starts(counts), counts, strict=True))])

    def spread(self, part: Array, counts: Sequence[int]) -> Request:
        whole = np.empty_like(part, shape=(sum(counts),))
        return self.move(part, whole, [(part, whole[at:at + n]) for at, n in zip(starts(counts), counts, strict=True)])

    def send(self, array: Array) -> None:
        super().send(array.get() if hasattr(array, "get") else array)


class CardRequest(Request):
    """Something under way between cards: what computes next on this one waits for it, Python does not."""

    def done(self) -> bool:
        return bool(self.request.done)

    def wait(self) -> Array:
        self.fabric.cupy.cuda.get_current_stream().wait_event(self.request)  # type: ignore[attr-defined]
        return self.result
