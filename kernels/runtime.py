"""Which version of a kernel runs, how it is compiled, and how threads share its work.

`Kernel.vjp` decides between a kernel's definition and its twins; nothing else does. Twins for NumPy's arrays are
compiled by Numba at their first call, for the precision that is asked for, and cached on disk (cache.py). Without a
usable Numba, or with NUMBA_DISABLE_JIT=1, every kernel runs by its definition: the same numbers up to rounding, slower.

No twin adds up across threads and no compiler may reorder a sum: neither the number of threads nor whether code was
compiled now or came from the cache changes a bit of a result.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextvars import ContextVar, copy_context
from pathlib import Path
from typing import Any

import numpy as np

import kernels.ahead as ahead

os.environ.setdefault("NUMBA_OPT", "2")  # as fast as 3 here, where vectors are spelled out, and sooner compiled
try:
    import numba
    from numba.core import event, types
    from numba.core.cpu import CPUContext
    from numba.extending import overload

    from kernels.cache import Cache, writable
    from kernels.linking import LinkedCompiler
except Exception as error:  # missing, or built for another NumPy: Numba raises more than ImportError
    numba = None  # type: ignore[assignment]
    print(f"Numba cannot be used ({error}): the NumPy definitions run instead, slower.", file=sys.stderr)

JIT = numba is not None and not numba.config.DISABLE_JIT  # type: ignore[attr-defined]
Array = Any  # numpy.ndarray in compiled twins; elsewhere any array that dispatches on NumPy's protocols

# Which version runs -----------------------------------------------------------------------------------------


class Kernel:
    """A computation: its definition in NumPy's own words, and twins that are faster for some arrays.

    A twin is forward(*arrays, **settings) → (z, kept), with z as the definition gives it, and backward(kept, *z_bars)
    → cotangents of the arrays. A forward that has no way for some arrays returns NotImplemented. The loop of the twin
    for NumPy's arrays, loop(start, stop, *settings, *inputs, *outputs), is there for who makes the arrays himself.
    """

    def __init__(self, definition: Callable, forward: Callable, backward: Callable | None = None,
                 loop: Any = None):
        self.name = definition.__module__.rpartition(".")[2]  # of its file
        self.definition, self.loop = definition, loop
        self.twins: dict[type, tuple[Callable, Callable | None]] = {np.ndarray: (forward, backward)}

    def register(self, array_type: type, forward: Callable, backward: Callable | None = None) -> None:
        """Give the kernel a twin for another type of arrays."""
        self.twins[array_type] = forward, backward

    def vjp(self, *arrays: Array, **settings: Any) -> tuple[Any, Callable] | None:
        """z, and the function from its cotangents to those of the arrays; None where the definition has to run.

        The first array decides: there is a twin for its type and, of NumPy's, for float32 and float64.
        """
        first = next(x for x in arrays if x is not None)
        ours = isinstance(first, np.ndarray)
        twin = self.twins.get(np.ndarray if ours else type(first))
        if twin is None or (ours and not (JIT and first.dtype in (np.float32, np.float64))):
            return None
        forward, backward = twin
        found = forward(*arrays, **settings)
        if found is NotImplemented:
            return None
        z, kept = found
        return z, functools.partial(backward, kept) if backward else _no_way_back

    def __call__(self, *arrays: Array, **settings: Any) -> Any:
        """z, by the fastest version for these arrays."""
        found = self.vjp(*arrays, **settings)
        return self.definition(*arrays, **settings) if found is None else found[0]


def _no_way_back(*bars: Array) -> None:
    raise RuntimeError("this kernel works in place and has no derivative")


def constant(x: Any) -> Any:
    """x without its history, if it is a tensor: what cancels in a result needs no derivative."""
    return x.detach() if hasattr(x, "detach") else x


def check_shapes(**shapes: tuple[Array, tuple[int, ...]]) -> None:
    """Compiled loops do not look where they read: ValueError unless every array has the shape beside it."""
    for name, (array, shape) in shapes.items():
        if array.shape != shape:
            raise ValueError(f"{name} has shape {array.shape}; the other arguments ask for {shape}")


def contiguous(*arrays: Array) -> list[np.ndarray]:
    """The arrays as compiled code wants them: one dtype, contiguous, aligned, plain."""
    dtype = arrays[0].dtype
    if all([type(x) is np.ndarray and x.dtype == dtype and x.flags.carray for x in arrays]):
        return list(arrays)
    dtype = np.result_type(*arrays)
    return [np.require(np.asarray(x), dtype, ["C", "A", "W"]) for x in arrays]


# Threads ----------------------------------------------------------------------------------------------------

HEAP, PAGE = 2**30, 2**21  # bytes that may lie in large pages, and of one
GRAIN = 2**16  # operations or so that are done before a second thread is awake
_threads = numba.config.NUMBA_NUM_THREADS if JIT else ahead.cores()  # type: ignore[attr-defined]
_pool: ThreadPoolExecutor
_considered: set[Any] = set()  # loops that were needed soon …
_asked: set[Any] = set()  # … and those that a second process compiles, or this one while it waits for that
_shared = ContextVar("shared", default=False)  # whether this is one thread's share of a loop
_ready: set[tuple] = set()  # loops, and the types of arguments for which they are compiled


def set_threads(n: int) -> None:
    """Let kernels use n threads. Raises ValueError unless 1 ≤ n ≤ the number Numba started with."""
    global _threads
    most = numba.config.NUMBA_NUM_THREADS if JIT else max(n, 1)  # type: ignore[attr-defined]
    if not 1 <= n <= most:
        raise ValueError(f"{n} threads; choose 1 to {most} (NUMBA_NUM_THREADS in the environment)")
    _threads = n


def threads() -> int:
    """How many kernels use."""
    return _threads


def split(loop: Callable, n: int, work: int, *args: Any) -> None:
    """loop(start, stop, *args) over 0…n, by several threads if there is more work than it takes to wake them.

    Threads of our own: with Numba's (`prange`) a loop takes twice as long to compile, and those of BLAS spin as
    they wait. What is a loop in NumPy runs beside others as far as NumPy lets go of the interpreter; what it splits
    is done by the same thread.
    """
    parts = min(n, _threads)
    if loop in _asked:
        _await()
    if parts <= 1 or work < GRAIN or _shared.get():
        loop(0, n, *args)
        return
    prepare(loop, 0, 0, *args)
    ends = [n * part // parts for part in range(parts + 1)]
    outside, others = _shared.set(True), []
    try:
        others += [_pool.submit(copy_context().run, loop, *ends[part:part + 2], *args)  # with NumPy's errstate
                   for part in range(1, parts)]
        try:
            loop(0, ends[1], *args)
        finally:
            wait(others)  # they write into our arrays
    finally:
        _shared.reset(outside)
    for other in others:
        other.result()  # raises what went wrong there


def join_in(loop: Callable, *args: Any) -> None:
    """Let every other thread call a loop that this one is about to call, too: as soon as it wakes, and nobody waits."""
    for _ in range(1, 1 if _shared.get() else _threads):
        _pool.submit(loop, *args)


def need_soon(loop: Any, *args: Any) -> None:
    """Let a loop be compiled for such arguments by a second process, if there can be one, unless it is or was."""
    if not JIT or loop in _considered:
        return
    _considered.add(loop)
    kinds, cache = tuple(map(loop.typeof_pyval, args)), loop._cache
    if not loop.signatures and isinstance(cache, Cache) and writable() and not cache.holds(kinds, loop.targetctx):
        ahead.ask(loop, kinds)
        _asked.add(loop)


def _await() -> None:
    """Until what was needed soon is compiled, or will not be by others."""
    global _compiling
    _compiling += 1
    try:
        ahead.wait()
    finally:
        _compiling -= 1
        _asked.clear()


def prepare(loop: Callable, *args: Any) -> None:
    """Call a loop over nothing, once: it is compiled in this thread, the one that Ctrl+C reaches."""
    if loop in _loops and (key := (loop, *map(numba.typeof, args))) not in _ready:
        loop(*args)
        _ready.add(key)


def compute(loop: Callable, n: int, inputs: list[Array], *shapes: Any, before: tuple = (), work: int = 0
            ) -> list[np.ndarray]:
    """Let loop(start, stop, *before, *inputs, *outputs), over 0…n, fill outputs of these shapes; return them."""
    inputs = contiguous(*inputs)
    outputs = [np.empty(shape, inputs[0].dtype) for shape in shapes]
    split(loop, n, work or inputs[0].size, *before, *inputs, *outputs)
    return outputs


def _make_pool() -> None:
    global _pool
    _pool = ThreadPoolExecutor(os.cpu_count() or 1)


def _begin_in_fork() -> None:
    """Threads do not survive a fork, and the second compiler is the parent's."""
    _make_pool()
    _asked.clear()
    ahead.forget()


