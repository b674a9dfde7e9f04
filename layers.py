"""What is a layer?  Weights with a name, and a function of them.

A `Module` is any object whose attributes are parameters or other modules (also in lists and dicts). Calling
it computes; nothing it computes is hidden in its attributes: a layer that remembers takes its state and hands
back the next one, `y, state = layer(x, state)`. What takes the time is an operation of a kernel (kernels/).

Legend: B batch, T time, D width, H heads, K heads of keys, d = D/H head size, W taps of a filter, V vocabulary,
P keys of the past.
Weights are (out, in), as in y = W x.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

import functions  # noqa: F401  (gives tensors the methods and functions that NumPy's users know)
import kernels
from autograd import (
    Leaf,
    Tensor,
    concatenate,
    fused,
    grad_enabled,
    no_grad,
    op,
    reshape,
    softmax,
    tensor,
    where,
)

Rng = np.random.Generator
TOKENS = 2**8  # from so many tokens on, and
WORK = 2**26  # from so many multiplications by a weight on, threads share them
BASE = 10000.0  # of the angles of rotary positions [Su 2021]


class Parameter(Leaf):
    """A tensor that the outer optimiser learns. To a list in `tap` its layer adds (inputs, output errors)."""

    __slots__ = ("name", "tap")

    def __init__(self, data: Any):
        super().__init__(data, requires_grad=True)
        self.name = ""
        self.tap: list | None = None


last_setting = [0]  # how often an attribute of any module was set: who knows them all as they were need not look


class Module:
    """A function with parameters, which are found by walking its attributes, in the order they were set."""

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)
        last_setting[0] += 1

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, Parameter]]:
        """("blocks.0.mixer.query", parameter) pairs; each parameter once, under its first name."""
        seen: set[int] = set()
        for name, value in _walk(self, prefix):
            if id(value) not in seen:
                seen.add(id(value))
                yield name, value

    def parameters(self) -> list[Parameter]:
        return [p for _, p in self.named_parameters()]

    def astype(self, dtype: Any) -> Any:
        """The same module with its parameters in another precision (float64 to check derivatives)."""
        for p in self.parameters():
            p.data = p.data.astype(dtype)
            p.grad = p.grad if p.grad is None else p.grad.astype(dtype)
        return self

    def zero_grad(self) -> None:
        for p in self.parameters():
            p.grad = None

    def state_dict(self) -> dict[str, np.ndarray]:
        """The arrays of all parameters by name (the arrays themselves, not copies)."""
        return {name: p.data for name, p in self.named_parameters()}

    def load_state_dict(self, arrays: dict[str, np.ndarray], assign: bool = False) -> None:
        """Copy arrays into the parameters, or let them be these (`assign`).

        ValueError names the first missing, unknown or misshaped one.
        """
        own = dict(self.named_parameters())
        for name in [*own, *arrays]:
            if name not in arrays or name not in own:
                raise ValueError(f"the weights {'lack' if name in own else 'have an unknown'} {name!r}; "
                                 "they were saved from a model of another configuration")
            if arrays[name].shape != own[name].shape:
                raise ValueError(f"{name} has shape {arrays[name].shape} in the file and {own[name].shape} "
                                 "in the model; load it with the configuration it was saved with")
            if arrays[name].dtype.kind != "f":
                raise ValueError(f"{name} is of type {arrays[name].dtype} in the file; weights are real numbers")
        for name, p in own.items():
            if assign:
                p.data = arrays[name]
            else:
                p.data[...] = np.asarray(arrays[name], like=p.data)
                p.mark_changed()


def _walk(value: Any, name: str) -> Iterator[tuple[str, Parameter]]:
    if isinstance(value, Parameter):
        yield name, value
    elif isinstance(value, Module):
        for key, child in vars(value).items():
            yield from _walk(child, f"{name}.{key}" if name else key)
    elif isinstance(value, (list, tuple, dict)):
        for at, child in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _walk(child, f"{name}.{at}")


def normal(rng: Rng | None, shape: tuple[int, ...], std: float) -> Parameter:
    """A parameter from N(0, std²), in float32. Without an rng it has a shape but no memory: to be counted."""
    if rng is None:
        return Parameter(np.broadcast_to(np.float32(0), shape))
    return Parameter(rng.standard_normal(shape, dtype=np.float32) * np.float32(std))


@op
def linear(x, w):
    """z = x Wᵀ;  x̄ = z̄ W, W̄ = z̄ᵀ x [A 8, 29; N 3–4], which are such products, too.  x (…,in), w (out,in)

    If the weight has a tap, what a learning rule on the layer itself needs is put there: its inputs and
    output errors.
    """
    rows = math.prod(x.shape[:-1])

    def to_w(g):
        flat, g = reshape(x, shape=(rows, x.shape[-1])), reshape(g, shape=(rows, w.shape[0]))
        if getattr(w, "tap", None) is not None:
            w.tap.append((flat.data, g.data))
        return linear(g.mT, flat.mT)
    z = kernels.product(np.reshape(x.data, (rows, x.shape[-1])), w.data.T)
    return np.reshape(z, (*x.shape[:-1], w.shape[0])), (lambda g: linear(g, w.mT), to_w)


class Linear(Module):
    """y = W x, or W x + b.  x (…,in) → (…,out)"""

    def __init__(self, rng: Rng | None, inputs: int, outputs: int, scale: float = 1.0, bias: bool = False):
        self.weight = normal(rng, (outputs, inputs), scale / np.sqrt(inputs))
        self.bias = Parameter(np.zeros(outputs, dtype=np.float32)) if bias else None

    def __call__(self, x: Tensor) -> Tensor:
        y = linear(x, self.weight)
        return y if self.bias is None else y + self.bias


gelu = fused(kernels.gelu)
swiglu = fused(kernels.swiglu)
causal_conv = fused(kernels.causal_conv)
attention = fused(kernels.attention)
weighted_rms_norm = fused(kernels.rms_norm)
token_cross_entropy = fused(kernels.cross_entropy)


def rms_norm(x: Tensor, weight: Tensor | None = None, eps: float = 1e-6) -> Tensor:
    """w·x/√(mean x² + ε).  x (…,D), w (D,), 1 unless it is given"""
    return weighted_rms_norm(x, np.ones_like(x.data, shape=x.shape[-1:]) if weight is None else weight, eps=eps)


def cross_entropy(logits: Tensor, targets: Any, ignore_index: int = -100, reduction: str = "mean") -> Tensor:
    """−log softmax(logits)[target] over the last axis, in nats.

    logits (…,V), targets (…) integers; positions equal to `ignore_index` count for nothing.
    reduction: "mean" over the counted positions, "sum", or "none". ValueError on a target outside 0..V−1.
    """
    targets = tensor(targets).data
    if targets.shape != logits.shape[:-1] or targets.dtype.kind not in "iu":
        raise ValueError(f"targets must be integers of shape {logits.shape[:-1]}, one for each row of logits,"
                         f" not {targets.dtype} of shape {targets.shape}")
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction {reduction!r}; choose mean, sum or none")
    each = token_cross_entropy(logits, targets=targets, ignore_index=ignore_index)
    if reduction == "none":
        return each
    counted = np.sum(targets != ignore_index)
    return each.sum() if reduction == "sum" else each.sum() / np.maximum(counted, 1).astype(each.dtype)


class RMSNorm(Module):
    """y = w·x/√(mean x² + ε), w learned or 1.  x (…,D)"""

    def __init__(self, width: int, eps: float = 1e-6, learned: bool = True):
        self.weight, self.eps = Parameter(np.ones(width, dtype=np.float32)) if learned else None, eps

    def __call__(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class LayerNorm(Module):
    """y = w·c/√(mean c² + ε) + b,  c = x − mean x.  x (…,D)"""

    def __init__(self, width: int, eps: float = 1e-5):
        self.weight, self.eps = Parameter(np.ones(width, dtype=np.float32)), eps
        self.bias = Parameter(np.zeros(width, dtype=np.float32))

    def __call__(self, x: Tensor) -> Tensor:
        return rms_norm(x - x.mean(axis=-1, keepdims=True), self.weight, self.eps) + self.bias


@op
def split_heads(x, *, heads):
    """(B,T,H·d) → (B,H,T,d), and back"""
    B, T, D = x.shape
    heads_first = np.swapaxes(np.reshape(x.data, (B, T, heads, D // heads)), 1, 2)
    return np.ascontiguousarray(heads_first, like=x.data), (merge_heads,)  # laid out once, not in every kernel


@op
def merge_heads(x):
    """(B,H,T,d) → (B,T,H·d), and back"""
    B, H, T, d = x.shape
    return np.reshape(np.swapaxes(x.data, 1, 2), (B, T, H * d)), (lambda g: split_heads(g, heads=H),)


class CausalConv(Module):
    """A short causal filter on every channel: y_t = Σ_i w_i x_{t−i}.  x (B,T,D); state = the last W−1 inputs.

    It starts from random taps: every channel hears the tokens before it, in a mixture of its own, from the first
    step on. (From the identity, w_0 = 1, models learn to look back only late.)
    """

    def __init__(self, rng: Rng | None, width: int, taps: int = 4):
        self.taps = taps
        self.weight = normal(rng, (taps, width), taps ** -0.5)

    def start(self, x: Tensor) -> Tensor:
        """Zeros, as if nothing had been heard before.  → (B,W−1,D)"""
        return Tensor(np.zeros_like(x.data, shape=(x.shape[0], self.taps - 1, x.shape[2])))

    def __call__(self, x: Tensor, tail: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return causal_conv(x, self.start(x) if tail is None else tail, self.weight)


def each_token(f: Callable, *xs: Tensor) -> list[Tensor]:
    """f(0, *xs), of an f(start, *xs) that takes every token from `start` on by itself, and gives a list.  xs (…,T,·)

    Where nothing is recorded, threads have some of the tokens each: they meet once, not at every operation.
    """
    T, work = xs[0].shape[-2], xs[0].size * xs[0].shape[-1]
    if grad_enabled() or not isinstance(xs[0].data, np.ndarray) or T < TOKENS or work < WORK:
        return f(0, *xs)
    made: list[Tensor] = []
    first = threading.Lock()

    def some(start: int, stop: int) -> None:
        with no_grad():
            parts = f(start, *(x[..., start:stop, :] for x in xs))
        with first:
            if not made:
                made.extend(parts if stop - start == T else [
                    Tensor(np.empty((*y.shape[:-2], T, y.shape[-1]), y.dtype)) for y in parts])
        for y, part in zip(made, parts, strict=True):
            if y is not part:
                y.data[..., start:stop, :] = part.data
    kernels.split(some, T, work)
    return made


@dataclass(frozen=True)
class Cost:
    """What remembering takes, for one sequence and one mixer (its projections are counted with all weights)."""

    products: int  # multiplications per token
    numbers: int  # in the running state


class Mixer(Module):
    """What stands before the levels of a block: it reads tokens, and keeps in a state what it has read.

        state = mixer.start(x);   y, state = mixer(x, state)          x, y (B,T,D)

    A state is a frozen dataclass of tensors whose first axis is the batch; a whole number in it counts tokens.
    """

    clocks: dict[str, int]  # by the name of a part, tokens between two of its moves; 0: it has no weights that move

    def start(self, x: Tensor) -> Any:
        """The state before the first token of a batch like x."""
        raise AttributeError(f"{type(self).__name__} has no start()")

    def position(self, state: Any) -> int:
        """How many tokens have been read; 0 where nobody counts."""
        return getattr(state, "position", 0)

    def drift(self, state: Any) -> dict[str, list[tuple[Any, Any]]]:
        """What each kind of memory holds beyond its initial state: arrays (B,…), each with that initial state (…)."""
        return {}

    def cost(self, tokens: int) -> Cost:
        """What remembering takes once so many tokens have been read."""
        return Cost(0, 0)


def windowed_attention(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """`attention` over the last `window` tokens only, the query's own among them [A 63]: block by block of queries."""
    reads, past, shared = [], k.shape[2] - q.shape[2], q.shape[1] // k.shape[1]
    k, v = (x if shared == 1 else x.repeat(shared, axis=1) for x in (k, v))  # each head of keys serves several
    for t in range(0, q.shape[2], window):
        n = min(window, q.shape[2] - t)
        first = max(0, past + t - window + 1)
        keys, values = (x[:, :, first:past + t + n] for x in (k, v))
        scores = (q[:, :, t:t + n] @ keys.mT) * (q.shape[-1] ** -0.5)  # (B,H,n,≤2·window)
        ones = np.ones_like(scores.data, shape=scores.shape[-2:], dtype=bool)
        seen = np.tril(ones, past + t - first) & ~np.tril(ones, past + t - first - window)
        reads.append(softmax(where(seen, scores, -1e30)) @ values)
    return reads[0] if len(reads) == 1 else concatenate(reads, axis=2)


