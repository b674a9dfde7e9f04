"""A chunk of self-modifying Titans there and back, and a sequence span after span.

Definitions: `titans.py::SelfModifyingTitans.chunk` of a chunk [A 83, 90], `read_in_operations` of spans.

A thread takes a sequence through all its spans, each computed whole, with all it needs in the nearest caches. The
tokens that fill a span up write nothing (x = 0, η = 0, α = β = 1). The way back computes every span again from the
state at its beginning.
"""

from __future__ import annotations

import math

import numpy as np

from kernels.records import record
from kernels.runtime import if_given, inner, jit
from kernels.titans.decays import momentum_bars, momentum_decays, momentum_decays_backward, retain, zeros_if
from kernels.titans.learn import learn, learn_backward, write
from kernels.titans.products import (
    accumulate,
    add_product,
    lay_tokens,
    normalized,
    normalized_backward,
    padded,
    product,
    silu,
    times_slope,
    transposed,
)
from kernels.titans.reads import apply, apply_backward, read, read_backward
from kernels.titans.systems import triangular_system, triangular_system_backward
from kernels.titans.tables import MEMORY, READ, SCALARS, matrix, matrix_if, memories, of_span, span_if, weights_backward

Projection = record("Projection", "x x_T y s hidden")  # a feed, what the memory answers; s and σ(W₂ x)
Chunk = record("Chunk", "q q_r k k_r k_T v v_r v_T eta log_alpha retention system momentum")
Bars = record("Bars", "eta before g k v momentum")  # cotangents of η, log g_{t−1}, log g, k, v: all memories add


@inner
def project(m, memory, feed, adaptive):
    """What projection m says to its feed"""
    x_T, x = feed
    y, s, hidden = apply(m, memory, adaptive[m], x)
    return Projection(x, x_T, y, s, hidden)


@if_given
def betas(momentum, i, inputs, x, n):
    """β of every token; 1 for what fills them up"""
    y, bias = product(matrix(inputs.readout, 2, i, x), x), matrix(inputs.bias, 2, i, x)[0, 0]
    beta = np.ones(x.shape[1])
    for t in range(n):
        beta[t] = 1 / (1 + math.exp(-y[0, t] - bias))
    return beta


@if_given
def betas_backward(momentum, i, x, x_T, x_bar, inputs, inputs_bar, bars, n):
    """From B and K to β's gate"""
    y_bar, beta_bar = np.zeros((1, x.shape[1]), x.dtype), np.zeros_like(momentum.beta)
    momentum_decays_backward(momentum, bars, beta_bar)
    for t in range(n):
        y_bar[0, t] = beta_bar[t] * (1 - momentum.beta[t])
        matrix(inputs_bar.bias, 2, i, x)[0, 0] += y_bar[0, t]
    add_product(x_bar, matrix(inputs.readout, 2, i, x).T, y_bar)
    add_product(matrix(inputs_bar.readout, 2, i, x), y_bar, x_T)


@inner
def begin(i, inputs, of, adaptive, eta_max, forgets, like):
    """What is asked of the memories, and what they are all written with."""
    gate = padded(matrix(inputs.feeds, 3, i, like))  # eta, alpha and beta have one feed
    projections = (project(0, of[0], padded(matrix(inputs.feeds, 0, i, like)), adaptive),
                   project(1, of[1], padded(matrix(inputs.feeds, 1, i, like)), adaptive),
                   project(2, of[2], padded(matrix(inputs.feeds, 2, i, like)), adaptive),
                   project(3, of[3], gate, adaptive), project(4, of[4], gate, adaptive))
    (d, width), n, gates = projections[0].x.shape, inputs.feeds[0, 3], (projections[3].y, projections[4].y)
    eta, log_alpha = np.zeros(width), np.zeros(width)
    bias = matrix(inputs.bias, 0, i, like), matrix(inputs.bias, 1, i, like)
    for t in range(n):
        eta[t] = eta_max / (1 + math.exp(-gates[0][0, t] - bias[0][0, 0]))
        x = float(gates[1][0, t] + bias[1][0, 0])
        log_alpha[t] = min(x, 0.0) - math.log1p(math.exp(-abs(x)))  # log σ(x)
    q, q_r = normalized(projections[0].y, 1.0, 1e-12)
    k, k_r = normalized(projections[1].y, 1.0, 1e-12)
    v, v_r = normalized(projections[2].y, 1 / d, 1e-6)
    retention = retain(log_alpha, like)
    momentum = momentum_decays(betas(inputs.momentum, i, inputs, projections[3].x, n), log_alpha, n, like)
    return projections, Chunk(q, q_r, k, k_r, transposed(k), v, v_r, transposed(v), eta, log_alpha, retention,
                              triangular_system(k, eta, log_alpha, retention.ratio, momentum, forgets), momentum)


