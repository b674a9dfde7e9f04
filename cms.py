"""What moves when?  The continuum memory system: a chain of MLPs, each learning on its own clock.

A Transformer has one MLP per block, and it changes at every step or never. Here a block has several, fast to
slow; the one with chunk size C changes only when its clock is due, and then by all it has gathered since
[A 70–71, N 30–31]:

    y = MLP_k( … MLP_2(MLP_1(x)) … )
    θ_ℓ ← θ_ℓ − Σ_{last C_ℓ steps} η f(θ_ℓ; x)     if i ≡ 0 (mod C_ℓ),      else unchanged

One level with chunk size 1 is the Transformer's MLP, exactly. A *step* i of the clocks is one segment, or all
that one step of the optimiser takes in.

The clocks tick in two places. In training, the optimiser holds one parameter group per chunk size, and
changes the initial states. While reading with learning on, `learn` changes the running state: each level's
drift from its initial state, one per sequence. (Nested levels learn in this second way while they are trained
as well, and the initial states are learned through it; their steps are the pieces of one window.)

Legend: B batch, T time, D width, F hidden size, k levels, C chunk size (in steps), i clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from autograd import (
    Tensor,
    concatenate,
    grad,
    log1p,
    mean,
    minimum,
    reshape,
    sigmoid,
    softmax,
    sqrt,
    stack,
    sum,
    tanh,
    tensor,
)
from config import Config
from layers import Linear, Module, Parameter, Rng, fused_gelu, linear, normal, rms_norm, split_heads
from memory import Mixer, delta_rule, expect_batch

VARIANTS = ("sequential", "independent", "nested", "spread")

Drift = dict[str, Tensor]  # what one level has drifted from its initial state, a weight (B,out,in) per name


def due(clock: int, chunk: int) -> bool:
    """Whether a level of this chunk size changes at this step (steps count from 1)."""
    return clock % chunk == 0


class Level(Module):
    """One memory of the chain: MLP(x) = W_down σ(W_up x), with σ = GELU.  x (B,T,D)"""

    def __init__(self, rng: Rng | None, width: int, hidden: int, chunk: int, scale: float):
        self.chunk = chunk
        self.up = Linear(rng, width, hidden)
        self.down = Linear(rng, hidden, width, scale)

    def weights(self) -> dict[str, Parameter]:
        return {"up": self.up.weight, "down": self.down.weight}

    def __call__(self, x: Tensor, drift: Drift | None = None) -> Tensor:
        if drift is None:
            return linear(fused_gelu(linear(x, self.up.weight)), self.down.weight)
        W = {name: w + drift[name] for name, w in self.weights().items()}  # (B,out,in)
        return fused_gelu(x @ W["up"].mT) @ W["down"].mT

    def zero_drift(self, batch: int) -> Drift:
        """No drift yet, in a form that gradients can be taken of."""
        return {name: Tensor(np.zeros_like(w.data, shape=(batch, *w.shape)), requires_grad=True)
                for name, w in self.weights().items()}


class CMS(Module):
    """The chain of levels, fast to slow, with its residual connections.  x (B,T,D) → (B,T,D)

    sequential   h ← h + MLP_ℓ(norm h), level after level [A 70, 73]
    nested       the same function; the levels differ in how their initial states are learned [A 72]:
    `Hope.nested_loss`
    independent  x + Σ_ℓ w_ℓ MLP_ℓ(norm x), w = softmax of learned weights [A 74]
    spread       one level per block, the chunk sizes spread over the depth of the model, fast to slow [§7.3]

    CHOICE: every level is residual behind its own norm, so that one level is the Transformer's MLP and a
    chain of untrained ones passes its input on.
    """

    def __init__(self, rng: Rng | None, config: Config, block: int):
        scale = (2 * config.layers) ** -0.5
        self.variant = config.cms
        self.levels = [Level(rng, config.width, config.hidden, chunk, scale)
                       for chunk in config.block_chunks(block)]
        if self.variant == "independent":
            self.mix = Parameter(np.zeros(len(self.levels), dtype=np.float32))

    def __call__(self, x: Tensor, drift: Sequence[Drift | None] | None = None) -> Tensor:
        drift = drift or [None] * len(self.levels)
        if self.variant == "independent":
            h, weight = rms_norm(x), softmax(self.mix)
            for i, level in enumerate(self.levels):
                x = x + weight[i] * level(h, drift[i])
            return x
        for level, moved in zip(self.levels, drift, strict=True):
            x = x + level(rms_norm(x), moved)
        return x

    def tick(self, n: int, clock: int, drift: Drift, pending: Drift | None, grads: Drift,
             rate: float) -> tuple[Drift | None, Drift | None]:
        """One step of the clock of level n: its drift (None: none) and what it has gathered, after it.

        It gathers its clipped gradient, and if it is due moves by all it has gathered [A 71]. A nested level
        returns to its initial state when the next slower one is due, which ends its context [A 72].
        """
        pending = gather(pending, clip(grads))
        if not due(clock, self.levels[n].chunk):
            return drift, pending
        if self.variant == "nested" and any(due(clock, slower.chunk) for slower in self.levels[n + 1:n + 2]):
            return None, None
        return move(drift, pending, rate), None


def clip(grads: Drift, bound: float = 1.0) -> Drift:
    """Every sequence's gradient scaled down to a norm of at most `bound`, over all weights of a level."""
    squares = stack([sum(g * g, axis=(1, 2)) for g in grads.values()])
    scale = minimum(1.0, bound / sqrt(sum(squares, axis=0) + 1e-12))[:, None, None]  # (B,1,1)
    return {name: g * scale for name, g in grads.items()}


