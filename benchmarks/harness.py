"""How is it timed?  Programs take turns, A B A B; what counts is the median, and how they stand in a round.

    with race({"ours": Job("benchmarks.delta:ours", shape), "theirs": Job(…)}, threads=2) as lanes:
        agree(lanes, 1e-3)              # nothing is timed that does not compute the same
        take_turns(lanes, rounds=7)
        lanes["ours"].median, ratio(lanes["theirs"], lanes["ours"])

Every program has a process of its own (see worker.py). A shared machine is noisy: programs that alternate
meet the same noise, so a ratio of two of them, taken round by round, is worth more than either time.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "NUMBA_NUM_THREADS")
TURN = 0.3  # seconds; a shorter step is repeated within its turn
OPTIONAL = ("torch", "transformers", "jax")  # a program that needs one that is not installed is left out


class Disagreement(Exception):
    """Programs that were to be compared do not compute the same."""


class Failed(Exception):
    """A program could not be built, or did not run, or not in time."""


@dataclass(frozen=True)
class Job:
    """A program: the function that makes it ("module:function"), what that is given, what each step is given.

    Jobs that are made alike share a process.
    """

    make: str
    arguments: dict[str, Any] = field(default_factory=dict)
    step: dict[str, Any] = field(default_factory=dict)
    limit: float = 900  # seconds that one reply may take: compilers can take for ever


class Process:
    """A program in a process of its own."""

    def __init__(self, name: str, job: Job, threads: int):
        self.name, self.job, self.peak = name, job, 0
        env = os.environ | dict.fromkeys(THREADS, str(threads))
        command = [sys.executable, "-c", "from benchmarks.worker import serve; serve()"]
        self.process = subprocess.Popen(command, cwd=ROOT, env=env, text=True, encoding="utf-8",
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.complaints: list[str] = []
        self.reader = threading.Thread(target=lambda: self.complaints.extend(self.process.stderr or ()))
        self.reader.start()
        try:
            self.about = self.ask({"build": job.make, "arguments": job.arguments})["about"]
        except BaseException:
            self.close()
            raise

    def ask(self, what: dict[str, Any]) -> dict[str, Any]:
        """Send a line and wait for the reply; Failed if it tells of an error, or does not come in time."""
        assert self.process.stdin and self.process.stdout
        timer = threading.Timer(self.job.limit, self.process.kill)
        timer.start()
        try:
            print(json.dumps(what), file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            late = not timer.is_alive()
            timer.cancel()
        if not line:
            self.process.wait()
            self.reader.join()
            said = self.complaints[-1].strip() if self.complaints else f"ended with {self.process.returncode}"
            raise Failed(f"{self.name}: {f'no reply within {self.job.limit:.0f} s' if late else said}")
        reply = json.loads(line)
        self.peak = reply["peak"]
        if "error" in reply:
            raise Failed(f"{self.name}: {reply['error']}")
        return reply

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.process.stdin.close()  # type: ignore[union-attr]
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.reader.join()
        for pipe in (self.process.stdout, self.process.stderr):
            pipe.close()  # type: ignore[union-attr]


class Lane:
    """A program, and the times it has taken in its turns."""

    def __init__(self, process: Process, arguments: dict[str, Any]):
        self.process, self.arguments = process, arguments
        self.times: list[float] = []
        self.rounds: list[float] = []  # the median of each turn
        self.values: list[Any] = []

    def step(self, n: int = 1) -> list[float]:
        """Let it work n times; the seconds of each, which are not kept."""
        reply = self.process.ask({"steps": n, "arguments": self.arguments})
        self.values = reply["values"]
        return reply["times"]

    def turn(self, n: int = 1) -> None:
        """Let it work n times, and keep the times."""
        times = self.step(n)
        self.times += times
        self.rounds.append(float(np.median(times)))

    def answer(self) -> dict[str, np.ndarray]:
        """What has to be the same in all programs compared."""
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder) / "answer.npz")
            self.process.ask({"answer": path})
            with np.load(path) as file:
                return {name: file[name] for name in file.files}

    @property
    def median(self) -> float:
        """Seconds per step."""
        return float(np.median(self.times))

    @property
    def quartiles(self) -> tuple[float, float]:
        low, high = np.quantile(self.times, [0.25, 0.75])
        return float(low), float(high)


@contextlib.contextmanager
def race(jobs: dict[str, Job], threads: int, may_fail: Collection[str] = ()) -> Iterator[dict[str, Lane]]:
    """A lane for every job, its process ended at the end; Failed if one cannot be built.

    Those in `may_fail`, and those that need what is optional and not installed, are left out, and it says so.
    """
    processes: dict[str, Process] = {}
    lanes: dict[str, Lane] = {}
    try:
        for name, job in jobs.items():
            key = json.dumps([job.make, job.arguments])
            try:
                if key not in processes:
                    processes[key] = Process(name, job, threads)
                lanes[name] = Lane(processes[key], job.step)
            except Failed as error:
                if name not in may_fail and not any(f"No module named '{m}'" in str(error) for m in OPTIONAL):
                    raise
                print(f"left out: {error}", file=sys.stderr)
        yield lanes
    finally:
        for process in processes.values():
            process.close()


def agree(lanes: dict[str, Lane], tolerance: float) -> float:
    """Compare what all programs answer with what the first does; the largest difference, or Disagreement.

    Arrays of one name must have one shape and differ by at most `tolerance` in ‖a − b‖/‖a‖; a norm ‖a‖ below
    a millionth of the largest of all counts as that.
    """
    (first, lane), *rest = lanes.items()
    expected, worst = lane.answer(), 0.0
    least = 1e-6 * max(float(np.linalg.norm(a)) for a in expected.values())
    for name, lane in rest:
        found = lane.answer()
        if missing := sorted(set(expected) ^ set(found)):
            raise Disagreement(f"only one of {first} and {name} answers {missing[0]!r}")
        for key, a in expected.items():
            b = found[key]
            if a.shape != b.shape:
                raise Disagreement(f"{key} has shape {a.shape} in {first} and {b.shape} in {name}")
            error = float(np.linalg.norm(a - b)) / max(float(np.linalg.norm(a)), least)
            if not error <= tolerance:  # so that NaN fails too
                raise Disagreement(f"{first} and {name} differ in {key} by {error:.2g}, more than "
                                   f"{tolerance:g}; nothing is timed before they agree")
            worst = max(worst, error)
    return worst


def take_turns(lanes: dict[str, Lane], rounds: int, seconds: float = 120) -> float:
    """Warm up, then let all work in turn: three rounds, and more of them up to `rounds` while there is time.

    Returns the share of the machine that other programs took meanwhile (NaN if psutil is not installed).
    """
    counts = {}
    for name, lane in lanes.items():
        lane.step()
        counts[name] = max(1, round(TURN / max(lane.step()[0], 1e-9)))
    started, others = time.monotonic(), Others()
    for i in range(rounds):
        if i >= 3 and time.monotonic() - started > seconds:
            break
        for name, lane in lanes.items():
            lane.turn(counts[name])
    return others.share()


class Others:
    """How busy everybody else keeps the machine, from now on."""

    def __init__(self) -> None:
        self.started, self.before = time.monotonic(), self.used()

    @staticmethod
    def used() -> float:
        """Processor seconds spent so far by what is not ours; NaN if psutil is not installed."""
        try:
            import psutil
        except ImportError:
            return float("nan")
        me, machine = psutil.Process(), psutil.cpu_times()
        ours = [p.cpu_times() for p in (me, *me.children())]
        ended = getattr(ours[0], "children_user", 0.0) + getattr(ours[0], "children_system", 0.0)  # Linux counts these
        everybody = machine.user + machine.system + getattr(machine, "steal", 0.0)
        return everybody - sum(t.user + t.system for t in ours) - ended

    def share(self) -> float:
        """Of the whole machine, until now."""
        return max(0.0, self.used() - self.before) / (time.monotonic() - self.started) / (os.cpu_count() or 1)


def ratio(slower: Lane, faster: Lane) -> float:
    """How many times as long one takes as the other: the median of that over the rounds."""
    return float(np.median([a / b for a, b in zip(slower.rounds, faster.rounds, strict=True)]))
