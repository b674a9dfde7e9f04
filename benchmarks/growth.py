"""Does it grow as it should?  Time and memory per token against length, width and batch.

Forward and backward of one block of `nano`. What has to stay flat is the time per token when a step has as
many tokens in longer sequences; what has to stay small is the memory of a long sequence with `checkpoint`.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.harness import Job, agree, race, take_turns
from benchmarks.report import Result, Table, Target, cell
from benchmarks.worker import Contender

if TYPE_CHECKING:
    from autograd import Tensor
    from benchmarks.__main__ import Options
    from hope import Hope, State


def checkpointed(model: Hope, tokens: np.ndarray, piece: int) -> Tensor:
    """`model.loss(tokens)`, of which only the states between pieces of so many tokens are kept."""
    from autograd import checkpoint
    from hope import State

    state, total = State.start(model.config), 0.0
    for t in range(0, tokens.shape[1] - 1, piece):
        part = tokens[:, t:t + piece + 1]
        found: list[State] = []

        def read(*leaves: Tensor, part: np.ndarray = part, state: State = state, found: list[State] = found
                 ) -> tuple[Tensor, ...]:
            given = iter(leaves)
            loss, after = model.loss(part, state.map(lambda _: next(given)))
            found.append(after)
            return loss, *after.leaves()
        loss, *leaves = checkpoint(read, *state.leaves(), parameters=model.parameters())
        given = iter(leaves)
        state = found[0].map(lambda _, given=given: next(given))
        total = total + loss * ((part.shape[1] - 1) / (tokens.shape[1] - 1))
    return total


def ours(settings: dict[str, Any], batch: int, time: int, piece: int = 0) -> Contender:
    """Loss and gradients of random tokens, with checkpoints every `piece` tokens if that is not 0."""
    from config import Config
    from hope import Hope

    model = Hope(Config.from_dict(settings), np.random.default_rng(0))
    tokens = np.random.default_rng(1).integers(0, model.config.vocabulary, (batch, time + 1))

    def step() -> float:
        model.zero_grad()
        loss = checkpointed(model, tokens, piece) if piece else model.loss(tokens)[0]
        loss.backward()
        return loss.item()

    def answer() -> dict[str, np.ndarray]:
        return {"loss": np.array(step()), **{f"gradient of {n}": p.grad for n, p in model.named_parameters()}}
    return Contender(step, answer)


def run(options: Options) -> Result:
    """µs and bytes per token."""
    from config import PRESETS

    threads = max(options.threads)
    nano = asdict(replace(PRESETS["nano"][0], layers=1))
    settings = nano | ({"width": 32, "heads": 2} if options.small else {})
    tokens = 2**11 if options.small else 2**16
    lengths = [n for n in (128, 512, 2048, 8192, 32768, 65536) if n <= tokens]

    def job(batch: int, time: int, **given: Any) -> Job:
        piece = given.pop("piece", 0)
        return Job("benchmarks.growth:ours", {"settings": settings | given, "batch": batch, "time": time,
                                              "piece": piece})

    def timed(title: str, column: str, jobs: dict[Any, Job], seconds: float) -> Table:
        table = Table(title, [column, "batch", "tokens per step", "µs per token", "quartiles"])
        with race(jobs, threads) as lanes:
            others.append(take_turns(lanes, options.rounds, seconds))
            for name, lane in lanes.items():
                batch, time = (lane.process.job.arguments[n] for n in ("batch", "time"))
                low, high = (cell(1e6 * s / batch / time) for s in lane.quartiles)
                table.rows.append([name, batch, batch * time, 1e6 * lane.median / batch / time,
                                   f"{low} – {high}"])
        return table

    others: list[float] = []
    tables = [timed(f"Length, at {tokens:,} tokens per step", "T", {n: job(tokens // n, n) for n in lengths},
                    3 * options.seconds),
              timed("Width, at T = 512", "width", {n: job(4, 512, width=n) for n in (64, 128, 256, 512)},
                    options.seconds / 2),
              timed("Batch, at T = 512", "B", {n: job(n, 512) for n in (1, 4, 16, 64)}, options.seconds / 2)]
    per_token = {row[0]: row[3] for row in tables[0].rows}
    flat = max(per_token.values()) / min(per_token.values()) - 1

    with race({"whole": job(2, 200), "pieces": job(2, 200, piece=64)}, threads) as lanes:
        worst = agree(lanes, 1e-4)
    memory = Table("Peak memory of forward and backward, one sequence, MB",
                   ["T", "all kept", "checkpoint every 512"])
    peaks: dict[int, list[float]] = {}
    for n in lengths[1:]:
        peaks[n] = []
        for piece in (0, 512):
            with race({"one": job(1, n, piece=piece)}, threads) as lanes:
                lanes["one"].step()
                peaks[n].append(lanes["one"].process.peak / 1e6)
        memory.rows.append([n, *peaks[n]])
    (a, first), *_, (b, last) = peaks.items()
    slope = [1e3 * (y - x) / (b - a) for x, y in zip(first, last, strict=True)]  # kB per token
    middle = {n: peak[0] - first[0] - slope[0] * (n - a) / 1e3 for n, peak in peaks.items()}
    bent = max(abs(v) for v in middle.values()) / last[0]
    targets = [Target.most(f"time per token from T = {min(per_token):,} to {max(per_token):,}: "
                           "slowest over fastest, − 1", flat, 0.05),
               Target.most("memory against T: farthest from a line, share of the largest", bent, 0.05),
               Target.most("memory per token with checkpoint, all kept = 1", slope[1] / slope[0], 0.05)]
    notes = [f"{threads} thread(s). Memory grows by {cell(slope[0])} kB per token of one block, "
             f"with checkpoints by {cell(slope[1])} kB.",
             "With and without checkpoints, loss and gradients differ by at most "
             f"{worst:.1g} (relative norm)."]
    return Result("growth", [*tables, memory], targets, notes, float(np.mean(others)))
