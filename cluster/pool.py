"""Ranks as a pool of workers: independent jobs, each done by whoever is free.

    mpirun -n 4 python -m apps.evaluate claims --mpi                    claims, or the sweep of one
    mpirun -n 4 python -m apps.evaluate optimisers --preset tiny --mpi  a sweep
    mpirun -n 4 python -m cluster.pool RUN PROMPTS                      a text after each line of a file

All ranks run the same program; `Pool.map` is where they part. So a job may be any function, and nothing of it travels
but its result.
"""

from __future__ import annotations

from cluster import early

if __name__ == "__main__":
    early.threads()

import argparse
import functools
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any

os.environ.setdefault("OMPI_MCA_osc", "^ucx")  # which complains where there is no network of its kind

import numpy as np
from mpi4py import MPI

import hope
from data import Vocabulary
from tools import console
from tools.checkpoint import find
from tools.folder import vocabulary


class Pool:
    """All ranks of a communicator."""

    def __init__(self, comm: Any = None):
        self.comm = comm or MPI.COMM_WORLD
        self.rank, self.size = self.comm.Get_rank(), self.comm.Get_size()
        self.inside = False  # one of its jobs

    def silent(self) -> None:
        """Let only rank 0 be heard; what goes wrong on another is still said."""
        if self.rank:
            sys.stdout = open(os.devnull, "w", encoding="utf-8")

    def map(self, f: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        """f of every item, in their order, on all ranks; within a job of a pool, here. The first error is raised."""
        items = list(items)
        if self.inside or self.size == 1:
            return [f(item) for item in items]
        next_one = MPI.Win.Allocate(8 if self.rank == 0 else 0, 8, comm=self.comm)
        if self.rank == 0:
            next_one.tomemory()[:] = bytes(8)
        self.comm.Barrier()
        found: dict[int, Any] = {}
        error: Exception | None = None
        while not error and (i := self.draw(next_one)) < len(items):
            self.inside = True
            try:
                found[i] = f(items[i])
            except Exception as raised:
                error = raised
            finally:
                self.inside = False
        parts = self.comm.allgather((found, error))
        next_one.Free()
        for _, its in parts:
            if its:
                raise its
        return [value for _, value in sorted(pair for part, _ in parts for pair in part.items())]

    def draw(self, next_one: Any) -> int:
        """The number of the next job that nobody has begun."""
        one, drawn = np.ones(1, np.int64), np.zeros(1, np.int64)
        next_one.Lock(0)
        next_one.Fetch_and_op(one, drawn, 0, 0, MPI.SUM)
        next_one.Unlock(0)
        return int(drawn[0])


def main() -> int:
    """Let a model go on from every line of a file; returns 0, or 2 for bad input."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("run", help="a run's folder, or a checkpoint")
    made.add_argument("prompts", help="a file with a prompt in each line")
    made.add_argument("--tokens", type=int, default=100)
    made.add_argument("--temperature", type=float, default=0.8)
    made.add_argument("--seed", type=int, default=0)
    given = made.parse_args()
    pool = Pool()
    pool.silent()

    @functools.cache
    def opened() -> tuple[hope.Hope, Vocabulary]:
        path = find(given.run)
        return hope.load(path)[0], vocabulary(path.parent)

    def lines(path: str) -> list[str]:
        with open(path, encoding="utf-8") as file:
            return [line.rstrip("\n") for line in file if line.strip()]

    def go_on(item: tuple[int, str]) -> str:
        (i, prompt), (model, words) = item, opened()
        written = [token for token, _ in model.generate(
            words.encode(prompt.encode("utf-8")), given.tokens, temperature=given.temperature,
            seed=np.random.default_rng([given.seed, i]), stop=words.ends)]
        return words.spell(written).decode("utf-8", "replace")
    try:  # only within a job one rank alone may fail
        (prompts,) = pool.map(lines, [given.prompts])
        for prompt, text in zip(prompts, pool.map(go_on, enumerate(prompts)), strict=True):
            print(f"{prompt} ▶ {text}\n")
    except (ValueError, OSError) as error:
        if pool.rank == 0:
            print(f"cluster.pool: error: {console.reason(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
