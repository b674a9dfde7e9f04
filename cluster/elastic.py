"""A run that goes on with the ranks that are left.

    python -m cluster.elastic -n 4 --preset nano          starts 4 ranks; where one is lost, 3 resume, then 2 …
    python -m cluster.elastic -n 4 --launcher "mpirun --hostfile hosts" --resume RUN

A step takes the same batches in the same order on any number of ranks, so that weights come out to the same bit as if
no rank had been lost. What fails on every start (a full disk, a loss that is no number) is not tried again.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster.health import LOST
from tools.aliases import ours
from tools.checkpoint import LAST
from tools.command import Parser, wanted_preset
from tools.stopping import SIGNALS

STOPPED = tuple(128 + number for number in SIGNALS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Start ranks until a run is over; returns what the last start did."""
    made = Parser(prog="cluster.elastic", add_help=False, allow_abbrev=False)
    made.add_argument("-n", type=int, default=2)
    made.add_argument("--least", type=int, default=1)
    made.add_argument("--launcher", default="mpirun")
    made.add_argument("--out", default="")
    made.add_argument("--resume", default="")
    made.add_argument("-h", "--help", action="store_true")
    try:
        given, rest = made.parse_known_args(ours(sys.argv[1:] if arguments is None else arguments))
        if not 1 <= given.least <= given.n:
            raise ValueError(f"-n is {given.n} and --least {given.least}: give at least 1, and no more than there are")
    except ValueError as error:
        print(f"cluster.elastic: error: {error}", file=sys.stderr)
        return 2
    if given.help:
        print(__doc__)
        return 0
    folder = given.resume or given.out or f"runs/{wanted_preset(rest)}-{time.strftime('%Y%m%d-%H%M%S')}"
    command, ranks = ["--resume" if given.resume else "--out", folder, *rest], given.n
    while True:
        code, asked = start([*shlex.split(given.launcher), "-n", str(ranks)], command)
        lost = code >= LOST and code not in STOPPED  # a rank that was killed is 128 and the signal, or it alone
        if not lost or asked or not (Path(folder) / LAST).exists():
            return code
        ranks -= 1
        if ranks < given.least:
            print(f"cluster.elastic: error: fewer than {given.least} ranks are left; {folder} keeps the last "
                  "checkpoint", file=sys.stderr)
            return 1
        print(f"cluster.elastic: going on with {ranks} rank{'s' * (ranks > 1)}", file=sys.stderr, flush=True)
        command = ["--resume", folder, *(rest if given.resume else kept(rest))]


def kept(flags: Sequence[str]) -> list[str]:
    """Those of a new run's flags that are not in its own settings: how the ranks share it."""
    own = ("--shard", "--bucket", "--silence", "--patience")
    return [word for i, word in enumerate(flags) if word.split("=")[0] in own or (i and flags[i - 1] in own)]


def start(launcher: Sequence[str], command: Sequence[str]) -> tuple[int, bool]:
    """Let ranks train to their end: the exit status, and whether they were asked to end."""
    asked = False
    try:
        ranks = subprocess.Popen([*launcher, sys.executable, "-m", "cluster.train", *command],
                                 env={"PRTE_MCA_odls_base_sigkill_timeout": "60", **os.environ})
    except OSError as error:
        sys.exit(f"cluster.elastic: error: {launcher[0]} cannot be started ({error.strerror}); install it with pip "
                 "install -r cluster/requirements.txt, or name another --launcher")

    def note(number: int, frame: Any) -> None:
        nonlocal asked
        asked = True
        if number != signal.SIGINT:  # of Ctrl+C the ranks have heard, too
            ranks.send_signal(number)
    before = {number: signal.signal(number, note) for number in SIGNALS
              if signal.getsignal(number) != signal.SIG_IGN}  # as under nohup
    try:
        code = ranks.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return (code if code >= 0 else 128 - code), asked


if __name__ == "__main__":
    sys.exit(main())
