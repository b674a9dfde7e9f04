"""How does a memory learn while it reads?  One family of rules, from linear attention to delta gradient descent.

A memory is a function with its own weights. Reading is a forward pass, `S q`; writing is a step of learning on the
pair (k, v). The first half of this file is that step in one line of algebra, in three forms that agree to rounding;
then come the rules of the paper as settings of it, and the mixer that a model is built of: `MatrixMemory`, one matrix
per head, written at every token. `python memory.py` prints what every rule remembers of eight tokens.

Legend: B batch, T time, D width, H heads, d head size; S (…,d_v,d_k) a matrix memory; a_t retention, b_t what is
        forgotten along k_t, c_t what is written.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import kernels
from autograd import (
    Tensor,
    concatenate,
    cumsum,
    exp,
    fused,
    maximum,
    minimum,
    normalize,
    relu,
    rms_normalize,
    sigmoid,
    softplus,
    solve_triangular,
    swapaxes,
    tensor,
    where,
)
from config import Config
from layers import CausalConv, Cost, Linear, Mixer, Parameter, Rng, merge_heads, normal, rms_norm, split_heads

# The learning rule ---------------------------------------------------------------------------------------
#
#     o_t = S_{t−1} q_t,      S_t = S_{t−1}(a_t I − b_t k_t k_tᵀ) + c_t v_t k_tᵀ            read, then write
#
# in three forms that agree to rounding. q, k (…,T,d_k), v (…,T,d_v), log_a, b, c (…,T), S (…,d_v,d_k).


def delta_rule(q: Tensor | None, k: Tensor, v: Tensor, log_a: Tensor, b: Tensor, c: Tensor, S: Tensor,
               form: str = "fused") -> tuple[Any, Tensor]:
    """All reads o (…,T,d_v), None without queries, and the last state S_T, in any form of `FORMS`."""
    return FORMS[form](q, k, v, log_a, b, c, S)


recurrent = kernels.delta_rule.definition  # token by token


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
        U, ratio, before, after, whole = written(K, V, S, *(x[..., t:t + chunk] for x in (log_a, b, c)))
        if q is not None:
            Q = q[..., t:t + chunk, :]
            reads.append(before * (Q @ S.mT) + (Q @ K.mT * ratio) @ U)
        S = whole * S + (U * after).mT @ K
    return together(reads, q, v), S if k.shape[-2] else S * 1


def written(K: Tensor, V: Tensor, S: Tensor, log_a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, ...]:
    """U of one chunk; and the decays g_{t−1}/g_i (…,C,C), g_{t−1} and g_C/g_i (…,C,1), g_C (…,1,1)."""
    log_g = log_products(log_a)
    log_before, last = concatenate([log_g[..., :1] * 0, log_g[..., :-1]], axis=-1), log_g[..., -1:]
    earlier = np.tril(np.ones_like(K.data, shape=(K.shape[-2],) * 2, dtype=bool), -1)
    # masked before the exponential: g_{t−1}/g_i for i ≥ t may overflow
    log_ratio = where(earlier, log_before[..., :, None] - log_g[..., None, :], -np.inf)
    ratio = exp(log_ratio.astype(K.dtype))
    before, after, whole = (exp(x)[..., None].astype(K.dtype) for x in (log_before, last - log_g, last))
    U = solve_triangular(K @ K.mT * ratio * b[..., None], c[..., None] * V - b[..., None] * before * (K @ S.mT),
                         unit=True)
    return U, ratio, before, after, whole


def log_products(log_a: Tensor) -> Tensor:
    """log ∏_{i≤t} a_i, in float64, as small differences of large sums are wanted.

    log 0 counts as −1000, whose exponential is 0, too: −∞ − (−∞) is no number.
    """
    return cumsum(maximum(log_a.astype(np.float64), -1e3), axis=-1)


def together(reads: list[Tensor], q: Tensor | None, v: Tensor) -> Tensor | None:
    """Reads (…,n,d_v) one after the other; None without queries, and of no tokens none."""
    if q is None:
        return None
    return concatenate(reads, axis=-2) if reads else v * 1


FORMS: dict[str, Callable] = {"recurrent": recurrent, "chunked": chunked,
                              "fused": fused(kernels.delta_rule, reference=chunked)}

# With momentum -------------------------------------------------------------------------------------------
#
#     N_t = β_t N_{t−1} + c_t v_t k_tᵀ,      S_t = S_{t−1}(a_t I − b_t k_t k_tᵀ) + d_t k_tᵀ + N_t
#
# What is written goes on: N is a memory of writes, with a retention β of its own. d_t is written once, without it.


def momentum_rule(q: Tensor | None, k: Tensor, v: Tensor, d: Tensor, log_a: Tensor, b: Tensor, c: Tensor,
                  log_beta: Tensor, S: Tensor, N: Tensor, form: str = "chunked") -> tuple[Any, Tensor, Tensor]:
    """All reads o_t = S_{t−1} q_t (None without queries), S_T and N_T; d like v, log_beta like log_a, N like S.

    CHOICE: Table 6 shows what momentum is worth, but no equation holds it. N ← β N − η ∇L as in Titans; here
    S ← S(α I − η k kᵀ) + N; β_t is given per token and head, and what is forgotten along k gathers no momentum.
    """
    if form == "recurrent":
        return momentum_recurrent(q, k, v, d, log_a, b, c, log_beta, S, N)
    return momentum_chunked(q, k, v, d, log_a, b, c, log_beta, S, N)


def momentum_recurrent(q, k, v, d, log_a, b, c, log_beta, S, N):
    """The definition, token by token."""
    reads = []
    for t in range(k.shape[-2]):
        key, value, once = (x[..., t, :, None] for x in (k, v, d))  # columns
        a, beta, forget, write = (x[..., t, None, None] for x in (exp(log_a), exp(log_beta), b, c))
        if q is not None:
            reads.append((S @ q[..., t, :, None]).mT)
        N = N * beta + write * value @ key.mT
        S = S * a - forget * (S @ key) @ key.mT + once @ key.mT + N
    return together(reads, q, v), S, N


def momentum_chunked(q, k, v, d, log_a, b, c, log_beta, S, N, chunk=64):
    """The same, exactly, a chunk at a time. With g_t = ∏ a_i, h_t = ∏ β_i, R_tj = g_t/g_j, H_tj = h_t/h_j for j ≤ t:

        S_t = g_t S₀ + (R h)_t N₀ + Σ_{j≤t} (R_tj u_j + (R H)_tj w_j) k_jᵀ,     w_j = c_j v_j,
        N_t = h_t N₀ + Σ_{j≤t} H_tj w_j k_jᵀ,                                   u_j = d_j − b_j S_{j−1} k_j

    so that U solves one triangular system again, and everything else is a product.
    """
    reads = []
    for t in range(0, k.shape[-2], chunk):
        K, V, once = (x[..., t:t + chunk, :] for x in (k, v, d))
        log_at, forget, write, log_beta_t = (x[..., t:t + chunk] for x in (log_a, b, c, log_beta))
        R, g = ratios(log_at)
        H, h = ratios(log_beta_t)
        RH, Rh, W = R @ H, R @ h, write[..., None] * V
        R_seen, RH_seen, Rh_seen, g_seen = shifted(R), shifted(RH), shifted(Rh), shifted(g, 1.0)  # of S_{t−1}
        gram = K @ K.mT
        seen = g_seen * (K @ S.mT) + Rh_seen * (K @ N.mT) + (gram * RH_seen) @ W
        U = solve_triangular(gram * R_seen * forget[..., None], once - forget[..., None] * seen, unit=True)
        if q is not None:
            Q = q[..., t:t + chunk, :]
            QK = Q @ K.mT
            reads.append(g_seen * (Q @ S.mT) + Rh_seen * (Q @ N.mT) + (QK * R_seen) @ U + (QK * RH_seen) @ W)
        S = g[..., -1:, :] * S + Rh[..., -1:, :] * N + (R[..., -1, :, None] * U + RH[..., -1, :, None] * W).mT @ K
        N = h[..., -1:, :] * N + (H[..., -1, :, None] * W).mT @ K
    return together(reads, q, v), S, N


def ratios(log_a: Tensor) -> tuple[Tensor, Tensor]:
    """g_t/g_j for j ≤ t, else 0 (…,C,C), and g_t (…,C,1), from log a (…,C)"""
    log_g = log_products(log_a)
    upto = np.tril(np.ones_like(log_a.data, shape=(log_a.shape[-1],) * 2, dtype=bool))
    log_ratio = where(upto, log_g[..., :, None] - log_g[..., None, :], -np.inf)
    return exp(log_ratio.astype(log_a.dtype)), exp(log_g)[..., None].astype(log_a.dtype)


def shifted(x: Tensor, at_first: float = 0.0) -> Tensor:
    """What stood before token t: every row one further down.  x (…,C,n)"""
    return concatenate([x[..., :1, :] * 0 + at_first, x[..., :-1, :]], axis=-2)


# What mixers with a memory share --------------------------------------------------------------------------


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


def zeros(x: Tensor, *shape: int) -> Tensor:
    """Zeros for every sequence of a batch like x.  → (B,*shape)"""
    return Tensor(np.zeros_like(x.data, shape=(x.shape[0], *shape)))


class MemoryMixer(Mixer):
    """A causal filter, slow linear maps to what the heads are asked, a memory (the subclass), an output map.

    CHOICE: the filter stands before the projections; the text says only "local convolutions of window 4".
    """

    def __init__(self, rng: Rng | None, config: Config, projections: tuple[str, ...]):
        self.heads, self.head_size = config.heads, config.width // config.heads
        self.conv = CausalConv(rng, config.width)
        self.projection = {name: Linear(rng, config.width, config.width) for name in projections}
        self.output = Linear(rng, config.width, config.width, (2 * config.layers) ** -0.5)

    def project(self, x: Tensor, tail: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """What each memory is asked, per head (B,H,T,d); the filtered input (B,T,D); its next tail."""
        expect_batch(tail, x)
        x, tail = self.conv(x, tail)
        return {name: split_heads(f(x), heads=self.heads) for name, f in self.projection.items()}, x, tail

    def merge(self, reads: Tensor) -> Tensor:
        """(B,H,T,d) → (B,T,D), every head brought to one scale first"""
        return self.output(merge_heads(rms_norm(reads)))

    @property
    def tail_size(self) -> int:
        """Numbers in the filter's tail of one sequence."""
        return (self.conv.taps - 1) * self.heads * self.head_size


