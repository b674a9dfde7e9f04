"""Self-modifying Titans, compiled: every chunk of a sequence in one kernel. To be replaced; so it is longer than its
neighbours may be.
"""

from __future__ import annotations

import functools
import math
import weakref
from collections import namedtuple
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kernels.lanes import LANES, dot, exp, load, plus, store, transpose, zero
from kernels.product import dot_rows
from kernels.runtime import JIT, Array, check_shapes, if_given, inner, jit, split

if JIT:
    import numba
    from numba.core import types
    from numba.extending import intrinsic

REGISTERED: dict[tuple[type, str], Callable] = {}


def register(array_type: type, name: str, function: Callable) -> None:
    """Let `titans` or `titans_backward` call `function` where the arrays are of an `array_type`."""
    REGISTERED[array_type, name] = function


# Products of small matrices, compiled -----------------------------------------------------------------------
#
# Columns lie side by side in wide registers, so that every product is C += A B: numbers of A times rows of B.
# Tokens are columns, filled up to a multiple of LANES.

@inner
def _matmul(C, A, B, fresh, triangle):
    """C = A B or C += A B: eight rows of A by LANES columns of B at a time, in registers.

    triangle: of B nothing is read below (1) or above (−1) its diagonal blocks, where it is zero; 0: all is.
    """
    (m, k), n = A.shape, B.shape[1]
    for j in range(0, n - n % LANES, LANES):
        first, end = j if triangle < 0 else 0, min(k, j + LANES) if triangle > 0 else k
        for i in range(0, m - 7, 8):
            c0 = c1 = c2 = c3 = c4 = c5 = c6 = c7 = zero(C)
            if not fresh:
                c0, c1, c2, c3 = load(C[i], j), load(C[i + 1], j), load(C[i + 2], j), load(C[i + 3], j)
                c4, c5, c6, c7 = load(C[i + 4], j), load(C[i + 5], j), load(C[i + 6], j), load(C[i + 7], j)
            for p in range(first, end):
                b = load(B[p], j)
                c0, c1 = plus(c0, A[i, p], b), plus(c1, A[i + 1, p], b)
                c2, c3 = plus(c2, A[i + 2, p], b), plus(c3, A[i + 3, p], b)
                c4, c5 = plus(c4, A[i + 4, p], b), plus(c5, A[i + 5, p], b)
                c6, c7 = plus(c6, A[i + 6, p], b), plus(c7, A[i + 7, p], b)
            store(C[i], j, c0), store(C[i + 1], j, c1), store(C[i + 2], j, c2), store(C[i + 3], j, c3)
            store(C[i + 4], j, c4), store(C[i + 5], j, c5), store(C[i + 6], j, c6), store(C[i + 7], j, c7)
        for i in range(m - m % 8, m):
            c0 = zero(C) if fresh else load(C[i], j)
            for p in range(first, end):
                c0 = plus(c0, A[i, p], load(B[p], j))
            store(C[i], j, c0)
    if n % LANES:  # the columns of a narrow head
        for i in range(m):
            for j in range(n - n % LANES if fresh else n, n):
                C[i, j] = 0
            for p in range(k):
                for j in range(n - n % LANES, n):
                    C[i, j] += A[i, p] * B[p, j]


@inner
def _add(C, A, B, triangle=0):
    """C += A B"""
    _matmul(C, A, B, False, triangle)


@inner
def _product(A, B, triangle=0):
    C = np.empty((A.shape[0], B.shape[1]), B.dtype)
    _matmul(C, A, B, True, triangle)
    return C


@inner
def _turned(x):
    """xᵀ laid out anew"""
    y = np.empty(x.shape[::-1], x.dtype)
    transpose(x, y)
    return y


@inner
def _accumulate(y, x):
    """y[:len(x)] += x, as loops: compiled in a fraction of the time that this takes"""
    for i in range(x.shape[0]):
        for t in range(x.shape[1]):
            y[i, t] += x[i, t]


@inner
def _filled(x):
    """Tokens (n,d), filled up with zeros (width,d); and the same feature by token"""
    wide = np.zeros((len(x) + -len(x) % LANES, x.shape[1]), x.dtype)
    _accumulate(wide, x)
    return wide, _turned(wide)


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
#
# With momentum the clipped surprise c goes through N_t = β_t N_{t−1} + w_t z_tᵀ, w = η′c, and E is what is forgotten
# alone, of S_{t−1} = g_{t−1} S₀ + K_t0 N₀ + Σ_{i<t} ((g_{t−1}/g_i) u_i + K_ti w_i) z_iᵀ. B_ti = β_t ⋯ β_{i+1} is what
# is left of w_i in N_t, and K_{t+1} = α_t K_t + B_t what stands of it in S_t; Q = N̄_C. Where there is no momentum it is
# None, and a version without it is compiled.

MEMORIES = ("q", "k", "v", "eta", "alpha", "memory")
SCALARS, MEMORY = (3, 4), 5
WORK = 1000  # for every number of the output, very roughly
Retention = namedtuple("Retention", "ratio ratio_T before after whole")  # g_{t−1}/g_i, its ᵀ, g_{t−1}, g_C/g_i, g_C
System = namedtuple("System", "square rate gram inverse solve plain")  # ‖z‖², η′, ratio·zᵀz, (I + L)⁻¹,
#                                       diag(η′)(I + L)⁻ᵀ; with momentum zᵀz
Momentum = namedtuple("Momentum", "alpha beta B B_0 K K_T K_0 K_C K_C0 written")  # B_0, K_0: of N₀; K_C: in S_C
Asked = namedtuple("Asked", "x x_T y s hidden")  # a feed, what a memory answers, and on the way s and σ(W₂ x)
Chunk = namedtuple("Chunk", "asked q q_r k k_r k_T v v_r v_T eta log_alpha retention system momentum")
Learned = namedtuple("Learned", "s hidden hidden_T s_v hidden_v target r delta D delta_1 "
                                "SZ1 E1 U1 SZ2 E2 U2 system carried1 carried2")
Carried = namedtuple("Carried", "c w NZ")  # of a layer with momentum
Inputs = namedtuple("Inputs", "feeds bias readout initial now start momentum")  # tables, see `_of`; also of cotangents
READ = 4  # where o, or its cotangent, stands in the table of feeds
Bars = namedtuple("Bars", "eta before g k v momentum")  # cotangents of η, log g_{t−1}, log g, k, v: all memories add
MomentumBars = namedtuple("MomentumBars", "B_C K K_0 K_C ends")  # … of B's last row, K; B_C0 and K_C0


@inner
def _sum(x, y):
    z = np.empty_like(x)
    for i in range(x.shape[0]):
        for t in range(x.shape[1]):
            z[i, t] = x[i, t] + y[i, t]
    return z


