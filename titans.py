"""What if every projection is a memory?  Self-modifying Titans: what makes k, v, η and α learns while it reads, too.

The definition comes first, [A 83–91] line by line: a memory as a function, the target it makes itself, its error, the
write, and one chunk of tokens put together of these. Below it stands how a sequence is cut into spans, and the kernel
that reads them at once: by default kernels/titans/ computes what these lines say, and they run with `form="chunked"`,
to the same numbers. The initial states are learned by the outer optimiser *through* all the
writes in between. `python titans.py` prints which memories of a small one move when.

Legend: B batch, T time, n tokens of one span, D width, H heads, d head size, h hidden size; □ any of the memories;
        M₀ an initial state, S the drift M_□ − M₀, N what goes on of its writes (with momentum); z and δ the input of
        one of its layers and its output error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from autograd import (
    Tensor,
    absolute,
    concatenate,
    exp,
    fused,
    grad_enabled,
    minimum,
    normalize,
    rms_normalize,
    sigmoid,
    sign,
    silu,
    sqrt,
    sum,
    tanh,
    tree_map,
    where,
)
from config import Config
from kernels import titans as kernel
from layers import Cost, Parameter, Rng, normal
from memory import STEPS, MemoryMixer, delta_rule, half_lives, log_sigmoid, momentum_rule, zeros

SCALARS = ("eta", "alpha")  # memories with one output per head; the others return a vector of the head size
GATES = (*SCALARS, "beta")
Layers = list[Tensor]  # the weights of one memory: [W] for a matrix, [W₂, W₁] for a network of two layers
Drifts = dict[str, Layers]  # … of every memory


@dataclass(frozen=True)
class TitansState:
    """What self-modifying Titans have read. Initial states are weights of the mixer; here is what differs from them."""

    tail: Tensor  # (B,W−1,D), the filter's last inputs
    position: int  # tokens read
    drift: Drifts  # of every memory M − M₀ (with retention "zero" M itself), each layer (B,H,out,in)
    chunk_start: Drifts  # the same as of the start of the present chunk, of those memories that are inside one
    momentum: Drifts  # of every memory, what goes on of its writes; {} without momentum


@dataclass(frozen=True)
class Gates:
    """How all memories of a head are written, token by token, each (B,H,n)."""

    eta: Tensor
    log_alpha: Tensor
    log_beta: Tensor | None  # None without momentum


class SelfModifyingTitans(MemoryMixer):
    """Five memories per head that learn while they read, each from targets it makes itself [A 83–93].

        q_t = W_q x_t, k_t = M_k(x_t), v_t = M_v(x_t), η_t = M_η(x_t), α_t = M_α(x_t), o_t = M_memory(q_t)
        v̂_□ = M_□(v_t);   M_□ ← M_□(α_t I − η′_t z zᵀ) − η′_t δ_□ zᵀ   for every □ ∈ {k, v, η, α, memory}

    (under α by default M_□ − M₀ in place of M_□), where M(x) = x + W₁ σ(W₂ x) [A 89, 91]. The rule is applied to
    each of its layers with that layer's own input z (k_t, then σ(W₂ k_t)) and its own output error δ, the
    gradient of ½‖M_□(k_t) − v̂_□‖² or −⟨M_□(k_t), v̂_□⟩. Within a chunk, projections, targets and errors
    use the state at its start [A 90]; the writes are exact per token.

    x (B,T,D) → (B,T,D).

    CHOICES (PAPER.md): retention pulls to the initial state; η_t = η_max·sigmoid; v and vector targets
    RMS-normalised, scalar targets through tanh; errors clipped, in the main memory to RMS 1; σ = SiLU; η′ is the exact
    proximal step, or by `step="printed"` the plain η; a scalar memory has a learned vector r in place of the identity,
    r·x + W₁ σ(W₂ x). With `momentum` what is written is N_t = β_t N_{t−1} − η′_t δ zᵀ, β_t = sigmoid(r_β·x_t + b).

    CHOICE: the main memory writes strongly from the first token on (W₂ of variance 1: σ(W₂ k) is not near zero for
    a key of length 1), and what makes k, v, η and α begins gently, as a fixed projection that may learn: its errors
    are clipped to length 1. W₁ is small everywhere, so that a target M_□(v) is near v before anything is written.

    With `through_writes=False` writes are constants to the outer optimiser. Projections, biases and memories that
    only shape what is written then get no gradient; q's projection keeps its own, and so does the main memory's
    initial state, unless retention is "zero".
    """

    def __init__(self, rng: Rng | None, config: Config):
        super().__init__(rng, config, ("q", "k", "v", "gate"))
        self.config = config
        self.chunk_size = {name: config.memory_chunk if name == "memory" else config.projection_chunk
                           for name in config.adaptive}  # tokens over which it is read in one frozen state
        others = ", ".join(name for name in config.adaptive if name != "memory")
        self.clocks = {"main memory": config.memory_chunk} | ({f"what makes {others}": config.projection_chunk}
                                                              if others else {})
        H, d = self.heads, self.head_size
        h = config.memory_hidden or d
        self.initial: dict[str, list[Parameter]] = {}
        for name in config.adaptive:
            out, main = 1 if name in SCALARS else d, name == "memory"
            if config.memory == "matrix":
                scale = 0.25 if main else 0.02 * d ** 0.5 if name in SCALARS else 1.0
                self.initial[name] = [normal(rng, (H, out, d), d ** -0.5 * scale)]
            else:
                self.initial[name] = [normal(rng, (H, h, d), 1.0 if main else d ** -0.5),
                                      normal(rng, (H, out, h), 0.02)]
        starts = {"eta": config.eta_start / config.eta_max, "beta": config.beta_start}  # as sigmoids
        logits = {name: np.full(H, np.log(p / (1 - p)), dtype=np.float32) for name, p in starts.items()}
        gates = GATES if config.momentum else SCALARS
        self.readout = {name: normal(rng, (H, 1, d), 0.0 if name in config.adaptive else d ** -0.5 / 4)
                        for name in gates}
        self.bias = {name: Parameter(half_lives(H) if name == "alpha" else logits[name]) for name in gates}

    # the definition --------------------------------------------------------------------------------------

    def memory(self, name: str, W: Layers | None, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """M_□(x) [A 89, 91], and the inputs of its layers: x, σ(W₂ x).  x (B,H,n,d); W None: a fixed projection"""
        skip = x @ self.readout[name].mT if name in GATES else x
        if W is None:
            return skip, []
        if len(W) == 1:
            return (skip if name in SCALARS else 0.0) + x @ W[0].mT, [x]
        hidden = silu(x @ W[0].mT)
        return skip + hidden @ W[1].mT, [x, hidden]

    def target(self, name: str, W: Layers, v: Tensor) -> Tensor:
        """v̂_□ = M_□(v) [A 84], bounded; plain Titans take v itself."""
        if self.config.targets == "value" and name not in SCALARS:
            return v
        made, _ = self.memory(name, W, v)
        return tanh(made) if name in SCALARS else rms_normalize(made)

    def errors(self, name: str, W: Layers, k: Tensor, v: Tensor) -> list[tuple[Tensor, Tensor]]:
        """(input z, output error δ) of each layer of M_□, for the objective L(M_□; k, v̂_□) [A 85]."""
        made, inputs = self.memory(name, W, k)
        target = self.target(name, W, v)
        delta = made - target if self.config.objective == "l2" else -target
        if self.config.objective == "l2" and self.config.error_power != 2:  # of Σᵢ|M(k) − v̂|ᵢᵖ/p
            size = where(delta.data == 0, 1.0, absolute(delta))  # whose power below 1 has no derivative at 0
            delta = sign(delta) * size ** (self.config.error_power - 1)
        if len(W) == 1:
            return [(k, delta)]
        s = sigmoid(k @ W[0].mT)
        slope = s + inputs[1] * (1 - s)  # σ′ of SiLU
        return [(k, (delta @ W[1]) * slope), (inputs[1], delta)]

    def write(self, S: Tensor, N: Tensor | None, M0: Tensor, z: Tensor, delta: Tensor, limit: int,
              gates: Gates, q: Tensor | None = None) -> tuple[Any, Tensor, Any]:
        """n writes of one layer [A 88], and its reads before each write. S is the drift, W = M₀ + S:

            S ← S(α I − η′ z zᵀ) − η′ (δ + M₀ z) zᵀ         (with retention "zero" S = W, without M₀ z)

        With momentum −η′ δ zᵀ goes through N ← β N − η′ δ zᵀ. δ is clipped to ‖δ‖² ≤ limit.
        """
        c = self.config
        if not c.through_writes:
            z, delta, S, N, gates = tree_map(Tensor.detach, (z, delta, S, N, gates))
        u = -delta * minimum(1.0, 1 / sqrt(sum(delta * delta, axis=-1, keepdims=True) / limit + 1e-12))
        rate = STEPS[c.step](gates.eta, sum(z * z, axis=-1), exp(gates.log_alpha), 2 if c.objective == "l2" else 1)
        forgotten = -(z @ (M0 if c.through_writes else M0.detach()).mT) if c.retention == "initial" else z[..., :1] * 0
        if N is None or gates.log_beta is None:
            reads, S = delta_rule(q, z, u + forgotten, gates.log_alpha, rate, rate, S, c.form)
        else:
            once = rate[..., None] * (forgotten + u * 0)
            reads, S, N = momentum_rule(q, z, u, once, gates.log_alpha, rate, rate, gates.log_beta, S, N, c.form)
        if q is not None and c.retention == "initial":
            reads = reads + q @ M0.mT
        return reads, S, N

    def chunk(self, asked: dict[str, Tensor], chunk_start: Drifts, drift: Drifts, momentum: Drifts
              ) -> tuple[Tensor, Drifts, Drifts]:
        """Read and write n tokens that lie in one chunk of every memory [A 90].

        asked: x W_□ for q, k, v and the gates, (B,H,n,d); chunk_start: every memory's drift at its chunk's start.
        → what the main memory answers (B,H,n,d); drifts and momenta after the last write
        """
        c = self.config
        W = {name: [S + M0 for S, M0 in zip(chunk_start[name], self.initial[name], strict=True)]
             if c.retention == "initial" else chunk_start[name] for name in c.adaptive}

        def says(name: str) -> Tensor:
            return self.memory(name, W.get(name), asked["gate" if name in GATES else name])[0]
        q, k, v = normalize(says("q")), normalize(says("k")), rms_normalize(says("v"))  # [A 83, 86]
        logit = {name: says(name)[..., 0] + bias[:, None] for name, bias in self.bias.items()}  # (B,H,n)
        gates = Gates(sigmoid(logit["eta"]) * c.eta_max, log_sigmoid(logit["alpha"]),
                      log_sigmoid(logit["beta"]) if c.momentum else None)

        drifts: Drifts = {}
        momenta: Drifts = {name: [] for name in momentum}
        exact = c.reads == "exact"  # the main memory answers as of the token before, not as of the chunk's start
        for name in c.adaptive:
            # the query goes through the main memory's layers as they are written: o = q + W₁ σ(W₂ q)
            x = q if name == "memory" and exact else None
            drifts[name] = []
            for i, (z, delta) in enumerate(self.errors(name, W[name], k, v)):
                N = momentum[name][i] if c.momentum else None
                limit = delta.shape[-1] if name == "memory" else 1
                read, S, N = self.write(drift[name][i], N, self.initial[name][i], z, delta, limit, gates, x)
                drifts[name].append(S)
                if N is not None:
                    momenta[name].append(N)
                if x is not None:
                    o, x = read, silu(read)
        if not exact:
            o, _ = self.memory("memory", W["memory"], q)
        elif c.memory == "mlp":
            o = q + o
        return o, drifts, momenta

    # a sequence, cut into spans --------------------------------------------------------------------------

    def start(self, x: Tensor) -> TitansState:
        """No drift (with retention "zero": the initial states)."""
        def nothing() -> Drifts:
            return {name: [zeros(x, *M0.shape) for M0 in layers] for name, layers in self.initial.items()}
        drift = nothing()
        if self.config.retention == "zero":
            drift = {name: [S + M0 for S, M0 in zip(layers, self.initial[name], strict=True)]
                     for name, layers in drift.items()}
        return TitansState(self.conv.start(x), 0, drift, {}, nothing() if self.config.momentum else {})

    def __call__(self, x: Tensor, state: TitansState | None = None) -> tuple[Tensor, TitansState]:
        state = state or self.start(x)
        asked, x, tail = self.project(x, state.tail)
        drift, chunk_start, momentum, position = state.drift, state.chunk_start, state.momentum, state.position
        reads, t = [], 0
        while t < x.shape[1]:
            spans = self.cut(x.shape[1] - t, position, chunk_start)
            n = int(np.sum([span.tokens for span in spans]))
            part, before = between(asked, t, t + n, x.shape[1]), drift
            o, drift, momentum = self.read(part, spans, chunk_start, drift, momentum)
            reads.append(o)
            t, position = t + n, position + n
            chunk_start = {name: chunk_start.get(name, before[name])
                           for name, size in self.chunk_size.items() if position % size}
        return self.merge(joined(reads)), TitansState(tail, position, drift, chunk_start, momentum)

    def cut(self, T: int, position: int, inside: Drifts | Sequence[str]) -> list[Span]:
        """Cut T tokens wherever a memory's chunk ends; `inside`: the memories that are inside one already.

        Of a chunk that is still open at the end the next call needs the drift at its start, and drifts between spans do
        not leave the kernel: so the spans end where the first such chunk begins. Without gradients they end after FEW,
        for all those drifts are held meanwhile.
        """
        spans: list[Span] = []
        seen = {name: EARLIER if name in inside else 0 for name in self.chunk_size}
        while T and (grad_enabled() or len(spans) < FEW):
            n = min(T, LONGEST, *(size - position % size for size in self.chunk_size.values()))
            spans.append(Span(n, seen))
            T, position = T - n, position + n
            seen = {name: s if position % self.chunk_size[name] else len(spans) for name, s in seen.items()}
        while late := [s for s in seen.values() if 0 < s < len(spans)]:
            seen, spans = spans[min(late)].seen, spans[:min(late)]
        return spans

    def read(self, asked: dict[str, Tensor], spans: list[Span], chunk_start: Drifts, drift: Drifts, momentum: Drifts
             ) -> tuple[Tensor, Drifts, Drifts]:
        """Read and write the tokens of all spans, in one kernel where there is one.

        It knows two layers, both objectives with p = 2, and gradients through writes; anything else is computed in
        operations, with the kernel of the delta rule. Retention to zero is retention to an initial state of zeros.
        """
        c = self.config
        plain = (c.reads, c.step, c.momentum) == ("exact", "proximal", False)
        if not (self.known_to_kernel() and kernel.has_titans(asked["q"].data, plain)):
            return self.read_in_operations(asked, spans, chunk_start, drift, momentum)
        weights = {"bias": self.bias, "readout": self.readout, "initial": self.retained()}
        begun = {name: chunk_start[name] for name, s in spans[0].seen.items() if s == EARLIER}
        return fused_read(asked, weights, begun, drift, momentum, mixer=self, spans=spans)

    def known_to_kernel(self) -> bool:
        """Whether the kernel computes what the settings say."""
        c = self.config
        return (c.memory, c.through_writes, c.error_power, c.form) == ("mlp", True, 2.0, "fused")

    def retained(self) -> dict[str, list[Any]]:
        """What retention pulls to, as the kernel has it: retention to zero is that to an initial state of zeros."""
        if self.config.retention == "initial":
            return self.initial  # type: ignore[return-value]
        return {name: [Tensor(np.zeros_like(M0.data)) for M0 in layers] for name, layers in self.initial.items()}

    def kernel_settings(self) -> tuple[bool, bool, float, float, bool]:
        """Of `kernel.titans`: l2, value_targets, eta_max, forgets (0 for the proximal step) and exact."""
        c = self.config
        forgets = 0.0 if c.step == "proximal" else 2.0 if c.objective == "l2" else 1.0
        return c.objective == "l2", c.targets == "value", c.eta_max, forgets, c.reads == "exact"

    def read_in_operations(self, asked: dict[str, Tensor], spans: list[Span], chunk_start: Drifts, drift: Drifts,
                           momentum: Drifts) -> tuple[Tensor, Drifts, Drifts]:
        """One span after the other: the definition of `read`."""
        boundaries, reads, t = [drift], [], 0
        for span in spans:
            seen = {name: chunk_start[name] if s < 0 else boundaries[s][name] for name, s in span.seen.items()}
            part = between(asked, t, t + span.tokens, asked["q"].shape[2])
            o, drift, momentum = self.chunk(part, seen, drift, momentum)
            reads.append(o)
            boundaries.append(drift)
            t += span.tokens
        return joined(reads), drift, momentum

    # what is asked of every mixer ------------------------------------------------------------------------

    def drift(self, state: TitansState) -> dict[str, list[tuple[Any, Any]]]:
        whole = self.config.retention == "zero"  # only then the state includes the initial one
        return {name: [(S.data - M0.data if whole else S.data, M0.data)
                       for S, M0 in zip(layers, self.initial[name], strict=True)]
                for name, layers in state.drift.items()}

    def cost(self, tokens: int) -> Cost:
        """Per layer: to project, predict and make a target; to read along z, write, and pull to M₀; in vector memories
        another time back through the second layer."""
        sizes = {name: [M0.size for M0 in layers] for name, layers in self.initial.items()}
        products = int(np.sum([6 * np.sum(layers) + (layers[-1] if len(layers) > 1 and name not in SCALARS else 0)
                               for name, layers in sizes.items()]))
        held = [np.sum(layers) * (1 + (tokens % self.chunk_size[name] > 0) + self.config.momentum)
                for name, layers in sizes.items()]
        return Cost(products, self.tail_size + int(np.sum(held)))


# Spans and their kernel ----------------------------------------------------------------------------------

LONGEST = 64  # tokens written at once; a longer chunk is cut, which changes nothing
EARLIER = -1  # in place of a span: an earlier call, in which the chunk began
FEW = 8  # spans that are read in one go where no gradients are wanted: so many states are held meanwhile


@dataclass(frozen=True)
class Span:
    """Tokens that lie in one chunk of every memory."""

    tokens: int
    seen: dict[str, int]  # by memory: the span with which its chunk began, whose state errors see, or EARLIER


def between(asked: dict[str, Tensor], start: int, stop: int, whole: int) -> dict[str, Tensor]:
    """What is asked at some of the tokens"""
    return asked if stop - start == whole else {name: x[:, :, start:stop] for name, x in asked.items()}


def joined(reads: list[Tensor]) -> Tensor:
    """What was read of one span after the other, (B,H,T,d)"""
    return reads[0] if len(reads) == 1 else concatenate(reads, axis=2)


@fused(reference=lambda asked, weights, *states, mixer, spans: mixer.read_in_operations(asked, spans, *states))
def fused_read(asked, weights, chunk_start, drift, momentum, *, mixer, spans):
    """`read_in_operations` in one kernel; on its way back it is computed again, but for the states between spans."""
    inputs = (list(asked.values()), list(weights["bias"].values()), list(weights["readout"].values()),
              weights["initial"], drift, chunk_start, momentum)
    settings = (mixer.config.adaptive, *mixer.kernel_settings(), [(span.tokens, span.seen) for span in spans])
    *results, boundaries = kernel.titans(*settings, *inputs, back=grad_enabled())

    def backward(*results_bar):
        asked_bar, bias_bar, readout_bar, initial_bar, *states_bar = kernel.titans_backward(
            *settings, boundaries, *inputs, *results_bar)
        weights_bar = {"bias": dict(zip(weights["bias"], bias_bar, strict=True)),
                       "readout": dict(zip(weights["readout"], readout_bar, strict=True)), "initial": initial_bar}
        drift_bar, start_bar, momentum_bar = states_bar
        return dict(zip(asked, asked_bar, strict=True)), weights_bar, start_bar, drift_bar, momentum_bar
    return tuple(results), backward


def main() -> None:
    """A hand-sized trace: self-modifying Titans, token by token."""
    config: Any = SimpleNamespace(
        width=8, heads=2, layers=1, memory="mlp", memory_hidden=0,
        adaptive=("k", "v", "eta", "alpha", "memory"), objective="l2", targets="self", reads="exact",
        memory_chunk=4, projection_chunk=2, eta_max=0.1, eta_start=0.02, retention="initial",
        through_writes=True, step="proximal", momentum=False, beta_start=0.5, error_power=2.0, form="chunked")
    rng = np.random.default_rng(0)
    mixer, state = SelfModifyingTitans(rng, config), None
    print("Self-modifying Titans read eight tokens; the main memory's chunks have 4, the projections' 2.\n"
          "How far each memory has drifted; errors and projections see it as of its chunk's start:\n")
    print("token  " + "".join(f"{name:>9}" for name in config.adaptive) + "   seen from the next token on")
    for t in range(8):
        _, state = mixer(Tensor(rng.standard_normal((1, 1, 8), dtype=np.float32)), state)
        drift = {name: math.hypot(*(np.linalg.norm(S.data) for S in layers)) for name, layers in state.drift.items()}
        moved = [name for name in drift if name not in state.chunk_start]
        print(f"{t + 1:5}  {''.join(f'{x:9.4f}' for x in drift.values())}   {', '.join(moved)}".rstrip())


if __name__ == "__main__":
    main()
