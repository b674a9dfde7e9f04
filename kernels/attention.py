"""Causal softmax attention, a block of queries at a time: all scores are never in memory.

The products are BLAS's, of many heads in one call; what lies between them is compiled. A thread has some of the heads.

Legend: B batch, H heads, K heads of keys, of which each serves H/K of queries [Ainslie 2023], T queries, P keys of the
past, d head size; N = B·H.
"""

from __future__ import annotations

import numpy as np

from kernels.lanes import (
    LANES,
    exp,
    highest,
    larger,
    load,
    minus,
    plus,
    scaled,
    spread,
    store,
    total,
    zero,
)
from kernels.product import dot_rows
from kernels.runtime import Kernel, check_shapes, constant, contiguous, inner, jit, prepare, split
from kernels.transpose import transpose

BLOCK, SPAN = 64, 128  # queries at a time forwards; keys, and queries, at a time backwards
SCORES = 2**17  # at a time and thread: what the second cache holds
NEAR = 64  # keys at a time of a single query
FEW = 8  # queries for whose scores no block is filled


def definition(q, k, v):
    """z_t = Σ_{i≤P+t} softmax_i(q_t·k_i/√d) v_i, P keys being of the past.  q (B,H,T,d), k, v (B,K,P+T,d) → like q"""
    check(q, k, v)
    (B, H, T, d), (K, keys) = q.shape, k.shape[1:3]
    together = B, K, H // K * T  # queries that one head of keys serves
    s = np.reshape(np.reshape(q, (*together, d)) @ k.mT, (B, H, T, keys)) * d ** -0.5
    if T > 1:  # nothing lies ahead of the last token
        seen = np.tril(np.ones_like(s, shape=s.shape[2:], dtype=bool), keys - T)
        s = np.where(seen, s, -np.inf)
    p = np.exp(s - constant(np.max(s, axis=-1, keepdims=True)))
    return np.reshape(np.reshape(p, (*together, keys)) @ v, q.shape) / np.sum(p, axis=-1, keepdims=True)


def check(q, k, v):
    (B, H, T, d), (K, keys) = q.shape, k.shape[1:3]
    check_shapes(k=(k, (B, K if H % max(K, 1) == 0 else H, max(keys, T), d)), v=(v, (B, K, keys, d)))


# Between the products: s (heads,keys,queries) stands in a larger array; queries lie side by side, LANES at a time ---


@jit
def _softmax(t, seen, keys, n, scale, s, top, total):
    """s → e^(s·scale − top), 0 for keys that lie ahead: query t sees `seen` keys, the next one more …

    top: the largest score of a query; total: the sum.
    """
    one, hidden = s.dtype.type(1), s.dtype.type(-np.inf)
    for head in range(len(top)):
        x = s[head]
        _hide(x, seen, keys, n, hidden)
        for i in range(0, n, LANES):
            most, sum = load(x[0], i), zero(x[0])
            for j in range(1, keys):
                most = larger(most, load(x[j], i))
            most = scaled(scale, most)
            for j in range(keys):
                p = exp(minus(scaled(scale, load(x[j], i)), most))
                store(x[j], i, p)
                sum = plus(sum, one, p)
            store(top[head], t + i, most)
            store(total[head], t + i, sum)


@jit
def _softmax_backward(t, seen, keys, n, scale, top, share, along, s, p_bar):
    """s → p = e^(s·scale − top)·share, the softmax, and p‾ → s‾ = p(p‾ − along)·scale"""
    hidden, none = s.dtype.type(-np.inf), s.dtype.type(0)
    for head in range(len(top)):
        x, g = s[head], p_bar[head]
        _hide(x, seen, keys, n, hidden)
        _hide(g, seen, keys, n, none)
        for i in range(0, n, LANES):
            most, part, mean = load(top[head], t + i), load(share[head], t + i), load(along[head], t + i)
            for j in range(keys):
                p = scaled(part, exp(minus(scaled(scale, load(x[j], i)), most)))
                store(x[j], i, p)
                store(g[j], i, scaled(scaled(scale, p), minus(load(g[j], i), mean)))


@inner
def _hide(x, seen, keys, n, value):
    for j in range(max(0, seen), keys):
        for i in range(min(n, j + 1 - seen)):
            x[j, i] = value


@jit
def _transpose(x, y):
    for head in range(len(x)):
        transpose(x[head], y[head])


