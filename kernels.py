"""Where does the time go?  The hot loops: each as readable NumPy, right below it the same, compiled by Numba.

    o, S = launch("delta_rule", q, k, v, log_a, b, c, S)      # the fastest version that these arrays have
    o, S = delta_rule_chunked(q, k, v, log_a, b, c, S)        # the reference: always NumPy

`PAIRS` lists every (reference, twin), but for `titans`, which is defined in memory.py. A reference uses only
NumPy functions that dispatch on their arguments, so it also runs on arrays of other libraries; `register` adds a
twin for those. Without a usable Numba, or with NUMBA_DISABLE_JIT=1, everything runs through the references: the
same numbers up to rounding, slower.

No twin adds up across threads and no compiler may reorder a sum: neither the number of threads nor whether the
code was compiled now or came from the cache changes a bit of a result. Twins are compiled at their first call,
for float32 and for float64, and cached on disk where a folder can be written.

Legend: N sequences (batch × heads), T time, C chunk, d_k and d_v width of keys and values; B batch, R rows,
D width, V vocabulary, W taps of a filter. x̄ is the cotangent of x, in code x_bar.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
import os
import sys
import weakref
from collections import namedtuple
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextvars import copy_context
from typing import Any

import numpy as np

os.environ.setdefault("NUMBA_OPT", "2")  # as fast as 3 here, where vectors are spelled out, and sooner compiled
try:
    import numba
    from numba.core import types
    from numba.core.cgutils import ir  # LLVM's instructions
    from numba.extending import intrinsic, models, overload, register_model
except Exception as error:  # missing, or built for another NumPy: Numba raises more than ImportError
    numba = None  # type: ignore[assignment]
    print(f"Numba cannot be used ({error}): the NumPy references run instead, slower.",
          file=sys.stderr)

JIT = numba is not None and not numba.config.DISABLE_JIT  # type: ignore[attr-defined]
Array = Any  # numpy.ndarray in twins; in references any array that dispatches on NumPy's protocols

# Which version runs -----------------------------------------------------------------------------------------

PAIRS: dict[str, tuple[Callable, Callable]] = {}  # name → (reference, twin); filled at the end
FLAGS = {"contract", "nsz"}  # no "reassoc": sums that are added up in another order by every compiled copy
FROM_MEMORY = ("titans", "titans_backward")  # kernels that are defined in memory.py and called by name
_DISPATCHERS: dict[str, Any] = {}
_REGISTERED: dict[tuple[type, str], Callable] = {}


def launch(name: str, *args: Any) -> Any:
    """Run kernel `name`: the twin registered for its arrays, Numba's for NumPy floats, or the reference.

    The first argument decides. Raises KeyError on an unknown name, ValueError on shapes that do not fit.
    """
    (reference, twin), x = _pair(name), args[0]
    if not isinstance(x, np.ndarray):
        return _REGISTERED.get((type(x), name), reference)(*args)
    if not JIT or x.dtype not in (np.float32, np.float64):
        return reference(*args)
    return twin(*args)


def register(array_type: type, name: str, function: Callable) -> None:
    """Let `launch(name, …)`, or `titans`, call `function` where the arrays are of an `array_type`."""
    if name not in FROM_MEMORY:
        _pair(name)
    _REGISTERED[array_type, name] = function


def _pair(name: str) -> tuple[Callable, Callable]:
    if name not in PAIRS:
        raise KeyError(f"no kernel is called {name!r}; there are {', '.join(PAIRS)}")
    return PAIRS[name]


def compiled() -> dict[str, list[str]]:
    """Every loop and the dtypes it is compiled for in this process, so far: {"_gelu": ["float32"], …}."""
    return {name: sorted({str(argument.dtype) for signature in dispatcher.signatures for argument in signature
                          if isinstance(getattr(argument, "dtype", None), types.Float)})
            for name, dispatcher in _DISPATCHERS.items()}


def set_threads(n: int) -> None:
    """Let the twins use n threads. Raises ValueError unless 1 ≤ n ≤ the number Numba started with."""
    global _threads
    most = numba.config.NUMBA_NUM_THREADS if JIT else max(n, 1)  # type: ignore[attr-defined]
    if not 1 <= n <= most:
        raise ValueError(f"{n} threads; choose 1 to {most} (NUMBA_NUM_THREADS in the environment)")
    _threads = n


def split(loop: Callable, n: int, work: int, *args: Any) -> None:
    """loop(start, stop, *args) over 0…n, by several threads if there is more work than it takes to wake them.

    Threads of our own: with Numba's (`prange`) a loop takes twice as long to compile, and those of BLAS spin as
    they wait. What is a loop in NumPy runs beside others as far as NumPy lets go of the interpreter.
    """
    parts = min(n, _threads)
    if parts <= 1 or work < ALONE:
        loop(0, n, *args)
        return
    ends = [n * part // parts for part in range(parts + 1)]
    others = [_workers.submit(copy_context().run, loop, *ends[part:part + 2], *args)  # with NumPy's errstate
              for part in range(1, parts)]
    try:
        loop(0, ends[1], *args)
    finally:
        wait(others)  # they write into our arrays
    for other in others:
        other.result()  # raises what went wrong there


_workers: ThreadPoolExecutor


def product(a: Array, b: Array) -> Array:
    """a @ b, for large matrices the rows of a split over threads: BLAS has one (train.py).  (n,k), (k,m)

    A single row meets the rows of bᵀ in a loop of ours, for BLAS reads weights at half the speed of the cache.
    """
    if not isinstance(a, np.ndarray) or a.ndim != 2 or b.ndim != 2 or a.shape[1] != len(b):
        return a @ b
    plain = JIT and a.dtype == b.dtype and a.dtype in (np.float32, np.float64) and a.flags.carray
    if len(a) == 1 and plain and b.T.flags.carray:
        y = np.zeros((1, b.shape[1]), b.dtype)
        split(_dot_rows, b.shape[1], b.size // 16, b.T, a[0], y[0])  # sixteen products at a time
        return y
    work = a.size * b.shape[-1]
    if work < 2**24:
        return a @ b
    y = np.empty((len(a), b.shape[1]), np.result_type(a, b))
    split(lambda start, stop: np.matmul(a[start:stop], b, out=y[start:stop]), len(a), work)
    return y


def _keep_memory() -> None:
    """Let glibc keep what is freed for the next step.

    Otherwise large arrays go back to the system, which fills every page with zeros before they may be used again:
    up to a third of the time of a long step. It holds for the whole process, which never falls below its peak.
    """
    with contextlib.suppress(OSError, TypeError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-4, 0)  # M_MMAP_MAX: nothing is too large for the heap
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: nor does what is free at the heap's end go back


def _hire() -> None:
    global _workers
    _workers = ThreadPoolExecutor(os.cpu_count() or 1)


ALONE = 2**16  # operations or so that are done before a second thread is awake
_threads = (numba.config.NUMBA_NUM_THREADS if JIT else  # type: ignore[attr-defined]
            len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
_hire()
_keep_memory()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_hire)  # threads do not survive a fork


def _jit(**options: Any) -> Callable[[Callable], Any]:
    """numba.njit with our flags; cached on disk, or compiled in each process if no folder can be written."""
    def decorate(function: Callable) -> Any:
        if not JIT:
            return function
        settings = {"fastmath": FLAGS, "error_model": "numpy"} | options
        try:
            dispatcher = numba.njit(cache=True, **settings)(function)
        except RuntimeError:  # neither this folder nor the user's can be written
            dispatcher = numba.njit(**settings)(function)
        _DISPATCHERS[function.__name__] = dispatcher
        return dispatcher
    return decorate


def _inner(function: Callable) -> Any:
    """`_jit` for what only compiled code calls: no way in from Python is compiled."""
    return _jit(no_cpython_wrapper=True, no_cfunc_wrapper=True)(function)


def _ready(*arrays: Array) -> list[np.ndarray]:
    """The arrays as compiled code wants them: one dtype, contiguous, aligned, plain."""
    dtype = arrays[0].dtype
    if all([type(x) is np.ndarray and x.dtype == dtype and x.flags.carray for x in arrays]):
        return list(arrays)
    dtype = np.result_type(*arrays)
    return [np.require(np.asarray(x), dtype, ["C", "A", "W"]) for x in arrays]


def _run(loop: Callable, n: int, inputs: list[Array], *shapes: Any, before: tuple = (), work: int = 0
         ) -> list[np.ndarray]:
    """Let loop(start, stop, *before, *inputs, *outputs), over 0…n, fill outputs of these shapes; return them."""
    inputs = _ready(*inputs)
    outputs = [np.empty(shape, inputs[0].dtype) for shape in shapes]
    split(loop, n, work or inputs[0].size, *before, *inputs, *outputs)
    return outputs


def _expect(**shapes: tuple[Array, tuple[int, ...]]) -> None:
    """Compiled loops do not look where they read: ValueError unless every array has the shape beside it."""
    for name, (array, shape) in shapes.items():
        if array.shape != shape:
            raise ValueError(f"{name} has shape {array.shape}; the other arguments ask for {shape}")


# The delta rule: the definition -----------------------------------------------------------------------------

def delta_rule_recurrent(q, k, v, log_a, b, c, S0):
    """The family of learning rules for a matrix memory S, token by token: read, then write.

        o_t = S_{t−1} q_t,      S_t = S_{t−1}(a_t I − b_t k_t k_tᵀ) + c_t v_t k_tᵀ = a_t S_{t−1} + u_t k_tᵀ
                                u_t = c_t v_t − b_t S_{t−1} k_t

    Hebbian a=1, b=0, c=1 [A 14–18, 64; N 12–15] · with retention a=α [A 5] · delta rule a=1, b=c=β [A 65] ·
    gated delta rule a=α, b=αβ, c=β · delta gradient descent a=α, b=c=η′, v=u [A 56–57, 88, 92–93].

    q, k (N,T,d_k); v (N,T,d_v); log_a, b, c (N,T); S0 (N,d_v,d_k) → o (N,T,d_v), S_T (N,d_v,d_k).
    Retention comes as log_a ≤ 0, finite: near a = 1, a float32 has no digits left for 1 − a.
    """
    _expect_delta_rule(q, k, v, log_a, b, c, S0)
    o, S = np.zeros_like(v), S0.copy()
    for t in range(v.shape[1]):
        o[:, t] = np.einsum("nvk,nk->nv", S, q[:, t])
        u = c[:, t, None] * v[:, t] - b[:, t, None] * np.einsum("nvk,nk->nv", S, k[:, t])
        S = np.exp(log_a[:, t])[:, None, None] * S + u[:, :, None] * k[:, t, None, :]
    return o, S


def delta_rule_recurrent_backward(q, k, v, log_a, b, c, S0, o_bar, S_bar):
    """Cotangents of (q, k, v, log_a, b, c, S0) from those of o and S_T. With S = S_{t−1} and G = S̄_t:

        ū = G k,    k̄ = Gᵀu − b Sᵀū,    q̄ = Sᵀō,    v̄ = c ū,    c̄ = ū·v,    b̄ = −ū·S k
        log a‾ = a⟨G, S⟩,      S̄_{t−1} = a G − b ū kᵀ + ō qᵀ
    """
    inputs = q, k, v, log_a, b, c
    states, G = [S0], S_bar.copy()
    for t in range(v.shape[1]):
        states.append(delta_rule_recurrent(*(x[:, t:t + 1] for x in inputs), *states[-1:])[1])
    q_bar, k_bar, v_bar, log_a_bar, b_bar, c_bar = (np.zeros_like(x) for x in inputs)
    for t in reversed(range(v.shape[1])):
        S, a_t, b_t, c_t = states[t], np.exp(log_a[:, t]), b[:, t, None], c[:, t, None]
        k_t, q_t, v_t, o_t = (x[:, t] for x in (k, q, v, o_bar))
        Sk, u_bar = np.einsum("nvk,nk->nv", S, k_t), np.einsum("nvk,nk->nv", G, k_t)
        k_bar[:, t] = np.einsum("nvk,nv->nk", G, c_t * v_t - b_t * Sk)
        k_bar[:, t] -= b_t * np.einsum("nvk,nv->nk", S, u_bar)
        q_bar[:, t] = np.einsum("nvk,nv->nk", S, o_t)
        v_bar[:, t], c_bar[:, t], b_bar[:, t] = c_t * u_bar, np.sum(u_bar * v_t, -1), -np.sum(u_bar * Sk, -1)
        log_a_bar[:, t] = a_t * np.einsum("nvk,nvk->n", G, S)
        G = a_t[:, None, None] * G - (b_t * u_bar)[:, :, None] * k_t[:, None] + o_t[:, :, None] * q_t[:, None]
    return q_bar, k_bar, v_bar, log_a_bar, b_bar, c_bar, G


def _expect_delta_rule(q, k, v, log_a, b, c, S0):
    (N, T, d_k), d_v = k.shape, v.shape[-1]
    _expect(q=(q, (N, T, d_k)), v=(v, (N, T, d_v)), log_a=(log_a, (N, T)), b=(b, (N, T)), c=(c, (N, T)),
            S0=(S0, (N, d_v, d_k)))


# The delta rule: chunk-parallel and exact -------------------------------------------------------------------

def delta_rule_chunked(q, k, v, log_a, b, c, S0, chunk=64):
    """The same as `delta_rule_recurrent`, one triangular solve per chunk in place of C rank-one updates.

    With S₀ the state at the chunk's start, g_t = ∏_{i≤t} a_i, g_0 = 1:

        (I + L) U = diag(c) V − diag(b·g_{t−1}) K S₀ᵀ,    L_ti = b_t (g_{t−1}/g_i) k_t·k_i for i < t, else 0
        o_t = g_{t−1} S₀ q_t + Σ_{i<t} (g_{t−1}/g_i)(q_t·k_i) u_i,      S_C = g_C S₀ + Σ_i (g_C/g_i) u_i k_iᵀ
    """
    _expect_delta_rule(q, k, v, log_a, b, c, S0)
    o, S = np.zeros_like(v), S0.copy()
    for t in range(0, v.shape[1], chunk):
        now = slice(t, t + chunk)
        o[:, now], S = _read_and_write_chunk(S, *(x[:, now] for x in (q, k, v, log_a, b, c)))
    return o, S


def delta_rule_chunked_backward(q, k, v, log_a, b, c, S0, o_bar, S_bar, chunk=64):
    """Cotangents of `delta_rule_chunked`: keep the states at the chunks' starts, recompute their insides."""
    inputs = q, k, v, log_a, b, c
    states, G, bars = [S0], S_bar.copy(), [np.zeros_like(x) for x in inputs]
    chunks = [slice(t, t + chunk) for t in range(0, v.shape[1], chunk)]
    for now in chunks[:-1]:
        states.append(_read_and_write_chunk(states[-1], *(x[:, now] for x in inputs))[1])
    for now in reversed(chunks):
        *chunk_bars, G = _chunk_backward(states.pop(), G, *(x[:, now] for x in (o_bar, *inputs)))
        for bar, chunk_bar in zip(bars, chunk_bars, strict=True):
            bar[:, now] = chunk_bar
    return *bars, G


