"""What moves when?  The continuum memory system: a chain of MLPs, each learning on its own clock.

A Transformer has one MLP per block, and it changes at every step or never. Here a block has several, fast to
slow; the one with chunk size C changes only when its clock is due, and then by all it has gathered since
[A 70–71, N 30–31]:

    y = MLP_k( … MLP_2(MLP_1(x)) … )
    θ_ℓ ← θ_ℓ − Σ_{last C_ℓ steps} η_ℓ f(θ_ℓ; x)     if i ≡ 0 (mod C_ℓ),      else unchanged

One level with chunk size 1 is the Transformer's MLP, exactly. A *step* i of the clocks is one segment, all that
one step of the optimiser takes in, or a tick, which is a part of one window.

The clocks tick in two places. In training, the optimiser holds one parameter group per chunk size, and
changes the initial states. While reading with learning on, `CMS.learn` changes the running state: each level's
drift from its initial state, one per sequence. (Nested levels, and all with `moves="context"`, learn in this second
way while they are trained as well, tick by tick, and the initial states are learned through it.)

Legend: B batch, T time, D width, F hidden size, k levels, C chunk size (in steps), i clock.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from autograd import Tensor, exp, grad, mean, minimum, softmax, sqrt, stack, sum
from config import Config
from layers import LayerNorm, Linear, Module, Parameter, RMSNorm, Rng, gelu, linear, swiglu

VARIANTS = ("sequential", "independent", "nested", "spread")

Drift = dict[str, Tensor]  # what one level has drifted from its initial state, a weight (B,out,in) per name


@dataclass(frozen=True)
class LevelState:
    """What one level has learned from one text."""

    drift: Drift | None = None  # W − W₀; None: it stands at its initial state
    pending: Drift | None = None  # the gradients it has gathered since it last moved


def due(clock: int, chunk: int) -> bool:
    """Whether a level of this chunk size changes at this step (steps count from 1)."""
    return clock % chunk == 0


class Level(Module):
    """One memory of the chain: MLP(x) = W_down σ(W_up x), σ = GELU; or W_down (silu(W_gate x) ∘ W_up x).  x (B,T,D)

    What it learns while reading is a drift of its matrices, not of biases; in rank r it is U V, where U (out,r) learns
    and the rows of V (r,in) are orthonormal and stay as they were drawn [LoRA-FA, Zhang 2023].
    """

    def __init__(self, rng: Rng | None, config: Config, chunk: int):
        width, hidden, bias = config.width, config.hidden, "level" in config.biases
        self.chunk, self.rank, self.norm = chunk, config.drift_rank, make_norm(config)
        self.up = Linear(rng, width, hidden, bias=bias)
        self.down = Linear(rng, hidden, width, (2 * config.layers) ** -0.5, bias=bias)
        if config.activation == "swiglu":
            self.gate = Linear(rng, width, hidden, bias=bias)

    def weights(self) -> dict[str, Parameter]:
        return {name: layer.weight for name, layer in vars(self).items() if isinstance(layer, Linear)}

    def __call__(self, x: Tensor, drift: Drift | None = None) -> Tensor:
        if hasattr(self, "gate"):
            return self.through("down", swiglu(*(self.through(name, x, drift) for name in ("gate", "up"))), drift)
        return self.through("down", gelu(self.through("up", x, drift)), drift)

    def through(self, name: str, x: Tensor, drift: Drift | None) -> Tensor:
        """(W + drift) x + b, of one matrix."""
        layer: Linear = getattr(self, name)
        if drift is None:
            return layer(x)
        if self.rank:
            V = directions(self.rank, x.shape[-1]).astype(x.dtype)
            return layer(x) + linear(x, np.asarray(V, like=x.data)) @ drift[name].mT
        y = x @ (layer.weight + drift[name]).mT  # (B,out,in)
        return y if layer.bias is None else y + layer.bias

    def zero_drift(self, batch: int) -> Drift:
        """No drift yet, in a form that gradients can be taken of."""
        return {name: Tensor(np.zeros_like(w.data, shape=(batch, len(w), self.rank or w.shape[1])), requires_grad=True)
                for name, w in self.weights().items()}

    def merged(self, drift: Drift | None) -> dict[str, np.ndarray]:
        """The matrices with what one sequence has learned in them: the arrays themselves if it is nothing."""
        if drift is None:
            return {name: w.data for name, w in self.weights().items()}
        whole = {name: d.data[0] @ directions(self.rank, self.weights()[name].shape[1]) if self.rank else d.data[0]
                 for name, d in drift.items()}
        return {name: (w.data + whole[name]).astype(w.dtype) for name, w in self.weights().items()}


@functools.cache
def directions(rank: int, size: int) -> np.ndarray:
    """Orthonormal rows, always the same ones, in which the drift of a matrix may lie: (r,in)"""
    q, r = np.linalg.qr(np.random.default_rng([rank, size]).standard_normal((size, rank)))
    return np.ascontiguousarray((q * np.sign(np.diag(r))).T)


def make_norm(config: Config) -> Any:
    """What stands before a mixer or a level."""
    if config.norm == "layer":
        return LayerNorm(config.width, config.norm_eps)
    return RMSNorm(config.width, config.norm_eps, learned=config.norm == "rms")


class CMS(Module):
    """The chain of levels, fast to slow, with its residual connections.  x (B,T,D) → (B,T,D)

    sequential   h ← h + MLP_ℓ(norm h), level after level [A 70, 73]
    nested       the same function; the levels differ in how their initial states are learned [A 72]:
                 `Hope.context_loss`
    independent  x + Σ_ℓ w_ℓ MLP_ℓ(norm x), w = softmax of learned weights [A 74]
    spread       one level per block, the chunk sizes spread over the depth of the model, fast to slow [§7.3]

    Each level has an inner learning rate η_ℓ of its own, which is learned with `moves="context"`.

    CHOICE: every level is residual behind its own norm, so that one level is the Transformer's MLP and a
    chain of untrained ones passes its input on.
    """

    def __init__(self, rng: Rng | None, config: Config, block: int):
        self.variant = config.cms
        self.levels = [Level(rng, config, chunk) for chunk in config.block_chunks(block)]
        self.ends = self.variant == "nested" or config.level_drift == "ends"
        self.fixed_rates = config.block_rates(block)
        if config.moves == "context":  # the rates are learned, too
            self.log_rate = Parameter(np.log(np.array(self.fixed_rates, dtype=np.float32)))
        if self.variant == "independent":
            self.mix = Parameter(np.zeros(len(self.levels), dtype=np.float32))

    def start(self) -> tuple[LevelState, ...]:
        """Before the first segment: every level at its initial state."""
        return tuple(LevelState() for _ in self.levels)

    def __call__(self, x: Tensor, states: Sequence[LevelState] | None = None) -> Tensor:
        drift = [state.drift for state in states or self.start()]
        if self.variant == "independent":
            y, weight = x, softmax(self.mix)
            for i, level in enumerate(self.levels):
                y = y + weight[i] * level(level.norm(x), drift[i])
            return y
        for level, moved in zip(self.levels, drift, strict=True):
            x = x + level(level.norm(x), moved)
        return x

    def rates(self) -> Any:
        """η_ℓ of every level."""
        return exp(self.log_rate) if hasattr(self, "log_rate") else self.fixed_rates

    def drifts(self, states: Sequence[LevelState], batch: int, history: bool = False) -> list[Drift]:
        """The drift of every level, none as zeros, in a form that gradients can be taken of.

        With `history` a copy that remembers where it came from, if it does: a gradient is then that of the drift as it
        was used here, and itself can be differentiated.
        """
        return [level.zero_drift(batch) if state.drift is None else
                {name: d * 1 if history and d.requires_grad else Tensor(d.data, requires_grad=True)
                 for name, d in state.drift.items()}
                for level, state in zip(self.levels, states, strict=True)]

    def learn(self, states: Sequence[LevelState], drifts: Sequence[Drift], grads: Sequence[Drift], clock: int,
              rates: Any = None) -> tuple[LevelState, ...]:
        """One step of the clock, for the levels of one block: from their drifts and gradients to their next states.

        A level gathers its clipped gradient, and if it is due moves by all it has gathered, at its own rate [A 71]. A
        nested level returns to its initial state when the next slower one is due, which ends its context [A 72]; in
        other variants it does so by `level_drift="ends"`. (There may be fewer drifts than levels: those that have none
        stand still.)
        """
        rates, after = self.rates() if rates is None else rates, list(states)
        for n, (state, drift, g) in enumerate(zip(states, drifts, grads, strict=False)):
            pending = gather(state.pending, clip(g))
            if self.ends and n + 1 < len(self.levels) and due(clock, self.levels[n + 1].chunk):
                after[n] = LevelState()
            elif not due(clock, self.levels[n].chunk):
                after[n] = LevelState(drift, pending)
            else:
                after[n] = LevelState(move(drift, pending, rates[n]))
        return tuple(after)


def clip(grads: Drift, bound: float = 1.0) -> Drift:
    """Every sequence's gradient scaled down to a norm of at most `bound`, over all weights of a level."""
    squares = stack([sum(g * g, axis=(1, 2)) for g in grads.values()])
    scale = minimum(1.0, bound / sqrt(sum(squares, axis=0) + 1e-12))[:, None, None]  # (B,1,1)
    return {name: g * scale for name, g in grads.items()}