@inner
def chunk_backward(i, inputs, after_bar, momentum_bar, inputs_bar, options, moved, eta_max, like):
    """From the cotangents of o and of the drifts after one chunk to those of all that goes into it."""
    (adaptive, _, _, forgets, exact), o_bar = options, matrix(inputs.feeds, READ, i, like)
    of, of_bar = memories(inputs, i, like), memories(inputs_bar, i, like, True)
    projections, c = begin(i, inputs, of, adaptive, eta_max, forgets, like)
    (d, width), n, read_bar = c.k.shape, len(o_bar), padded(o_bar)[1]
    bars = Bars(np.zeros(width), np.zeros(width), np.zeros(width), np.zeros_like(c.k), np.zeros_like(c.v),
                momentum_bars(c.momentum))
    rate_bar, RU, EW = np.zeros(width), np.zeros_like(c.system.gram), zeros_if(c.momentum, c.system.gram)
    q_bar = np.zeros_like(c.q)
    if exact:
        accumulate(q_bar, read_bar)
    else:
        _, s, hidden = apply(MEMORY, of[MEMORY], True, c.q)
        apply_backward(MEMORY, of[MEMORY], True, transposed(c.q), s, hidden, read_bar, q_bar, of_bar[MEMORY])
    for m in range(MEMORY + 1):
        if adaptive[m]:
            memory, memory_bar = of[m], of_bar[m]
            L, layer_in, layer_out = learn(m, memory, c, options, moved), memory.layer_in, memory.layer_out
            U_in_bar, U_out_bar, hidden_bar = np.zeros_like(L.U_in), np.zeros_like(L.U_out), np.zeros_like(L.hidden)
            W_in_bar, W_out_bar = zeros_if(c.momentum, L.U_in), zeros_if(c.momentum, L.U_out)
            if m == MEMORY and exact:
                read_in = read(layer_in, L.U_in, L.writes_in, c.k, c.q, c.retention, c.momentum)
                s, x = silu(read_in[0])
                read_out = read(layer_out, L.U_out, L.writes_out, L.hidden, x, c.retention, c.momentum)
                x_bar = np.zeros_like(x)
                read_backward(layer_out, L.U_out, L.writes_out, L.hidden, x, read_out, c.retention, c.momentum,
                              read_bar, U_out_bar, W_out_bar, hidden_bar, x_bar, bars, memory_bar.layer_out)
                inner_bar = times_slope(x_bar, s, x)
                read_backward(layer_in, L.U_in, L.writes_in, c.k, c.q, read_in, c.retention, c.momentum, inner_bar,
                              U_in_bar, W_in_bar, bars.k, q_bar, bars, memory_bar.layer_in)
            learn_backward(m, i, memory, c, L, options, moved, after_bar, momentum_bar, U_in_bar, U_out_bar, W_in_bar,
                           W_out_bar, hidden_bar, RU, EW, rate_bar, bars, memory_bar)
    triangular_system_backward(c.k, c.system, c, forgets, RU, EW, rate_bar, bars, bars.k)
    gate_bar = np.zeros_like(c.k)
    betas_backward(c.momentum, i, projections[3].x, projections[3].x_T, gate_bar, inputs, inputs_bar, bars, n)

    y_bar = (normalized_backward(c.q, c.q_r, 1.0, q_bar), normalized_backward(c.k, c.k_r, 1.0, bars.k),
             normalized_backward(c.v, c.v_r, 1 / d, bars.v), np.zeros_like(projections[3].y),
             np.zeros_like(projections[4].y))
    eta, log_alpha, eta_bar, before_bar, g_bar = c.eta, c.log_alpha, bars.eta, bars.before, bars.g
    bias_bar, log_alpha_bar = (matrix(inputs_bar.bias, 0, i, like), matrix(inputs_bar.bias, 1, i, like)), 0.0
    for t in range(width - 1, -1, -1):
        log_alpha_bar += g_bar[t]
        if t < n:
            y_bar[3][0, t] = eta_bar[t] * eta[t] * (1 - eta[t] / eta_max)
            y_bar[4][0, t] = -log_alpha_bar * math.expm1(log_alpha[t])
            bias_bar[0][0, 0] += y_bar[3][0, t]
            bias_bar[1][0, 0] += y_bar[4][0, t]
        log_alpha_bar += before_bar[t]
    for m in range(5):
        asked, x_bar = projections[m], gate_bar if m in SCALARS else np.zeros_like(c.k)
        apply_backward(m, of[m], adaptive[m], asked.x_T, asked.s, asked.hidden, y_bar[m], x_bar, of_bar[m])
        if m != 3:  # alpha adds to what eta's feed is to be, too
            lay_tokens(x_bar, matrix(inputs_bar.feeds, min(m, 3), i, like))
    for m in range(MEMORY + 1):
        if adaptive[m]:
            weights_backward(of_bar[m])


