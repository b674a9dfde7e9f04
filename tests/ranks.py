"""One rank of several, or a process alone, for the tests: it trains with one list of arguments after another.

The lists stand in a file of JSON, each with what a rank has only its part of; null is for a process alone.
"""

import json
import sys
from pathlib import Path

import train


def main(plan):
    for shard, arguments in json.loads(Path(plan).read_text(encoding="utf-8")):
        ranks = None
        if shard is not None:
            from mpi4py import MPI

            from cluster.communicator import Ranks
            from cluster.fabric import Mpi

            ranks = Ranks(Mpi(MPI.COMM_WORLD), shard, bucket=0.005)
        if code := train.main(arguments, ranks):
            if ranks:
                MPI.COMM_WORLD.Abort(code)
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