@jit
def _divide(t, n, z, total):
    """z_t…t+n /= total"""
    for head in range(len(z)):
        for i in range(t, t + n):
            for j in range(z.shape[2]):
                z[head, i, j] /= total[head, i]


# One query --------------------------------------------------------------------------------------------------


@inner
def attend(q, k, v, scale, z):
    """z = Σ_i softmax_i(q·k_i·scale) v_i.  q, z (d,), k, v (P,d)"""
    P, d, one = len(k), len(q), q.dtype.type(1)
    s = np.zeros(P + -P % LANES, q.dtype)
    dot_rows(np.int64(0), P, k, q, s)  # not a constant, for which it would be compiled anew
    for i in range(P, len(s)):
        s[i] = -np.inf
    most, sum = load(s, 0), zero(s)
    for i in range(LANES, len(s), LANES):
        most = larger(most, load(s, i))
    most = spread(highest(most))
    for i in range(0, len(s), LANES):
        p = exp(scaled(scale, minus(load(s, i), most)))
        store(s, i, p)
        sum = plus(sum, one, p)
    for j in range(d):
        z[j] = 0
    for i in range(0, P, NEAR):  # of values that stay in the nearest cache
        end = min(i + NEAR, P)
        for j in range(0, d - d % LANES, LANES):
            store(z, j, weighed(s, v, i, end, j, load(z, j)))
        for j in range(d - d % LANES, d):
            for t in range(i, end):
                z[j] += s[t] * v[t, j]
    whole = total(sum)
    for j in range(d):
        z[j] /= whole


@inner
def weighed(s, v, start, stop, j, found):
    """found + Σ_i s_i v_i of some lanes: four sums side by side, for each waits for the one before it"""
    a = b = c = zero(s)
    one = s.dtype.type(1)
    for i in range(start, stop - 3, 4):
        found, a = plus(found, s[i], load(v[i], j)), plus(a, s[i + 1], load(v[i + 1], j))
        b, c = plus(b, s[i + 2], load(v[i + 2], j)), plus(c, s[i + 3], load(v[i + 3], j))
    for i in range(stop - (stop - start) % 4, stop):
        found = plus(found, s[i], load(v[i], j))
    return plus(plus(found, one, a), one, plus(b, one, c))


# Some of the heads, and all of them -------------------------------------------------------------------------


@np.errstate(all="ignore")  # NaN and ∞ go through without a word, as in any compiled code
def _forward(start, stop, past, q, k, v, z, top, total):
    """Block of queries after block of queries, with the keys that they see"""
    (_, T, d), keys = q.shape, k.shape[1]
    for heads, room in _groups(start, stop, q, (keys, BLOCK)):
        q_T, k_its, v_its = _transposed(q[heads]), _for(k, heads, len(q)), _for(v, heads, len(q))
        for t in range(0, T, BLOCK):
            queries, seen = slice(t, min(t + BLOCK, T)), min(past + t + BLOCK, keys)
            n = queries.stop - t
            s = np.matmul(k_its[:, :seen], q_T[..., queries], out=room[:, :seen, :n])
            _softmax(t, past + t + 1, seen, n, q.dtype.type(d ** -0.5), room, top[heads], total[heads])
            np.matmul(s.mT, v_its[:, :seen], out=z[heads, queries])
            _divide(t, n, z[heads], total[heads])


