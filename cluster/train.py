"""Training on several ranks, on one machine or more.

    mpirun -n 2 python -m cluster.train --preset nano     each rank reads as much as one process would
    mpirun -n 3 python -m cluster.train --resume RUN      go on with any run, on any number of ranks
    srun --mpi=pmix -n 16 python -m cluster.train …       under Slurm

Every flag is one of train.py (see `python train.py --help`), but for

    --shard optimizer|weights   what a rank has only its part of (without it: nothing)      [none]
    --bucket MB                 gradients that travel together                              [4]
    --silence SECONDS           a rank from which nothing is heard for so long is lost      [10]
    --patience SECONDS          … or which keeps the others waiting for so long             [300]

A new run takes --accumulate batches of each rank in a step (in the consecutive order --batch rows of each); config.json
has what all ranks take together. So `python train.py --resume` goes on with such a run in one process.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    from tools import early

    early.settle(sys.argv)
    from cluster import early as ranks_early

    ranks_early.threads()

import argparse
import importlib
import io
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mpi4py import MPI

import train
from cluster import health
from cluster.communicator import SHARDS, Ranks
from cluster.fabric import Mpi, Nccl
from tools import command, machine
from tools.command import Parser, wanted_preset
from tools.folder import read_json


def own_flags() -> argparse.ArgumentParser:
    made = Parser(prog="cluster.train", add_help=False, allow_abbrev=False)
    made.add_argument("--shard", choices=[name for name in SHARDS if name], default="")
    made.add_argument("--bucket", type=float, default=4.0)
    made.add_argument("--silence", type=float, default=10.0)
    made.add_argument("--patience", type=float, default=300.0)
    made.add_argument("-h", "--help", action="store_true")
    return made


def device(arguments: Sequence[str]) -> str:
    """Where a command wants to compute: as it says, or the run or the file whose settings it takes."""
    wanted, given = command.parse(arguments)
    with suppress(ValueError):  # what is wrong with them train.py says
        if wanted.resume:
            run = Path(wanted.resume)
            return command.resumed(run, read_json(run / "config.json"), given)[2].device
        return command.asked(wanted, given)[2].device
    return "auto"


def fabric(comm: Any, device: str, watch: health.Watch) -> Mpi:
    """NCCL where the run is on GPUs, one for each rank of a machine; else MPI."""
    gpu, _ = machine.choose(device)
    if not gpu:
        return Mpi(comm, watch.waiting)
    cupy = gpu.ready()
    local = comm.Split_type(MPI.COMM_TYPE_SHARED).Get_rank()
    cards = cupy.cuda.runtime.getDeviceCount()
    if local >= cards:
        raise ValueError(f"this machine has {cards} GPUs, and this is its rank {local}: one GPU for each rank")
    cupy.cuda.Device(local).use()
    return Nccl(comm, cupy, importlib.import_module("cupy.cuda.nccl"), watch.waiting)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line of one rank; returns what train.py would."""
    comm = MPI.COMM_WORLD
    watch = health.Watch(comm)
    first = comm.Get_rank() == 0
    said = io.StringIO()
    if not first:  # its last words are for rank 0 to say
        sys.stderr, sys.stdout = said, open(os.devnull, "w", encoding="utf-8")
    try:
        given, rest = own_flags().parse_known_args(list(sys.argv[1:] if arguments is None else arguments))
        if given.help:
            print(__doc__)
            return 0
        if wanted_preset(rest) == "stories":
            raise ValueError("stories are several models, each in a process: python train.py --preset stories")
        watch.begin(given.silence, given.patience)
        ranks = Ranks(fabric(comm, device(rest), watch), given.shard, given.bucket)
        code = train.main(rest, ranks)
    except ValueError as error:
        print(f"cluster.train: error: {error}", file=sys.stderr)
        code = 2
    except BaseException as error:
        code = watch.failed(error)
    return watch.end(code, said.getvalue())


if __name__ == "__main__":
    sys.exit(main())