@dataclass(frozen=True)
class AttentionState:
    """All that attention has read, or what lies in its window."""

    key: Tensor  # (B,K,T,d), turned by their positions unless there is a window
    value: Tensor  # (B,K,T,d)


class CausalAttention(Mixer):
    """Softmax attention over the past, or its last `window` tokens, with rotary positions [A 61–63; Su 2021].

        y_t = W_o Σ_{i≤t} softmax_i(q_t·k_i/√d) v_i

    The read is argmin_m Σ_i exp(q_t·k_i/√d) ‖v_i − m‖² [A 62]: a memory without weights, fitted anew for every query.

    `key_heads` K: heads of keys and values, if fewer than of queries, of which each then serves several; `size`: d, if
    not D/H; `base` and `scaling` of rotary positions as in `frequencies`, base 0 for none; `biases`: of "qkv",
    "output".  x (B,T,D) → (B,T,D).
    """

    def __init__(self, rng: Rng | None, width: int, heads: int, scale: float = 1.0, window: int = 0, *,
                 key_heads: int = 0, size: int = 0, base: float = BASE, scaling: tuple[float, ...] = (),
                 biases: tuple[str, ...] = ()):
        self.heads, self.window, self.key_heads, self.size = heads, window, key_heads or heads, size or width // heads
        self.clocks = {"attention": 0}
        self.rotate = functools.partial(rotate, base=base, scaling=scaling) if base else lambda x, start: x
        self.rotary = (self.size, base, scaling)
        self.query, self.key, self.value = (Linear(rng, width, n * self.size, bias="qkv" in biases)
                                            for n in (heads, self.key_heads, self.key_heads))
        self.output = Linear(rng, heads * self.size, width, scale, bias="output" in biases)

    def start(self, x: Tensor) -> AttentionState:
        nothing = Tensor(np.zeros_like(x.data, shape=(x.shape[0], self.key_heads, 0, self.size)))
        return AttentionState(nothing, nothing)

    def __call__(self, x: Tensor, state: AttentionState | None = None) -> tuple[Tensor, AttentionState]:
        past = 0 if state is None else state.key.shape[2]

        def asked(start: int, x: Tensor) -> list[Tensor]:
            q = split_heads(self.query(x), heads=self.heads)  # (B,H,T,d)
            k, v = (split_heads(f(x), heads=self.key_heads) for f in (self.key, self.value))  # (B,K,T,d)
            return [self.rotate(q, start=past + start), k if self.window else self.rotate(k, start=past + start), v]
        q, k, v = each_token(asked, x)
        if state is not None and past:
            k, v = concatenate([state.key, k], axis=2), concatenate([state.value, v], axis=2)
        if not self.window:
            (y,) = each_token(lambda _, y: [self.output(merge_heads(y))], attention(q, k, v))
            return y, AttentionState(k, v)
        # only distances count: positions begin anew with every window
        y = windowed_attention(q, self.rotate(k, start=0), v, self.window)
        kept = max(0, k.shape[2] - self.window + 1)
        return self.output(merge_heads(y)), AttentionState(*(x[:, :, kept:].copy() for x in (k, v)))

    def turn(self, position: int, dtype: Any) -> Any:
        """cos and sin, side by side, by which vectors at a position are turned: (d,), None if by nothing"""
        size, base, scaling = self.rotary
        if not base:
            return None
        turn = turns(position, 1, size, base, scaling)[0].astype(np.result_type(dtype, np.complex64), copy=False)
        return turn.view(dtype)

    def position(self, state: AttentionState) -> int:
        return 0 if self.window else state.key.shape[2]

    def cost(self, tokens: int) -> Cost:
        width, kept = self.heads * self.size, min(tokens, self.window - 1) if self.window else tokens
        return Cost(width * (2 * self.window if self.window else tokens),  # half of all is masked
                    2 * self.key_heads * self.size * kept)


