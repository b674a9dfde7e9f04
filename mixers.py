"""What else can stand before the levels?  Five more mixers, and several mixers side by side.

    AdaTransformer    attention whose linear map is a memory: an MLP that adapts in the context [A 21, 69]
    WeightGenerator   one matrix per head, changed by what a small network proposes
    Banks             five vectors per head, each moving on a clock of its own
    Cell              three vectors, all moving towards one shared idea at rates of their own
    SimpleRecurrent   one vector, for comparison
    SideBySide        several mixers that read the same; their answers are added

The first is the paper's; weight generator, banks and cell are from other systems, the simple recurrent network is for
comparison.

Legend: B batch, T time, D width, H heads, d head size, C chunk size in tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from autograd import (
    Tensor,
    concatenate,
    log1p,
    mean,
    normalize,
    reshape,
    rms_normalize,
    sigmoid,
    silu,
    softmax,
    stack,
    sum,
    swapaxes,
    tanh,
    tensor,
)
from config import Config
from layers import (
    AttentionState,
    CausalAttention,
    Cost,
    Linear,
    Mixer,
    Parameter,
    Rng,
    merge_heads,
    normal,
    rms_norm,
    split_heads,
)
from memory import MemoryMixer, delta_rule, expect_batch, half_lives, zeros

# An MLP that adapts in the context --------------------------------------------------------------------------


@dataclass(frozen=True)
class AdaState:
    """What an AdaTransformer has read."""

    attention: AttentionState
    W: Tensor  # the linear map now (B,H,d,d)


class AdaTransformer(Mixer):
    """Attention, then a linear map that learns from its keys and values: y = W_{t−1} Attn(k, v, q) [A 21, 69].

        W_t = W_{t−1} + c_t v_t k_tᵀ,      W_0 learned across texts, c_t = σ(w·x_t + b) per head

    With c = 0 it is attention and the linear MLP W_0, which does not change in a context; with c it is that MLP as the
    start of a linear attention, which does: the paper's bridge from one to the other (its Fig. 3).

    CHOICE: keys have length 1, values RMS 1, and what is written is gated; the text writes v kᵀ as it is.

    x (B,T,D) → (B,T,D).
    """

    def __init__(self, rng: Rng | None, config: Config):
        self.clocks, d = {"attention": 0, "linear map": 1}, config.width // config.heads
        self.attention = CausalAttention(rng, config.width, config.heads, 1.0, config.window)
        self.gate = Linear(rng, config.width, config.heads)
        self.bias = Parameter(np.full(config.heads, -2, dtype=np.float32))
        self.initial = normal(rng, (config.heads, d, d), d ** -0.5)
        self.output = Linear(rng, config.width, config.width, (2 * config.layers) ** -0.5)
        self.form = config.form

    def start(self, x: Tensor) -> AdaState:
        return AdaState(self.attention.start(x), self.initial + zeros(x, 1, 1, 1))

    def __call__(self, x: Tensor, state: AdaState | None = None) -> tuple[Tensor, AdaState]:
        state = state or self.start(x)
        read, attention = self.attention(x, state.attention)
        q, k, v = (split_heads(z, heads=self.attention.heads)
                   for z in (read, self.attention.key(x), self.attention.value(x)))  # (B,H,T,d)
        c = swapaxes(sigmoid(self.gate(x) + self.bias), axis1=1, axis2=2)  # (B,H,T)
        never = tensor(np.zeros_like(c.data))
        y, W = delta_rule(q, normalize(k), rms_normalize(v), never, never, c, state.W, self.form)
        return self.output(merge_heads(y)), AdaState(attention, W)

    def position(self, state: AdaState) -> int:
        return self.attention.position(state.attention)

    def drift(self, state: AdaState) -> dict[str, list[tuple[Any, Any]]]:
        return {"memory": [(state.W.data - self.initial.data, self.initial.data)]}

    def cost(self, tokens: int) -> Cost:
        attention = self.attention.cost(tokens)
        return Cost(attention.products + 2 * self.initial.size, attention.numbers + self.initial.size)


# Weights that a network generates ---------------------------------------------------------------------------


@dataclass(frozen=True)
class GeneratorState:
    """What a weight generator has read."""

    tail: Tensor  # (B,W−1,D), the filter's last inputs
    position: int  # tokens read
    drift: Tensor  # M − M₀ (B,H,d,d)
    seen: Tensor  # Σ z over the tokens of a chunk that is not yet full (B,H,h)


class WeightGenerator(MemoryMixer):
    """A linear memory per head whose change is not computed by a learning rule but proposed by a network.

        o_t = M q_t,          z_t = SiLU(W_1 [q_t, o_t]),
        M ← M₀ + α(M − M₀) + η Σ_{r ≤ R} u_r w_rᵀ       every N tokens, [u_1 … u_R, w_1 … w_R] = W_2 mean_{last N} z

    of rank R, with ‖u_r‖ = ‖w_r‖ = 1, so that no proposal moves M by more than ηR. N is
    `config.generator_chunk`, η `config.generator_rate`, the size of z `config.generator_hidden`.

    x (B,T,D) → (B,T,D).

    CHOICE: the network sees what the memory was asked and what it answered, so that a change depends on those
    before it; and changes fade, with half-lives of 16 … 4,096 of them, for a constant proposal would otherwise
    grow without bound.
    """

    def __init__(self, rng: Rng | None, config: Config):
        super().__init__(rng, config, ("q",))
        H, d, h = self.heads, self.head_size, config.generator_hidden
        self.chunk, self.rate, self.rank = config.generator_chunk, config.generator_rate, config.generator_rank
        self.clocks = {"generated weights": self.chunk}
        self.initial = normal(rng, (H, d, d), d ** -0.5)
        self.observe = normal(rng, (H, h, 2 * d), (2 * d) ** -0.5)
        self.propose = normal(rng, (H, 2 * self.rank * d, h), h ** -0.5)
        self.bias = {"alpha": Parameter(half_lives(H))}

    def start(self, x: Tensor) -> GeneratorState:
        return GeneratorState(self.conv.start(x), 0, zeros(x, *self.initial.shape), zeros(x, *self.observe.shape[:2]))

    def __call__(self, x: Tensor, state: GeneratorState | None = None) -> tuple[Tensor, GeneratorState]:
        state = state or self.start(x)
        asked, x, tail = self.project(x, state.tail)
        alpha = sigmoid(self.bias["alpha"])[:, None, None]
        drift, seen, position = state.drift, state.seen, state.position
        reads, t = [], 0
        while t < x.shape[1]:
            n = min(x.shape[1] - t, self.chunk - position % self.chunk)
            q = asked["q"][:, :, t:t + n]
            o = q @ (drift + self.initial).mT
            seen = seen + sum(silu(concatenate([q, o], axis=-1) @ self.observe.mT), axis=2)
            reads.append(o)
            t, position = t + n, position + n
            if position % self.chunk == 0:
                drift, seen = drift * alpha + self.proposal(seen / self.chunk) * self.rate, seen * 0
        return self.merge(concatenate(reads, axis=2)), GeneratorState(tail, position, drift, seen)

    def proposal(self, z: Tensor) -> Tensor:
        """Σ_r u_r w_rᵀ from the mean of z over a chunk (B,H,h).  → (B,H,d,d)"""
        made = (self.propose @ z[..., None])[..., 0]  # (B,H,2Rd)
        u, w = (normalize(reshape(half, shape=(*z.shape[:2], self.rank, -1)))
                for half in (made[..., :made.shape[-1] // 2], made[..., made.shape[-1] // 2:]))
        return u.mT @ w

    def drift(self, state: GeneratorState) -> dict[str, list[tuple[Any, Any]]]:
        return {"weights": [(state.drift.data, self.initial.data)]}

    def cost(self, tokens: int) -> Cost:
        """To read and observe every token; to propose, and to put a proposal together, once a chunk."""
        proposed = self.propose.size + self.rank * self.initial.size
        products = self.initial.size + self.observe.size + proposed // self.chunk
        return Cost(products, self.tail_size + self.initial.size + self.heads * self.observe.shape[1])


# Vectors on clocks ------------------------------------------------------------------------------------------
#
# A level of cms.py holds weights. The same clock can move what holds no weights, but a few vectors.


@dataclass(frozen=True)
class Bank:
    """One of a bank's memories."""

    m: Tensor  # (B,H,d,1)
    write: Tensor  # Σ g v over the tokens of a chunk that is not yet full (B,H,d)
    gate: Tensor  # … and Σ g (B,H)


