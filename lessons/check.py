"""Is your answer right?  Every exercise of a lesson has a checker here, and none of them shows the answer.

    import check
    check.delta_write(delta_write)

A checker calls your function on random inputs and compares what comes back with what the project computes (judging.py).
Below stand, for each exercise, the inputs that are tried, the usual mistakes as functions, and the project's answer.

Legend: T time, D width, h hidden size, C chunk size; vectors are columns, rows of a batch are tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

# first, for it finds the project's files, and says how NumPy is to be loaded
from judging import EXERCISES, ROOT, TRIALS, exercise, judge  # isort: skip  # noqa: F401

import numpy as np

import autograd
import cms
import hope
import layers
import memory
import optimizers
import titans
from autograd import Tensor, grad
from config import Config
from tools.timetable import timetable


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape)


def unit(x: np.ndarray) -> np.ndarray:
    """Vectors of length 1 along the last axis"""
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


# 0. Quickstart ----------------------------------------------------------------------------------------------


def softmax(logits: np.ndarray) -> np.ndarray:
    return autograd.softmax(Tensor(logits)).data


@exercise(0, lambda rng: (rng.dirichlet(np.ones(8), 5), rng.integers(8, size=5)), {
    "the natural logarithm were taken; bits want log₂": lambda p, t: -np.mean(np.log(p[np.arange(len(t)), t])),
    "the bytes were added up and not averaged": lambda p, t: -np.sum(np.log2(p[np.arange(len(t)), t])),
    "the mean were taken before the logarithm": lambda p, t: -np.log2(np.mean(p[np.arange(len(t)), t])),
    "all bytes counted, and not only those that came": lambda p, t: -np.mean(np.log2(p)),
    "it were the entropy of the guesses: what came was not looked at":
        lambda p, t: -np.mean(np.sum(p * np.log2(p), axis=1)),
})
def bits_per_byte(p: np.ndarray, targets: np.ndarray) -> float:
    """−log₂ of the probability of what came, on average.  p (T,V), targets (T,)"""
    return layers.cross_entropy(Tensor(np.log(p)), targets).item() / np.log(2)


@exercise(0, lambda rng: (normal(rng, 6), rng.uniform(0.3, 3)), {
    "it were multiplied by the temperature and not divided": lambda z, t: softmax(z * t),
    "the temperature were left out, or came after the exponential, where it cancels": lambda z, t: softmax(z),
    "the shares did not add up to 1": lambda z, t: np.exp(z / t),
    "those were logits still; probabilities are asked for": lambda z, t: z / t,
    "logits were divided by their sum, without an exponential": lambda z, t: z / t / np.sum(z / t),
})
def tempered(logits: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities of logits at a temperature.  (V,) → (V,)"""
    return softmax(logits / temperature)


@exercise(0, lambda rng: ((np.tanh, np.exp, lambda x: x ** 3)[rng.integers(3)], rng.uniform(-1, 1), 1e-2), {
    "it were pushed to one side only": lambda f, x, e: (f(x + e) - f(x)) / e,
    "the two pushes together were taken for one: they are 2ε apart": lambda f, x, e: (f(x + e) - f(x - e)) / e,
    "the two sides had changed places": lambda f, x, e: (f(x - e) - f(x + e)) / (2 * e),
    "it were not divided by how far the two are apart": lambda f, x, e: f(x + e) - f(x - e),
}, tolerance=1e-7)
def central_difference(f: Callable, x: float, eps: float) -> float:
    """(f(x + ε) − f(x − ε))/2ε"""
    return (f(x + eps) - f(x - eps)) / (2 * eps)


# 1. A gradient finds its way back ---------------------------------------------------------------------------


