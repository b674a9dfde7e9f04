"""Twins of kernels/ for arrays on a GPU: forward(*arrays) → (z, kept), and backward(kept, *z_bars) → cotangents.

(The trail that `titans` leaves for its way back is a list here, of the drifts between pieces by name.)

Each makes its arrays ready, launches CUDA C++ from kernels.cu, and returns arrays on the GPU; nothing is read back
and nobody waits. `register_all(array_type)` hands them to the kernels. CuPy compiles the source at the first call for
a precision and head size, and keeps it in its own cache.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from kernels import KERNELS
from kernels import titans as titans_kernel
from kernels.adamw import numbers
from kernels.causal_conv import following
from kernels.delta_rule import check as check_delta_rule
from kernels.delta_rule import flat
from kernels.runtime import check_shapes
from kernels.titans.tables import MEMORIES

Array = Any
SOURCE = Path(__file__).with_name("kernels.cu")
THREADS, LANES, ROWS_EACH = 128, 64, 16  # of a block; of a block of the delta rule; of a part of w_bar
SHARED, WIDEST = 48 * 1024, 128  # bytes that every card gives a block; rows that fit in a thread's registers
SIDE, BLOCKS = 16, 128  # a block of Titans has SIDE × SIDE threads; so many have a workspace at a time


@functools.cache
def compiled(name: str, real: str, **constants: int) -> Callable:
    """A kernel for a precision and, where its part of the source asks for them, other constants."""
    import cupy

    sizes = [f"-D{key.upper()}={value}" for key, value in constants.items()]
    code = SOURCE.read_text(encoding="utf-8")
    return cupy.RawModule(code=code, options=("-std=c++17", f"-DREAL={real}", *sizes)).get_function(name)


def run(name: str, grid: tuple[int, ...], block: int, *args: Any, **constants: int) -> None:
    """Launch a kernel: whole numbers go as long long, other numbers in the arrays' precision, None as null."""
    dtype = next(x.dtype for x in args if hasattr(x, "dtype") and x.dtype.kind == "f")
    passed = [np.int64(x) if isinstance(x, int) else np.uint64(0) if x is None else
              dtype.type(x) if isinstance(x, float) else x for x in args]
    if all(grid):
        compiled(name, {4: "float", 8: "double"}[dtype.itemsize], **constants)(grid, (block,), tuple(passed))


