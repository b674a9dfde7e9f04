"""What a memory learns in a chunk: from k and v by its errors to the writes of both layers, and all the way back.

Definitions: `titans.py::SelfModifyingTitans.target` [A 84], `errors` [A 85] and `write` [A 88].

    W₂: z = k, δ_in = σ′·W₁ᵀδ;     W₁: z = σ(W₂k), δ = M(k) − v̂ or −v̂
    E = −(δ·min(1, √limit/‖δ‖) + M₀z_t + g_{t−1} S₀z_t),     S_C = g_C S₀ + Σ_i (g_C/g_i) u_i z_iᵀ

With momentum the clipped error c goes through N, w = η′c, and E is what is forgotten alone (decays.py).
_in belongs to the inner layer W₂, _out to the outer W₁; δ without a suffix is W₁'s. G = S̄_C, Q = N̄_C.
"""

from __future__ import annotations

import math

import numpy as np

from kernels.lanes import dot
from kernels.records import record
from kernels.runtime import if_given, inner
from kernels.titans.decays import zeros_if
from kernels.titans.products import (
    accumulate,
    add_dots,
    add_product,
    added,
    by_token,
    dots_of,
    masked,
    negative,
    normalized,
    normalized_backward,
    product,
    scale_tokens,
    silu,
    subtracted,
    tanh,
    tanh_backward,
    times_slope,
    transposed,
)
from kernels.titans.reads import apply, apply_backward, skip_backward
from kernels.titans.systems import triangular_system, triangular_system_backward
from kernels.titans.tables import MEMORY, SCALARS, matrix, matrix_if

Learned = record("Learned", "s hidden hidden_T s_v hidden_v target r delta D delta_in "
                                "SZ_in E_in U_in SZ_out E_out U_out system_out writes_in writes_out")
MomentumWrites = record("MomentumWrites", "c w NZ")  # of a layer with momentum


@inner
def learn(m, memory, c, options, moved):
    """What memory m writes: in W₂ z = k, δ_in = σ′·W₁ᵀδ; in W₁ z = σ(W₂k), δ = M(k) − v̂ or −v̂."""
    (_, l2, value_targets, forgets, _), retention, k, v = options, c.retention, c.k, c.v
    layer_in, layer_out = memory.layer_in, memory.layer_out
    MZ_in, SZ_in = product(layer_in.initial, k), product(layer_in.drift, k)
    PZ_in = product(layer_in.start, k) if moved[m] else SZ_in
    s, hidden = silu(added(MZ_in, PZ_in))
    MZ_out, SZ_out = product(layer_out.initial, hidden), product(layer_out.drift, hidden)
    target, s_v, hidden_v, r = v, v, v, retention.before
    if m in SCALARS or not value_targets:
        target, s_v, hidden_v = apply(m, memory, True, v)
    if m in SCALARS:
        target = tanh(target)
    elif not value_targets:
        target, r = normalized(target, 1 / len(target), 1e-6)
    if l2:
        PZ_out = product(layer_out.start, hidden) if moved[m] else SZ_out
        delta = missed(MZ_out, PZ_out, product(memory.readout, k) if m in SCALARS else k, target)
    else:
        delta = negative(target)
    D = product(memory.weights_out.T, delta)
    delta_in = times_slope(D, s, hidden)
    system_out = triangular_system(hidden, c.eta, c.log_alpha, retention.ratio, c.momentum, forgets)
    writes_in = momentum_writes(c.momentum, layer_in, k, delta_in, clip_limit(m, delta_in), c.system)
    writes_out = momentum_writes(c.momentum, layer_out, hidden, delta, clip_limit(m, delta), system_out)
    E_in = errors(delta_in, clip_limit(m, delta_in), MZ_in, SZ_in, retention.before, c.system, writes_in, c.momentum)
    E_out = errors(delta, clip_limit(m, delta), MZ_out, SZ_out, retention.before, system_out, writes_out, c.momentum)
    U_in, U_out = product(E_in, c.system.solve, 1), product(E_out, system_out.solve, 1)
    return Learned(s, hidden, transposed(hidden), s_v, hidden_v, target, r, delta, D, delta_in,
                   SZ_in, E_in, U_in, SZ_out, E_out, U_out, system_out, writes_in, writes_out)


