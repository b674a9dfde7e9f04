"""How does a derivative find its way back?  A reverse-mode autograd engine over NumPy, of any order.

Every operation is one function: the forward line, and beside it one rule per input that turns the cotangent z̄
of its result into the cotangent of that input. Rules are written with the same operations, so they can be
differentiated again: a paper about learning inside learning needs gradients through gradients.

    x = Tensor([1.0, 2.0], requires_grad=True)
    y = (x ** 3).sum()
    (dy,) = grad(y, [x], create_graph=True)        # dy is a Tensor, 3x²: it can be differentiated again
    dy.sum().backward()                            # x.grad is the array 6x

The engine does the shared work once: undoing broadcasts, adding up cotangents, walking the graph in order (no
recursion: unrolled inner loops are long), and freeing it. Arrays of any library that speaks NumPy's dispatch
protocols flow through the same functions. Long, because every operation stands with its rule; what can be made
of these operations and is not needed to read on is in functions.py.

Notation: z is the result, x̄ = ∂L/∂x the cotangent of x; shapes as in NumPy.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import itertools
import math
import operator
import sys
import threading
import weakref
from collections.abc import Callable, Container, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib.array_utils import normalize_axis_tuple

__all__ = ["NUMPY", "OPS", "Leaf", "Tensor", "check_grad", "checkpoint", "enable_grad", "fused", "grad", "grad_enabled",
           "host", "no_grad", "op", "tensor", "tree_flatten", "tree_leaves", "tree_map"]

Array = Any  # numpy.ndarray, or an array of a library that dispatches on NumPy's protocols
OPS: dict[str, Callable] = {}  # every differentiable operation by name; the tests walk it
NUMPY: dict[Callable, Callable] = {}  # NumPy's functions, and ours that stand for them


class _Mode(threading.local):
    enabled = True

    def __init__(self) -> None:
        self.before: list[bool] = []  # what it was outside of each `with` that has not ended


_mode = _Mode()
_order = itertools.count(1)


def grad_enabled() -> bool:
    """Whether operations are being recorded in this thread."""
    return _mode.enabled


class _recording(contextlib.ContextDecorator):  # used as a word: with _recording(True)
    """Record, or do not, inside. It may be entered again, inside itself too, and by several threads."""

    def __init__(self, enabled: bool):
        self.enabled = enabled

    def __enter__(self) -> None:
        _mode.before.append(_mode.enabled)
        _mode.enabled = self.enabled

    def __exit__(self, *raised: Any) -> None:
        _mode.enabled = _mode.before.pop() if _mode.before else True  # none of a generator that another thread ends


def no_grad() -> Any:
    """Record nothing inside: `with no_grad(): ...`, or `@no_grad()` above a function."""
    return _recording(False)


def enable_grad() -> Any:
    """Record again inside a `no_grad` block."""
    return _recording(True)


class Node:
    """One recorded operation: its inputs, and the rules that carry cotangents back to them."""

    __slots__ = ("inputs", "kept", "name", "order", "rules", "shapes")

    def __init__(self, name: str, inputs: tuple[Tensor, ...], rules: Any, kept: Array, shapes: Any):
        self.name, self.inputs, self.rules, self.shapes = name, inputs, rules, shapes
        self.kept = kept  # the result's array, if the rules ask for it: its Tensor would be a reference cycle
        self.order = next(_order)


class Tensor:
    """An array that remembers how it was computed.

    `data` is the array, `grad` (an array, on leaves only) what `backward` has accumulated. Python numbers and
    lists become float32 (or int64); arrays keep their dtype. Only floating-point tensors have gradients.

    Operations make new tensors; none is written into. Between an operation and the way back `data` must stay as it
    is. The way back refuses a leaf with which `x.data = …` or `x.data += …` was done since; `x.data[i] = …` cannot be
    seen, and gives the gradients at other numbers.
    """

    __slots__ = ("__weakref__", "changed", "data", "grad", "index", "node", "requires_grad")
    data: Array
    grad: Array | None
    node: Node | None

    def __init__(self, data: Any, requires_grad: bool = False, dtype: Any = None):
        data = data.data if isinstance(data, Tensor) else data
        plain = not hasattr(data, "dtype")
        if plain or isinstance(data, np.generic):
            data = np.asarray(data)
        own = _real(data.dtype)
        if dtype is None:
            dtype = np.float32 if plain and own == np.float64 else None if own.isnative else own.newbyteorder("=")
        if dtype is not None:
            data = data.astype(_real(dtype), copy=False)
        if requires_grad:
            _expect_floats(data)
        self.data = data
        self.grad = self.node = None
        self.requires_grad = requires_grad
        self.index = self.changed = 0
        if requires_grad and type(self) is Tensor:
            self.__class__ = Leaf

    shape = property(lambda self: self.data.shape)
    ndim = property(lambda self: self.data.ndim)
    size = property(lambda self: self.data.size)
    dtype = property(lambda self: self.data.dtype)
    T = property(lambda self: transpose(self))
    mT = property(lambda self: swapaxes(self, axis1=-1, axis2=-2))

    def __repr__(self) -> str:
        history = f", from {self.node.name}" if self.node else ", requires_grad=True" * self.requires_grad
        return f"Tensor({np.array2string(self.data, precision=4, threshold=20)}{history})"

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    def __bool__(self) -> bool:
        return bool(self.data)

    def __float__(self) -> float:
        return float(self.data)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if self.requires_grad:
            raise TypeError("a tensor that requires gradients does not turn into an array by itself; "
                            "use .data or .detach(), and for a list of tensors stack(…)")
        return np.array(self.data, dtype=dtype, copy=copy)

    def __array_ufunc__(self, function: Callable, method: str, *inputs: Any, **settings: Any) -> Any:
        """np.exp(x), array * x: the operation that goes by that name."""
        return _dispatch(function if method == "__call__" else getattr(function, method), inputs, settings)

    def __array_function__(self, function: Callable, types: Any, args: tuple, settings: dict) -> Any:
        return _dispatch(function, args, settings)

    def item(self) -> float:
        """The only element, as a Python number."""
        return self.data.item()

    def detach(self) -> Tensor:
        """The same array without its history."""
        return Tensor(self.data)

    def backward(self, cotangent: Any = None, retain_graph: bool = False,
                 ready: Callable[[Tensor], None] | None = None) -> None:
        """Add ∂⟨cotangent, self⟩/∂leaf to `.grad` of every leaf that requires gradients, and free the graph.

        A tensor of one element needs no cotangent. `ready(leaf)` is called of each leaf as soon as its gradient is
        complete, in the midst of the walk. For derivatives of derivatives use `grad`.
        """
        _expect_history(self)
        start = _cotangent(self, cotangent)
        # leaves share no array, not even the caller's: somebody may clip in place
        taken = {id(start.data): weakref.ref(start.data)}  # one that is gone leaves its id to another

        def arrive(leaf: Tensor, g: Tensor | None) -> None:
            if g is None:  # a rule said that nothing arrives here
                return
            if leaf.grad is not None:
                leaf.grad += g.data
            else:
                known = taken.get(id(g.data))
                leaf.grad = g.data.copy() if g.data.base is not None or (known and known() is g.data) else g.data
                taken[id(leaf.grad)] = weakref.ref(leaf.grad)
            if ready is not None:
                ready(leaf)
        for leaf, g in _pull_back([self], [start], None, False, retain_graph, arrive=arrive if ready else None):
            arrive(leaf, g)

    # operators (the methods that are functions, x.exp() or x.sum(axis=0), are set below the operations) ---------
    __hash__ = object.__hash__
    __add__ = __radd__ = lambda x, y: add(x, y)
    __mul__ = __rmul__ = lambda x, y: mul(x, y)
    __sub__ = lambda x, y: sub(x, y)
    __rsub__ = lambda x, y: sub(y, x)
    __truediv__ = lambda x, y: div(x, y)
    __rtruediv__ = lambda x, y: div(y, x)
    __floordiv__ = lambda x, y: floor_divide(x, y)
    __rfloordiv__ = lambda x, y: floor_divide(y, x)
    __mod__ = lambda x, y: remainder(x, y)
    __rmod__ = lambda x, y: remainder(y, x)
    __pow__ = lambda x, y: power(x, y)
    __rpow__ = lambda x, y: power(y, x)
    __matmul__ = lambda x, y: matmul(x, y)
    __rmatmul__ = lambda x, y: matmul(y, x)
    __neg__ = lambda x: neg(x)
    __pos__ = lambda x: x
    __abs__ = lambda x: absolute(x)
    __getitem__ = lambda x, index: getitem(x, index=index)
    __lt__ = lambda x, y: x.data < _plain(y)
    __le__ = lambda x, y: x.data <= _plain(y)
    __gt__ = lambda x, y: x.data > _plain(y)
    __ge__ = lambda x, y: x.data >= _plain(y)
    __eq__ = lambda x, y: x.data == _plain(y)  # type: ignore
    __ne__ = lambda x, y: x.data != _plain(y)  # type: ignore
    __int__ = lambda x: int(x.data)
    __index__ = lambda x: operator.index(x.data)

    def __format__(self, how: str) -> str:
        return format(self.data if how else repr(self), how)

    def __setitem__(self, index: Any, value: Any) -> None:
        raise TypeError("a tensor is not written into: make another one with where(mask, new, x), concatenate "
                        "or scatter; or write into the array, x.data[...] = ..., which no derivative sees")

    def reshape(self, *shape: Any) -> Tensor:
        return reshape(self, shape=shape[0] if len(shape) == 1 else shape)

    def transpose(self, *axes: Any) -> Tensor:
        return transpose(self, axes=axes[0] if len(axes) == 1 and not isinstance(axes[0], int) else axes or None)

    view, permute = reshape, transpose

    # what says something about the numbers is an array, and has no derivative
    argmax = lambda x, axis=None, keepdims=False: np.argmax(x.data, axis=axis, keepdims=keepdims)
    any = lambda x, axis=None, keepdims=False: np.any(x.data, axis=axis, keepdims=keepdims)
    all = lambda x, axis=None, keepdims=False: np.all(x.data, axis=axis, keepdims=keepdims)
    numpy = lambda x: host(x.data)
    tolist = lambda x: x.data.tolist()

    def _in_functions(self) -> Any:
        raise AttributeError("this method is one of functions.py: a tensor has it once that is imported")

    clip = var = std = prod = dot = flatten = ravel = copy = clone = property(_in_functions)

    if TYPE_CHECKING:  # the methods that are set below
        def __getattr__(self, name: str) -> Any: ...


last_change = [0]  # of any leaf: who knows all of them as they were then need not ask each


class Leaf(Tensor):
    """A tensor that requires gradients and was not computed, as a weight. It keeps count of changes of its array."""

    __slots__ = ()

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "grad" and isinstance(value, Tensor):  # what `grad` gives
            value = value.data
        object.__setattr__(self, name, value)
        if name == "data":
            self.mark_changed()

    def mark_changed(self) -> None:
        """Say that elements of the array were written to: no graph that was recorded before goes back any more."""
        object.__setattr__(self, "changed", next(_order))
        last_change[0] = self.changed


def _to_leaf(x: Tensor) -> None:
    """Make a leaf of a tensor whose `requires_grad` was set after it was made."""
    _expect_floats(x.data)
    x.__class__ = Leaf


def _expect_floats(data: Array) -> None:
    if data.dtype.kind != "f":
        raise TypeError(f"only floating-point tensors have gradients, this one is {data.dtype}; "
                        "convert it with .astype(np.float32) first")


def _dispatch(function: Callable, args: tuple, settings: dict) -> Any:
    """NumPy's function on tensors: ours that stands for it; plain NumPy where nothing requires gradients."""
    if function in NUMPY and settings.get("out") is None:
        if len(args) > 2 and function.__name__ in ("sum", "mean", "max", "min", "prod", "var", "std"):
            raise TypeError(f"np.{function.__name__} has dtype or out in third place, which tensors have not; name "
                            "keepdims=")
        return NUMPY[function](*args, **settings)
    leaves, rebuild = tree_flatten((args, settings))
    if any(isinstance(x, Tensor) and x.requires_grad for x in leaves):
        name = getattr(function, "__name__", function)
        raise TypeError(f"np.{name} into an array has no derivative; without out= (array = array + x) it has one"
                        if function in NUMPY else
                        f"np.{name} has no rule of differentiation here (functions.py has more of them, once it is "
                        "imported); take .data or .detach() for the numbers alone")
    args, settings = rebuild(_plain(x) for x in leaves)
    return function(*args, **settings)


