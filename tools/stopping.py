"""How is a program asked to stop?  By Ctrl+C, SIGTERM or SIGHUP: once it ends in good order, twice it ends at once.

    with heeded(lambda: "step 3 is saved") as asked:
        ...                     the first signal raises KeyboardInterrupt here,
        with whole():
            ...                 but never here: it waits for the end of this block

Python hands over a signal between two of its own instructions only. While a compiler or a long product does not come
back to it, a thread answers: it ends the program if nothing would be lost, or says that it is going to stop, and ends
it at the second signal. Signals that were ignored from the start (nohup, a shell's background) stay ignored.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
PATIENCE = 0.5  # seconds after which a program that has not stopped yet says that it will


class Asked:
    """Whether a program was asked to stop, and what it has to say then. True once it was."""

    def __init__(self, kept: Callable[[], str], complete: Callable[[], bool]):
        self.kept, self.complete = kept, complete  # what is safe if it ends now, in words; whether that is all
        self.signal = 0
        self.shields = 0  # blocks that must be whole, one in another
        self.held = False  # a signal came within one
        self.over = threading.Event()

    def __bool__(self) -> bool:
        return bool(self.signal)

    @property
    def code(self) -> int:
        """What the program returns, as shells have it."""
        return 128 + (self.signal or signal.SIGINT)

    def note(self, number: int, frame: Any = None) -> None:
        """A signal has come."""
        if self.signal and not hasattr(sys, "ps1"):  # at Python's own prompt only the command ends
            leave(f"stopped at once; {self.kept()}", 128 + number)
        self.signal = number
        if self.shields:
            self.held = True
        else:
            raise KeyboardInterrupt

    def watch(self, ear: socket.socket) -> None:
        """Hear of signals as they come, whatever the main thread is doing; 0 says that all is over."""
        times = 0
        while number := ear.recv(1)[0]:
            if number not in SIGNALS:
                continue
            times += 1
            if self.over.wait(PATIENCE):
                return
            nothing_lost = self.complete() and not self.shields
            if (times > 1 or nothing_lost) and not hasattr(sys, "ps1"):
                leave(f"stopped at once; {self.kept()}", 128 + number)
            say(f"stopping as soon as that can be done; {self.kept()}; once more ends it at once")


current: Asked | None = None


@contextmanager
def heeded(kept: Callable[[], str], complete: Callable[[], bool] = lambda: False) -> Iterator[Asked]:
    """Within, a signal raises KeyboardInterrupt; a second one ends the process, with `kept()` in one line.

    Where `complete()`, nothing is lost by that, and the first one does it, too, if Python does not take it soon.
    """
    global current
    if current is not None:  # one in another: only the words are others
        outer, before = current, (current.kept, current.complete)
        outer.kept, outer.complete = kept, complete
        try:
            yield outer
        finally:
            outer.kept, outer.complete = before
        return
    asked = current = Asked(kept, complete)
    try:
        with listening(asked):
            yield asked
    finally:
        asked.over.set()
        current = None


@contextmanager
def answering(handlers: dict[int, Any]) -> Iterator[None]:
    """Within, signals have these handlers; those that are ignored, as in the background, stay so."""
    before = {}
    with suppress(ValueError):  # not in the main thread
        for number, handler in handlers.items():
            if (was := signal.getsignal(number)) not in (signal.SIG_IGN, None):
                signal.signal(number, handler)
                before[number] = was
    try:
        yield
    finally:
        for number, was in before.items():
            signal.signal(number, was)


@contextmanager
def listening(asked: Asked) -> Iterator[None]:
    """Let signals reach `asked`, as far as this thread may arrange that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ear, mouth = socket.socketpair()
    mouth.setblocking(False)
    watcher = threading.Thread(target=asked.watch, args=(ear,), daemon=True)
    watcher.start()
    waker = signal.set_wakeup_fd(mouth.fileno(), warn_on_full_buffer=False)
    try:
        with answering(dict.fromkeys(SIGNALS, asked.note)):
            yield
    finally:
        signal.set_wakeup_fd(waker)
        asked.over.set()
        with suppress(OSError):
            mouth.send(b"\0")
        watcher.join()
        ear.close()
        mouth.close()


@contextmanager
def shielded() -> Iterator[Asked | None]:
    """A signal that comes meanwhile is held: gives whom it is held for, None where nobody heeds any."""
    asked = current
    if asked is not None:
        asked.shields += 1
    try:
        yield asked
    finally:
        if asked is not None:
            asked.shields -= 1


@contextmanager
def whole() -> Iterator[None]:
    """What stands within is done entirely: a signal that comes meanwhile is raised at its end."""
    with shielded() as asked:
        yield
    if asked is not None and asked.held and not asked.shields:
        asked.held = False
        raise KeyboardInterrupt


def say(text: str) -> None:
    """A line on the screen by the shortest way there is, which no other thread can be in the middle of."""
    with suppress(OSError):
        os.write(2, f"\n{text}\n".encode("utf-8", "backslashreplace"))


def leave(text: str, code: int) -> None:
    """End the process now: one line, no traceback."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # closed, or in the middle of a line
            stream.flush()
    say(text)
    os._exit(code)
