"""Optimisers are associative memories of gradients: what does each rung remember, and how?

    rung                 what it keeps                       how it writes                     how it reads
    SGD                  nothing                             -                                 g
    Momentum             a matrix m                          dot product, fades by μ           m
    AdaGrad              the sum V of g², or of ggᵀ          ℓ₂ regression, never fades        g/√V
    AdamW                averages m of g and V of g²         ℓ₂ regression, fades              m/√V
    Preconditioned       a map P from coordinates to g       ℓ₂ regression, fades              P⁻¹g
    DeltaMomentum        a matrix m                          ℓ₂: unlearns what g repeats       m
    DeepMomentum         an MLP per matrix                   dot or ℓ₂, trained online         its Jacobian at g
    HigherOrderMomentum  a matrix m                          dot product, of φ(g)              m
    NonlinearMomentum    a matrix m                          dot product, average              σ(m)
    Muon                 a matrix m                          dot product, average              NS(m), orthogonal
    M3                   a fast and a slow matrix, V         dot product, at two clocks        (NS + α NS)/√V
    DGD                  the weight W itself, of inputs x    ℓ₂: unlearns what x repeats       W
    MultiTimescale       fast and slow averages of g, V      dot product, of g at a low rank   (fast + slow)/√V

W (out, in) a parameter, g = ∂L/∂W, η the learning rate, X (N, in) N keys. CHOICE: a 1-D parameter is a row (1, in),
one with more axes a stack of matrices (..., out, in). Where the paper has m ← … − ηg and W ← W + m, we keep −m, as
PyTorch does. `python optimizers.py` runs the ladder, `--context` asks what each rung still holds of an earlier task.
The file is long because thirteen rungs stand side by side, each right after what it is made of.
"""

from __future__ import annotations

import argparse
import difflib
import math
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np

import kernels


class Optimizer:
    """Base of the ladder: a rung defines `update(p, g, state, group) -> delta`; p.data += delta, in place.

    params: parameters (`.data`, `.grad`, maybe `.name`) or groups, dicts {"params": [...], option: value}; options are
    explained at `read_groups`, `gather` and `change`. `lr_scale` multiplies every η (see `schedule`).
    """

    defaults: ClassVar[dict[str, Any]] = {  # of a choice, a tuple: the default first
        "lr": 0.0, "weight_decay": 0.0, "method": ("own", "adamw"), "adamw_lr_scale": 1.0,
        "period": 1, "accumulate": ("updates", "gradients")}
    matrices_only = False  # True: 1-D parameters take AdamW
    averages: ClassVar[tuple[str, ...]] = ("beta1", "beta2", "beta3", "fast_ema", "slow_ema")  # shares that are kept

    def __init_subclass__(cls, **options):
        cls.defaults = {**cls.defaults, **options}  # a rung's own options stand in the head of its class

    def __init__(self, params, lr: float, **options):
        self.groups = read_groups(type(self), params, {"lr": lr, **options})
        self.owners = [group for group in self.groups for _ in group["params"]]
        self.params = [p for group in self.groups for p in group["params"]]
        self.state: list[State] = [{} for _ in self.params]
        self.clock, self.lr_scale = 0, 1.0

    def update(self, p, g, state: State, group: dict):
        """What to add to p.data for the gradient g; `state` is the memory of p, an empty dict at first."""
        raise TypeError(f"{type(self).__name__} is not a rung of the ladder: it has no update")

    def sense(self, p, state: State):  # what a rung perceives of p at every step, whatever the clock says
        return p.grad if p.data.size else None

    def step(self) -> list[int]:
        """Take one step; return the sorted periods that fired. A parameter without a gradient rests.

        Each parameter is one thread's, which then takes the next that nobody has taken.
        """
        self.clock += 1
        waiting = iter(list(zip(self.params, self.owners, self.state, strict=True)))

        def some(start: int, stop: int) -> None:
            for p, group, state in waiting:
                x = self.sense(p, state)
                for turn in (gather, change) if group["accumulate"] == "gradients" else (change, gather):
                    x = turn(self, p, x, state, group)
                if x is not None:
                    p.data += x
        kernels.split(some, len(self.params), sum(p.data.size for p in self.params if isinstance(p.data, np.ndarray)))
        return sorted({group["period"] for group in self.groups if self.clock % group["period"] == 0})

    lr = property(lambda self: self.groups[0]["lr"] * self.lr_scale, doc="η in force, of the first group")

    def zero_grad(self) -> None:
        for p in self.params:
            p.grad = None
            if getattr(p, "tap", None):
                p.tap.clear()

    def state_dict(self) -> dict[str, Any]:
        return saved_state(self)

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        restore_state(self, saved)


class SGD(Optimizer):
    """No memory: W ← W − ηg, the proximal step argmin_V ⟨g, V⟩ + ‖V − W‖²/(2η)
    [A 1–3, 7–9, 22–23, 29–32, 54–55, 58, 112; N 2–6, 25–26].

    W is the memory: g = δxᵀ of a layer y = Wx writes its output error δ = ∂L/∂y under the key x.
    """

    def update(self, p, g, state, group):
        return -group["lr"] * g


State = dict[str, Any]  # what a rung keeps of one parameter