def gather(pending: Drift | None, grads: Drift) -> Drift:
    """What a level has gathered since it last changed, one step later."""
    return grads if pending is None else {name: pending[name] + g for name, g in grads.items()}


def move(drift: Drift, pending: Drift, rate: float) -> Drift:
    """The change that is due [A 71]: θ ← θ − η Σ f."""
    return {name: d - pending[name] * rate for name, d in drift.items()}


def stack_levels(weights: dict[str, np.ndarray], old: Config, new: Config) -> dict[str, np.ndarray]:
    """Weights of a trained one-level model, spread over the levels of a new configuration [§7.3].

    independent: every level starts as the trained MLP, and their equal mixture is the trained function, to
    rounding; spread: every block keeps its own MLP and only the clocks differ, bit for bit. Raises ValueError
    for other variants, whose chain would apply the MLP several times.
    """
    if len(set(old.chunks)) != 1 or len(old.block_chunks(0)) != 1:
        raise ValueError("levels are stacked from a model with one level; this one has chunk sizes "
                         f"{old.chunks}")
    if new.cms not in ("independent", "spread"):
        raise ValueError(f"cms {new.cms!r} would apply the trained MLP several times; choose independent or "
                         "spread")
    stacked = {}
    for name, array in weights.items():
        if ".cms.levels.0." not in name:
            stacked[name] = array
            continue
        block = int(name.split(".")[1])
        for i in range(len(new.block_chunks(block))):
            stacked[name.replace(".levels.0.", f".levels.{i}.")] = array.copy()
        if new.cms == "independent":
            stacked[f"blocks.{block}.cms.mix"] = np.zeros(len(new.chunks), dtype=array.dtype)
    return stacked


# Memories that hold vectors ---------------------------------------------------------------------------------
#
# A level holds weights. The same clock can move what holds no weights, but a few vectors.