@inner
def learn_backward(m, i, memory, c, L, options, moved, after_bar, momentum_bar, U_in_bar, U_out_bar, W_in_bar,
                   W_out_bar, hidden_bar, RU, EW, rate_bar, bars, memory_bar):
    """`learn` and `write`, line by line from the last."""
    (_, l2, value_targets, forgets, _), retention, k = options, c.retention, c.k
    layer_in_bar, layer_out_bar = memory_bar.layer_in, memory_bar.layer_out
    one, two = k.dtype.type(1), k.dtype.type(2)
    RU_out, rate_out_bar, EW_out = np.zeros_like(RU), np.zeros_like(rate_bar), zeros_if(c.momentum, RU)
    G_in, G_out = matrix(after_bar, 2 * m, i, k), matrix(after_bar, 2 * m + 1, i, k)
    Q_in, Q_out = matrix_if(momentum_bar, 2 * m, i, k), matrix_if(momentum_bar, 2 * m + 1, i, k)
    E_in_bar, GZ_in = solve_backward(G_in, k, L.E_in, L.U_in, c.system, retention, U_in_bar, RU, rate_bar, bars)
    E_out_bar, GZ_out = solve_backward(G_out, L.hidden, L.E_out, L.U_out, L.system_out, retention, U_out_bar, RU_out,
                                       rate_out_bar, bars)
    c_in_bar = momentum_writes_backward(
        memory.layer_in, G_in, Q_in, k, c.k_T, GZ_in, E_in_bar, W_in_bar, EW, L.writes_in, c.system, c.momentum,
        rate_bar, bars, layer_in_bar, bars.k)
    c_out_bar = momentum_writes_backward(
        memory.layer_out, G_out, Q_out, L.hidden, L.hidden_T, GZ_out, E_out_bar, W_out_bar, EW_out, L.writes_out,
        L.system_out, c.momentum, rate_out_bar, bars, layer_out_bar, hidden_bar)
    delta_in_bar = surprise_backward(L.delta_in, clip_limit(m, L.delta_in), c_in_bar)
    delta_bar = surprise_backward(L.delta, clip_limit(m, L.delta), c_out_bar)
    D_bar = times_slope(delta_in_bar, L.s, L.hidden)
    add_product(delta_bar, memory.weights_out, D_bar)
    add_product(memory_bar.weights_out, L.delta, transposed(D_bar))
    made_bar = delta_bar if l2 else np.zeros_like(delta_bar)
    if l2:
        skip_backward(m, memory, c.k_T, made_bar, bars.k, memory_bar)
    target_bar = negative(delta_bar)
    if value_targets and m not in SCALARS:
        accumulate(bars.v, target_bar)
    else:
        raw_bar = tanh_backward(L.target, target_bar) if m in SCALARS else (
            normalized_backward(L.target, L.r, 1 / len(target_bar), target_bar))
        apply_backward(m, memory, True, c.v_T, L.s_v, L.hidden_v, raw_bar, bars.v, memory_bar)
    write_backward(memory.layer_out, G_out, L.hidden, L.hidden_T, onward(L.U_out, retention, L.writes_out, c.momentum),
                   L.SZ_out, E_out_bar, made_bar, moved[m], retention, hidden_bar, bars, layer_out_bar)
    triangular_system_backward(L.hidden, L.system_out, c, forgets, RU_out, EW_out, rate_out_bar, bars, hidden_bar)
    inner_bar = times_slope(hidden_bar, L.s, L.hidden)
    gates, hidden, D = L.s, L.hidden, L.D
    for j in range(len(inner_bar)):
        for t in range(inner_bar.shape[1]):  # σ″ = (1 − s)(2s + y − 2ys), y = x s
            s, y = gates[j, t], hidden[j, t]
            inner_bar[j, t] += delta_in_bar[j, t] * D[j, t] * (one - s) * (two * s + y - two * y * s)
    write_backward(memory.layer_in, G_in, k, c.k_T, onward(L.U_in, retention, L.writes_in, c.momentum), L.SZ_in,
                   E_in_bar, inner_bar, moved[m], retention, bars.k, bars, layer_in_bar)