def tensor(data: Any, requires_grad: bool = False, dtype: Any = None) -> Tensor:
    """`data` as a Tensor; itself if it is one and as it is asked for. A list of tensors is stacked."""
    if _holds_tensors(data):
        data = stack(_as_tensors(tuple(tensor(x) if _holds_tensors(x) else x for x in data)))
    if not isinstance(data, Tensor):
        return Tensor(data, requires_grad, dtype)
    if dtype is not None and data.dtype != dtype:
        data = astype(data, dtype=dtype)
    return Tensor(data, True) if requires_grad and not data.requires_grad else data


def _real(dtype: Any) -> Any:
    if np.dtype(dtype).kind not in "fiub":
        raise TypeError(f"a tensor holds real numbers, not {np.dtype(dtype)}")
    return dtype


def _holds_tensors(data: Any) -> bool:
    return isinstance(data, (list, tuple)) and any(isinstance(x, Tensor) or _holds_tensors(x) for x in data)


def _plain(x: Any) -> Any:
    """Tensors inside indices and comparisons stand for their arrays."""
    if isinstance(x, tuple):
        return tuple(_plain(i) for i in x)
    return x.data if isinstance(x, Tensor) else x


def host(x: Array) -> Array:
    """An array where Python can look at it: itself, or a copy of one that lies on a card (CuPy's `get`)."""
    return x.get() if hasattr(x, "get") else x


def _wrap(data: Array) -> Tensor:
    """`Tensor(data)` for an array that needs no checking."""
    x = object.__new__(Tensor)
    x.data = data
    x.grad = x.node = None
    x.requires_grad = False
    x.index = x.changed = 0
    return x


def _as_tensors(values: tuple) -> tuple[Tensor, ...]:
    """Inputs as tensors; Python numbers and lists take the precision of the floats they meet.

    With integers they are what NumPy makes of them: 0.1 is a float64 then, 1 of the integers' own kind.
    """
    for v in values:
        if not isinstance(v, Tensor):
            break
    else:
        return values
    dtype = None
    for v in values:
        if (met := getattr(v, "dtype", None)) is not None:
            dtype = met if dtype is None or dtype == met else np.result_type(dtype, met)
    if dtype is None:
        return tuple(map(tensor, values))
    if dtype.kind == "f":
        return tuple([v if isinstance(v, Tensor)
                      else _wrap(dtype.type(v)) if type(v) in (int, float)  # a scalar: cheap, and fine on a GPU
                      else tensor(v, dtype=dtype if isinstance(v, (list, tuple)) else None) for v in values])
    return tuple([v if isinstance(v, Tensor)
                  else Tensor(np.result_type(dtype, v).type(v)) if type(v) in (int, float)
                  else tensor(v if _holds_tensors(v) else np.asarray(v) if isinstance(v, (list, tuple)) else v)
                  for v in values])


