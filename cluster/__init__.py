"""More than one process, on one machine or several: ranks that talk through MPI.

    mpirun -n 2 python -m cluster.train --preset nano     data parallel; every flag of train.py, see README.md here
    python -m cluster.elastic -n 4 --preset nano          the same, going on with the ranks that are left
    python -m cluster.scale                               what this fabric does, and what it would at 1,024 ranks

The root knows nothing of this room but a communicator that it is handed (tools/alone.py).
"""
