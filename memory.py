"""How does a memory learn while it reads?  One family of rules, from linear attention to self-modifying Titans.

A memory is a function with its own weights. Reading is a forward pass, `M k`; writing is a step of learning on the pair
(k, v). The first half of this file is that step in one line of algebra, with every rule of the paper as a setting of
it; the second half is two layers of a network made of such memories:

    MatrixMemory          one matrix per head, written at every token: linear attention, DeltaNet, gated DeltaNet, DGD
    SelfModifyingTitans   every projection is itself a memory, and generates its own targets [A 83–93]

Both follow `y, state = mixer(x, state)`. The state of a sequence is what its memories have drifted from the initial
states, which the outer optimiser learns *through* all the writes in between.

Legend: B batch, T time, n tokens of one call, D width, H heads, d head size, h hidden size of a memory, C chunk.
        S (…,d_v,d_k) a matrix memory; a_t retention, b_t how much is forgotten along k_t, c_t how much is written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

import kernels
from autograd import (
    Tensor,
    concatenate,
    cumsum,
    exp,
    fused,
    mean,
    minimum,
    normalize,
    rms_normalize,
    sigmoid,
    silu,
    softplus,
    solve_triangular,
    sqrt,
    stack,
    sum,
    swapaxes,
    tanh,
    tensor,
    where,
)
from layers import CausalConv, Linear, Module, Parameter, Rng, merge_heads, normal, split_heads

if TYPE_CHECKING:
    from hope import Config

# The learning rule ----------------------------------------------------------------------------------------------------
#
#     o_t = S_{t−1} q_t,      S_t = S_{t−1}(a_t I − b_t k_t k_tᵀ) + c_t v_t k_tᵀ                       read, then write
#
# in three forms that agree to rounding. q, k (…,T,d_k), v (…,T,d_v), log_a, b, c (…,T), S (…,d_v,d_k).


def delta_rule(q: Tensor | None, k: Tensor, v: Tensor, log_a: Tensor, b: Tensor, c: Tensor, S: Tensor,
               form: str = "fused") -> tuple[Tensor, Tensor]:
    """All reads o (…,T,d_v) and the last state S_T, in the form named: recurrent, chunked (any order) or fused.

    Without queries nothing is read, and o is v̄-shaped nonsense that no one should use.
    """
    return FORMS[form](k if q is None else q, k, v, log_a, b, c, S)


def recurrent(q: Tensor, k: Tensor, v: Tensor, log_a: Tensor, b: Tensor, c: Tensor, S: Tensor
              ) -> tuple[Tensor, Tensor]:
    """The definition, token by token."""
    reads = []
    for t in range(k.shape[-2]):
        read, key, value = (x[..., t, :, None] for x in (q, k, v))  # columns
        a, forget, write = (x[..., t, None, None] for x in (exp(log_a), b, c))
        reads.append((S @ read)[..., 0])
        S = S * a - forget * (S @ key) @ key.mT + write * value @ key.mT
    return (stack(reads, axis=-2) if reads else v * 1), S


def chunked(q: Tensor, k: Tensor, v: Tensor, log_a: Tensor, b: Tensor, c: Tensor, S: Tensor,
            chunk: int = 64) -> tuple[Tensor, Tensor]:
    """The same, exactly, a chunk at a time: one triangular solve instead of C rank-one updates.

        (I + L) U = diag(c) V − diag(b·g_{t−1}) K S₀ᵀ,   L_ti = b_t (g_{t−1}/g_i) k_t·k_i  (i < t),   g_t = ∏_{i≤t} a_i
        o_t = g_{t−1} S₀ q_t + Σ_{i<t} (g_{t−1}/g_i)(q_t·k_i) u_i,      S_C = g_C S₀ + Σ_i (g_C/g_i) u_i k_iᵀ
    """
    reads = []
    for t in range(0, k.shape[-2], chunk):
        Q, K, V = (x[..., t:t + chunk, :] for x in (q, k, v))
        log_at, forget, write = (x[..., t:t + chunk] for x in (log_a, b, c))
        log_g = cumsum(log_at, axis=-1)
        before = log_g - log_at  # log g_{t−1}
        earlier = np.tril(np.ones((K.shape[-2],) * 2, dtype=bool), -1)
        # masked before the exponential: g_{t−1}/g_i for i ≥ t may overflow
        ratio = exp(where(earlier, before[..., :, None] - log_g[..., None, :], -np.inf))
        U = solve_triangular(K @ K.mT * ratio * forget[..., None],
                             write[..., None] * V - (forget * exp(before))[..., None] * (K @ S.mT), unit=True)
        reads.append(exp(before)[..., None] * (Q @ S.mT) + (Q @ K.mT * ratio) @ U)
        last = log_g[..., -1:]
        S = exp(last)[..., None] * S + (U * exp(last - log_g)[..., None]).mT @ K
    return (concatenate(reads, axis=-2) if reads else v * 1), S


@fused(reference="memory.chunked (form='chunked')")
def fused_delta_rule(q, k, v, log_a, b, c, S):
    """The same in one compiled pass over the tokens, with a hand-written backward pass (`kernels.delta_rule`)."""
    arrays = [_flat(x.data, 2) for x in (q, k, v)] + [_flat(x.data, 1) for x in (log_a, b, c)] + [_flat(S.data, 2)]
    o, last = kernels.launch("delta_rule", *arrays)

    def backward(o_bar, last_bar):
        grads = kernels.launch("delta_rule_backward", *arrays, _flat(o_bar, 2), _flat(last_bar, 2))
        return [np.reshape(g, x.shape) for g, x in zip(grads, (q, k, v, log_a, b, c, S), strict=True)]
    return (np.reshape(o, v.shape), np.reshape(last, S.shape)), backward


def _flat(x: Any, kept: int) -> Any:
    """All axes but the last `kept` in one, laid out contiguously."""
    return np.ascontiguousarray(np.reshape(x, (-1, *x.shape[x.ndim - kept:])))


FORMS = {"recurrent": recurrent, "chunked": chunked, "fused": fused_delta_rule}

# What the mixers share ------------------------------------------------------------------------------------------------

def half_lives(heads: int) -> np.ndarray:
    """Retention at the start: α = 2^(−1/half-life), half-lives 16 … 4,096 tokens spread geometrically.  → logits (H,)"""
    lives = 2.0 ** (np.linspace(4, 12, heads) if heads > 1 else np.array([8.0]))
    alpha = 2.0 ** (-1 / lives)
    return np.log(alpha / (1 - alpha)).astype(np.float32)


def log_sigmoid(x: Tensor) -> Tensor:
    """log σ(x), exact near 0: a retention of 0.9998 keeps its digits."""
    return -softplus(-x)


class Mixer(Module):
    """A causal convolution, slow linear maps that feed the heads, a memory in between (the subclass), an output map."""

    def __init__(self, rng: Rng | None, config: Config, feeds: tuple[str, ...]):
        self.heads = config.heads
        self.conv = CausalConv(rng, config.width)
        self.feed = {name: Linear(rng, config.width, config.width) for name in feeds}
        self.output = Linear(rng, config.width, config.width, (2 * config.layers) ** -0.5)

    def feeds(self, x: Tensor, tail: Tensor | None) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """What each memory is asked with, per head (B,H,T,d); the convolved input (B,T,D); its next tail."""
        x, tail = self.conv(x, tail)
        return {name: split_heads(f(x), self.heads) for name, f in self.feed.items()}, x, tail

    def merge(self, reads: Tensor) -> Tensor:
        """(B,H,T,d) → (B,T,D), every head brought to one scale first"""
        return self.output(merge_heads(rms_normalize(reads)))


# One matrix per head, written at every token --------------------------------------------------------------------------

RULES = {  # (log a, b, c) from the gates (log α, η) of a token
    "linear":    lambda log_alpha, eta: (0.0, 0.0, 1.0),                             # Hebbian [A 14–18, 64; N 12–15]
    "retention": lambda log_alpha, eta: (log_alpha, 0.0, 1.0),                       # Hebbian with retention [A 5]
    "delta":     lambda log_alpha, eta: (0.0, eta, eta),                             # DeltaNet [A 65]
    "gated":     lambda log_alpha, eta: (log_alpha, exp(log_alpha) * eta, eta),      # gated DeltaNet
    "dgd":       lambda log_alpha, eta: (log_alpha, proximal(eta), proximal(eta)),   # u = v: ⟨Mk, v⟩ [A 92–93]
    "dgd-l2":    lambda log_alpha, eta: (log_alpha, proximal(eta) * 2, proximal(eta)),  # u = v − Mk: ½‖Mk − v‖² [A 88]
}
GATES = {"linear": (), "retention": ("alpha",), "delta": ("eta",)}  # what a rule lets the outer optimiser gate


def proximal(eta: Tensor, squared: Any = 1.0) -> Tensor:
    """The exact step of delta gradient descent, η′ = η/(1 + η‖x‖²) [A 56–57, 113–121]: stable for every η ≥ 0."""
    return eta / (1 + eta * squared)


class MatrixMemory(Mixer):
    """One matrix per head, written at every token by a rule of `RULES`; keys and queries ℓ₂-normalised.

        o_t = S_{t−1} q_t,   S_t = S_{t−1}(a_t I − b_t k_t k_tᵀ) + c_t v_t k_tᵀ

    x (B,T,D) → (B,T,D). State: the convolution's tail and S (B,H,d,d).
    """

    def __init__(self, rng: Rng | None, config: Config, rule: str):
        super().__init__(rng, config, ("q", "k", "v"))
        self.rule, self.form = rule, config.form
        d = config.width // config.heads
        starts = {"alpha": half_lives(config.heads), "eta": np.zeros(config.heads, dtype=np.float32)}
        self.gate = {name: Linear(rng, config.width, config.heads) for name in GATES.get(rule, ("eta", "alpha"))}
        self.bias = {name: Parameter(starts[name]) for name in self.gate}
        self.initial = normal(rng, (config.heads, d, d), d ** -0.5 / 4)

    def start(self, x: Tensor) -> dict[str, Any]:
        """The state before the first token."""
        return {"tail": None, "S": self.initial + np.zeros_like(x.data, shape=(x.shape[0], 1, 1, 1))}

    def __call__(self, x: Tensor, state: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
        state = state or self.start(x)
        feed, x, tail = self.feeds(x, state["tail"])
        gate = {name: swapaxes(f(x) + self.bias[name], axis1=1, axis2=2) for name, f in self.gate.items()}  # (B,H,T)
        log_alpha = log_sigmoid(gate["alpha"]) if "alpha" in gate else None
        eta = sigmoid(gate["eta"]) if "eta" in gate else None
        always = np.zeros_like(x.data, shape=feed["k"].shape[:3])
        log_a, b, c = (always + value for value in RULES[self.rule](log_alpha, eta))
        q, k, v = normalize(feed["q"]), normalize(feed["k"]), rms_normalize(feed["v"])
        reads, S = delta_rule(q, k, v, tensor(log_a), tensor(b), tensor(c), state["S"], self.form)
        return self.merge(reads), {"tail": tail, "S": S}


# Every projection a memory --------------------------------------------------------------------------------------------

SCALARS = ("eta", "alpha")  # memories with one output per head; the others return a vector of the head size

Layers = list[Tensor]  # the weights of one memory: [W] for a matrix, [W₂, W₁] for a network of two layers


class SelfModifyingTitans(Mixer):
    """Five memories per head that learn while they read, each from targets it makes itself [A 83–93].

        q_t = W_q x_t,  k_t = M_k(x_t),  v_t = M_v(x_t),  η_t = M_η(x_t),  α_t = M_α(x_t),  o_t = M_memory(q_t)
        v̂_□ = M_□(v_t);      M_□ ← M_□(α_t I − η′_t z zᵀ) − η′_t δ_□ zᵀ        for every □ ∈ {k, v, η, α, memory}

    where M(x) = x + W₁ σ(W₂ x) [A 89, 91], and the rule is applied to each of its layers with that layer's own input z
    (k_t, then σ(W₂ k_t)) and its own output error δ, the gradient of ½‖M_□(k_t) − v̂_□‖² or −⟨M_□(k_t), v̂_□⟩.
    Within a chunk, projections, targets and errors use the state at its start [A 90]; the writes are exact per token.

    x (B,T,D) → (B,T,D). State: `now`, each memory's drift from its initial state; `start`, the same at the start of the
    present chunk; `position`, how many tokens have been read; the convolution's `tail`. Every sequence has its own.

    CHOICES (PAPER.md): retention pulls to the initial state; η_t = η_max·sigmoid; v and vector targets RMS-normalised,
    scalar targets through tanh; errors clipped to RMS 1; σ = SiLU; η′ is the exact proximal step; a scalar memory has
    a learned vector r in place of the identity, r·x + W₁ σ(W₂ x).
    """

    def __init__(self, rng: Rng | None, config: Config):
        super().__init__(rng, config, ("q", "k", "v", "gate"))
        self.config = config
        H, d = config.heads, config.width // config.heads
        h = config.memory_hidden or d
        self.initial: dict[str, list[Parameter]] = {}
        for name in config.adaptive:
            outputs = 1 if name in SCALARS else d
            self.initial[name] = ([normal(rng, (H, outputs, d), d ** -0.5)] if config.memory == "matrix" else
                                  [normal(rng, (H, h, d), d ** -0.5), normal(rng, (H, outputs, h), h ** -0.5 / 2)])
        self.readout = {name: normal(rng, (H, 1, d), d ** -0.5 / 4) for name in SCALARS}
        fraction = config.eta_start / config.eta_max
        self.bias = {"eta": Parameter(np.full(H, np.log(fraction / (1 - fraction)), dtype=np.float32)),
                     "alpha": Parameter(half_lives(H))}

    # a memory as a function -------------------------------------------------------------------------------------------

    def apply(self, name: str, W: Layers | None, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """M_□(x), and the input of each of its layers: x, σ(W₂ x).  x (B,H,n,d); W None: a projection that is fixed"""
        skip = x @ self.readout[name].mT if name in SCALARS else x
        if W is None:
            return skip, []
        if len(W) == 1:
            return (skip if name in SCALARS else 0.0) + x @ W[0].mT, [x]
        hidden = silu(x @ W[0].mT)
        return skip + hidden @ W[1].mT, [x, hidden]

    def target(self, name: str, W: Layers, v: Tensor) -> Tensor:
        """v̂_□ = M_□(v), bounded; plain Titans take v itself."""
        if self.config.targets == "value" and name not in SCALARS:
            return v
        made, _ = self.apply(name, W, v)
        return tanh(made) if name in SCALARS else rms_normalize(made)

    def errors(self, name: str, W: Layers, k: Tensor, v: Tensor) -> list[tuple[Tensor, Tensor]]:
        """(input z, output error δ) of each layer of M_□, for the objective at the pair (k, v̂)."""
        made, inputs = self.apply(name, W, k)
        target = self.target(name, W, v)
        delta = made - target if self.config.objective == "l2" else -target
        if len(W) == 1:
            return [(k, delta)]
        s = sigmoid(k @ W[0].mT)
        slope = s + inputs[1] * (1 - s)  # σ′ of SiLU
        return [(k, (delta @ W[1]) * slope), (inputs[1], delta)]

    # one chunk --------------------------------------------------------------------------------------------------------

    def write(self, S: Tensor, initial: Tensor, z: Tensor, delta: Tensor, log_alpha: Tensor, eta: Tensor,
              q: Tensor | None = None) -> tuple[Tensor | None, Tensor]:
        """n writes of one layer, W ← W(α I − η′ z zᵀ) − η′ δ zᵀ with W = S + M₀, and its reads before each write."""
        if not self.config.through_writes:
            z, delta, log_alpha, eta, S = (x.detach() for x in (z, delta, log_alpha, eta, S))
        u = -delta * minimum(1.0, 1 / sqrt(mean(delta * delta, axis=-1, keepdims=True) + 1e-12))
        pull = self.config.retention == "initial"
        if pull:
            u = u - z @ (initial if self.config.through_writes else initial.detach()).mT
        rate = proximal(eta, sum(z * z, axis=-1))
        reads, S = delta_rule(q, z, u, log_alpha, rate, rate, S, self.config.form)
        if q is not None and pull:
            reads = reads + q @ initial.mT
        return reads, S

    def chunk(self, feed: dict[str, Tensor], start: dict[str, Layers], now: dict[str, Layers]
              ) -> tuple[Tensor, dict[str, Layers]]:
        """Read and write n tokens that lie in one chunk of every memory."""
        config = self.config
        W = {name: [s + m for s, m in zip(start[name], self.initial[name], strict=True)]
             if config.retention == "initial" else start[name] for name in config.adaptive}
        ask = {name: self.apply(name, W.get(name), feed["gate" if name in SCALARS else name])[0]
               for name in ("q", "k", "v", "eta", "alpha")}
        q, k, v = normalize(ask["q"]), normalize(ask["k"]), rms_normalize(ask["v"])  # (B,H,n,d)
        gate = {name: ask[name][..., 0] + self.bias[name][:, None] for name in SCALARS}  # (B,H,n)
        eta, log_alpha = sigmoid(gate["eta"]) * config.eta_max, log_sigmoid(gate["alpha"])

        after, read = {}, None
        for name in config.adaptive:
            exact = name == "memory" and config.reads == "exact"
            x = q if exact else None  # what is asked of the layer while it is written
            layers = []
            for i, (z, delta) in enumerate(self.errors(name, W[name], k, v)):
                if exact and i == 1:
                    x = silu(read)
                read, S = self.write(now[name][i], self.initial[name][i], z, delta, log_alpha, eta, x)
                layers.append(S)
            after[name] = layers
            if exact:
                o = read if len(layers) == 1 else q + read
        if config.reads == "chunk":
            o, _ = self.apply("memory", W["memory"], q)
        return o, after

    # a sequence ---------------------------------------------------------------------------------------------------------

    def start(self, x: Tensor) -> dict[str, Any]:
        """The state before the first token: no drift (with retention "zero": the initial states themselves)."""
        zeros = {name: [Tensor(np.zeros_like(x.data, shape=(x.shape[0], *m.shape))) for m in layers]
                 for name, layers in self.initial.items()}
        drift = zeros if self.config.retention == "initial" else {
            name: [z + m for z, m in zip(zeros[name], layers, strict=True)] for name, layers in self.initial.items()}
        return {"tail": None, "position": 0, "start": drift, "now": drift}

    def chunk_size(self, name: str) -> int:
        """Tokens between two writes that the memory's own readers see."""
        return self.config.memory_chunk if name == "memory" else self.config.projection_chunk

    def __call__(self, x: Tensor, state: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
        state = state or self.start(x)
        feed, x, tail = self.feeds(x, state["tail"])
        start, now, position = state["start"], state["now"], state["position"]
        reads, t = [], 0
        while t < x.shape[1]:
            n = min(x.shape[1] - t, *(C - position % C for C in map(self.chunk_size, now)))
            o, now = self.chunk({name: z[:, :, t:t + n] for name, z in feed.items()}, start, now)
            reads.append(o)
            t, position = t + n, position + n
            start = {name: now[name] if position % self.chunk_size(name) == 0 else start[name] for name in now}
        return self.merge(concatenate(reads, axis=2)), {"tail": tail, "position": position, "start": start, "now": now}