def hebbian(state: State, key: str, x, a: float, c: float):
    """Write x into a linear memory and return it: M ← aM + cx, in place, Hebbian with retention [A 5], from M = 0.

    (μ, η) makes it heavy-ball momentum, (β, 1 − β) a moving average, (1, 1) a sum.
    """
    M = state[key] if key in state else np.zeros_like(x)
    M *= a
    M += c * x
    state[key] = M
    return M


class Momentum(Optimizer, momentum=0.9, nesterov=False):
    """SGD with a linear memory of past gradients: m ← μm + ηg, W ← W − m
    [A 10–13, 33–37, 100, 104; N 7–11, 17–18].

    m has no values: it learns to answer every gradient with 1, by gradient steps on −⟨m, g⟩. `nesterov` reads it
    one step ahead, μm + ηg. CHOICE: η stands inside m, as in the paper; a gradient is remembered at its own η. For
    constant η it is PyTorch's momentum.
    """

    def update(self, p, g, state, group):
        m = hebbian(state, "m", g, group["momentum"], group["lr"])
        return -(group["momentum"] * m + group["lr"] * g if group["nesterov"] else m)


class AdaGrad(Optimizer, full=False, momentum=0.0, eps=1e-10):
    """Remembers magnitudes instead of directions: V ← V + g², W ← W − ηm/(√V + ε), m = g [A 101–111, there
    with the sum M̃ for m].

    Per element, g/√V is the n of least Σ_i (n g_i − P_i)², P_i = √V for the newest gradient, 0 for the older.
    With `full`, V ← V + ggᵀ is a matrix and W ← W − ηV^(−½)m; a vector is a column there.
    CHOICE: m ← μm + g, μ = `momentum`: 0 is AdaGrad, 1 the printed sum, whose β₁ and β₂ only scale η by β₁/β₂.
    """

    def update(self, p, g, state, group):
        m = hebbian(state, "m", g, group["momentum"], 1) if group["momentum"] else g
        if not group["full"]:
            return -group["lr"] * m / (np.sqrt(hebbian(state, "v", g * g, 1, 1)) + group["eps"])
        G = g if g.ndim > 1 else g.reshape(-1, 1)
        V = hebbian(state, "v", G @ G.mT, 1, 1)
        return -group["lr"] * (power(V, -0.5) @ m.reshape(G.shape)).reshape(g.shape)


def power(V, exponent: float):
    """V^exponent of a symmetric matrix (..., n, n) without negative eigenvalues; 0 where they are lost in rounding."""
    values, U = np.linalg.eigh(V)
    known = values > np.finfo(V.dtype).eps * V.shape[-1] * values[..., -1:]
    scale = np.where(known, np.where(known, values, 1) ** exponent, 0)
    return (U * scale[..., None, :]) @ U.mT


class AdamW(Optimizer, beta1=0.9, beta2=0.999, eps=1e-8):
    """AdaGrad that remembers directions too, and lets both fade: W ← W − η m̂/(√v̂ + ε) [A 101–105].

    m ← β₁m + (1 − β₁)g, v ← β₂v + (1 − β₂)g², m̂ = m/(1 − β₁ᵗ), v̂ = v/(1 − β₂ᵗ) (Loshchilov and Hutter). The
    paper prints sums in their place: that is AdaGrad with momentum=1.
    """

    def update(self, p, g, state, group):
        return adamw_update(g, state, group)


def adamw_update(g, state: State, group: dict):
    state["t"] = state.get("t", 0) + 1
    if "m" not in state:
        state |= {"m": np.zeros_like(g), "v": np.zeros_like(g)}
    m, v = state["m"], state["v"]
    delta = np.zeros_like(g)
    numbers = group["lr"], group["beta1"], group["beta2"], group["eps"]
    kernels.adamw(delta, g, m, v, *numbers, 0.0, state["t"])  # from 0, without decay: the update
    return delta


def magnitude(state: State, g, beta2: float, eps: float):
    """√(V/(1 − β₂ᵗ)) + ε after V ← β₂V + (1 − β₂)g²; counts its own steps in state["t"]."""
    state["t"] = state.get("t", 0) + 1
    return np.sqrt(hebbian(state, "v", g * g, beta2, 1 - beta2) / (1 - beta2 ** state["t"])) + eps


class Preconditioned(Optimizer, matrix=True, rate=0.05, eps=1e-8):
    """Learns the map P from coordinates ĝ to gradients, and reads it backwards: P ← P − ζ(Pĝ − g)ĝᵀ, W ← W − ηP⁻¹g
    [A 38–41].

    CHOICE: it lowers ½‖Pĝ − g‖², and ĝ is g at unit scale. As a matrix, ĝ is g with all singular values 1 and P
    the average of (ggᵀ)^½, on the shorter side of g; per element (matrix=False) ĝ is sign(g) and P the average of
    |g|: AdamW without its m, but for the root of the mean of g² that AdamW has. ζ = ρ/(1 − (1 − ρ)ᵗ), ρ = `rate`, so
    that the average has no bias.
    """

    def update(self, p, g, state, group):
        G = as_matrix(g)
        tall = G.shape[-2] > G.shape[-1]
        G = G.mT if tall else G
        state["t"] = state.get("t", 0) + 1
        zeta = group["rate"] / (1 - (1 - group["rate"]) ** state["t"])
        P = hebbian(state, "P", power(G @ G.mT, 0.5) if group["matrix"] else np.abs(G), 1 - zeta, zeta)
        step = power(P, -1) @ G if group["matrix"] else G / (P + group["eps"])
        return -group["lr"] * (step.mT if tall else step).reshape(g.shape)


