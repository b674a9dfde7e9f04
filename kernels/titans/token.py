"""One token alone: rows in place of matrices, in two rounds, of which every part is one memory of one sequence.

    ask      q, k, v, η, α, and β with momentum: what the memories make of the token      all but the main memory
    write    what a memory learns of it, written at once; what the main memory answers

Definition: `titans.py::SelfModifyingTitans.chunk` where n = 1. A table for `matrix` says where everything lies.
"""

from __future__ import annotations

import math

import numpy as np

from kernels.lanes import LANES, dot, exp, lane, load, plus, scaled, store, totals, zero
from kernels.runtime import inner, jit
from kernels.titans.tables import MEMORIES, MEMORY, READ, SCALARS, matrix

LAYERS = 2 * len(MEMORIES)
FEEDS, BIAS, READOUT, ASKED, INITIAL, START = 0, 5, 8, 11, 12, 12 + LAYERS  # rows of a token's table
BEFORE, DRIFT, MOMENTUM, HELD = START + LAYERS, 1, 1 + LAYERS, 1 + 2 * LAYERS  # a tail, drifts and momenta, and …
AFTER, ROWS = BEFORE + HELD, BEFORE + 2 * HELD  # … the same after the token
ADAPTIVE, L2, VALUE_TARGETS, POWER, EXACT, MOVING, WIDTH = range(7)  # settings; of memories and momentum; of a row
ROOM = 11  # rows that a part needs for what it computes

# Layers of a memory, W = M₀ + drift --------------------------------------------------------------------------


@inner
def sums(M, S, x):
    """`lanes.lane_sums` of M + S, two rows, and x"""
    found, one = zero(x), x.dtype.type(1)
    for j in range(0, len(x) - len(x) % LANES, LANES):
        found = plus(found, plus(load(M, j), one, load(S, j)), load(x, j))
    return found


@inner
def rest(found, M, S, x):
    """found + Σ (M + S) x over the numbers at the end that fill no lanes"""
    for j in range(len(x) - len(x) % LANES, len(x)):
        found += (M[j] + S[j]) * x[j]
    return found


@inner
def times(M, S, x, y):
    """y = (M + S) x, the lanes of four rows added up together"""
    for p in range(0, len(M), 4):
        b, c, d = min(p + 1, len(M) - 1), min(p + 2, len(M) - 1), min(p + 3, len(M) - 1)
        t = totals(sums(M[p], S[p], x), sums(M[b], S[b], x), sums(M[c], S[c], x), sums(M[d], S[d], x))
        y[d], y[c] = rest(lane(t, 3), M[d], S[d], x), rest(lane(t, 2), M[c], S[c], x)
        y[b], y[p] = rest(lane(t, 1), M[b], S[b], x), rest(lane(t, 0), M[p], S[p], x)


@inner
def times_each(M, P, S, R, k, v, q, y):
    """y = (M + P) k, (M + S) k, (M + P) v, (M + R) q, and every row is read once"""
    whole, one = len(k) - len(k) % LANES, k.dtype.type(1)
    for i in range(len(M)):
        s0 = s1 = s2 = s3 = zero(k)
        for j in range(0, whole, LANES):
            m, x = load(M[i], j), load(k, j)
            begun = plus(m, one, load(P[i], j))
            s0, s1 = plus(s0, begun, x), plus(s1, plus(m, one, load(S[i], j)), x)
            s2, s3 = plus(s2, begun, load(v, j)), plus(s3, plus(m, one, load(R[i], j)), load(q, j))
        t = totals(s0, s1, s2, s3)
        y[0, i], y[1, i] = rest(lane(t, 0), M[i], P[i], k), rest(lane(t, 1), M[i], S[i], k)
        y[2, i], y[3, i] = rest(lane(t, 2), M[i], P[i], v), rest(lane(t, 3), M[i], R[i], q)


@inner
def times_transposed(M, P, x, y):
    """y = (M + P)ᵀ x"""
    whole, one = len(y) - len(y) % LANES, x.dtype.type(1)
    for j in range(0, whole, LANES):
        found = zero(x)
        for p in range(len(x)):
            found = plus(found, x[p], plus(load(M[p], j), one, load(P[p], j)))
        store(y, j, found)
    for j in range(whole, len(y)):
        y[j] = 0
        for p in range(len(x)):
            y[j] += x[p] * (M[p, j] + P[p, j])


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


@inner
def decayed(a, x, u, z, y):
    """y = a x + u z"""
    whole = len(x) - len(x) % LANES
    for j in range(0, whole, LANES):
        store(y, j, plus(scaled(a, load(x, j)), u, load(z, j)))
    for j in range(whole, len(x)):
        y[j] = a * x[j] + u * z[j]


# Two rounds --------------------------------------------------------------------------------------------------


@inner
def ask(i, m, table, settings, eta_max, room, like):
    """What memory m makes of the token of sequence i: q, k, v, brought to one size, or η, α; beside α stands β."""
    x, asked = matrix(table, FEEDS + min(m, 3), i, like)[0], matrix(table, ASKED, i, like)[0]
    d = len(x)
    y = asked[3 * d + m - 3:3 * d + m - 2] if m in SCALARS else asked[m * d:m * d + d]
    skip(m, i, table, x, y)
    if settings[ADAPTIVE] >> m & 1:
        layer, hidden, made = 2 * m, room[0, :matrix(table, INITIAL + 2 * m, i, like).shape[0]], room[1, :len(y)]
        times(matrix(table, INITIAL + layer, i, like), matrix(table, START + layer, i, like), x, hidden)
        silu(hidden, hidden)
        times(matrix(table, INITIAL + layer + 1, i, like), matrix(table, START + layer + 1, i, like), hidden, made)
        add(y, made)
    if m in SCALARS:
        y[0] = (eta_max if m == 3 else 1.0) * opened(m - 3, y[0], i, table, like)
    else:
        normalize(y, 1.0 if m < 2 else 1 / d, 1e-12 if m < 2 else 1e-6)
    if m == 4 and settings[MOVING]:
        asked[3 * d + 2] = opened(2, read_out(2, i, table, x), i, table, like)