def _record(name: str, inputs: tuple[Tensor, ...], z: Any, rules: Any, keep: bool = False) -> Any:
    """The result, an array or a tuple of them, as tensors; with its history if anyone will ask for it."""
    if not _mode.enabled and type(z) is np.ndarray:
        return _wrap(z)
    recording = _mode.enabled and True in [x.requires_grad for x in inputs]
    for x in inputs if recording else ():
        if x.node is None and x.requires_grad and type(x) is Tensor:
            _to_leaf(x)
    if not isinstance(z, tuple):
        made = _wrap(np.asarray(z) if isinstance(z, np.generic) else z)
        if recording and made.data.dtype.kind == "f":
            made.node, made.requires_grad = Node(name, inputs, rules, made.data if keep else None, None), True
        return made
    tensors = tuple([_wrap(np.asarray(a) if isinstance(a, np.generic) else a) for a in z])
    if recording:
        node = Node(name, inputs, rules, tensors[0].data if keep else None, [(a.shape, a.dtype) for a in z])
        for i, t in enumerate(tensors):
            if t.data.dtype.kind == "f":
                t.node, t.index, t.requires_grad = node, i, True
    return tensors


def op(rule: Callable | None = None, *, output: bool = False, name: str | None = None) -> Any:
    """Make a differentiable operation of `rule(*tensors, **settings) -> (z, rules)`.

    `rules` holds one function of the cotangent z̄ per input, or is one function that returns the cotangents of
    all of them (None for zero) where they share work; written with operations, so that any order works. With
    `output=True` they are functions of (z̄, z). Cotangents broader than their input are summed by the engine.
    Settings may be given without their names, in order, as in NumPy: sum(x, 0).
    """
    if rule is None:
        return functools.partial(op, output=output, name=name)
    name, signature = name or rule.__name__, inspect.signature(rule).parameters.values()
    names = [p.name for p in signature if p.kind is p.KEYWORD_ONLY]
    count = sys.maxsize if any(p.kind is p.VAR_POSITIONAL for p in signature) else len(signature) - len(names)

    @functools.wraps(rule)
    def operation(*inputs: Any, **settings: Any) -> Any:
        if len(inputs) > count:
            settings = _named(name, names, inputs[count:], settings)
            inputs = inputs[:count]
        inputs = _as_tensors(inputs)
        z, rules = rule(*inputs, **settings)
        return _record(name, inputs, z, rules, output)

    OPS[name] = operation
    return operation


def _named(operation: str, names: list[str], values: tuple, settings: dict) -> dict:
    """Settings given in order, by their names, with the others."""
    found = dict(zip(names, values, strict=False))
    if len(values) > len(names) or found.keys() & settings.keys():
        raise TypeError(f"{operation}: too many values; its settings are {', '.join(names) or 'none'}, each once")
    return found | settings


def fused(kernel: Any = None, *, reference: Callable | str = "") -> Callable:
    """Make an operation of `rule(*arrays, **settings) -> (arrays, backward)`, its way back written by hand.

    Inputs and results may be trees. `backward` maps the cotangents of the result (one argument for each part, if it
    is a tuple) to a sequence of cotangents, a tree like each input or None for zero; all of them are arrays.
    `reference` is the same function made of operations: where derivatives are to be differentiated again, the
    way back goes through it. If it is only the name of such a function, there are first derivatives only. A rule that
    returns None has no way for these arrays: the operation is its reference.

    fused(kernel) is the operation of a `kernels.Kernel`; its reference is the definition, unless another is given.
    """
    def decorate(rule: Callable, name: str = "") -> Callable:
        name = name or rule.__name__

        @functools.wraps(rule)
        def operation(*trees: Any, **settings: Any) -> Any:
            if not _mode.enabled and (found := rule(*_replace(_plain, trees), **settings)) is not None:
                return _replace(lambda z: _wrap(np.asarray(z) if isinstance(z, np.generic) else z), found[0])
            leaves, rebuild = tree_flatten(trees)
            inputs = _as_tensors(tuple(leaves))
            found = rule(*rebuild(x.data for x in inputs), **settings)
            if found is None:
                return reference(*rebuild(inputs), **settings)  # type: ignore[operator]
            z, backward = found
            arrays, rebuild_z = tree_flatten(z)

            def flat_reference(*leaves: Tensor) -> Any:
                return tuple(tree_flatten(reference(*rebuild(leaves), **settings))[0])  # type: ignore[operator]

            def to_inputs(*cotangents: Tensor) -> Sequence[Tensor | None]:
                if not _mode.enabled:
                    bars = rebuild_z(g.data for g in cotangents)
                    found = backward(*bars) if isinstance(z, tuple) else backward(bars)
                    return [g if g is None else Tensor(g) for tree, bar in zip(trees, found, strict=True)
                            for g in _like(tree, bar)]
                if not callable(reference):
                    raise RuntimeError(f"'{name}' is a fused kernel with first derivatives only; "
                                       f"for higher orders use {reference}")
                by_key = _pull_through(flat_reference, inputs, inputs, cotangents)
                return [by_key.pop(_key(x), None) for x in inputs]  # one that is given twice gets all at once
            made = _record(name, inputs, arrays[0] if len(arrays) == 1 else tuple(arrays), to_inputs)
            return rebuild_z((made,) if len(arrays) == 1 else made)
        OPS[name] = operation
        return operation
    if kernel is None:
        return decorate
    reference = reference or kernel.definition
    return decorate(kernel.vjp, kernel.name)


# trees ------------------------------------------------------------------------------------------
#
# What belongs together travels together: a tree is a nest of dataclasses, dicts, lists and tuples. Its leaves are
# tensors or arrays; None, numbers and words in it stay as they are.

def tree_map(f: Callable, tree: Any) -> Any:
    """The same nest with f applied to its leaves; a leaf that stands in several places is mapped once."""
    made: dict[int, Any] = {}

    def once(leaf: Any) -> Any:
        if id(leaf) not in made:
            made[id(leaf)] = f(leaf)
        return made[id(leaf)]
    return _replace(once, tree)


def tree_leaves(tree: Any) -> list[Any]:
    """The distinct leaves of a tree, in order."""
    return list({id(leaf): leaf for leaf in tree_flatten(tree)[0]}.values())


def tree_flatten(tree: Any) -> tuple[list[Any], Callable]:
    """All leaves of a tree, in order, and `rebuild(leaves)`, which puts others in their places."""
    if isinstance(tree, tuple) and False not in [isinstance(x, _LEAVES) for x in tree]:
        return list(tree), tuple  # most are as flat as that
    leaves: list[Any] = []
    _collect(tree, leaves)

    def rebuild(others: Any) -> Any:
        following = iter(others)
        return _replace(lambda _: next(following), tree)
    return leaves, rebuild


_LEAVES = (Tensor, np.ndarray)  # and whatever else is no nest


def _branches(tree: Any) -> tuple[Any, Callable] | None:
    """What a nest holds, and what makes another of its kind; None of a leaf."""
    if isinstance(tree, (list, tuple)):
        return tree, getattr(tree, "_make", type(tree))  # of a named tuple
    if isinstance(tree, dict):
        return tree.values(), lambda branches: dict(zip(tree, branches, strict=True))
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return (), lambda _: tree
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        return [getattr(tree, field.name) for field in dataclasses.fields(tree)], lambda branches: type(tree)(*branches)
    return None


def _replace(f: Callable, tree: Any) -> Any:
    if isinstance(tree, _LEAVES) or (nest := _branches(tree)) is None:
        return f(tree)
    return nest[1]([_replace(f, branch) for branch in nest[0]])


