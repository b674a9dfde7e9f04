"""How is one token read fast?

By the operations of a model on one more token, bound once to the arrays they work on.
One token is little work: asked of tensors, most of its time goes into the same questions again, of shapes, types,
histories and addresses. A `Plan` has asked them once. What is left are compiled loops with all their arguments, one
after another, over arrays that stay. Only the running state is made anew for every token, as the model does it: whoever
holds on to an earlier one may go on from there.

The model is the definition: a plan gives each sequence of a batch the bits that the model gives it alone. What it has
no loops for, such as mixers other than Titans or levels that have learned, it asks of the model's own parts.

Legend: B batch, D width, H heads, d head size, F hidden size, V vocabulary.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

import kernels
from autograd import Tensor
from kernels.product import dot_rows, dot_rows_of_each
from kernels.titans import MEMORIES, WORK, Tables, read_token
from layers import Linear, RMSNorm
from state import BlockState, State
from titans import SelfModifyingTitans, TitansState

Array = np.ndarray
Step = Callable[[], Any]  # a loop with all its arguments

# Loops with their arguments -----------------------------------------------------------------------------------


def bound(loop: Callable, n: int, work: int, *args: Any) -> Step:
    """`kernels.split(loop, n, work, *args)`, to be called again and again."""
    return functools.partial(loop, 0, n, *args) if work < kernels.GRAIN else functools.partial(
        kernels.split, loop, n, work, *args)


def times(W: Array, x: Array, z: Array) -> list[Step]:
    """z += x Wᵀ, as `layers.linear` computes it for one sequence.  W (out,in), x (B,in), z (B,out)"""
    if len(x) == 1:
        return [bound(dot_rows, len(W), W.size // 16, W, x[0], z[0])]
    return [bound(dot_rows_of_each, len(W), x.size * len(W) // 16, W, x, z)]


def normed(norm: RMSNorm, x: Array, z: Array) -> Step:
    """z = norm(x), row by row"""
    w = np.ones(x.shape[1], x.dtype) if norm.weight is None else norm.weight.data
    return bound(kernels.rms_norm.loop, len(x), x.size, norm.eps, x, w, z, np.empty(len(x), x.dtype))


# Titans -------------------------------------------------------------------------------------------------------


class TitansToken:
    """x += mixer(h) of self-modifying Titans, for one token.  h, x (B,D)"""

    def __init__(self, mixer: SelfModifyingTitans, h: Array, x: Array):
        (B, D), H, d, c, dtype = h.shape, mixer.heads, mixer.head_size, mixer.config, h.dtype
        self.mixer, self.h, self.tables = mixer, h, Tables(dtype, [(1, {})])
        self.taps, filtered, self.asked = mixer.conv.weight.data, np.empty((B, 1, D), dtype), np.zeros((4, B, D), dtype)
        self.filter = functools.partial(kernels.causal_conv.loop, 0, B)
        self.filtered = filtered
        self.project = [step for f, z in zip(mixer.projection.values(), self.asked, strict=True)
                        for step in times(f.weight.data, filtered[:, 0], z)]
        self.o, merged = np.zeros((B * H, 1, d), dtype), np.empty((B * H, d), dtype)
        self.merge = [normed(RMSNorm(d, learned=False), self.o[:, 0], merged),
                      *times(mixer.output.weight.data, merged.reshape(B, D), x)]

        feeds = [z.reshape(B, H, 1, d) for z in self.asked]
        initial = {name: [M0.data for M0 in layers] for name, layers in mixer.retained().items()}
        biases, readouts = ([w.data for w in ws.values()] for ws in (mixer.bias, mixer.readout))
        self.inputs, self.after, self.momentum_after = self.tables.inputs(  # of states, any: they are written anew
            [*feeds, self.o], biases, readouts, initial, initial, {}, initial if c.momentum else {}, ({}, {}),
            (initial, initial))
        self.moved = np.zeros((1, len(MEMORIES)), bool)
        l2, value_targets, eta_max, power, exact = mixer.kernel_settings()
        settings = np.array([name in c.adaptive for name in MEMORIES]), l2, value_targets, power, exact
        self.read = bound(read_token, B * H, WORK * self.o.size, settings, eta_max, self.moved, self.inputs,
                          self.after, self.momentum_after, self.o)

        # states are made at once, a field for every layer; rows of a table whose addresses count from where it begins
        layers = {2 * MEMORIES.index(name) + i: M0 for name, pair in initial.items() for i, M0 in enumerate(pair)}
        self.whole = np.dtype([(str(i), dtype, (B, *M0.shape)) for i, M0 in layers.items()])
        self.fields = {name: [str(2 * MEMORIES.index(name) + i) for i in range(2)] for name in initial}
        self.rows = np.zeros((2 * len(MEMORIES), 5), np.int64)
        for i, M0 in layers.items():
            self.rows[i] = self.whole.fields[str(i)][1], B * H, M0[0].nbytes, *M0.shape[1:]
        self.begins = np.zeros_like(self.rows)
        self.begins[list(layers), 0] = 1
        self.given: TitansState | None = None  # the state that was given last, and what a state that lies otherwise
        self.copied: list[Array] = []  # was copied to: addresses in tables are of these

    def find(self, state: TitansState) -> None:
        """Put into the tables where a state lies that was not given last."""
        self.copied = []
        for table, layers_of in ((self.inputs.drift, state.drift), (self.inputs.momentum, state.momentum),
                                 (self.inputs.start, state.chunk_start)):
            for name, layers in layers_of.items():
                arrays = [np.require(S.data, self.h.dtype, ["C", "A", "W"]) for S in layers]
                self.copied += arrays
                m = 2 * MEMORIES.index(name)
                table[0, m:m + 2] = Tables(self.h.dtype, [(1, {})])(arrays)

    def make(self, table: Any) -> dict[str, list[Tensor]]:
        """States that are to be filled; their rows are put into the table."""
        whole = np.empty((), self.whole)
        np.multiply(self.begins, whole.__array_interface__["data"][0], out=table[0])
        table += self.rows
        return {name: [Tensor(whole[first]), Tensor(whole[second])] for name, (first, second) in self.fields.items()}

    def __call__(self, state: TitansState) -> TitansState:
        heard = np.concatenate([state.tail.data, self.h[:, None]], axis=1)
        self.filter(heard, self.taps, self.filtered)
        self.asked.fill(0)
        for step in self.project:
            step()
        if state is self.given:
            self.inputs.drift[...] = self.after
            if state.momentum:
                self.inputs.momentum[...] = self.momentum_after
        else:
            self.find(state)
        self.moved[0] = [name in state.chunk_start for name in MEMORIES]
        np.copyto(self.inputs.start, self.inputs.drift, where=~np.repeat(self.moved, 2)[:, None])
        drift = self.make(self.after)
        momentum = self.make(self.momentum_after) if state.momentum else {}
        self.o.fill(0)
        self.read()
        for step in self.merge:
            step()
        position = state.position + 1
        start = {name: state.chunk_start.get(name, state.drift[name])
                 for name, size in self.mixer.chunk_size.items() if position % size}
        self.given = TitansState(Tensor(heard[:, 1:].copy()), position, drift, start, momentum)
        return self.given


# A block, a model ---------------------------------------------------------------------------------------------


class BlockToken:
    """x ← x + mixer(norm x);  x ← cms(x), for one token.  x (B,D), h (B,D) is scratch"""

    def __init__(self, block: Any, h: Array, x: Array):
        self.block, self.h, self.x, self.norm = block, h, x, normed(block.norm, x, h)
        known = type(block.mixer) is SelfModifyingTitans and block.mixer.known_to_kernel()
        self.mixer = TitansToken(block.mixer, h, x) if known else None
        self.levels: list[Step] | None = None  # None: the model's own
        layers = [layer for level in block.cms.levels for layer in vars(level).values()]
        plain = all(f.bias is None for f in layers if isinstance(f, Linear))
        if plain and block.cms.variant != "independent" and all(type(n.norm) is RMSNorm for n in block.cms.levels):
            self.levels = [step for level in block.cms.levels for step in self.level(level)]

    def level(self, level: Any) -> list[Step]:
        """x += MLP(norm x)"""
        h, x, shape = self.h, self.x, (len(self.h), len(level.up.weight))
        up, gate, made = hidden = [np.empty(shape, h.dtype) for _ in range(3)]
        steps: list[Step] = [normed(level.norm, x, h), functools.partial(up.fill, 0),
                             *times(level.up.weight.data, h, up)]
        flat = [z.reshape(-1) for z in hidden]
        if hasattr(level, "gate"):
            steps += [functools.partial(gate.fill, 0), *times(level.gate.weight.data, h, gate),
                      bound(kernels.swiglu.loop, up.size, up.size, flat[1], flat[0], flat[2])]
        else:
            steps.append(bound(kernels.gelu.loop, up.size, up.size, flat[0], flat[2]))
        return [*steps, *times(level.down.weight.data, made, x)]

    def __call__(self, past: BlockState) -> BlockState:
        self.norm()
        if self.mixer and past.mixer:
            mixed = self.mixer(past.mixer)
        else:
            y, mixed = self.block.mixer(Tensor(self.h[:, None].copy()), past.mixer)
            self.x += y.data[:, 0]
        if self.levels is None or any(level.drift for level in past.levels):
            self.x[...] = self.block.cms(Tensor(self.x[:, None].copy()), past.levels).data[:, 0]
        else:
            for step in self.levels:
                step()
        return BlockState(mixed, past.levels)


class Plan:
    """A model's operations on one more token of each of B sequences."""

    def __init__(self, model: Any, B: int):
        c, self.table = model.config, model.embedding.data
        self.weights, self.modules = model.parameters(), model.blocks
        self.made_of = self.versions()
        self.fits = all(w.data.flags.carray and w.dtype == self.table.dtype for w in self.weights)
        if self.fits:
            self.scale = self.table.dtype.type(c.width ** 0.5 if c.scaled else 1)
            self.x, self.h = (np.empty((B, c.width), self.table.dtype) for _ in range(2))
            self.blocks = [BlockToken(block, self.h, self.x) for block in model.blocks]
            self.norm = normed(model.norm, self.x, self.h)
            self.unembedding = (model.embedding if c.tied else model.unembedding).data
        self.last: Any = None  # the state that it gave last, as long as anybody has it

    def versions(self) -> list[Any]:
        """What changes when a weight gets another array, a block another mixer, or that other settings"""
        return [w.changed for w in self.weights] + [
            part for block in self.modules for part in (block.mixer, getattr(block.mixer, "config", None))]

    def knows(self, state: State) -> bool:
        """Whether it is the state that was given last, which need not be looked at again."""
        return self.last is not None and self.last() is state

    def __call__(self, tokens: Array, state: State) -> tuple[Tensor, State]:
        """Logits (B,1,V) after tokens (B,1), and the state then."""
        np.multiply(self.table[tokens[:, 0]], self.scale, out=self.x)
        after = State([block(past) for block, past in zip(self.blocks, state.blocks, strict=True)], state.clock)
        self.last = weakref.ref(after)
        self.norm()
        logits = np.zeros((len(self.x), len(self.unembedding)), self.x.dtype)
        for step in times(self.unembedding, self.h, logits):
            step()
        return Tensor(logits[:, None]), after


KEPT = 4  # plans of one model, for as many sizes of a batch
_plans = threading.local()  # of this thread, for plans hold arrays that are written into: by the model, by the batch


def plan(model: Any, B: int) -> Plan | None:
    """A plan of the model as it is now; None where the model itself has to run."""
    table, norms = model.embedding.data, [model.norm, *(block.norm for block in model.blocks)]
    if not kernels.JIT or model.config.positions or type(table) is not np.ndarray or any(
            type(norm) is not RMSNorm for norm in norms) or table.dtype not in (np.float32, np.float64):
        return None
    plans = vars(_plans).setdefault("of", weakref.WeakKeyDictionary()).setdefault(model, {})
    if B not in plans or plans[B].made_of != plans[B].versions():
        if B not in plans and len(plans) == KEPT:
            del plans[next(iter(plans))]
        plans[B] = Plan(model, B)
    return plans[B] if plans[B].fits else None