class Banks(Mixer):
    """Memories of many spans, ultra-short to episodic: each holds one vector and moves on its own clock.

        m_ℓ ← m_ℓ + (1/C_ℓ) Σ_{last C_ℓ tokens} g_t (v_t − m_ℓ)     if t ≡ 0 (mod C_ℓ), else unchanged
        o_t = Σ_ℓ softmax_ℓ(q_t·m_ℓ/√d + s_ℓ) m_ℓ

    per head: [A 71] for states, with the chunk sizes of `config.spans`, in tokens. It is Hebbian learning
    with retention, one write per chunk with the constant key 1: a = 1 − ḡ and c v = mean g v, g_t < 0.99;
    so `delta_rule` computes all chunks at once.

    x (B,T,D) → (B,T,D). State: the convolution's tail; the position; per bank the vector m (B,H,d,1) and the
    sums of g v and g over a chunk that is not yet full.
    """

    def __init__(self, rng: Rng | None, config: Config):
        super().__init__(rng, config, ("q", "v"))
        self.spans, self.form = config.spans, config.form
        d = config.width // config.heads
        self.gate = Linear(rng, config.width, config.heads * len(self.spans))
        self.initial = normal(rng, (len(self.spans), config.heads, d, 1), 1.0)
        self.share = Parameter(np.zeros((config.heads, len(self.spans)), dtype=np.float32))

    def start(self, x: Tensor) -> dict[str, Any]:
        """The state before the first token."""
        def zeros(*shape: int) -> Tensor:
            return Tensor(np.zeros_like(x.data, shape=(x.shape[0], self.heads, *shape)))
        d = self.initial.shape[2]
        banks = [{"m": self.initial[i] + zeros(1, 1), "write": zeros(d), "gate": zeros()}
                 for i in range(len(self.spans))]
        return {"tail": None, "position": 0, "banks": banks}

    def __call__(self, x: Tensor, state: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
        state = state or self.start(x)
        feed, x, tail = self.feeds(x, state["tail"])
        gates = split_heads(sigmoid(self.gate(x)) * 0.99, heads=self.heads)  # (B,H,T,banks)
        v, read, banks = rms_norm(feed["v"]), [], []
        for i, span in enumerate(self.spans):
            seen, bank = self.bank(span, v, gates[..., i], state["position"], state["banks"][i])
            read.append(seen)
            banks.append(bank)
        m = stack(read, axis=-2)  # (B,H,T,banks,d)
        scores = (m @ feed["q"][..., None])[..., 0] * m.shape[-1] ** -0.5 + self.share[:, None]
        o = (softmax(scores)[..., None, :] @ m)[..., 0, :]
        return self.merge(o), {"tail": tail, "position": state["position"] + x.shape[1], "banks": banks}

    def bank(self, span: int, v: Tensor, g: Tensor, position: int, state: dict[str, Tensor]
             ) -> tuple[Tensor, dict[str, Tensor]]:
        """What one bank holds when each token comes (B,H,T,d), and its next state; v (B,H,T,d), g (B,H,T)."""
        filled, time = position % span, v.shape[2]
        chunks = -(-(filled + time) // span)
        each, tokens = np.arange(chunks, like=v.data), np.arange(time, like=v.data)
        of = (tokens + filled) // span  # the chunk of each token
        member = (of == each[:, None]).astype(v.dtype)  # (chunks,T)
        write, gate = member @ (g[..., None] * v), (member @ g[..., None])[..., 0]  # (B,H,chunks,d), no d
        first = (each == 0).astype(v.dtype)
        write = write + first[:, None] * state["write"][..., None, :]
        gate = gate + first * state["gate"][..., None]
        full = (filled + time) // span  # chunks that are complete
        one = np.ones_like(v.data, shape=(*v.shape[:2], full, 1))
        log_a = log1p(gate[..., :full] * (-1 / span))
        m, last = delta_rule(tensor(one), tensor(one), write[..., :full, :], log_a, tensor(one[..., 0] * 0),
                             tensor(one[..., 0] / span), state["m"], self.form)
        rest = float(full < chunks)
        held = concatenate([m, last.mT], axis=2) if rest else m
        return held[:, :, of], {"m": last, "write": write[:, :, -1] * rest, "gate": gate[..., -1] * rest}


class Cell(Module):
    """A recurrent cell with one state per rate, fast to slow, all moving towards one shared idea.

        idea = tanh(W_x x_t + W_m [m_1 … m_k])                                      the controller
        r_ℓ  = rate_ℓ (1 + reach_ℓ tanh(u_ℓ·[x_t, m_1 … m_k]))                       the rate adapter, bounded
        m_ℓ ← (1 − r_ℓ) m_ℓ + r_ℓ idea,        o_t = W_o mean_ℓ m_ℓ

    with `config.rates`, 0.8, 0.2 and 0.05 by default. reach_ℓ is ½, or less where the rate would rise above 1.
    The slowest state is protected: its 1 is 1 − reach, so that its rate lies between 0 and its own.

    x (B,T,D) → (B,T,D). State: m (B,k,D).
    """

    def __init__(self, rng: Rng | None, config: Config):
        D, k = config.width, len(config.rates)
        rates = np.array(config.rates)
        self.rates = rates
        self.reach = np.minimum(0.5, 1 / rates - 1)  # the adapter's range, so that no rate is above 1 …
        self.middle = np.where(np.arange(k) < k - 1, 1, 1 - self.reach)  # … nor the slowest above its own
        self.see, self.recall = Linear(rng, D, D + k), Linear(rng, k * D, D + k)
        self.output = Linear(rng, D, D, (2 * config.layers) ** -0.5)
        self.initial = normal(rng, (k, D), 0.1)

    def __call__(self, x: Tensor, state: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        B, T, D = x.shape
        m = state["m"] if state else self.initial + np.zeros_like(x.data, shape=(B, 1, 1))
        expect_batch(m, x)
        seen, rates, reach, middle = self.see(x), *(np.asarray(c, dtype=x.dtype, like=x.data)
                                                    for c in (self.rates, self.reach, self.middle))
        states = []
        for t in range(T):
            z = tanh(seen[:, t] + self.recall(reshape(m, shape=(B, -1))))  # (B,D+k)
            r = (rates * (middle + reach * z[:, D:]))[:, :, None]  # (B,k,1)
            m = m + r * (z[:, None, :D] - m)
            states.append(m)
        return self.output(mean(stack(states, axis=1), axis=2)), {"m": m}


def main() -> None:
    """A hand-sized trace: eight segments of 64 tokens, two levels, which weights move when."""
    rng = np.random.default_rng(0)
    config: Any = SimpleNamespace(width=8, hidden=32, layers=1, cms="sequential",
                                  block_chunks=lambda block: (1, 4))
    chain, A = CMS(rng, config, 0), (rng.standard_normal((8, 8)) / np.sqrt(8)).astype(np.float32)
    drift: list[Any] = [level.zero_drift(1) for level in chain.levels]
    pending: list[Any] = [None, None]
    print("Two levels, chunk sizes 1 and 4 (in segments), learn y = A x while they read eight segments:\n")
    print("segment   loss    |drift| chunk 1   |drift| chunk 4   moved")
    for clock in range(1, 9):
        x, moved = rng.standard_normal((1, 64, 8), dtype=np.float32), []
        loss = mean((chain(Tensor(x), drift) - x @ A.T) ** 2)
        leaves = [w for d in drift for w in d.values()]
        found = iter(grad(loss, leaves))
        for n, d in enumerate(drift):
            after, pending[n] = chain.tick(n, clock, d, pending[n], {name: next(found) for name in d}, 0.5)
            moved += [f"chunk {chain.levels[n].chunk}"] * (after is not d)
            drift[n] = {name: Tensor(w.data, requires_grad=True) for name, w in (after or d).items()}
        sizes = [float(np.sqrt(np.sum([np.sum(w.data ** 2) for w in d.values()]))) for d in drift]
        print(f"{clock:7d}   {loss.item():.4f}  {sizes[0]:15.6f}   {sizes[1]:15.6f}   {', '.join(moved)}")


if __name__ == "__main__":
    main()
