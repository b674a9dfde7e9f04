"""How many threads does a rank have?  Settled before Numba is loaded: ranks of a machine share its cores."""

from __future__ import annotations

import importlib.util
import os
import sys

LOCAL = ("OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "SLURM_NTASKS_PER_NODE")  # ranks on this machine


def threads() -> None:
    """Numba's threads, unless the environment or --threads (tools/early.py) has said how many; ends where no MPI is."""
    if not importlib.util.find_spec("mpi4py"):
        sys.exit("ranks need mpi4py and an MPI: pip install -r cluster/requirements.txt")
    local = next((os.environ[name] for name in LOCAL if os.environ.get(name, "").isdigit()), "1")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if cores == os.cpu_count():  # else whoever started the ranks has shared them out
        cores = max(1, cores // int(local))
    os.environ.setdefault("NUMBA_NUM_THREADS", str(cores))
