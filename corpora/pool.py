"""How is work given to many processes?  In order, a few pieces ahead; none outlives the one that asked."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

PIECE = 1 << 20  # bytes of text that are given to a process at once
Item = TypeVar("Item")
Result = TypeVar("Result")


def pieces(items: Iterable[Item], size: Callable[[Item], int]) -> Iterator[list[Item]]:
    """The items, so many at a time that their sizes together reach PIECE."""
    some, held = list[Item](), 0
    for item in items:
        some.append(item)
        held += size(item)
        if held >= PIECE:
            yield some
            some, held = [], 0
    if some:
        yield some


def ordered(function: Callable[..., Result], pieces: Iterable[tuple[Any, ...]], processes: int) -> Iterator[Result]:
    """function(*piece) of every piece, in their order; with one process in this one.

    Pieces are drawn while results are waited for, at most two per process ahead of them; where they break off with an
    error, the results of those before come first.
    """
    if processes < 1:
        raise ValueError(f"{processes} processes: at least 1 is needed")
    if processes == 1:
        yield from (function(*piece) for piece in pieces)
        return
    context = multiprocessing.get_context("spawn")  # of a fork, another child would hold the pipe that tells of our end
    pool = ProcessPoolExecutor(processes, context, begin)
    waiting: deque[Future[Result]] = deque()
    broken: Exception | None = None
    drawn = iter(pieces)
    try:
        while True:
            try:
                piece = next(drawn)
            except StopIteration:
                break
            except Exception as error:
                broken = error
                break
            waiting.append(pool.submit(function, *piece))
            if len(waiting) > 2 * processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
        if broken:
            raise broken
    except BrokenProcessPool:
        raise ValueError("a process was ended from outside, or for lack of memory: try fewer --processes") from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def begin() -> None:
    """In a new process: leave Ctrl+C to the one that asked, use one thread, and end when that one has ended."""
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threading.Thread(target=follow, daemon=True).start()


def follow() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)