@np.errstate(all="ignore")
def _backward(start, stop, past, q, k, v, z, z_bar, top, total, q_bar, k_bar, v_bar):
    """Span of queries after span of queries, with block after block of keys: p_ti = softmax_i(q_t·k_i/√d),

        v̄_i = Σ_t p_ti z̄_t,    s̄_ti = p_ti(z̄_t·v_i − z̄_t·z_t),    q̄ = s̄ k/√d,    k̄ = s̄ᵀ q/√d
    """
    (_, T, d), keys = q.shape, k.shape[1]
    for heads, room in _groups(start, stop, q, (BLOCK, min(T, SPAN))):
        q_T, z_bar_T, room_bar = _transposed(q[heads]), _transposed(z_bar[heads]), np.empty_like(room)
        k_its, v_its = _for(k, heads, len(q)), _for(v, heads, len(q))
        numbers = top[heads], 1 / total[heads], np.einsum("ntd,ntd->nt", z[heads], z_bar[heads])
        for span in range(0, T, SPAN):
            end = min(span + SPAN, T)
            for i in range(0, min(past + end, keys), BLOCK):
                block, t = slice(i, min(i + BLOCK, keys)), max(span, (i - past) // LANES * LANES)
                m, n, queries = block.stop - i, end - t, slice(t, end)
                s = np.matmul(k_its[:, block], q_T[..., queries], out=room[:, :m, :n])
                s_bar = np.matmul(v_its[:, block], z_bar_T[..., queries], out=room_bar[:, :m, :n])
                _softmax_backward(t, past + t + 1 - i, m, n, q.dtype.type(d ** -0.5), *numbers, room, room_bar)
                v_bar[heads, block] += s @ z_bar[heads, queries]
                k_bar[heads, block] += s_bar @ q[heads, queries]
                q_bar[heads, queries] += s_bar.mT @ k_its[:, block]


def _groups(start, stop, q, scores):
    """As many heads at a time as have scores that fit into the cache, and room for them"""
    together = max(1, SCORES // max(1, scores[0] * scores[1]))
    for h in range(start, stop, together):
        heads = slice(h, min(h + together, stop))
        yield heads, _room(q, heads.stop - h, *scores)


def _for(keys, heads, N):
    """The keys, or values, that heads of queries read"""
    return keys[heads] if len(keys) == N else keys[np.arange(heads.start, heads.stop) // (N // len(keys))]


def _room(like, *shape):
    """Rows are a line of cache longer: lines that lie a power of two apart push each other out."""
    return np.empty_like(like, shape=(*shape[:-1], shape[-1] + 64 // like.itemsize))


def _transposed(x):
    """xᵀ laid out anew: BLAS is at its best where nothing is transposed.  (heads,n,d) → (heads,d,n)"""
    heads, n, d = x.shape
    y = _room(x, heads, d, n)
    _transpose(x, y)
    return y[..., :n]


def forward(q, k, v):
    check(q, k, v)
    if q.shape[2] < FEW:
        return definition(q, k, v), (q, k, v, None, None, None)
    z, top, total = _all(q, k, v)
    return z[:, :q.shape[2]].reshape(q.shape), (q, k, v, z, top, total)


def _all(*arrays):
    """z, and of every query the largest score and the sum of all e^(score − largest)"""
    q, k, v = _flat(*arrays)
    (N, T, _), keys, past = q.shape, k.shape[1], arrays[1].shape[2] - arrays[0].shape[2]
    z, top, total = np.empty_like(q), np.empty((N, T), q.dtype), np.empty((N, T), q.dtype)
    prepare(_softmax, *[0] * 4, q.dtype.type(1), q[:0], top[:0], total[:0])
    prepare(_transpose, q[:0], q[:0])
    prepare(_divide, 0, 0, z[:0], total[:0])
    split(_forward, N, q.size * keys, past, q, k, v, z, top, total)
    return z, top, total


def backward(kept, z_bar):
    *arrays, z, top, total = kept
    check_shapes(z_bar=(z_bar, arrays[0].shape))
    if z is None:
        z, top, total = _all(*arrays)
    q, k, v, z_bar = _flat(*arrays, z_bar)
    past, every = arrays[1].shape[2] - arrays[0].shape[2], (len(q), *k.shape[1:])  # k̄, v̄ of every head of queries
    bars = np.zeros_like(q), np.zeros_like(k, shape=every), np.zeros_like(v, shape=every)
    prepare(_softmax_backward, *[0] * 4, q.dtype.type(1), *[top[:0]] * 3, q[:0], q[:0])
    split(_backward, len(q), q.size * k.shape[1], past, q, k, v, z, z_bar, top, total, *bars)
    q_bar, *others = (bar[:, :x.shape[2]] for bar, x in zip(bars, arrays, strict=True))
    return [q_bar.reshape(arrays[0].shape), *map(_together, others, arrays[1:])]


def _together(bar, x):
    """x̄, from x̄ of every head of queries: the sum over those that share a head of keys"""
    if bar.size == x.size:
        return bar.reshape(x.shape)
    return bar.reshape(*x.shape[:2], -1, *x.shape[2:]).sum(2)


def _flat(q, k, v, *more):
    """The arrays with batch and heads in one axis; those of queries filled up with zeros, which no key gets to know"""
    fill = -q.shape[2] % LANES
    arrays = contiguous(*(np.reshape(x, (x.shape[0] * x.shape[1], *x.shape[2:])) for x in (q, k, v, *more)))
    return [np.pad(x, ((0, 0), (0, fill), (0, 0))) if fill and i not in (1, 2) else x for i, x in enumerate(arrays)]


attention = Kernel(definition, forward, backward)
