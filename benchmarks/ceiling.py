"""What could this machine do at best?  The rate of matrix products, and of reading memory.

NumPy and PyTorch, float32, at what the model asks for: large products, many small ones, and a matrix times a
vector, which is as fast as the matrix can be read: from memory, or from the last cache where it fits. On two
threads NumPy's rows are dealt out as this project does it, for its BLAS has one thread there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from benchmarks.harness import Job, race, take_turns
from benchmarks.report import Result, Table
from benchmarks.worker import Contender

if TYPE_CHECKING:
    from benchmarks.__main__ import Options

SHAPES = {  # name → (batch, rows, columns, what is multiplied by)
    "2048 × 2048 by 2048 × 2048": (1, 2048, 2048, 2048),
    "2048 × 256 by 256 × 512": (1, 2048, 256, 512),
    "256 of 64 × 64 by 64 × 64": (256, 64, 64, 64),
    "1 GB by a vector": (1, 16384, 16384, 1),
    "20 MB by a vector": (1, 2236, 2236, 1),
}


def product(shape: str, library: str = "numpy") -> Contender:
    """One matrix product of `SHAPES`, into memory that is there already."""
    batch, n, k, m = SHAPES[shape]
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((batch, n, k), np.float32), rng.standard_normal((batch, k, m), np.float32)
    if batch == 1:
        a, b = a[0], b[0]
    if m == 1:
        b = b[:, 0]
    about = {"flops": 2.0 * batch * n * k * m, "bytes": float(a.nbytes)}
    if library == "numpy":
        import kernels

        out = a @ b

        def part(start: int, stop: int) -> None:
            np.matmul(a[start:stop], b if batch == 1 else b[start:stop], out=out[start:stop])

        def step() -> None:
            kernels.split(part, len(a), kernels.GRAIN)
        return Contender(step, None, about)
    import torch

    ta, tb = torch.from_numpy(a), torch.from_numpy(b)
    to = ta @ tb
    return Contender(lambda: torch.matmul(ta, tb, out=to) is None, None, about)


def run(options: Options) -> Result:
    """GFLOP/s of products, GB/s of reading, by NumPy and PyTorch."""
    shapes = [s for s in SHAPES if not options.small or "1 GB" not in s]
    table = Table("float32 products", ["product", "threads", "NumPy", "PyTorch", "unit"])
    others = []
    for threads in options.threads:
        for shape in shapes:
            jobs = {library: Job("benchmarks.ceiling:product", {"shape": shape, "library": library})
                    for library in ("numpy", "torch")}
            with race(jobs, threads) as lanes:
                others.append(take_turns(lanes, options.rounds, 10))
                reading = "vector" in shape
                rate = {name: lane.process.about["bytes" if reading else "flops"] / lane.median / 1e9
                        for name, lane in lanes.items()}
            table.rows.append([shape, threads, rate["numpy"], rate.get("torch"),
                               "GB/s read" if reading else "GFLOP/s"])
    return Result("ceiling", [table], others=float(np.mean(others)))