def _T(X):
    return np.swapaxes(X, 1, 2)


def _chunk_parts(k, v, log_a, b, c, S):
    """What a chunk's forward and backward share: the decays (each ≤ 1), decayed K Kᵀ, I + L, K S₀ᵀ and U."""
    log_g = np.cumsum(log_a, 1, dtype=np.float64)
    log_before = np.concatenate([np.zeros_like(log_g[:, :1]), log_g[:, :-1]], 1)
    # masked before the exponential as well as after it: g_{t−1}/g_i may overflow where i ≥ t
    log_ratio = np.tril(log_before[:, :, None] - log_g[:, None], -1).astype(k.dtype)
    ratio = np.tril(np.exp(log_ratio), -1)  # (N,C,C)
    before, after, whole = (np.exp(x)[:, :, None].astype(k.dtype) for x in (  # g_{t−1}, g_C/g_i, g_C
        log_before, log_g[:, -1:] - log_g, log_g[:, -1:]))
    KK, KS = ratio * (k @ _T(k)), k @ _T(S)
    system = np.eye(k.shape[1], dtype=k.dtype, like=k) + b[:, :, None] * KK
    # back to front the system is upper triangular: then no row trades places with that of a later token
    right = np.flip(c[:, :, None] * v - b[:, :, None] * before * KS, 1)
    U = np.flip(np.linalg.solve(np.flip(system, (1, 2)), right), 1)  # (N,C,d_v)
    return ratio, before, after, whole, KK, system, KS, U


def _read_and_write_chunk(S, q, k, v, log_a, b, c):
    ratio, before, after, whole, _, _, _, U = _chunk_parts(k, v, log_a, b, c, S)
    return before * (q @ _T(S)) + (ratio * (q @ _T(k))) @ U, whole * S + _T(after * U) @ k


def _chunk_backward(S, G, o_bar, q, k, v, log_a, b, c):
    """Every product of the forward pass, transposed. Decays enter by their logarithms: y = eˢx, s̄ = ȳ·y."""
    ratio, before, after, whole, KK, system, KS, U = _chunk_parts(k, v, log_a, b, c, S)
    QK, KG, oS, b_t = ratio * (q @ _T(k)), after * (k @ _T(G)), before * (o_bar @ S), b[:, :, None]
    right_bar = np.linalg.solve(_T(system), _T(QK) @ o_bar + KG)  # of the right-hand side, (I + L) U
    L_bar, QK_bar = -np.tril(right_bar @ _T(U), -1), np.tril(o_bar @ _T(U), -1)
    KS_bar = -b_t * before * right_bar

    gram_bar = ratio * b_t * L_bar  # of k kᵀ, before the decays
    k_bar = (gram_bar + _T(gram_bar)) @ k + _T(ratio * QK_bar) @ q + KS_bar @ S + (after * U) @ G
    b_bar = np.sum(L_bar * KK, -1) - np.sum(right_bar * before * KS, -1)
    S_bar = whole * G + _T(KS_bar) @ k + _T(before * o_bar) @ q

    ratio_bar = L_bar * b_t * KK + QK_bar * QK  # of log g_{t−1} − log g_i
    written = np.sum(KG * U, -1)  # of log g_C − log g_i
    log_before_bar = np.sum(ratio_bar, 2) + np.sum(KS_bar * KS, -1) + np.sum(oS * q, -1)
    log_g_bar = -np.sum(ratio_bar, 1) - written
    log_g_bar[:, :-1] += log_before_bar[:, 1:]
    log_g_bar[:, -1] += np.sum(written, -1) + np.sum(whole * G * S, (1, 2))
    log_a_bar = np.flip(np.cumsum(np.flip(log_g_bar, 1), 1), 1)
    return ((ratio * QK_bar) @ k + oS, k_bar, c[:, :, None] * right_bar, log_a_bar, b_bar,
            np.sum(right_bar * v, -1), S_bar)


# The delta rule: compiled -----------------------------------------------------------------------------------
#
# The rows of S do not know of each other: given k, a, b, c, a block of LANES rows is a recurrence of its own.
# Its state, transposed to (d_k, LANES), stays in the nearest cache; every step is a number times a vector.
# Numba has no type for LANES numbers side by side; we make one, and four verbs: the wide registers.

LANES = 32

if JIT:
    class Lanes(types.Type):
        """LANES numbers that are computed together."""

        def __init__(self, dtype: Any):
            self.dtype = dtype
            super().__init__(name=f"Lanes({dtype})")

    @register_model(Lanes)
    class _LanesModel(models.PrimitiveModel):
        def __init__(self, manager: Any, lanes: Lanes):
            number = manager.lookup(lanes.dtype).get_data_type()
            super().__init__(manager, lanes, ir.VectorType(number, LANES))

    def _pointer(context, builder, array_type, array, i, lanes):
        data = context.make_array(array_type)(context, builder, array).data
        return builder.bitcast(builder.gep(data, [i]), lanes.as_pointer())

    def _times(builder, a, x):
        if a.type == x.type:
            return builder.fmul(a, x, flags=("contract",))
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        undefined, lane = ir.Constant(x.type, ir.Undefined), ir.Constant(ir.IntType(32), 0)
        first = builder.insert_element(undefined, a, lane)
        return builder.fmul(builder.shuffle_vector(first, first, zeros), x, flags=("contract",))

    @intrinsic
    def _load(typing, row, i):
        """row[i:i+LANES]"""
        def generate(context, builder, signature, args):
            lanes = context.get_value_type(signature.return_type)
            x = builder.load(_pointer(context, builder, row, *args, lanes))
            x.align = row.dtype.bitwidth // 8
            return x
        return Lanes(row.dtype)(row, i), generate

    @intrinsic
    def _store(typing, row, i, x):
        """row[i:i+LANES] = x"""
        def generate(context, builder, signature, args):
            stored = builder.store(args[2], _pointer(context, builder, row, *args[:2], args[2].type))
            stored.align = row.dtype.bitwidth // 8
            return context.get_dummy_value()
        return types.none(row, i, x), generate

    @intrinsic
    def _scaled(typing, a, x):
        """a·x"""
        return x(x.dtype, x), lambda context, builder, signature, args: _times(builder, *args)

    @intrinsic
    def _plus(typing, y, a, x):
        """y + a·x, a being a number or LANES of them"""
        def generate(context, builder, signature, args):
            return builder.fadd(args[0], _times(builder, *args[1:]), flags=("contract",))
        return y(y, a if isinstance(a, Lanes) else y.dtype, y), generate

    @intrinsic
    def _zero(typing, row):
        """LANES zeros like the numbers of a row"""
        lanes = Lanes(row.dtype)
        return lanes(row), lambda context, builder, signature, args: ir.Constant(context.get_value_type(lanes), None)

    @intrinsic
    def _total(typing, x):
        """The sum of the lanes: halves on halves"""
        def generate(context, builder, signature, args):
            (y,), n, index = args, LANES, ir.IntType(32)
            while n > 1:
                n //= 2
                halves = (ir.Constant(ir.VectorType(index, n), list(range(k, k + n))) for k in (0, n))
                y = builder.fadd(*(builder.shuffle_vector(y, y, half) for half in halves))
            return builder.extract_element(y, ir.Constant(index, 0))
        return x.dtype(x), generate


@_inner
def _lane_sums(x, y):
    """Σ x y of two rows, lane by lane, but for what is left over"""
    sums = _zero(x)
    for j in range(0, len(x) - len(x) % LANES, LANES):
        sums = _plus(sums, _load(x, j), _load(y, j))
    return sums


@_inner
def _and_left_over(total, x, y):
    """… and those that fill no lanes"""
    for j in range(len(x) - len(x) % LANES, len(x)):
        total += x[j] * y[j]
    return total


@_inner
def _dot(x, y):
    """Σ x y of two rows, in an order that no compiler changes"""
    return _and_left_over(_total(_lane_sums(x, y)), x, y)


@_jit(nogil=True)
def _dot_rows(start, stop, A, x, y):
    """y += A x, some of its rows: one row after another is read, the lanes of four are added up side by side"""
    for i in range(start, stop - 3, 4):
        s0, s1, s2, s3 = _lane_sums(A[i], x), _lane_sums(A[i + 1], x), _lane_sums(A[i + 2], x), _lane_sums(A[i + 3], x)
        t0, t1, t2, t3 = _total(s0), _total(s1), _total(s2), _total(s3)
        if len(x) % LANES:  # most rows have nothing left over, and need not be asked
            t0, t1 = _and_left_over(t0, A[i], x), _and_left_over(t1, A[i + 1], x)
            t2, t3 = _and_left_over(t2, A[i + 2], x), _and_left_over(t3, A[i + 3], x)
        y[i], y[i + 1], y[i + 2], y[i + 3] = y[i] + t0, y[i + 1] + t1, y[i + 2] + t2, y[i + 3] + t3
    for i in range(stop - (stop - start) % 4, stop):
        y[i] += _dot(A[i], x)


@_jit(nogil=True)
def _decays(start, stop, log_a, decay):
    """How the state is kept: as X, divided by the decay since the last fold, so that decaying costs nothing.

    S_{t−1} = read·X;  writing u kᵀ adds `write`·u kᵀ to X;  X ← fold·X when that decay is below e⁻³².
    """
    T = log_a.shape[1]
    for n in range(start, stop):
        log_g = 0.0
        for t in range(T):
            decay[n, t, 0] = math.exp(log_g)  # read
            log_g += log_a[n, t]
            decay[n, t, 1] = 1  # fold
            if log_g < -32:
                decay[n, t, 1] = math.exp(log_g)
                log_g = 0.0
            decay[n, t, 2] = math.exp(-log_g)  # write
        decay[n, T, 0] = math.exp(log_g)


@_jit(nogil=True)
def _scan_forward(start, stop, rows, w, p1, p2, v, b, c, decay, X_0, y1, y2, u, X_T, scratch):
    """X_t = a_t X_{t−1} + w_t u_tᵀ, u_t = c_t v_t − b_t y1_t, y1_t = X_{t−1}ᵀ p1_t, y2_t = X_{t−1}ᵀ p2_t

    X_t is the true state; the loop holds it divided by its decay, see `_decays`.
    """
    _, T, D = v.shape
    for block in range(start, stop):
        n, lane, X = block // (D // LANES), block % (D // LANES) * LANES, scratch[block]
        for i in range(rows):
            _store(X, i * LANES, _load(X_0[n, i], lane))
        write_u = _zero(X)
        for t in range(T):
            w_t, p1_t, p2_t = w[n, max(t - 1, 0)], p1[n, t], p2[n, t]
            read1 = read2 = _zero(X)
            for i in range(rows):  # write the token before and read this one, in one pass over the state
                x = _plus(_load(X, i * LANES), w_t[i], write_u)
                _store(X, i * LANES, x)
                read1 = _plus(read1, p1_t[i], x)
                read2 = _plus(read2, p2_t[i], x)
            read, fold, write = decay[n, t]
            if fold != 1:
                for i in range(rows):
                    _store(X, i * LANES, _scaled(fold, _load(X, i * LANES)))
            read1 = _scaled(read, read1)
            u_t = _plus(_scaled(c[n, t], _load(v[n, t], lane)), -b[n, t], read1)
            _store(y1[n, t], lane, read1)
            _store(y2[n, t], lane, _scaled(read, read2))
            _store(u[n, t], lane, u_t)
            write_u = _scaled(write, u_t)
        for i in range(rows):
            x = _plus(_load(X, i * LANES), w[n, T - 1, i], write_u)
            _store(X_T[n, i], lane, _scaled(decay[n, T, 0], x))


