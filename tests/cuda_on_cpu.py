"""gpu/kernels.cu compiled by a C++ compiler and run by threads: the same source, where there is no card.

A block is as many threads as CUDA would give it, which wait for one another at __syncthreads(); blocks come one
after the other, so that `__shared__` is `static`. What a card alone can show (speed, registers, coalescing, races
between blocks) is not seen here.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SOURCE = Path(__file__).resolve().parent.parent / "gpu" / "kernels.cu"
COMPILER = shutil.which("g++") or shutil.which("clang++")
SHIM = """
#include <barrier>
#include <cmath>
#include <thread>
#include <vector>
using std::exp; using std::log; using std::sqrt;
struct Index { unsigned x, y; };
static thread_local Index threadIdx;
static Index blockIdx, blockDim, gridDim;
static std::barrier<>* all_threads;
#define __device__ static
#define __global__
#define __shared__ static
#define __syncthreads() all_threads->arrive_and_wait()
template <typename Body> void launch(unsigned x, unsigned y, unsigned block, Body body) {
    gridDim = {x, y}, blockDim = {block, 1};
    std::barrier<> meet(block);
    all_threads = &meet;
    std::vector<std::thread> threads;
    for (unsigned me = 0; me < block; ++me)
        threads.emplace_back([&, me] {
            threadIdx = {me, 0};
            for (unsigned i = 0; i < x; ++i)
                for (unsigned j = 0; j < y; ++j) {
                    if (me == 0) blockIdx = {i, j};
                    meet.arrive_and_wait();
                    body();
                    meet.arrive_and_wait();
                }
        });
    for (auto& thread : threads) thread.join();
}
"""


def signatures(source: str) -> dict[str, list[tuple[str, str]]]:
    """The parameters, (type, name), of every kernel in the source."""
    found = re.findall(r'extern "C" __global__ void (\w+)\((.*?)\)', source, re.DOTALL)
    return {name: [(p.rpartition(" ")[0].strip(), p.rpartition(" ")[2]) for p in " ".join(text.split()).split(", ")]
            for name, text in found}


def compiler(folder: Path) -> Callable:
    """Stands in for gpu.kernels.compiled: kernels that take arrays of NumPy's, or Refusing."""
    source = SOURCE.read_text(encoding="utf-8")
    kernels = signatures(source)

    @functools.cache
    def library(real: str, rows: int, tile: int) -> ctypes.CDLL:
        launchers = [f'extern "C" void on_cpu_{name}(unsigned x, unsigned y, unsigned block, '
                     f'{", ".join(f"{kind} {word}_" for kind, word in parameters)}) '
                     f'{{ launch(x, y, block, [=] {{ {name}({", ".join(f"{word}_" for _, word in parameters)}); }}); }}'
                     for name, parameters in kernels.items()
                     if rows or name not in ("delta_rule", "scan_forward", "scan_backward")]
        sizes = f"#define ROWS {rows}\n#define TILE {tile}\n#define LANES 64\n" if rows else ""
        text = f"{SHIM}\n#define REAL {real}\n{sizes}{source}\n" + "\n".join(launchers)
        stem = folder / hashlib.sha256(text.encode()).hexdigest()[:16]
        stem.with_suffix(".cpp").write_text(text, encoding="utf-8")
        subprocess.run([str(COMPILER), "-std=c++20", "-O1", "-w", "-shared", "-fPIC", "-pthread",
                        "-o", stem.with_suffix(".so"), stem.with_suffix(".cpp")], check=True)
        return ctypes.CDLL(str(stem.with_suffix(".so")))

    def compiled(name: str, real: str, rows: int = 0, tile: int = 0) -> Callable:
        function = getattr(library(real, rows, tile), f"on_cpu_{name}")
        kinds = [kind for kind, _ in kernels[name]]

        def kernel(grid: tuple[int, ...], block: tuple[int], args: tuple[Any, ...]) -> None:
            function(*(ctypes.c_uint(n) for n in ((*grid, 1)[:2] + block)),
                     *(argument(x, kind, real) for x, kind in zip(args, kinds, strict=True)))
        return kernel
    return compiled


def argument(x: Any, kind: str, real: str) -> Any:
    """One argument as C takes it; TypeError where CUDA would take it for something else."""
    dtype: Any = {"float": np.float32, "double": np.float64}[real]
    if "*" not in kind:
        if type(x) is not (np.int64 if kind == "integer" else dtype):
            raise TypeError(f"a {kind} is given as {type(x)}")
        return {np.int64: ctypes.c_longlong, np.float32: ctypes.c_float, np.float64: ctypes.c_double}[type(x)](x.item())
    if isinstance(x, np.uint64) and not x:
        return ctypes.c_void_p(0)
    array = getattr(x, "inside", x)
    if array.dtype != (np.int64 if "integer" in kind else dtype) or not array.flags.c_contiguous:
        raise TypeError(f"{kind} points at {array.dtype}, in C order: {array.flags.c_contiguous}")
    return ctypes.c_void_p(array.ctypes.data)