def pulled(f: Callable, cotangent: np.ndarray, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
    """The cotangents of the inputs of f, by the engine."""
    leaves = [Tensor(x, requires_grad=True) for x in inputs]
    return tuple(g.data for g in grad(f(*leaves), leaves, cotangent))


@exercise(1, lambda rng: (normal(rng, 4), normal(rng, 4), normal(rng, 4)), {
    "x̄ and ȳ had changed places: x is pulled by y, and y by x": lambda g, x, y: (g * x, g * y),
    "the cotangent z̄ were forgotten": lambda g, x, y: (y, x),
    "x̄ were the whole derivative of both": lambda g, x, y: (g * (x + y), g * (x + y)),
})
def times_rules(g: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, ...]:
    """(x̄, ȳ) of z = x·y for the cotangent g of z"""
    return pulled(autograd.mul, g, x, y)


@exercise(1, lambda rng: (normal(rng, 4), normal(rng, 4)), {
    "the cotangent z̄ were forgotten": lambda g, x: 1 - np.tanh(x) ** 2,
    "the slope were made of x where it is made of z = tanh x": lambda g, x: g * (1 - x ** 2),
    "the square were missing": lambda g, x: g * (1 - np.tanh(x)),
})
def tanh_rule(g: np.ndarray, x: np.ndarray) -> np.ndarray:
    """x̄ of z = tanh x"""
    return pulled(autograd.tanh, g, x)[0]


@exercise(1, lambda rng: (normal(rng, 5, 3), normal(rng, 5, 4), normal(rng, 3, 4)), {
    "W̄ were transposed: the errors make its rows": lambda g, x, W: (g @ W, x.T @ g),
    "W̄ were a mean over the tokens; their parts add up": lambda g, x, W: (g @ W, g.T @ x / len(x)),
    "only the first token were counted in W̄": lambda g, x, W: (g @ W, np.outer(g[0], x[0])),
})
def linear_rules(g: np.ndarray, x: np.ndarray, W: np.ndarray) -> tuple[np.ndarray, ...]:
    """(x̄, W̄) of y = x Wᵀ.  g (T,out), x (T,in), W (out,in)"""
    return pulled(layers.linear, g, x, W)


@exercise(1, lambda rng: (normal(rng, 5, 3),), {
    "the five tokens were averaged; what they say adds up": lambda g: np.mean(g, axis=0),
    "nothing had been added up: b was used by every row": lambda g: g,
    "it were added up along the wrong axis": lambda g: np.sum(g, axis=1),
})
def bias_rule(g: np.ndarray) -> np.ndarray:
    """b̄ of y = x + b, the same b for every row.  g (T,D) → (D,)"""
    return pulled(lambda x, b: x + b, g, g, g[0])[1]


CURVES = (lambda x: autograd.tanh(x), lambda x: x ** 3, lambda x: autograd.exp(x * 0.5),
          lambda x: x * autograd.sigmoid(x), lambda x: 1 / (1 + x * x))


def slope(f: Callable, x: np.ndarray, order: int) -> np.ndarray:
    """A derivative of a function of one number, at every number of x."""
    x = Tensor(x, requires_grad=True)
    y = f(x)
    for _ in range(order):
        (y,) = grad(autograd.sum(y), [x], create_graph=True)
    return y.data


@exercise(1, lambda rng: (CURVES[rng.integers(len(CURVES))], normal(rng, 4)), {
    "it were the first derivative": lambda f, x: slope(f, x, 1),
    "it were the third derivative": lambda f, x: slope(f, x, 3),
    "it were the square of the first derivative": lambda f, x: slope(f, x, 1) ** 2,
})
def second_derivative(f: Callable, x: np.ndarray) -> np.ndarray:
    """f″ at every number of x"""
    return slope(f, x, 2)


# 2. A weight is an associative memory -----------------------------------------------------------------------


def step(name: str, W: np.ndarray, gradients: list, lr: float, **options: float) -> tuple[np.ndarray, dict]:
    """W after steps of a rung of the ladder along these gradients, and what the rung remembers."""
    p = layers.Parameter(W.copy())
    optimizer = optimizers.build(name, [p], lr, **options)
    for g in gradients:
        p.grad = g
        optimizer.step()
    return p.data, optimizer.state[0]


@exercise(2, lambda rng: (normal(rng, 3, 4), normal(rng, 4), normal(rng, 3), rng.uniform(0.1, 1)), {
    "the outer product were transposed: the error makes the rows, the key the columns":
        lambda W, x, e, eta: W.T - eta * np.outer(x, e),
    "it went up the gradient": lambda W, x, e, eta: W + eta * np.outer(e, x),
    "η were missing": lambda W, x, e, eta: W - np.outer(e, x),
})
def gradient_step(W: np.ndarray, x: np.ndarray, error: np.ndarray, eta: float) -> np.ndarray:
    """W after one step of gradient descent on a layer y = W x whose output error is ∂L/∂y [A 8]"""
    g = pulled(layers.linear, error[None], x[None], W)[1]
    return step("sgd", W, [g], eta)[0]


@exercise(2, lambda rng: (normal(rng, 3, 4), normal(rng, 6, 3, 4), rng.uniform(0.1, 1)), {
    "the gradients were averaged; FTRL adds them up": lambda W, gs, eta: W - eta * np.mean(gs, axis=0),
    "only the last gradient counted": lambda W, gs, eta: W - eta * gs[-1],
    "the last gradient were left out": lambda W, gs, eta: W - eta * np.sum(gs[:-1], axis=0),
    "W₁ were forgotten": lambda W, gs, eta: -eta * np.sum(gs, axis=0),
})
def ftrl(W1: np.ndarray, gradients: np.ndarray, eta: float) -> np.ndarray:
    """argmin_V Σ ⟨g_i, V⟩ + ‖V − W₁‖²/(2η) [A 3].  gradients (t,out,in)"""
    return step("sgd", W1, list(gradients), eta)[0]


@exercise(2, lambda rng: (normal(rng, 3, 4), normal(rng, 4), normal(rng, 3), rng.uniform(0.3, 3)), {
    "the step were the plain η: that is gradient descent":
        lambda W, x, y, eta: W - eta * np.outer(W @ x - y, x),
    "η/(1 + η) stood for η/(1 + η‖x‖²), which is right for ‖x‖ = 1 only":
        lambda W, x, y, eta: W - eta / (1 + eta) * np.outer(W @ x - y, x),
    "x were squared number by number; ‖x‖² is one number": lambda W, x, y, eta:
        W - eta / (1 + eta * x * x) * np.outer(W @ x - y, x),
    "‖x‖ stood for its square": lambda W, x, y, eta:
        W - eta / (1 + eta * np.linalg.norm(x)) * np.outer(W @ x - y, x),
    "what W already answers were not taken away": lambda W, x, y, eta: W + eta / (1 + eta * x @ x) * np.outer(y, x),
})
def proximal_step(W: np.ndarray, x: np.ndarray, y: np.ndarray, eta: float) -> np.ndarray:
    """argmin_V ½‖V x − y‖² + ‖V − W‖²/(2η) [A 98–99, 113–121]"""
    return optimizers.implicit(W + eta * np.outer(y, x), x[None], eta)


@exercise(2, lambda rng: (normal(rng, 3, 4), normal(rng, 3, 4), normal(rng, 3, 4), rng.uniform(0.1, 1),
                          rng.uniform(0.5, 0.95)), {
    "W moved by the m of before this gradient": lambda W, m, g, eta, mu: (W - m, mu * m + eta * g),
    "the new gradient were weighed by 1 − μ: that is an average":
        lambda W, m, g, eta, mu: (W - mu * m - (1 - mu) * eta * g, mu * m + (1 - mu) * eta * g),
    "η stood outside m; in the paper a gradient is remembered at its own η":
        lambda W, m, g, eta, mu: (W - eta * (mu * m + g), mu * m + g),
    "nothing faded": lambda W, m, g, eta, mu: (W - m - eta * g, m + eta * g),
})
def momentum_step(W: np.ndarray, m: np.ndarray, g: np.ndarray, eta: float, mu: float) -> tuple[np.ndarray, np.ndarray]:
    """(W, m) after m ← μ m + η g, W ← W − m [A 33]"""
    p = layers.Parameter(W.copy())
    optimizer = optimizers.build("momentum", [p], eta, momentum=mu)
    optimizer.state[0]["m"], p.grad = m, g
    optimizer.step()
    return p.data, optimizer.state[0]["m"]


@exercise(2, lambda rng: (rng.uniform(0.5, 0.95), int(rng.integers(1, 20))), {
    "it were the share of all older gradients": lambda mu, n: mu ** n,
    "it were the share of the n-th gradient alone": lambda mu, n: (1 - mu) * mu ** (n - 1),
    "one gradient too many were counted": lambda mu, n: 1 - mu ** (n + 1),
    "one gradient too few were counted": lambda mu, n: 1 - mu ** (n - 1),
})
def share_of_last(mu: float, n: int) -> float:
    """The share of the last n gradients in a momentum that has seen very many"""
    def total(gradients: list[float]) -> float:
        state: dict = {}
        for g in gradients:
            optimizers.hebbian(state, "m", g, mu, 1.0)
        return state["m"]
    return total([0.0] * 1000 + [1.0] * n) / total([1.0] * (1000 + n))


# 3. One family of memories ----------------------------------------------------------------------------------


def family(S: np.ndarray, k: np.ndarray, v: np.ndarray, q: np.ndarray, a: float, b: float, c: float) -> Any:
    """(what is read before, S after) one write S ← S(a I − b k kᵀ) + c v kᵀ."""
    o, S = memory.recurrent(q[None], k[None], v[None], np.log([a]), np.array([b]), np.array([c]), S)
    return o[0], S


def pair(rng: np.random.Generator) -> tuple:
    """A memory (3,4), a key of length 1, a value"""
    return normal(rng, 3, 4), unit(normal(rng, 4)), normal(rng, 3)


def rates(rng: np.random.Generator) -> tuple[float, float]:
    return rng.uniform(0.5, 0.99), rng.uniform(0.2, 2)


@exercise(3, lambda rng: (*pair(rng), rng.uniform(0.5, 0.99)), {
    "the outer product were transposed: the value makes the rows, the key the columns":
        lambda S, k, v, alpha: alpha * S.T + np.outer(k, v),
    "the decay were missing": lambda S, k, v, alpha: S + np.outer(v, k),
    "the new pair faded, too, as it came": lambda S, k, v, alpha: alpha * (S + np.outer(v, k)),
    "it were an average: the new pair counts whole": lambda S, k, v, alpha: alpha * S + (1 - alpha) * np.outer(v, k),
})
def retention_write(S: np.ndarray, k: np.ndarray, v: np.ndarray, alpha: float) -> np.ndarray:
    """S ← α S + v kᵀ [A 5]"""
    return family(S, k, v, k, alpha, 0.0, 1.0)[1]


@exercise(3, lambda rng: (*pair(rng), rng.uniform(0.1, 1)), {
    "the outer product were transposed: the error makes the rows, the key the columns":
        lambda S, k, v, eta: S.T + eta * np.outer(k, v - S @ k),
    "what the memory already answers were not taken away": lambda S, k, v, eta: S + eta * np.outer(v, k),
    "η stood before the value only, and the old answer were taken away whole":
        lambda S, k, v, eta: S + np.outer(eta * v - S @ k, k),
    "the error had its sign the other way round": lambda S, k, v, eta: S - eta * np.outer(v - S @ k, k),
})
def delta_write(S: np.ndarray, k: np.ndarray, v: np.ndarray, eta: float) -> np.ndarray:
    """S ← S(I − η k kᵀ) + η v kᵀ [A 65]"""
    return family(S, k, v, k, 1.0, eta, eta)[1]


def read_after_write(S: np.ndarray, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    S = S + np.outer(v, k)
    return S @ q, S


@exercise(3, lambda rng: (normal(rng, 3, 4), unit(normal(rng, 4)), unit(normal(rng, 4)), normal(rng, 3)), {
    "it read after the write: the token sees its own value": read_after_write,
    "it read at the key and not at the query": lambda S, q, k, v: (S @ k, S + np.outer(v, k)),
    "it wrote under the query and not under the key": lambda S, q, k, v: (S @ q, S + np.outer(v, q)),
    "the old memory were lost in the write": lambda S, q, k, v: (S @ q, np.outer(v, k)),
})
def read_then_write(S: np.ndarray, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(S q, S + v kᵀ): one token of linear attention [A 14–18]"""
    return family(S, k, v, q, 1.0, 0.0, 1.0)


@exercise(3, lambda rng: (*pair(rng), *rates(rng)), {
    "the decay were missing": lambda S, k, v, alpha, eta: S + eta / (1 + eta) * np.outer(v - S @ k, k),
    "the step were the plain η where the exact one is η/(1 + η)":
        lambda S, k, v, alpha, eta: alpha * S + eta * np.outer(v - S @ k, k),
    "α stood before the forgetting along k, too: that is the gated delta rule":
        lambda S, k, v, alpha, eta: alpha * S + eta / (1 + eta) * np.outer(v - alpha * S @ k, k),
    "nothing were forgotten along k": lambda S, k, v, alpha, eta: alpha * S + eta / (1 + eta) * np.outer(v, k),
})
def dgd_write(S: np.ndarray, k: np.ndarray, v: np.ndarray, alpha: float, eta: float) -> np.ndarray:
    """S ← S(α I − η′ k kᵀ) + η′ v kᵀ, η′ = η/(1 + η), for a key of length 1 [A 56–57, 92]"""
    b = memory.proximal(eta)
    return family(S, k, v, k, alpha, b, b)[1]


def solved(S: np.ndarray, K: np.ndarray, V: np.ndarray, eta: float, mask: Callable) -> np.ndarray:
    return np.linalg.solve(np.eye(len(K)) + eta * mask(K @ K.T), eta * (V - K @ S.T))


@exercise(3, lambda rng: (normal(rng, 3, 4), unit(normal(rng, 5, 4)), normal(rng, 5, 3), rng.uniform(0.2, 1)), {
    "the future leaked: a token's u must depend on earlier keys only":
        lambda S, K, V, eta: solved(S, K, V, eta, lambda G: np.triu(G, 1)),
    "every token saw every other; keep what is below the diagonal":
        lambda S, K, V, eta: solved(S, K, V, eta, lambda G: G),
    "a token were corrected by its own write: the diagonal must be left out":
        lambda S, K, V, eta: solved(S, K, V, eta, np.tril),
    "the tokens did not know of each other: every u as of the chunk's start": lambda S, K, V, eta: eta * (V - K @ S.T),
    "the memory were empty at the chunk's start":
        lambda S, K, V, eta: solved(0 * S, K, V, eta, lambda G: np.tril(G, -1)),
    "η were missing on the left": lambda S, K, V, eta: solved(S, K, V, eta, lambda G: np.tril(G, -1) / eta),
    "η were missing on the right": lambda S, K, V, eta: solved(S, K, V, eta, lambda G: np.tril(G, -1)) / eta,
})
def chunk_writes(S: np.ndarray, K: np.ndarray, V: np.ndarray, eta: float) -> np.ndarray:
    """U of one chunk of the delta rule, so that S + Uᵀ K is the memory after it.  K (C,d_k), V (C,d_v) → (C,d_v)"""
    rate = np.full(len(K), eta)
    return memory.written(Tensor(K), Tensor(V), Tensor(S), Tensor(0 * rate), Tensor(rate), Tensor(rate))[0].data


# 4. A memory that learns while it reads ---------------------------------------------------------------------


def sigma(x: np.ndarray) -> np.ndarray:
    """SiLU"""
    return x / (1 + np.exp(-x))


@functools.lru_cache(maxsize=2)
def mixer(targets: str = "value") -> titans.SelfModifyingTitans:
    """One network of two layers that learns while it reads, from values that are given or self-made: D = 4, h = 6."""
    config = Config(width=4, layers=1, heads=1, segment=8, hidden=4, mixer="plain-titans", adaptive=("memory",),
                    targets=targets, memory="mlp", memory_hidden=6, objective="l2", error_power=2.0, reads="exact",
                    memory_chunk=1, projection_chunk=1, eta_max=1.0, eta_start=0.5, momentum=False,
                    retention="initial", step="proximal", form="recurrent")
    return titans.SelfModifyingTitans(np.random.default_rng(0), config).astype(np.float64)


def network(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """W₂ (h,d), W₁ (d,h)"""
    return normal(rng, 6, 4), normal(rng, 4, 6) / 2


@exercise(4, lambda rng: (*network(rng), normal(rng, 4)), {
    "the residual connection were forgotten: M(x) = x + …": lambda W2, W1, x: W1 @ sigma(W2 @ x),
    "σ were missing": lambda W2, W1, x: x + W1 @ (W2 @ x),
    "σ stood behind the second layer, too": lambda W2, W1, x: x + sigma(W1 @ sigma(W2 @ x)),
})
def memory_read(W2: np.ndarray, W1: np.ndarray, x: np.ndarray) -> np.ndarray:
    """M(x) = x + W₁ σ(W₂ x), σ = SiLU [A 89]"""
    return mixer().memory("memory", [Tensor(W2), Tensor(W1)], Tensor(x[None]))[0].data[0]


def gradients(W2: np.ndarray, W1: np.ndarray, k: np.ndarray, v: np.ndarray, slope: bool = True, sign: float = 1.0,
              transposed: bool = False) -> tuple[np.ndarray, np.ndarray]:
    a = W2 @ k
    s = 1 / (1 + np.exp(-a))
    delta = sign * (k + W1 @ (a * s) - v)
    inner = (W1.T @ delta) * (s + a * s * (1 - s) if slope else 1)
    found = np.outer(inner, k), np.outer(delta, a * s)
    return (found[0].T, found[1].T) if transposed else found


@exercise(4, lambda rng: (*network(rng), unit(normal(rng, 4)), normal(rng, 4)), {
    "the slope of σ were missing on the way back to W₂": lambda *x: gradients(*x, slope=False),
    "both had the wrong sign: the error is M(k) − v": lambda *x: gradients(*x, sign=-1.0),
    "the outer products were transposed": lambda *x: gradients(*x, transposed=True),
    "the two had changed places: that of W₂ comes first": lambda *x: gradients(*x)[::-1],
    "the residual connection were forgotten in the error": lambda W2, W1, k, v: gradients(W2, W1, k, v + k),
})
def memory_gradients(W2: np.ndarray, W1: np.ndarray, k: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, ...]:
    """The gradients of ½‖M(k) − v‖² by W₂ and W₁"""
    pairs = mixer().errors("memory", [Tensor(W2), Tensor(W1)], Tensor(k[None]), Tensor(v[None]))
    return tuple((delta.mT @ z).data for z, delta in pairs)


@exercise(4, lambda rng: (normal(rng, 4) * np.exp(rng.uniform(-2, 2)),), {
    "small errors were scaled up, too; only large ones are scaled down": lambda d: d / np.sqrt(np.mean(d * d)),
    "the length were bounded and not the RMS": lambda d: d * min(1.0, 1 / np.linalg.norm(d)),
    "every number were bounded by itself, which turns the error": lambda d: np.clip(d, -1, 1),
})
def clip_error(delta: np.ndarray) -> np.ndarray:
    """δ, scaled down to an RMS of 1 where it is larger"""
    S, zero = Tensor(np.zeros((1, 1, 4, 4))), Tensor(np.zeros((1, 1, 1)))
    z = Tensor(np.eye(4)[None, None, :1])
    written = mixer().write(S, None, S, z, Tensor(delta[None, None, None]), 4, titans.Gates(zero + 1.0, zero, None))[1]
    return -2 * written.data[0, 0, :, 0]  # at the exact step η/(1 + η) = ½


def layer(rng: np.random.Generator) -> tuple:
    """The drift S and the initial state M₀ of a layer (4,6), its input z and output error δ, α and η"""
    return normal(rng, 4, 6), normal(rng, 4, 6), normal(rng, 6), 0.3 * unit(normal(rng, 4)), *rates(rng)


def written_layer(S: np.ndarray, M0: np.ndarray, z: np.ndarray, delta: np.ndarray, alpha: float, eta: float,
                  size: float | None = None) -> np.ndarray:
    rate = eta / (1 + eta * (z @ z if size is None else size))
    return alpha * S - rate * np.outer((S + M0) @ z + delta, z)


@exercise(4, layer, {
    "the decay were missing": lambda S, M0, z, d, alpha, eta: written_layer(S, M0, z, d, 1.0, eta),
    "the initial state faded, too: only the drift may": lambda S, M0, z, d, alpha, eta:
        written_layer(S, M0, z, d, alpha, eta) - (1 - alpha) * M0,
    "the step were the plain η":
        lambda S, M0, z, d, alpha, eta: written_layer(S, M0, z, d, alpha, eta, 0.0),
    "η/(1 + η) stood for η/(1 + η‖z‖²)":
        lambda S, M0, z, d, alpha, eta: written_layer(S, M0, z, d, alpha, eta, 1.0),
    "it were the whole weight M₀ + S; the drift S is asked for": lambda S, M0, z, d, alpha, eta:
        written_layer(S, M0, z, d, alpha, eta) + M0,
    "along z only the drift were forgotten, and not what M₀ answers":
        lambda S, M0, z, d, alpha, eta: written_layer(S, 0 * M0, z, d, alpha, eta),
    "nothing were forgotten along z": lambda S, M0, z, d, alpha, eta:
        written_layer(S, M0, z, d - (S + M0) @ z, alpha, eta),
})
def layer_write(S: np.ndarray, M0: np.ndarray, z: np.ndarray, delta: np.ndarray, alpha: float, eta: float
                ) -> np.ndarray:
    """The drift after one write: S ← α S − η′ ((S + M₀) z + δ) zᵀ, η′ = η/(1 + η‖z‖²) [A 88]"""
    gates = titans.Gates(Tensor(np.full((1, 1, 1), eta)), Tensor(np.full((1, 1, 1), np.log(alpha))), None)
    row = [Tensor(x[None, None, None]) for x in (z, delta)]
    return mixer().write(Tensor(S[None, None]), None, Tensor(M0[None]), *row, len(delta), gates)[1].data[0, 0]


@exercise(4, lambda rng: (normal(rng, 3, 4), *pair(rng), rng.uniform(0.5, 0.99), *rng.uniform(0.1, 0.9, 2)), {
    "S moved by the N of before this token": lambda S, N, k, v, alpha, beta, eta: (
        alpha * S - eta * np.outer(S @ k, k) + N, beta * N + eta * np.outer(v, k)),
    "N did not fade": lambda S, N, k, v, alpha, beta, eta: (
        alpha * S - eta * np.outer(S @ k, k) + N + eta * np.outer(v, k), N + eta * np.outer(v, k)),
    "what is forgotten went through N, too; only what is written goes on":
        lambda S, N, k, v, alpha, beta, eta: (alpha * S + beta * N + eta * np.outer(v - S @ k, k),
                                              beta * N + eta * np.outer(v - S @ k, k)),
    "S did not fade": lambda S, N, k, v, alpha, beta, eta: (
        S - eta * np.outer(S @ k, k) + beta * N + eta * np.outer(v, k), beta * N + eta * np.outer(v, k)),
    "η were missing before what is written": lambda S, N, k, v, alpha, beta, eta: (
        alpha * S - eta * np.outer(S @ k, k) + beta * N + np.outer(v, k), beta * N + np.outer(v, k)),
})
def momentum_write(S: np.ndarray, N: np.ndarray, k: np.ndarray, v: np.ndarray, alpha: float, beta: float, eta: float
                   ) -> tuple[np.ndarray, np.ndarray]:
    """(S, N) after N ← β N + η v kᵀ, S ← S(α I − η k kᵀ) + N"""
    row = [Tensor(x[None]) for x in (k, v, 0 * v)]
    gates = [Tensor(np.array([x])) for x in (np.log(alpha), eta, eta, np.log(beta))]
    _, S, N = memory.momentum_rule(None, *row, *gates, Tensor(S), Tensor(N), "recurrent")
    return S.data, N.data


@exercise(4, lambda rng: (normal(rng, 3, 4), unit(normal(rng, 4)), int(rng.integers(2))), {
    "a 1 wiped out what lies along k; it has to turn it over": lambda S, k, bit: S - bit * np.outer(S @ k, k),
    "a 1 turned the whole memory over, and not only what lies along k": lambda S, k, bit: S * (1 - 2 * bit),
    "0 and 1 had changed places": lambda S, k, bit: S - 2 * (1 - bit) * np.outer(S @ k, k),
    "a 0 turned it over, too": lambda S, k, bit: S - 2 * np.outer(S @ k, k),
})
def parity_write(S: np.ndarray, k: np.ndarray, bit: int) -> np.ndarray:
    """S(I − b k kᵀ) with the b that turns S k over for a 1, and leaves it for a 0"""
    log_a, b, c = memory.RULES["signed"](None, float(bit))
    return family(S, k, np.zeros(len(S)), k, np.exp(log_a), b, 0 * c)[1]


# 5. Every projection a memory -------------------------------------------------------------------------------


def network_says(W2: np.ndarray, W1: np.ndarray, x: np.ndarray) -> np.ndarray:
    return x + W1 @ sigma(W2 @ x)


def rms(x: np.ndarray) -> np.ndarray:
    return x / np.sqrt(np.mean(x * x) + 1e-6)


@exercise(5, lambda rng: (*network(rng), unit(normal(rng, 4)), normal(rng, 4)), {
    "it were what the memory says of the key; the target is what it makes of the value":
        lambda W2, W1, k, v: rms(network_says(W2, W1, k)),
    "its scale were left as it came: such a target feeds on itself": lambda W2, W1, k, v: network_says(W2, W1, v),
    "it had length 1 where RMS 1 is wanted": lambda W2, W1, k, v: unit(network_says(W2, W1, v)),
    "it were the value itself: those are plain Titans": lambda W2, W1, k, v: v,
}, tolerance=1e-5)
def self_target(W2: np.ndarray, W1: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """v̂ = M(v), brought to an RMS of 1 [A 84]"""
    return mixer("self").target("memory", [Tensor(W2), Tensor(W1)], Tensor(v[None])).data[0]


@exercise(5, lambda rng: (normal(rng, 3, 4), normal(rng, 3, 4), rng.uniform(0.5, 0.99)), {
    "all of M faded: so does what training has found": lambda M, M0, alpha: alpha * M,
    "M and M₀ (or α and 1 − α) had changed places": lambda M, M0, alpha: M + alpha * (M0 - M),
    "the initial state were left out at the end": lambda M, M0, alpha: alpha * (M - M0),
})
def pull_to_start(M: np.ndarray, M0: np.ndarray, alpha: float) -> np.ndarray:
    """M after one token of retention that leads back to M₀"""
    zero, nothing = Tensor(np.zeros((1, 1, 1, 4))), Tensor(np.zeros((1, 1, 1, 3)))
    gates = titans.Gates(Tensor(np.zeros((1, 1, 1))), Tensor(np.full((1, 1, 1), np.log(alpha))), None)
    drift = mixer().write(Tensor((M - M0)[None, None]), None, Tensor(M0[None]), zero, nothing, len(M), gates)[1]
    return M0 + drift.data[0, 0]


@exercise(5, lambda rng: (rng.uniform(0.5, 0.999),), {
    "the sign were the other way round": lambda alpha: np.log(2) / np.log(alpha),
    "it were the mean age, 1/(1 − α)": lambda alpha: 1 / (1 - alpha),
    "it were the time to fall to 1/e and not to a half": lambda alpha: -1 / np.log(alpha),
    "half of α were taken and not half of what is there": lambda alpha: 0.5 / (1 - alpha),
})
def half_life(alpha: float) -> float:
    """After how many tokens a half is left, α = 2^(−1/half-life)"""
    return -1 / np.log2(alpha)


@exercise(5, lambda rng: (rng.uniform(-3, 3), 0.4, rng.uniform(0.01, 0.3)), {
    "a gate of 0 gave half of η_max; it should give η_start": lambda gate, most, start: most / (1 + np.exp(-gate)),
    "b were made from p = η_start; it takes p = η_start/η_max":
        lambda gate, most, start: most / (1 + np.exp(-gate) * (1 - start) / start),
    "η_max were missing": lambda gate, most, start: 1 / (1 + np.exp(-gate) * (most / start - 1)),
    "b were subtracted": lambda gate, most, start: most / (1 + np.exp(-gate) / (most / start - 1)),
})
def bounded_rate(gate: float, eta_max: float, eta_start: float) -> float:
    """η = η_max·sigmoid(gate + b), with the b that makes it η_start at a gate of 0"""
    share = eta_start / eta_max
    return (autograd.sigmoid(Tensor(np.array(gate + np.log(share / (1 - share))))) * eta_max).data


@exercise(5, lambda rng: (rng.uniform(0.02, 0.5), int(rng.integers(2, 9))), {
    "the error were looked at anew at every token": lambda eta, C: (1 - 2 * eta) ** C,
    "only the factor 1 − η counted, and not the frozen error": lambda eta, C: (1 - eta) ** C,
    "only the frozen error counted": lambda eta, C: 1 - eta * C,
})
def swing_factor(eta: float, C: int) -> float:
    """By what a repeated pair's distance from rest is multiplied in a chunk of C tokens"""
    M, away = 1.0, []
    for _ in range(2):
        away.append(M - 0.5)  # a key of 1, the value 1: it rests at ½
        error = M - 1.0
        for _ in range(C):
            M = M * (1 - eta) - eta * error
    return away[1] / away[0]


# 6. What moves when -----------------------------------------------------------------------------------------

CLOCKS = ((1, 4, 16), (1, 2, 8), (2, 6, 12), (1, 3, 9))


def clock(rng: np.random.Generator) -> tuple[int, tuple[int, ...]]:
    """A step at which, or after which, some level moves; and chunk sizes"""
    chunks = CLOCKS[rng.integers(len(CLOCKS))]
    return int(rng.integers(1, 6)) * chunks[rng.integers(3)] + int(rng.integers(2)), chunks


@exercise(6, clock, {
    "steps were counted from 0; the first is 1": lambda i, chunks: [(i - 1) % C == 0 for C in chunks],
    "a level moved whenever its chunk was over once": lambda i, chunks: [i >= C for C in chunks],
    "i had to divide C; it is the other way round": lambda i, chunks: [C % i == 0 for C in chunks],
    "those were the levels that rest": lambda i, chunks: [i % C != 0 for C in chunks],
})
def due_levels(i: int, chunks: tuple[int, ...]) -> list[bool]:
    """Which levels move at step i, counted from 1: i ≡ 0 (mod C) [A 71]"""
    return [cms.due(i, C) for C in chunks]


def gathering(rng: np.random.Generator) -> tuple[np.ndarray, int, int]:
    """Gradients of 24 steps, a step after the first chunk, a chunk size; every second time it is due"""
    C = int(rng.integers(2, 5))
    return normal(rng, 24, 3), C * int(rng.integers(2, 5)) + int(rng.integers(2)), C


def last(gradients: np.ndarray, i: int, C: int, n: int) -> np.ndarray:
    return np.sum(gradients[max(0, i - n):i], axis=0) * (i % C == 0)


@exercise(6, gathering, {
    "C + 1 gradients were added up, as the paper prints it": lambda gs, i, C: last(gs, i, C, C + 1),
    "it were the mean; a level moves by the sum": lambda gs, i, C: last(gs, i, C, C) / C,
    "it moved at every step, due or not": lambda gs, i, C: np.sum(gs[i - C:i], axis=0),
    "only the last gradient counted": lambda gs, i, C: last(gs, i, C, 1),
    "what it had moved by already were not let go": lambda gs, i, C: last(gs, i, C, i),
    "steps counted from 0: gradients[0] is of step 1":
        lambda gs, i, C: np.sum(gs[i - C + 1:i + 1], axis=0) * (i % C == 0),
})
def moved_by(gradients: np.ndarray, i: int, C: int) -> np.ndarray:
    """What a level of chunk size C moves by at step i: the sum of its last C gradients, or nothing [A 71].  (t,n)"""
    pending, moved = None, np.zeros(gradients.shape[1])
    for n, g in enumerate(gradients[:i], 1):
        pending, moved = cms.gather(pending, {"": Tensor(g)}), np.zeros(gradients.shape[1])
        if cms.due(n, C):
            moved, pending = -cms.move({"": Tensor(moved)}, pending, 1.0)[""].data, None
    return moved


@exercise(6, lambda rng: (CLOCKS[rng.integers(len(CLOCKS))],), {
    "it were moves per step, 1/C; relative to the slowest it has f = 1": lambda chunks: [1 / C for C in chunks],
    "the fastest had f = 1; in the paper it is the slowest": lambda chunks: [chunks[0] / C for C in chunks],
    "they were the chunk sizes relative to the slowest": lambda chunks: [C / chunks[-1] for C in chunks],
    "they were periods and not frequencies": lambda chunks: list(chunks),
})
def frequencies(chunks: tuple[int, ...]) -> list[float]:
    """How often each level moves, relative to the slowest: f = max C/C (§7.1)"""
    rows = timetable(Config(mixer="attention", chunks=chunks), 1)
    return [f for name, _, f, _ in rows if name.startswith("level ")]


def falls(accuracy: np.ndarray, tasks: int) -> float:
    return float(np.mean((np.max(accuracy, axis=0) - accuracy[-1])[:tasks]))


@exercise(6, lambda rng: (rng.uniform(0, 1, (7, 3)),), {
    "the task that came last counted, too; nobody had time to forget it": lambda a: falls(a, 3),
    "it were counted from the first moment and not from the best": lambda a: np.mean((a[0] - a[-1])[:-1]),
    "only the first task were looked at": lambda a: falls(a, 1),
    "the tasks were added up and not averaged": lambda a: 2 * falls(a, 2),
})
def forgetting(accuracy: np.ndarray) -> float:
    """How far tasks but the last have fallen from their best, on average.  (moments,tasks)"""
    return falls(accuracy, accuracy.shape[1] - 1)


# 7. Optimisers as memories ----------------------------------------------------------------------------------


@exercise(7, lambda rng: (normal(rng, 3, 4), rng.uniform(0.1, 2, (3, 4)), normal(rng, 3, 4), rng.uniform(0.1, 1)), {
    "it were divided by V and not by its root": lambda W, V, g, eta: (W - eta * g / (V + g * g), V + g * g),
    "the root were of the V of before this gradient": lambda W, V, g, eta: (W - eta * g / np.sqrt(V), V + g * g),
    "V were a sum of |g| and not of g²":
        lambda W, V, g, eta: (W - eta * g / np.sqrt(V + np.abs(g)), V + np.abs(g)),
    "V began anew with every gradient": lambda W, V, g, eta: (W - eta * np.sign(g), g * g),
})
def adagrad_step(W: np.ndarray, V: np.ndarray, g: np.ndarray, eta: float) -> tuple[np.ndarray, np.ndarray]:
    """(W, V) after V ← V + g², W ← W − η g/√V [A 105 with g in place of M̃]"""
    p = layers.Parameter(W.copy())
    optimizer = optimizers.build("adagrad", [p], eta)
    optimizer.state[0]["v"], p.grad = V, g
    optimizer.step()
    return p.data, optimizer.state[0]["v"]


@exercise(7, lambda rng: (normal(rng, 3, 4), normal(rng, 3, 4), rng.uniform(0.5, 0.95)), {
    "it did not look ahead: the direction is m itself":
        lambda m, g, mu: (mu * m + (1 - mu) * g, mu * m + (1 - mu) * g),
    "it looked ahead from the m of before this gradient":
        lambda m, g, mu: (mu * m + (1 - mu) * g, m),
    "m were no average: the new gradient counts 1 − μ":
        lambda m, g, mu: (g + mu * (mu * m + g), mu * m + g),
})
def look_ahead(m: np.ndarray, g: np.ndarray, mu: float) -> tuple[np.ndarray, np.ndarray]:
    """(direction, m): m ← μ m + (1 − μ) g, and what m would be if g came once more"""
    state: dict = {"m": m}
    m = optimizers.hebbian(state, "m", g, mu, 1 - mu).copy()  # the next call writes into it
    return optimizers.hebbian(state, "m", g, mu, 1 - mu), m


@exercise(7, lambda rng: (normal(rng, 3, 4) / 4,), {
    "numbers were cubed one by one; it is X Xᵀ X": lambda X: 1.5 * X - 0.5 * X ** 3,
    "it went up and not down": lambda X: 0.5 * X + 0.5 * X @ X.T @ X,
    "the step were 1 and not ½": lambda X: 2 * X - X @ X.T @ X,
    "the identity were forgotten: only X Xᵀ X was taken away": lambda X: X - 0.5 * X @ X.T @ X,
})
def newton_schulz_step(X: np.ndarray) -> np.ndarray:
    """X after a step of ½ down the gradient of ¼‖X Xᵀ − I‖², which is (X Xᵀ − I) X [A 43]"""
    leaf = Tensor(X, requires_grad=True)
    gram = leaf @ leaf.mT - np.eye(len(X))
    return X - 0.5 * grad(autograd.sum(gram * gram) * 0.25, [leaf])[0].data


def slow(gradients: np.ndarray, f: int, beta: float, first: int = 0, share: float | None = None) -> np.ndarray:
    M = np.zeros_like(gradients[0])
    for end in range(f, len(gradients) + 1, f):
        M = beta * M + (1 - beta if share is None else share) * np.sum(gradients[max(0, end - f - first):end], axis=0)
    return M


def every_step(gradients: np.ndarray, beta: float) -> np.ndarray:
    return functools.reduce(lambda M, g: beta * M + (1 - beta) * g, gradients, np.zeros_like(gradients[0]))


@exercise(7, lambda rng: (normal(rng, 14, 2, 3), 4, rng.uniform(0.5, 0.9)), {
    "it moved at every step; it moves at every f-th": lambda gs, f, beta: every_step(gs, beta),
    "a window had f + 1 gradients, as the paper prints it": lambda gs, f, beta: slow(gs, f, beta, first=1),
    "the window that is not over had been written, too":
        lambda gs, f, beta: beta * slow(gs, f, beta) + (1 - beta) * np.sum(gs[len(gs) // f * f:], axis=0),
    "windows were added with weight 1: that is no average": lambda gs, f, beta: slow(gs, f, beta, share=1.0),
    "a window counted by its mean; here it is the sum": lambda gs, f, beta: slow(gs, f, beta) / f,
})
def slow_memory(gradients: np.ndarray, f: int, beta: float) -> np.ndarray:
    """M₂ after all gradients: every f steps M₂ ← β M₂ + (1 − β) Σ_{last f} g [A 75].  gradients (t,out,in)"""
    p = layers.Parameter(np.zeros(gradients[0].shape))
    optimizer = optimizers.build("m3", [p], 1e-3, beta3=beta, slow_period=f)
    for g in gradients:
        p.grad = g
        optimizer.step()
    return optimizer.state[0]["slow"]


# 8. Hope, whole ---------------------------------------------------------------------------------------------


def norm(x: Any) -> Any:
    """Rows of RMS 1; of arrays and of tensors"""
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + 1e-6)


def parts_of_a_block(rng: np.random.Generator) -> tuple:
    """Tokens (5,4), a mixer, two levels and a norm: functions of rows"""
    A, U, V = normal(rng, 4, 4), normal(rng, 2, 4, 6), normal(rng, 2, 6, 4)
    levels = [lambda h, n=n: np.tanh(h @ U[n]) @ V[n] for n in range(2)]
    return normal(rng, 5, 4), lambda h: h @ A, levels, norm


def stacked(x: np.ndarray, mixer: Callable, levels: list, norm: Callable) -> np.ndarray:
    return functools.reduce(lambda x, level: x + level(norm(x)), levels, x + mixer(norm(x)))


@exercise(8, parts_of_a_block, {
    "the residual connection around the mixer were forgotten": lambda x, mixer, levels, norm:
        functools.reduce(lambda x, level: x + level(norm(x)), levels, mixer(norm(x))),
    "the residual connections around the levels were forgotten": lambda x, mixer, levels, norm:
        functools.reduce(lambda x, level: level(norm(x)), levels, x + mixer(norm(x))),
    "the norm before the mixer were forgotten": lambda x, mixer, levels, norm: stacked(
        x, lambda h: mixer(x), levels, norm),
    "the norms before the levels were forgotten": lambda x, mixer, levels, norm: stacked(
        x + mixer(norm(x)), lambda h: 0 * h, levels, lambda h: h),
    "the levels stood side by side; they are a chain, and each reads what the one before has left":
        lambda x, mixer, levels, norm: (y := x + mixer(norm(x))) + sum(level(norm(y)) for level in levels),
    "the levels went from the last to the first": lambda x, mixer, levels, norm: stacked(x, mixer, levels[::-1], norm),
    "the norm stood behind each sum and not before each part": lambda x, mixer, levels, norm:
        functools.reduce(lambda x, level: norm(x + level(x)), levels, norm(x + mixer(x))),
    "the levels came before the mixer": lambda x, mixer, levels, norm: stacked(
        stacked(x, lambda h: 0 * h, levels, norm), mixer, [], norm),
}, tolerance=1e-5)
def block(x: np.ndarray, mixer: Callable, levels: list[Callable], norm: Callable) -> np.ndarray:
    """x ← x + mixer(norm x), then x ← x + level(norm x) for each level, fast to slow [A 94–97]"""
    class Given:
        """A level that is a function"""

        norm = staticmethod(layers.rms_norm)

        def __init__(self, f: Callable):
            self.f = f

        def __call__(self, h: Tensor, drift: Any) -> Any:
            return self.f(h)

    chain = SimpleNamespace(variant="sequential", levels=[Given(f) for f in levels],
                            start=lambda: [cms.LevelState() for _ in levels])
    whole = SimpleNamespace(norm=layers.rms_norm, mixer=lambda h, state: (mixer(h), None),
                            cms=lambda x, states: cms.CMS.__call__(chain, x))  # type: ignore[arg-type]
    y, _ = hope.Block.__call__(whole, Tensor(x), hope.BlockState(None, ()))  # type: ignore[arg-type]
    return y.data


@exercise(8, lambda rng: (normal(rng, 5, 4), normal(rng, 9, 4), norm), {
    "the norm were forgotten": lambda x, E, norm: x @ E.T,
    "they were probabilities; a softmax comes later": lambda x, E, norm: autograd.softmax(Tensor(norm(x) @ E.T)),
    "the embedding were brought to RMS 1, too": lambda x, E, norm: norm(x) @ norm(E).T,
}, tolerance=1e-5)
def tied_logits(x: np.ndarray, E: np.ndarray, norm: Callable) -> np.ndarray:
    """Logits of the last block's output, by the embedding itself.  x (T,D), E (V,D) → (T,V)"""
    return layers.linear(layers.rms_norm(Tensor(x)), Tensor(E)).data


@exercise(8, lambda rng: (int(rng.integers(2, 9)) * 8, int(rng.integers(2, 7)), int(rng.integers(10, 999))), {
    "only keys were kept; values are, too": lambda D, layers, T: D * layers * T,
    "only one block kept them": lambda D, layers, T: 2 * D * T,
    "scores of all pairs were kept; they are made anew for every query": lambda D, layers, T: layers * T * T,
    "it did not grow with the text": lambda D, layers, T: 2 * D * layers,
})
def attention_state(width: int, blocks: int, tokens: int) -> int:
    """How many numbers a Transformer keeps of a text: a key and a value per token and block"""
    return blocks * layers.CausalAttention(None, width, 2).cost(tokens).numbers


# 9. What the paper claims, and what we could show -----------------------------------------------------------

STUDENT = {3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365}  # of 95%, by the number of seeds


def spread(values: np.ndarray, t: float | None = None, ddof: int = 1, root: bool = True) -> tuple[float, float]:
    n = len(values)
    width = (STUDENT[n] if t is None else t) * np.std(values, ddof=ddof) / (np.sqrt(n) if root else 1)
    return float(np.mean(values)), float(width)


@exercise(9, lambda rng: (rng.normal(3, 0.2, (n := int(rng.integers(3, 9)))), STUDENT[n]), {
    "it were how far seeds scatter, and not how sure their mean is: √n is missing":
        lambda x, t: spread(x, t, root=False),
    "squares were averaged over n; with the mean taken from the same numbers, it is n − 1":
        lambda x, t: spread(x, t, ddof=0),
    "1.96 stood for Student's t, which is larger for so few seeds": lambda x, t: spread(x, 1.96),
    "those were the ends of the interval; its mean and its half-width are asked for":
        lambda x, t: (spread(x, t)[0] - spread(x, t)[1], spread(x, t)[0] + spread(x, t)[1]),
    "it were the whole width and not the half": lambda x, t: (spread(x, t)[0], 2 * spread(x, t)[1]),
    "it were divided by n and not by √n": lambda x, t: (spread(x, t)[0], spread(x, t)[1] / np.sqrt(len(x))),
})
def interval(values: np.ndarray, t: float) -> tuple[float, float]:
    """(mean, half-width) of the 95% interval of the mean of a few numbers: t·s/√n"""
    return spread(values, t)


@exercise(9, lambda rng: (*(rng.normal(3, 1, (1, 5)) + rng.normal(0, 0.1, (2, 5))), STUDENT[5]), {
    "the two were judged apart, and their widths put together: what a seed does to both is then counted as noise":
        lambda a, b, t: (np.mean(a) - np.mean(b), np.hypot(spread(a, t)[1], spread(b, t)[1])),
    "their widths were added": lambda a, b, t: (np.mean(a) - np.mean(b), spread(a, t)[1] + spread(b, t)[1]),
    "it were the other way round: a − b is asked for": lambda a, b, t: spread(b - a, t),
})
def paired(a: np.ndarray, b: np.ndarray, t: float) -> tuple[float, float]:
    """(mean, half-width) of the difference a − b within a seed"""
    return spread(a - b, t)


@exercise(9, lambda rng: (rng.choice([-0.3, -0.3, 0.1, 0.3]) + rng.normal(0, 0.02), rng.uniform(0.15, 0.25)), {
    "the width were not looked at": lambda mean, half: np.sign(mean),
    "a no were never said": lambda mean, half: float(mean - half > 0),
    "what is not shown were called a no": lambda mean, half: 1.0 if mean - half > 0 else -1.0,
})
def verdict(mean: float, half: float) -> float:
    """1 (yes) if the interval lies above zero, −1 (no) if below, 0 (not shown) if it holds zero"""
    return float(mean - half > 0) - float(mean + half < 0)
