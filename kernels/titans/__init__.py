"""Self-modifying Titans, fused: all chunks of a sequence in one kernel, there and back.

The definition is `titans.py::SelfModifyingTitans.read_in_operations`, and `chunk` for a single one; every file says on
top which part of it is computed there. They are read in this order:

    products    products of small matrices, and loops over their numbers
    tables      where the arrays lie; layers of a memory
    decays      what is left of a write some tokens later: products of α, and with momentum of β
    systems     every write sees those before it: a triangular system
    reads       a memory as a function, and the main memory's reads
    learn       from k and v to the writes of both layers, and the way back
    chunk       one span of tokens, a sequence of spans
    token       the same for one token

Legend: B batch, H heads, T time, n tokens of a span, d head size, h hidden size, F features; m a memory of MEMORIES,
with the layers W₂ (h,d) and W₁ (d,h), in a scalar memory (1,h). M₀ is a layer's initial state, S (S₀) its drift at the
span's start, P its drift at its chunk's start, W = M₀ + P, N (N₀) its momentum. z (F,n) is a layer's input, E what it
should write, U what is written. x̄ is the cotangent of x, in code x_bar. Where there is no momentum it is None, and
what is compiled knows nothing of it (`if_given`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

import kernels.program as program
from kernels.runtime import JIT, Array, check_shapes, need_soon, split
from kernels.titans.chunk import read_spans, read_spans_backward
from kernels.titans.tables import MEMORIES, Tables
from kernels.titans.token import read_token, settings_of, table_of

WORK = 1000  # for every number of the output, very roughly
REGISTERED: dict[tuple[type, str], Callable] = {}


def register(array_type: type, name: str, function: Callable) -> None:
    """Let `titans` or `titans_backward` call `function` where the arrays are of an `array_type`."""
    REGISTERED[array_type, name] = function


def has_titans(x: Array, plain: bool = True) -> bool:
    """Whether `titans` can be computed on arrays like x; what is registered knows the plain case, exact reads and the
    proximal step without momentum, alone."""
    there = JIT if isinstance(x, np.ndarray) else plain and (type(x), "titans") in REGISTERED
    return there and x.dtype in (np.float32, np.float64)


def titans(adaptive, l2, value_targets, eta_max, forgets, exact, spans, *inputs, back=False):
    """Read and write T tokens with self-modifying Titans: two-layer memories, retention to M₀.

    adaptive: names of the memories that learn; l2: the objective, else the dot product; value_targets: the target is v;
    eta_max: bound of η; forgets: how often a write by the printed step forgets along z, 0 for the proximal one; exact:
    the main memory is read as of the last token, not as of its chunk's start.
    spans: (n, seen) for each: tokens that are written at once, and by the name of a memory the span with which
    its chunk began, whose state at that time its errors see; −1: that in `start`.
    inputs: feeds q, k, v, gate (B,H,T,d); bias (H,) and readout (H,1,d) of eta and alpha, with momentum of beta, too;
    and, by the name of a memory, both layers of: the initial state (H,out,in); the drift (B,H,out,in); where the
    first span says −1, the drift at its chunk's start; and the momentum, {} without.
    back: whether the way back will be taken, too.
    → o (B,H,T,d); the drifts and the momenta after all, by name; and boundary states for the way back: drifts and
    momenta between the P spans, (P−1,B,H,out,in) by name, or {} for a single one.
    Raises ValueError on shapes that do not fit.
    """
    if twin := REGISTERED.get((type(inputs[0][0]), "titans")):
        o, after, boundaries = twin(adaptive, l2, value_targets, eta_max, spans, *inputs[:-1])
        return o, after, {}, boundaries
    tables, options, moved = check(adaptive, l2, value_targets, spans, *inputs)
    (B, H, T, d), (feeds, *shared, drift, start, momentum), P = inputs[0][0].shape, inputs, len(spans)
    o, states = np.zeros((B, H, T, d), tables.dtype), (drift, momentum)
    after = [_made(np.empty, state, tables.dtype) for state in states]
    boundaries = [{} if P == 1 else _made(np.empty, state, tables.dtype, P - 1) for state in states]
    flat = o.reshape(B * H, T, d)
    found = tables.inputs([*feeds, flat], *shared, drift, start, momentum, boundaries, after)
    settings = (*options, forgets, exact), eta_max, moved
    if back:
        need_soon(read_spans_backward, 0, 0, *settings, *found, found[0], flat)
        program.need_walk_soon(tables.dtype, True)  # a model that is trained is asked to write, too
    if T == 1:
        of_token = settings_of(adaptive, l2, value_targets, forgets, exact, bool(momentum), d, shared[2])
        split(read_token, B * H, WORK * o.size, of_token, eta_max, table_of(tables, found, B * H, d), flat)
    else:
        split(read_spans, B * H, WORK * o.size, *settings, *found, flat)
    return o, *after, boundaries


def titans_backward(adaptive, l2, value_targets, eta_max, forgets, exact, spans, boundaries,
                    *inputs_and_cotangents):
    """Cotangents of all inputs of `titans`, in their order, from those of o and of the drifts and momenta after."""
    *inputs, o_bar, drift_bar, momentum_bar = inputs_and_cotangents
    if twin := REGISTERED.get((type(inputs[0][0]), "titans_backward")):
        return [*twin(adaptive, l2, value_targets, eta_max, spans, boundaries, *inputs[:-1], o_bar, drift_bar), {}]
    tables, options, moved = check(adaptive, l2, value_targets, spans, *inputs)
    (B, H, T, d), (feeds, bias, readout, initial, drift, start, momentum) = inputs[0][0].shape, inputs
    check_cotangents(inputs, o_bar, drift_bar, momentum_bar)
    for states, between in zip((drift, momentum), boundaries, strict=True):
        for name, layers in states.items() if len(spans) > 1 else ():
            for x, y in zip(between[name], layers, strict=True):
                check_shapes(boundaries=(x, (len(spans) - 1, *y.shape)))
    o_bar = np.require(o_bar, tables.dtype, ["C", "A", "W"]).reshape(B * H, T, d)
    shared = [_made(np.zeros, xs, tables.dtype, B) for xs in (bias, readout, initial)]  # of every sequence, first
    states_bar = [_made(np.zeros, xs, tables.dtype) for xs in (drift, start, momentum)]
    bars = [_made(np.empty, feeds, tables.dtype), *states_bar]
    boundaries_bar = [_made(np.zeros, xs, tables.dtype) for xs in boundaries]
    found, *_ = tables.inputs([*feeds, o_bar], *inputs[1:], boundaries, (drift, momentum))
    found_bar, *after_bar = tables.inputs(bars[0], *shared, *bars[1:], boundaries_bar, (drift_bar, momentum_bar))
    split(read_spans_backward, B * H, WORK * o_bar.size, (*options, forgets, exact), eta_max, moved, found, *after_bar,
          found_bar, o_bar)
    initial_bar = {name: [x.sum(0) for x in layers] for name, layers in shared[2].items()}
    return [bars[0], *([x.sum(0) for x in xs] for xs in shared[:2]), initial_bar, *bars[1:]]


def _made(make, like, dtype, *lead):
    """Arrays in the shapes of a list, or of a dict of lists"""
    if isinstance(like, dict):
        return {name: _made(make, layers, dtype, *lead) for name, layers in like.items()}
    return [make((*lead, *x.shape), dtype) for x in like]


def check(adaptive, l2, value_targets, spans, feeds, bias, readout, initial, drift, start, momentum=None):
    """Tables that can be made, the first options and `moved` of the loops; ValueError on what does not fit."""
    (B, H, T, d), lengths = feeds[0].shape, [n for n, _ in spans]
    if not lengths or min(lengths) < 1 or sum(lengths) != T or not set(drift) == set(initial) == set(adaptive):
        raise ValueError(f"spans of {lengths} of {T} tokens for memories {', '.join(drift)}; each has at least one, "
                         f"together they have all, and there is a state for each of the memories that learn, "
                         f"{', '.join(adaptive)}")
    if len(bias) != (3 if momentum else 2) or set(momentum or drift) != set(drift):
        raise ValueError(f"{len(bias)} gates and momenta of {', '.join(momentum or ()) or 'none'}; give eta and alpha, "
                         "and with momentum beta, too, and a momentum for each of the memories that learn")
    if set(start) != {name for name, at in spans[0][1].items() if at < 0}:
        raise ValueError(f"a start for {', '.join(start) or 'none'}, where the first span says {spans[0][1]}; "
                         "give one for every -1")
    for p, (_, seen) in enumerate(spans):
        if set(seen) != set(drift) or not all(-(name in start) <= at <= p for name, at in seen.items()):
            raise ValueError(f"errors of span {p} see {seen}; give for each of {', '.join(drift)} a span from 0 to "
                             f"{p}, or -1 where there is a start")
    for x in feeds:
        check_shapes(feed=(x, (B, H, T, d)))
    for x, r in zip(bias, readout, strict=True):
        check_shapes(bias=(x, (H,)), readout=(r, (H, 1, d)))
    for name, layers in initial.items():
        h, out = layers[0].shape[1], 1 if name in ("eta", "alpha") else d
        for layer, shape in enumerate([(h, d), (out, h)]):
            check_shapes(initial=(layers[layer], (H, *shape)), drift=(drift[name][layer], (B, H, *shape)))
            if name in start:
                check_shapes(start=(start[name][layer], (B, H, *shape)))
            if momentum:
                check_shapes(momentum=(momentum[name][layer], (B, H, *shape)))
    options = np.array([name in adaptive for name in MEMORIES]), l2, value_targets
    moved = np.array([[seen.get(name, p) != p for name in MEMORIES] for p, (_, seen) in enumerate(spans)])
    return Tables(feeds[0].dtype, spans), options, moved


def check_cotangents(inputs, o_bar, drift_bar, momentum_bar=None):
    """ValueError unless every cotangent has the shape of its array."""
    feeds, drift = inputs[0], inputs[4]
    check_shapes(o_bar=(o_bar, feeds[0].shape))
    for name, layers in drift.items():
        for layer, x in enumerate(layers):
            check_shapes(drift_bar=(drift_bar[name][layer], x.shape))
            if momentum_bar:
                check_shapes(momentum_bar=(momentum_bar[name][layer], x.shape))