@inner
def missed(MZ, PZ, skip, target):
    """δ = M(k) − v̂"""
    delta = np.empty_like(target)
    for i in range(delta.shape[0]):
        for t in range(delta.shape[1]):
            delta[i, t] = MZ[i, t] + PZ[i, t] + skip[i, t] - target[i, t]
    return delta


@inner
def clip_limit(m, delta):
    """The ‖δ‖² to which an error is clipped: an RMS of 1 in the main memory, a length of 1 in those that project"""
    return len(delta) if m == MEMORY else 1


@inner
def clip_factor(delta, limit):
    """min(1, √limit/‖δ‖)"""
    clip, one = dots_of(delta, delta), delta.dtype.type(1)
    for t in range(len(clip)):
        clip[t] = min(one, 1 / math.sqrt(clip[t] / limit + 1e-12))
    return clip


@inner
def clipped(delta, limit):
    """c = −δ·min(1, √limit/‖δ‖)"""
    return negative(by_token(delta, clip_factor(delta, limit)))


@inner
def errors(delta, limit, MZ, SZ, before, system, writes, momentum):
    """E; with momentum −(M₀z + g_{t−1} S₀z + K_t0 N₀z + Σ_{i<t} K_ti (z_i·z_t) w_i)"""
    if momentum is None:
        return surprise(delta, limit, MZ, SZ, before)
    E, K_0, NZ = product(writes.w, masked(system.plain, momentum.K_T), 1), momentum.K_0, writes.NZ
    for i in range(E.shape[0]):
        for t in range(E.shape[1]):
            E[i, t] = -(E[i, t] + MZ[i, t] + before[t] * SZ[i, t] + K_0[t] * NZ[i, t])
    return E


@inner
def surprise(delta, limit, MZ, SZ, before):
    """E = −(δ·min(1, √limit/‖δ‖) + M₀z + g_{t−1} S₀z)"""
    E, clip = np.empty_like(delta), clip_factor(delta, limit)
    for i in range(delta.shape[0]):
        for t in range(delta.shape[1]):
            E[i, t] = -(delta[i, t] * clip[t] + MZ[i, t] + before[t] * SZ[i, t])
    return E


@inner
def surprise_backward(delta, limit, E_bar):
    """δ̄ = −Ē, and where δ was clipped −(Ē − δ ⟨Ē, δ⟩/‖δ‖²) √limit/‖δ‖"""
    square, dots = dots_of(delta, delta), dots_of(delta, E_bar)
    delta_bar, scale = np.empty_like(delta), np.ones_like(square)
    for t in range(len(scale)):
        excess = square[t] / limit + 1e-12
        if excess > 1:
            scale[t], dots[t] = 1 / math.sqrt(excess), dots[t] / (limit * excess)
        else:
            dots[t] = 0
    for i in range(len(delta)):
        for t in range(delta.shape[1]):
            delta_bar[i, t] = -scale[t] * (E_bar[i, t] - delta[i, t] * dots[t])
    return delta_bar


@if_given
def momentum_writes(momentum, layer, z, delta, limit, system):
    """c, w and N₀z"""
    c = clipped(delta, limit)
    return MomentumWrites(c, by_token(c, system.rate), product(layer.momentum, z))


@inner
def momentum_writes_backward(layer, G, Q, z, z_T, GZ, E_bar, W_bar, EW, writes, system, momentum, rate_bar,
                             bars, layer_bar, z_bar):
    """From S̄_C, N̄_C, Ē and what reads ask of w, to N₀, z, K, B, η′ and c̄; without momentum c stands in E."""
    if momentum is None:
        return E_bar
    w, to, N, N_bar = writes.w, bars.momentum, layer.momentum, layer_bar.momentum
    QZ = product(Q, z)
    add_dots(to.K_C, GZ, w)
    add_dots(to.B_C, QZ, w)
    to.ends[0] += dot(Q.reshape(-1), N.reshape(-1))
    to.ends[1] += dot(G.reshape(-1), N.reshape(-1))
    accumulate(W_bar, by_token(GZ, momentum.K_C))
    accumulate(W_bar, by_token(QZ, momentum.B[-1]))
    minus_E_bar = negative(E_bar)
    add_product(W_bar, minus_E_bar, masked(system.plain, momentum.K), -1)
    add_product(EW, E_bar.T, w)
    NZ_bar = by_token(minus_E_bar, momentum.K_0)
    add_dots(to.K_0, minus_E_bar, writes.NZ)
    K_C0, B_C0 = momentum.K_C0, momentum.B_0[-1]
    for j in range(N.shape[0]):
        for p in range(N.shape[1]):
            N_bar[j, p] += K_C0 * G[j, p] + B_C0 * Q[j, p]
    add_product(N_bar, NZ_bar, z_T)
    add_product(z_bar, N.T, NZ_bar)
    add_product(z_bar, Q.T, by_token(w, momentum.B[-1]))
    add_dots(rate_bar, W_bar, writes.c)
    return by_token(W_bar, system.rate)


