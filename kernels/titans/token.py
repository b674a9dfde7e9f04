"""One token alone: rows in place of matrices, in two rounds, of which every part is one memory of one sequence.

    ask      q, k, v, η, α, and β with momentum: what the memories make of the token      all but the main memory
    write    what a memory learns of it, written at once; what the main memory answers

Definition: `titans.py::SelfModifyingTitans.chunk` where n = 1. A table for `matrix` says where everything lies.
"""

from __future__ import annotations

import math

import numpy as np

from kernels.lanes import LANES, dot, exp, fetch, lane, load, plus, scaled, store, totals, zero
from kernels.runtime import LINE, inner, jit
from kernels.shared import array_at
from kernels.titans.tables import MEMORIES, MEMORY, READ, SCALARS, matrix

LAYERS = 2 * len(MEMORIES)
FEEDS, BIAS, READOUT, ASKED, INITIAL, START = 0, 5, 8, 11, 12, 12 + LAYERS  # rows of a token's table
BEFORE, DRIFT, MOMENTUM, HELD = START + LAYERS, 1, 1 + LAYERS, 1 + 2 * LAYERS  # a tail, drifts and momenta, and …
AFTER, ROWS = BEFORE + HELD, BEFORE + 2 * HELD  # … the same after the token
ADAPTIVE, L2, VALUE_TARGETS, FORGETS, EXACT, HAS_MOMENTUM, WIDTH = range(7)  # settings; the last of a row
NUMBERS = LINE // 4  # in a line of the cache; of float64 in two
ROOM = 11  # rows that a part needs for what it computes

# Layers of a memory, W = M₀ + drift: their numbers in a row, for to cut rows out of an array is to count who has it ---


@inner
def numbers_of(table, row, i, like):
    """`tables.matrix`, row behind row"""
    address, matrices, step, m, n = table[row]
    return array_at(address + i % matrices * step, m * n, like)


@inner
def times(M, S, x, y):
    """y = (M + S) x, the lanes of four rows added up together"""
    n, last, one = len(x), len(y) - 1, x.dtype.type(1)
    whole = n - n % LANES
    for p in range(0, len(y), 4):
        q, r, s = min(p + 1, last), min(p + 2, last), min(p + 3, last)
        a, b, c, d = p * n, q * n, r * n, s * n
        s0 = s1 = s2 = s3 = zero(x)
        for j in range(0, whole, LANES):
            z = load(x, j)
            s0, s1 = (plus(s0, plus(load(M, a + j), one, load(S, a + j)), z),
                      plus(s1, plus(load(M, b + j), one, load(S, b + j)), z))
            s2, s3 = (plus(s2, plus(load(M, c + j), one, load(S, c + j)), z),
                      plus(s3, plus(load(M, d + j), one, load(S, d + j)), z))
        t = totals(s0, s1, s2, s3)
        t0, t1, t2, t3 = lane(t, 0), lane(t, 1), lane(t, 2), lane(t, 3)
        for j in range(whole, n):
            t0, t1 = t0 + (M[a + j] + S[a + j]) * x[j], t1 + (M[b + j] + S[b + j]) * x[j]
            t2, t3 = t2 + (M[c + j] + S[c + j]) * x[j], t3 + (M[d + j] + S[d + j]) * x[j]
        y[s], y[r], y[q], y[p] = t3, t2, t1, t0


