"""What has to be settled before NumPy and Numba are loaded?  Who answers Ctrl+C, and how many threads there are.

It loads next to nothing itself: until it has, Python would answer with a traceback.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys


def settle(arguments: list[str]) -> None:
    """Let Ctrl+C end the program at once while there is nothing to lose, and --threads be what Numba starts with."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler and not hasattr(sys, "ps1"):
        try:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            from tools.stopping import leave

            signal.signal(signal.SIGINT, lambda number, frame: leave("stopped", 128 + number))
        except ValueError:  # not in the main thread
            pass
    words = itertools.chain(*(argument.split("=", 1) for argument in arguments))
    for word, n in itertools.pairwise(words):
        if (word in ("--threads", "threads") or word.endswith(".threads")) and n.isdecimal() and int(n):
            os.environ["NUMBA_NUM_THREADS"] = n  # Numba reads this once, while it is imported
