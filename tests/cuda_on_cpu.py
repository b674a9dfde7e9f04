"""gpu/kernels.cu compiled by a C++ compiler and run by the CPU: the same source, where there is no card.

A block has as many threads as CUDA would give it. They take turns: each runs until its next __syncthreads(), first
to last and then, after it, last to first, and the other way round in the next block, so that what one reads before
another was to write it is read wrong. Blocks come one after the other, so that `__shared__` is `static`. What a card
alone can show (speed, registers, coalescing, races between blocks) is not seen here.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SOURCE = Path(__file__).resolve().parent.parent / "gpu" / "kernels.cu"
COMPILER = os.name == "posix" and (shutil.which("g++") or shutil.which("clang++"))  # <ucontext.h> is POSIX's
SHIM = """
#define _XOPEN_SOURCE 700
#define _DARWIN_C_SOURCE
#include <setjmp.h>
#include <ucontext.h>
#include <cmath>
#include <cstdlib>
#include <functional>
#include <vector>
using std::exp; using std::expm1; using std::fabs; using std::log; using std::log1p; using std::sqrt; using std::tanh;
namespace {
struct Index { unsigned x, y; };
struct Thread { ucontext_t first; jmp_buf here; std::vector<char> stack; enum { NEW, WAITING, DONE } is; };
Index threadIdx, blockIdx, blockDim, gridDim;
std::vector<Thread> threads;
jmp_buf between;
std::function<void()> kernel;
#define __device__
#define __global__
#define __noinline__
#define __shared__ static
#define __trap() abort()
void pause_thread(int state) {
    Thread& me = threads[threadIdx.x];
    me.is = state ? Thread::DONE : Thread::WAITING;
    if (state || !_setjmp(me.here)) _longjmp(between, 1);
}
#define __syncthreads() pause_thread(0)
void whole_thread() {
    kernel();
    pause_thread(1);
}
void turn(unsigned me) {
    Thread& thread = threads[me];
    if (thread.is == Thread::DONE) abort();  // there was a __syncthreads() that not all came to
    threadIdx = {me, 0};
    if (_setjmp(between)) return;
    if (thread.is == Thread::WAITING) _longjmp(thread.here, 1);
    getcontext(&thread.first);
    thread.first.uc_stack.ss_sp = thread.stack.data();
    thread.first.uc_stack.ss_size = thread.stack.size();
    thread.first.uc_link = nullptr;
    makecontext(&thread.first, whole_thread, 0);
    setcontext(&thread.first);
}
void launch(unsigned x, unsigned y, unsigned block) {
    gridDim = {x, y}, blockDim = {block, 1};
    threads.resize(block);
    for (Thread& thread : threads) thread.stack.resize(1 << 17);
    for (unsigned i = 0; i < x * y; ++i) {
        blockIdx = {i / y, i % y};
        for (Thread& thread : threads) thread.is = Thread::NEW;
        for (bool forwards = i % 2 == 0; threads[0].is != Thread::DONE; forwards = !forwards)
            for (unsigned me = 0; me < block; ++me) turn(forwards ? me : block - 1 - me);
        for (Thread& thread : threads)
            if (thread.is != Thread::DONE) abort();
    }
}
"""


def signatures(source: str) -> dict[str, list[tuple[str, str]]]:
    """The parameters, (type, name), of every kernel in the source."""
    found = re.findall(r'extern "C" __global__ void (\w+)\((.*?)\)', source, re.DOTALL)
    return {name: [(p.rpartition(" ")[0].strip(), p.rpartition(" ")[2]) for p in " ".join(text.split()).split(", ")]
            for name, text in found}


def by_value(kind: str) -> bool:
    """Whether a parameter is a struct, which comes as an array of one."""
    return "*" not in kind and kind not in ("integer", "real")


def compiler(folder: Path) -> Callable:
    """Stands in for gpu.kernels.compiled: kernels that take arrays of NumPy's, or Refusing."""
    whole = SOURCE.read_text(encoding="utf-8")

    @functools.cache
    def library(real: str, **constants: int) -> tuple[ctypes.CDLL, dict]:
        source = re.sub(r"#ifdef (\w+)\n(.*?)\n#endif  // \1\n",  # the parts that are asked for
                        lambda part: part[2] if part[1].lower() in constants else "", whole, flags=re.DOTALL)
        kernels = signatures(source)
        launchers = []
        for name, parameters in kernels.items():
            taken = ", ".join(f"{kind}{'*' * by_value(kind)} {word}_" for kind, word in parameters)
            passed = ", ".join(f"{'*' * by_value(kind)}{word}_" for kind, word in parameters)
            launchers.append(f'extern "C" void on_cpu_{name}(unsigned x, unsigned y, unsigned block, {taken}) '
                             f'{{ kernel = [=] {{ {name}({passed}); }}; launch(x, y, block); }}')
        sizes = "".join(f"#define {key.upper()} {value}\n" for key, value in constants.items())
        text = f"{SHIM}\n#define REAL {real}\n{sizes}{source}\n}}\n" + "\n".join(launchers)
        stem = folder / hashlib.sha256(text.encode()).hexdigest()[:16]
        stem.with_suffix(".cpp").write_text(text, encoding="utf-8")
        subprocess.run([str(COMPILER), "-std=c++20", "-O1", "-w", "-U_FORTIFY_SOURCE", "-shared", "-fPIC",
                        "-o", stem.with_suffix(".so"), stem.with_suffix(".cpp")], check=True)
        return ctypes.CDLL(str(stem.with_suffix(".so"))), kernels

    def compiled(name: str, real: str, **constants: int) -> Callable:
        loaded, kernels = library(real, **constants)
        function = getattr(loaded, f"on_cpu_{name}")
        kinds = [kind for kind, _ in kernels[name]]

        def kernel(grid: tuple[int, ...], block: tuple[int], args: tuple[Any, ...]) -> None:
            function(*(ctypes.c_uint(n) for n in ((*grid, 1)[:2] + block)),
                     *(argument(x, kind, real) for x, kind in zip(args, kinds, strict=True)))
        return kernel
    return compiled


def argument(x: Any, kind: str, real: str) -> Any:
    """One argument as C takes it; TypeError where CUDA would take it for something else."""
    dtype: Any = {"float": np.float32, "double": np.float64}[real]
    pointed = {"integer": np.int64, "real": dtype, "float": np.float32, "unsigned short": np.uint16}
    if by_value(kind):
        if type(x) is not np.ndarray or x.shape != (1,) or x.dtype.names is None:
            raise TypeError(f"a {kind} is given as {type(x)}")
        return ctypes.c_void_p(x.ctypes.data)
    if "*" not in kind:
        if type(x) is not (np.int64 if kind == "integer" else dtype):
            raise TypeError(f"a {kind} is given as {type(x)}")
        return {np.int64: ctypes.c_longlong, np.float32: ctypes.c_float, np.float64: ctypes.c_double}[type(x)](x.item())
    if isinstance(x, np.uint64) and not x:
        return ctypes.c_void_p(0)
    array = getattr(x, "inside", x)
    if array.dtype != pointed[kind.removeprefix("const ").rstrip("*")] or not array.flags.c_contiguous:
        raise TypeError(f"{kind} points at {array.dtype}, in C order: {array.flags.c_contiguous}")
    return ctypes.c_void_p(array.ctypes.data)
