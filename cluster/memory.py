"""What does a rank hold?  Bytes that it keeps between two steps, and at most within one, for each way to share.

    mpirun -n 4 python -m cluster.memory                  of a model of the width 256, in 8 layers

Counted by Python's tracemalloc, which NumPy reports to: weights, gradients, what the optimiser remembers, and within a
step all that lies between. A model is whole on every rank while it is made, and while a run is resumed.
"""

from __future__ import annotations

from cluster import early

if __name__ == "__main__":
    early.threads()

import argparse
import gc
import tempfile
import tracemalloc
from pathlib import Path

from mpi4py import MPI

import kernels
from cluster.communicator import SHARDS, Ranks
from cluster.fabric import Mpi
from config import Config, Training
from data import Corpus
from train import Run


def held(fabric: Mpi, shard: str, config: Config, batch: int) -> tuple[int, int]:
    """Bytes that the fullest rank keeps after a step, and at most within the next."""
    training = Training(batch=batch, random_data=True, quiet=True, accumulate=fabric.size, device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        tracemalloc.start()
        run = Run(Path(folder), "memory", config, training, Corpus.random(size=1 << 16),
                  ranks=Ranks(fabric, shard, 1.0))
        run.ranks.join(run)
        run.advance()
        run.optimizer.zero_grad()
        run.last = run.state = None  # type: ignore[assignment]
        gc.collect()
        tracemalloc.reset_peak()
        kept = tracemalloc.get_traced_memory()[0]
        run.advance()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return max(fabric.all(kept)), max(fabric.all(peak))


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--width", type=int, default=256)
    made.add_argument("--layers", type=int, default=8)
    made.add_argument("--batch", type=int, default=1)
    given = made.parse_args()
    fabric = Mpi(MPI.COMM_WORLD)
    config = Config(width=given.width, layers=given.layers, hidden=2 * given.width, segment=64)
    held(fabric, "", config, given.batch)  # what is compiled and imported is not counted
    for shard in SHARDS:
        kept, peak = held(fabric, shard, config, given.batch)
        if fabric.rank == 0:
            print(f"{fabric.size} ranks, {shard or 'none':10} kept {kept / 1e6:8.1f} MB   at most {peak / 1e6:8.1f} MB",
                  flush=True)


if __name__ == "__main__":
    kernels.set_threads(1)
    main()