def _keep_freed_memory() -> None:
    """Let glibc keep what is freed for the next step, and Linux make its first gigabyte of large pages.

    Otherwise large arrays go back to the system, which fills every page with zeros before they may be used again:
    up to a third of the time of a long step. It holds for the whole process, which never falls below its peak. Of
    pages of 4 kB more are read for one token than a processor remembers where they lie.
    """
    with contextlib.suppress(OSError, TypeError, AttributeError):  # another C library
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)  # M_MMAP_MAX: nothing is too large for the heap
        libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: nor does what is free at the heap's end go back
        libc.malloc.restype = ctypes.c_void_p
        if heap := libc.malloc(ctypes.c_size_t(HEAP)):  # it takes no memory before it is written to
            libc.madvise(ctypes.c_void_p(-(-heap // PAGE) * PAGE), ctypes.c_size_t(HEAP - PAGE), 14)  # MADV_HUGEPAGE
            libc.free(ctypes.c_void_p(heap))


_make_pool()
_keep_freed_memory()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_in_fork)

# Compiling --------------------------------------------------------------------------------------------------

FLAGS = {"contract", "nsz"}  # no "reassoc": sums that are added up in another order by every compiled copy
SECONDS = 20, 15  # that all kernels of a model take to compile, roughly, by one process and by two
LINE = 64  # bytes of a cache line, at which arrays begin: a wide register that is loaded from two takes twice as long
_loops: dict[Any, str] = {}  # what Python calls, as Numba's dispatchers, by the file
_compiling = 0  # functions, one inside the other, and who waits for one


if JIT:
    CPUContext.get_preferred_array_alignment = lambda context, kind: LINE  # type: ignore[method-assign]
    # no way in from Python is compiled
    INNER = {"fastmath": FLAGS, "error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True,
             "pipeline_class": LinkedCompiler}


def jit(function: Callable) -> Any:
    """A loop that Python calls: compiled without the interpreter's lock, and cached on disk."""
    if not JIT:
        return function
    loop = numba.njit(nogil=True, fastmath=FLAGS, error_model="numpy")(function)
    with contextlib.suppress(OSError):  # sources that lie in no file are not cached
        loop._cache = Cache(function)
    _loops[loop] = function.__module__.removeprefix("kernels.")
    return loop


def inner(function: Callable) -> Any:
    """A function that only compiled code calls."""
    if not JIT:
        return function
    made, plain = numba.njit(**INNER)(function), types.unliteral  # type: ignore[attr-defined]
    template = made.get_call_template
    made.get_call_template = lambda args, named: template(  # a constant has no type of its own: one version for all
        tuple(map(plain, args)), {name: plain(kind) for name, kind in named.items()})
    return made


def if_given(function: Callable) -> Any:
    """The same, but where its first argument is None it is not compiled, and returns None."""
    if not JIT:
        return function

    def called(*args: Any) -> None: ...

    @overload(called, strict=False, jit_options=INNER)
    def choose(*args: Any) -> Callable:
        return (lambda *args: None) if args[0] == types.none else function
    return called


def compiled() -> dict[str, list[str]]:
    """Every kernel and the dtypes for which it is compiled in this process, so far: {"gelu": ["float32"], …}."""
    found: dict[str, set[str]] = {name: set() for name in _loops.values()}
    for loop, name in _loops.items():
        found[name] |= {str(x.dtype) for signature in loop.signatures for x in signature
                        if isinstance(getattr(x, "dtype", None), types.Float)}
    return {name: sorted(dtypes) for name, dtypes in found.items()}


def compiling() -> bool:
    """Whether a kernel is being compiled at this moment: what is to stop need not wait for the end of a step."""
    return _compiling > 0


def cache_folder() -> Path | None:
    """Where compiled kernels are kept from one process to the next; None if nowhere, or if nothing is compiled."""
    return writable() if JIT else None


@functools.cache
def _announce() -> None:
    """One line, once per process, when a compiler really runs."""
    if sys.stderr:
        kept = writable() is not None
        once = "once, " if kept else "in every process (no folder can be written), "
        seconds = SECONDS[kept and ahead.cores() > 1]
        print(f"compiling kernels, {once}about {seconds} s", file=sys.stderr, flush=True)


if JIT:
    class _Listener(event.Listener):
        depth, collects = 0, False  # functions, one inside the other

        def on_start(self, happening: Any) -> None:
            global _compiling
            if happening.data["dispatcher"] in _loops or self.depth:
                if not self.depth:
                    self.collects = gc.isenabled()
                    gc.disable()  # a tenth of the time, to find next to nothing
                self.depth += 1
                _compiling += 1
                _announce()

        def on_end(self, happening: Any) -> None:
            global _compiling
            if self.depth:
                self.depth -= 1
                _compiling -= 1
                if not self.depth and self.collects:
                    gc.enable()

    event.register("numba:compile", _Listener())