def _collect(tree: Any, leaves: list[Any]) -> None:
    if isinstance(tree, _LEAVES) or (nest := _branches(tree)) is None:
        leaves.append(tree)
    else:
        for branch in nest[0]:
            _collect(branch, leaves)


def _like(tree: Any, other: Any) -> Iterator[Any]:
    """The leaves of another tree at the places of this one's; None for all that is below a None."""
    if isinstance(tree, _LEAVES) or (nest := _branches(tree)) is None:
        yield other
    elif other is None:
        yield from (None for _ in tree_flatten(tree)[0])
    else:
        for branch, its in zip(nest[0], [other.get(key) for key in tree] if isinstance(tree, dict) else
                               _branches(other)[0], strict=True):  # type: ignore[index]
            yield from _like(branch, its)


# the walk back: discover, prune, pull -----------------------------------------------------------

def _pull_back(outputs: Sequence[Tensor], cotangents: Sequence[Tensor], targets: Sequence[Tensor] | None,
               create_graph: bool, retain_graph: bool, since: int | None = None,
               arrive: Callable[[Tensor, Any], None] | None = None) -> list[tuple[Tensor, Any]]:
    """Carry cotangents from outputs to `targets` (default: every leaf): pairs (target, cotangent or None).

    With `since` the walk ends at what was recorded before, all of which must be among the targets. With `arrive`
    leaves are handed over as soon as they are complete, as far as that is known before the end.
    """
    # nothing that was recorded before the earliest target depends on a target
    orders = sorted([x.node.order if x.node else -1 for x in targets or ()])
    nodes, ends = _discover(outputs, since or (orders[0] if orders else -1))
    wanted = ends.keys() if targets is None else {_key(x) for x in targets if x.requires_grad}
    if since and (strange := [x.shape for key, x in ends.items() if key not in wanted]):
        raise RuntimeError(f"checkpoint: the function uses tensors of shapes {strange} that require gradients"
                           " but are not among its inputs; name them in parameters=")
    useful = set(nodes) if targets is None else _prune(nodes, wanted)
    sums = _Sums()
    with _recording(create_graph):
        for y, g in zip(outputs, cotangents, strict=True):
            sums.add(y, g)
        _pull(nodes, useful, wanted, sums, retain_graph, arrive)
    return [(x, sums.at.get(_key(x))) for x in (ends.values() if targets is None else targets)]


def _discover(outputs: Sequence[Tensor], oldest: int) -> tuple[list[Node], dict[tuple[int, int], Tensor]]:
    """The operations behind the outputs, in the order in which they were recorded, and where the walk ends.

    It ends at leaves, and at what was recorded no later than `oldest`.
    """
    nodes: set[Node] = set()
    ends, stack = {}, [y for y in outputs if y.requires_grad]
    while stack:
        x = stack.pop()
        if x.node is None or x.node.order <= oldest:
            ends[_key(x)] = x
        elif x.node not in nodes:
            nodes.add(x.node)
            stack += [i for i in x.node.inputs if i.requires_grad]
    return sorted(nodes, key=operator.attrgetter("order")), ends


def _prune(nodes: list[Node], wanted: Container) -> set[Node]:
    """The operations that have something wanted behind them. (One that was freed may: nobody knows any more.)"""
    useful: set[Node] = set()
    for n in nodes:
        if n.rules is None or any(x.node in useful or _key(x) in wanted for x in n.inputs):
            useful.add(n)
    return useful


def _first_uses(nodes: list[Node]) -> list[tuple[int, Tensor]]:
    """Every leaf beside the order of the first operation that uses it: nothing more arrives there once it is passed."""
    found: dict[tuple[int, int], tuple[int, Tensor]] = {}
    for n in nodes:
        for x in n.inputs:
            if x.requires_grad and x.node is None:
                found.setdefault(_key(x), (n.order, x))
    return list(found.values())


def _pull(nodes: list[Node], useful: set[Node], wanted: Container, sums: _Sums, retain_graph: bool,
          arrive: Callable[[Tensor, Any], None] | None = None) -> None:
    """From the last operation to the first: what arrived at its results becomes the cotangents of its inputs."""
    uses = _first_uses(nodes) if arrive else []
    while nodes:
        n = nodes.pop()
        while arrive and uses and uses[-1][0] > n.order:
            x = uses.pop()[1]
            arrive(x, sums.at.pop(_key(x), None))
        arrived = sums.take(n, wanted)
        if n not in useful or not arrived:
            continue
        if n.rules is None:
            raise RuntimeError(f"the graph behind '{n.name}' was freed by an earlier backward() or grad()"
                               "; pass retain_graph=True there, or compute the output again")
        rules = n.rules(*arrived) if callable(n.rules) else n.rules
        for x, rule in zip(n.inputs, rules, strict=True):
            if x.changed > n.order:
                raise RuntimeError(f"an input of '{n.name}', of shape {x.shape}, was changed after it was used (by an "
                                   "optimizer's step?); go back through a graph before its weights change")
            if rule is None or not (x.node in useful or _key(x) in wanted):
                continue
            if isinstance(rule, _Scatter) and not _mode.enabled:
                sums.scatter(x, rule, arrived[0])
            else:
                sums.add(x, _undo_broadcast(rule if isinstance(rule, Tensor) else rule(*arrived), x))
        if not retain_graph:
            n.inputs, n.rules, n.kept = (), None, None


def _key(x: Tensor) -> tuple[int, int]:
    """Where cotangents of x add up: at a leaf, or at one result of an operation."""
    return id(x.node or x), x.index


class _Sums:
    """The cotangents that have arrived, added up by place. Sums that were made here may be added to in place."""

    def __init__(self) -> None:
        self.at: dict[tuple[int, int], Tensor] = {}
        self.ours: set[tuple[int, int]] = set()

    def add(self, x: Tensor, g: Tensor) -> None:
        key = _key(x)
        if key not in self.at:
            self.at[key] = g
        elif _mode.enabled:
            self.at[key] = self.at[key] + g
        elif key in self.ours:
            self.at[key].data += g.data
        else:
            self.at[key] = Tensor(self.at[key].data + g.data)
            self.ours.add(key)

    def scatter(self, x: Tensor, rule: _Scatter, g: Tensor) -> None:
        """Add many parts of an array in place, without an array of zeros for each."""
        key = _key(x)
        if key not in self.ours:
            self.at[key] = Tensor(self.at[key].data.copy() if key in self.at else np.zeros_like(x.data))
            self.ours.add(key)
        rule.into(self.at[key].data, g.data)

    def take(self, n: Node, wanted: Container) -> list[Any]:
        """What arrived at the results of n, and its result if its rules ask for it; [] if nothing arrived."""
        keys = [(id(n), i) for i in range(len(n.shapes))] if n.shapes else [(id(n), 0)]
        arrived: list[Any] = [self.at.get(key) if key in wanted else self.at.pop(key, None) for key in keys]
        known = [g for g in arrived if g is not None]
        if not known:
            return []
        if n.shapes:
            arrived = [Tensor(np.zeros_like(known[0].data, shape=s, dtype=d)) if g is None else g
                       for g, (s, d) in zip(arrived, n.shapes, strict=True)]
        if n.kept is not None:
            z = _wrap(n.kept)
            z.node, z.requires_grad = n, True
            arrived.append(z)
        return arrived


def _cotangent(output: Tensor, given: Any) -> Tensor:
    if given is None:
        if output.size != 1:
            raise ValueError(f"the output has shape {output.shape}; give a cotangent of that shape, or "
                             "reduce it to one number (.sum(), .mean()) first")
        return Tensor(np.ones_like(output.data))
    given = tensor(given, dtype=None if hasattr(given, "dtype") else output.dtype)
    if given.shape != output.shape:
        raise ValueError(f"the cotangent has shape {given.shape}, the output {output.shape}; make them equal")
    return given if given.dtype == output.dtype else given.astype(output.dtype)