@jit
def read_spans(first, last, options, eta_max, moved, tables, after, momentum_after, like):
    """Some of the sequences. options: which memories adapt; l2 and so on. moved: which have moved, by span."""
    adaptive, _, _, forgets, exact = options
    for i in range(first, last):
        for p in range(len(moved)):
            inputs, drifts, momenta = of_span(tables, p), after[p], span_if(momentum_after, p)
            of, o = memories(inputs, i, like[i]), matrix(inputs.feeds, READ, i, like[i])
            c = begin(i, inputs, of, adaptive, eta_max, forgets, like[i])[1]
            for m in range(MEMORY + 1):
                if adaptive[m]:
                    L = learn(m, of[m], c, options, moved[p])
                    layer_in, layer_out = of[m].layer_in, of[m].layer_out
                    write(layer_in, L.U_in, L.writes_in, c.k_T, c, matrix(drifts, 2 * m, i, c.k),
                          matrix_if(momenta, 2 * m, i, c.k))
                    write(layer_out, L.U_out, L.writes_out, L.hidden_T, c, matrix(drifts, 2 * m + 1, i, c.k),
                          matrix_if(momenta, 2 * m + 1, i, c.k))
                    if m == MEMORY and exact:
                        x = silu(read(layer_in, L.U_in, L.writes_in, c.k, c.q, c.retention, c.momentum)[0])[1]
                        y = read(layer_out, L.U_out, L.writes_out, L.hidden, x, c.retention, c.momentum)[0]
                        accumulate(y, c.q)
                        lay_tokens(y, o)
            if not exact:
                lay_tokens(apply(MEMORY, of[MEMORY], True, c.q)[0], o)


@jit
def read_spans_backward(first, last, options, eta_max, moved, tables, after_bar, momentum_bar, bars, like):
    """… and back, from the last span to the first"""
    for i in range(first, last):
        for p in range(len(moved) - 1, -1, -1):
            chunk_backward(i, of_span(tables, p), after_bar[p], span_if(momentum_bar, p), of_span(bars, p), options,
                           moved[p], eta_max, like[i])