@_jit(nogil=True)
def _scan_backward(start, stop, rows, w1, w2, p, v1, v2, b, c, decay, X_T, y, X_0, scratch):
    """X_{t−1} = a_t X_t + w1_t (c_t v1_t − b_t y_t)ᵀ + w2_t v2_tᵀ, y_t = X_tᵀ p_t;  decay is reversed too"""
    _, T, D = v1.shape
    for block in range(start, stop):
        n, lane, X = block // (D // LANES), block % (D // LANES) * LANES, scratch[block]
        for i in range(rows):
            _store(X, i * LANES, _load(X_T[n, i], lane))
        write1 = write2 = _zero(X)
        for step in range(T):
            t = T - 1 - step
            w1_t, w2_t, p_t = w1[n, min(t + 1, T - 1)], w2[n, min(t + 1, T - 1)], p[n, t]
            y_t = _zero(X)
            for i in range(rows):
                x = _plus(_plus(_load(X, i * LANES), w1_t[i], write1), w2_t[i], write2)
                _store(X, i * LANES, x)
                y_t = _plus(y_t, p_t[i], x)
            read, fold, write = decay[n, step]
            if fold != 1:
                for i in range(rows):
                    _store(X, i * LANES, _scaled(fold, _load(X, i * LANES)))
            y_t = _scaled(read, y_t)
            _store(y[n, t], lane, y_t)
            write1 = _scaled(write, _plus(_scaled(c[n, t], _load(v1[n, t], lane)), -b[n, t], y_t))
            write2 = _scaled(write, _load(v2[n, t], lane))
        for i in range(rows):
            x = _plus(_plus(_load(X, i * LANES), w1[n, 0, i], write1), w2[n, 0, i], write2)
            _store(X_0[n, i], lane, _scaled(decay[n, T, 0], x))


@_jit(nogil=True)
def _gather(start, stop, q, k, v, b, c, u, Su, q_bar, GS_T, k_bar, v_bar, log_a_bar, b_bar, c_bar):
    """The cotangents that need no state, from k_bar = Gᵀu and v_bar = ū. For log a, ⟨G, S⟩ is carried along:

        a_t⟨G_t, S_{t−1}⟩ = ⟨G_t, S_t⟩ − ū_t·u_t,    ⟨G_{t−1}, S_{t−1}⟩ = ⟨G_t, S_t⟩ − c_t ū_t·v_t + q̄_t·q_t
    """
    T = k.shape[1]
    for n in range(start, stop):
        GS = GS_T[n]
        for t in range(T - 1, -1, -1):
            u_v = _dot(v_bar[n, t], v[n, t])
            b_bar[n, t], c_bar[n, t] = -_dot(k[n, t], Su[n, t]), u_v
            log_a_bar[n, t] = GS - _dot(v_bar[n, t], u[n, t])
            GS += _dot(q[n, t], q_bar[n, t]) - c[n, t] * u_v
            for j in range(v.shape[2]):
                v_bar[n, t, j] *= c[n, t]
            for j in range(k.shape[2]):
                k_bar[n, t, j] -= b[n, t] * Su[n, t, j]


def _padded(x: np.ndarray, *axes: int) -> np.ndarray:
    """x with zeros at the end of these axes, up to a multiple of LANES: no block has a ragged edge."""
    widths = [(0, -n % LANES if axis in axes else 0) for axis, n in enumerate(x.shape)]
    return np.pad(x, widths) if any(after for _, after in widths) else x


def _empty(shape: tuple[int, ...], like: np.ndarray) -> np.ndarray:
    """np.empty from the start of a cache line on: a vector that straddles two lines costs double."""
    size, line = math.prod(shape), 64 // like.itemsize
    room = np.empty(size + line, like.dtype)
    start = -room.ctypes.data % 64 // like.itemsize
    return room[start:start + size].reshape(shape)


def _scan(loop: Callable, rows: int, v: np.ndarray, *args: Any) -> None:
    """One scan of all blocks of rows of states (v's width, rows), with room for the state of each."""
    scratch = _empty((v.shape[0] * v.shape[2] // LANES, rows * LANES), v)
    split(loop, len(scratch), v.size * rows, rows, *args, scratch)


def _decay(log_a: np.ndarray) -> np.ndarray:
    return _run(_decays, len(log_a), [log_a], (log_a.shape[0], log_a.shape[1] + 1, 3))[0]


def delta_rule(q, k, v, log_a, b, c, S0):
    """`delta_rule_chunked`, compiled: token by token, parallel over sequences and blocks of rows of S."""
    _expect_delta_rule(q, k, v, log_a, b, c, S0)
    q, k, v, log_a, b, c, S0 = _ready(q, k, v, log_a, b, c, S0)
    d_k, d_v = k.shape[2], v.shape[2]
    if not v.shape[1]:
        return np.empty_like(v), S0.copy()
    v, X_0 = _padded(v, 2), np.ascontiguousarray(_T(_padded(S0, 1)))
    (o, u, unused), X_T = (_empty(v.shape, v) for _ in range(3)), np.empty_like(X_0)
    _scan(_scan_forward, d_k, v, k, k, q, v, b, c, _decay(log_a), X_0, unused, o, u, X_T)
    return o[..., :d_v], np.ascontiguousarray(_T(X_T[..., :d_v]))


def delta_rule_backward(q, k, v, log_a, b, c, S0, o_bar, S_bar):
    """`delta_rule_chunked_backward`, compiled: four recurrences, and no state is stored.

    Forwards for u, backwards for ū; then, transposed, S forwards for q̄ and Sᵀū, and G backwards for Gᵀu.
    """
    _expect_delta_rule(q, k, v, log_a, b, c, S0)
    _expect(o_bar=(o_bar, v.shape), S_bar=(S_bar, S0.shape))
    q, k, v, log_a, b, c, S0, o_bar, S_bar = _ready(q, k, v, log_a, b, c, S0, o_bar, S_bar)
    d_k, d_v = k.shape[2], v.shape[2]
    if not v.shape[1]:
        return *(np.empty_like(x) for x in (q, k, v, log_a, b, c)), S_bar.copy()
    q, k, v, o_bar = (_padded(x, 2) for x in (q, k, v, o_bar))
    S0, S_bar = (_padded(x, 1, 2) for x in (S0, S_bar))
    X_0, G_T = (np.ascontiguousarray(_T(S)) for S in (S0, S_bar))
    X_T, G_0, unused = np.empty_like(X_0), np.empty_like(X_0), np.empty_like(S0)
    u, u_bar, unread = (_empty(v.shape, v) for _ in range(3))
    q_bar, Su, Gu = (_empty(k.shape, k) for _ in range(3))  # Su is Sᵀū, Gu is Gᵀu
    zero, one, forwards, backwards = np.zeros_like(b), np.ones_like(b), _decay(log_a), _decay(log_a[:, ::-1])

    # what a scan yields and nobody needs lands in an array that a later scan fills
    _scan(_scan_forward, d_k, v, k, k, q, v, b, c, forwards, X_0, unread, u_bar, u, X_T)
    _scan(_scan_backward, d_k, v, k, q, k, v, o_bar, b, zero, backwards, G_T, u_bar, G_0)
    _scan(_scan_forward, d_v, k, u, u_bar, o_bar, k, zero, one, forwards, S0, Su, q_bar, Gu, unused)
    _scan(_scan_backward, d_v, k, u_bar, o_bar, u, k, q, zero, -b, backwards, S_bar, Gu, unused)

    GS_T = np.einsum("nij,nij->n", G_T[:, :d_k], X_T[:, :d_k], dtype=np.float64)
    log_a_bar, b_bar, c_bar = (np.empty_like(b) for _ in range(3))
    split(_gather, len(v), v.size, q, k, v, b, c, u, Su, q_bar, GS_T, Gu, u_bar, log_a_bar, b_bar, c_bar)
    return (q_bar[..., :d_k], Gu[..., :d_k], u_bar[..., :d_v], log_a_bar, b_bar, c_bar,
            np.ascontiguousarray(_T(G_0[:, :d_k, :d_v])))


# GELU -------------------------------------------------------------------------------------------------------

def gelu_reference(x):
    """½x(1 + tanh s),  s = √(2/π)(x + 0.044715 x³)"""
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


def gelu_backward_reference(x, y_bar):
    """x̄ = ȳ·½(1 + tanh s + x(1 − tanh² s) s′)"""
    tanh = np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))
    slope = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x * x)
    return y_bar * 0.5 * (1 + tanh + x * (1 - tanh * tanh) * slope)


def _exp(x):
    return math.exp(x)


if JIT:
    @overload(_exp, jit_options={"fastmath": {"contract", "nsz"}, "forceinline": True})
    def _exp_of(x):
        """eˣ; of a float32 (cut at ±87) to about 1 ulp, without a call, so that loops around it vectorise:
        2ⁿeʳ with |r| ≤ ½ ln 2, where 2ⁿ is an integer shifted into place.
        """
        if x != types.float32:
            return lambda x: math.exp(x)
        f = np.float32
        log2_e, ln2_high, ln2_low = f(1.44269504), f(0.693359375), f(-2.12194440e-4)
        c2, c3, c4, c5, c6, c7 = (f(coefficient) for coefficient in (
            0.50000001201, 0.16666665459, 0.041665795894, 0.0083334519073, 0.0013981999507, 0.000198756915))

        def exp32(x):
            x = np.minimum(np.maximum(x, f(-87)), f(87))  # these two keep a NaN
            n = np.floor(x * log2_e + f(0.5))
            r = (x - n * ln2_high) - n * ln2_low
            e_r = (((((c7 * r + c6) * r + c5) * r + c4) * r + c3) * r + c2) * r * r + r + f(1)
            return e_r * np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)
        return exp32


@_jit(nogil=True)
def _gelu(start, stop, x, y):
    """½(1 + tanh s) = 1/(1 + e^−2s), 2s = s₁x + s₃x³: no tanh, and no digits lost where it is near −1"""
    number = x.dtype.type
    one, s1, s3 = number(1), number(1.5957691216057308), number(1.5957691216057308 * 0.044715)  # s₁ = 2√(2/π)
    x, y = x[start:stop], y[start:stop]
    for i in range(len(x)):  # from 0 on: the compiler need not think of indices below it
        y[i] = x[i] / (one + _exp(-x[i] * (s1 + s3 * x[i] * x[i])))


@_jit(nogil=True)
def _gelu_backward(start, stop, x, y_bar, x_bar):
    number = x.dtype.type
    one, s1, s3 = number(1), number(1.5957691216057308), number(1.5957691216057308 * 0.044715)
    x, y_bar, x_bar = x[start:stop], y_bar[start:stop], x_bar[start:stop]
    for i in range(len(x)):
        p = one / (one + _exp(-x[i] * (s1 + s3 * x[i] * x[i])))
        x_bar[i] = y_bar[i] * (p + x[i] * p * (one - p) * (s1 + (s3 + s3 + s3) * x[i] * x[i]))


def gelu(x):
    """`gelu_reference`, compiled."""
    return _run(_gelu, x.size, [x.reshape(-1)], x.size)[0].reshape(x.shape)


def gelu_backward(x, y_bar):
    """`gelu_backward_reference`, compiled."""
    _expect(y_bar=(y_bar, x.shape))
    return _run(_gelu_backward, x.size, [x.reshape(-1), y_bar.reshape(-1)], x.size)[0].reshape(x.shape)


# RMS normalisation ------------------------------------------------------------------------------------------

def rms_norm_reference(x, w, eps=1e-6):
    """y = w·x·r,  r = 1/√(mean x² + ε) over the last axis.  x (…,D), w (D,) → y (…,D), r (…)"""
    r = 1 / np.sqrt(np.mean(x * x, -1) + eps)
    return w * x * r[..., None], r


def rms_norm_backward_reference(x, w, r, y_bar):
    """x̄ = r(wȳ − x r² mean(wȳx)),  w̄ = Σ ȳ x r"""
    r = r[..., None]
    x_bar = r * (w * y_bar - x * r * r * np.mean(w * y_bar * x, -1, keepdims=True))
    return x_bar, np.sum(np.reshape(y_bar * x * r, (-1, len(w))), 0)


@_jit(nogil=True)
def _rms_norm(start, stop, eps, x, w, y, r):
    D = x.shape[1]
    for i in range(start, stop):
        r[i] = 1 / math.sqrt(_dot(x[i], x[i]) / D + eps)
        for j in range(D):
            y[i, j] = w[j] * x[i, j] * r[i]


@_jit(nogil=True)
def _rms_norm_backward(start, stop, x, w, r, y_bar, x_bar, w_parts):
    R, D = x.shape
    for part in range(start, stop):  # 64 rows each: w_bar is added up the same way by any number of threads
        for j in range(D):
            w_parts[part, j] = 0
        for i in range(part * 64, min(part * 64 + 64, R)):
            for j in range(D):
                x_bar[i, j] = w[j] * y_bar[i, j]
            shrink = x.dtype.type(_dot(x_bar[i], x[i]) * r[i] * r[i] / D)
            for j in range(D):
                x_bar[i, j] = r[i] * (x_bar[i, j] - x[i, j] * shrink)
                w_parts[part, j] += y_bar[i, j] * x[i, j] * r[i]


