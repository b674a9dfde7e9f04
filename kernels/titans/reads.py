"""A memory as a function, and the main memory's reads while it is written.

Definitions: `titans.py::SelfModifyingTitans.memory`; `memory.py::chunked` and `momentum_chunked` for reads.

    M(x) = x + W₁ σ(W₂ x),  of a scalar memory r·x + W₁ σ(W₂ x)
    y_t = M₀x_t + S_{t−1}x_t,     S_{t−1} = g_{t−1} S₀ + Σ_{i<t} (g_{t−1}/g_i) u_i z_iᵀ  (decays.py, with momentum)
"""

from __future__ import annotations

from kernels.lanes import dot
from kernels.runtime import if_given, inner
from kernels.titans.products import (
    accumulate,
    add_dots,
    add_product,
    by_token,
    mask,
    masked,
    product,
    silu,
    times_slope,
    transposed,
)
from kernels.titans.systems import unmasked
from kernels.titans.tables import SCALARS


@inner
def apply(m, memory, adaptive, x):
    """M(x) = x + W₁ σ(W₂ x), in a scalar memory r·x + W₁ σ(W₂ x); s and σ(W₂ x)"""
    y, s, hidden = x, x, x  # one type on every path
    if m in SCALARS:
        y = product(memory.readout, x)
    if adaptive:
        s, hidden = silu(product(memory.weights_in, x))
        skip, y = y, product(memory.weights_out, hidden)
        accumulate(y, skip)
    return y, s, hidden


@inner
def apply_backward(m, memory, adaptive, x_T, s, hidden, y_bar, x_bar, memory_bar):
    skip_backward(m, memory, x_T, y_bar, x_bar, memory_bar)
    if adaptive:
        inner_bar = times_slope(product(memory.weights_out.T, y_bar), s, hidden)
        add_product(x_bar, memory.weights_in.T, inner_bar)
        add_product(memory_bar.weights_in, inner_bar, x_T)
        add_product(memory_bar.weights_out, y_bar, transposed(hidden))


@inner
def skip_backward(m, memory, x_T, y_bar, x_bar, memory_bar):
    """… of x, or of r·x"""
    if m in SCALARS:
        add_product(x_bar, memory.readout.T, y_bar)
        add_product(memory_bar.readout, y_bar, x_T)
    else:
        accumulate(x_bar, y_bar)


@inner
def read(layer, U, writes, z, x, retention, momentum):
    """y_t = M₀x_t + g_{t−1} S₀x_t + Σ_{i<t} ratio_ti (z_i·x_t) u_i;  S₀x, ratio·zᵀx (i,t); with momentum N₀x, zᵀx"""
    SX, mix = product(layer.drift, x), product(z.T, x)
    y = product(layer.initial, x)
    accumulate(y, by_token(SX, retention.before))
    plain = unmasked(momentum, mix)
    mask(mix, retention.ratio_T)
    add_product(y, U, mix, 1)
    return y, SX, mix, read_momentum(momentum, layer, writes, x, y, plain), plain


@if_given
def read_momentum(momentum, layer, writes, x, y, plain):
    """y_t += K_t0 N₀x_t + Σ_{i<t} K_ti (z_i·x_t) w_i;  N₀x"""
    NX = product(layer.momentum, x)
    accumulate(y, by_token(NX, momentum.K_0))
    add_product(y, writes.w, masked(plain, momentum.K_T), 1)
    return NX


@inner
def read_backward(layer, U, writes, z, x, read, retention, momentum, y_bar, U_bar, W_bar, z_bar, x_bar, bars,
                  layer_bar):
    _, SX, mix, NX, plain = read
    mix, mix_bar, x_T = transposed(mix), product(y_bar.T, U), transposed(x)  # (t,i)
    add_product(U_bar, y_bar, mix, -1)
    before_bar, g_bar = bars.before, bars.g
    for t in range(len(mix)):
        before_bar[t] += dot(mix_bar[t], mix[t])
        for j in range(len(mix)):  # from t on mix is 0
            g_bar[j] -= mix_bar[t, j] * mix[t, j]
    mask(mix_bar, retention.ratio)
    read_momentum_backward(momentum, layer, writes, x, x_T, y_bar, NX, plain, mix_bar, W_bar, x_bar, bars,
                           layer_bar)
    add_product(z_bar, x, mix_bar, -1)
    add_product(x_bar, z, transposed(mix_bar), 1)
    SX_bar = by_token(y_bar, retention.before)
    add_dots(bars.before, SX_bar, SX)
    add_product(x_bar, layer.initial.T, y_bar)
    add_product(x_bar, layer.drift.T, SX_bar)
    add_product(layer_bar.initial, y_bar, x_T)
    add_product(layer_bar.drift, SX_bar, x_T)


@if_given
def read_momentum_backward(momentum, layer, writes, x, x_T, y_bar, NX, plain, mix_bar, W_bar, x_bar, bars,
                           layer_bar):
    """From ȳ to w, K, N₀, x and zᵀx"""
    to, mix, along = bars.momentum, transposed(plain), product(y_bar.T, writes.w)  # (t,i)
    add_product(W_bar, y_bar, masked(mix, momentum.K), -1)
    K, K_bar = momentum.K, to.K
    for t in range(len(along)):
        for j in range(t):
            K_bar[t, j] += along[t, j] * mix[t, j]
            mix_bar[t, j] += along[t, j] * K[t, j]
    add_dots(to.K_0, y_bar, NX)
    NX_bar = by_token(y_bar, momentum.K_0)
    add_product(x_bar, layer.momentum.T, NX_bar)
    add_product(layer_bar.momentum, NX_bar, x_T)