def gather(pending: Drift | None, grads: Drift) -> Drift:
    """What a level has gathered since it last changed, one step later; for drifts what `optimizers.gather` is."""
    return grads if pending is None else {name: pending[name] + g for name, g in grads.items()}


def move(drift: Drift, pending: Drift, rate: Any) -> Drift:
    """The change that is due [A 71], of the drift of θ_ℓ: θ_ℓ ← θ_ℓ − η_ℓ Σ f."""
    return {name: d - pending[name] * rate for name, d in drift.items()}


def stack_levels(weights: dict[str, np.ndarray], old: Config, new: Config) -> dict[str, np.ndarray]:
    """Weights of a trained one-level model, spread over the levels of a new configuration [§7.3].

    spread: every block keeps its own MLP, in a level of its own, and only the clocks differ, bit for bit: the paper's,
    for k different trained MLPs start k levels. independent: every level starts as a copy of the trained MLP, and
    their equal mixture is the trained function, to rounding. Raises ValueError for other variants, whose chain would
    apply the MLP several times.
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


def main() -> None:
    """A hand-sized trace: eight segments of 64 tokens, two levels, which weights move when."""
    rng = np.random.default_rng(0)
    config = Config(width=8, hidden=32, layers=1, chunks=(1, 4), learn_rate=0.5)
    chain, A = CMS(rng, config, 0), (rng.standard_normal((8, 8)) / np.sqrt(8)).astype(np.float32)
    states = chain.start()
    print("Two levels, chunk sizes 1 and 4 (in segments), learn y = A x while they read eight segments:\n")
    print("segment   loss    |drift| chunk 1   |drift| chunk 4   moved")
    for clock in range(1, 9):
        x, drifts = rng.standard_normal((1, 64, 8), dtype=np.float32), chain.drifts(states, 1)
        loss = mean((chain(Tensor(x), [LevelState(d) for d in drifts]) - x @ A.T) ** 2)
        found = iter(grad(loss, [w for d in drifts for w in d.values()]))
        states = chain.learn(states, drifts, [{name: next(found) for name in d} for d in drifts], clock)
        moved = [f"chunk {level.chunk}" for level in chain.levels if due(clock, level.chunk)]
        sizes = [float(np.sqrt(np.sum([np.sum(w.data ** 2) for w in (s.drift or {}).values()]))) for s in states]
        print(f"{clock:7d}   {loss.item():.4f}  {sizes[0]:15.6f}   {sizes[1]:15.6f}   {', '.join(moved)}")


if __name__ == "__main__":
    main()