def each(n: int) -> tuple[int]:
    """Enough blocks for n elements, or as many as keep any card busy."""
    return (min(-(-n // THREADS), 4096),)


def ready(*arrays: Array) -> list[Array]:
    """The arrays in one precision and in C order."""
    dtype = np.result_type(*(x.dtype for x in arrays))
    return [np.ascontiguousarray(x, dtype=dtype, like=x) for x in arrays]


def empty(like: Array, *shapes: Any) -> list[Array]:
    return [np.empty_like(like, shape=shape) for shape in shapes]


# Element by element, and row by row ----------------------------------------------------------------------------


def gelu(x: Array) -> tuple[Array, Array]:
    (x,) = ready(x)
    (z,) = empty(x, x.shape)
    run("gelu", each(x.size), THREADS, x.size, x, z)
    return z, x


def gelu_backward(x: Array, z_bar: Array) -> list[Array]:
    check_shapes(z_bar=(z_bar, x.shape))
    x, z_bar = ready(x, z_bar)
    (x_bar,) = empty(x, x.shape)
    run("gelu_backward", each(x.size), THREADS, x.size, x, z_bar, x_bar)
    return [x_bar]


def swiglu(x: Array, y: Array) -> tuple[Array, tuple]:
    check_shapes(y=(y, x.shape))
    x, y = ready(x, y)
    (z,) = empty(x, x.shape)
    run("swiglu", each(x.size), THREADS, x.size, x, y, z)
    return z, (x, y)


def swiglu_backward(kept: tuple, z_bar: Array) -> list[Array]:
    check_shapes(z_bar=(z_bar, kept[0].shape))
    x, y, z_bar = ready(*kept, z_bar)
    bars = empty(x, x.shape, x.shape)
    run("swiglu_backward", each(x.size), THREADS, x.size, x, y, z_bar, *bars)
    return bars


def rms_norm(x: Array, w: Array, eps: float = 1e-6) -> tuple[Array, tuple]:
    check_shapes(w=(w, x.shape[-1:]))
    x, w = ready(x, w)
    z, r = empty(x, x.shape, x.shape[:-1])
    run("rms_norm", (r.size,), THREADS, len(w), float(eps), x, w, z, r)
    return z, (x, w, r)


def rms_norm_backward(kept: tuple, z_bar: Array) -> tuple[Array, Array]:
    check_shapes(z_bar=(z_bar, kept[0].shape))
    x, w, r, z_bar = ready(*kept, z_bar)
    parts = -(-r.size // ROWS_EACH)
    x_bar, w_parts = empty(x, x.shape, (parts, len(w)))
    run("rms_norm_backward", (parts,), THREADS, r.size, len(w), ROWS_EACH, x, w, r, z_bar, x_bar, w_parts)
    return x_bar, np.sum(w_parts, 0)


def cross_entropy(logits: Array, targets: Array, ignore_index: int = -100) -> tuple[Array, tuple]:
    check_shapes(targets=(targets, logits.shape[:-1]))
    if targets.dtype.kind not in "biu":
        raise ValueError(f"targets are of type {targets.dtype}; they must be whole numbers")
    (logits,), targets = ready(logits), np.ascontiguousarray(targets, dtype=np.int64, like=logits)
    z, top, total = empty(logits, *[targets.shape] * 3)
    run("cross_entropy", (z.size,), THREADS, logits.shape[-1], ignore_index, targets, logits, z, top, total)
    return z, (logits, targets, top, total, ignore_index)


def cross_entropy_backward(kept: tuple, z_bar: Array) -> list[Array]:
    logits, targets, top, total, ignore_index = kept
    check_shapes(z_bar=(z_bar, targets.shape))
    logits, top, total, z_bar = ready(logits, top, total, z_bar)
    (logits_bar,) = empty(logits, logits.shape)
    run("cross_entropy_backward", each(logits.size), THREADS, logits.size, logits.shape[-1], ignore_index, targets,
        logits, top, total, z_bar, logits_bar)
    return [logits_bar]


def adamw(p: Array, g: Array, m: Array, v: Array, lr: float, beta1: float, beta2: float, eps: float,
          weight_decay: float, step: int) -> Any:
    if not all(x.flags.c_contiguous and x.dtype == p.dtype for x in (p, m, v)):
        return NotImplemented
    check_shapes(g=(g, p.shape), m=(m, p.shape), v=(v, p.shape))
    g = np.ascontiguousarray(g, dtype=p.dtype, like=p)
    settings = numbers(p.dtype, lr, beta1, beta2, eps, weight_decay, step)
    run("adamw", each(p.size), THREADS, p.size, p, g, m, v, *map(float, settings))
    return None, None


def causal_conv(x: Array, tail: Array, w: Array) -> tuple[tuple[Array, Array], tuple]:
    (B, T, D), last = x.shape, len(w) - 1
    check_shapes(tail=(tail, (B, last, D)), w=(w, (last + 1, D)))
    x, tail, w = ready(x, tail, w)
    (z,) = empty(x, x.shape)
    run("causal_conv", each(x.size), THREADS, x.size, T, D, len(w), x, tail, w, z)
    return (z, following(x, tail)), (x, tail, w)


def causal_conv_backward(kept: tuple, z_bar: Array, next_bar: Array) -> tuple[Array, Array, Array]:
    check_shapes(z_bar=(z_bar, kept[0].shape), next_bar=(next_bar, kept[1].shape))
    x, tail, w, z_bar, next_bar = ready(*kept, z_bar, next_bar)
    B, T, D = x.shape
    x_bar, tail_bar, w_parts = empty(x, x.shape, tail.shape, (B, *w.shape))
    n = x.size + tail.size
    run("causal_conv_backward", each(n), THREADS, n, T, D, len(w), w, z_bar, next_bar, x_bar, tail_bar)
    run("causal_conv_weights", each(w_parts.size), THREADS, w_parts.size, T, D, len(w), x, tail, z_bar, w_parts)
    return x_bar, tail_bar, np.sum(w_parts, 0)


# The delta rule ------------------------------------------------------------------------------------------------


def sizes(rows: int, itemsize: int) -> dict[str, int]:
    """Constants to compile for: rows, how many tokens at a time fit with them in shared memory, threads."""
    for tokens in (32, 16, 8, 4):
        chunk = itemsize * tokens * (2 * (rows + 1) + 2 * tokens + LANES) + 8 * (tokens + 1)
        if max(chunk, itemsize * tokens * 3 * rows) <= SHARED:  # of delta_rule, and of the scans
            break
    return {"rows": rows, "tile": tokens, "lanes": LANES}


def delta_rule(q, k, v, log_a, b, c, S):
    check_delta_rule(q, k, v, log_a, b, c, S)
    d_k, d_v = k.shape[-1], v.shape[-1]
    if max(d_k, d_v) > WIDEST or not d_k or not d_v:
        return NotImplemented
    arrays = ready(*flat(q, k, v, log_a, b, c, S))
    (N, T, _), (o, S_T) = arrays[1].shape, empty(arrays[2], arrays[2].shape, arrays[6].shape)
    run("delta_rule", (N, -(-d_v // LANES)), LANES, T, d_v, *arrays, o, S_T, **sizes(d_k, o.dtype.itemsize))
    z = None if q is None else np.reshape(o, v.shape), np.reshape(S_T, S.shape)
    return z, (arrays, q, k, v, log_a, b, c, S)


def delta_rule_backward(kept, o_bar, S_bar):
    arrays, *inputs = kept
    v, S = arrays[2], arrays[6]
    o_bar = np.zeros_like(v) if o_bar is None else np.reshape(o_bar, v.shape)
    bars = scans(*ready(*arrays, o_bar, np.reshape(S_bar, S.shape)))
    return [None if x is None else np.reshape(bar, x.shape) for bar, x in zip(bars, inputs, strict=True)]


def scans(q, k, v, log_a, b, c, S0, o_bar, S_bar):
    """Forwards for u, backwards for ū; then, transposed, S forwards for q̄ and Sᵀū, and G backwards for Gᵀu."""
    (N, T, d_k), d_v = k.shape, v.shape[2]
    S_T, G_0 = empty(S0, S0.shape, S0.shape)
    u, v_bar, q_bar, Su, k_bar = empty(v, v.shape, v.shape, k.shape, k.shape, k.shape)
    b_bar, c_bar, written, carried = empty(b, *[b.shape] * 4)

    def scan(name: str, rows: int, lanes: int, by: tuple[int, int], *arrays: Array | None) -> None:
        run(name, (N, -(-lanes // LANES)), LANES, T, lanes, *by, *arrays,
            **sizes(rows, v.dtype.itemsize))

    across, along = (1, d_k), (d_k, 1)  # a thread has a row of S, or a column
    scan("scan_forward", d_k, d_v, across, k, k, k, v, b, c, log_a, S0, None, None, u, S_T)
    scan("scan_backward", d_k, d_v, across, k, q, k, v, o_bar, b, None, log_a, S_bar, v_bar, G_0)
    scan("scan_forward", d_v, d_k, along, u, v_bar, o_bar, k, None, None, log_a, S0, Su, q_bar, None, None)
    scan("scan_backward", d_v, d_k, along, v_bar, o_bar, u, k, q, None, -b, log_a, S_bar, k_bar, None)
    run("delta_rule_gather", (N * T,), THREADS, d_k, d_v, q, k, v, b, c, u, Su, q_bar, k_bar, v_bar, b_bar, c_bar,
        written, carried)
    # ⟨G_t, S_t⟩ from the end backwards, as in kernels/delta_rule.py
    GS = np.sum((S_bar * S_T).astype(np.float64), (1, 2))[:, None]
    later = np.flip(np.cumsum(np.flip(carried, 1), 1, dtype=np.float64), 1) - carried
    return q_bar, k_bar, v_bar, (GS + later - written).astype(v.dtype), b_bar, c_bar, G_0


# Self-modifying Titans -----------------------------------------------------------------------------------------

# The structs of kernels.cu, every word of which has eight bytes; they are handed over by value
SIZES = np.dtype([(name, np.int64, shape) for name, shape in (
    ("adaptive", 6), ("moved", 6), ("hidden", 6),
    ("B", ()), ("H", ()), ("n", ()), ("d", ()), ("l2", ()), ("given", ()))])
LAYERS = np.dtype((np.uint64, 12))
INPUTS = np.dtype([("feeds", np.uint64, 4), ("bias", np.uint64, 2), ("readout", np.uint64, 2), ("initial", LAYERS),
                   ("now", LAYERS), ("start", LAYERS), ("batch", np.int64)])


def titans(adaptive, l2, given, eta_max, pieces, *inputs):
    """A launch for each of the pieces, one after another."""
    titans_kernel.check(adaptive, l2, given, pieces, *inputs)
    states, reads = [inputs[4]], []
    for part in _by_piece(pieces, inputs, states):
        o, after = _titans_of_piece(adaptive, l2, given, eta_max, *part)
        reads.append(o)
        states.append(after)
    return reads[0] if len(reads) == 1 else np.concatenate(reads, 2), states[-1], states[1:-1]


def titans_backward(adaptive, l2, given, eta_max, pieces, trail, *inputs_and_cotangents):
    *inputs, o_bar, after_bar = inputs_and_cotangents
    titans_kernel.check(adaptive, l2, given, pieces, *inputs)
    titans_kernel.check_cotangents(inputs, o_bar, after_bar)
    states, t = [inputs[4], *trail], o_bar.shape[2]
    bars: list[dict] = [{} for _ in pieces]  # of the drifts before every piece
    start_bar: dict = {}
    reads, shared, after = [], None, after_bar
    for p, part in reversed([*enumerate(_by_piece(pieces, inputs, states))]):
        n, seen = pieces[p]
        feeds_bar, *found, now_bar, began_bar = _titans_backward_of_piece(
            adaptive, l2, given, eta_max, *part, o_bar[:, :, t - n:t], after)
        reads.append(feeds_bar)
        shared = _added(shared, found)
        bars[p] = _added(bars[p], now_bar)
        for name, layers in began_bar.items():
            into = start_bar if seen[name] < 0 else bars[seen[name]]
            into[name] = _added(into.get(name), layers)
        t, after = t - n, bars[p]
    feeds_bar = reads[0] if len(reads) == 1 else [np.concatenate(xs[::-1], 2) for xs in zip(*reads, strict=True)]
    return [feeds_bar, *shared, bars[0], {name: start_bar[name] for name in inputs[5]}]


def _by_piece(pieces, inputs, states):
    """The inputs of every piece; `states`: the drifts before each, as far as they are known when they are needed."""
    (feeds, *shared, _, start), t = inputs, 0
    for p, (n, seen) in enumerate(pieces):
        began = {name: (start if at < 0 else states[at])[name] for name, at in seen.items() if at != p}
        yield [[z[:, :, t:t + n] for z in feeds], *shared, states[p], began]
        t += n


def _added(to, xs):
    """The sums of arrays in lists or in dicts of lists; what is missing counts as nothing"""
    if not to:
        return xs
    if isinstance(xs, dict):
        return {name: _added(to.get(name), layers) for name, layers in xs.items()}
    return [_added(x, y) if isinstance(y, (list, dict)) else x + y for x, y in zip(to, xs, strict=True)]


def _titans_of_piece(adaptive, l2, given, eta_max, *inputs):
    sizes, inputs, blocks, room, workspace = _chunk(adaptive, l2, given, inputs)
    feeds, now = inputs[0], inputs[4]
    (o,), after = empty(feeds[0], feeds[0].shape), {name: empty(W[0], *(x.shape for x in W)) for name, W in now.items()}
    run("titans", (blocks,), SIDE * SIDE, sizes, float(eta_max), _table(*inputs), o, _layers(after), room, workspace,
        side=SIDE)
    return o, after


def _titans_backward_of_piece(adaptive, l2, given, eta_max, *inputs_and_cotangents):
    *inputs, o_bar, after_bar = inputs_and_cotangents
    sizes, inputs, blocks, room, workspace = _chunk(adaptive, l2, given, inputs)
    feeds, bias, readout, initial, now, start = inputs
    o_bar, after_bar = _cast([o_bar], feeds[0])[0], _cast(after_bar, feeds[0])
    shared, shared_bar = _zeros([bias, readout, initial], o_bar, lead=len(o_bar))  # of every sequence, first
    _, (feeds_bar, now_bar, start_bar) = _zeros([feeds, now, start], o_bar)
    bars = _table(feeds_bar, *shared_bar, now_bar, start_bar, batch=shared.shape[1])
    run("titans_backward", (blocks,), SIDE * SIDE, sizes, float(eta_max), _table(*inputs), o_bar, _layers(after_bar),
        bars, room, workspace, side=SIDE)
    shared_bar = _parts(np.sum(shared, 0), [bias, readout, initial])
    return [feeds_bar, *shared_bar, now_bar, start_bar]


def _chunk(adaptive, l2, given, inputs):
    """What both directions need: sizes, arrays, blocks, and a workspace of so much room for each."""
    inputs = [_cast(xs, inputs[0][0]) for xs in inputs]
    feeds, _, _, initial, _, start = inputs
    B, H, n, d = feeds[0].shape
    sizes = np.zeros(1, SIZES)
    for name, of in (("adaptive", adaptive), ("moved", start)):
        sizes[name] = [memory in of for memory in MEMORIES]
    sizes["hidden"] = hidden = [initial[m][0].shape[1] if m in initial else 0 for m in MEMORIES]
    for name, value in {"B": B, "H": H, "n": n, "d": d, "l2": l2, "given": given}.items():
        sizes[name] = value
    h, blocks = max(hidden), min(B * H, BLOCKS)
    room = _room(n, d, h)
    return sizes, inputs, blocks, room, np.empty_like(feeds[0], shape=(blocks, room))


def _room(n: int, d: int, h: int) -> int:
    """Numbers in the workspace of a block: what the matrices of one chunk's way back take, and some more."""
    return 80 * max(d, h) * n + 15 * (n * n + d * h) + 100 * n + 1000  # the kernel stops the run if that is too little


def _cast(xs, like):
    """The arrays of a list, or of a dict of lists, in one precision and in C order."""
    if isinstance(xs, dict):
        return {name: _cast(layers, like) for name, layers in xs.items()}
    return [np.ascontiguousarray(x, dtype=like.dtype, like=like) for x in xs]


def _zeros(like: list, on: Array, lead: int = 1) -> tuple[Array, list]:
    """One array of zeros, and views of its first row in the shapes of arrays in lists and dicts of lists."""
    zeros = np.zeros_like(on, shape=(lead, sum(x.size for x in _leaves(like))))
    return zeros, _parts(zeros[0], like)


def _parts(flat: Array, like: Any) -> Any:
    """Views of one array after the other in the shapes of others."""
    ends = iter(np.cumsum([x.size for x in _leaves(like)]).tolist())

    def part(x: Any) -> Any:
        if isinstance(x, dict):
            return {name: part(layers) for name, layers in x.items()}
        if isinstance(x, list):
            return [part(y) for y in x]
        end = next(ends)
        return np.reshape(flat[end - x.size:end], x.shape)
    return part(like)


def _leaves(xs: Any) -> list[Array]:
    if isinstance(xs, (dict, list)):
        return [x for part in (xs.values() if isinstance(xs, dict) else xs) for x in _leaves(part)]
    return [xs]


def _table(feeds, bias, readout, initial, now, start, batch: int = 0) -> np.ndarray:
    """The arrays' addresses as the struct Inputs."""
    table = np.zeros(1, INPUTS)
    for name, xs in (("feeds", feeds), ("bias", bias), ("readout", readout)):
        table[name] = [x.data.ptr for x in xs]
    for name, layers in (("initial", initial), ("now", now), ("start", now | start)):
        table[name] = _layers(layers)["layer"]
    table["batch"] = batch
    return table


def _layers(by_name: dict) -> np.ndarray:
    layers = np.zeros(1, [("layer", LAYERS)])
    layers["layer"] = [x.data.ptr if x is not None else 0
                       for name in MEMORIES for x in by_name.get(name, (None, None))]
    return layers


TWINS: dict[str, tuple[Callable, ...]] = {
    "gelu": (gelu, gelu_backward), "swiglu": (swiglu, swiglu_backward), "rms_norm": (rms_norm, rms_norm_backward),
    "cross_entropy": (cross_entropy, cross_entropy_backward), "adamw": (adamw,),
    "causal_conv": (causal_conv, causal_conv_backward), "delta_rule": (delta_rule, delta_rule_backward)}


def register_all(array_type: type) -> None:
    """Give the kernels these twins for arrays of a type."""
    for name, twin in TWINS.items():
        KERNELS[name].register(array_type, *twin)
    for function in (titans, titans_backward):
        titans_kernel.register(array_type, function.__name__, function)