def as_matrix(x):
    return x if x.ndim >= 2 else x.reshape(1, -1)


def implicit(G, X, eta: float):
    """G (..., m, n) damped along the keys X (..., N, n): G (I + ηXᵀX)⁻¹, which is 1/(1 + ησ²) where XᵀX is σ².

    argmin_V ½Σ‖Vx − u‖² + ‖V − W‖²/(2η) = implicit(W + ηΣuxᵀ, X, η) = W − η implicit(∇L(W), X, η): stable for all
    η ≥ 0, to rounding, for no factor exceeds 1 [A 98–99]; for N = 1 it is Sherman–Morrison [A 113–121].
    """
    if not eta:
        return G
    if X.shape[-2] < X.shape[-1]:  # only the directions that X has are damped
        Q = np.linalg.qr(X.mT)[0]
        inside = G @ Q
        return G - (inside - implicit(inside, X @ Q, eta)) @ Q.mT
    squares, V = np.linalg.eigh(X.mT @ X)
    return (G @ V / (1 + eta * np.maximum(squares, 0))[..., None, :]) @ V.mT


class DeltaMomentum(Optimizer, momentum=0.9, decay=1.0, precondition=False, beta2=0.999, eps=1e-8):
    """Momentum that unlearns what a gradient repeats: m ← m(αI − gᵀg) + ηPg, W ← W − m [A 46–49, N 19–22].

    The rows of g are keys and the columns of ηP their values, learned by ℓ₂ regression instead of a dot
    product; α is `momentum`.
    CHOICE: one exact proximal step, which cannot diverge and is the printed rule for small βgᵀg,
        m ← (α − 1)m + argmin_n ½β‖ngᵀ‖² − η⟨n, Pg⟩ + ½‖n − m‖²,  β = `decay`: 1 as printed, 0 is Momentum.
    CHOICE: P is the identity or, with `precondition`, AdamW's 1/(√v̂ + ε) per element.
    """

    def update(self, p, g, state, group):
        keys = as_matrix(g)
        root = magnitude(state, keys, group["beta2"], group["eps"]) if group["precondition"] else 1
        m, step = state.get("m", np.zeros_like(keys)), group["lr"] * keys / root
        unlearned = m + step - implicit(m + step, keys, group["decay"])
        state["m"] = group["momentum"] * m + step - unlearned
        return -state["m"].reshape(g.shape)


def cosine_basis(rows: int, like):
    """Orthonormal rows (rows ≤ n, n) without a die: √(2/n) cos(π(j + ½)(i + ½)/n), n = like.shape[-1]."""
    n = like.shape[-1]
    j, i = np.arange(rows, like=like)[:, None] + 0.5, np.arange(n, like=like) + 0.5
    return (math.sqrt(2 / n) * np.cos(math.pi / n * j * i)).astype(like.dtype)


