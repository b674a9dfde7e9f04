"""What is left of a write some tokens later: products of retentions α, and with momentum of β.

Definition: `memory.py::written`, and with momentum `memory.py::ratios` and `momentum_chunked`. With g_t = α_1 ⋯ α_t:

    S_t = g_t S₀ + K_{t+1,0} N₀ + Σ_{i≤t} ((g_t/g_i) u_i + K_{t+1,i} w_i) z_iᵀ,     K_{t+1,i} = α_t K_ti + B_ti
    N_t = B_t0 N₀ + Σ_{i≤t} B_ti w_i z_iᵀ,                                          B_ti = β_t ⋯ β_{i+1}
"""

from __future__ import annotations

import math

import numpy as np

from kernels.lanes import exp
from kernels.records import record
from kernels.runtime import if_given, inner
from kernels.titans.products import transposed

Retention = record("Retention", "ratio ratio_T before after whole")  # g_{t−1}/g_i, its ᵀ, g_{t−1}, g_C/g_i, g_C
Momentum = record("Momentum", "alpha beta B B_0 K K_T K_0 K_C K_C0 written")  # _0: of N₀; _C: in S_C
MomentumBars = record("MomentumBars", "B_C K K_0 K_C ends")  # cotangents; of B's last row, and of B_C0 and K_C0


@inner
def retain(log_alpha, like):
    """All products of α in a chunk, each ≤ 1."""
    n, log_g = len(log_alpha), log_alpha.copy()
    for t in range(1, n):
        log_g[t] += log_g[t - 1]
    ratio, before, after = np.zeros((n, n), like.dtype), np.empty(n, like.dtype), np.empty(n, like.dtype)
    for t in range(n):
        log_before = log_g[t] - log_alpha[t]
        before[t], after[t] = math.exp(log_before), math.exp(log_g[n - 1] - log_g[t])
        for i in range(t):
            ratio[t, i] = exp(like.dtype.type(log_before - log_g[i]))
    return Retention(ratio, transposed(ratio), before, after, like.dtype.type(math.exp(log_g[n - 1])))


@inner
def add_to_log_alpha(bars, t, log_alpha_bar):
    """log α_t = log g_t − log g_{t−1}"""
    bars.g[t] += log_alpha_bar
    bars.before[t] -= log_alpha_bar


@if_given
def momentum_decays(beta, log_alpha, written, like):
    """B and K of a chunk in which so many tokens are written; those that fill it up change neither N nor S."""
    width = len(beta)
    alpha, B, K = np.empty(width), np.zeros((width, width), like.dtype), np.zeros((width, width), like.dtype)
    B_0, K_0, K_C, K_C0 = np.ones(width), np.zeros(width), np.zeros(width), 0.0
    for t in range(width):
        alpha[t] = math.exp(log_alpha[t])
        if t:
            for i in range(t):
                B[t, i] = beta[t] * B[t - 1, i]
                K[t, i] = K_C[i]
        B[t, t], B_0[t], K_0[t] = 1, beta[t] * B_0[max(t - 1, 0)], K_C0
        if t < written:
            for i in range(t + 1):
                K_C[i] = alpha[t] * K_C[i] + B[t, i]
            K_C0 = alpha[t] * K_C0 + B_0[t]
    return Momentum(alpha, beta, B, B_0, K, transposed(K), K_0, K_C, K_C0, written)


@if_given
def momentum_decays_backward(momentum, bars, beta_bar):
    """K̄_t = α_t K̄_{t+1}, B̄_t = β_{t+1} B̄_{t+1} + K̄_{t+1}, beside what reads, errors and N_C ask; to log α and log β"""
    K, B, alpha, beta, K_bar, B_bar = (momentum.K, momentum.B, momentum.alpha, momentum.beta, bars.momentum.K_C,
                                       bars.momentum.B_C)
    K_asked = bars.momentum.K
    B_0_bar, K_0_bar = bars.momentum.ends[0], bars.momentum.ends[1]
    for t in range(len(beta) - 1, -1, -1):
        if t < momentum.written:  # K_bar is of what stands in S_t
            along = K_0_bar * momentum.K_0[t]
            for i in range(t):
                along += K_bar[i] * K[t, i]
            add_to_log_alpha(bars, t, along * alpha[t])
            B_0_bar += K_0_bar
            K_0_bar = alpha[t] * K_0_bar + bars.momentum.K_0[t]
            for i in range(t + 1):
                B_bar[i] += K_bar[i]
                K_bar[i] = alpha[t] * K_bar[i] + K_asked[t, i]
        along = B_0_bar * momentum.B_0[t]
        for i in range(t):
            along += B_bar[i] * B[t, i]
        beta_bar[t] = along
        for i in range(t):
            B_bar[i] *= beta[t]
        B_0_bar *= beta[t]


@if_given
def momentum_bars(momentum):
    """Nothing yet"""
    return MomentumBars(np.zeros(len(momentum.K_C)), np.zeros_like(momentum.K), np.zeros_like(momentum.K_0),
                        np.zeros_like(momentum.K_C), np.zeros(2))


@if_given
def zeros_if(momentum, x):
    """Zeros like x, where there is momentum"""
    return np.zeros_like(x)
