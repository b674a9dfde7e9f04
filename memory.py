"""How does a memory learn while it reads?  One family of rules, from linear attention to Titans.

A memory is a function with its own weights. Reading is a forward pass, `M k`; writing is a step of learning
on the pair (k, v). The first half of this file is that step in one line of algebra, with every rule of the
paper as a setting of it; the second half is what a model is built of:

    MatrixMemory          one matrix per head, written at every token: linear attention, DeltaNet, DGD …
    SelfModifyingTitans   every projection is itself a memory, and generates its own targets [A 83–93]
    WeightGenerator       one matrix per head, changed by what a small network proposes
    SimpleRecurrent       one vector, for comparison

Both follow `y, state = mixer(x, state)`. The state of a sequence is what its memories have drifted from the
initial states, which the outer optimiser learns *through* all the writes in between. `python memory.py`
prints what every rule remembers of eight tokens, and which memories of a small Titans move when.

Legend: B batch, T time, n tokens of one call, D width, H heads, d head size, h hidden size, C chunk;
        S (…,d_v,d_k) a matrix memory; a_t retention, b_t what is forgotten along k_t, c_t what is written.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

import kernels
from autograd import (
    Tensor,
    concatenate,
    cumsum,
    exp,
    fused,
    grad_enabled,
    mean,
    minimum,
    normalize,
    reshape,
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
from config import Config
from layers import CausalConv, Linear, Module, Parameter, Rng, merge_heads, normal, rms_norm, split_heads

# The learning rule ---------------------------------------------------------------------------------------
#
#     o_t = S_{t−1} q_t,      S_t = S_{t−1}(a_t I − b_t k_t k_tᵀ) + c_t v_t k_tᵀ            read, then write
#
# in three forms that agree to rounding. q, k (…,T,d_k), v (…,T,d_v), log_a, b, c (…,T), S (…,d_v,d_k).


def delta_rule(q: Tensor | None, k: Tensor, v: Tensor, log_a: Tensor, b: Tensor, c: Tensor, S: Tensor,
               form: str = "fused") -> tuple[Any, Tensor]:
    """All reads o (…,T,d_v), None without queries, and the last state S_T, in any form of `FORMS`."""
    return FORMS[form](q, k, v, log_a, b, c, S)


def recurrent(q: Tensor | None, k: Tensor, v: Tensor, log_a: Tensor, b: Tensor, c: Tensor, S: Tensor
              ) -> tuple[Tensor | None, Tensor]:
    """The definition, token by token."""
    reads = []
    for t in range(k.shape[-2]):
        key, value = (x[..., t, :, None] for x in (k, v))  # columns
        a, forget, write = (x[..., t, None, None] for x in (exp(log_a), b, c))
        if q is not None:
            reads.append((S @ q[..., t, :, None])[..., 0])
        S = S * a - forget * (S @ key) @ key.mT + write * value @ key.mT
    return None if q is None else stack(reads, axis=-2) if reads else v * 1, S


def chunked(q: Tensor | None, k: Tensor, v: Tensor, log_a: Tensor, b: Tensor, c: Tensor, S: Tensor,
            chunk: int = 64) -> tuple[Tensor | None, Tensor]:
    """The same, exactly, a chunk at a time: one triangular solve instead of C rank-one updates.

        (I + L) U = diag(c) V − diag(b·g_{t−1}) K S₀ᵀ,    L_ti = b_t (g_{t−1}/g_i) k_t·k_i for i < t
        o_t = g_{t−1} S₀ q_t + Σ_{i<t} (g_{t−1}/g_i)(q_t·k_i) u_i,      S_C = g_C S₀ + Σ_i (g_C/g_i) u_i k_iᵀ

    with g_t = ∏_{i≤t} a_i and U = [u_1 … u_C]ᵀ, u_t = c_t v_t − b_t S_{t−1} k_t.
    """
    reads = []
    for t in range(0, k.shape[-2], chunk):
        K, V = (x[..., t:t + chunk, :] for x in (k, v))
        log_at, forget, write = (x[..., t:t + chunk] for x in (log_a, b, c))
        log_g = cumsum(log_at, axis=-1)
        before = concatenate([log_at[..., :1] * 0, log_g[..., :-1]], axis=-1)  # log g_{t−1}
        earlier = np.tril(np.ones_like(K.data, shape=(K.shape[-2],) * 2, dtype=bool), -1)
        # masked before the exponential: g_{t−1}/g_i for i ≥ t may overflow
        ratio = exp(where(earlier, before[..., :, None] - log_g[..., None, :], -np.inf))
        U = solve_triangular(K @ K.mT * ratio * forget[..., None],
                             write[..., None] * V - (forget * exp(before))[..., None] * (K @ S.mT), unit=True)
        if q is not None:
            Q = q[..., t:t + chunk, :]
            reads.append(exp(before)[..., None] * (Q @ S.mT) + (Q @ K.mT * ratio) @ U)
        last = log_g[..., -1:]
        S = exp(last)[..., None] * S + (U * exp(last - log_g)[..., None]).mT @ K
    return None if q is None else concatenate(reads, axis=-2) if reads else v * 1, S


@fused(reference=chunked)
def fused_delta_rule(q, k, v, log_a, b, c, S):
    """`chunked` in one compiled pass over the tokens (`kernels.delta_rule`)."""
    arrays = _flat(q, k, v, log_a, b, c, S)
    o, last = kernels.launch("delta_rule", *arrays)

    def backward(o_bar, last_bar):
        bars = np.reshape(o_bar, arrays[2].shape), np.reshape(last_bar, arrays[6].shape)
        grads = kernels.launch("delta_rule_backward", *arrays, *bars)
        return [np.reshape(g, x.shape) for g, x in zip(grads, (q, k, v, log_a, b, c, S), strict=True)]
    return (np.reshape(o, v.shape), np.reshape(last, S.shape)), backward


@fused(reference=lambda k, *rest: chunked(None, k, *rest)[1])
def fused_writes(k, v, log_a, b, c, S):
    """The same without reads."""
    arrays = _flat(k, v, log_a, b, c, S)
    _, last = kernels.launch("delta_rule", arrays[0], *arrays)

    def backward(last_bar):
        q, o_bar = np.zeros_like(arrays[0]), np.zeros_like(arrays[1])
        last_bar = np.reshape(last_bar, arrays[5].shape)
        grads = kernels.launch("delta_rule_backward", q, *arrays, o_bar, last_bar)
        return [np.reshape(g, x.shape) for g, x in zip(grads[1:], (k, v, log_a, b, c, S), strict=True)]
    return np.reshape(last, S.shape), backward


def _flat(*inputs: Tensor) -> list[Any]:
    """The arrays of (…, k, v, log_a, b, c, S) with all leading axes in one."""
    axes = inputs[-1].ndim - 2
    return [np.reshape(x, (math.prod(x.shape[:axes]), *x.shape[axes:])) for x in inputs]


def _fused(q, *rest):
    return fused_delta_rule(q, *rest) if q is not None else (None, fused_writes(*rest))


FORMS: dict[str, Callable] = {"recurrent": recurrent, "chunked": chunked, "fused": _fused}

# What the mixers share -----------------------------------------------------------------------------------

def half_lives(heads: int) -> np.ndarray:
    """Retention at the start: α = 2^(−1/half-life), geometrically from 16 to 4,096 tokens.  → logits (H,)"""
    lives = 2.0 ** (np.linspace(4, 12, heads) if heads > 1 else np.array([8.0]))
    alpha = 2.0 ** (-1 / lives)
    return np.log(alpha / (1 - alpha)).astype(np.float32)


def log_sigmoid(x: Tensor) -> Tensor:
    """log σ(x), exact near 0: a retention of 0.9998 keeps its digits."""
    return -softplus(-x)


def expect_batch(state: Tensor, x: Tensor) -> None:
    """ValueError unless a state goes on with as many sequences as it has read."""
    if state.shape[0] != x.shape[0]:
        raise ValueError(f"the state has read {state.shape[0]} sequences and the input has {x.shape[0]}; "
                         "go on with as many, or start without a state")


class Mixer(Module):
    """A causal convolution, slow linear maps that feed the heads, a memory (the subclass), an output map."""

    def __init__(self, rng: Rng | None, config: Config, feeds: tuple[str, ...]):
        self.heads = config.heads
        self.conv = CausalConv(rng, config.width)
        self.feed = {name: Linear(rng, config.width, config.width) for name in feeds}
        self.output = Linear(rng, config.width, config.width, (2 * config.layers) ** -0.5)

    def feeds(self, x: Tensor, tail: Tensor | None) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """What each memory is asked with, per head (B,H,T,d); the convolved input (B,T,D); its next tail."""
        if tail is not None:
            expect_batch(tail, x)
        x, tail = self.conv(x, tail)
        return {name: split_heads(f(x), heads=self.heads) for name, f in self.feed.items()}, x, tail

    def merge(self, reads: Tensor) -> Tensor:
        """(B,H,T,d) → (B,T,D), every head brought to one scale first"""
        return self.output(merge_heads(rms_norm(reads)))


# One matrix per head, written at every token ------------------------------------------------------------

RULES = {  # (log a, b, c) from the gates (log α, η) of a token
    "linear":    lambda log_alpha, eta: (0.0, 0.0, 1.0),                     # Hebbian [A 14–18, 64; N 12–15]
    "retention": lambda log_alpha, eta: (log_alpha, 0.0, 1.0),               # Hebbian with retention [A 5]
    "delta":     lambda log_alpha, eta: (0.0, eta, eta),                     # DeltaNet [A 65]
    "signed":    lambda log_alpha, eta: (0.0, eta * 2, eta * 2),             # 1 − 2η may be negative [Grazzi 2024]
    "gated":     lambda log_alpha, eta: (log_alpha, exp(log_alpha) * eta, eta),  # gated DeltaNet
    # by the exact step η′: u = v, of −⟨Mk, v⟩ [A 92]; and u = v − Mk, of ½‖Mk − v‖² [A 93]
    "dgd":       lambda log_alpha, eta: (log_alpha, proximal(eta), proximal(eta)),
    "dgd-l2":    lambda log_alpha, eta: (log_alpha, proximal(eta) * 2, proximal(eta)),
}
GATES = {"linear": (), "retention": ("alpha",), "delta": ("eta",), "signed": ("eta",)}  # the others have both


def proximal(eta: Tensor, squared: Any = 1.0) -> Tensor:
    """The exact step of delta gradient descent, η′ = η/(1 + η‖x‖²) [A 56–57, 113–121].

    It is stable for any η if the target is given.
    """
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
        gates = GATES.get(rule, ("eta", "alpha"))
        self.gate = {name: Linear(rng, config.width, config.heads) for name in gates}
        self.bias = {name: Parameter(starts[name]) for name in self.gate}
        self.initial = normal(rng, (config.heads, d, d), d ** -0.5 / 4)

    def start(self, x: Tensor) -> dict[str, Any]:
        """The state before the first token."""
        return {"tail": None, "S": self.initial + np.zeros_like(x.data, shape=(x.shape[0], 1, 1, 1))}

    def __call__(self, x: Tensor, state: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
        state = state or self.start(x)
        feed, x, tail = self.feeds(x, state["tail"])
        gate = {name: swapaxes(f(x) + self.bias[name], axis1=1, axis2=2)  # (B,H,T)
                for name, f in self.gate.items()}
        log_alpha = log_sigmoid(gate["alpha"]) if "alpha" in gate else None
        eta = sigmoid(gate["eta"]) if "eta" in gate else None
        always = np.zeros_like(x.data, shape=feed["k"].shape[:3])
        log_a, b, c = (always + value for value in RULES[self.rule](log_alpha, eta))
        q, k, v = normalize(feed["q"]), normalize(feed["k"]), rms_normalize(feed["v"])
        reads, S = delta_rule(q, k, v, tensor(log_a), tensor(b), tensor(c), state["S"], self.form)
        return self.merge(reads), {"tail": tail, "S": S}


class SimpleRecurrent(Module):
    """The simple recurrent network: h_t = tanh(W x_t + U h_{t−1}), y_t = W_o h_t.  x (B,T,D) → (B,T,D)

    Its memory is one vector, overwritten at every token. State: h (B,D).
    """

    def __init__(self, rng: Rng | None, config: Config):
        self.input, self.recurrent = (Linear(rng, config.width, config.width) for _ in range(2))
        self.output = Linear(rng, config.width, config.width, (2 * config.layers) ** -0.5)

    def __call__(self, x: Tensor, state: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
        h = Tensor(np.zeros_like(x.data, shape=(x.shape[0], x.shape[2]))) if state is None else state["h"]
        fed, states = self.input(x), []
        for t in range(x.shape[1]):
            h = tanh(fed[:, t] + self.recurrent(h))
            states.append(h)
        return self.output(stack(states, axis=1)), {"h": h}


# Every projection a memory ------------------------------------------------------------------------------

LONGEST = 64  # tokens written at once; a longer chunk is cut, which changes nothing
FEW = 8  # pieces that are read in one go where no gradients are wanted: so many states are held meanwhile
SCALARS = ("eta", "alpha")  # memories with one output per head; the others return a vector of the head size

Layers = list[Tensor]  # the weights of one memory: [W] for a matrix, [W₂, W₁] for a network of two layers
Pieces = list[tuple[int, dict[str, int]]]  # tokens, and for every memory the piece with which its chunk began


def chunks_in_operations(*tensors, mixer, pieces):
    """`SelfModifyingTitans.chunks` as a function of all that it depends on, in the order of `fused_chunks`."""
    feed, now, start = mixer.ungroup(tensors, pieces)
    o, after = mixer.chunks_in_operations(feed, pieces, now | start, now)
    return o, *(S for layers in after.values() for S in layers)


@fused(reference=chunks_in_operations)
def fused_chunks(*tensors, mixer, pieces):
    """The same in one kernel, `kernels.titans`; backwards it is computed again, but for the drifts.

    Feeds q, k, v, gate; biases and readouts of eta and alpha; both layers of every memory's initial state, of
    its drift now, and of its drift at its chunk's start if that began before. → o, all drifts after.
    """
    c, arrays = mixer.config, iter(tensors)
    flat = [[next(arrays) for _ in range(n)] for n in (4, 2, 2)]
    states = [{name: [next(arrays), next(arrays)] for name in names}
              for names in (c.adaptive, c.adaptive, looking_back(pieces))]
    inputs = *flat, *states
    settings = c.adaptive, c.objective == "l2", c.targets == "value", c.eta_max, pieces
    o, after, trail = kernels.titans(*settings, *inputs)

    def backward(o_bar, *after_bar):
        bars = iter(after_bar)
        *flat_bar, initial_bar, now_bar, start_bar = kernels.titans_backward(
            *settings, trail, *inputs, o_bar, {name: [next(bars), next(bars)] for name in c.adaptive})
        layers_bar = (*initial_bar.values(), *now_bar.values(), *start_bar.values())
        return [g for group in (*flat_bar, *layers_bar) for g in group]
    return (o, *(S for layers in after.values() for S in layers)), backward


def joined(reads: list[Tensor]) -> Tensor:
    """What was read of one piece after the other, (B,H,T,d)"""
    return reads[0] if len(reads) == 1 else concatenate(reads, axis=2)


def looking_back(pieces: Pieces) -> list[str]:
    """The memories whose present chunk began before the first piece."""
    return [name for name, piece in pieces[0][1].items() if piece < 0]


class SelfModifyingTitans(Mixer):
    """Five memories per head that learn while they read, each from targets it makes itself [A 83–93].

        q_t = W_q x_t, k_t = M_k(x_t), v_t = M_v(x_t), η_t = M_η(x_t), α_t = M_α(x_t), o_t = M_memory(q_t)
        v̂_□ = M_□(v_t);   M_□ ← M_□(α_t I − η′_t z zᵀ) − η′_t δ_□ zᵀ   for every □ ∈ {k, v, η, α, memory}

    (under α by default M_□ − M₀ in place of M_□), where M(x) = x + W₁ σ(W₂ x) [A 89]. The rule is applied to
    each of its layers with that layer's own input z (k_t, then σ(W₂ k_t)) and its own output error δ, the
    gradient of ½‖M_□(k_t) − v̂_□‖² or −⟨M_□(k_t), v̂_□⟩. Within a chunk, projections, targets and errors
    use the state at its start [A 90–91]; the writes are exact per token.

    x (B,T,D) → (B,T,D). State: `now`, each memory's drift from its initial state; `start`, the same at the
    start of the present chunk; `position`, how many tokens have been read; the convolution's `tail`.

    CHOICES (PAPER.md): retention pulls to the initial state; η_t = η_max·sigmoid; v and vector targets
    RMS-normalised, scalar targets through tanh; errors clipped to RMS 1; σ = SiLU; η′ is the exact proximal
    step; a scalar memory has a learned vector r in place of the identity, r·x + W₁ σ(W₂ x).

    With `through_writes=False` writes are constants to the outer optimiser. Feeds, biases and memories that
    only shape what is written then get no gradient; q's feed keeps its own, and so does the main memory's
    initial state, unless retention is "zero".
    `form="fused"` takes one kernel for all chunks, except for matrix memories, retention "zero", reads "chunk"
    and through_writes=False: those are made of operations, with the fused delta rule.
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
                                  [normal(rng, (H, h, d), d ** -0.5),
                                   normal(rng, (H, outputs, h), h ** -0.5 / 2)])
        self.readout = {name: normal(rng, (H, 1, d), d ** -0.5 / 4) for name in SCALARS}
        fraction = config.eta_start / config.eta_max
        self.bias = {"eta": Parameter(np.full(H, np.log(fraction / (1 - fraction)), dtype=np.float32)),
                     "alpha": Parameter(half_lives(H))}

    # a memory as a function ------------------------------------------------------------------------------

    def apply(self, name: str, W: Layers | None, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """M_□(x), and the inputs of its layers: x, σ(W₂ x).  x (B,H,n,d); W None: a fixed projection"""
        skip = x @ self.readout[name].mT if name in SCALARS else x
        if W is None:
            return skip, []
        if len(W) == 1:
            return (skip if name in SCALARS else 0.0) + x @ W[0].mT, [x]
        hidden = silu(x @ W[0].mT)
        return skip + hidden @ W[1].mT, [x, hidden]

    def target(self, name: str, W: Layers, v: Tensor) -> Tensor:
        """v̂_□ = M_□(v) [A 83], bounded; plain Titans take v itself."""
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

    # one chunk -------------------------------------------------------------------------------------------

    def write(self, S: Tensor, initial: Tensor, z: Tensor, delta: Tensor, log_alpha: Tensor, eta: Tensor,
              q: Tensor | None = None) -> tuple[Any, Tensor]:
        """n writes of one layer [A 88], and its reads before each write. S is the drift, W = M₀ + S:

            S ← S(α I − η′ z zᵀ) − η′ (δ + M₀ z) zᵀ         (with retention "zero" S = W, without M₀ z)
        """
        if not self.config.through_writes:
            z, delta, log_alpha, eta, S = (x.detach() for x in (z, delta, log_alpha, eta, S))
        # δ, clipped to an RMS of 1
        u = -delta * minimum(1.0, 1 / sqrt(mean(delta * delta, axis=-1, keepdims=True) + 1e-12))
        pull = self.config.retention == "initial"
        if pull:  # what M₀ answers is forgotten along z, too
            u = u - z @ (initial if self.config.through_writes else initial.detach()).mT
        rate = proximal(eta, sum(z * z, axis=-1))
        reads, S = delta_rule(q, z, u, log_alpha, rate, rate, S, self.config.form)
        if q is not None and pull:
            reads = reads + q @ initial.mT
        return reads, S

    def chunks(self, feed: dict[str, Tensor], pieces: Pieces, start: dict[str, Layers], now: dict[str, Layers]
               ) -> tuple[Tensor, dict[str, Layers]]:
        """Read and write the tokens of all pieces, in one kernel where there is one."""
        c = self.config
        covered = (c.memory, c.retention, c.reads, c.through_writes) == ("mlp", "initial", "exact", True)
        if not (covered and c.form == "fused" and kernels.has_titans(feed["q"].data)):
            return self.chunks_in_operations(feed, pieces, start, now)
        groups = self.initial, now, {name: start[name] for name in looking_back(pieces)}
        o, *after = fused_chunks(
            *(feed[name] for name in self.feed), *self.bias.values(), *self.readout.values(),
            *(layer for group in groups for layers in group.values() for layer in layers),
            mixer=self, pieces=pieces)
        return o, {name: [after[2 * i], after[2 * i + 1]] for i, name in enumerate(now)}

    def ungroup(self, tensors: tuple[Tensor, ...], pieces: Pieces) -> tuple[dict, dict, dict]:
        """Back from the inputs of `fused_chunks`: the feeds, and the drifts now and at the chunk's start."""
        rest = iter(tensors[8 + 2 * len(self.initial):])
        now, start = ({name: [next(rest), next(rest)] for name in names}
                      for names in (self.initial, looking_back(pieces)))
        return dict(zip(self.feed, tensors, strict=False)), now, start

    def chunks_in_operations(self, feed: dict[str, Tensor], pieces: Pieces, start: dict[str, Layers],
                             now: dict[str, Layers]) -> tuple[Tensor, dict[str, Layers]]:
        """One piece after the other."""
        states, reads, t = [now], [], 0
        for n, seen in pieces:
            part = feed if len(pieces) == 1 else {name: z[:, :, t:t + n] for name, z in feed.items()}
            seen_states = {name: start[name] if p < 0 else states[p][name] for name, p in seen.items()}
            o, after = self.chunk_in_operations(part, seen_states, states[-1])
            reads.append(o)
            states.append(after)
            t += n
        return joined(reads), states[-1]

    def chunk_in_operations(self, feed: dict[str, Tensor], start: dict[str, Layers], now: dict[str, Layers]
                            ) -> tuple[Tensor, dict[str, Layers]]:
        """Read and write n tokens that lie in one chunk of every memory: the definition [A 90–91]."""
        config = self.config
        W = {name: [s + m for s, m in zip(start[name], self.initial[name], strict=True)]
             if config.retention == "initial" else start[name] for name in config.adaptive}
        ask = {name: self.apply(name, W.get(name), feed["gate" if name in SCALARS else name])[0]
               for name in ("q", "k", "v", "eta", "alpha")}
        q, k, v = normalize(ask["q"]), normalize(ask["k"]), rms_normalize(ask["v"])  # (B,H,n,d)
        gate = {name: ask[name][..., 0] + self.bias[name][:, None] for name in SCALARS}  # (B,H,n)
        eta, log_alpha = sigmoid(gate["eta"]) * config.eta_max, log_sigmoid(gate["alpha"])

        after: dict[str, Layers] = {}
        read: Any = None
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

    # a sequence ------------------------------------------------------------------------------------------

    def start(self, x: Tensor) -> dict[str, Any]:
        """The state before the first token: no drift (with retention "zero": the initial states)."""
        zeros = {name: [Tensor(np.zeros_like(x.data, shape=(x.shape[0], *m.shape))) for m in layers]
                 for name, layers in self.initial.items()}
        drift = zeros if self.config.retention == "initial" else {
            name: [z + m for z, m in zip(zeros[name], layers, strict=True)]
            for name, layers in self.initial.items()}
        return {"tail": None, "position": 0, "start": drift, "now": drift}

    def chunk_size(self, name: str) -> int:
        """Tokens over which errors (and, of projections, reads) are taken at one frozen state."""
        return self.config.memory_chunk if name == "memory" else self.config.projection_chunk

    def cut(self, T: int, position: int, seen: dict[str, int]) -> Pieces:
        """Cut T tokens wherever a memory's chunk ends: how many, and for every memory the piece with which its
        present chunk began, whose state at that time its errors see (−1: before the first piece, as in `seen`).

        Drifts between pieces stay inside the kernel. So the pieces end early where the chunk that begins there
        is not over at the end; and without gradients, which need all those drifts, after a few.
        """
        pieces: Pieces = []
        while T and (grad_enabled() or len(pieces) < FEW):
            n = min(T, LONGEST, *(C - position % C for C in map(self.chunk_size, seen)))
            pieces.append((n, seen))
            T, position = T - n, position + n
            seen = {name: p if position % self.chunk_size(name) else len(pieces) for name, p in seen.items()}
        while between := [p for p in seen.values() if 0 < p < len(pieces)]:
            seen, pieces = pieces[min(between)][1], pieces[:min(between)]
        return pieces

    def __call__(self, x: Tensor, state: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
        state = state or self.start(x)
        feed, x, tail = self.feeds(x, state["tail"])
        start, now, position = state["start"], state["now"], state["position"]
        reads, t = [], 0
        while t < x.shape[1]:
            pieces = self.cut(x.shape[1] - t, position, {name: -(start[name] is not now[name]) for name in now})
            n = int(np.sum([n for n, _ in pieces]))
            part = feed if n == x.shape[1] else {name: z[:, :, t:t + n] for name, z in feed.items()}
            o, now = self.chunks(part, pieces, start, now)
            reads.append(o)
            t, position = t + n, position + n
            start = {name: start[name] if position % self.chunk_size(name) else now[name] for name in now}
        state = {"tail": tail, "position": position, "start": start, "now": now}
        return self.merge(joined(reads)), state


# Weights that a network generates ---------------------------------------------------------------------------


class WeightGenerator(Mixer):
    """A linear memory per head whose change is not computed by a learning rule but proposed by a network.

        o_t = M q_t,          z_t = SiLU(W_1 [q_t, o_t]),
        M ← M₀ + α(M − M₀) + η Σ_{r ≤ R} u_r w_rᵀ       every N tokens, [u_1 … u_R, w_1 … w_R] = W_2 mean_{last N} z

    of rank R, with ‖u_r‖ = ‖w_r‖ = 1, so that no proposal moves M by more than ηR. N is
    `config.generator_chunk`, η `config.generator_rate`, the size of z `config.generator_hidden`.

    x (B,T,D) → (B,T,D). State: the convolution's tail; the position; the drift M − M₀ (B,H,d,d); Σ z of a chunk
    that is not yet full (B,H,h).

    CHOICE: the network sees what the memory was asked and what it answered, so that a change depends on those
    before it; and changes fade, with half-lives of 16 … 4,096 of them, for a constant proposal would otherwise
    grow without bound.
    """

    def __init__(self, rng: Rng | None, config: Config):
        super().__init__(rng, config, ("q",))
        H, d, h = config.heads, config.width // config.heads, config.generator_hidden
        self.chunk, self.rate, self.rank = config.generator_chunk, config.generator_rate, config.generator_rank
        self.initial = normal(rng, (H, d, d), d ** -0.5)
        self.observe = normal(rng, (H, h, 2 * d), (2 * d) ** -0.5)
        self.propose = normal(rng, (H, 2 * self.rank * d, h), h ** -0.5)
        self.bias = {"alpha": Parameter(half_lives(H))}

    def start(self, x: Tensor) -> dict[str, Any]:
        """The state before the first token: no drift."""
        H, d, _ = self.initial.shape
        drift, seen = (Tensor(np.zeros_like(x.data, shape=(x.shape[0], H, *shape)))
                       for shape in ((d, d), (self.observe.shape[1],)))
        return {"tail": None, "position": 0, "drift": drift, "seen": seen}

    def __call__(self, x: Tensor, state: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
        state = state or self.start(x)
        feed, x, tail = self.feeds(x, state["tail"])
        alpha = sigmoid(self.bias["alpha"])[:, None, None]
        drift, seen, position = state["drift"], state["seen"], state["position"]
        reads, t = [], 0
        while t < x.shape[1]:
            n = min(x.shape[1] - t, self.chunk - position % self.chunk)
            q = feed["q"][:, :, t:t + n]
            o = q @ (drift + self.initial).mT
            seen = seen + sum(silu(concatenate([q, o], axis=-1) @ self.observe.mT), axis=2)
            reads.append(o)
            t, position = t + n, position + n
            if position % self.chunk == 0:
                drift, seen = drift * alpha + self.proposal(seen / self.chunk) * self.rate, seen * 0
        after = {"tail": tail, "position": position, "drift": drift, "seen": seen}
        return self.merge(concatenate(reads, axis=2)), after

    def proposal(self, z: Tensor) -> Tensor:
        """Σ_r u_r w_rᵀ from the mean of z over a chunk (B,H,h).  → (B,H,d,d)"""
        made = (self.propose @ z[..., None])[..., 0]  # (B,H,2Rd)
        u, w = (normalize(reshape(half, shape=(*z.shape[:2], self.rank, -1)))
                for half in (made[..., :made.shape[-1] // 2], made[..., made.shape[-1] // 2:]))
        return u.mT @ w


# What it looks like -------------------------------------------------------------------------------------

def main() -> None:
    """A hand-sized trace: two pairs written by every rule, and self-modifying Titans chunk by chunk."""
    k = np.eye(4)[[0, 1, 0, 1, 0, 1, 2, 3]]  # (T,d_k)
    v = np.array([1.0, 5, 1, 5, 1, 5, 9, 9])[:, None]  # (T,d_v)
    print("Eight tokens: key 0 comes with the value 1 and key 1 with 5, three times each; then two more.\n"
          "What both read back after all writes, and |S| after every token (α = 0.9, η = 0.5):\n")
    print("rule         M k₀    M k₁    |S|")
    log_alpha, eta = Tensor(np.full(8, np.log(0.9))), Tensor(np.full(8, 0.5))
    for name, rule in RULES.items():
        gates = [tensor(np.zeros(8) + x) for x in rule(log_alpha, eta)]
        S, norms = Tensor(np.zeros((1, 4))), []
        for t in range(8):
            key, value, *gate = (x[t:t + 1] for x in (Tensor(k), Tensor(v), *gates))
            _, S = FORMS["recurrent"](None, key, value, *gate, S)
            norms.append(f"{np.linalg.norm(S.data):5.2f}")
        print(f"{name:10} {S.data[0, 0]:6.3f}  {S.data[0, 1]:6.3f}   {' '.join(norms)}")

    config: Any = SimpleNamespace(
        width=8, heads=2, layers=1, memory="mlp", memory_hidden=0,
        adaptive=("k", "v", "eta", "alpha", "memory"), objective="l2", targets="self", reads="exact",
        memory_chunk=4, projection_chunk=2, eta_max=0.1, eta_start=0.02, retention="initial",
        through_writes=True, form="chunked")
    rng = np.random.default_rng(0)
    mixer, state, before = SelfModifyingTitans(rng, config), None, dict[str, Layers]()
    print("\nSelf-modifying Titans read eight tokens; the main memory's chunks have 4, the projections' 2.\n"
          "How far each memory had drifted at its chunk's start, the state that errors and projections see:\n")
    print("token  " + "".join(f"{name:>9}" for name in config.adaptive) + "   moved")
    for t in range(8):
        _, state = mixer(Tensor(rng.standard_normal((1, 1, 8), dtype=np.float32)), state)
        drift = {name: math.hypot(*(np.linalg.norm(S.data) for S in layers))
                 for name, layers in state["start"].items()}
        moved = [name for name in drift if drift[name] and state["start"][name] is not before.get(name)]
        columns, before = "".join(f"{x:9.4f}" for x in drift.values()), state["start"]
        print(f"{t + 1:5}  {columns}   {', '.join(moved)}".rstrip())


if __name__ == "__main__":
    main()
