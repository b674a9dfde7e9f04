"""The triangular system of a chunk's writes: every write of a layer sees those before it.

Definition: `memory.py::written` and `memory.py::STEPS`.

    U (I + L)ᵀ = E diag(η′),     L_ti = η′_t (g_{t−1}/g_i) z_t·z_i for i < t

A layer's inputs z (F,n) make the system; what is written, U (F,n), is E, what is to be written, solved by it.
"""

from __future__ import annotations

import math

import numpy as np

from kernels.lanes import TILE, dot, load_at, plus, store_at, zero_half
from kernels.records import record
from kernels.runtime import if_given, inner
from kernels.titans.decays import add_to_log_alpha
from kernels.titans.products import add_product, added, dots_of, mask, product, transposed

# ‖z‖², η′, ratio·zᵀz, (I + L)⁻¹, diag(η′)(I + L)⁻ᵀ; with momentum zᵀz
System = record("System", "square rate gram inverse solve plain")


@if_given
def unmasked(momentum, gram):
    """zᵀz, before it is masked"""
    return gram.copy()


@inner
def largest_step(log_alpha, square, forgets):
    """η ≤ (1 + α)/(forgets·‖z‖²): no eigenvalue below −1"""
    return (1 + math.exp(log_alpha)) / (forgets * square + 1e-12)


@inner
def triangular_system(z, eta, log_alpha, ratio, momentum, forgets):
    """I + L, L = diag(η′)(ratio·zᵀz), inverted by rows: x_t = e_t − Σ_{i<t} L_ti x_i.

    η′ = η/(1 + η‖z‖²), or, where a write `forgets` so many times along z, min(η, `largest_step`)
    """
    n, square, gram = z.shape[1], dots_of(z, z), product(z.T, z)
    rate, inverse, plain = np.empty_like(square), np.zeros((n, n), z.dtype), unmasked(momentum, gram)
    minus_L, one = np.empty_like(square), z.dtype.type(1)
    mask(gram, ratio)
    for t in range(n):
        rate[t] = eta[t] / (1 + eta[t] * square[t])
        if forgets:
            rate[t] = min(eta[t], largest_step(log_alpha[t], square[t], forgets))
        for i in range(n):
            minus_L[i] = -rate[t] * gram[t, i]
        for j in range(0, t, TILE // 2):  # four sums at a time, for each waits for what it was before
            x0 = x1 = x2 = x3 = zero_half(rate)
            for i in range(j, t - 3, 4):
                x0 = plus(x0, minus_L[i], load_at(x0, inverse, i, j))
                x1 = plus(x1, minus_L[i + 1], load_at(x0, inverse, i + 1, j))
                x2 = plus(x2, minus_L[i + 2], load_at(x0, inverse, i + 2, j))
                x3 = plus(x3, minus_L[i + 3], load_at(x0, inverse, i + 3, j))
            for i in range(t - (t - j) % 4, t):
                x0 = plus(x0, minus_L[i], load_at(x0, inverse, i, j))
            store_at(inverse, t, j, plus(plus(x0, one, x1), one, plus(x2, one, x3)))
        inverse[t, t] = 1
    solve = transposed(inverse)  # E diag(η′)(I + L)⁻ᵀ = E solve
    for i in range(n):
        for t in range(n):
            solve[i, t] *= rate[i]
    return System(square, rate, gram, inverse, solve, plain)


@inner
def triangular_system_backward(z, system, c, forgets, RU, EW, rate_bar, bars, z_bar):
    """L̄ = −tril(R̄ᵀU): to the decays, to η′ and by it to η, and to z by the Gram matrix and ‖z‖²."""
    n, rate, to_z, g_bar = z.shape[1], system.rate, np.empty_like(RU), np.zeros_like(system.rate)
    gram, ratio, g = system.gram, c.retention.ratio, bars.g
    for t in range(n):
        total, rate_t = dot(RU[t], gram[t]), rate[t]
        for i in range(n):  # from t on the Gram matrix and the ratio are 0
            g_bar[i] += RU[t, i] * gram[t, i] * rate_t
            to_z[t, i] = -RU[t, i] * rate_t * ratio[t, i]
        rate_bar[t] -= total
        bars.before[t] -= total * rate_t
        if forgets:
            printed_step_backward(t, c, system.square[t], forgets, rate_bar[t], bars, to_z)
        else:
            bars.eta[t] += rate_bar[t] * (1 - rate_t * system.square[t]) ** 2
            to_z[t, t] = -rate_bar[t] * rate_t ** 2
    for t in range(n):
        g[t] += g_bar[t]
    forgotten_momentum_backward(c.momentum, EW, system.plain, bars.momentum, to_z)
    add_product(z_bar, z, added(to_z, transposed(to_z)))


@inner
def printed_step_backward(t, c, square, forgets, rate_bar, bars, to_z):
    """… where η′ is the smaller of η and (1 + α)/(forgets·‖z‖²)"""
    most = largest_step(c.log_alpha[t], square, forgets)
    if c.eta[t] <= most:
        bars.eta[t] += rate_bar
    else:
        per_square = 1 / (forgets * square + 1e-12)
        add_to_log_alpha(bars, t, rate_bar * per_square * math.exp(c.log_alpha[t]))
        to_z[t, t] = -rate_bar * most * per_square * forgets


@if_given
def forgotten_momentum_backward(momentum, EW, plain, bars, to_z):
    """Of what is forgotten of momentum, −W (K·zᵀz)ᵀ, to K and to the Gram matrix; EW = ĒᵀW"""
    K, K_bar = momentum.K, bars.K
    for t in range(len(EW)):
        for i in range(t):
            K_bar[t, i] -= EW[t, i] * plain[t, i]
            to_z[t, i] -= EW[t, i] * K[t, i]