@inner
def _mask(x, ratio):
    """x ← ratio·x"""
    for i in range(x.shape[0]):
        for t in range(x.shape[1]):
            x[i, t] *= ratio[i, t]


@inner
def _masked(x, ratio):
    """ratio·x"""
    y = x.copy()
    _mask(y, ratio)
    return y


@inner
def _by_token(x, scale):
    """x_t·scale_t"""
    y = np.empty_like(x)
    for i in range(x.shape[0]):
        for t in range(x.shape[1]):
            y[i, t] = x[i, t] * scale[t]
    return y


@inner
def _add_dots(dots, x, y):
    """dots_t += x_t·y_t"""
    for i in range(x.shape[0]):
        for t in range(x.shape[1]):
            dots[t] += x[i, t] * y[i, t]


@inner
def _dots(x, y):
    dots = np.zeros(x.shape[1], x.dtype)
    _add_dots(dots, x, y)
    return dots


@inner
def _scaled_to(x, m, eps):
    """y = x r,  r = 1/√(m Σx² + ε) for every token"""
    r = _dots(x, x)
    for t in range(len(r)):
        r[t] = 1 / math.sqrt(m * r[t] + eps)
    return _by_token(x, r), r


@inner
def _scaled_to_backward(y, r, m, y_bar):
    """x̄ = r(ȳ − y m Σȳy)"""
    x_bar, dots, m = np.empty_like(y), _dots(y, y_bar), y.dtype.type(m)
    for i in range(y.shape[0]):
        for t in range(y.shape[1]):
            x_bar[i, t] = r[t] * (y_bar[i, t] - y[i, t] * m * dots[t])
    return x_bar


@inner
def _silu(x):
    """s = σ(x) and y = x s"""
    s, y, one = np.empty_like(x), np.empty_like(x), x.dtype.type(1)
    for i in range(x.shape[0]):
        for t in range(x.shape[1]):
            s[i, t] = one / (one + exp(-x[i, t]))
            y[i, t] = x[i, t] * s[i, t]
    return s, y


@inner
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


@inner
def _of(table, row, i, like):
    """Matrix i; its row in the table is (address, matrices, bytes between them, rows, columns). All share M₀."""
    address, matrices, step, m, n = table[row]
    return numba.carray(_pointer_at(address + i % matrices * step, like), (m, n))


@inner
def _weights(at, layer, i, like):
    """W = M₀ + P"""
    return _sum(_of(at.initial, layer, i, like), _of(at.start, layer, i, like))


@inner
def _through(at, layer, i, x):
    """W x"""
    return _product(_weights(at, layer, i, x), x)


@inner
def _add_weights(bars, layer, i, W_bar):
    """… and back"""
    _accumulate(_of(bars.initial, layer, i, W_bar), W_bar)
    _accumulate(_of(bars.start, layer, i, W_bar), W_bar)


# the chunk's retention and its triangular systems


@inner
def _retain(log_alpha, like):
    """All products of α in a chunk, each ≤ 1."""
    n, log_g = len(log_alpha), np.cumsum(log_alpha)
    ratio, before, after = np.zeros((n, n), like.dtype), np.empty(n, like.dtype), np.empty(n, like.dtype)
    for t in range(n):
        log_before = log_g[t] - log_alpha[t]
        before[t], after[t] = math.exp(log_before), math.exp(log_g[n - 1] - log_g[t])
        for i in range(t):
            ratio[t, i] = exp(like.dtype.type(log_before - log_g[i]))
    return Retention(ratio, _turned(ratio), before, after, like.dtype.type(math.exp(log_g[n - 1])))


@inner
def _system(z, eta, log_alpha, ratio, momentum, power):
    """I + L, L = diag(η′)(ratio·zᵀz), inverted by rows: x_t = e_t − Σ_{i<t} L_ti x_i.

    η′ = η/(1 + η‖z‖²), or with a power min(η, `_most`)
    """
    n, square, gram = z.shape[1], _dots(z, z), _product(z.T, z)
    rate, inverse, plain = np.empty_like(square), np.zeros((n, n), z.dtype), _plain(momentum, gram)
    _mask(gram, ratio)
    for t in range(n):
        rate[t] = eta[t] / (1 + eta[t] * square[t])
        if power:
            rate[t] = min(eta[t], _most(log_alpha[t], square[t], power))
        for j in range(0, t, LANES):
            x = zero(rate)
            for i in range(j, t):
                x = plus(x, -rate[t] * gram[t, i], load(inverse[i], j))
            store(inverse[t], j, x)
        inverse[t, t] = 1
    solve = _turned(inverse)  # E diag(η′)(I + L)⁻ᵀ = E solve
    for i in range(n):
        for t in range(n):
            solve[i, t] *= rate[i]
    return System(square, rate, gram, inverse, solve, plain)


@inner
def _most(log_alpha, square, power):
    """η ≤ (1 + α)/(p‖z‖²): no eigenvalue below −1"""
    return (1 + math.exp(log_alpha)) / (power * square + 1e-12)


@if_given
def _plain(momentum, gram):
    """zᵀz, before it is masked"""
    return gram.copy()


@inner
def _system_backward(z, system, c, power, RU, EW, rate_bar, bars, z_bar):
    """L̄ = −tril(R̄ᵀU): to the decays, to η′ and by it to η, and to z by the Gram matrix and ‖z‖²."""
    retention = c.retention
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
        if power:
            _printed_backward(t, c, system.square[t], power, rate_bar[t], bars, to_z)
        else:
            bars.eta[t] += rate_bar[t] * (1 - rate_t * system.square[t]) ** 2
            to_z[t, t] = -rate_bar[t] * rate_t ** 2
    for t in range(n):
        bars.g[t] += g_bar[t]
    _forgets_backward(c.momentum, EW, system.plain, bars.momentum, to_z)
    _add(z_bar, z, _sum(to_z, _turned(to_z)))


@inner
def _printed_backward(t, c, square, power, rate_bar, bars, to_z):
    """… where η′ is the smaller of η and (1 + α)/(p‖z‖²)"""
    most = _most(c.log_alpha[t], square, power)
    if c.eta[t] <= most:
        bars.eta[t] += rate_bar
    else:
        per_square = 1 / (power * square + 1e-12)
        _add_log_alpha(bars, t, rate_bar * per_square * math.exp(c.log_alpha[t]))
        to_z[t, t] = -rate_bar * most * per_square * power


@inner
def _add_log_alpha(bars, t, log_alpha_bar):
    """log α_t = log g_t − log g_{t−1}"""
    bars.g[t] += log_alpha_bar
    bars.before[t] -= log_alpha_bar


