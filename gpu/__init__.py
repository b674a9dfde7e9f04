"""Running on an NVIDIA card: whether one can be used, moving things there and back, and kernels for it.

    import gpu
    print(gpu.problem() or gpu.describe())      # why not, or what there is
    gpu.to_device(model)                        # its weights; from now on everything follows them
    state = gpu.to_device(state)                # a running state comes back as a new one

`train.py --device cuda` does this. CuPy is imported only in this folder, and only when it is needed.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np

from autograd import host
from gpu import kernels, products
from hope import State
from layers import Module
from optimizers import Optimizer

INSTALL = "pip install -r gpu/requirements.txt"


def problem() -> str:
    """Why no card can be used here, and what to do about it; "" if one can."""
    if importlib.util.find_spec("cupy") is None:
        return f"CuPy is not installed: {INSTALL}"
    try:
        import cupy
        driver, built = cupy.cuda.runtime.driverGetVersion(), cupy.cuda.runtime.runtimeGetVersion()
        if not driver:
            return "there is no NVIDIA driver on this machine; the card's maker has one for it"
        if driver // 1000 < built // 1000:
            return (f"the NVIDIA driver is for CUDA {version(driver)} and CuPy for CUDA {version(built)}; update the "
                    f"driver, or install the CuPy for CUDA {driver // 1000} (gpu/README.md)")
        if not cupy.cuda.runtime.getDeviceCount():
            return "the NVIDIA driver finds no card"
        cupy.zeros(1).get()  # everything that a first use needs
    except Exception as error:  # CuPy has many, and those of a broken installation are not its own
        if "cudaErrorNoDevice" in str(error):
            return "the NVIDIA driver finds no card (does CUDA_VISIBLE_DEVICES hide it?)"
        return f"CuPy cannot be used: {type(error).__name__}: {error}"
    return ""


def version(number: int) -> str:
    """12040 as 12.4"""
    return f"{number // 1000}.{number % 1000 // 10}"


def describe() -> str:
    """The card, its memory and its driver, in words. RuntimeError if there is none."""
    cupy = ready()
    found = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
    return (f"{found['name'].decode()}, {memory() / 1e9:.3g} GB, compute capability {found['major']}.{found['minor']}, "
            f"driver for CUDA {version(cupy.cuda.runtime.driverGetVersion())}, CuPy {cupy.__version__}")


def memory() -> int:
    """Bytes of memory of the card."""
    return ready().cuda.Device().mem_info[1]


def held(model: Any, tokens: np.ndarray) -> int:
    """Bytes that one pass forwards keeps on the card for the way back."""
    pool = ready().get_default_memory_pool()
    before, kept = pool.used_bytes(), model.loss(tokens)
    return pool.used_bytes() - before if kept else 0


def full(error: Exception) -> bool:
    """Whether the card's memory is full, in whatever words CuPy, the driver or cuBLAS say so."""
    said = str(error).upper()
    return isinstance(error, MemoryError) or any(words in said for words in (
        "OUT_OF_MEMORY", "OUT OF MEMORY", "ALLOC_FAILED", "MEMORYALLOCATION"))


def set_matmul(precision: str) -> None:
    """Let matrix products of float32 be float32, tf32 or bfloat16. ValueError where the card has no such products."""
    cupy = ready()
    capability = int(cupy.cuda.Device().compute_capability)  # 75 for 7.5
    if precision != "float32" and capability < 80:
        raise ValueError(f"matmul {precision} takes a card of compute capability 8.0 or later, this one has "
                         f"{capability // 10}.{capability % 10}; --matmul float32")
    products.use(precision, cupy.ndarray)


@functools.cache
def ready() -> Any:
    """CuPy, with our kernels registered for its arrays. RuntimeError says why there is none."""
    if why := problem():
        raise RuntimeError(why)
    import cupy

    kernels.register_all(cupy.ndarray)
    return cupy


def to_device(thing: Any) -> Any:
    """A module, an optimiser (both changed in place), a running state or an array, on the card."""
    return move(thing, ready().asarray)


def to_host(thing: Any) -> Any:
    """The same, back in NumPy's arrays."""
    return move(thing, host)


def move(thing: Any, f: Callable) -> Any:
    """Apply f to every array of a module, an optimiser, a running state, or to an array itself."""
    if isinstance(thing, Module):
        for p in thing.parameters():
            p.data, p.grad = f(p.data), None if p.grad is None else f(p.grad)
        return thing
    if isinstance(thing, Optimizer):  # its parameters are the module's
        thing.state = [{key: f(x) if np.ndim(x) else x for key, x in state.items()} for state in thing.state]
        return thing
    if isinstance(thing, State):
        return thing.map(lambda t: type(t)(f(t.data)))
    return f(thing)