def rms_norm(x, w, eps=1e-6):
    """`rms_norm_reference`, compiled."""
    _expect(w=(w, x.shape[-1:]))
    rows = x.reshape(-1, len(w))  # (R,D)
    y, r = _run(_rms_norm, len(rows), [rows, w], rows.shape, len(rows), before=(eps,))
    return y.reshape(x.shape), r.reshape(x.shape[:-1])


def rms_norm_backward(x, w, r, y_bar):
    """`rms_norm_backward_reference`, compiled."""
    _expect(w=(w, x.shape[-1:]), r=(r, x.shape[:-1]), y_bar=(y_bar, x.shape))
    inputs = [x.reshape(-1, len(w)), w, r.reshape(-1), y_bar.reshape(-1, len(w))]
    parts = -(-r.size // 64)
    x_bar, w_parts = _run(_rms_norm_backward, parts, inputs, inputs[0].shape, (parts, len(w)))
    return x_bar.reshape(x.shape), w_parts.sum(0)


# Softmax cross-entropy --------------------------------------------------------------------------------------

def cross_entropy_reference(logits, targets, ignore_index=-100):
    """loss = z − logits[target],  z = log Σ e^logits;  0 where target = ignore_index.

    logits (…,V), integer targets (…) → loss (…), z (…), which the backward pass needs. Raises ValueError on a
    target that is neither ignore_index nor in 0..V−1.
    """
    label, counted = _labels(logits, targets, ignore_index)
    top = np.max(logits, -1)
    z = top + np.log(np.sum(np.exp(logits - top[..., None]), -1))
    return np.where(counted, z - np.take_along_axis(logits, label[..., None], -1)[..., 0], 0), z


def cross_entropy_backward_reference(logits, targets, z, loss_bar, ignore_index=-100):
    """logits‾ = loss‾(softmax − onehot(target)), 0 where target = ignore_index"""
    label, counted = _labels(logits, targets, ignore_index)
    onehot = label[..., None] == np.arange(logits.shape[-1], like=logits)
    return (counted * loss_bar)[..., None] * (np.exp(logits - z[..., None]) - onehot)


def _labels(logits, targets, ignore_index):
    """Where each loss is read (0 where it is ignored), and whether it counts."""
    _expect(targets=(targets, logits.shape[:-1]))
    counted = targets != ignore_index
    label = np.where(counted, targets, 0)
    known = isinstance(label, np.ndarray)  # to look at what lies on a card would be to wait for it
    if known and label.size and not 0 <= label.min() <= label.max() < logits.shape[-1]:
        raise ValueError(f"targets must lie in 0..{logits.shape[-1] - 1} or be ignore_index={ignore_index}; "
                         f"found {label.min()}..{label.max()}")
    return label, counted


@_jit(nogil=True)
def _cross_entropy(start, stop, label, counted, logits, loss, z):
    V = logits.shape[1]
    for i in range(start, stop):
        whole, tops, sums = V - V % LANES, np.full(LANES, logits[i, 0]), np.zeros(LANES, logits.dtype)
        for j in range(0, whole, LANES):  # side by side, in an order of our own, and then what is left
            for lane in range(LANES):
                tops[lane] = max(tops[lane], logits[i, j + lane])
        for j in range(whole, V):
            tops[j - whole] = max(tops[j - whole], logits[i, j])
        top = np.max(tops)
        for j in range(0, whole, LANES):
            for lane in range(LANES):
                sums[lane] += _exp(logits[i, j + lane] - top)
        for j in range(whole, V):
            sums[j - whole] += _exp(logits[i, j] - top)
        z[i] = top + math.log(np.sum(sums))
        loss[i] = z[i] - logits[i, label[i]] if counted[i] else 0


@_jit(nogil=True)
def _cross_entropy_backward(start, stop, label, logits, z, scale, logits_bar):
    V = logits.shape[1]
    for i in range(start, stop):
        for j in range(V):
            logits_bar[i, j] = scale[i] * _exp(logits[i, j] - z[i])
        logits_bar[i, label[i]] -= scale[i]


def cross_entropy(logits, targets, ignore_index=-100):
    """`cross_entropy_reference`, compiled."""
    label, counted = _labels(logits, targets, ignore_index)
    before = label.reshape(-1).astype(np.int64), counted.reshape(-1)
    rows = logits.reshape(-1, logits.shape[-1])
    loss, z = _run(_cross_entropy, label.size, [rows], label.size, label.size, before=before)
    return loss.reshape(label.shape), z.reshape(label.shape)


def cross_entropy_backward(logits, targets, z, loss_bar, ignore_index=-100):
    """`cross_entropy_backward_reference`, compiled."""
    label, counted = _labels(logits, targets, ignore_index)
    _expect(z=(z, label.shape), loss_bar=(loss_bar, label.shape))
    before = (label.reshape(-1).astype(np.int64),)
    inputs = [logits.reshape(-1, logits.shape[-1]), z.reshape(-1), (counted * loss_bar).reshape(-1)]
    return _run(_cross_entropy_backward, label.size, inputs, inputs[0].shape, before=before)[0].reshape(logits.shape)


# AdamW ------------------------------------------------------------------------------------------------------

def adamw_reference(p, g, m, v, lr, beta1, beta2, eps, weight_decay, step):
    """One step in place on p, m and v; `step` counts from 1.

        m ← β₁m + (1 − β₁)g,    v ← β₂v + (1 − β₂)g²,    m̂ = m/(1 − β₁ᵗ),    v̂ = v/(1 − β₂ᵗ)
        p ← (1 − lr·weight_decay) p − lr m̂/(√v̂ + ε)
    """
    m += (1 - beta1) * (g - m)
    v += (1 - beta2) * (g * g - v)
    p *= 1 - lr * weight_decay
    p -= lr / (1 - beta1**step) * m / (np.sqrt(v / (1 - beta2**step)) + eps)


@_jit(nogil=True)
def _adamw(start, stop, p, g, m, v, rate1, rate2, keep, lr, unbias, eps):
    p, g, m, v = p[start:stop], g[start:stop], m[start:stop], v[start:stop]
    for i in range(len(p)):
        m[i] += rate1 * (g[i] - m[i])
        v[i] += rate2 * (g[i] * g[i] - v[i])
        p[i] = keep * p[i] - lr * m[i] / (np.sqrt(v[i] * unbias) + eps)


def adamw(p, g, m, v, lr, beta1, beta2, eps, weight_decay, step):
    """`adamw_reference`, compiled; what is not one contiguous run of one dtype goes to the reference."""
    if not all(x.flags.carray and x.dtype == p.dtype for x in (p, m, v)):
        return adamw_reference(p, g, m, v, lr, beta1, beta2, eps, weight_decay, step)
    _expect(g=(g, p.shape), m=(m, p.shape), v=(v, p.shape))
    numbers = 1 - beta1, 1 - beta2, 1 - lr * weight_decay, lr / (1 - beta1**step), 1 / (1 - beta2**step), eps
    g = np.require(g, p.dtype, ["C", "A", "W"])
    split(_adamw, p.size, p.size, *(x.reshape(-1) for x in (p, g, m, v)), *(p.dtype.type(n) for n in numbers))


# Causal depthwise convolution -------------------------------------------------------------------------------

def causal_conv_reference(x, tail, w):
    """y_t = Σ_i w_i x_{t−i}, every channel by itself; the tail holds the W−1 inputs before x_1.

    x (B,T,D), tail (B,W−1,D), w (W,D) → y (B,T,D), next tail (B,W−1,D)
    """
    past, y, last = np.concatenate([tail, x], 1), np.zeros_like(x), len(w) - 1  # (B,W−1+T,D)
    for i in range(len(w)):
        y += w[i] * past[:, last - i:last - i + x.shape[1]]
    return y, past[:, x.shape[1]:].copy()


def causal_conv_backward_reference(x, tail, w, y_bar, next_bar):
    """x̄_s = Σ_i w_i ȳ_{s+i} (and what the next tail asks for; likewise the tail),  w̄_i = Σ_t ȳ_t x_{t−i}"""
    past, w_bar, last = np.concatenate([tail, x], 1), np.zeros_like(w), len(w) - 1
    past_bar = np.concatenate([np.zeros_like(x), next_bar], 1)
    for i in range(len(w)):
        now = slice(last - i, last - i + x.shape[1])
        past_bar[:, now] += w[i] * y_bar
        w_bar[i] = np.sum(y_bar * past[:, now], (0, 1))
    return past_bar[:, last:], past_bar[:, :last], w_bar


@_jit(nogil=True)
def _causal_conv(start, stop, past, w, y):
    _, T, D = y.shape
    for n in range(start, stop):
        for t in range(T):
            for d in range(D):
                y[n, t, d] = 0
            for i in range(len(w)):
                for d in range(D):
                    y[n, t, d] += w[i, d] * past[n, t + len(w) - 1 - i, d]


@_jit(nogil=True)
def _causal_conv_backward(start, stop, past, w, y_bar, next_bar, past_bar, w_parts):
    (_, T, D), last = y_bar.shape, len(w) - 1
    for n in range(start, stop):  # w_bar of every sequence by itself, added up afterwards
        for i in range(last + 1):
            for d in range(D):
                w_parts[n, i, d] = 0
        for s in range(last + T):
            for d in range(D):
                past_bar[n, s, d] = next_bar[n, s - T, d] if s >= T else 0
            for i in range(max(0, last - s), min(last + 1, last - s + T)):
                for d in range(D):
                    past_bar[n, s, d] += w[i, d] * y_bar[n, s - last + i, d]
                    w_parts[n, i, d] += past[n, s, d] * y_bar[n, s - last + i, d]


def causal_conv(x, tail, w):
    """`causal_conv_reference`, compiled."""
    _expect(tail=(tail, (len(x), len(w) - 1, x.shape[2])), w=(w, (len(w), x.shape[2])))
    past = np.concatenate([tail, x], 1)
    return _run(_causal_conv, len(x), [past, w], x.shape)[0], past[:, x.shape[1]:].copy()


def causal_conv_backward(x, tail, w, y_bar, next_bar):
    """`causal_conv_backward_reference`, compiled."""
    last = len(w) - 1
    _expect(tail=(tail, (len(x), last, x.shape[2])), w=(w, (last + 1, x.shape[2])), y_bar=(y_bar, x.shape),
            next_bar=(next_bar, tail.shape))
    inputs = [np.concatenate([tail, x], 1), w, y_bar, next_bar]
    past_bar, w_parts = _run(_causal_conv_backward, len(x), inputs, inputs[0].shape, (len(x), *w.shape))
    return past_bar[:, last:], past_bar[:, :last], w_parts.sum(0)


# Products of small matrices, compiled -----------------------------------------------------------------------
#
# Columns lie side by side in wide registers, so that every product is C += A B: numbers of A times rows of B.
# Tokens are columns, filled up to a multiple of LANES.

@_inner
def _matmul(C, A, B, fresh, triangle):
    """C = A B or C += A B: eight rows of A by LANES columns of B at a time, in registers.

    triangle: of B nothing is read below (1) or above (−1) its diagonal blocks, where it is zero; 0: all is.
    """
    (m, k), n = A.shape, B.shape[1]
    for j in range(0, n - n % LANES, LANES):
        first, end = j if triangle < 0 else 0, min(k, j + LANES) if triangle > 0 else k
        for i in range(0, m - 7, 8):
            c0 = c1 = c2 = c3 = c4 = c5 = c6 = c7 = _zero(C)
            if not fresh:
                c0, c1, c2, c3 = _load(C[i], j), _load(C[i + 1], j), _load(C[i + 2], j), _load(C[i + 3], j)
                c4, c5, c6, c7 = _load(C[i + 4], j), _load(C[i + 5], j), _load(C[i + 6], j), _load(C[i + 7], j)
            for p in range(first, end):
                b = _load(B[p], j)
                c0, c1 = _plus(c0, A[i, p], b), _plus(c1, A[i + 1, p], b)
                c2, c3 = _plus(c2, A[i + 2, p], b), _plus(c3, A[i + 3, p], b)
                c4, c5 = _plus(c4, A[i + 4, p], b), _plus(c5, A[i + 5, p], b)
                c6, c7 = _plus(c6, A[i + 6, p], b), _plus(c7, A[i + 7, p], b)
            _store(C[i], j, c0), _store(C[i + 1], j, c1), _store(C[i + 2], j, c2), _store(C[i + 3], j, c3)
            _store(C[i + 4], j, c4), _store(C[i + 5], j, c5), _store(C[i + 6], j, c6), _store(C[i + 7], j, c7)
        for i in range(m - m % 8, m):
            c0 = _zero(C) if fresh else _load(C[i], j)
            for p in range(first, end):
                c0 = _plus(c0, A[i, p], _load(B[p], j))
            _store(C[i], j, c0)
    if n % LANES:  # the columns of a narrow head
        for i in range(m):
            for j in range(n - n % LANES if fresh else n, n):
                C[i, j] = 0
            for p in range(k):
                for j in range(n - n % LANES, n):
                    C[i, j] += A[i, p] * B[p, j]


@_jit()
def _add(C, A, B, triangle=0):
    """C += A B"""
    _matmul(C, A, B, False, triangle)


@_jit()
def _product(A, B, triangle=0):
    C = np.empty((A.shape[0], B.shape[1]), B.dtype)
    _matmul(C, A, B, True, triangle)
    return C


if JIT:
    @intrinsic
    def _turn_square(typing, y, x, i, j):
        """y[j:j+16, i:i+16] = x[i:i+16, j:j+16]ᵀ: to zip row r with row r + 8, four times over, transposes"""
        def generate(context, builder, signature, args):
            Y = context.make_array(y)(context, builder, args[0])
            X = context.make_array(x)(context, builder, args[1])
            row, mask = ir.VectorType(context.get_data_type(x.dtype), 16), ir.VectorType(ir.IntType(32), 16)
            zips = [ir.Constant(mask, [16 * (k % 2) + k // 2 + half for k in range(16)]) for half in (0, 8)]

            def at(array, r, c, k):
                r = builder.add(r, ir.Constant(r.type, k))
                place = builder.add(builder.mul(r, builder.extract_value(array.shape, 1)), c)
                return builder.bitcast(builder.gep(array.data, [place]), row.as_pointer())
            rows = [builder.load(at(X, args[2], args[3], k), align=x.dtype.bitwidth // 8) for k in range(16)]
            for _ in range(4):
                pairs = [(rows[k // 2], rows[k // 2 + 8], zips[k % 2]) for k in range(16)]
                rows = [builder.shuffle_vector(*pair) for pair in pairs]
            for k, value in enumerate(rows):
                builder.store(value, at(Y, args[3], args[2], k), align=x.dtype.bitwidth // 8)
            return context.get_dummy_value()
        return types.none(y, x, i, j), generate


@_jit()
def _turned(x):
    """xᵀ laid out anew, in squares where they fit"""
    (m, n), y = x.shape, np.empty(x.shape[::-1], x.dtype)
    for i in range(0, m, 16):
        for j in range(0, n, 16):
            if i + 16 <= m and j + 16 <= n:
                _turn_square(y, x, i, j)
            else:
                for p in range(i, min(i + 16, m)):
                    for q in range(j, min(j + 16, n)):
                        y[q, p] = x[p, q]
    return y


@_inner
def _accumulate(y, x):
    """y[:len(x)] += x, as loops: compiled in a fraction of the time that this takes"""
    for i in range(x.shape[0]):
        for t in range(x.shape[1]):
            y[i, t] += x[i, t]


@_inner
def _filled(x):
    """Tokens (n,d), filled up with zeros (width,d); and the same feature by token"""
    wide = np.zeros((len(x) + -len(x) % LANES, x.shape[1]), x.dtype)
    _accumulate(wide, x)
    return wide, _turned(wide)


# Causal softmax attention -----------------------------------------------------------------------------------

def attention_reference(q, k, v):
    """y_t = Σ_{i≤P+t} softmax_i(q_t·k_i/√d) v_i, P keys being of the past;  z_t = log Σ_{i≤P+t} exp(q_t·k_i/√d)

    q (B,H,T,d); k, v (B,H,P+T,d) → y (B,H,T,d), z (B,H,T)
    """
    _expect_attention(q, k, v)
    s = _scores(q, k)
    top = np.max(s, axis=-1, keepdims=True)
    p = np.exp(s - top)
    total = np.sum(p, axis=-1, keepdims=True)
    return p @ v / total, (top + np.log(total))[..., 0]


def attention_backward_reference(q, k, v, y, z, y_bar):
    """p_ti = exp(s_ti − z_t),  v̄_i = Σ_t p_ti ȳ_t,  s̄_ti = p_ti(ȳ_t·v_i − ȳ_t·y_t),  q̄ = s̄ k/√d,  k̄ = s̄ᵀ q/√d"""
    _expect_attention(q, k, v, y, z, y_bar)
    p = np.exp(_scores(q, k) - z[..., None])
    s_bar = p * (y_bar @ np.swapaxes(v, 2, 3) - np.sum(y_bar * y, axis=-1, keepdims=True)) * q.shape[-1] ** -0.5
    return s_bar @ k, np.swapaxes(s_bar, 2, 3) @ q, np.swapaxes(p, 2, 3) @ y_bar


def _scores(q, k):
    """s_ti = q_t·k_i/√d, and −∞ for a key that lies ahead"""
    s = (q @ np.swapaxes(k, 2, 3)) * q.shape[-1] ** -0.5
    if q.shape[2] == 1:  # nothing lies ahead of the last token
        return s
    seen = np.tril(np.ones_like(s, shape=s.shape[2:], dtype=bool), k.shape[2] - q.shape[2])
    return np.where(seen, s, -np.inf)


def _expect_attention(q, k, v, *more):
    (B, H, T, d), keys = q.shape, k.shape[2]
    _expect(k=(k, (B, H, max(keys, T), d)), v=(v, (B, H, keys, d)))
    for x, shape in zip(more, (q.shape, q.shape[:3], q.shape), strict=False):
        _expect(result=(x, shape))


BLOCK = 64  # queries, and keys, that are looked at together; their scores are never all in memory


@_inner
def _look(s, scale, ahead, top, total, y_T):
    """s → e^(s·scale − top) of a block of keys, 0 for those ahead; top is the largest score of a query so far.

    s (keys,queries). Where a larger one is found, what was summed before shrinks by e^(old − new). Loops are
    over all queries, for only such become wide.
    """
    (m, n), old, least = s.shape, top.copy(), s.dtype.type(-np.inf)
    for j in range(m):
        for t in range(n):
            s[j, t] *= scale
        for t in range(min(n, ahead + j)):
            s[j, t] = least
        for t in range(n):
            top[t] = np.maximum(top[t], s[j, t])  # keeps a NaN
    for t in range(n):
        old[t] = _exp(old[t] - top[t])
        total[t] *= old[t]
    for p in range(len(y_T)):
        for t in range(n):
            y_T[p, t] *= old[t]
    for j in range(m):
        for t in range(n):
            s[j, t] = _exp(s[j, t] - top[t])
        for t in range(min(n, ahead + j)):
            s[j, t] = 0
        for t in range(n):
            total[t] += s[j, t]


@_jit(nogil=True)
def _attention(start, stop, q, k, v, y, z):
    (T, d), past = q.shape[1:], k.shape[1] - q.shape[1]
    scale, least = q.dtype.type(1 / math.sqrt(d)), q.dtype.type(-np.inf)
    for h in range(start, stop):
        for t in range(0, T, BLOCK):
            n, q_T = min(BLOCK, T - t), _filled(q[h, t:t + BLOCK])[1]
            width = q_T.shape[1]
            top, total, y_T = np.full(width, least), np.zeros(width, q.dtype), np.zeros((d, width), q.dtype)
            for i in range(0, past + t + n, BLOCK):
                s = _product(k[h, i:i + BLOCK], q_T)  # (keys,queries)
                _look(s, scale, i - past - t, top, total, y_T)
                _add(y_T, v[h, i:i + BLOCK].T, s)
            for j in range(n):
                z[h, t + j] = top[j] + math.log(total[j])
                for p in range(d):
                    y[h, t + j, p] = y_T[p, j] / total[j]


@_jit(nogil=True)
def _attention_backward(start, stop, q, k, v, y, z, y_bar, q_bar, k_bar, v_bar):
    (T, d), past, zero = q.shape[1:], k.shape[1] - q.shape[1], q.dtype.type(0)
    scale = q.dtype.type(1 / math.sqrt(d))
    for h in range(start, stop):
        k_bar[h], v_bar[h] = zero, zero
        for t in range(0, T, BLOCK):
            n, (q_t, q_T), (g, g_T) = min(BLOCK, T - t), _filled(q[h, t:t + BLOCK]), _filled(y_bar[h, t:t + BLOCK])
            width = q_T.shape[1]
            along, z_t, q_bar_T = np.zeros(width, q.dtype), np.zeros(width, q.dtype), np.zeros_like(q_T)
            for j in range(n):
                along[j], z_t[j] = _dot(y[h, t + j], y_bar[h, t + j]), z[h, t + j]
            for i in range(0, past + t + n, BLOCK):
                p, s_bar = _product(k[h, i:i + BLOCK], q_T), _product(v[h, i:i + BLOCK], g_T)  # (keys,queries)
                for j in range(len(p)):
                    for c in range(width):
                        p[j, c] = _exp(p[j, c] * scale - z_t[c])
                        s_bar[j, c] = p[j, c] * (s_bar[j, c] - along[c]) * scale
                    for c in range(min(width, i + j - past - t)):  # a key that lies ahead
                        p[j, c], s_bar[j, c] = zero, zero
                _add(v_bar[h, i:i + BLOCK], p, g)
                _add(k_bar[h, i:i + BLOCK], s_bar, q_t)
                _add(q_bar_T, k[h, i:i + BLOCK].T, s_bar)
            for j in range(n):
                for c in range(d):
                    q_bar[h, t + j, c] = q_bar_T[c, j]


def attention(q, k, v):
    _expect_attention(q, k, v)
    if q.shape[2] == 1:  # a token alone is no block
        return attention_reference(q, k, v)
    n = q.shape[0] * q.shape[1]
    flat = [np.reshape(x, (n, *x.shape[2:])) for x in (q, k, v)]
    y, z = _run(_attention, n, flat, flat[0].shape, flat[0].shape[:2], work=q.size * k.shape[2])
    return y.reshape(q.shape), z.reshape(q.shape[:3])


def attention_backward(q, k, v, y, z, y_bar):
    _expect_attention(q, k, v, y, z, y_bar)
    n = q.shape[0] * q.shape[1]
    flat = [np.reshape(x, (n, *x.shape[2:])) for x in (q, k, v, y, z, y_bar)]
    bars = _run(_attention_backward, n, flat, *(x.shape for x in flat[:3]), work=q.size * k.shape[2])
    return tuple(bar.reshape(x.shape) for bar, x in zip(bars, (q, k, v), strict=True))


# Self-modifying Titans: chunk after chunk, compiled ---------------------------------------------------------
#
# `memory.SelfModifyingTitans.chunk_in_operations` is the definition of a chunk. Here a thread takes a sequence
# through all its chunks, each computed whole, with all it needs in the nearest caches. Arrays lie feature by token
# (F,n); the tokens that fill them up write nothing (x = 0, η = 0, α = 1). The drifts between chunks are kept (the
# trail); the way back computes the rest again.
#
# Legend: memory m of MEMORIES has the layers W₂ (h,d) and W₁ (d,h), in a scalar memory (1,h): layers 2m
# and 2m + 1. Suffixes count them in the order of computing: 1 is W₂, 2 is W₁. M₀ is a layer's initial state,
# S (S₀) its drift now, P its drift at the chunk's start, W = M₀ + P. z (F,n) is its input, E what it should write,
# its clipped surprise less what it forgets, U what is written, U(I + L)ᵀ = E diag(η′): S_C = g_C S₀ +
# Σ (g_C/g_i) u_i z_iᵀ; G = S̄_C.

MEMORIES = ("q", "k", "v", "eta", "alpha", "memory")
SCALARS, MEMORY = (3, 4), 5
WORK = 1000  # for every number of the output, very roughly
Retention = namedtuple("Retention", "ratio ratio_T before after whole")  # g_{t−1}/g_i, its ᵀ, g_{t−1}, g_C/g_i, g_C
System = namedtuple("System", "square rate gram inverse solve")  # ‖z‖², η′, ratio·zᵀz, (I + L)⁻¹, diag(η′)(I + L)⁻ᵀ
Asked = namedtuple("Asked", "x x_T y s hidden")  # a feed, what a memory answers, and on the way s and σ(W₂ x)
Chunk = namedtuple("Chunk", "asked q q_r k k_r k_T v v_r v_T eta log_alpha retention system")
Learned = namedtuple("Learned", "s hidden hidden_T s_v hidden_v target r delta D delta_1 "
                                "SZ1 E1 U1 SZ2 E2 U2 system")
Inputs = namedtuple("Inputs", "feeds bias readout initial now start")  # tables, see `_of`; also of cotangents
READ = 4  # where o, or its cotangent, stands in the table of feeds
Bars = namedtuple("Bars", "eta before g k v")  # cotangents of η, log g_{t−1}, log g, k, v: all memories add


@_inner
def _sum(x, y):
    z = np.empty_like(x)
    for i in range(x.shape[0]):
        for t in range(x.shape[1]):
            z[i, t] = x[i, t] + y[i, t]
    return z


@_inner
def _mask(x, ratio):
    """x ← ratio·x"""
    for i in range(x.shape[0]):
        for t in range(x.shape[1]):
            x[i, t] *= ratio[i, t]


@_inner
def _by_token(x, scale):
    """x_t·scale_t"""
    y = np.empty_like(x)
    for i in range(x.shape[0]):
        for t in range(x.shape[1]):
            y[i, t] = x[i, t] * scale[t]
    return y


@_inner
def _add_dots(dots, x, y):
    """dots_t += x_t·y_t"""
    for i in range(x.shape[0]):
        for t in range(x.shape[1]):
            dots[t] += x[i, t] * y[i, t]


@_inner
def _dots(x, y):
    dots = np.zeros(x.shape[1], x.dtype)
    _add_dots(dots, x, y)
    return dots


@_inner
def _scaled_to(x, m, eps):
    """y = x r,  r = 1/√(m Σx² + ε) for every token"""
    r = _dots(x, x)
    for t in range(len(r)):
        r[t] = 1 / math.sqrt(m * r[t] + eps)
    return _by_token(x, r), r


@_inner
def _scaled_to_backward(y, r, m, y_bar):
    """x̄ = r(ȳ − y m Σȳy)"""
    x_bar, dots, m = np.empty_like(y), _dots(y, y_bar), y.dtype.type(m)
    for i in range(y.shape[0]):
        for t in range(y.shape[1]):
            x_bar[i, t] = r[t] * (y_bar[i, t] - y[i, t] * m * dots[t])
    return x_bar


@_inner
def _silu(x):
    """s = σ(x) and y = x s"""
    s, y, one = np.empty_like(x), np.empty_like(x), x.dtype.type(1)
    for i in range(x.shape[0]):
        for t in range(x.shape[1]):
            s[i, t] = one / (one + _exp(-x[i, t]))
            y[i, t] = x[i, t] * s[i, t]
    return s, y


@_inner
def _times_slope(g, s, y):
    """g(s + y(1 − s)), the slope of SiLU"""
    z, one = np.empty_like(g), g.dtype.type(1)
    for i in range(g.shape[0]):
        for t in range(g.shape[1]):
            z[i, t] = g[i, t] * (s[i, t] + y[i, t] * (one - s[i, t]))
    return z


if JIT:
    @intrinsic
    def _pointer_at(typing, address, like):
        """The address as a pointer to numbers like those of an array"""
        pointer = types.CPointer(like.dtype)
        return pointer(address, like), lambda context, builder, signature, args: builder.inttoptr(
            args[0], context.get_value_type(pointer))


@_inner
def _of(table, row, i, like):
    """Matrix i; its row in the table is (address, matrices, bytes between them, rows, columns). All share M₀."""
    address, matrices, step, m, n = table[row]
    return numba.carray(_pointer_at(address + i % matrices * step, like), (m, n))


@_inner
def _weights(at, layer, i, like):
    """W = M₀ + P"""
    return _sum(_of(at.initial, layer, i, like), _of(at.start, layer, i, like))


@_inner
def _through(at, layer, i, x):
    """W x"""
    return _product(_weights(at, layer, i, x), x)


@_inner
def _add_weights(bars, layer, i, W_bar):
    """… and back"""
    _accumulate(_of(bars.initial, layer, i, W_bar), W_bar)
    _accumulate(_of(bars.start, layer, i, W_bar), W_bar)


# the chunk's retention and its triangular systems


@_inner
def _retain(log_alpha, like):
    """All products of α in a chunk, each ≤ 1."""
    n, log_g = len(log_alpha), np.cumsum(log_alpha)
    ratio, before, after = np.zeros((n, n), like.dtype), np.empty(n, like.dtype), np.empty(n, like.dtype)
    for t in range(n):
        log_before = log_g[t] - log_alpha[t]
        before[t], after[t] = math.exp(log_before), math.exp(log_g[n - 1] - log_g[t])
        for i in range(t):
            ratio[t, i] = _exp(like.dtype.type(log_before - log_g[i]))
    return Retention(ratio, _turned(ratio), before, after, like.dtype.type(math.exp(log_g[n - 1])))


@_inner
def _system(z, eta, ratio):
    """I + L, L = diag(η′)(ratio·zᵀz), inverted by rows: x_t = e_t − Σ_{i<t} L_ti x_i.  η′ = η/(1 + η‖z‖²)"""
    n, square, gram = z.shape[1], _dots(z, z), _product(z.T, z)
    rate, inverse = np.empty_like(square), np.zeros((n, n), z.dtype)
    _mask(gram, ratio)
    for t in range(n):
        rate[t] = eta[t] / (1 + eta[t] * square[t])
        for j in range(0, t, LANES):
            x = _zero(rate)
            for i in range(j, t):
                x = _plus(x, -rate[t] * gram[t, i], _load(inverse[i], j))
            _store(inverse[t], j, x)
        inverse[t, t] = 1
    solve = _turned(inverse)  # E diag(η′)(I + L)⁻ᵀ = E solve
    for i in range(n):
        for t in range(n):
            solve[i, t] *= rate[i]
    return System(square, rate, gram, inverse, solve)


@_inner
def _system_backward(z, system, retention, RU, rate_bar, bars, z_bar):
    """L̄ = −tril(R̄ᵀU): to the decays, to η′ and by it to η, and to z by the Gram matrix and ‖z‖²."""
    n, rate, to_z, g_bar = z.shape[1], system.rate, np.zeros_like(RU), np.zeros_like(system.rate)
    for t in range(n):
        total, rate_t = z.dtype.type(0), rate[t]
        for i in range(t):
            along = RU[t, i] * system.gram[t, i]
            total += along
            g_bar[i] += along * rate_t
            to_z[t, i] = -RU[t, i] * rate_t * retention.ratio[t, i]
        rate_bar[t] -= total
        bars.before[t] -= total * rate_t
        bars.eta[t] += rate_bar[t] * (1 - rate_t * system.square[t]) ** 2
        to_z[t, t] = -rate_bar[t] * rate_t ** 2
    for t in range(n):
        bars.g[t] += g_bar[t]
    _add(z_bar, z, _sum(to_z, _turned(to_z)))


# a memory as a function


@_inner
def _apply(m, i, at, adaptive, x):
    """M(x) = x + W₁ σ(W₂ x), in a scalar memory r·x + W₁ σ(W₂ x); s and σ(W₂ x)"""
    y, s, hidden = x, x, x  # one type on every path
    if m in SCALARS:
        y = _product(_of(at.readout, m - 3, i, x), x)
    if adaptive:
        s, hidden = _silu(_through(at, 2 * m, i, x))
        y = _sum(y, _through(at, 2 * m + 1, i, hidden))
    return y, s, hidden


@_inner
def _apply_backward(m, i, at, adaptive, x, x_T, s, hidden, y_bar, x_bar, bars_at):
    _skip_backward(m, i, at, x_T, y_bar, x_bar, bars_at)
    if adaptive:
        inner_bar = _times_slope(_product(_weights(at, 2 * m + 1, i, x).T, y_bar), s, hidden)
        _add(x_bar, _weights(at, 2 * m, i, x).T, inner_bar)
        _add_weights(bars_at, 2 * m, i, _product(inner_bar, x_T))
        _add_weights(bars_at, 2 * m + 1, i, _product(y_bar, _turned(hidden)))


@_inner
def _skip_backward(m, i, at, x_T, y_bar, x_bar, bars_at):
    """… of x, or of r·x"""
    if m in SCALARS:
        _add(x_bar, _of(at.readout, m - 3, i, x_T).T, y_bar)
        _add(_of(bars_at.readout, m - 3, i, x_T), y_bar, x_T)
    else:
        _accumulate(x_bar, y_bar)


# learning: from k and v to what is written


@_inner
def _surprise(delta, MZ, SZ, before):
    """E = −(δ·min(1, 1/RMS δ) + M₀z + g_{t−1} S₀z)"""
    E, clip, one = np.empty_like(delta), _dots(delta, delta), delta.dtype.type(1)
    for t in range(len(clip)):
        clip[t] = min(one, 1 / math.sqrt(clip[t] / delta.shape[0] + 1e-12))
    for i in range(delta.shape[0]):
        for t in range(delta.shape[1]):
            E[i, t] = -(delta[i, t] * clip[t] + MZ[i, t] + before[t] * SZ[i, t])
    return E


@_inner
def _surprise_backward(delta, E_bar):
    """δ̄ = −Ē, and where δ was clipped −(Ē − δ mean(Ēδ)/mean(δ²))/RMS δ"""
    F, square, dots = delta.shape[0], _dots(delta, delta), _dots(delta, E_bar)
    delta_bar, scale = np.empty_like(delta), np.ones_like(square)
    for t in range(len(scale)):
        mean = square[t] / F + 1e-12
        if mean > 1:
            scale[t], dots[t] = 1 / math.sqrt(mean), dots[t] / (F * mean)
        else:
            dots[t] = 0
    for i in range(F):
        for t in range(delta.shape[1]):
            delta_bar[i, t] = -scale[t] * (E_bar[i, t] - delta[i, t] * dots[t])
    return delta_bar


@_inner
def _learn(m, i, at, c, options):
    """What memory m writes: in W₂ z = k, δ₁ = σ′·W₁ᵀδ; in W₁ z = σ(W₂k), δ = M(k) − v̂ or −v̂."""
    (_, moved, l2, given), retention, k, v = options, c.retention, c.k, c.v
    MZ1, SZ1 = _product(_of(at.initial, 2 * m, i, k), k), _product(_of(at.now, 2 * m, i, k), k)
    PZ1 = _product(_of(at.start, 2 * m, i, k), k) if moved[m] else SZ1
    s, hidden = _silu(_sum(MZ1, PZ1))
    MZ2, SZ2 = (_product(_of(at.initial, 2 * m + 1, i, k), hidden),
                _product(_of(at.now, 2 * m + 1, i, k), hidden))
    target, s_v, hidden_v, r = v, v, v, retention.before
    if m in SCALARS or not given:
        target, s_v, hidden_v = _apply(m, i, at, True, v)
    if m in SCALARS:
        target = np.tanh(target)
    elif not given:
        target, r = _scaled_to(target, 1 / len(target), 1e-6)
    delta = -target
    if l2:
        PZ2 = _product(_of(at.start, 2 * m + 1, i, k), hidden) if moved[m] else SZ2
        _accumulate(delta, _sum(MZ2, PZ2))
        _accumulate(delta, _product(_of(at.readout, m - 3, i, k), k) if m in SCALARS else k)
    D = _product(_weights(at, 2 * m + 1, i, k).T, delta)
    delta_1 = _times_slope(D, s, hidden)
    E1, E2 = _surprise(delta_1, MZ1, SZ1, retention.before), _surprise(delta, MZ2, SZ2, retention.before)
    second = _system(hidden, c.eta, retention.ratio)
    return Learned(s, hidden, _turned(hidden), s_v, hidden_v, target, r, delta, D, delta_1,
                   SZ1, E1, _product(E1, c.system.solve, 1), SZ2, E2, _product(E2, second.solve, 1), second)


@_inner
def _learn_backward(m, i, at, c, L, options, after_bar, U1_bar, U2_bar, hidden_bar, RU, rate_bar,
                    bars, bars_at):
    """`_learn` and `_write`, line by line from the last."""
    (_, moved, l2, given), retention, k = options, c.retention, c.k
    one, two = k.dtype.type(1), k.dtype.type(2)
    RU2, rate2_bar = np.zeros_like(RU), np.zeros_like(rate_bar)
    G1, G2 = _of(after_bar, 2 * m, i, k), _of(after_bar, 2 * m + 1, i, k)
    E1_bar = _solve_backward(G1, k, L.E1, L.U1, c.system, retention, U1_bar, RU, rate_bar, bars)
    E2_bar = _solve_backward(G2, L.hidden, L.E2, L.U2, L.system, retention, U2_bar, RU2, rate2_bar, bars)
    delta_1_bar, delta_bar = _surprise_backward(L.delta_1, E1_bar), _surprise_backward(L.delta, E2_bar)
    D_bar = _times_slope(delta_1_bar, L.s, L.hidden)
    _add(delta_bar, _weights(at, 2 * m + 1, i, k), D_bar)
    _add_weights(bars_at, 2 * m + 1, i, _product(L.delta, _turned(D_bar)))
    made_bar = delta_bar if l2 else np.zeros_like(delta_bar)
    if l2:
        _skip_backward(m, i, at, c.k_T, made_bar, bars.k, bars_at)
    target_bar = -delta_bar
    if given and m not in SCALARS:
        _accumulate(bars.v, target_bar)
    else:
        raw_bar = (one - L.target * L.target) * target_bar if m in SCALARS else (
            _scaled_to_backward(L.target, L.r, 1 / len(target_bar), target_bar))
        _apply_backward(m, i, at, True, c.v, c.v_T, L.s_v, L.hidden_v, raw_bar, bars.v, bars_at)
    _write_backward(2 * m + 1, i, at, G2, L.hidden, L.hidden_T, L.U2, L.SZ2, E2_bar, made_bar, moved[m],
                    retention, hidden_bar, bars, bars_at)
    _system_backward(L.hidden, L.system, retention, RU2, rate2_bar, bars, hidden_bar)
    inner_bar = _times_slope(hidden_bar, L.s, L.hidden)
    gates, hidden, D = L.s, L.hidden, L.D
    for j in range(len(inner_bar)):
        for t in range(inner_bar.shape[1]):  # σ″ = (1 − s)(2s + y − 2ys), y = x s
            s, y = gates[j, t], hidden[j, t]
            inner_bar[j, t] += delta_1_bar[j, t] * D[j, t] * (one - s) * (two * s + y - two * y * s)
    _write_backward(2 * m, i, at, G1, k, c.k_T, L.U1, L.SZ1, E1_bar, inner_bar, moved[m],
                    retention, bars.k, bars, bars_at)


@_inner
def _write(S, U, z_T, retention, S_C):
    """S_C = g_C S₀ + Σ_i (g_C/g_i) u_i z_iᵀ"""
    for i in range(S.shape[0]):
        for j in range(S.shape[1]):
            S_C[i, j] = retention.whole * S[i, j]
    _add(S_C, _by_token(U, retention.after), z_T)


@_inner
def _solve_backward(G, z, E, U, system, retention, U_bar, RU, rate_bar, bars):
    """From S̄_C = G and what reads ask of U to R̄ = Ū(I + L)⁻¹, of R = E diag(η′), and to Ē."""
    GZ = _by_token(_product(G, z), retention.after)
    written = _dots(GZ, U)
    for t in range(len(written)):
        bars.g[t] -= written[t]
        bars.g[-1] += written[t]
    _accumulate(U_bar, GZ)
    R_bar = _product(U_bar, system.inverse, -1)
    _add(RU, R_bar.T, U)
    _add_dots(rate_bar, R_bar, E)
    return _by_token(R_bar, system.rate)


@_inner
def _write_backward(layer, i, at, G, z, z_T, U, SZ, E_bar, made_bar, moved, retention, z_bar, bars, bars_at):
    """From Ē, from G and from the cotangent of the prediction W z, to z, S₀, P and M₀."""
    S, S_bar = _of(at.now, layer, i, z), _of(bars_at.now, layer, i, z)
    MZ_bar, SZ_bar = _sum(made_bar, -E_bar), _by_token(E_bar, -retention.before)
    _add_dots(bars.before, SZ_bar, SZ)
    if moved:
        _add(z_bar, _of(at.start, layer, i, z).T, made_bar)
        _add(_of(bars_at.start, layer, i, z), made_bar, z_T)
    else:
        _accumulate(SZ_bar, made_bar)
    for j in range(S.shape[0]):
        for p in range(S.shape[1]):
            S_bar[j, p] += retention.whole * G[j, p]
    bars.g[-1] += retention.whole * _dot(G.reshape(-1), S.reshape(-1))
    _add(z_bar, _of(at.initial, layer, i, z).T, MZ_bar)
    _add(z_bar, S.T, SZ_bar)
    _add(z_bar, G.T, _by_token(U, retention.after))
    _add(_of(bars_at.initial, layer, i, z), MZ_bar, z_T)
    _add(S_bar, SZ_bar, z_T)


@_inner
def _read(layer, i, at, U, z, x, retention):
    """y_t = M₀x_t + g_{t−1} S₀x_t + Σ_{i<t} ratio_ti (z_i·x_t) u_i;  S₀x, ratio·zᵀx (i,t)"""
    SX, mix = _product(_of(at.now, layer, i, x), x), _product(z.T, x)
    y = _product(_of(at.initial, layer, i, x), x)
    _accumulate(y, _by_token(SX, retention.before))
    _mask(mix, retention.ratio_T)
    _add(y, U, mix, 1)
    return y, SX, mix


@_inner
def _read_backward(layer, i, at, U, z, x, SX, mix, retention, y_bar, U_bar, z_bar, x_bar, bars, bars_at):
    mix, mix_bar, x_T = _turned(mix), _product(y_bar.T, U), _turned(x)  # (t,i)
    _add(U_bar, y_bar, mix, -1)
    for t in range(len(mix)):
        for j in range(t):
            along = mix_bar[t, j] * mix[t, j]
            bars.before[t] += along
            bars.g[j] -= along
    _mask(mix_bar, retention.ratio)
    _add(z_bar, x, mix_bar, -1)
    _add(x_bar, z, _turned(mix_bar), 1)
    SX_bar = _by_token(y_bar, retention.before)
    _add_dots(bars.before, SX_bar, SX)
    _add(x_bar, _of(at.initial, layer, i, x).T, y_bar)
    _add(x_bar, _of(at.now, layer, i, x).T, SX_bar)
    _add(_of(bars_at.initial, layer, i, x), y_bar, x_T)
    _add(_of(bars_at.now, layer, i, x), SX_bar, x_T)


# the whole chunk


@_inner
def _piece(at, p):
    """The tables of piece p: what is read, and the drifts, lie elsewhere in each."""
    return Inputs(at.feeds[p], at.bias, at.readout, at.initial, at.now[p], at.start[p])


@_inner
def _ask(m, i, at, adaptive, like):
    """What projection m says to its feed; eta and alpha have one feed."""
    x_T, x = _filled(_of(at.feeds, min(m, 3), i, like))
    y, s, hidden = _apply(m, i, at, adaptive[m], x)
    return Asked(x, x_T, y, s, hidden)


@_inner
def _chunk(i, at, adaptive, eta_max, like):
    """What the memories are asked, and what they are all written with."""
    asked = (_ask(0, i, at, adaptive, like), _ask(1, i, at, adaptive, like), _ask(2, i, at, adaptive, like),
             _ask(3, i, at, adaptive, like), _ask(4, i, at, adaptive, like))
    (d, width), n, gates = asked[0].x.shape, at.feeds[0, 3], (asked[3].y, asked[4].y)
    eta, log_alpha, bias = np.zeros(width), np.zeros(width), (_of(at.bias, 0, i, like), _of(at.bias, 1, i, like))
    for t in range(n):
        eta[t] = eta_max / (1 + math.exp(-gates[0][0, t] - bias[0][0, 0]))
        x = float(gates[1][0, t] + bias[1][0, 0])
        log_alpha[t] = min(x, 0.0) - math.log1p(math.exp(-abs(x)))  # log σ(x)
    q, q_r = _scaled_to(asked[0].y, 1, 1e-12)
    k, k_r = _scaled_to(asked[1].y, 1, 1e-12)
    v, v_r = _scaled_to(asked[2].y, 1 / d, 1e-6)
    retention = _retain(log_alpha, like)
    return Chunk(asked, q, q_r, k, k_r, _turned(k), v, v_r, _turned(v), eta, log_alpha, retention,
                 _system(k, eta, retention.ratio))


@_inner
def _chunk_bars(i, at, after_bar, bars_at, options, eta_max, like):
    """From the cotangents of o and of the drifts after one chunk to those of all that goes into it."""
    adaptive, c, o_bar = options[0], _chunk(i, at, options[0], eta_max, like), _of(at.feeds, READ, i, like)
    (d, width), n, read_bar = c.k.shape, len(o_bar), _filled(o_bar)[1]
    bars = Bars(np.zeros(width), np.zeros(width), np.zeros(width), np.zeros_like(c.k), np.zeros_like(c.v))
    rate_bar, RU = np.zeros(width), np.zeros_like(c.system.gram)
    q_bar = read_bar.copy()
    for m in range(MEMORY + 1):
        if adaptive[m]:
            L = _learn(m, i, at, c, options)
            U1_bar, U2_bar, hidden_bar = np.zeros_like(L.U1), np.zeros_like(L.U2), np.zeros_like(L.hidden)
            if m == MEMORY:
                inner, SX, mix = _read(2 * m, i, at, L.U1, c.k, c.q, c.retention)
                s, x = _silu(inner)
                _, SX2, mix2 = _read(2 * m + 1, i, at, L.U2, L.hidden, x, c.retention)
                x_bar = np.zeros_like(x)
                _read_backward(2 * m + 1, i, at, L.U2, L.hidden, x, SX2, mix2, c.retention, read_bar,
                               U2_bar, hidden_bar, x_bar, bars, bars_at)
                inner_bar = _times_slope(x_bar, s, x)
                _read_backward(2 * m, i, at, L.U1, c.k, c.q, SX, mix, c.retention, inner_bar,
                               U1_bar, bars.k, q_bar, bars, bars_at)
            _learn_backward(m, i, at, c, L, options, after_bar, U1_bar, U2_bar, hidden_bar, RU, rate_bar,
                            bars, bars_at)
    _system_backward(c.k, c.system, c.retention, RU, rate_bar, bars, bars.k)

    y_bar, log_alpha_bar = np.zeros((5, d, width), c.k.dtype), 0.0  # of q, k, v, and in one row η and α
    _accumulate(y_bar[0], _scaled_to_backward(c.q, c.q_r, 1, q_bar))
    _accumulate(y_bar[1], _scaled_to_backward(c.k, c.k_r, 1, bars.k))
    _accumulate(y_bar[2], _scaled_to_backward(c.v, c.v_r, 1 / d, bars.v))
    eta, log_alpha, eta_bar, before_bar, g_bar = c.eta, c.log_alpha, bars.eta, bars.before, bars.g
    bias_bar = _of(bars_at.bias, 0, i, like), _of(bars_at.bias, 1, i, like)
    for t in range(width - 1, -1, -1):
        log_alpha_bar += g_bar[t]
        if t < n:
            y_bar[3, 0, t] = eta_bar[t] * eta[t] * (1 - eta[t] / eta_max)
            y_bar[4, 0, t] = -log_alpha_bar * math.expm1(log_alpha[t])
            bias_bar[0][0, 0] += y_bar[3, 0, t]
            bias_bar[1][0, 0] += y_bar[4, 0, t]
        log_alpha_bar += before_bar[t]
    for m in range(5):
        asked, x_bar = c.asked[m], np.zeros_like(c.k)
        _apply_backward(m, i, at, adaptive[m], asked.x, asked.x_T, asked.s, asked.hidden,
                        y_bar[m][:1 if m in SCALARS else d], x_bar, bars_at)
        _accumulate(_of(bars_at.feeds, min(m, 3), i, like), _turned(x_bar)[:n])


@_jit(nogil=True)
def _titans(start, stop, options, eta_max, moved, tables, after, like):
    """Some of the sequences. options: which memories adapt; l2, given. moved: which have, since their start."""
    adaptive, l2, given = options
    for i in range(start, stop):
        for p in range(len(moved)):
            at, option = _piece(tables, p), (adaptive, moved[p], l2, given)
            c, o = _chunk(i, at, adaptive, eta_max, like), _of(at.feeds, READ, i, like)
            for m in range(MEMORY + 1):
                if adaptive[m]:
                    L = _learn(m, i, at, c, option)
                    _write(_of(at.now, 2 * m, i, like), L.U1, c.k_T, c.retention, _of(after[p], 2 * m, i, like))
                    _write(_of(at.now, 2 * m + 1, i, like), L.U2, L.hidden_T, c.retention,
                           _of(after[p], 2 * m + 1, i, like))
                    if m == MEMORY:
                        x = _silu(_read(2 * m, i, at, L.U1, c.k, c.q, c.retention)[0])[1]
                        y = _sum(c.q, _read(2 * m + 1, i, at, L.U2, L.hidden, x, c.retention)[0])
                        _accumulate(o, _turned(y)[:len(o)])


@_jit(nogil=True)
def _titans_backward(start, stop, options, eta_max, moved, tables, after_bar, bars, like):
    adaptive, l2, given = options
    for i in range(start, stop):
        for p in range(len(moved) - 1, -1, -1):
            at, bars_at, option = _piece(tables, p), _piece(bars, p), (adaptive, moved[p], l2, given)
            _chunk_bars(i, at, after_bar[p], bars_at, option, eta_max, like)


# one token alone: it is a row, and no product is one of matrices


@_inner
def _times_row(table, layer, i, x):
    """A x"""
    A = _of(table, layer, i, x)
    y = np.zeros((1, len(A)), x.dtype)
    _dot_rows(0, len(A), A, x[0], y[0])
    return y


@_inner
def _answer(m, i, at, adaptive, x):
    """`_apply`"""
    y = _times_row(at.readout, m - 3, i, x) if m in SCALARS else x.copy()
    if adaptive:
        hidden = _silu(_sum(_times_row(at.initial, 2 * m, i, x), _times_row(at.start, 2 * m, i, x)))[1]
        _accumulate(y, _times_row(at.initial, 2 * m + 1, i, hidden))
        _accumulate(y, _times_row(at.start, 2 * m + 1, i, hidden))
    return y


@_inner
def _scaled_row(x, m, eps):
    """`_scaled_to`"""
    y, r = np.empty_like(x), 1 / math.sqrt(m * _dot(x[0], x[0]) + eps)
    for j in range(x.shape[1]):
        y[0, j] = x[0, j] * r
    return y


@_inner
def _write_row(layer, i, at, after, alpha, eta, z, delta, MZ, SZ):
    """S ← α S − η′(δ·min(1, 1/RMS δ) + M₀z + S z) zᵀ"""
    S, S_1 = _of(at.now, layer, i, z), _of(after, layer, i, z)
    clip = min(1.0, 1 / math.sqrt(_dot(delta[0], delta[0]) / delta.shape[1] + 1e-12))
    rate, clip = z.dtype.type(eta / (1 + eta * _dot(z[0], z[0]))), z.dtype.type(clip)
    for p in range(len(S)):
        u = -rate * (delta[0, p] * clip + MZ[0, p] + SZ[0, p])
        for j in range(S.shape[1]):
            S_1[p, j] = alpha * S[p, j] + u * z[0, j]


@_jit(nogil=True)
def _titans_row(start, stop, options, eta_max, moved, tables, after, o):
    """`_titans` where T = 1: the same in the same order, and what `_learn` finds is written at once"""
    (adaptive, l2, given), d, number = options, o.shape[2], o.dtype.type
    at = _piece(tables, 0)
    for i in range(start, stop):
        asked = np.zeros((5, 1, d), o.dtype)
        for m in range(5):
            _accumulate(asked[m], _answer(m, i, at, adaptive[m], _of(at.feeds, min(m, 3), i, o)))
        eta = eta_max / (1 + math.exp(-asked[3, 0, 0] - _of(at.bias, 0, i, o)[0, 0]))
        alpha = number(1 / (1 + math.exp(-asked[4, 0, 0] - _of(at.bias, 1, i, o)[0, 0])))
        q, k = _scaled_row(asked[0], 1, 1e-12), _scaled_row(asked[1], 1, 1e-12)
        v = _scaled_row(asked[2], 1 / d, 1e-6)
        for m in range(MEMORY + 1):
            if adaptive[m]:
                MZ1, SZ1 = _times_row(at.initial, 2 * m, i, k), _times_row(at.now, 2 * m, i, k)
                s, hidden = _silu(_sum(MZ1, _times_row(at.start, 2 * m, i, k) if moved[0, m] else SZ1))
                MZ2, SZ2 = _times_row(at.initial, 2 * m + 1, i, hidden), _times_row(at.now, 2 * m + 1, i, hidden)
                target = v
                if m in SCALARS:
                    target = np.tanh(_answer(m, i, at, True, v))
                elif not given:
                    target = _scaled_row(_answer(m, i, at, True, v), 1 / d, 1e-6)
                delta = -target
                if l2:
                    _accumulate(delta, MZ2)
                    _accumulate(delta, _times_row(at.start, 2 * m + 1, i, hidden) if moved[0, m] else SZ2)
                    _accumulate(delta, _times_row(at.readout, m - 3, i, k) if m in SCALARS else k)
                M, P, D = _of(at.initial, 2 * m + 1, i, k), _of(at.start, 2 * m + 1, i, k), np.zeros_like(hidden)
                for p in range(len(M)):
                    for j in range(M.shape[1]):
                        D[0, j] += delta[0, p] * (M[p, j] + P[p, j])
                _write_row(2 * m, i, at, after[0], alpha, eta, k, _times_slope(D, s, hidden), MZ1, SZ1)
                _write_row(2 * m + 1, i, at, after[0], alpha, eta, hidden, delta, MZ2, SZ2)
                if m == MEMORY:
                    x = _silu(_sum(_times_row(at.initial, 2 * m, i, q), _times_row(at.now, 2 * m, i, q)))[1]
                    _accumulate(o[i], q)
                    _accumulate(o[i], _times_row(at.initial, 2 * m + 1, i, x))
                    _accumulate(o[i], _times_row(at.now, 2 * m + 1, i, x))


_ROWS: dict[int, tuple[weakref.ref, tuple[int, ...]]] = {}  # by the id of an array: itself, its row in tables


def _forget(number: int, reference: weakref.ref) -> None:
    if number in _ROWS and _ROWS[number][0] is reference:
        del _ROWS[number]


class _Tables:
    """Makes tables for `_of`, and holds their arrays for as long as the addresses are in use."""

    def __init__(self, dtype: Any, pieces: Sequence[tuple[int, dict[str, int]]]):
        self.dtype, self.pieces = np.dtype(dtype), pieces
        self.again = [n for n, _ in pieces] == [1]  # soon to be asked about the same arrays, token after token
        self.arrays: list[np.ndarray] = []

    def __call__(self, arrays: list) -> np.ndarray:
        return np.array([(0, 1, 0, 0, 0) if x is None else self.row(x) for x in arrays], np.int64)

    def row(self, x: np.ndarray) -> tuple[int, ...]:
        """To ask an array where it lies takes longer than to read it: of what still lives, it is known."""
        known = _ROWS.get(id(x))
        if known and known[0]() is x and x.dtype == self.dtype:
            self.arrays.append(x)
            return known[1]
        plain = x if x.flags.carray and x.dtype == self.dtype else np.require(x, self.dtype, ["C", "A", "W"])
        self.arrays.append(plain)
        *lead, m, n = x.shape
        row = plain.ctypes.data, math.prod(lead), m * n * self.dtype.itemsize, m, n
        if self.again and plain is x and x.base is None:  # views, as feeds are, do not live on
            _ROWS[id(x)] = weakref.ref(x, functools.partial(_forget, id(x))), row
        return row

    def layers(self, by_name: dict) -> np.ndarray:
        return self([x for name in MEMORIES for x in by_name.get(name, (None, None))])

    def inputs(self, feeds, bias, readout, initial, now, start, trail, after) -> tuple[Inputs, np.ndarray]:
        """What `_piece` takes apart; and of every piece, where the drifts after it lie."""
        read, P = np.repeat(self(feeds)[None], len(self.pieces), 0), len(self.pieces)
        drifts = np.empty((P + 1, 2 * len(MEMORIES), 5), np.int64)
        drifts[0], drifts[-1], seen = self.layers(now), self.layers(after), self.layers(now | start)[None]
        if P > 1:
            read[:, :, 3] = np.array([n for n, _ in self.pieces])[:, None]
            read[1:, :, 0] += np.cumsum(read[:-1, :, 3], 0) * read[:-1, :, 4] * self.dtype.itemsize
            drifts[1:-1] = self.layers(trail)
            drifts[1:-1, :, 1] //= P - 1
            drifts[1:-1, :, 0] += np.arange(P - 1)[:, None] * drifts[1:-1, :, 1] * drifts[1:-1, :, 2]
            rows = [[of.get(name, -1) for name in MEMORIES for _ in range(2)] for _, of in self.pieces]
            seen = np.concatenate([drifts, seen])[rows, np.arange(2 * len(MEMORIES))]
        return (Inputs(read, self([x[..., None, None] for x in bias]), self(readout), self.layers(initial),
                       drifts[:-1], seen), drifts[1:])


def has_titans(x: Array) -> bool:
    """Whether `titans` can be computed on arrays like x."""
    there = JIT if isinstance(x, np.ndarray) else (type(x), "titans") in _REGISTERED
    return there and x.dtype in (np.float32, np.float64)


def titans(adaptive, l2, given, eta_max, pieces, *inputs):
    """Read and write T tokens with self-modifying Titans: two-layer memories, exact reads, retention to M₀.

    pieces: (n, seen) for each: tokens that are written at once, and by the name of a memory the piece with which
    its chunk began, whose state at that time its errors see; −1: that in `start`.
    inputs: feeds q, k, v, gate (B,H,T,d); bias (H,) and readout (H,1,d) of eta and alpha; and, by the name of
    a memory, both layers of: the initial state (H,out,in), the drift now (B,H,out,in), and where the first
    piece says −1, the drift at that chunk's start. adaptive: names of the memories that learn; l2: the objective,
    else the dot product; given: the target is v; eta_max: bound of η.
    → o (B,H,T,d), the drifts after all by name, and the trail for the way back: those between the P pieces,
    (P−1,B,H,out,in) by name, or {} for a single one.
    Raises ValueError on shapes that do not fit.
    """
    if twin := _REGISTERED.get((type(inputs[0][0]), "titans")):
        return twin(adaptive, l2, given, eta_max, pieces, *inputs)
    table, options, moved = _expect_titans(adaptive, l2, given, pieces, *inputs)
    (B, H, T, d), (feeds, *shared, now, start), P = inputs[0][0].shape, inputs, len(pieces)
    o = np.zeros((B, H, T, d), table.dtype)
    after = {name: [np.empty(x.shape, table.dtype) for x in layers] for name, layers in now.items()}
    trail = {} if P == 1 else {
        name: [np.empty((P - 1, *x.shape), table.dtype) for x in layers] for name, layers in now.items()}
    flat = o.reshape(B * H, T, d)
    at, after_at = table.inputs([*feeds, flat], *shared, now, start, trail, after)
    split(_titans_row if T == 1 else _titans, B * H, WORK * o.size, options, eta_max, moved, at, after_at, flat)
    return o, after, trail


def titans_backward(adaptive, l2, given, eta_max, pieces, trail, *inputs_and_cotangents):
    """Cotangents of all inputs of `titans`, in their order, from those of o and of the drifts after."""
    *inputs, o_bar, after_bar = inputs_and_cotangents
    if twin := _REGISTERED.get((type(inputs[0][0]), "titans_backward")):
        return twin(adaptive, l2, given, eta_max, pieces, trail, *inputs_and_cotangents)
    table, options, moved = _expect_titans(adaptive, l2, given, pieces, *inputs)
    (B, H, T, d), (feeds, bias, readout, initial, now, start) = inputs[0][0].shape, inputs
    _expect_cotangents(inputs, o_bar, after_bar)
    for name, layers in now.items() if len(pieces) > 1 else ():
        for between, x in zip(trail[name], layers, strict=True):
            _expect(trail=(between, (len(pieces) - 1, *x.shape)))
    o_bar = np.require(o_bar, table.dtype, ["C", "A", "W"]).reshape(B * H, T, d)
    shared = [_zeros(xs, table.dtype, B) for xs in (bias, readout, initial)]  # of every sequence, first
    bars = [_zeros(xs, table.dtype) for xs in (feeds, now, start, trail)]
    at, _ = table.inputs([*feeds, o_bar], *inputs[1:], trail, now)  # where the drifts after all lay, nobody asks
    bars_at, after_at = table.inputs(bars[0], *shared, *bars[1:], after_bar)
    split(_titans_backward, B * H, WORK * o_bar.size, options, eta_max, moved, at, after_at, bars_at, o_bar)
    initial_bar = {name: [x.sum(0) for x in layers] for name, layers in shared[2].items()}
    return [bars[0], *([x.sum(0) for x in xs] for xs in shared[:2]), initial_bar, *bars[1:3]]


def _zeros(like, dtype, *lead):
    """Arrays of zeros in the shapes of a list, or of a dict of lists"""
    if isinstance(like, dict):
        return {name: _zeros(layers, dtype, *lead) for name, layers in like.items()}
    return [np.zeros((*lead, *x.shape), dtype) for x in like]


def _expect_titans(adaptive, l2, given, pieces, feeds, bias, readout, initial, now, start):
    (B, H, T, d), lengths = feeds[0].shape, [n for n, _ in pieces]
    if not lengths or min(lengths) < 1 or sum(lengths) != T or not set(now) == set(initial) == set(adaptive):
        raise ValueError(f"pieces of {lengths} of {T} tokens for memories {', '.join(now)}; each has at least one, "
                         f"together they have all, and there is a state for each of the memories that learn, "
                         f"{', '.join(adaptive)}")
    if set(start) != {name for name, at in pieces[0][1].items() if at < 0}:
        raise ValueError(f"a start for {', '.join(start) or 'none'}, where the first piece says {pieces[0][1]}; "
                         "give one for every -1")
    for p, (_, seen) in enumerate(pieces):
        if set(seen) != set(now) or not all(-(name in start) <= at <= p for name, at in seen.items()):
            raise ValueError(f"errors of piece {p} see {seen}; give for each of {', '.join(now)} a piece from 0 to "
                             f"{p}, or -1 where there is a start")
    for x in feeds:
        _expect(feed=(x, (B, H, T, d)))
    for x, r in zip(bias, readout, strict=True):
        _expect(bias=(x, (H,)), readout=(r, (H, 1, d)))
    for name, layers in initial.items():
        h, out = layers[0].shape[1], 1 if name in ("eta", "alpha") else d
        for layer, shape in enumerate([(h, d), (out, h)]):
            _expect(initial=(layers[layer], (H, *shape)), now=(now[name][layer], (B, H, *shape)))
            if name in start:
                _expect(start=(start[name][layer], (B, H, *shape)))
    options = np.array([name in adaptive for name in MEMORIES]), l2, given
    moved = np.array([[seen.get(name, p) != p for name in MEMORIES] for p, (_, seen) in enumerate(pieces)])
    return _Tables(feeds[0].dtype, pieces), options, moved


def _expect_cotangents(inputs, o_bar, after_bar):
    feeds, *_, now, _ = inputs
    _expect(o_bar=(o_bar, feeds[0].shape))
    for name, layers in now.items():
        for bar, x in zip(after_bar[name], layers, strict=True):
            _expect(after_bar=(bar, x.shape))


PAIRS |= {
    "delta_rule": (delta_rule_chunked, delta_rule),
    "delta_rule_backward": (delta_rule_chunked_backward, delta_rule_backward),
    "gelu": (gelu_reference, gelu),
    "gelu_backward": (gelu_backward_reference, gelu_backward),
    "rms_norm": (rms_norm_reference, rms_norm),
    "rms_norm_backward": (rms_norm_backward_reference, rms_norm_backward),
    "cross_entropy": (cross_entropy_reference, cross_entropy),
    "cross_entropy_backward": (cross_entropy_backward_reference, cross_entropy_backward),
    "adamw": (adamw_reference, adamw),
    "causal_conv": (causal_conv_reference, causal_conv),
    "causal_conv_backward": (causal_conv_backward_reference, causal_conv_backward),
    "attention": (attention_reference, attention),
    "attention_backward": (attention_backward_reference, attention_backward),
}
