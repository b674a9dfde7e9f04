"""One token alone: it is a row, and no product is one of matrices.

Definition: `titans.py::SelfModifyingTitans.chunk` where n = 1; the same in the same order as in chunk.py, but what is
learned is written at once.
"""

from __future__ import annotations

import math

import numpy as np

from kernels.lanes import dot
from kernels.product import dot_rows
from kernels.runtime import inner, jit
from kernels.titans.products import accumulate, added, negative, silu, tanh, times_slope
from kernels.titans.tables import MEMORY, SCALARS, layers_of, matrix, matrix_if, of_span, span_if


@inner
def times_row(A, x):
    """A x"""
    y = np.zeros((1, len(A)), x.dtype)
    dot_rows(0, len(A), A, x[0], y[0])
    return y


@inner
def apply_to_row(m, i, inputs, adaptive, x):
    """`reads.apply`"""
    y = times_row(matrix(inputs.readout, m - 3, i, x), x) if m in SCALARS else x.copy()
    if adaptive:
        layer1, layer2 = layers_of(inputs, m, i, x)
        hidden = silu(added(times_row(layer1.initial, x), times_row(layer1.start, x)))[1]
        accumulate(y, times_row(layer2.initial, hidden))
        accumulate(y, times_row(layer2.start, hidden))
    return y


@inner
def normalized_row(x, m, eps):
    """`products.normalized`"""
    y, r = np.empty_like(x), 1 / math.sqrt(m * dot(x[0], x[0]) + eps)
    for j in range(x.shape[1]):
        y[0, j] = x[0, j] * r
    return y


@inner
def beta_of_row(i, inputs, x, momentum):
    """β; 0 without momentum"""
    if momentum is None:
        return x.dtype.type(0)
    y, bias = times_row(matrix(inputs.readout, 2, i, x), x), matrix(inputs.bias, 2, i, x)
    return x.dtype.type(1 / (1 + math.exp(-y[0, 0] - bias[0, 0])))


@inner
def write_row(layer, S_1, N_1, alpha, beta, eta, power, z, delta, limit, MZ, SZ):
    """S ← α S − η′(δ·min(1, √limit/‖δ‖) + M₀z + S z) zᵀ; with momentum η′δ zᵀ goes through N ← β N − η′δ zᵀ"""
    S = layer.drift
    clip = min(1.0, 1 / math.sqrt(dot(delta[0], delta[0]) / limit + 1e-12))
    square = dot(z[0], z[0])
    rate, clip = z.dtype.type(eta / (1 + eta * square)), z.dtype.type(clip)
    if power:
        rate = z.dtype.type(min(eta, (1 + alpha) / (power * square + 1e-12)))
    if N_1 is None:
        for p in range(len(S)):
            u = -rate * (delta[0, p] * clip + MZ[0, p] + SZ[0, p])
            for j in range(S.shape[1]):
                S_1[p, j] = alpha * S[p, j] + u * z[0, j]
    else:
        N = layer.momentum
        for p in range(len(S)):
            w, u = -rate * (delta[0, p] * clip), -rate * (MZ[0, p] + SZ[0, p])
            for j in range(S.shape[1]):
                N_1[p, j] = beta * N[p, j] + w * z[0, j]
                S_1[p, j] = alpha * S[p, j] + u * z[0, j] + N_1[p, j]


@jit
def read_token(first, last, options, eta_max, moved, tables, after, momentum_after, o):
    """`chunk.read_spans` where T = 1"""
    (adaptive, l2, value_targets, power, exact), d, number = options, o.shape[2], o.dtype.type
    inputs, drifts, momenta = of_span(tables, 0), after[0], span_if(momentum_after, 0)
    for i in range(first, last):
        asked = np.zeros((5, 1, d), o.dtype)
        for m in range(5):
            accumulate(asked[m], apply_to_row(m, i, inputs, adaptive[m], matrix(inputs.feeds, min(m, 3), i, o)))
        eta = eta_max / (1 + math.exp(-asked[3, 0, 0] - matrix(inputs.bias, 0, i, o)[0, 0]))
        alpha = number(1 / (1 + math.exp(-asked[4, 0, 0] - matrix(inputs.bias, 1, i, o)[0, 0])))
        beta = beta_of_row(i, inputs, matrix(inputs.feeds, 3, i, o), inputs.momentum)
        q, k = normalized_row(asked[0], 1, 1e-12), normalized_row(asked[1], 1, 1e-12)
        v = normalized_row(asked[2], 1 / d, 1e-6)
        for m in range(MEMORY + 1):
            if adaptive[m]:
                layer1, layer2 = layers_of(inputs, m, i, k)
                MZ1, SZ1 = times_row(layer1.initial, k), times_row(layer1.drift, k)
                s, hidden = silu(added(MZ1, times_row(layer1.start, k) if moved[0, m] else SZ1))
                MZ2, SZ2 = times_row(layer2.initial, hidden), times_row(layer2.drift, hidden)
                target = v
                if m in SCALARS:
                    target = tanh(apply_to_row(m, i, inputs, True, v))
                elif not value_targets:
                    target = normalized_row(apply_to_row(m, i, inputs, True, v), 1 / d, 1e-6)
                delta = negative(target)
                if l2:
                    accumulate(delta, MZ2)
                    accumulate(delta, times_row(layer2.start, hidden) if moved[0, m] else SZ2)
                    accumulate(delta, times_row(matrix(inputs.readout, m - 3, i, k), k) if m in SCALARS else k)
                M, P, D = layer2.initial, layer2.start, np.zeros_like(hidden)
                for p in range(len(M)):
                    for j in range(M.shape[1]):
                        D[0, j] += delta[0, p] * (M[p, j] + P[p, j])
                write_row(layer1, matrix(drifts, 2 * m, i, k), matrix_if(momenta, 2 * m, i, k), alpha, beta, eta, power,
                          k, times_slope(D, s, hidden), hidden.shape[1] if m == MEMORY else 1, MZ1, SZ1)
                write_row(layer2, matrix(drifts, 2 * m + 1, i, k), matrix_if(momenta, 2 * m + 1, i, k), alpha, beta,
                          eta, power, hidden, delta, delta.shape[1] if m == MEMORY else 1, MZ2, SZ2)
                if m == MEMORY and exact:
                    x = silu(added(times_row(layer1.initial, q), times_row(layer1.drift, q)))[1]
                    accumulate(o[i], q)
                    accumulate(o[i], times_row(layer2.initial, x))
                    accumulate(o[i], times_row(layer2.drift, x))
        if not exact:
            accumulate(o[i], apply_to_row(MEMORY, i, inputs, True, q))