def _expect_history(*outputs: Tensor) -> None:
    if not any(y.requires_grad for y in outputs):
        raise RuntimeError("derivatives of a tensor that depends on nothing requiring gradients "
                           "(was it computed under no_grad, or detached?)")


def _undo_broadcast(g: Tensor, x: Tensor) -> Tensor:
    """Sum the cotangent over the axes along which x was broadcast, and give it x's dtype."""
    shape = x.data.shape
    if g.data.shape != shape:
        extra = g.ndim - len(shape)
        axes = tuple(i for i, n in enumerate(g.shape) if i < extra or shape[i - extra] == 1 != n)
        g = reshape(sum(g, axis=axes), shape=shape)
    return g if g.data.dtype == x.data.dtype else g.astype(x.dtype)


def grad(outputs: Tensor | Sequence[Tensor], inputs: Tensor | Sequence[Tensor], cotangents: Any = None,
         create_graph: bool = False, retain_graph: bool | None = None) -> tuple[Tensor, ...]:
    """Cotangents of `inputs` as tensors, leaving `.grad` alone; with `create_graph` they have a history too.

    An input that the outputs do not depend on gets zeros. Raises RuntimeError on a graph that was freed and for
    outputs without any history, ValueError for an input that does not require gradients.
    """
    outputs, inputs = ([x] if isinstance(x, Tensor) else list(x) for x in (outputs, inputs))
    if not all(x.requires_grad for x in inputs):
        raise ValueError("an input does not require gradients; make it with requires_grad=True")
    _expect_history(*outputs)
    given = list(cotangents) if isinstance(cotangents, (list, tuple)) else [cotangents]
    given = given * len(outputs) if cotangents is None else given
    if len(given) != len(outputs):
        raise ValueError(f"{len(given)} cotangents for {len(outputs)} outputs; give one for each")
    with _recording(create_graph):
        starts = [_cotangent(y, g) for y, g in zip(outputs, given, strict=True)]
    keep = create_graph if retain_graph is None else retain_graph
    found = _pull_back(outputs, starts, inputs, create_graph, keep)
    return tuple(Tensor(np.zeros_like(x.data)) if g is None else g for x, g in found)


def checkpoint(f: Callable, *inputs: Any, parameters: Sequence[Tensor] = ()) -> Any:
    """f(*inputs) without keeping what happens inside: it is computed again on the way back.

    `f` returns a Tensor or a tuple of Tensors. Tensors that f uses without taking them as inputs (a module's
    weights) are named in `parameters`; RuntimeError, at the latest on the way back, if one is missing. Memory falls
    to that of the inputs and outputs; any order of derivative works.
    """
    inputs = _as_tensors(inputs)
    sources = tuple({_key(x): x for x in (*inputs, *parameters)}.values())
    check = _mode.enabled and not any(x.requires_grad for x in sources)  # then a result must not, either: if it does,
    with _recording(check):  # a parameter was not named
        z = f(*inputs)
    if check and any(x.requires_grad for x in (z if isinstance(z, tuple) else (z,))):
        raise RuntimeError("checkpoint: the function uses tensors that require gradients but are not among its inputs; "
                           "name them in parameters=")

    def again(*cotangents: Tensor) -> list[Any]:
        found = _pull_through(f, inputs, sources, cotangents)
        return [found[_key(x)] for x in sources]

    return _record("checkpoint", sources, _plain(z), again)


def _pull_through(f: Callable, inputs: Sequence[Tensor], sources: Sequence[Tensor],
                  cotangents: Sequence[Tensor]) -> dict[tuple[int, int], Any]:
    """Compute f(*inputs) again and carry cotangents through it, as far as `sources`: cotangents by key."""
    create_graph, since = _mode.enabled, next(_order)
    with enable_grad():
        out = f(*inputs)
    outs = out if isinstance(out, tuple) else (out,)
    return {_key(x): g for x, g in _pull_back(outs, cotangents, sources, create_graph, create_graph, since)}


# element by element -----------------------------------------------------------------------------

@op
def add(x, y):
    """z = x + y;  x̄ = z̄, ȳ = z̄"""
    return x.data + y.data, (lambda g: g, lambda g: g)

@op
def sub(x, y):
    """z = x − y;  x̄ = z̄, ȳ = −z̄"""
    return x.data - y.data, (lambda g: g, lambda g: -g)

@op
def mul(x, y):
    """z = x·y;  x̄ = z̄·y, ȳ = z̄·x"""
    return x.data * y.data, (lambda g: g * y, lambda g: g * x)

@op(output=True)
def div(x, y):
    """z = x/y;  x̄ = z̄/y, ȳ = −z̄·z/y"""
    return x.data / y.data, (lambda g, z: g / y, lambda g, z: -g * z / y)

@op
def neg(x):
    """z = −x;  x̄ = −z̄"""
    return -x.data, (lambda g: -g,)

@op(output=True)
def power(x, y):
    """z = xʸ;  x̄ = z̄·y·xʸ⁻¹ (0 where x = y = 0), ȳ = z̄·z·log x (its limit at x = 0; 0 where x < 0)"""
    def to_base(g, z):
        less = y - 1 if y.dtype.kind != "u" else astype(y, dtype=z.dtype) - 1  # no unsigned number is below 0
        return g * y * power(where((x.data == 0) & (y.data == 0), 1.0, x), less)

    def to_exponent(g, z):
        pole = np.where((x.data == 0) & (y.data < 0), -np.inf, 0.0)
        return g * z * where(x.data > 0, log(where(x.data > 0, x, 1.0)), pole.astype(x.dtype))
    return x.data ** y.data, (to_base, to_exponent)

@op
def floor_divide(x, y):
    """z = ⌊x/y⌋;  x̄ = ȳ = 0"""
    return np.floor_divide(x.data, y.data), (None, None)

@op
def remainder(x, y):
    """z = x − y⌊x/y⌋;  x̄ = z̄, ȳ = −z̄⌊x/y⌋"""
    return np.remainder(x.data, y.data), (lambda g: g, lambda g: -g * np.floor_divide(x.data, y.data))

@op(output=True)
def exp(x):
    """z = eˣ;  x̄ = z̄·z"""
    return np.exp(x.data), (lambda g, z: g * z,)

@op
def log(x):
    """z = log x;  x̄ = z̄/x"""
    return np.log(x.data), (lambda g: g / x,)

@op
def log1p(x):
    """z = log(1 + x);  x̄ = z̄/(1 + x)"""
    return np.log1p(x.data), (lambda g: g / (x + 1),)

@op(output=True)
def sqrt(x):
    """z = √x;  x̄ = z̄/(2z)"""
    return np.sqrt(x.data), (lambda g, z: g / (z * 2),)

@op(output=True)
def tanh(x):
    """z = tanh x;  x̄ = z̄(1 − z²)"""
    return np.tanh(x.data), (lambda g, z: g * (1 - z * z),)

@op(output=True)
def sigmoid(x):
    """z = 1/(1 + e⁻ˣ);  x̄ = z̄·z(1 − z)"""
    e = np.exp(-np.abs(x.data))  # the exponent is never positive: nothing overflows
    return np.where(x.data >= 0, 1, e) / (1 + e), (lambda g, z: g * z * (1 - z),)

@op
def softplus(x):
    """z = log(1 + eˣ);  x̄ = z̄·σ(x)"""
    return np.maximum(x.data, 0) + np.log1p(np.exp(-np.abs(x.data))), (lambda g: g * sigmoid(x),)

