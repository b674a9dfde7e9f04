"""An array that stands in for CuPy's where there is no card: NumPy inside, CuPy's rules outside.

What NumPy's protocols hand to CuPy works; what CuPy refuses raises TypeError: becoming a NumPy array, meeting one,
ufunc methods, a view as another size of number that does not lie in one piece. What CuPy does only by copying
between host and card works too but is counted, in `Refusing.moved`: "upload" for np.asarray(x, like=), "read" for
float(), bool(), int() and item(), "get" for a whole array. CuPy copies NumPy arrays in an index silently; here
that raises, so that nothing is copied unseen.
"""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

# Of CuPy's functions, those that the root may use: each was looked up in CuPy 14.
KNOWN = set("""
    all any arange argmax argsort array asarray ascontiguousarray broadcast_to concatenate copyto cumsum diagonal
    einsum empty_like expand_dims eye flip linalg.eigh linalg.norm linalg.qr linalg.solve max mean min ndim
    ones_like reshape shape squeeze stack sum swapaxes take_along_axis transpose tril where zeros_like
""".split())
CREATION = {"arange", "array", "asarray", "ascontiguousarray", "eye"}  # with like=


class Refusing(NDArrayOperatorsMixin):
    """A NumPy array that cannot be taken for one."""

    moved: ClassVar[Counter[str]] = Counter()

    def __init__(self, inside: np.ndarray):
        self.inside = inside

    # NumPy's protocols ---------------------------------------------------------------------------------------

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        raise TypeError("implicit conversion to a NumPy array")

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, out: tuple = (), **settings: Any) -> Any:
        if method != "__call__" or any(strange(type(x)) for x in inputs):
            return NotImplemented
        z = ufunc(*map(inner, inputs), **settings, **({"out": tuple(map(inner, out))} if out else {}))
        return out[0] if out else outer(z)

    def __array_function__(self, function: Any, types: Any, args: tuple, settings: dict) -> Any:
        name = ".".join([*function.__module__.split(".")[1:], function.__name__])
        if name not in KNOWN or any(map(strange, types)):
            return NotImplemented
        if name in CREATION:  # where NumPy arrays may come in: on purpose
            if isinstance(args[0], (np.ndarray, np.generic, list, tuple)):
                self.moved["upload"] += 1
            x = function(*(a.inside if isinstance(a, Refusing) else a for a in args), **settings)
            return Refusing(x)
        return outer(function(*map(inner, args), **{key: inner(value) for key, value in settings.items()}))

    # what copies between host and card -----------------------------------------------------------------------

    def read(self) -> Any:
        self.moved["read"] += 1
        return self.inside.item()

    item = read
    __float__ = lambda self: float(self.read())
    __int__ = lambda self: int(self.read())
    __bool__ = lambda self: bool(self.read())

    def __format__(self, how: str) -> str:
        return format(self.read(), how)

    def get(self) -> np.ndarray:
        self.moved["get"] += 1
        return self.inside.copy()

    # what an array has ---------------------------------------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        if name in ("shape", "ndim", "size", "dtype", "strides", "itemsize", "nbytes", "base", "flags"):
            return getattr(self.inside, name)
        if name == "data":
            return SimpleNamespace(ptr=self.inside.ctypes.data)
        if name in ("T", "mT"):
            return Refusing(getattr(self.inside, name))
        if name in ("all", "any", "astype", "conj", "copy", "max", "mean", "min", "reshape", "sum", "swapaxes",
                    "transpose"):
            return lambda *args, **settings: outer(getattr(self.inside, name)(*map(inner, args), **settings))
        raise AttributeError(name)

    def view(self, dtype: Any) -> Refusing:
        if np.dtype(dtype).itemsize != self.itemsize and not self.flags.c_contiguous:
            raise ValueError("a view as another size of number needs an array in C order")
        return Refusing(self.inside.view(dtype))

    def scatter_add(self, index: Any, values: Any) -> None:
        np.add.at(self.inside, inner(index), inner(values))

    def __len__(self) -> int:
        return len(self.inside)

    def __iter__(self) -> Any:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: Any) -> Refusing:
        return outer(self.inside[inner(index)])

    def __setitem__(self, index: Any, value: Any) -> None:
        self.inside[inner(index)] = inner(value)


def strange(kind: type) -> bool:
    """Whether somebody else speaks NumPy's protocols, too, and may know what to do."""
    return hasattr(kind, "__array_ufunc__") and not issubclass(kind, (Refusing, np.ndarray, np.generic))


def inner(x: Any) -> Any:
    """What lies inside, at any depth; TypeError on an array of NumPy's."""
    if isinstance(x, Refusing):
        return x.inside
    if isinstance(x, np.ndarray):
        raise TypeError(f"a NumPy array of shape {x.shape} where the others lie on the card")
    if isinstance(x, (list, tuple)):
        return type(x)(map(inner, x))
    return x


def outer(x: Any) -> Any:
    """NumPy's results as Refusing; CuPy has no scalars of its own, only arrays without axes."""
    if isinstance(x, (np.ndarray, np.generic)):
        return Refusing(np.asarray(x))
    if isinstance(x, tuple):
        return type(x)(*map(outer, x)) if hasattr(x, "_fields") else tuple(map(outer, x))
    return x