# momentum


@if_given
def _carry(beta, log_alpha, written, like):
    """B and K of a chunk in which so many tokens are written; those that fill it up leave N alone and S, too."""
    width = len(beta)
    alpha, B, K = np.exp(log_alpha), np.zeros((width, width), like.dtype), np.zeros((width, width), like.dtype)
    B_0, K_0, K_C = np.ones(width), np.zeros(width), np.zeros(width)  # of N₀; after the last token
    K_C0 = 0.0
    for t in range(width):
        if t:
            for i in range(t):
                B[t, i] = beta[t] * B[t - 1, i]
                K[t, i] = K_C[i]
        B[t, t], B_0[t], K_0[t] = 1, beta[t] * B_0[max(t - 1, 0)], K_C0
        if t < written:
            for i in range(t + 1):
                K_C[i] = alpha[t] * K_C[i] + B[t, i]
            K_C0 = alpha[t] * K_C0 + B_0[t]
    return Momentum(alpha, beta, B, B_0, K, _turned(K), K_0, K_C, K_C0, written)


@if_given
def _carry_backward(momentum, bars, beta_bar):
    """K̄_t = α_t K̄_{t+1}, B̄_t = β_{t+1} B̄_{t+1} + K̄_{t+1}, and what N_C asks; to log α and log β"""
    c, K_bar, B_bar = momentum, bars.momentum.K_C, bars.momentum.B_C
    B_0_bar, K_0_bar = bars.momentum.ends[0], bars.momentum.ends[1]
    for t in range(len(c.beta) - 1, -1, -1):
        if t < c.written:  # K_bar is of what stands in S_t
            along = K_0_bar * c.K_0[t]
            for i in range(t):
                along += K_bar[i] * c.K[t, i]
            _add_log_alpha(bars, t, along * c.alpha[t])
            B_0_bar += K_0_bar
            K_0_bar = c.alpha[t] * K_0_bar + bars.momentum.K_0[t]
            for i in range(t + 1):
                B_bar[i] += K_bar[i]
                K_bar[i] = c.alpha[t] * K_bar[i] + bars.momentum.K[t, i]
        along = B_0_bar * c.B_0[t]
        for i in range(t):
            along += B_bar[i] * c.B[t, i]
        beta_bar[t] = along
        for i in range(t):
            B_bar[i] *= c.beta[t]
        B_0_bar *= c.beta[t]


@if_given
def _forgets_backward(momentum, EW, plain, bars, to_z):
    """Of what is forgotten of momentum, −W (K·zᵀz)ᵀ, to K and to the Gram matrix; EW = ĒᵀW"""
    for t in range(len(EW)):
        for i in range(t):
            bars.K[t, i] -= EW[t, i] * plain[t, i]
            to_z[t, i] -= EW[t, i] * momentum.K[t, i]