@op
def relu(x):
    """z = max(x, 0);  x̄ = z̄·[x > 0]"""
    return np.maximum(x.data, 0), (lambda g: g * (x.data > 0),)

@op(name="abs")
def absolute(x):
    """z = |x|;  x̄ = z̄·sign x"""
    return np.abs(x.data), (lambda g: g * np.sign(x.data),)

@op
def sign(x):
    """z = −1, 0 or 1;  x̄ = 0"""
    return np.sign(x.data), (None,)

@op
def maximum(x, y):
    """z = max(x, y);  the larger input takes z̄, equal ones share it, both take it where one is NaN"""
    return np.maximum(x.data, y.data), (lambda g: g * _above(x, y), lambda g: g * _above(y, x))

@op
def minimum(x, y):
    """z = min(x, y);  the smaller input takes z̄, equal ones share it, both take it where one is NaN"""
    return np.minimum(x.data, y.data), (lambda g: g * _above(y, x), lambda g: g * _above(x, y))

def _above(x: Tensor, y: Tensor) -> Array:
    """1 where x > y, ½ where they are equal, 0 where x < y"""
    dtype = x.dtype if x.dtype.kind == "f" else y.dtype
    return 1 - (np.less(x.data, y.data).astype(dtype) + np.less_equal(x.data, y.data)) / 2  # a scalar stays one

@op
def silu(x):
    """z = x·σ(x);  x̄ = z̄·σ(1 + x(1 − σ))"""
    def rule(g):
        s = sigmoid(x)
        return g * (s * (1 + x * (1 - s)))
    return x.data * sigmoid(x.detach()).data, (rule,)

def where(condition: Any, x: Any, y: Any) -> Tensor:
    """x where the condition holds, y elsewhere"""
    return select(x, y, condition=_plain(condition))

@op
def select(x, y, *, condition):
    """z = x where c, else y;  x̄ = z̄ where c, ȳ = z̄ elsewhere"""
    condition = _own(condition)
    return (np.where(condition, x.data, y.data),
            (lambda g: where(condition, g, 0.0), lambda g: where(condition, 0.0, g)))

@op
def astype(x, *, dtype):
    """z = x in another precision;  x̄ = z̄ in x's own (the engine's)"""
    return x.data.astype(_real(dtype)), (lambda g: g,)

# sums and extremes (from here on `sum`, `max` and `min` are operations, not Python's) --------------------

def _kept(x: Tensor, axis: Any) -> tuple[int, ...]:
    """The shape of x with the reduced axes kept as 1."""
    reduced = range(x.ndim) if axis is None or not x.ndim else normalize_axis_tuple(axis, x.ndim)
    return tuple(1 if i in reduced else n for i, n in enumerate(x.shape))

@op
def sum(x, *, axis=None, keepdims=False):
    """z = Σx;  x̄ = z̄ broadcast along the summed axes"""
    z = np.sum(x.data, axis=axis, keepdims=keepdims)
    return z, (lambda g: broadcast_to(reshape(g, shape=_kept(x, axis)), shape=x.shape),)

