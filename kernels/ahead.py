"""What will soon be needed is compiled by a second process, while this one compiles what it needs now.

Numba's compiler holds the interpreter's lock, so threads would take turns. The second process is told the name of a
loop and the types of its arguments; what it makes is loaded from the cache (cache.py). Where it cannot be started, or
ends too soon, nothing is lost but time: who needs the loop compiles it.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

_helper: subprocess.Popen | None = None  # the second process, until it has ended; there is never a third
_here: list[tuple[Any, tuple]] = []  # loops and types that this process compiles while it waits
_turn = threading.Lock()  # of the threads that wait, one compiles and the others wait for that


def ask(loop: Any, types: tuple) -> None:
    """A loop will be needed for arguments of these types: by a second process, or while this one waits for that."""
    global _helper
    if _helper:
        _here.append((loop, types))
    elif cores() > 1 and sys.executable:  # a program that Python is a part of has none
        root = str(Path(__file__).parents[1])
        code = f"import sys; sys.path.insert(0, {root!r}); from kernels.ahead import serve; serve()"
        with contextlib.suppress(OSError):  # none can be started
            _helper = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE,
                                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            assert _helper.stdin is not None
            pickle.dump((loop.__module__, loop.__name__, types), _helper.stdin)
            _helper.stdin.flush()  # and not closed: that it closes tells the helper that nobody waits


def wait() -> None:
    """Until what was asked for is there, or will never be."""
    with _turn:
        if helper := _helper:
            while _here and helper.poll() is None:
                loop, types = _here.pop(0)
                loop.compile(types)
            _here.clear()
            helper.wait()
            end()


@atexit.register
def end() -> None:
    """Nobody waits for the second process any more."""
    global _helper
    helper, _helper = _helper, None
    if helper:
        helper.kill()
        helper.communicate()


def forget() -> None:
    """In a fork: the second process is the parent's, and so are the threads that wait."""
    global _helper, _turn
    _helper, _turn = None, threading.Lock()
    _here.clear()


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def serve() -> None:
    """The second process: compile what is asked for on standard input, and end at once when that is closed."""
    module, name, types = pickle.load(sys.stdin.buffer)

    def follow() -> None:
        sys.stdin.buffer.read()
        os._exit(0)
    threading.Thread(target=follow, daemon=True).start()
    getattr(importlib.import_module(module), name).compile(types)