@dataclass(frozen=True)
class BanksState:
    """What banks have read."""

    tail: Tensor  # (B,W−1,D), the filter's last inputs
    position: int  # tokens read
    banks: tuple[Bank, ...]


class Banks(MemoryMixer):
    """Memories of many spans, ultra-short to episodic: each holds one vector and moves on its own clock.

        m_ℓ ← m_ℓ + (1/C_ℓ) Σ_{last C_ℓ tokens} g_t (v_t − m_ℓ)     if t ≡ 0 (mod C_ℓ), else unchanged
        o_t = Σ_ℓ softmax_ℓ(q_t·m_ℓ/√d + s_ℓ) m_ℓ

    per head: [A 71] for states, with the chunk sizes of `config.spans`, in tokens. It is Hebbian learning
    with retention, one write per chunk with the constant key 1: a = 1 − ḡ and c v = mean g v, g_t < 0.99;
    so `delta_rule` computes all chunks at once.

    x (B,T,D) → (B,T,D).
    """

    def __init__(self, rng: Rng | None, config: Config):
        super().__init__(rng, config, ("q", "v"))
        self.spans, self.form = config.spans, config.form
        self.clocks = {f"bank {span}": span for span in config.spans}
        d = self.head_size
        self.gate = Linear(rng, config.width, config.heads * len(self.spans))
        self.initial = normal(rng, (len(self.spans), config.heads, d, 1), 1.0)
        self.share = Parameter(np.zeros((config.heads, len(self.spans)), dtype=np.float32))

    def start(self, x: Tensor) -> BanksState:
        H, d = self.heads, self.head_size
        return BanksState(self.conv.start(x), 0, tuple(
            Bank(self.initial[i] + zeros(x, H, 1, 1), zeros(x, H, d), zeros(x, H)) for i in range(len(self.spans))))

    def __call__(self, x: Tensor, state: BanksState | None = None) -> tuple[Tensor, BanksState]:
        state = state or self.start(x)
        asked, x, tail = self.project(x, state.tail)
        gates = split_heads(sigmoid(self.gate(x)) * 0.99, heads=self.heads)  # (B,H,T,banks)
        v, read, banks = rms_norm(asked["v"]), [], []
        for i, (span, bank) in enumerate(zip(self.spans, state.banks, strict=True)):
            seen, bank = self.bank(span, v, gates[..., i], state.position, bank)
            read.append(seen)
            banks.append(bank)
        m = stack(read, axis=-2)  # (B,H,T,banks,d)
        scores = (m @ asked["q"][..., None])[..., 0] * m.shape[-1] ** -0.5 + self.share[:, None]
        o = (softmax(scores)[..., None, :] @ m)[..., 0, :]
        return self.merge(o), BanksState(tail, state.position + x.shape[1], tuple(banks))

    def bank(self, span: int, v: Tensor, g: Tensor, position: int, before: Bank) -> tuple[Tensor, Bank]:
        """What one bank holds when each token comes (B,H,T,d), and its next state; v (B,H,T,d), g (B,H,T)."""
        filled, time = position % span, v.shape[2]
        chunks = -(-(filled + time) // span)
        each, tokens = np.arange(chunks, like=v.data), np.arange(time, like=v.data)
        of = (tokens + filled) // span  # the chunk of each token
        member = (of == each[:, None]).astype(v.dtype)  # (chunks,T)
        write, gate = member @ (g[..., None] * v), (member @ g[..., None])[..., 0]  # (B,H,chunks,d), no d
        first = (each == 0).astype(v.dtype)
        write = write + first[:, None] * before.write[..., None, :]
        gate = gate + first * before.gate[..., None]
        full = (filled + time) // span  # chunks that are complete
        one = np.ones_like(v.data, shape=(*v.shape[:2], full, 1))
        log_a = log1p(gate[..., :full] * (-1 / span))
        m, last = delta_rule(tensor(one), tensor(one), write[..., :full, :], log_a, tensor(one[..., 0] * 0),
                             tensor(one[..., 0] / span), before.m, self.form)
        rest = float(full < chunks)
        held = concatenate([m, last.mT], axis=2) if rest else m
        return held[:, :, of], Bank(last, write[:, :, -1] * rest, gate[..., -1] * rest)

    def drift(self, state: BanksState) -> dict[str, list[tuple[Any, Any]]]:
        return {f"bank {span}": [(bank.m.data - M0, M0)]
                for span, bank, M0 in zip(self.spans, state.banks, self.initial.data, strict=True)}

    def cost(self, tokens: int) -> Cost:
        banks, each = len(self.spans), self.heads * self.head_size
        return Cost(2 * banks * each, self.tail_size + banks * (2 * each + self.heads))


@dataclass(frozen=True)
class CellState:
    """What a cell has read."""

    m: Tensor  # (B,k,D)


class Cell(Mixer):
    """A recurrent cell with one state per rate, fast to slow, all moving towards one shared idea.

        idea = tanh(W_x x_t + W_m [m_1 … m_k])                                      the controller
        r_ℓ  = rate_ℓ (1 + reach_ℓ tanh(u_ℓ·[x_t, m_1 … m_k]))                       the rate adapter, bounded
        m_ℓ ← (1 − r_ℓ) m_ℓ + r_ℓ idea,        o_t = W_o mean_ℓ m_ℓ

    with `config.rates`, 0.8, 0.2 and 0.05 by default. reach_ℓ is ½, or less where the rate would rise above 1.
    The slowest state is protected: its 1 is 1 − reach, so that its rate lies between 0 and its own.

    x (B,T,D) → (B,T,D).
    """

    def __init__(self, rng: Rng | None, config: Config):
        D, k = config.width, len(config.rates)
        rates = np.array(config.rates)
        self.clocks, self.rates = {"cell": 1}, rates
        self.reach = np.minimum(0.5, 1 / rates - 1)  # the adapter's range, so that no rate is above 1 …
        self.middle = np.where(np.arange(k) < k - 1, 1, 1 - self.reach)  # … nor the slowest above its own
        self.see, self.recall = Linear(rng, D, D + k), Linear(rng, k * D, D + k)
        self.output = Linear(rng, D, D, (2 * config.layers) ** -0.5)
        self.initial = normal(rng, (k, D), 0.1)

    def start(self, x: Tensor) -> CellState:
        return CellState(self.initial + zeros(x, 1, 1))

    def __call__(self, x: Tensor, state: CellState | None = None) -> tuple[Tensor, CellState]:
        B, T, D = x.shape
        m = (state or self.start(x)).m
        expect_batch(m, x)
        seen, rates, reach, middle = self.see(x), *(np.asarray(c, dtype=x.dtype, like=x.data)
                                                    for c in (self.rates, self.reach, self.middle))
        states = []
        for t in range(T):
            z = tanh(seen[:, t] + self.recall(reshape(m, shape=(B, -1))))  # (B,D+k)
            r = (rates * (middle + reach * z[:, D:]))[:, :, None]  # (B,k,1)
            m = m + r * (z[:, None, :D] - m)
            states.append(m)
        return self.output(mean(stack(states, axis=1), axis=2)), CellState(m)

    def drift(self, state: CellState) -> dict[str, list[tuple[Any, Any]]]:
        return {"cell": [(state.m.data - self.initial.data, self.initial.data)]}

    def cost(self, tokens: int) -> Cost:
        return Cost(0, self.initial.size)  # all its products are with weights


@dataclass(frozen=True)
class RecurrentState:
    """What a simple recurrent network has read."""

    h: Tensor  # (B,D)


class SimpleRecurrent(Mixer):
    """The simple recurrent network: h_t = tanh(W x_t + U h_{t−1}), y_t = W_o h_t.  x (B,T,D) → (B,T,D)

    Its memory is one vector, overwritten at every token.
    """

    def __init__(self, rng: Rng | None, config: Config):
        self.clocks = {"recurrent state": 1}
        self.input, self.recurrent = (Linear(rng, config.width, config.width) for _ in range(2))
        self.output = Linear(rng, config.width, config.width, (2 * config.layers) ** -0.5)

    def start(self, x: Tensor) -> RecurrentState:
        return RecurrentState(zeros(x, x.shape[2]))

    def __call__(self, x: Tensor, state: RecurrentState | None = None) -> tuple[Tensor, RecurrentState]:
        h = (state or self.start(x)).h
        expect_batch(h, x)
        driven, states = self.input(x), []
        for t in range(x.shape[1]):
            h = tanh(driven[:, t] + self.recurrent(h))
            states.append(h)
        return self.output(stack(states, axis=1)), RecurrentState(h)

    def cost(self, tokens: int) -> Cost:
        return Cost(0, self.output.weight.shape[0])  # all its products are with weights


# Several at once --------------------------------------------------------------------------------------------


class SideBySide(Mixer):
    """Several mixers that read the same; their answers are added.  x (B,T,D) → (B,T,D); state: theirs, in order"""

    def __init__(self, mixers: Sequence[Mixer]):
        self.mixers: list[Any] = list(mixers)
        self.clocks = {name: C for mixer in self.mixers for name, C in mixer.clocks.items()}

    def start(self, x: Tensor) -> tuple[Any, ...]:
        return tuple(mixer.start(x) for mixer in self.mixers)

    def __call__(self, x: Tensor, state: tuple[Any, ...] | None = None) -> tuple[Tensor, tuple[Any, ...]]:
        read = [mixer(x, past) for mixer, past in zip(self.mixers, state or self.start(x), strict=True)]
        return sum(stack([y for y, _ in read]), axis=0), tuple(present for _, present in read)

    def position(self, state: tuple[Any, ...]) -> int:
        return max(mixer.position(its) for mixer, its in zip(self.mixers, state, strict=True))

    def drift(self, state: tuple[Any, ...]) -> dict[str, list[tuple[Any, Any]]]:
        found: dict[str, list[tuple[Any, Any]]] = {}
        for mixer, its in zip(self.mixers, state, strict=True):
            for name, pairs in mixer.drift(its).items():
                found.setdefault(name, []).extend(pairs)
        return found

    def cost(self, tokens: int) -> Cost:
        costs = [mixer.cost(tokens) for mixer in self.mixers]
        return Cost(int(np.sum([c.products for c in costs])), int(np.sum([c.numbers for c in costs])))