def mean(x: Tensor, axis: Any = None, keepdims: bool = False) -> Tensor:
    """Σx/n"""
    z = sum(x, axis=axis, keepdims=keepdims)
    return z / (x.size // z.size if z.size else 1)

@op(output=True)
def max(x, *, axis=None, keepdims=False):
    """z = max x;  x̄ = z̄ at the maximum, shared among equals"""
    return np.max(x.data, axis=axis, keepdims=keepdims), (_to_extreme(x, axis),)

@op(output=True)
def min(x, *, axis=None, keepdims=False):
    """z = min x;  x̄ = z̄ at the minimum, shared among equals"""
    return np.min(x.data, axis=axis, keepdims=keepdims), (_to_extreme(x, axis),)

def _to_extreme(x: Tensor, axis: Any) -> Callable:
    def rule(g, z):
        shape = _kept(x, axis)
        hit = (x.data == np.reshape(z.data, shape)).astype(x.dtype)
        return reshape(g, shape=shape) * (hit / np.sum(hit, axis=axis, keepdims=True))
    return rule

@op
def cumsum(x, *, axis=None):
    """z_t = Σ_{i≤t} x_i, of the flattened x without an axis;  x̄_i = Σ_{t≥i} z̄_t"""
    def rule(g):
        return reshape(flip(cumsum(flip(g, axis=axis), axis=axis), axis=axis), shape=x.shape)
    return np.cumsum(x.data, axis=axis), (rule,)

@op(output=True)
def rescale(x, *, axis, m, eps):
    """z = x/r, r = √(mΣx² + ε);  x̄ = (z̄ − z·mΣz̄z)/r"""
    def total(v):
        return sum(v, axis=axis, keepdims=True) * m

    def rule(g, z):
        return (g - z * total(g * z)) / sqrt(total(x * x) + eps)
    return x.data / np.sqrt(m * np.sum(x.data * x.data, axis=axis, keepdims=True) + eps), (rule,)

def normalize(x: Tensor, axis: int = -1, eps: float = 1e-12) -> Tensor:
    """x/√(Σx² + ε): ℓ₂-normalised, smooth at 0"""
    return rescale(x, axis=axis, m=1, eps=eps)

def rms_normalize(x: Tensor, axis: int = -1, eps: float = 1e-6) -> Tensor:
    """x/√(mean x² + ε)"""
    return rescale(x, axis=axis, m=1 / x.shape[axis], eps=eps)

def _top(x: Tensor, axis: Any) -> Array:
    """What is taken away before exp, so that nothing overflows: the maximum, if there is one"""
    if not x.size:
        return np.zeros_like(x.data, shape=_kept(x, axis))
    return np.max(x.data, axis=axis, keepdims=True)

@op(output=True)
def logsumexp(x, *, axis=-1, keepdims=False):
    """z = log Σeˣ, −∞ of nothing and of −∞ only;  x̄ = z̄·eˣ⁻ᶻ"""
    top = _top(x, axis)
    top = np.where(np.isfinite(top), top, 0)
    with np.errstate(divide="ignore", over="ignore"):  # log 0 is −∞, e to the 1000 ∞: both are meant
        z = top + np.log(np.sum(np.exp(x.data - top), axis=axis, keepdims=True))
    rule = lambda g, z: reshape(g, shape=top.shape) * exp(x - reshape(z, shape=top.shape))
    return z if keepdims else np.squeeze(z, axis), (rule,)

@op(output=True)
def softmax(x, *, axis=-1):
    """z = eˣ/Σeˣ, NaN (0/0, with NumPy's warning) of −∞ only;  x̄ = z(z̄ − Σz̄z)"""
    e = np.exp(x.data - _top(x, axis))
    e /= np.sum(e, axis=axis, keepdims=True)
    return e, (lambda g, z: z * (g - sum(g * z, axis=axis, keepdims=True)),)

def log_softmax(x: Tensor, axis: int = -1) -> Tensor:
    """x − log Σeˣ"""
    return x - logsumexp(x, axis=axis, keepdims=True)

# shape ------------------------------------------------------------------------------------------

@op
def reshape(x, *, shape):
    """z = x in another shape;  x̄ = z̄ in x's"""
    return np.reshape(x.data, shape), (lambda g: reshape(g, shape=x.shape),)

@op
def transpose(x, *, axes=None):
    """z = x with permuted axes;  x̄ = z̄ permuted back"""
    back = None if axes is None else tuple(int(i) for i in np.argsort([a % x.ndim for a in axes]))
    return np.transpose(x.data, axes), (lambda g: transpose(g, axes=back),)

@op
def swapaxes(x, *, axis1, axis2):
    """z = x with two axes swapped;  x̄ = z̄ with them swapped"""
    return np.swapaxes(x.data, axis1, axis2), (lambda g: swapaxes(g, axis1=axis1, axis2=axis2),)

@op
def broadcast_to(x, *, shape):
    """z = x repeated to a shape;  x̄ = Σz̄ over the repeats (the engine's)"""
    return np.broadcast_to(x.data, shape), (lambda g: g,)

def expand_dims(x: Tensor, axis: Any) -> Tensor:
    """x with a new axis of length 1"""
    return reshape(x, shape=np.expand_dims(x.data, axis).shape)

def squeeze(x: Tensor, axis: Any = None) -> Tensor:
    """x without its axes of length 1"""
    return reshape(x, shape=np.squeeze(x.data, axis).shape)

@op
def flip(x, *, axis=None):
    """z = x backwards;  x̄ = z̄ backwards"""
    return np.flip(x.data, axis), (lambda g: flip(g, axis=axis),)

@op
def tril(x, *, k=0):
    """z = x on and below diagonal k, 0 above;  x̄ = z̄ there"""
    return np.tril(x.data, k), (lambda g: tril(g, k=k),)

def triu(x: Tensor, k: int = 0) -> Tensor:
    """x on and above diagonal k, 0 below; a vector stands for equal rows, as in tril"""
    return tril((x if x.ndim > 1 else stack([x] * len(x))).mT, k=-k).mT

def concatenate(tensors: Sequence[Any], axis: int | None = 0) -> Tensor:
    """The tensors one after another along an existing axis; without one they are flattened"""
    if axis is None:
        tensors, axis = [reshape(x, shape=(-1,)) for x in _as_tensors(tuple(tensors))], 0
    return join(*tensors, axis=axis)

@op(name="concatenate")
def join(*xs, axis=0):
    """z = [x₁ … xₙ];  x̄ᵢ = its part of z̄"""
    z = np.concatenate([x.data for x in xs], axis)
    before = (slice(None),) * (axis % z.ndim)

    def part(end, x):
        return lambda g: g[(*before, slice(end - x.shape[axis], end))]
    return z, tuple(map(part, itertools.accumulate(x.shape[axis] for x in xs), xs))

def stack(tensors: Sequence[Any], axis: int = 0) -> Tensor:
    """The tensors side by side along a new axis"""
    return concatenate([expand_dims(x, axis) for x in _as_tensors(tuple(tensors))], axis)

class _Scatter:
    """The rule of indexing: put the cotangent back where it was read, adding where an index repeats.

    An object, so that the engine can add many parts of an array in place, without an array of zeros for each.
    """

    def __init__(self, shape: tuple[int, ...], index: Any):
        self.shape, self.index = shape, index

    def __call__(self, g: Tensor) -> Tensor:
        return scatter(g, index=self.index, shape=self.shape)

    def into(self, buffer: Array, g: Array) -> None:
        parts = self.index if isinstance(self.index, tuple) else (self.index,)
        if all(i is None or i is ... or isinstance(i, (int, slice, np.integer))
               or getattr(i, "dtype", None) == np.bool_ for i in parts):  # no position twice
            buffer[self.index] += g
        elif hasattr(buffer, "scatter_add"):  # np.add.at does not dispatch; this is CuPy's
            buffer.scatter_add(self.index, g)
        elif len(parts) == 1 and hasattr(parts[0], "shape") and parts[0].size and buffer.ndim > 1:
            # rows of a table: sorted, equal ones stand together and are added up at once
            rows = np.reshape(parts[0], -1).astype(np.intp) % len(buffer)
            order = np.argsort(rows, kind="stable")
            starts = np.flatnonzero(np.diff(rows[order], prepend=-1))
            g = np.reshape(g, (len(rows), *buffer.shape[1:]))
            buffer[rows[order[starts]]] += np.add.reduceat(g[order], starts, axis=0)
        else:
            np.add.at(buffer, self.index, g)

def _own(index: Any) -> Any:
    """An index or a mask whose arrays the caller no longer changes, where it will be read again on the way back."""
    if not _mode.enabled:
        return index
    if isinstance(index, tuple):
        return tuple(map(_own, index))
    if isinstance(index, list):
        index = np.array(index)
        return index if index.size else index.astype(np.intp)
    return index.copy() if hasattr(index, "copy") else index

@op
def getitem(x, *, index):
    """z = x[index];  x̄[index] += z̄, so repeated indices add up"""
    index = _own(_plain(index))
    return x.data[index], (_Scatter(x.shape, index),)

@op
def scatter(x, *, index, shape):
    """z = 0, z[index] += x;  x̄ = z̄[index]"""
    z, index = np.zeros_like(x.data, shape=shape), _own(index)
    _Scatter(shape, index).into(z, x.data)
    return z, (lambda g: g[index],)

def take_along_axis(x: Tensor, index: Array, axis: int) -> Tensor:
    """x at one index per position of the other axes"""
    grid: list = [np.reshape(np.arange(n, like=x.data), (-1, *[1] * (x.ndim - 1 - i)))
                  for i, n in enumerate(x.shape)]
    grid[axis] = _plain(index)
    return x[tuple(grid)]

def embedding(weight: Tensor, indices: Any) -> Tensor:
    """Rows of a table: weight (V,D), integer indices (...) → (...,D)"""
    indices = tensor(indices).data
    if indices.dtype.kind not in "iu":
        raise TypeError(f"embedding indices must be integers, these are {indices.dtype}")
    return weight[indices]

# products ---------------------------------------------------------------------------------------

@op
def matmul(x, y):
    """z = x y over the last two axes, a vector as one row or column;  x̄ = z̄ yᵀ, ȳ = xᵀ z̄"""
    if not x.ndim or not y.ndim or x.shape[-1] != y.shape[-2 if y.ndim > 1 else 0]:
        raise ValueError(f"matmul of shapes {x.shape} and {y.shape}: the last axis of the first must be as "
                         "long as the last but one of the second (the only one of a vector)")
    a, b, one = x, y, y.ndim <= 2
    if x.ndim == 1 or (one and x.ndim > 2):  # for one matrix a batch is one tall matrix: one large product
        a = reshape(x, shape=(math.prod(x.shape[:-1]), x.shape[-1]))
    if y.ndim == 1:
        b = reshape(y, shape=(len(y), 1))
    z = a.data @ b.data
    full = z.shape
    shape = (*x.shape[:-1], *y.shape[1:]) if one else full if x.ndim > 1 else (*full[:-2], full[-1])

    def to_x(g):
        g = reshape(g, shape=full) @ b.mT
        return reshape(g, shape=x.shape) if one else g

    def to_y(g):
        g = a.mT @ reshape(g, shape=full)
        return reshape(g, shape=y.shape) if one else g
    return np.reshape(z, shape), (to_x, to_y)

def einsum(subscripts: str, *operands: Any) -> Tensor:
    """np.einsum("ij,jk->ik", x, y): products summed over the indices that the result lacks"""
    inputs, arrow, out = subscripts.replace(" ", "").partition("->")
    if not arrow:  # the indices that stand once, in alphabetical order
        out = "".join(sorted(i for i in inputs if i != "," and inputs.count(i) == 1))
    if "." in inputs or any(len(set(term)) < len(term) for term in inputs.split(",")):
        raise ValueError(f"einsum {subscripts!r}: write a letter for every axis (no '...'), each index once per "
                         "operand (instead of 'ii' take np.diagonal(x) first)")
    return _einsum(*operands, subscripts=f"{inputs}->{out}")

@op(name="einsum")
def _einsum(*xs, subscripts):
    """z = Einstein sum;  x̄ᵢ = the sum with z̄ and xᵢ exchanged, repeated along axes that xᵢ alone has"""
    inputs, out = subscripts.split("->")
    terms = inputs.split(",")

    def to(i):
        others = [out, *terms[:i], *terms[i + 1:]]
        alone = tuple(n for n, s in enumerate(terms[i]) if not any(s in o for o in others))
        exchanged = ",".join(others) + "->" + "".join(s for n, s in enumerate(terms[i]) if n not in alone)

        def rule(g):
            found = expand_dims(_einsum(g, *xs[:i], *xs[i + 1:], subscripts=exchanged), alone)
            return broadcast_to(found, shape=np.broadcast_shapes(found.shape, xs[i].shape))
        return rule
    z = np.einsum(subscripts, *(x.data for x in xs), optimize=len(xs) > 1)
    return z, tuple(to(i) for i in range(len(xs)))

@op(output=True)
def solve_triangular(a, b, *, unit=False):
    """z = L⁻¹b, L the lower triangle of a (diagonal 1 if `unit`);  b̄ = L⁻ᵀz̄, ā = −tril(b̄ zᵀ)"""
    def rules(g, z):  # Lᵀ with rows and columns backwards is lower again
        reversed_a = flip(flip(a.mT, axis=-1), axis=-2)
        to_b = flip(solve_triangular(reversed_a, flip(g, axis=-2), unit=unit), axis=-2)
        return -tril(to_b @ z.mT, k=-1 if unit else 0), to_b
    if b.ndim < 2:
        raise ValueError(f"the right side must be a matrix of columns, (..., n, m); its shape is {b.shape}")
    if not unit and not np.all(np.diagonal(a.data, axis1=-2, axis2=-1)):
        raise np.linalg.LinAlgError("the triangle has a zero on its diagonal; it cannot be solved")
    z = b.data / np.ones_like(a.data, shape=(*a.shape[:-1], 1))  # a copy, of the common shape and precision
    for i in range(a.shape[-1]):  # row by row: what stands in a later row changes no bit of an earlier one
        z[..., i, :] -= (a.data[..., i, None, :i] @ z[..., :i, :])[..., 0, :]
        if not unit:
            z[..., i, :] /= a.data[..., i, i, None]
    return z, rules


# methods and NumPy's own words: x.exp() and np.exp(x) are exp(x) --------------------------------
#
# So a definition written with NumPy's functions is one for arrays of any library and for tensors, which makes it
# differentiable. functions.py adds more of both.

for _name, _function in {
        "exp": exp, "log": log, "log1p": log1p, "sqrt": sqrt, "tanh": tanh, "sigmoid": sigmoid, "relu": relu,
        "abs": absolute, "pow": power, "sum": sum, "mean": mean, "max": max, "min": min, "cumsum": cumsum,
        "softmax": softmax, "swapaxes": swapaxes, "squeeze": squeeze, "unsqueeze": expand_dims,
        "astype": astype}.items():
    setattr(Tensor, _name, _function)

def _of_arrays(f: Callable) -> Callable:
    """A function that says something about the numbers: its answer is an array, and has no derivative."""
    return lambda *args, **settings: f(*map(_plain, args), **settings)

NUMPY |= {
    np.add: add, np.subtract: sub, np.multiply: mul, np.true_divide: div, np.negative: neg, np.power: power,
    np.floor_divide: floor_divide, np.remainder: remainder, np.positive: lambda x: x,
    np.exp: exp, np.log: log, np.log1p: log1p, np.sqrt: sqrt, np.tanh: tanh, np.abs: absolute, np.sign: sign,
    np.maximum: maximum, np.minimum: minimum, np.where: where, np.astype: astype,
    np.sum: sum, np.mean: mean, np.max: max, np.min: min, np.cumsum: cumsum,
    np.reshape: reshape, np.transpose: transpose, np.swapaxes: swapaxes, np.broadcast_to: broadcast_to,
    np.expand_dims: expand_dims, np.squeeze: squeeze, np.flip: flip, np.tril: tril, np.triu: triu,
    np.concatenate: concatenate, np.stack: stack, np.take_along_axis: take_along_axis,
    np.matmul: matmul, np.einsum: einsum,
} | {f: _of_arrays(f) for f in (
    np.less, np.less_equal, np.greater, np.greater_equal, np.equal, np.not_equal, np.isnan, np.isinf, np.isfinite,
    np.any, np.all, np.argmax, np.argmin, np.argsort, np.shape, np.ndim, np.size, np.zeros_like, np.ones_like,
    np.full_like, np.empty_like)}


# the check --------------------------------------------------------------------------------------

def check_grad(f: Callable, *inputs: Any, order: int = 2, seed: int = 0, eps: float = 1e-6,
               tolerance: float = 1e-5) -> float:
    """Compare the derivatives of f up to `order` with central differences in float64, for every input.

        (s(x + εeᵢ) − s(x − εeᵢ))/2ε  against  ∂s/∂xᵢ,   s₁ = ⟨c₁, f⟩, s₂ = ⟨c₂, ∇s₁⟩, …, random c

    f maps tensors to a tensor or a tuple of them. Returns the largest error relative to 1 + |derivative|;
    raises AssertionError that names the order, input and element beyond `tolerance`.
    """
    points = [np.array(_plain(x), dtype=np.float64) for x in inputs]

    def leaves() -> list[Tensor]:
        return [Tensor(x.copy(), requires_grad=True) for x in points]

    def slopes(y: Tensor, xs: list[Tensor], create_graph: bool = False) -> tuple[Tensor, ...]:
        if not y.requires_grad:  # constant: the order below was linear
            return tuple(Tensor(np.zeros_like(x.data)) for x in xs)
        return grad(y, xs, create_graph=create_graph)

    def s(level: int, xs: list[Tensor]) -> Tensor:
        values = f(*xs) if level == 1 else slopes(s(level - 1, xs), xs, create_graph=True)
        c = np.random.default_rng([seed, level])
        return functools.reduce(add, [sum(v * c.standard_normal(v.shape))
                                      for v in (values if isinstance(values, tuple) else (values,))])

    worst = 0.0
    for level in range(1, order + 1):
        xs = leaves()
        for n, (x, exact) in enumerate(zip(points, slopes(s(level, xs), xs), strict=True)):
            for at in np.ndindex(x.shape):
                middle, sides = x[at], []
                for x[at] in (middle + eps, middle - eps):
                    sides.append(s(level, leaves()).item())
                x[at] = middle
                numeric = (sides[0] - sides[1]) / (2 * eps)
                error = abs(numeric - exact.data[at]) / (1 + abs(numeric))
                if not error <= tolerance:  # so that NaN fails too
                    raise AssertionError(f"order {level}, input {n}, element {at}: the rule says "
                                         f"{exact.data[at]:.9g}, central differences {numeric:.9g}")
                worst = error if error > worst else worst
    return float(worst)


def main() -> None:
    """A hand-sized trace: one small expression, its graph, its first and second derivative."""
    if hasattr(sys.stdout, "reconfigure"):  # a terminal without Greek letters gets them escaped
        sys.stdout.reconfigure(errors="backslashreplace")
    x = Tensor(np.array([0.5, -1.0]), requires_grad=True)
    y = sum(tanh(x * x))
    print("y = Σ tanh(x·x) at x =", x.data)
    node = y.node
    while node is not None:
        print(f"  recorded: {node.name:8s} from {[i.node.name if i.node else 'leaf' for i in node.inputs]}")
        node = node.inputs[0].node
    (first,) = grad(y, [x], create_graph=True)
    (second,) = grad(sum(first), [x])
    print("dy/dx    =", first.data, " by hand 2x(1 − tanh²x²)")
    print("d²y/dx²  =", second.data)
    print(f"largest error against central differences: {check_grad(lambda x: sum(tanh(x * x)), x):.1e}")


if __name__ == "__main__":
    main()