@if_given
def _carried(momentum, layer, i, at, z, delta, system):
    """c, w and N₀z"""
    c = _clipped(delta, _longest(layer // 2, len(delta)))
    return Carried(c, _by_token(c, system.rate), _product(_of(at.momentum, layer, i, z), z))


@inner
def _carried_backward(layer, i, at, G, carry_bar, z, z_T, GZ, E_bar, W_bar, EW, carried, system, momentum, rate_bar,
                      bars, bars_at, z_bar):
    """From S̄_C, N̄_C, Ē and what reads ask of w, to N₀, z, K, B, η′ and c̄; without momentum c stands in E."""
    if momentum is None:
        return E_bar
    w, to, N, N_bar = carried.w, bars.momentum, _of(at.momentum, layer, i, z), _of(bars_at.momentum, layer, i, z)
    Q = _of(carry_bar, layer, i, z)
    QZ = _product(Q, z)
    _add_dots(to.K_C, GZ, w)
    _add_dots(to.B_C, QZ, w)
    to.ends[0] += dot(Q.reshape(-1), N.reshape(-1))
    to.ends[1] += dot(G.reshape(-1), N.reshape(-1))
    _accumulate(W_bar, _by_token(GZ, momentum.K_C))
    _accumulate(W_bar, _by_token(QZ, momentum.B[-1]))
    _accumulate(W_bar, -_product(E_bar, _masked(system.plain, momentum.K), -1))
    _add(EW, E_bar.T, w)
    NZ_bar = _by_token(E_bar, -momentum.K_0)
    _add_dots(to.K_0, -E_bar, carried.NZ)
    for j in range(N.shape[0]):
        for p in range(N.shape[1]):
            N_bar[j, p] += momentum.K_C0 * G[j, p] + momentum.B_0[-1] * Q[j, p]
    _add(N_bar, NZ_bar, z_T)
    _add(z_bar, N.T, NZ_bar)
    _add(z_bar, Q.T, _by_token(w, momentum.B[-1]))
    _add_dots(rate_bar, W_bar, carried.c)
    return _by_token(W_bar, system.rate)


@inner
def _onward(U, retention, carried, momentum):
    """What of U, and with momentum of w, stands in S_C"""
    onward = _by_token(U, retention.after)
    if momentum is not None:
        _accumulate(onward, _by_token(carried.w, momentum.K_C))
    return onward


@if_given
def _write_momentum(momentum, layer, i, at, carried, z_T, S_C, carry):
    """N_C = B_C0 N₀ + Σ_i B_Ci w_i z_iᵀ, and S_C += K_C0 N₀"""
    N, N_C = _of(at.momentum, layer, i, z_T), _of(carry, layer, i, z_T)
    for j in range(N.shape[0]):
        for p in range(N.shape[1]):
            N_C[j, p] = momentum.B_0[-1] * N[j, p]
            S_C[j, p] += momentum.K_C0 * N[j, p]
    _add(N_C, _by_token(carried.w, momentum.B[-1]), z_T)


@if_given
def _read_momentum(momentum, layer, i, at, carried, x, y, plain):
    """y_t += K_t0 N₀x_t + Σ_{i<t} K_ti (z_i·x_t) w_i;  N₀x"""
    NX = _product(_of(at.momentum, layer, i, x), x)
    _accumulate(y, _by_token(NX, momentum.K_0))
    _add(y, carried.w, _masked(plain, momentum.K_T), 1)
    return NX


@if_given
def _read_momentum_backward(momentum, layer, i, at, carried, x, x_T, y_bar, NX, plain, mix_bar, W_bar, x_bar, bars,
                            bars_at):
    """From ȳ to w, K, N₀, x and zᵀx"""
    to, mix, along = bars.momentum, _turned(plain), _product(y_bar.T, carried.w)  # (t,i)
    _add(W_bar, y_bar, _masked(mix, momentum.K), -1)
    for t in range(len(along)):
        for j in range(t):
            to.K[t, j] += along[t, j] * mix[t, j]
            mix_bar[t, j] += along[t, j] * momentum.K[t, j]
    _add_dots(to.K_0, y_bar, NX)
    NX_bar = _by_token(y_bar, momentum.K_0)
    _add(x_bar, _of(at.momentum, layer, i, x).T, NX_bar)
    _add(_of(bars_at.momentum, layer, i, x), NX_bar, x_T)


# a memory as a function


@inner
def _apply(m, i, at, adaptive, x):
    """M(x) = x + W₁ σ(W₂ x), in a scalar memory r·x + W₁ σ(W₂ x); s and σ(W₂ x)"""
    y, s, hidden = x, x, x  # one type on every path
    if m in SCALARS:
        y = _product(_of(at.readout, m - 3, i, x), x)
    if adaptive:
        s, hidden = _silu(_through(at, 2 * m, i, x))
        y = _sum(y, _through(at, 2 * m + 1, i, hidden))
    return y, s, hidden


@inner
def _apply_backward(m, i, at, adaptive, x, x_T, s, hidden, y_bar, x_bar, bars_at):
    _skip_backward(m, i, at, x_T, y_bar, x_bar, bars_at)
    if adaptive:
        inner_bar = _times_slope(_product(_weights(at, 2 * m + 1, i, x).T, y_bar), s, hidden)
        _add(x_bar, _weights(at, 2 * m, i, x).T, inner_bar)
        _add_weights(bars_at, 2 * m, i, _product(inner_bar, x_T))
        _add_weights(bars_at, 2 * m + 1, i, _product(y_bar, _turned(hidden)))


@inner
def _skip_backward(m, i, at, x_T, y_bar, x_bar, bars_at):
    """… of x, or of r·x"""
    if m in SCALARS:
        _add(x_bar, _of(at.readout, m - 3, i, x_T).T, y_bar)
        _add(_of(bars_at.readout, m - 3, i, x_T), y_bar, x_T)
    else:
        _accumulate(x_bar, y_bar)


# learning: from k and v to what is written


@inner
def _longest(m, size):
    """‖δ‖² at which an error is clipped: RMS 1 in the main memory, length 1 in those that project"""
    return size if m == MEMORY else 1


@inner
def _clip(delta, longest):
    """min(1, √longest/‖δ‖)"""
    clip, one = _dots(delta, delta), delta.dtype.type(1)
    for t in range(len(clip)):
        clip[t] = min(one, 1 / math.sqrt(clip[t] / longest + 1e-12))
    return clip


@inner
def _clipped(delta, longest):
    """c = −δ·min(1, √longest/‖δ‖)"""
    return -_by_token(delta, _clip(delta, longest))


@inner
def _errors(delta, longest, MZ, SZ, before, system, carried, momentum):
    """E; with momentum −(M₀z + g_{t−1} S₀z + K_t0 N₀z + Σ_{i<t} K_ti (z_i·z_t) w_i)"""
    if momentum is None:
        return _surprise(delta, longest, MZ, SZ, before)
    E = _product(carried.w, _masked(system.plain, momentum.K_T), 1)
    for i in range(E.shape[0]):
        for t in range(E.shape[1]):
            E[i, t] = -(E[i, t] + MZ[i, t] + before[t] * SZ[i, t] + momentum.K_0[t] * carried.NZ[i, t])
    return E


@inner
def _surprise(delta, longest, MZ, SZ, before):
    """E = −(δ·min(1, √longest/‖δ‖) + M₀z + g_{t−1} S₀z)"""
    E, clip = np.empty_like(delta), _clip(delta, longest)
    for i in range(delta.shape[0]):
        for t in range(delta.shape[1]):
            E[i, t] = -(delta[i, t] * clip[t] + MZ[i, t] + before[t] * SZ[i, t])
    return E


@inner
def _surprise_backward(delta, longest, E_bar):
    """δ̄ = −Ē, and where δ was clipped −(Ē − δ ⟨Ē, δ⟩/‖δ‖²) √longest/‖δ‖"""
    square, dots = _dots(delta, delta), _dots(delta, E_bar)
    delta_bar, scale = np.empty_like(delta), np.ones_like(square)
    for t in range(len(scale)):
        excess = square[t] / longest + 1e-12
        if excess > 1:
            scale[t], dots[t] = 1 / math.sqrt(excess), dots[t] / (longest * excess)
        else:
            dots[t] = 0
    for i in range(len(delta)):
        for t in range(delta.shape[1]):
            delta_bar[i, t] = -scale[t] * (E_bar[i, t] - delta[i, t] * dots[t])
    return delta_bar


@inner
def _learn(m, i, at, c, options):
    """What memory m writes: in W₂ z = k, δ₁ = σ′·W₁ᵀδ; in W₁ z = σ(W₂k), δ = M(k) − v̂ or −v̂."""
    (_, moved, l2, given, power), retention, k, v = options, c.retention, c.k, c.v
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
    second = _system(hidden, c.eta, c.log_alpha, retention.ratio, c.momentum, power)
    carried1 = _carried(c.momentum, 2 * m, i, at, k, delta_1, c.system)
    carried2 = _carried(c.momentum, 2 * m + 1, i, at, hidden, delta, second)
    E1 = _errors(delta_1, _longest(m, len(delta_1)), MZ1, SZ1, retention.before, c.system, carried1, c.momentum)
    E2 = _errors(delta, _longest(m, len(delta)), MZ2, SZ2, retention.before, second, carried2, c.momentum)
    return Learned(s, hidden, _turned(hidden), s_v, hidden_v, target, r, delta, D, delta_1, SZ1, E1,
                   _product(E1, c.system.solve, 1), SZ2, E2, _product(E2, second.solve, 1), second, carried1, carried2)


@inner
def _learn_backward(m, i, at, c, L, options, after_bar, carry_bar, U1_bar, U2_bar, W1_bar, W2_bar, hidden_bar, RU, EW,
                    rate_bar, bars, bars_at):
    """`_learn` and `_write`, line by line from the last."""
    (_, moved, l2, given, power), retention, k = options, c.retention, c.k
    one, two = k.dtype.type(1), k.dtype.type(2)
    RU2, rate2_bar, EW2 = np.zeros_like(RU), np.zeros_like(rate_bar), _zeros_with(c.momentum, RU)
    G1, G2 = _of(after_bar, 2 * m, i, k), _of(after_bar, 2 * m + 1, i, k)
    E1_bar, GZ1 = _solve_backward(G1, k, L.E1, L.U1, c.system, retention, U1_bar, RU, rate_bar, bars)
    E2_bar, GZ2 = _solve_backward(G2, L.hidden, L.E2, L.U2, L.system, retention, U2_bar, RU2, rate2_bar, bars)
    c1_bar = _carried_backward(2 * m, i, at, G1, carry_bar, k, c.k_T, GZ1, E1_bar, W1_bar, EW, L.carried1, c.system,
                               c.momentum, rate_bar, bars, bars_at, bars.k)
    c2_bar = _carried_backward(2 * m + 1, i, at, G2, carry_bar, L.hidden, L.hidden_T, GZ2, E2_bar, W2_bar, EW2,
                               L.carried2, L.system, c.momentum, rate2_bar, bars, bars_at, hidden_bar)
    delta_1_bar = _surprise_backward(L.delta_1, _longest(m, len(L.delta_1)), c1_bar)
    delta_bar = _surprise_backward(L.delta, _longest(m, len(L.delta)), c2_bar)
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
    _write_backward(2 * m + 1, i, at, G2, L.hidden, L.hidden_T, _onward(L.U2, retention, L.carried2, c.momentum), L.SZ2,
                    E2_bar, made_bar, moved[m], retention, hidden_bar, bars, bars_at)
    _system_backward(L.hidden, L.system, c, power, RU2, EW2, rate2_bar, bars, hidden_bar)
    inner_bar = _times_slope(hidden_bar, L.s, L.hidden)
    gates, hidden, D = L.s, L.hidden, L.D
    for j in range(len(inner_bar)):
        for t in range(inner_bar.shape[1]):  # σ″ = (1 − s)(2s + y − 2ys), y = x s
            s, y = gates[j, t], hidden[j, t]
            inner_bar[j, t] += delta_1_bar[j, t] * D[j, t] * (one - s) * (two * s + y - two * y * s)
    _write_backward(2 * m, i, at, G1, k, c.k_T, _onward(L.U1, retention, L.carried1, c.momentum), L.SZ1, E1_bar,
                    inner_bar, moved[m], retention, bars.k, bars, bars_at)


@if_given
def _zeros_with(momentum, x):
    """Zeros like x, where there is momentum"""
    return np.zeros_like(x)


@inner
def _write(layer, i, at, U, carried, z_T, c, after, carry):
    """S_C = g_C S₀ + Σ_i (g_C/g_i) u_i z_iᵀ"""
    S, S_C = _of(at.now, layer, i, z_T), _of(after, layer, i, z_T)
    for j in range(S.shape[0]):
        for p in range(S.shape[1]):
            S_C[j, p] = c.retention.whole * S[j, p]
    _write_momentum(c.momentum, layer, i, at, carried, z_T, S_C, carry)
    _add(S_C, _onward(U, c.retention, carried, c.momentum), z_T)


@inner
def _solve_backward(G, z, E, U, system, retention, U_bar, RU, rate_bar, bars):
    """From S̄_C = G and what reads ask of U to R̄ = Ū(I + L)⁻¹, of R = E diag(η′), and to Ē; and Gz."""
    plain = _product(G, z)
    GZ = _by_token(plain, retention.after)
    written = _dots(GZ, U)
    for t in range(len(written)):
        bars.g[t] -= written[t]
        bars.g[-1] += written[t]
    _accumulate(U_bar, GZ)
    R_bar = _product(U_bar, system.inverse, -1)
    _add(RU, R_bar.T, U)
    _add_dots(rate_bar, R_bar, E)
    return _by_token(R_bar, system.rate), plain


@inner
def _write_backward(layer, i, at, G, z, z_T, onward, SZ, E_bar, made_bar, moved, retention, z_bar, bars, bars_at):
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
    bars.g[-1] += retention.whole * dot(G.reshape(-1), S.reshape(-1))
    _add(z_bar, _of(at.initial, layer, i, z).T, MZ_bar)
    _add(z_bar, S.T, SZ_bar)
    _add(z_bar, G.T, onward)
    _add(_of(bars_at.initial, layer, i, z), MZ_bar, z_T)
    _add(S_bar, SZ_bar, z_T)


@inner
def _read(layer, i, at, U, carried, z, x, retention, momentum):
    """y_t = M₀x_t + g_{t−1} S₀x_t + Σ_{i<t} ratio_ti (z_i·x_t) u_i;  S₀x, ratio·zᵀx (i,t); with momentum N₀x, zᵀx"""
    SX, mix = _product(_of(at.now, layer, i, x), x), _product(z.T, x)
    y = _product(_of(at.initial, layer, i, x), x)
    _accumulate(y, _by_token(SX, retention.before))
    plain = _plain(momentum, mix)
    _mask(mix, retention.ratio_T)
    _add(y, U, mix, 1)
    return y, SX, mix, _read_momentum(momentum, layer, i, at, carried, x, y, plain), plain


@inner
def _read_backward(layer, i, at, U, carried, z, x, read, retention, momentum, y_bar, U_bar, W_bar, z_bar, x_bar, bars,
                   bars_at):
    _, SX, mix, NX, plain = read
    mix, mix_bar, x_T = _turned(mix), _product(y_bar.T, U), _turned(x)  # (t,i)
    _add(U_bar, y_bar, mix, -1)
    for t in range(len(mix)):
        for j in range(t):
            along = mix_bar[t, j] * mix[t, j]
            bars.before[t] += along
            bars.g[j] -= along
    _mask(mix_bar, retention.ratio)
    _read_momentum_backward(momentum, layer, i, at, carried, x, x_T, y_bar, NX, plain, mix_bar, W_bar, x_bar, bars,
                            bars_at)
    _add(z_bar, x, mix_bar, -1)
    _add(x_bar, z, _turned(mix_bar), 1)
    SX_bar = _by_token(y_bar, retention.before)
    _add_dots(bars.before, SX_bar, SX)
    _add(x_bar, _of(at.initial, layer, i, x).T, y_bar)
    _add(x_bar, _of(at.now, layer, i, x).T, SX_bar)
    _add(_of(bars_at.initial, layer, i, x), y_bar, x_T)
    _add(_of(bars_at.now, layer, i, x), SX_bar, x_T)


# the whole chunk


@inner
def _piece(at, p):
    """The tables of piece p: what is read, and the drifts, lie elsewhere in each."""
    return Inputs(at.feeds[p], at.bias, at.readout, at.initial, at.now[p], at.start[p], _rows(at.momentum, p))


@if_given
def _rows(tables, p):
    """Of a piece; None without momentum"""
    return tables[p]


@inner
def _ask(m, i, at, adaptive, like):
    """What projection m says to its feed; eta and alpha have one feed."""
    x_T, x = _filled(_of(at.feeds, min(m, 3), i, like))
    y, s, hidden = _apply(m, i, at, adaptive[m], x)
    return Asked(x, x_T, y, s, hidden)


@if_given
def _betas(momentum, i, at, x, n):
    """β of every token; 1 for what fills them up"""
    y, bias, beta = _product(_of(at.readout, 2, i, x), x), _of(at.bias, 2, i, x)[0, 0], np.ones(x.shape[1])
    for t in range(n):
        beta[t] = 1 / (1 + math.exp(-y[0, t] - bias))
    return beta


@inner
def _chunk(i, at, adaptive, eta_max, power, like):
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
    momentum = _carry(_betas(at.momentum, i, at, asked[3].x, n), log_alpha, n, like)
    return Chunk(asked, q, q_r, k, k_r, _turned(k), v, v_r, _turned(v), eta, log_alpha, retention,
                 _system(k, eta, log_alpha, retention.ratio, momentum, power), momentum)


@if_given
def _momentum_bars(momentum):
    return MomentumBars(np.zeros(len(momentum.K_C)), np.zeros_like(momentum.K), np.zeros_like(momentum.K_0),
                        np.zeros_like(momentum.K_C), np.zeros(2))


@if_given
def _betas_backward(momentum, i, x, x_T, x_bar, at, bars_at, bars, n):
    """From K and B to β's gate"""
    y_bar = np.zeros((1, x.shape[1]), x.dtype)
    beta_bar = np.zeros_like(momentum.beta)
    _carry_backward(momentum, bars, beta_bar)
    for t in range(n):
        y_bar[0, t] = beta_bar[t] * (1 - momentum.beta[t])
        _of(bars_at.bias, 2, i, x)[0, 0] += y_bar[0, t]
    _add(x_bar, _of(at.readout, 2, i, x).T, y_bar)
    _add(_of(bars_at.readout, 2, i, x), y_bar, x_T)


@inner
def _chunk_bars(i, at, after_bar, carry_bar, bars_at, options, eta_max, like):
    """From the cotangents of o and of the drifts after one chunk to those of all that goes into it."""
    adaptive, power, o_bar = options[0], options[4], _of(at.feeds, READ, i, like)
    c = _chunk(i, at, adaptive, eta_max, power, like)
    (d, width), n, read_bar = c.k.shape, len(o_bar), _filled(o_bar)[1]
    bars = Bars(np.zeros(width), np.zeros(width), np.zeros(width), np.zeros_like(c.k), np.zeros_like(c.v),
                _momentum_bars(c.momentum))
    rate_bar, RU, EW = np.zeros(width), np.zeros_like(c.system.gram), _zeros_with(c.momentum, c.system.gram)
    q_bar = read_bar.copy()
    for m in range(MEMORY + 1):
        if adaptive[m]:
            L = _learn(m, i, at, c, options)
            U1_bar, U2_bar, hidden_bar = np.zeros_like(L.U1), np.zeros_like(L.U2), np.zeros_like(L.hidden)
            W1_bar, W2_bar = _zeros_with(c.momentum, L.U1), _zeros_with(c.momentum, L.U2)
            if m == MEMORY:
                read1 = _read(2 * m, i, at, L.U1, L.carried1, c.k, c.q, c.retention, c.momentum)
                s, x = _silu(read1[0])
                read2 = _read(2 * m + 1, i, at, L.U2, L.carried2, L.hidden, x, c.retention, c.momentum)
                x_bar = np.zeros_like(x)
                _read_backward(2 * m + 1, i, at, L.U2, L.carried2, L.hidden, x, read2, c.retention, c.momentum,
                               read_bar, U2_bar, W2_bar, hidden_bar, x_bar, bars, bars_at)
                inner_bar = _times_slope(x_bar, s, x)
                _read_backward(2 * m, i, at, L.U1, L.carried1, c.k, c.q, read1, c.retention, c.momentum,
                               inner_bar, U1_bar, W1_bar, bars.k, q_bar, bars, bars_at)
            _learn_backward(m, i, at, c, L, options, after_bar, carry_bar, U1_bar, U2_bar, W1_bar, W2_bar, hidden_bar,
                            RU, EW, rate_bar, bars, bars_at)
    _system_backward(c.k, c.system, c, power, RU, EW, rate_bar, bars, bars.k)
    gate_bar = np.zeros_like(c.k)
    _betas_backward(c.momentum, i, c.asked[3].x, c.asked[3].x_T, gate_bar, at, bars_at, bars, n)

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
        asked, x_bar = c.asked[m], gate_bar if m == 3 else np.zeros_like(c.k)
        _apply_backward(m, i, at, adaptive[m], asked.x, asked.x_T, asked.s, asked.hidden,
                        y_bar[m][:1 if m in SCALARS else d], x_bar, bars_at)
        _accumulate(_of(bars_at.feeds, min(m, 3), i, like), _turned(x_bar)[:n])


@jit
def _titans(start, stop, options, eta_max, moved, tables, after, carry_after, like):
    """Some of the sequences. options: which memories adapt; l2, given, power. moved: which have, since their start."""
    adaptive, l2, given, power = options
    for i in range(start, stop):
        for p in range(len(moved)):
            at, carry = _piece(tables, p), _rows(carry_after, p)
            c, o = _chunk(i, at, adaptive, eta_max, power, like), _of(at.feeds, READ, i, like)
            for m in range(MEMORY + 1):
                if adaptive[m]:
                    L = _learn(m, i, at, c, (adaptive, moved[p], l2, given, power))
                    _write(2 * m, i, at, L.U1, L.carried1, c.k_T, c, after[p], carry)
                    _write(2 * m + 1, i, at, L.U2, L.carried2, L.hidden_T, c, after[p], carry)
                    if m == MEMORY:
                        x = _silu(_read(2 * m, i, at, L.U1, L.carried1, c.k, c.q, c.retention, c.momentum)[0])[1]
                        y = _sum(c.q, _read(2 * m + 1, i, at, L.U2, L.carried2, L.hidden, x, c.retention,
                                            c.momentum)[0])
                        _accumulate(o, _turned(y)[:len(o)])


@jit
def _titans_backward(start, stop, options, eta_max, moved, tables, after_bar, carry_bar, bars, like):
    adaptive, l2, given, power = options
    for i in range(start, stop):
        for p in range(len(moved) - 1, -1, -1):
            at, bars_at, option = _piece(tables, p), _piece(bars, p), (adaptive, moved[p], l2, given, power)
            _chunk_bars(i, at, after_bar[p], _rows(carry_bar, p), bars_at, option, eta_max, like)


# one token alone: it is a row, and no product is one of matrices


@inner
def _times_row(table, layer, i, x):
    """A x"""
    A = _of(table, layer, i, x)
    y = np.zeros((1, len(A)), x.dtype)
    dot_rows(0, len(A), A, x[0], y[0])
    return y


@inner
def _answer(m, i, at, adaptive, x):
    """`_apply`"""
    y = _times_row(at.readout, m - 3, i, x) if m in SCALARS else x.copy()
    if adaptive:
        hidden = _silu(_sum(_times_row(at.initial, 2 * m, i, x), _times_row(at.start, 2 * m, i, x)))[1]
        _accumulate(y, _times_row(at.initial, 2 * m + 1, i, hidden))
        _accumulate(y, _times_row(at.start, 2 * m + 1, i, hidden))
    return y


@inner
def _scaled_row(x, m, eps):
    """`_scaled_to`"""
    y, r = np.empty_like(x), 1 / math.sqrt(m * dot(x[0], x[0]) + eps)
    for j in range(x.shape[1]):
        y[0, j] = x[0, j] * r
    return y


@inner
def _write_row(layer, i, at, after, carry_after, alpha, beta, eta, power, z, delta, MZ, SZ, momentum):
    """S ← α S − η′(δ·min(1, √longest/‖δ‖) + M₀z + S z) zᵀ"""
    S, S_1 = _of(at.now, layer, i, z), _of(after, layer, i, z)
    clip = min(1.0, 1 / math.sqrt(dot(delta[0], delta[0]) / _longest(layer // 2, delta.shape[1]) + 1e-12))
    square = dot(z[0], z[0])
    rate, clip = z.dtype.type(eta / (1 + eta * square)), z.dtype.type(clip)
    if power:
        rate = z.dtype.type(min(eta, (1 + alpha) / (power * square + 1e-12)))
    if momentum is None:
        for p in range(len(S)):
            u = -rate * (delta[0, p] * clip + MZ[0, p] + SZ[0, p])
            for j in range(S.shape[1]):
                S_1[p, j] = alpha * S[p, j] + u * z[0, j]
    else:
        N, N_1 = _of(momentum, layer, i, z), _of(carry_after, layer, i, z)
        for p in range(len(S)):
            w, u = -rate * (delta[0, p] * clip), -rate * (MZ[0, p] + SZ[0, p])
            for j in range(S.shape[1]):
                N_1[p, j] = beta * N[p, j] + w * z[0, j]
                S_1[p, j] = alpha * S[p, j] + u * z[0, j] + N_1[p, j]


@inner
def _beta_row(i, at, x, momentum):
    if momentum is None:
        return x.dtype.type(0)
    return x.dtype.type(1 / (1 + math.exp(-_times_row(at.readout, 2, i, x)[0, 0] - _of(at.bias, 2, i, x)[0, 0])))


@jit
def _titans_row(start, stop, options, eta_max, moved, tables, after, carry_after, o):
    """`_titans` where T = 1: the same in the same order, and what `_learn` finds is written at once"""
    (adaptive, l2, given, power), d, number = options, o.shape[2], o.dtype.type
    at, carry = _piece(tables, 0), _rows(carry_after, 0)
    for i in range(start, stop):
        asked = np.zeros((5, 1, d), o.dtype)
        for m in range(5):
            _accumulate(asked[m], _answer(m, i, at, adaptive[m], _of(at.feeds, min(m, 3), i, o)))
        eta = eta_max / (1 + math.exp(-asked[3, 0, 0] - _of(at.bias, 0, i, o)[0, 0]))
        alpha = number(1 / (1 + math.exp(-asked[4, 0, 0] - _of(at.bias, 1, i, o)[0, 0])))
        beta = _beta_row(i, at, _of(at.feeds, 3, i, o), at.momentum)
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
                _write_row(2 * m, i, at, after[0], carry, alpha, beta, eta, power, k, _times_slope(D, s, hidden), MZ1,
                           SZ1, at.momentum)
                _write_row(2 * m + 1, i, at, after[0], carry, alpha, beta, eta, power, hidden, delta, MZ2, SZ2,
                           at.momentum)
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

    def states(self, now: dict, between: dict, after: dict) -> np.ndarray:
        """Where a state lies before every piece, and after the last.  → (P+1,layers,5)"""
        P = len(self.pieces)
        rows = np.empty((P + 1, 2 * len(MEMORIES), 5), np.int64)
        rows[0], rows[-1] = self.layers(now), self.layers(after)
        if P > 1:
            rows[1:-1] = self.layers(between)
            rows[1:-1, :, 1] //= P - 1
            rows[1:-1, :, 0] += np.arange(P - 1)[:, None] * rows[1:-1, :, 1] * rows[1:-1, :, 2]
        return rows

    def inputs(self, feeds, bias, readout, initial, now, start, momentum, trail, after
               ) -> tuple[Inputs, np.ndarray, np.ndarray | None]:
        """What `_piece` takes apart; and of every piece, where the drifts and the momenta after it lie."""
        read, P = np.repeat(self(feeds)[None], len(self.pieces), 0), len(self.pieces)
        drifts, seen = self.states(now, trail[0], after[0]), self.layers(now | start)[None]
        momenta = self.states(momentum, trail[1], after[1]) if momentum else None
        if P > 1:
            read[:, :, 3] = np.array([n for n, _ in self.pieces])[:, None]
            read[1:, :, 0] += np.cumsum(read[:-1, :, 3], 0) * read[:-1, :, 4] * self.dtype.itemsize
            rows = [[of.get(name, -1) for name in MEMORIES for _ in range(2)] for _, of in self.pieces]
            seen = np.concatenate([drifts, seen])[rows, np.arange(2 * len(MEMORIES))]
        gates = self([x[..., None, None] for x in bias]), self(readout)
        at = Inputs(read, *gates, self.layers(initial), drifts[:-1], seen, None if momenta is None else momenta[:-1])
        return at, drifts[1:], None if momenta is None else momenta[1:]


def has_titans(x: Array, plain: bool = True) -> bool:
    """Whether `titans` can be computed on arrays like x; what is registered knows the plain case, the proximal step
    without momentum, alone."""
    there = JIT if isinstance(x, np.ndarray) else plain and (type(x), "titans") in REGISTERED
    return there and x.dtype in (np.float32, np.float64)


def titans(adaptive, l2, given, eta_max, power, pieces, *inputs):
    """Read and write T tokens with self-modifying Titans: two-layer memories, exact reads, retention to M₀.

    pieces: (n, seen) for each: tokens that are written at once, and by the name of a memory the piece with which
    its chunk began, whose state at that time its errors see; −1: that in `start`.
    inputs: feeds q, k, v, gate (B,H,T,d); bias (H,) and readout (H,1,d) of eta and alpha, with momentum of beta, too;
    and, by the name of a memory, both layers of: the initial state (H,out,in), the drift now (B,H,out,in), where the
    first piece says −1, the drift at that chunk's start; and the momentum, {} without. adaptive: names of the memories
    that learn; l2: the objective, else the dot product; given: the target is v; eta_max: bound of η; power: of the
    printed step η ≤ (1 + α)/(p‖z‖²), 0: the proximal one.
    → o (B,H,T,d), the drifts and the momenta after all by name, and the trail for the way back: both between the P
    pieces, (P−1,B,H,out,in) by name, or {} for a single one.
    Raises ValueError on shapes that do not fit.
    """
    if twin := REGISTERED.get((type(inputs[0][0]), "titans")):
        o, after, trail = twin(adaptive, l2, given, eta_max, pieces, *inputs[:-1])
        return o, after, {}, trail
    table, options, moved = _expect_titans(adaptive, l2, given, pieces, *inputs)
    (B, H, T, d), (feeds, *shared, now, start, momentum), P = inputs[0][0].shape, inputs, len(pieces)
    o, states = np.zeros((B, H, T, d), table.dtype), (now, momentum)
    after = [_made(np.empty, state, table.dtype) for state in states]
    trail = [{} if P == 1 else _made(np.empty, state, table.dtype, P - 1) for state in states]
    flat = o.reshape(B * H, T, d)
    at, after_at, carry_at = table.inputs([*feeds, flat], *shared, now, start, momentum, trail, after)
    split(_titans_row if T == 1 else _titans, B * H, WORK * o.size, (*options, power), eta_max, moved, at, after_at,
          carry_at, flat)
    return o, *after, trail


def titans_backward(adaptive, l2, given, eta_max, power, pieces, trail, *inputs_and_cotangents):
    """Cotangents of all inputs of `titans`, in their order, from those of o and of the drifts and momenta after."""
    *inputs, o_bar, after_bar, carry_bar = inputs_and_cotangents
    if twin := REGISTERED.get((type(inputs[0][0]), "titans_backward")):
        return [*twin(adaptive, l2, given, eta_max, pieces, trail, *inputs[:-1], o_bar, after_bar), {}]
    table, options, moved = _expect_titans(adaptive, l2, given, pieces, *inputs)
    (B, H, T, d), (feeds, bias, readout, initial, now, start, momentum) = inputs[0][0].shape, inputs
    _expect_cotangents(inputs, o_bar, after_bar, carry_bar)
    for states, between in zip((now, momentum), trail, strict=True):
        for name, layers in states.items() if len(pieces) > 1 else ():
            for x, y in zip(between[name], layers, strict=True):
                check_shapes(trail=(x, (len(pieces) - 1, *y.shape)))
    o_bar = np.require(o_bar, table.dtype, ["C", "A", "W"]).reshape(B * H, T, d)
    shared = [_made(np.zeros, xs, table.dtype, B) for xs in (bias, readout, initial)]  # of every sequence, first
    bars = [_made(np.zeros, xs, table.dtype) for xs in (feeds, now, start, momentum)]
    trail_bars = [_made(np.zeros, xs, table.dtype) for xs in trail]
    at, _, _ = table.inputs([*feeds, o_bar], *inputs[1:], trail, (now, momentum))  # what came after, nobody asks
    bars_at, after_at, carry_at = table.inputs(bars[0], *shared, *bars[1:], trail_bars, (after_bar, carry_bar))
    split(_titans_backward, B * H, WORK * o_bar.size, (*options, power), eta_max, moved, at, after_at, carry_at,
          bars_at, o_bar)
    initial_bar = {name: [x.sum(0) for x in layers] for name, layers in shared[2].items()}
    return [bars[0], *([x.sum(0) for x in xs] for xs in shared[:2]), initial_bar, *bars[1:]]


def _made(make, like, dtype, *lead):
    """Arrays in the shapes of a list, or of a dict of lists"""
    if isinstance(like, dict):
        return {name: _made(make, layers, dtype, *lead) for name, layers in like.items()}
    return [make((*lead, *x.shape), dtype) for x in like]


def _expect_titans(adaptive, l2, given, pieces, feeds, bias, readout, initial, now, start, momentum=None):
    (B, H, T, d), lengths = feeds[0].shape, [n for n, _ in pieces]
    if not lengths or min(lengths) < 1 or sum(lengths) != T or not set(now) == set(initial) == set(adaptive):
        raise ValueError(f"pieces of {lengths} of {T} tokens for memories {', '.join(now)}; each has at least one, "
                         f"together they have all, and there is a state for each of the memories that learn, "
                         f"{', '.join(adaptive)}")
    if len(bias) != (3 if momentum else 2) or set(momentum or now) != set(now):
        raise ValueError(f"{len(bias)} gates and momenta of {', '.join(momentum or ()) or 'none'}; give eta and alpha, "
                         "and with momentum beta, too, and a momentum for each of the memories that learn")
    if set(start) != {name for name, at in pieces[0][1].items() if at < 0}:
        raise ValueError(f"a start for {', '.join(start) or 'none'}, where the first piece says {pieces[0][1]}; "
                         "give one for every -1")
    for p, (_, seen) in enumerate(pieces):
        if set(seen) != set(now) or not all(-(name in start) <= at <= p for name, at in seen.items()):
            raise ValueError(f"errors of piece {p} see {seen}; give for each of {', '.join(now)} a piece from 0 to "
                             f"{p}, or -1 where there is a start")
    for x in feeds:
        check_shapes(feed=(x, (B, H, T, d)))
    for x, r in zip(bias, readout, strict=True):
        check_shapes(bias=(x, (H,)), readout=(r, (H, 1, d)))
    for name, layers in initial.items():
        h, out = layers[0].shape[1], 1 if name in ("eta", "alpha") else d
        for layer, shape in enumerate([(h, d), (out, h)]):
            check_shapes(initial=(layers[layer], (H, *shape)), now=(now[name][layer], (B, H, *shape)))
            if name in start:
                check_shapes(start=(start[name][layer], (B, H, *shape)))
            if momentum:
                check_shapes(momentum=(momentum[name][layer], (B, H, *shape)))
    options = np.array([name in adaptive for name in MEMORIES]), l2, given
    moved = np.array([[seen.get(name, p) != p for name in MEMORIES] for p, (_, seen) in enumerate(pieces)])
    return _Tables(feeds[0].dtype, pieces), options, moved


def _expect_cotangents(inputs, o_bar, after_bar, carry_bar=None):
    feeds, now = inputs[0], inputs[4]
    check_shapes(o_bar=(o_bar, feeds[0].shape))
    for name, layers in now.items():
        for layer, x in enumerate(layers):
            check_shapes(after_bar=(after_bar[name][layer], x.shape))
            if carry_bar:
                check_shapes(carry_bar=(carry_bar[name][layer], x.shape))