@inner
def times_each(M, P, S, R, k, v, q, y, width, ahead):
    """y = (M + P) k, (M + S) k, (M + P) v, (M + R) q, each a row of y, and every row of M is read once

    What comes so many numbers after P and S is fetched meanwhile.
    """
    n, one = len(k), k.dtype.type(1)
    whole = n - n % LANES
    for i in range(len(M) // n):
        a = i * n
        s0 = s1 = s2 = s3 = zero(k)
        for j in range(0, whole, LANES):
            m, x = load(M, a + j), load(k, j)
            if ahead:
                fetch(P, a + j + ahead), fetch(P, a + j + ahead + NUMBERS)
                fetch(S, a + j + ahead), fetch(S, a + j + ahead + NUMBERS)
            begun = plus(m, one, load(P, a + j))
            s0, s1 = plus(s0, begun, x), plus(s1, plus(m, one, load(S, a + j)), x)
            s2, s3 = plus(s2, begun, load(v, j)), plus(s3, plus(m, one, load(R, a + j)), load(q, j))
        t = totals(s0, s1, s2, s3)
        t0, t1, t2, t3 = lane(t, 0), lane(t, 1), lane(t, 2), lane(t, 3)
        for j in range(whole, n):
            begun = M[a + j] + P[a + j]
            t0, t1 = t0 + begun * k[j], t1 + (M[a + j] + S[a + j]) * k[j]
            t2, t3 = t2 + begun * v[j], t3 + (M[a + j] + R[a + j]) * q[j]
        y[i], y[width + i], y[2 * width + i], y[3 * width + i] = t0, t1, t2, t3


@inner
def times_transposed(M, P, x, y):
    """y = (M + P)ᵀ x"""
    n, one = len(y), x.dtype.type(1)
    whole = n - n % LANES
    for j in range(0, whole, LANES):
        found = zero(x)
        for p in range(len(x)):
            found = plus(found, x[p], plus(load(M, p * n + j), one, load(P, p * n + j)))
        store(y, j, found)
    for j in range(whole, n):
        y[j] = 0
        for p in range(len(x)):
            y[j] += x[p] * (M[p * n + j] + P[p * n + j])


@inner
def decay(a, x, delta, clip, Wz, rate, z, y, ahead):
    """y = a x − rate·(clip·δ + W z) zᵀ"""
    n = len(z)
    whole = n - n % LANES
    for p in range(len(x) // n):
        u, i = -rate * (delta[p] * clip + Wz[p]), p * n
        for j in range(0, whole, LANES):
            if ahead:
                fetch(y, i + j + ahead), fetch(y, i + j + ahead + NUMBERS)
            store(y, i + j, plus(scaled(a, load(x, i + j)), u, load(z, j)))
        for j in range(whole, n):
            y[i + j] = a * x[i + j] + u * z[j]


@inner
def silu(x, y):
    """y = x/(1 + e^−x)"""
    one = x.dtype.type(1)
    for j in range(len(x)):
        y[j] = x[j] * (one / (one + exp(-x[j])))


@inner
def normalize(x, m, eps):
    """x ← x/√(m Σx² + ε)"""
    r = 1 / math.sqrt(m * dot(x, x) + eps)
    for j in range(len(x)):
        x[j] = x[j] * r


@inner
def read_out(gate, i, table, x):
    """r·x of η, α or β"""
    return dot(matrix(table, READOUT + gate, i, x)[0], x)


@inner
def skip(m, i, table, x, y):
    """y = x, of a scalar memory r·x"""
    if m in SCALARS:
        y[0] = read_out(m - 3, i, table, x)
    else:
        for j in range(len(x)):
            y[j] = x[j]


@inner
def add(y, x):
    """y += x"""
    for j in range(len(y)):
        y[j] += x[j]


# Two rounds --------------------------------------------------------------------------------------------------


@inner
def ask(i, m, table, settings, eta_max, room, like):
    """What memory m makes of the token of sequence i: q, k, v, brought to one size, or η, α; beside α stands β."""
    x, asked = matrix(table, FEEDS + min(m, 3), i, like)[0], matrix(table, ASKED, i, like)[0]
    d = len(x)
    y = asked[3 * d + m - 3:3 * d + m - 2] if m in SCALARS else asked[m * d:m * d + d]
    skip(m, i, table, x, y)
    if settings[ADAPTIVE] >> m & 1:
        layer, width, h = 2 * m, settings[WIDTH], table[INITIAL + 2 * m, 3]
        hidden, made = room[:h], room[width:width + len(y)]
        times(numbers_of(table, INITIAL + layer, i, like), numbers_of(table, START + layer, i, like), x, hidden)
        silu(hidden, hidden)
        times(numbers_of(table, INITIAL + layer + 1, i, like), numbers_of(table, START + layer + 1, i, like), hidden,
              made)
        add(y, made)
    if m in SCALARS:
        y[0] = (eta_max if m == 3 else 1.0) * opened(m - 3, y[0], i, table, like)
    else:
        normalize(y, 1.0 if m < 2 else 1 / d, 1e-12 if m < 2 else 1e-6)
    if m == 4 and settings[HAS_MOMENTUM]:
        asked[3 * d + 2] = opened(2, read_out(2, i, table, x), i, table, like)


@inner
def opened(gate, x, i, table, like):
    """σ(x + b)"""
    return 1 / (1 + math.exp(-x - matrix(table, BIAS + gate, i, like)[0, 0]))


@inner
def write(i, m, table, settings, room, ahead, like):
    """What memory m of sequence i learns; the main memory answers o = M(q), before or as of its chunk's start.

    ahead: whether the next sequence will be read soon, by this thread.
    """
    if not settings[ADAPTIVE] >> m & 1:
        return
    asked, layer, main, width = matrix(table, ASKED, i, like)[0], 2 * m, m == MEMORY, settings[WIDTH]
    d, h, out = len(asked) // 3 - 1, table[INITIAL + layer, 3], table[INITIAL + layer + 1, 3]
    q, k, v, gates = asked[:d], asked[d:2 * d], asked[2 * d:3 * d], asked[3 * d:]
    M1, M2 = numbers_of(table, INITIAL + layer, i, like), numbers_of(table, INITIAL + layer + 1, i, like)
    P1, P2 = numbers_of(table, START + layer, i, like), numbers_of(table, START + layer + 1, i, like)
    S1, S2 = numbers_of(table, BEFORE + DRIFT + layer, i, like), numbers_of(table, BEFORE + DRIFT + layer + 1, i, like)
    R1, R2 = (S1, S2) if settings[EXACT] else (P1, P2)

    x, x1, xv, xq = row(room, 0, h, width), row(room, 1, h, width), row(room, 2, h, width), row(room, 3, h, width)
    y, y1, yv, yq = (row(room, 4, out, width), row(room, 5, out, width), row(room, 6, out, width),
                     row(room, 7, out, width))
    hidden, delta, delta1 = row(room, 8, h, width), row(room, 9, out, width), row(room, 10, h, width)
    times_each(M1, P1, S1, R1, k, v, q, room, width, len(M1) * ahead)
    silu(x, hidden), silu(xv, xv), silu(xq, xq)
    times_each(M2, P2, S2, R2, hidden, xv, xq, room[4 * width:], width, len(M2) * ahead)
    skip(m, i, table, v, delta)  # the target
    if m in SCALARS:
        delta[0] = math.tanh(delta[0] + yv[0])
    elif not settings[VALUE_TARGETS]:
        add(delta, yv)
        normalize(delta, 1 / d, 1e-6)
    if settings[L2]:
        skip(m, i, table, k, yv)
        for p in range(out):
            delta[p] = yv[p] + y[p] - delta[p]
    else:
        for p in range(out):
            delta[p] = -delta[p]
    times_transposed(M2, P2, delta, delta1)
    one = like.dtype.type(1)
    for j in range(h):
        s = one / (one + exp(-x[j]))
        delta1[j] *= s + hidden[j] * (one - s)
    write_layer(i, layer, table, settings, gates, k, delta1, x1, h if main else 1, ahead, like)
    write_layer(i, layer + 1, table, settings, gates, hidden, delta, y1, out if main else 1, ahead, like)
    if main:
        o = matrix(table, FEEDS + READ, i, like)[0]
        for j in range(d):
            o[j] = q[j] + yq[j]


@inner
def row(room, i, n, width):
    """The first numbers of one of its rows"""
    return room[i * width:i * width + n]


@inner
def write_layer(i, layer, table, settings, gates, z, delta, Wz, limit, ahead, like):
    """S ← α S − η′(δ·min(1, √limit/‖δ‖) + (M₀ + S) z) zᵀ; with momentum η′δ zᵀ goes through N ← β N − η′δ zᵀ"""
    eta, alpha, beta, square, number = gates[0], gates[1], gates[2], dot(z, z), like.dtype.type
    none = number(0)
    clip = number(min(1.0, 1 / math.sqrt(dot(delta, delta) / limit + 1e-12)))
    rate = number(eta / (1 + eta * square))
    if settings[FORGETS]:
        rate = number(min(eta, (1 + alpha) / (settings[FORGETS] * square + 1e-12)))
    S = numbers_of(table, BEFORE + DRIFT + layer, i, like)
    S_1 = numbers_of(table, AFTER + DRIFT + layer, i, like)
    moving = settings[HAS_MOMENTUM]
    decay(alpha, S, delta, none if moving else clip, Wz, rate, z, S_1, len(S) * ahead)
    if moving:
        N = numbers_of(table, BEFORE + MOMENTUM + layer, i, like)
        N_1 = numbers_of(table, AFTER + MOMENTUM + layer, i, like)
        for p in range(len(delta)):
            Wz[p] = 0
        decay(beta, N, delta, clip, Wz, rate, z, N_1, len(S) * ahead)
        add(S_1, N_1)


@jit
def read_token(first, last, settings, eta_max, table, like):
    """`chunk.read_spans` where T = 1: both rounds, of some of the sequences"""
    room = np.empty(ROOM * settings[WIDTH], like.dtype)
    for i in range(first, last):
        for m in range(MEMORY):
            ask(i, m, table, settings, eta_max, room, like)
        for m in range(MEMORY + 1):
            write(i, m, table, settings, room, i + 1 < last, like)


# In Python ---------------------------------------------------------------------------------------------------


def table_of(tables, found, heads, size):
    """The table of a token, from what `Tables.inputs` makes of a single span"""
    inputs, drifts, momenta = found
    table, asked = np.zeros((ROWS, 5), np.int64), np.empty((heads, 1, 3 * size + 3), tables.dtype)
    for at, rows in ((FEEDS, inputs.feeds[0]), (BIAS, inputs.bias), (READOUT, inputs.readout),
                     (ASKED, tables([asked])), (INITIAL, inputs.initial), (START, inputs.start[0]),
                     (BEFORE + DRIFT, inputs.drift[0]), (AFTER + DRIFT, drifts[0])):
        table[at:at + len(rows)] = rows
    if momenta is not None:
        table[BEFORE + MOMENTUM:AFTER], table[AFTER + MOMENTUM:] = inputs.momentum[0], momenta[0]
    return table


def settings_of(adaptive, l2, value_targets, forgets, exact, momentum, size, initial):
    """As the loops take them; a row is as long as a head or a hidden layer"""
    width = max(size, *(layers[0].shape[1] for layers in initial.values()))
    bits = sum(1 << MEMORIES.index(name) for name in adaptive)
    return np.array([bits, l2, value_targets, forgets, exact, momentum, width], np.int64)