@inner
def opened(gate, x, i, table, like):
    """σ(x + b)"""
    return 1 / (1 + math.exp(-x - matrix(table, BIAS + gate, i, like)[0, 0]))


@inner
def write(i, m, table, settings, room, like):
    """What memory m of sequence i learns; the main memory answers o = M(q), exactly of the last token, before it."""
    asked, layer, main = matrix(table, ASKED, i, like)[0], 2 * m, m == MEMORY
    d = len(asked) // 3 - 1
    q, k, v, gates = asked[:d], asked[d:2 * d], asked[2 * d:3 * d], asked[3 * d:]
    M1, M2 = matrix(table, INITIAL + layer, i, like), matrix(table, INITIAL + layer + 1, i, like)
    P1, P2 = matrix(table, START + layer, i, like), matrix(table, START + layer + 1, i, like)
    S1, S2 = matrix(table, BEFORE + DRIFT + layer, i, like), matrix(table, BEFORE + DRIFT + layer + 1, i, like)
    R1, R2 = (S1, S2) if settings[EXACT] else (P1, P2)
    h, out = len(M1), len(M2)
    hidden, hidden_v, hidden_q, delta, delta1 = room[8, :h], room[2, :h], room[3, :h], room[9, :out], room[10, :h]

    times_each(M1, P1, S1, R1, k, v, q, room[:4])
    silu(room[0, :h], hidden), silu(hidden_v, hidden_v), silu(hidden_q, hidden_q)
    times_each(M2, P2, S2, R2, hidden, hidden_v, hidden_q, room[4:8])
    skip(m, i, table, v, delta)  # the target
    if m in SCALARS:
        delta[0] = math.tanh(delta[0] + room[6, 0])
    elif not settings[VALUE_TARGETS]:
        add(delta, room[6, :out])
        normalize(delta, 1 / d, 1e-6)
    if settings[L2]:
        made = room[10, :out]
        skip(m, i, table, k, made)
        for p in range(out):
            delta[p] = made[p] + room[4, p] - delta[p]
    else:
        for p in range(out):
            delta[p] = -delta[p]
    times_transposed(M2, P2, delta, delta1)
    one = like.dtype.type(1)
    for j in range(h):
        s = one / (one + exp(-room[0, j]))
        delta1[j] *= s + hidden[j] * (one - s)
    write_layer(i, layer, table, settings, gates, k, delta1, room[1, :h], h if main else 1, like)
    write_layer(i, layer + 1, table, settings, gates, hidden, delta, room[5, :out], out if main else 1, like)
    if main:
        o = matrix(table, FEEDS + READ, i, like)[0]
        for j in range(d):
            o[j] = q[j] + room[7, j]


@inner
def write_layer(i, layer, table, settings, gates, z, delta, Wz, limit, like):
    """S ← α S − η′(δ·min(1, √limit/‖δ‖) + W z) zᵀ; with momentum η′δ zᵀ goes through N ← β N − η′δ zᵀ"""
    eta, alpha, beta, square, number = gates[0], gates[1], gates[2], dot(z, z), like.dtype.type
    clip = number(min(1.0, 1 / math.sqrt(dot(delta, delta) / limit + 1e-12)))
    rate = number(eta / (1 + eta * square))
    if settings[POWER]:
        rate = number(min(eta, (1 + alpha) / (settings[POWER] * square + 1e-12)))
    S, S_1 = matrix(table, BEFORE + DRIFT + layer, i, like), matrix(table, AFTER + DRIFT + layer, i, like)
    if settings[MOVING]:
        N, N_1 = matrix(table, BEFORE + MOMENTUM + layer, i, like), matrix(table, AFTER + MOMENTUM + layer, i, like)
        for p in range(len(S)):
            decayed(beta, N[p], -rate * (delta[p] * clip), z, N_1[p])
            decayed(alpha, S[p], -rate * Wz[p], z, S_1[p])
            add(S_1[p], N_1[p])
    else:
        for p in range(len(S)):
            decayed(alpha, S[p], -rate * (delta[p] * clip + Wz[p]), z, S_1[p])


@jit
def read_token(first, last, settings, eta_max, table, like):
    """`chunk.read_spans` where T = 1: both rounds, of some of the sequences"""
    room = np.empty((ROOM, settings[WIDTH]), like.dtype)
    for i in range(first, last):
        for m in range(MEMORY):
            ask(i, m, table, settings, eta_max, room, like)
        for m in range(MEMORY + 1):
            if settings[ADAPTIVE] >> m & 1:
                write(i, m, table, settings, room, like)


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


def settings_of(adaptive, l2, value_targets, power, exact, momentum, width):
    """As the loops take them"""
    bits = sum(1 << MEMORIES.index(name) for name in adaptive)
    return np.array([bits, l2, value_targets, power, exact, momentum, width], np.int64)
