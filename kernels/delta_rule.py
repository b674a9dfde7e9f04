"""The delta rule and its family: a matrix that is read and written at every token.

The compiled twin goes token by token, in parallel over sequences and blocks of rows of S. The rows of S do not know
of each other: given k, a, b, c, a block of LANES rows is a recurrence of its own. Its state, transposed to
(d_k, LANES), stays in the nearest cache; every step is a number times a vector.

Legend: N sequences (batch × heads), T time, d_k and d_v width of keys and values.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from kernels.lanes import LANES, dot, load, plus, scaled, store, zero
from kernels.runtime import Kernel, check_shapes, compute, contiguous, jit, split
from kernels.shared import aligned


def definition(q, k, v, log_a, b, c, S):
    """The family of learning rules for a matrix memory S, token by token: read, then write.

        o_t = S_{t−1} q_t,      S_t = S_{t−1}(a_t I − b_t k_t k_tᵀ) + c_t v_t k_tᵀ = a_t S_{t−1} + u_t k_tᵀ
                                u_t = c_t v_t − b_t S_{t−1} k_t

    Hebbian a=1, b=0, c=1 [A 14–18; N 12–16] · with retention a=α [A 5, 64] · delta rule a=1, b=c=β [A 65] ·
    gated delta rule a=α, b=αβ, c=β · delta gradient descent a=α, b=c=η′, v=u [A 56–57, 88, 92–93].

    q, k (…,T,d_k); v (…,T,d_v); log_a, b, c (…,T); S (…,d_v,d_k) → o (…,T,d_v), S_T (…,d_v,d_k). Without
    queries, q = None, o is None. Retention comes as log_a ≤ 0, finite: near a = 1, a float32 has no digits left
    for 1 − a.
    """
    check(q, k, v, log_a, b, c, S)
    a, reads = np.exp(log_a), []
    for t in range(k.shape[-2]):
        key, value = k[..., t, :, None], v[..., t, :, None]  # columns
        retain, forget, write = (x[..., t, None, None] for x in (a, b, c))
        if q is not None:
            reads.append((S @ q[..., t, :, None])[..., 0])
        S = retain * S + (write * value - forget * (S @ key)) @ np.swapaxes(key, -1, -2)
    if not k.shape[-2]:
        S = S * 1
    return None if q is None else np.stack(reads, axis=-2) if reads else v * 1, S


def check(q, k, v, log_a, b, c, S):
    (*lead, T, d_k), d_v = k.shape, v.shape[-1]
    check_shapes(q=(k if q is None else q, (*lead, T, d_k)), v=(v, (*lead, T, d_v)), log_a=(log_a, (*lead, T)),
                 b=(b, (*lead, T)), c=(c, (*lead, T)), S=(S, (*lead, d_v, d_k)))


# The recurrences, compiled ----------------------------------------------------------------------------------


@jit
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


@jit
def _scan_forward(start, stop, rows, w, p1, p2, v, b, c, decay, X_0, y1, y2, u, X_T, scratch):
    """X_t = a_t X_{t−1} + w_t u_tᵀ, u_t = c_t v_t − b_t y1_t, y1_t = X_{t−1}ᵀ p1_t, y2_t = X_{t−1}ᵀ p2_t

    X_t is the true state; the loop holds it divided by its decay, see `_decays`.
    """
    _, T, D = v.shape
    for block in range(start, stop):
        n, lane, X = block // (D // LANES), block % (D // LANES) * LANES, scratch[block]
        for i in range(rows):
            store(X, i * LANES, load(X_0[n, i], lane))
        write_u = zero(X)
        for t in range(T):
            w_t, p1_t, p2_t = w[n, max(t - 1, 0)], p1[n, t], p2[n, t]
            read1 = read2 = zero(X)
            for i in range(rows):  # write the token before and read this one, in one pass over the state
                x = plus(load(X, i * LANES), w_t[i], write_u)
                store(X, i * LANES, x)
                read1 = plus(read1, p1_t[i], x)
                read2 = plus(read2, p2_t[i], x)
            read, fold, write = decay[n, t]
            if fold != 1:
                for i in range(rows):
                    store(X, i * LANES, scaled(fold, load(X, i * LANES)))
            read1 = scaled(read, read1)
            u_t = plus(scaled(c[n, t], load(v[n, t], lane)), -b[n, t], read1)
            store(y1[n, t], lane, read1)
            store(y2[n, t], lane, scaled(read, read2))
            store(u[n, t], lane, u_t)
            write_u = scaled(write, u_t)
        for i in range(rows):
            x = plus(load(X, i * LANES), w[n, T - 1, i], write_u)
            store(X_T[n, i], lane, scaled(decay[n, T, 0], x))


@jit
def _scan_backward(start, stop, rows, w1, w2, p, v1, v2, b, c, decay, X_T, y, X_0, scratch):
    """X_{t−1} = a_t X_t + w1_t (c_t v1_t − b_t y_t)ᵀ + w2_t v2_tᵀ, y_t = X_tᵀ p_t;  decay is reversed too"""
    _, T, D = v1.shape
    for block in range(start, stop):
        n, lane, X = block // (D // LANES), block % (D // LANES) * LANES, scratch[block]
        for i in range(rows):
            store(X, i * LANES, load(X_T[n, i], lane))
        write1 = write2 = zero(X)
        for step in range(T):
            t = T - 1 - step
            w1_t, w2_t, p_t = w1[n, min(t + 1, T - 1)], w2[n, min(t + 1, T - 1)], p[n, t]
            y_t = zero(X)
            for i in range(rows):
                x = plus(plus(load(X, i * LANES), w1_t[i], write1), w2_t[i], write2)
                store(X, i * LANES, x)
                y_t = plus(y_t, p_t[i], x)
            read, fold, write = decay[n, step]
            if fold != 1:
                for i in range(rows):
                    store(X, i * LANES, scaled(fold, load(X, i * LANES)))
            y_t = scaled(read, y_t)
            store(y[n, t], lane, y_t)
            write1 = scaled(write, plus(scaled(c[n, t], load(v1[n, t], lane)), -b[n, t], y_t))
            write2 = scaled(write, load(v2[n, t], lane))
        for i in range(rows):
            x = plus(plus(load(X, i * LANES), w1[n, 0, i], write1), w2[n, 0, i], write2)
            store(X_0[n, i], lane, scaled(decay[n, T, 0], x))


@jit
def _gather(start, stop, q, k, v, b, c, u, Su, q_bar, GS_T, k_bar, v_bar, log_a_bar, b_bar, c_bar):
    """The cotangents that need no state, from k_bar = Gᵀu and v_bar = ū. For log a, ⟨G, S⟩ is carried along:

        a_t⟨G_t, S_{t−1}⟩ = ⟨G_t, S_t⟩ − ū_t·u_t,    ⟨G_{t−1}, S_{t−1}⟩ = ⟨G_t, S_t⟩ − c_t ū_t·v_t + q̄_t·q_t
    """
    T = k.shape[1]
    for n in range(start, stop):
        GS = GS_T[n]
        for t in range(T - 1, -1, -1):
            u_v = dot(v_bar[n, t], v[n, t])
            b_bar[n, t], c_bar[n, t] = -dot(k[n, t], Su[n, t]), u_v
            log_a_bar[n, t] = GS - dot(v_bar[n, t], u[n, t])
            GS += dot(q[n, t], q_bar[n, t]) - c[n, t] * u_v
            for j in range(v.shape[2]):
                v_bar[n, t, j] *= c[n, t]
            for j in range(k.shape[2]):
                k_bar[n, t, j] -= b[n, t] * Su[n, t, j]


# Forwards and backwards --------------------------------------------------------------------------------------


def forward(q, k, v, log_a, b, c, S):
    check(q, k, v, log_a, b, c, S)
    arrays = flat(q, k, v, log_a, b, c, S)
    o, S_T = _forward(*arrays)
    return (None if q is None else o.reshape(v.shape), S_T.reshape(S.shape)), (arrays, q, k, v, log_a, b, c, S)


def backward(kept, o_bar, S_bar):
    arrays, *inputs = kept
    check_shapes(S_bar=(S_bar, inputs[-1].shape), **{} if o_bar is None else {"o_bar": (o_bar, inputs[2].shape)})
    v, S = arrays[2], arrays[6]
    o_bar = np.zeros_like(v) if o_bar is None else o_bar.reshape(v.shape)
    bars = _backward(*arrays, o_bar, S_bar.reshape(S.shape))
    return [None if x is None else bar.reshape(x.shape) for bar, x in zip(bars, inputs, strict=True)]


def flat(q, *inputs):
    """The arrays with all leading axes in one; in the place of no queries, the keys."""
    axes = inputs[-1].ndim - 2
    k, *rest = (np.reshape(x, (math.prod(x.shape[:axes]), *x.shape[axes:])) for x in inputs)
    return [k if q is None else np.reshape(q, k.shape), k, *rest]


def _forward(q, k, v, log_a, b, c, S_0):
    q, k, v, log_a, b, c, S_0 = contiguous(q, k, v, log_a, b, c, S_0)
    d_k, d_v = k.shape[2], v.shape[2]
    if not v.shape[1]:
        return np.empty_like(v), S_0.copy()
    v, X_0 = _padded(v, 2), np.ascontiguousarray(_padded(S_0, 1).mT)
    (o, u, unused), X_T = (aligned(v.shape, v.dtype) for _ in range(3)), np.empty_like(X_0)
    _scan(_scan_forward, d_k, v, k, k, q, v, b, c, _decay(log_a), X_0, unused, o, u, X_T)
    return o[..., :d_v], np.ascontiguousarray(X_T[..., :d_v].mT)


def _backward(q, k, v, log_a, b, c, S_0, o_bar, S_bar):
    """Four recurrences, and no state is stored. With S = S_{t−1} and G = S̄_t:

        ū = G k,    k̄ = Gᵀu − b Sᵀū,    q̄ = Sᵀō,    v̄ = c ū,    c̄ = ū·v,    b̄ = −ū·S k
        log a‾ = a⟨G, S⟩,      S̄_{t−1} = a G − b ū kᵀ + ō qᵀ

    Forwards for u, backwards for ū; then, transposed, S forwards for q̄ and Sᵀū, and G backwards for Gᵀu.
    """
    q, k, v, log_a, b, c, S_0, o_bar, S_bar = contiguous(q, k, v, log_a, b, c, S_0, o_bar, S_bar)
    d_k, d_v = k.shape[2], v.shape[2]
    if not v.shape[1]:
        return *(np.empty_like(x) for x in (q, k, v, log_a, b, c)), S_bar.copy()
    q, k, v, o_bar = (_padded(x, 2) for x in (q, k, v, o_bar))
    S_0, S_bar = (_padded(x, 1, 2) for x in (S_0, S_bar))
    X_0, G_T = (np.ascontiguousarray(S.mT) for S in (S_0, S_bar))
    X_T, G_0, unused = np.empty_like(X_0), np.empty_like(X_0), np.empty_like(S_0)
    u, u_bar, unread = (aligned(v.shape, v.dtype) for _ in range(3))
    q_bar, Su, Gu = (aligned(k.shape, k.dtype) for _ in range(3))  # Su is Sᵀū, Gu is Gᵀu
    zero, one, forwards, backwards = np.zeros_like(b), np.ones_like(b), _decay(log_a), _decay(log_a[:, ::-1])

    # what a scan yields and nobody needs lands in an array that a later scan fills
    _scan(_scan_forward, d_k, v, k, k, q, v, b, c, forwards, X_0, unread, u_bar, u, X_T)
    _scan(_scan_backward, d_k, v, k, q, k, v, o_bar, b, zero, backwards, G_T, u_bar, G_0)
    _scan(_scan_forward, d_v, k, u, u_bar, o_bar, k, zero, one, forwards, S_0, Su, q_bar, Gu, unused)
    _scan(_scan_backward, d_v, k, u_bar, o_bar, u, k, q, zero, -b, backwards, S_bar, Gu, unused)

    GS_T = np.einsum("nij,nij->n", G_T[:, :d_k], X_T[:, :d_k], dtype=np.float64)
    log_a_bar, b_bar, c_bar = (np.empty_like(b) for _ in range(3))
    split(_gather, len(v), v.size, q, k, v, b, c, u, Su, q_bar, GS_T, Gu, u_bar, log_a_bar, b_bar, c_bar)
    return (q_bar[..., :d_k], Gu[..., :d_k], u_bar[..., :d_v], log_a_bar, b_bar, c_bar,
            np.ascontiguousarray(G_0[:, :d_k, :d_v].mT))


def _padded(x: np.ndarray, *axes: int) -> np.ndarray:
    """x with zeros at the end of these axes, up to a multiple of LANES: no block has a ragged edge."""
    widths = [(0, -n % LANES if axis in axes else 0) for axis, n in enumerate(x.shape)]
    return np.pad(x, widths) if any(after for _, after in widths) else x


def _scan(loop: Callable, rows: int, v: np.ndarray, *args: Any) -> None:
    """One scan of all blocks of rows of states (v's width, rows), with room for the state of each."""
    scratch = aligned((v.shape[0] * v.shape[2] // LANES, rows * LANES), v.dtype)
    split(loop, len(scratch), v.size * rows, rows, *args, scratch)


def _decay(log_a: np.ndarray) -> np.ndarray:
    return compute(_decays, len(log_a), [log_a], (log_a.shape[0], log_a.shape[1] + 1, 3))[0]


delta_rule = Kernel(definition, forward, backward)