@op
def rotate(x, *, start, base=BASE, scaling=(), back=False):
    """z = x with pairs (x_2i, x_2i+1) turned by the angle t·ω_i, t from `start`, ω of `frequencies`;  x̄ = z̄ turned
    back

    Rotary positions: the product of two such vectors depends on their distance only.  x (B,H,T,d)
    """
    ours, real = isinstance(x.data, np.ndarray), np.result_type(x.dtype, np.float32)
    as_it_is = ours and x.data.strides[-1] == x.data.itemsize and x.data.dtype == real
    data = x.data if as_it_is else np.ascontiguousarray(x.data, dtype=real, like=x.data)
    turn = turns(start, *x.shape[2:], base, scaling) if ours else turns.__wrapped__(
        start, *x.shape[2:], base, scaling, data)
    turn = turn.astype(np.result_type(real, np.complex64), copy=False)
    pairs, turn = data.view(turn.dtype), turn.conj() if back else turn  # as complex numbers
    if ours:
        z = np.empty(pairs.shape, pairs.dtype)
        kernels.split(lambda i, j: np.multiply(pairs[i:j], turn, out=z[i:j]), len(z), z.size)
    else:
        z = pairs * turn
    return z.view(real).astype(x.dtype, copy=False), (
        lambda g: rotate(g, start=start, base=base, scaling=scaling, back=not back),)


@functools.lru_cache(maxsize=8)
def turns(start: int, time: int, size: int, base: float, scaling: tuple[float, ...], like: Any = None) -> Any:
    """exp(i·angle) of every position and pair: (T,d/2)"""
    return np.exp(1j * np.arange(start, start + time, like=like)[:, None] * frequencies(size, base, scaling, like))


def frequencies(size: int, base: float = BASE, scaling: tuple[float, ...] = (), like: Any = None) -> Any:
    """ω_i = base^(−2i/d), scaled where a model reads further than it first learned to: (d/2,)

    scaling (f,): all are f times slower. (f, low, high, L), Llama 3's: those that turn fewer than `low` times in L
    tokens are f times slower, those that turn more than `high` times are as they were, and in between it is in between.
    """
    w = base ** (-np.arange(0, size, 2, like=like) / size)
    if not scaling:
        return w
    factor, *bounds = scaling
    if not bounds:
        return w / factor
    low, high, length = bounds
    kept = np.clip((length * w / (2 * math.pi) - low) / (high - low), 0, 1)
    return w * (kept + (1 - kept) / factor)
