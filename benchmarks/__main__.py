"""How fast is it?  Measure, beside other frameworks, everything or the benchmarks named.

    python -m benchmarks                     all of them
    python -m benchmarks hope delta          two of them
    python -m benchmarks --avx2 hope         as on a machine without AVX-512
    python -m benchmarks --readme            and write what was found into benchmarks/README.md
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    from tools import early

    early.settle(sys.argv)

import argparse
import importlib
import os
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import report
from benchmarks.harness import Disagreement, Failed
from tools import stopping

BENCHMARKS = {  # name → where it is
    "ceiling": "benchmarks.ceiling:run", "transformer": "benchmarks.training:transformer",
    "hope": "benchmarks.training:hope", "delta": "benchmarks.delta:run", "growth": "benchmarks.growth:run",
    "decode": "benchmarks.decode:run", "start": "benchmarks.start:run", "loss": "benchmarks.loss:run",
    "adopted": "benchmarks.adopted:run", "felt": "benchmarks.felt:run"}
ORDER = [name + kind for name in BENCHMARKS for kind in ("", report.AVX2)]  # of the page
IMITATED = {  # what makes the libraries take the machine for one that has AVX2 alone
    "OPENBLAS_CORETYPE": "HASWELL", "NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2,+fma",
    "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2",
    "XLA_FLAGS": "--xla_cpu_max_isa=AVX2"}


@dataclass(frozen=True)
class Options:
    """What the command line says about how to measure."""

    threads: tuple[int, ...] = (1, 2)
    rounds: int = 9
    seconds: float = 60
    eager: bool = False
    small: bool = False


def parse(arguments: Sequence[str]) -> tuple[list[str], Options, argparse.Namespace]:
    """The benchmarks to run, how, and where the results go; SystemExit with a line for anything else."""
    cores = os.cpu_count() or 1

    def threads(text: str) -> tuple[int, ...]:
        found = tuple(dict.fromkeys(int(n) for n in text.split(",")))
        if not all(1 <= n <= cores for n in found):
            raise argparse.ArgumentTypeError(f"{text}: give numbers from 1 to {cores}, the cores here")
        return found

    def positive(text: str) -> float:
        if not 0 < float(text) < float("inf"):
            raise argparse.ArgumentTypeError(f"{text}: it must be positive")
        return float(text)

    def rounds(text: str) -> int:
        if int(text) < 3:
            raise argparse.ArgumentTypeError(f"{text}: a median takes at least 3")
        return int(text)
    made = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__, allow_abbrev=False,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(BENCHMARKS)} [all]")
    made.add_argument("--threads", type=threads, default=tuple(n for n in (1, 2) if n <= cores),
                      help="numbers of threads to measure at [1,2]")
    made.add_argument("--rounds", type=rounds, default=Options.rounds,
                      help=f"rounds in which all programs take a turn, at most [{Options.rounds}]")
    made.add_argument("--seconds", type=positive, default=Options.seconds,
                      help=f"after so many of one comparison, no further round [{Options.seconds:g}]")
    made.add_argument("--eager", action="store_true", help="leave out what PyTorch would have to compile")
    made.add_argument("--avx2", action="store_true", help="imitate a machine without AVX-512")
    made.add_argument("--small", action="store_true", help="small sizes, to see that everything runs")
    made.add_argument("--json", metavar="FILE", type=Path,
                      help="keep the results in this file, beside earlier ones")
    made.add_argument("--readme", action="store_true", help="keep them in results.json and README.md here")
    given = made.parse_args(arguments)
    for name in given.names:
        if name not in BENCHMARKS:
            made.error(f"unknown benchmark {name!r}; choose from {', '.join(BENCHMARKS)}")
    if given.small and given.readme:
        made.error("--small is for a look; its numbers do not go into README.md")
    options = Options(given.threads, given.rounds, given.seconds, given.eager, given.small)
    return [n for n in BENCHMARKS if n in given.names or not given.names], options, given


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0, 1 if something that was to be compared disagrees or fails, 2 for bad input, 130 when stopped."""
    arguments = sys.argv[1:] if arguments is None else arguments
    names, options, given = parse(arguments)
    failed, kind = False, report.AVX2 if given.avx2 else ""
    if given.avx2:
        os.environ.update(IMITATED)  # which all programs inherit
    for name in names:
        started = time.monotonic()
        module, _, function = BENCHMARKS[name].partition(":")
        try:
            if given.json:
                report.read(given.json)  # before hours are spent
            with stopping.heeded(lambda: "what was measured before is kept"):
                result = getattr(importlib.import_module(module), function)(options)
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
            return 130
        except (Disagreement, Failed) as error:
            print(f"{name}: {error}", file=sys.stderr)
            failed = True
            continue
        except ValueError as error:
            print(f"{name}: error: {error}", file=sys.stderr)
            return 2
        settings = [a for a in arguments if a not in (*BENCHMARKS, "--readme")]
        command = shlex.join(["python", "-m", "benchmarks", name, *settings])
        found = {name + kind: result.finished(command, time.monotonic() - started)}
        print(report.page(found), end="\n\n", flush=True)
        if given.json:
            report.merge(given.json, found, ORDER)
        if given.readme:
            results = report.merge(report.HERE / "results.json", found, ORDER)
            page = report.HERE / "README.md"
            page.write_text(report.rewrite(page.read_text(encoding="utf-8"), results), encoding="utf-8")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