# One matrix per head, written at every token ------------------------------------------------------------


def proximal(eta: Tensor, squared: Any = 1.0, alpha: Any = 1.0, forgets: float = 1.0) -> Tensor:
    """The exact step of delta gradient descent, η′ = η/(1 + η‖x‖²) [A 56–57], by [A 113–121].

    It is stable for any η if the target does not depend on the memory. (It takes what `printed` takes.)
    """
    return eta / (1 + eta * squared)


def printed(eta: Tensor, squared: Any = 1.0, alpha: Any = 1.0, forgets: float = 1.0) -> Tensor:
    """The plain η of [A 88, 92–93]. A write `forgets` once along k, or twice where its error forgets, too.

    CHOICE: no step goes below an eigenvalue of −1, which is what state tracking needs: η ≤ (1 + α)/(forgets·‖k‖²).
    """
    return minimum(eta, (1 + alpha) / (forgets * squared + 1e-12))


STEPS = {"proximal": proximal, "printed": printed}
FEATURES = {  # φ of [A 5, 64], element by element, before keys and queries are brought to length 1
    "identity": lambda x: x, "relu": relu, "elu": lambda x: where(x > 0, x + 1, exp(minimum(x, 0.0))),
    "square": lambda x: x * x}

RULES: dict[str, Callable] = {  # (log a, b, c) from the gates (log α, η) of a token
    "linear":    lambda log_alpha, eta, step=proximal: (0.0, 0.0, 1.0),             # Hebbian [A 14–18; N 12–16]
    "retention": lambda log_alpha, eta, step=proximal: (log_alpha, 0.0, 1.0),       # … with retention [A 5, 64]
    "delta":     lambda log_alpha, eta, step=proximal: (0.0, eta, eta),             # DeltaNet [A 65]
    "signed":    lambda log_alpha, eta, step=proximal: (0.0, eta * 2, eta * 2),     # 1 − 2η < 0, too [Grazzi 2024]
    "gated":     lambda log_alpha, eta, step=proximal: (log_alpha, exp(log_alpha) * eta, eta),  # gated DeltaNet
    "oja":       lambda log_alpha, eta, step=proximal: (log_alpha, eta, eta),       # of Sᵀ, see `oja` [A 66–67]
    # by the step η′ or η
    "dgd":       lambda log_alpha, eta, step=proximal: (log_alpha, *(step(eta, 1, exp(log_alpha)),) * 2),  # [A 92]
    "dgd-l2":    lambda log_alpha, eta, step=proximal: l2_rates(log_alpha, step(eta, 1, exp(log_alpha), 2)),  # [A 93]
}
GATES = {"linear": (), "retention": ("alpha",), "delta": ("eta",), "signed": ("eta",)}  # the others have both