class DeepMomentum(Optimizer, momentum=0.9, hidden=16, objective=("dot", "l2")):
    """Momentum in an MLP trained online: m ← αm − η∇L(m; u, 1), W ← W − m(u), u = g [A 50, N 23].

    CHOICE: one MLP per matrix, m(u) = Mu + W₂relu(W₁u) from R^in to R^out. Keys are the rows of g, the value
    of row r is the unit vector e_r: of all rows the matrix I. L = −Σ_r⟨m(g_r), e_r⟩ ("dot"), or ½Σ_r‖m(g_r) − e_r‖²
    ("l2") with a proximal step per layer. CHOICE: of a linear m the paper adds m itself, its Jacobian; so row
    r of W moves by ∂m_r/∂u at u = g_r, and hidden=0 is Momentum ("dot") or DeltaMomentum of decay η ("l2").
    CHOICE: relu, as it needs no scale for g; W₁ starts at ± a cosine basis and fades back to it, not to 0. Of
    `hidden` the even part counts, at most 2·in; α is `momentum`.
    """

    def update(self, p, g, state, group):
        G, eta, alpha = as_matrix(g), group["lr"], group["momentum"]
        (out, n), pairs = G.shape[-2:], min(group["hidden"] // 2, G.shape[-1])
        start = np.concatenate([cosine_basis(pairs, G), -cosine_basis(pairs, G)])  # (hidden, in)
        top = state.get("top", np.zeros_like(G, shape=(*G.shape[:-1], n + 2 * pairs)))  # M, W₂ side by side
        moved = state.get("moved", np.zeros_like(G, shape=(*G.shape[:-2], 2 * pairs, n)))  # W₁ − start
        z = G @ (start + moved).mT  # (..., out, hidden)
        Z = np.concatenate([G, z * (z > 0)], axis=-1)  # (..., out, in + hidden)
        if group["objective"] == "dot":
            learned, down = alpha * top + eta * Z, (top[..., n:] * (z > 0)).mT @ G
        else:
            learned = (alpha - 1) * top + implicit(top + eta * Z, Z, eta)
            error = np.eye(out, dtype=G.dtype, like=G) - Z @ top.mT  # (..., key, output)
            down = implicit((error @ top[..., n:] * (z > 0)).mT @ G, G, eta)
        state["top"], state["moved"] = top, moved = learned, alpha * moved + eta * down
        gate = G @ (start + moved).mT > 0
        return -(top[..., :n] + (top[..., n:] * gate) @ (start + moved)).reshape(g.shape)


QUINTIC, CUBIC = (3.4445, -4.7750, 2.0315), (1.5, -0.5, 0.0)


def newton_schulz(M, steps: int = 5, coefficients: tuple[float, float, float] = QUINTIC):
    """Push the singular values of M towards 1: X ← aX + (bXXᵀ + c(XXᵀ)²)X from X = M/‖M‖.

    CUBIC is gradient descent on ¼‖XᵀX − I‖² by steps of ½, and converges to 1 [A 43–44]. QUINTIC is Muon's: five
    steps bring all above 0.002‖M‖ to between about 0.7 and 1.2. CHOICE: without the pull O − g of the paper, which
    holds X between M and an orthogonal matrix.
    """
    a, b, c = coefficients
    tall = M.shape[-2] > M.shape[-1]
    X = M.mT if tall else M
    X, i = X / (frobenius(X) + 1e-7), np.arange(X.shape[-2], like=X)
    for _ in range(steps):  # numbers on a diagonal: in place of a + BX and b + cA, with passes over whole matrices
        A = kernels.product(X, X.mT)
        B = c * A
        B[..., i, i] += b
        B = kernels.product(B, A)
        B[..., i, i] += a
        X = kernels.product(B, X)
    return X.mT if tall else X


def frobenius(x):
    return np.linalg.norm(x, axis=(-2, -1), keepdims=True)


class HigherOrderMomentum(Momentum, order=1):
    """Momentum that remembers a polynomial of the gradient: m ← μm + ηPφ(g), W ← W − m, P = 1 [A 51].

    CHOICE: φ(g) = ‖g‖NS(g), `order` quintic Newton–Schulz steps before the memory instead of behind it: odd
    powers (ggᵀ)ʲg that lift the weak singular directions of g and keep its scale. Order 0 is Momentum.
    """

    def update(self, p, g, state, group):
        G = as_matrix(g)
        feature = frobenius(G) * newton_schulz(G, group["order"]) if group["order"] else G
        return super().update(p, feature.reshape(g.shape), state, group)


class NonlinearMomentum(Optimizer, momentum=0.9, output=("newton_schulz", "sign", "linear")):
    """Momentum read through a non-linearity: m ← μm + (1 − μ)g, W ← W − ησ(m) [A 52, N 24].

    CHOICE: a σ like these forgets the scale of m, and with it an η inside; so η stands outside, m is an average.
    """

    averages = (*Optimizer.averages, "momentum")

    def update(self, p, g, state, group):
        m = hebbian(state, "m", g, group["momentum"], 1 - group["momentum"])
        if group["output"] == "newton_schulz":
            m = newton_schulz(as_matrix(m)).reshape(g.shape)
        return -group["lr"] * (np.sign(m) if group["output"] == "sign" else m)


class Muon(Optimizer, momentum=0.95, nesterov=True, scale=True, ns_steps=5, adamw_lr_scale=0.05):
    """Newton–Schulz output with a look ahead, for matrices only: W ← W − ηs NS((1 − μ)g + μm) [A 42].

    As Keller Jordan published it: m ← μm + (1 − μ)g, five quintic steps, s = √max(1, out/in) (`scale`).
    CHOICE: 1-D parameters take AdamW at lr × adamw_lr_scale, as embeddings do in a group of method="adamw".
    """

    matrices_only = True
    averages = (*Optimizer.averages, "momentum")

    def update(self, p, g, state, group):
        mu = group["momentum"]
        m = hebbian(state, "m", g, mu, 1 - mu)
        ahead = (1 - mu) * g + mu * m if group["nesterov"] else m
        s = math.sqrt(max(1.0, g.shape[-2] / g.shape[-1])) if group["scale"] else 1.0
        return -group["lr"] * s * newton_schulz(ahead, group["ns_steps"])


class M3(Optimizer, momentum=0.95, beta2=0.999, beta3=0.9, eps=1e-8, slow_weight=0.5, slow_period=16,
         variance=True, reading=("ema", "sum"), ns_steps=5, adamw_lr_scale=0.05):  # fmt: skip
    """Muon with a second, slow memory and with V: W ← W − η(NS(M₁) + αNS(M₂))/(√V + ε) [A 75, Algorithm 1].

    M₁ ← M₁ + β₁g, V ← V + β₂g²; every f = `slow_period` steps M₂ ← M₂ + β₃Σ_{last f} g, read from the next
    step on. β₁ is `momentum`, α `slow_weight`; variance=False leaves V out. This is reading="sum".
    CHOICE: "ema", moving averages all three, for the text calls them momenta. CHOICE: NS does not shrink with
    g but √V does; so with "ema" the division keeps the norm of the step, and V only shapes it. CHOICE: ε stands
    outside the root, as in Adam.
    """

    matrices_only = True
    averages = (*Optimizer.averages, "momentum")

    def update(self, p, g, state, group):
        ema = group["reading"] == "ema"

        def remember(key, x, beta):
            return hebbian(state, key, x, beta if ema else 1, 1 - beta if ema else beta)

        step = newton_schulz(remember("fast", g, group["momentum"]), group["ns_steps"])
        step = step + group["slow_weight"] * state.get("slow_output", 0.0)
        if group["variance"]:
            shaped = step / (np.sqrt(remember("v", g * g, group["beta2"])) + group["eps"])
            step = shaped * (frobenius(step) / np.maximum(frobenius(shaped), 1e-30)) if ema else shaped
        state["t"], window = state.get("t", 0) + 1, hebbian(state, "window", g, 1, 1)
        if state["t"] % group["slow_period"] == 0:
            slow = remember("slow", window, group["beta3"])
            state["slow_output"] = newton_schulz(slow, group["ns_steps"])
            del state["window"]
        return -group["lr"] * step


class DGD(Optimizer, retention=1.0, forget=1.0):
    """The weight of a linear layer is itself the memory, of the layer's inputs [A 56–57, 113–121; N 27–29].

    W ← argmin_V (1/N)Σ_n ½‖Vx_n − u_n‖² + ‖V − W‖²/(2η) over the N tokens of a step, u_n = −∂ℓ_n/∂y_n, so
        W ← (α − f)W + (fW − ηg)(I + ηΣ)⁻¹,  Σ = XᵀX/N,  α = `retention`, f = `forget`, both 1 there;
    for one token this is the paper's W(αI − η′xxᵀ) + η′uxᵀ, η′ = η/(1 + η‖x‖²). CHOICE: a mean over tokens,
    as the loss is one, lest a longer batch forget more. g is p.grad, so clipping counts; x comes from p.tap,
    to which the layer's backward appends (x, ∂L/∂y); a parameter without inputs takes SGD. As printed,
    forget=1, it is SGD − ηWΣ for small η and rests where g = −WΣ, not where g = 0. CHOICE: with forget=0 the
    target is Wx_n + u_n, so that W keeps its old answers: SGD for small η, an implicit step for large.
    """

    def __init__(self, params, lr: float, **options):
        super().__init__(params, lr, **options)
        for p, group in zip(self.params, self.owners, strict=True):
            if hasattr(p, "tap"):
                p.tap = [] if p.data.ndim == 2 and group["method"] == "own" else None

    def sense(self, p, state):
        if getattr(p, "tap", None):
            earlier = [state["inputs"]] if "inputs" in state else []
            state["inputs"] = np.concatenate(earlier + [x for x, _ in p.tap])
            p.tap.clear()
        return p.grad

    def update(self, p, g, state, group):
        W, eta, forget, X = p.data, group["lr"], group["forget"], state.pop("inputs", None)
        if X is None:
            return -eta * g
        return implicit(forget * W - eta * g, X / math.sqrt(len(X)), eta) - (1 + forget - group["retention"]) * W


def low_rank(g, state: State, rank: int):
    """g compressed to `rank` by one warm power iteration, with error feedback: what is lost returns with the next g.

    P = orth((g + e)Q), ĝ = PPᵀ(g + e), e ← g + e − ĝ, Q ← (g + e)ᵀP, as in PowerSGD [Vogels 2019]; Σ ĝ + e = Σ g.
    """
    G = as_matrix(g)
    if min(G.shape[-2:]) <= rank:
        return g
    G = G + state.get("error", 0.0)
    P = np.linalg.qr(G @ (state["basis"] if "basis" in state else cosine_basis(rank, G).mT))[0]
    state["basis"] = G.mT @ P
    compressed = P @ state["basis"].mT
    state["error"] = G - compressed
    return compressed.reshape(g.shape)


class MultiTimescale(Optimizer, fast_lr_scale=1.0, slow_lr_scale=0.1, fast_ema=0.9, slow_ema=0.99, sync=64,
                     rank=256, beta2=0.999, eps=1e-8):  # fmt: skip
    """AdamW with a fast and a slow memory of the gradient at a low rank; not from the paper.

    W ← W − η(s_f m̂_fast + s_s m̂_slow)/(√v̂ + ε), moving averages without bias of low_rank(g). CHOICE: at
    every `sync` steps (0: never) the fast memory restarts from the slow one, as a nested level does.
    With full rank, slow_lr_scale=0 and sync=0 it is AdamW.
    """

    def update(self, p, g, state, group):
        g = low_rank(g, state, group["rank"])
        root = magnitude(state, g, group["beta2"], group["eps"])
        t, b_fast, b_slow = state["t"], group["fast_ema"], group["slow_ema"]
        fast = hebbian(state, "fast", g, b_fast, 1 - b_fast) / (1 - b_fast**t)
        slow = hebbian(state, "slow", g, b_slow, 1 - b_slow) / (1 - b_slow**t)
        if group["sync"] and t % group["sync"] == 0:
            state["fast"] = (1 - b_fast**t) * slow
        return -group["lr"] * (group["fast_lr_scale"] * fast + group["slow_lr_scale"] * slow) / root


OPTIMIZERS: dict[str, type[Optimizer]] = {
    "sgd": SGD, "momentum": Momentum, "adagrad": AdaGrad, "adamw": AdamW, "preconditioned": Preconditioned,
    "delta_momentum": DeltaMomentum, "deep_momentum": DeepMomentum, "higher_order": HigherOrderMomentum,
    "nonlinear": NonlinearMomentum, "muon": Muon, "m3": M3, "dgd": DGD, "multi_timescale": MultiTimescale,
}  # fmt: skip


def build(name: str, groups, lr: float, **options) -> Optimizer:
    """The optimiser of that name in OPTIMIZERS; the ValueError for an unknown one offers the nearest."""
    if name not in OPTIMIZERS:
        raise unknown("optimizer", name, OPTIMIZERS)
    return OPTIMIZERS[name](groups, lr, **options)


def unknown(what: str, name: Any, known: Iterable[str]) -> ValueError:
    """The error for a name that is not known; it offers the nearest one that is."""
    close = difflib.get_close_matches(str(name), list(known), n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
    return ValueError(f"unknown {what} {name!r}; {hint}")


# What a step is made of: groups of parameters, the level clock, weight decay, saving.


def read_groups(rung: type[Optimizer], params, options: dict) -> list[dict]:
    """The groups of an optimiser, every option filled in from those given and the defaults; ValueError names a mistake.

    `lr` η; `weight_decay` λ; `method`="adamw" hands a group to AdamW, at the learning rate lr × `adamw_lr_scale`.
    """
    params = listed(params)
    given = params if params and isinstance(params[0], dict) else [{"params": params}]
    groups = [read_group(rung, {**options, **group}) for group in given]
    every = [p for group in groups for p in group["params"]]
    if not every:
        raise ValueError("no parameters to optimise: params is empty")
    if strange := [p for p in every if not (hasattr(p, "data") and hasattr(p, "grad"))]:
        raise TypeError(f"a {type(strange[0]).__name__} is no parameter: give model.parameters() or groups of them")
    if len({id(p) for p in every}) < len(every):
        raise ValueError("a parameter appears twice; it belongs in one group, once")
    for p in every:
        if hasattr(p, "tap"):
            p.tap = None  # layers record their inputs only for the optimiser that reads them, DGD
    return groups


def read_group(rung: type[Optimizer], given: dict) -> dict:
    known = {**AdamW.defaults, **rung.defaults} if rung.matrices_only else rung.defaults
    if given.get("method") == "adamw":
        known = {**known, **AdamW.defaults, "adamw_lr_scale": rung.defaults["adamw_lr_scale"]}
    group = {key: value[0] if isinstance(value, tuple) else value for key, value in known.items()}
    for key, value in given.items():
        if key not in known and key != "params":
            raise unknown(f"option of {rung.__name__}", key, known)
        if isinstance(known.get(key), tuple) and value not in known[key]:
            raise unknown(f"value of {key}", value, known[key])
        if isinstance(value, np.number):
            value = value.item()  # a NumPy scalar would lift float32 memories to float64
        if (like := known.get(key)) is not None and not isinstance(like, tuple):
            if isinstance(value, bool) != isinstance(like, bool) or not isinstance(value, (int, float)):
                wanted = "true or false" if isinstance(like, bool) else "a number"
                raise ValueError(f"{key} = {value}: must be {wanted}")
            if not 0 <= value < math.inf:
                raise ValueError(f"{key} = {value}: must be finite and not negative")
            if key in rung.averages and value >= 1 and given.get("reading") != "sum":
                raise ValueError(f"{key} = {value}: must be below 1, or what it averages never counts")
            if key == "rate" and not 0 < value <= 1:
                raise ValueError(f"{key} = {value}: must be above 0 and at most 1, the share of an average that is new")
        if type(known.get(key)) is int and (value != int(value) or ("period" in key and value < 1)):
            raise ValueError(f"{key} = {value}: must be a whole number, at least 1 if a period")
        group[key] = int(value) if type(known.get(key)) is int else value
    return group | {"params": listed(group.get("params", ()))}


def listed(params: Any) -> list:
    """Several parameters, or a single one, as a list."""
    return [params] if hasattr(params, "grad") else list(params)


def gather(optimizer: Optimizer, p, x, state: State, group: dict):
    """The level clock [A 71, N 31]: None until step i ≡ 0 (mod C), counted from 1, then what C steps have brought.

    C is `period`. accumulate="updates": the sum of the last C updates, each computed at the frozen weights, as
    printed. CHOICE: with "gradients" it is one update, by the mean of the last C gradients. CHOICE: the printed sum has
    C + 1 terms, ours the last C.
    """
    period = group["period"]
    if period == 1:
        return x
    if x is not None:
        hebbian(state, "pending", x, 1, 1)
    total = state.pop("pending", None) if optimizer.clock % period == 0 else None
    return total / period if total is not None and group["accumulate"] == "gradients" else total


def change(optimizer: Optimizer, p, g, state: State, group: dict):
    """What the rung adds to p for g, None for no gradient; and weight decay, decoupled from it: −ηλW."""
    if g is None:
        return None
    if g.shape != p.data.shape:
        name = getattr(p, "name", None) or "parameter"
        raise ValueError(f"{name} has data of shape {p.data.shape} and a grad of shape {g.shape}")
    adamw = group["method"] == "adamw" or (optimizer.matrices_only and g.ndim < 2)
    lr = group["lr"] * optimizer.lr_scale * (group["adamw_lr_scale"] if adamw else 1)
    group = {**group, "lr": lr}
    delta = adamw_update(g, state, group) if adamw else optimizer.update(p, g, state, group)
    return delta - lr * group["weight_decay"] * p.data if group["weight_decay"] else delta


def saved_state(optimizer: Optimizer) -> dict[str, Any]:
    """All that the next step depends on, but options: {"AdamW.clock": 7, "AdamW.0.m": array, ...}."""
    name = type(optimizer).__name__
    out: dict[str, Any] = {f"{name}.clock": optimizer.clock, f"{name}.lr_scale": optimizer.lr_scale}
    for i, (p, state) in enumerate(zip(optimizer.params, optimizer.state, strict=True)):
        out[f"{name}.{i}.shape"] = np.array(p.data.shape, dtype=np.int64)
        for key, value in state.items():
            out[f"{name}.{i}.{key}"] = value.copy() if isinstance(value, type(p.data)) else value
    return out


def restore_state(optimizer: Optimizer, saved: dict[str, Any]) -> None:
    """Continue bit for bit from a `saved_state`; ValueError for another optimiser's or other shapes."""
    name, shapes = type(optimizer).__name__, [p.data.shape for p in optimizer.params]
    if f"{name}.clock" not in saved:
        raise ValueError(f"this state is of {next(iter(saved), 'nothing').split('.')[0]}, not of {name}")
    theirs = [tuple(value.tolist()) for key, value in saved.items() if key.endswith(".shape")]
    if theirs != shapes:
        raise ValueError(f"this state is for parameters of shapes {theirs}; the optimiser has {shapes}")
    optimizer.clock, optimizer.lr_scale = int(saved[f"{name}.clock"]), float(saved[f"{name}.lr_scale"])
    optimizer.state = [{} for _ in optimizer.params]
    for key, value in saved.items():
        _, i, *rest = key.split(".")
        if rest and rest != ["shape"]:
            p, state = optimizer.params[int(i)], optimizer.state[int(i)]
            counted = not np.ndim(value) and (p.data.ndim or np.asarray(value).dtype.kind in "iu")  # steps
            state[rest[0]] = np.asarray(value).item() if counted else np.array(value, like=p.data)


# Around a step.


def schedule(kind: str, step: int, steps: int, warmup: int = 0, final: float = 0.0) -> float:
    """Multiplier of η at `step`, from 0: (step + 1)/warmup, then "cosine" or "linear" from 1 to `final`.

    `final` is reached at step = steps and kept; "constant" stays at 1 after the warm-up.
    """
    if kind not in ("cosine", "linear", "constant"):
        raise unknown("schedule", kind, ("cosine", "linear", "constant"))
    if step < warmup:
        return (step + 1) / warmup
    done = min((step - warmup) / max(steps - warmup, 1), 1.0)
    left = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[kind]
    return final + (1 - final) * left


def clip_grad_norm(params: Iterable[Any], max_norm: float, add: Callable = sum) -> float:
    """Scale all gradients by one factor to a joint norm of at most max_norm; return the norm they had.

    Summed in float64, by `add`: of parameters on several processes that is the sum over all. A norm that is not
    finite is returned and the gradients are left as they are.
    """
    params = [p for p in listed(params) if p.grad is not None]
    squares = [g @ g for g in (p.grad.astype(np.float64).reshape(-1) for p in params)]
    norm = math.sqrt(float(add(squares)))  # the one number of a step that is read back from a card
    if max_norm < norm < math.inf:
        for p in params:
            p.grad = p.grad * (max_norm / norm)  # a new array: two parameters may share one gradient
    return norm


# What a rung does, by hand-sized numbers. A landscape maps W to (loss, ∂L/∂y (N, out), x (N, in)) of a layer y = W x.


def regression(W):
    """½ mean‖W x − y‖² over 8 tokens whose x vary 1 : 0.4 : 0.15 along three oblique axes."""
    X = math.sqrt(8) * cosine_basis(3, np.zeros(8)).T * (1, 0.4, 0.15) @ cosine_basis(3, W)
    error = X @ (W - [[1, -1, 2], [2, 1, -1]]).T
    return (error**2).sum() / 16, error / 8, X


def walk(name: str, start, landscape, steps: int, lr: float, **options):
    """Take `steps` steps from `start`: (lr, points, losses), inf for the losses after an overflow."""
    p = SimpleNamespace(data=np.array(start, dtype=np.float64), grad=None, tap=None)
    optimizer, points, losses = build(name, [p], lr, **options), [p.data.copy()], [landscape(p.data)[0]]
    while len(losses) <= steps and losses[-1] < 1e9:
        _, G, X = landscape(p.data)
        p.grad = G.T @ X
        if p.tap is not None:
            p.tap.append((X, G))
        optimizer.step()
        points.append(p.data.copy())
        losses.append(landscape(p.data)[0])
    losses += [math.inf] * (steps + 1 - len(losses))
    return lr, np.array(points), np.nan_to_num(losses, nan=math.inf, posinf=math.inf)


def best_walk(name: str, start, landscape, steps: int, per_decade: int, **options):
    """The walk of lowest mean loss over its last ten steps, among learning rates from 10⁻³ to 10."""
    sweep = [10 ** (k / per_decade) for k in range(-3 * per_decade, per_decade + 1)]
    walks = [walk(name, start, landscape, steps, lr, **options) for lr in sweep]
    return min(walks, key=lambda found: found[2][-10:].mean())


def trace() -> None:
    """Print the loss of every rung on `regression` at its best learning rate."""
    print("Loss of a layer of 2 × 3 weights on 8 tokens, curvatures 44 : 7 : 1, from W = 0; each rung at the")
    print("learning rate of 0.001, 0.003, 0.01 ... 10 with the lowest mean loss over steps 41 to 50.\n")
    print(f"{'rung':<20}{'lr':>8}{'1 step':>12}{'10 steps':>12}{'50 steps':>12}")
    for name, options in [*((name, {}) for name in OPTIMIZERS), ("dgd", {"forget": 0.0})]:
        lr, _, losses = best_walk(name, np.zeros((2, 3)), regression, 50, 2, **options)
        label = " ".join([name, *(f"{key}={value:g}" for key, value in options.items())])
        print(f"{label:<20}{lr:>8.2g}{losses[1]:>12.4f}{losses[10]:>12.4f}{losses[50]:>12.6f}")


def orthogonal_tasks() -> list[tuple[np.ndarray, np.ndarray]]:
    """Four pairs (u, y), the u orthogonal: one W (2, 4) answers every u with its y."""
    return list(zip(cosine_basis(4, np.zeros(4)), np.array([[2, -1], [1, 2], [-2, 1], [1, 1]]), strict=True))


def in_turn(name: str, lr: float, tasks, steps: int, gradients=None):
    """Learn tasks (u, y), of loss ½‖Wu − y‖², one after the other [A 45]; or take the gradients that are given.

    Returns (after each task, what the rung keeps; at each step, the losses of all tasks; the gradients).
    """
    p = SimpleNamespace(data=np.zeros((2, 4)), grad=None, tap=None)
    optimizer = build(name, [p], lr)
    kept: list[State] = []
    losses: list[list[float]] = []
    seen: list[np.ndarray] = []
    for u, y in tasks:
        for _ in range(steps):
            error = p.data @ u - y
            p.grad = np.outer(error, u) if gradients is None else gradients[len(seen)]
            seen.append(p.grad)
            if p.tap is not None:
                p.tap.append((u[None], error[None]))
            optimizer.step()
            losses.append([np.sum((p.data @ x - z) ** 2) / 2 for x, z in tasks])
        kept.append({key: np.array(value) for key, value in optimizer.state[0].items() if np.ndim(value)})
        kept[-1] = kept[-1] or {"W": p.data.copy()}
    return kept, np.nan_to_num(losses, nan=math.inf, posinf=math.inf), seen


def due_to_the_first(name: str, lr: float, tasks, steps: int) -> dict[str, list[Any]]:
    """After each task: the share of every memory of a rung that would be missing without the first task's gradients."""
    kept, _, gradients = in_turn(name, lr, tasks, steps)
    without, _, _ = in_turn(name, lr, tasks, steps, [0 * g for g in gradients[:steps]] + gradients[steps:])
    return {key: [np.linalg.norm(a[key] - b[key]) / np.linalg.norm(a[key]) for a, b in zip(kept, without, strict=True)]
            for key in kept[0] if key not in ("window", "slow_output")}  # of M3: not read yet, and made of `slow`


def context(steps: int = 25) -> None:
    """Print the loss of the first of four orthogonal tasks, and how much of what every rung keeps is due to it."""
    tasks = orthogonal_tasks()
    print("Four tasks W u_i = y_i in turn; the u_i are orthogonal, so one W answers them all. Each rung has")
    print(f"{steps} steps per task, at the learning rate of 0.001, 0.0018, 0.0032 ... 10 with the lowest loss of the")
    print("task in turn, mean of its last five steps. Kept: how much of a memory would be missing without task 1.\n")
    print(f"{'':<24}{'loss in':>9}{'loss of task 1':>22}{'kept of task 1':>20}")
    print(f"{'rung':<16}{'lr':>8}{'its turn':>9}{'after 1':>10}{'after 2':>9}{'after 4':>9}   after 2 → after 4")
    for name in OPTIMIZERS:
        runs = []
        for lr in (10 ** (k / 4) for k in range(-12, 5)):
            losses = in_turn(name, lr, tasks, steps)[1]  # (steps of all tasks, tasks)
            in_its_turn = np.mean([losses[(n + 1) * steps - 5:(n + 1) * steps, n] for n in range(4)])
            runs.append((in_its_turn, lr, losses[steps - 1::steps, 0]))
        lowest, lr, first = min(runs, key=lambda run: run[0])
        held = ", ".join(f"{key} {shares[1]:.1%} → {shares[3]:.1%}"
                         for key, shares in due_to_the_first(name, lr, tasks, steps).items())
        print(f"{name:<16}{lr:>8.2g}{lowest:>9.3f} {first[0]:>9.3f}{first[1]:>9.3f}{first[3]:>9.3f}   {held}")


def main() -> None:
    parser = argparse.ArgumentParser(description="The ladder of optimisers, each at its best learning rate.")
    parser.add_argument("--context", action="store_true", help="what each still holds of the first of four tasks")
    with np.errstate(all="ignore"):  # the sweeps include learning rates that overflow
        context() if parser.parse_args().context else trace()


if __name__ == "__main__":
    main()