@inner
def onward(U, retention, writes, momentum):
    """What of U, and with momentum of w, stands in S_C"""
    stands = by_token(U, retention.after)
    if momentum is not None:
        accumulate(stands, by_token(writes.w, momentum.K_C))
    return stands


@inner
def write(layer, U, writes, z_T, c, S_C, N_C):
    """S_C = g_C S₀ + Σ_i (g_C/g_i) u_i z_iᵀ"""
    S, whole = layer.drift, c.retention.whole
    for j in range(S.shape[0]):
        for p in range(S.shape[1]):
            S_C[j, p] = whole * S[j, p]
    write_momentum(c.momentum, layer, writes, z_T, S_C, N_C)
    add_product(S_C, onward(U, c.retention, writes, c.momentum), z_T)


@if_given
def write_momentum(momentum, layer, writes, z_T, S_C, N_C):
    """N_C = B_C0 N₀ + Σ_i B_Ci w_i z_iᵀ, and S_C += K_C0 N₀"""
    N, K_C0, B_C0 = layer.momentum, momentum.K_C0, momentum.B_0[-1]
    for j in range(N.shape[0]):
        for p in range(N.shape[1]):
            N_C[j, p] = B_C0 * N[j, p]
            S_C[j, p] += K_C0 * N[j, p]
    add_product(N_C, by_token(writes.w, momentum.B[-1]), z_T)


@inner
def solve_backward(G, z, E, U, system, retention, U_bar, RU, rate_bar, bars):
    """From S̄_C = G and what reads ask of U to R̄ = Ū(I + L)⁻¹, of R = E diag(η′), and to Ē; and Gz."""
    plain = product(G, z)
    GZ = by_token(plain, retention.after)
    written, g_bar = dots_of(GZ, U), bars.g
    for t in range(len(written)):
        g_bar[t] -= written[t]
        g_bar[-1] += written[t]
    accumulate(U_bar, GZ)
    R_bar = product(U_bar, system.inverse, -1)
    add_product(RU, R_bar.T, U)
    add_dots(rate_bar, R_bar, E)
    scale_tokens(R_bar, system.rate)
    return R_bar, plain


@inner
def write_backward(layer, G, z, z_T, onward, SZ, E_bar, made_bar, moved, retention, z_bar, bars, layer_bar):
    """From Ē, from G and from the cotangent of the prediction W z, to z, S₀, P and M₀."""
    S, S_bar, before, dots = layer.drift, layer_bar.drift, retention.before, dots_of(E_bar, SZ)
    for t in range(len(dots)):
        bars.before[t] -= before[t] * dots[t]
    MZ_bar = subtracted(made_bar, E_bar)
    scale_tokens(E_bar, before)
    if moved:
        add_product(z_bar, layer.start.T, made_bar)
        add_product(layer_bar.start, made_bar, z_T)
        SZ_bar = negative(E_bar)
    else:
        SZ_bar = subtracted(made_bar, E_bar)
    whole = retention.whole
    for j in range(S.shape[0]):
        for p in range(S.shape[1]):
            S_bar[j, p] += whole * G[j, p]
    bars.g[-1] += whole * dot(G.reshape(-1), S.reshape(-1))
    add_product(z_bar, layer.initial.T, MZ_bar)
    add_product(z_bar, S.T, SZ_bar)
    add_product(z_bar, G.T, onward)
    add_product(layer_bar.initial, MZ_bar, z_T)
    add_product(S_bar, SZ_bar, z_T)