def l2_rates(log_alpha: Tensor, rate: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Forgotten by the factor α I − η k kᵀ and once more by the error: −η S k kᵀ − η (S k − v) kᵀ."""
    return log_alpha, rate * 2, rate


def oja(q: Tensor, k: Tensor, v: Tensor, log_a: Tensor, b: Tensor, c: Tensor, S: Tensor, chunk: int = 64
        ) -> tuple[Tensor, Tensor]:
    """Oja's rule [A 66–67]: S ← α S + η v(k − Sᵀv)ᵀ, read o = S q. It is the delta rule of Sᵀ, v being the key:

        Sᵀ ← Sᵀ(α I − η v vᵀ) + η k vᵀ        (b = c = η; the print has k − Sᵀv without its ᵀ)

    CHOICE: a value, along which it forgets, has length 1 in `MatrixMemory`, where those of other rules have RMS 1.
    """
    X, reads = S.mT, []  # (…,d_k,d_v)
    for t in range(0, k.shape[-2], chunk):
        Q, K, V = (x[..., t:t + chunk, :] for x in (q, k, v))
        U, ratio, before, after, whole = written(V, K, X, *(x[..., t:t + chunk] for x in (log_a, b, c)))
        reads.append(before * (Q @ X) + (Q @ U.mT * ratio) @ V)
        X = whole * X + (U * after).mT @ V
    return concatenate(reads, axis=-2), X.mT


@dataclass(frozen=True)
class MatrixState:
    """What a matrix memory has read."""

    tail: Tensor  # (B,W−1,D), the filter's last inputs
    S: Tensor  # (B,H,d,d)


class MatrixMemory(MemoryMixer):
    """One matrix per head, written at every token by a rule of `RULES`; keys and queries ℓ₂-normalised.

        o_t = S_{t−1} q_t,   S_t = S_{t−1}(a_t I − b_t k_t k_tᵀ) + c_t v_t k_tᵀ

    x (B,T,D) → (B,T,D).
    """

    def __init__(self, rng: Rng | None, config: Config, rule: str):
        super().__init__(rng, config, ("q", "k", "v"))
        self.rule, self.form, self.step, self.phi = rule, config.form, STEPS[config.step], FEATURES[config.features]
        self.clocks, d = {"matrix memory": 1}, self.head_size
        starts = {"alpha": half_lives(config.heads), "eta": np.zeros(config.heads, dtype=np.float32)}
        gates = GATES.get(rule, ("eta", "alpha"))
        self.gate = {name: Linear(rng, config.width, config.heads) for name in gates}
        self.bias = {name: Parameter(starts[name]) for name in self.gate}
        self.initial = normal(rng, (config.heads, d, d), d ** -0.5 / 4)

    def start(self, x: Tensor) -> MatrixState:
        return MatrixState(self.conv.start(x), self.initial + zeros(x, 1, 1, 1))

    def asked(self, x: Tensor, tail: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """q, k, v (B,H,T,d); log α and η (B,H,T), of those that the rule has; the filter's next tail."""
        asked, x, tail = self.project(x, tail)
        gate = {name: swapaxes(f(x) + self.bias[name], axis1=1, axis2=2) for name, f in self.gate.items()}
        log_alpha = log_sigmoid(gate["alpha"]) if "alpha" in gate else None
        eta = sigmoid(gate["eta"]) if "eta" in gate else None
        q, k = (normalize(self.phi(asked[name])) for name in "qk")
        return [q, k, rms_normalize(asked["v"])], [log_alpha, eta], tail  # type: ignore[list-item]

    def __call__(self, x: Tensor, state: MatrixState | None = None) -> tuple[Tensor, MatrixState]:
        state = state or self.start(x)
        (q, k, v), gates, tail = self.asked(x, state.tail)
        always = np.zeros_like(x.data, shape=k.shape[:3])
        log_a, b, c = (tensor(always + value) for value in RULES[self.rule](*gates, self.step))
        if self.rule == "oja":  # the value is the key that is forgotten along
            reads, S = oja(q, k, normalize(v), log_a, b, c, state.S)
        else:
            reads, S = delta_rule(q, k, v, log_a, b, c, state.S, self.form)
        return self.merge(reads), MatrixState(tail, S)

    def drift(self, state: Any) -> dict[str, list[tuple[Any, Any]]]:
        return {"memory": [(state.S.data - self.initial.data, self.initial.data)]}

    def cost(self, tokens: int) -> Cost:
        return Cost(3 * self.initial.size, self.tail_size + self.initial.size)


@dataclass(frozen=True)
class OmegaState:
    """What an Omega memory has read."""

    tail: Tensor  # (B,W−1,D), the filter's last inputs
    S: Tensor  # (B,H,d,d)
    k: Tensor  # (B,H,c−1,d), the last keys …
    v: Tensor  # (B,H,c−1,d), … and values
    eta: Tensor  # (B,H,c−1), … and rates; 0 before the first token


class OmegaMemory(MatrixMemory):
    """A matrix that learns from the last c pairs at every token [A 68], one token after the other.

        o_t = S_{t−1} q_t,   S_t = α_t S_{t−1} − Σ_{t−c<i≤t} γ_i (S_{t−1} k_i − v_i) k_iᵀ,   γ_i = η_i/c

    With c = 1 it is the gated delta rule, but for where α stands. The printed sum has lost ∇ and S_{t−1}.
    CHOICE: a pair counts as much as when it came, a c-th of its η, so that c pairs together step no further than one.
    """

    def __init__(self, rng: Rng | None, config: Config):
        super().__init__(rng, config, "omega")
        self.window = config.omega_window

    def start(self, x: Tensor) -> Any:
        H, d, c = self.heads, self.head_size, self.window - 1
        return OmegaState(self.conv.start(x), self.initial + zeros(x, 1, 1, 1), zeros(x, H, c, d), zeros(x, H, c, d),
                          zeros(x, H, c))

    def __call__(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        state, c, reads = state or self.start(x), self.window, []
        (q, k, v), (log_alpha, eta), tail = self.asked(x, state.tail)
        k, v = concatenate([state.k, k], axis=2), concatenate([state.v, v], axis=2)  # (B,H,c−1+T,d)
        eta, alpha, S = concatenate([state.eta, eta], axis=2), exp(log_alpha), state.S
        for t in range(x.shape[1]):
            K, V, gamma = k[:, :, t:t + c], v[:, :, t:t + c], eta[:, :, t:t + c, None] / c
            reads.append(q[:, :, t:t + 1] @ S.mT)
            S = S * alpha[:, :, t, None, None] - (gamma * (K @ S.mT - V)).mT @ K
        T = x.shape[1]
        kept = (x[:, :, T:].copy() for x in (k, v, eta))
        return self.merge(concatenate(reads, axis=2)), OmegaState(tail, S, *kept)

    def cost(self, tokens: int) -> Cost:
        kept = (self.window - 1) * self.heads * (2 * self.head_size + 1)
        return Cost((1 + 2 * self.window) * self.initial.size, self.tail_size + self.initial.size + kept)


def main() -> None:
    """A hand-sized trace: eight tokens written by every rule."""
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
            key, value, log_a, b, c = (x[t:t + 1] for x in (Tensor(k), Tensor(v), *gates))
            if name == "oja":  # whose value is the key that is forgotten along, of length 1
                _, S = oja(key, key, value / 5, log_a, b, c, S)
            else:
                _, S = FORMS["recurrent"](None, key, value, log_a, b, c, S)
            norms.append(f"{np.linalg.norm(S.data):5.2f}")
        print(f"{name:10} {S.data[0, 0]:6.3f}  {S.data[0, 1]:6.3f}   {' '.join(norms)}")


if __name__ == "__main__":
    main()
