"""Is every rank still there?  Each has a connection to rank 0, beside MPI, which would wait for the lost for ever.

A rank says every second that it is alive, and whether it waits for others; how it ended, if it fails; and goodbye.
Rank 0 tells all others of the first that was lost: one that was killed (its connection is closed), one that is silent,
one that keeps the others waiting (or all wait for each other), one that failed. Then every rank ends at once, and one
of them says which it was, and why.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn, TextIO

from tools import stopping

BEAT = 1.0  # seconds between two signs of life
LOST = 3  # the exit status where a rank was lost, not by what it was told to do


class Watch:
    """What this rank knows of the others."""

    def __init__(self, comm: Any):
        self.comm, self.rank, self.size = comm, comm.Get_rank(), comm.Get_size()
        self.since = 0.0  # when it began to; 0: it does not
        self.over = False  # this rank has said goodbye
        self.lock = threading.Lock()
        self.lines: dict[int, socket.socket] = {}
        self.words: dict[int, TextIO] = {}  # what comes over each

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Within, this rank can do nothing but wait for others."""
        self.since = time.monotonic()
        try:
            yield
        finally:
            self.since = 0.0

    def begin(self, silence: float, patience: float) -> None:
        """Connect all ranks with rank 0."""
        self.silence, self.patience = silence, patience
        if self.size == 1:
            return
        token, door = secrets.token_hex(16), None
        if self.rank == 0:
            door = socket.create_server(("", 0), backlog=self.size)
        name = socket.gethostname()
        where = self.comm.bcast((name, door.getsockname()[1], token) if door else None)
        if door:
            door.settimeout(60)
            while len(self.lines) < self.size - 1:
                line = door.accept()[0]
                line.settimeout(10)
                with suppress(OSError, ValueError, KeyError):
                    words = line.makefile("r", encoding="utf-8")
                    hello = json.loads(words.readline())
                    if hello["token"] == token:
                        self.lines[hello["rank"]], self.words[hello["rank"]] = line, words
            door.close()
        else:
            host = "127.0.0.1" if where[0] == name else where[0]
            self.lines[0] = socket.create_connection((host, where[1]), timeout=60)
            self.words[0] = self.lines[0].makefile("r", encoding="utf-8")
            self.send(0, {"rank": self.rank, "token": where[2]})
        for line in self.lines.values():
            line.settimeout(None)
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.heard = dict.fromkeys(self.lines, time.monotonic())
        self.states: dict[int, dict[str, float]] = {}
        self.gone: set[int] = set()  # ranks that have said goodbye
        for rank in self.lines:
            threading.Thread(target=self.listen, args=(rank,), daemon=True).start()
        threading.Thread(target=self.beat, daemon=True).start()

    def send(self, rank: int, message: dict[str, Any]) -> None:
        with suppress(OSError):
            self.lines[rank].sendall((json.dumps(message) + "\n").encode())

    def beat(self) -> None:
        """Say that this rank is alive; look whether the others are."""
        before = time.monotonic()
        while not self.over:
            waited = time.monotonic() - self.since if self.since else 0.0
            state = {"waited": waited}
            for rank in list(self.lines):
                self.send(rank, state)
            now = time.monotonic()
            if now - before > 3 * BEAT:  # this rank has not had its turn: what the others said is not read yet
                self.heard = dict.fromkeys(self.heard, now)
            before = now
            for rank, heard in self.heard.items():
                if rank not in self.gone and now - heard > self.silence:
                    self.lost(rank, f"nothing was heard of it for {self.silence:g} s")
            if self.rank == 0 and self.size > 1:
                states = {**self.states, 0: state}
                late, times = [r for r, s in states.items() if not s["waited"]], [s["waited"] for s in states.values()]
                if max(times) > self.patience and late and not self.gone:
                    self.lost(late[0], f"the others have been waiting for it for {self.patience:g} s")
                if min(times) > self.patience:
                    self.lost(0, f"all ranks have been waiting for each other for {self.patience:g} s")
            time.sleep(BEAT)

    def listen(self, rank: int) -> None:
        """Hear what a rank says, to its end."""
        with suppress(OSError, ValueError):
            for text in self.words[rank]:
                said = json.loads(text)
                self.heard[rank] = time.monotonic()
                if "waited" in said:
                    self.states[rank] = said
                elif "bye" in said:
                    self.gone.add(rank)
                elif "failed" in said:
                    time.sleep(0.5)  # what all have found rank 0 says for itself
                    self.lost(rank, said["failed"], 1)
                elif "lost" in said:
                    leave("", self.lock, said["code"])
        if rank not in self.gone and not self.over:
            self.lost(rank, "it was killed, or its machine is gone")

    def lost(self, rank: int, why: str, code: int = LOST) -> None:
        """A rank is lost: all end."""
        if self.over:
            return
        text = f"cluster.train: error: rank {rank}: {why.removeprefix('train.py: error: ')}"
        if self.rank == 0:
            for other in self.lines:
                self.send(other, {"lost": rank, "code": code})
            leave(text, self.lock, code)
        elif rank == 0:  # nobody else can tell; the first of the others does
            leave(text if self.rank == 1 else "", self.lock, code)

    def failed(self, error: BaseException) -> int:
        """What nobody has foreseen: print it, and the exit status."""
        if isinstance(error, KeyboardInterrupt):
            return 128 + signal.SIGINT
        if isinstance(error, SystemExit):
            return int(error.code or 0)
        traceback.print_exception(error)
        return 1

    def end(self, code: int, said: str) -> int:
        """Tell the others how it ended: well, or at a signal, all together; or not, and they need not wait."""
        if code in (0, *(128 + number for number in stopping.SIGNALS)):
            for rank in self.lines:
                self.send(rank, {"bye": 0})
            self.over = True
            return code if code == 0 or self.size == 1 else finish(code)
        words = [line for line in said.splitlines() if line.strip()]
        with self.lock:  # nothing else is said from here on
            for rank in self.lines:
                self.send(rank, {"failed": words[-1] if words else f"it ended with status {code}"} if self.rank else
                          {"lost": 0, "code": code})
            self.over = True
            if self.rank:
                time.sleep(1)  # rank 0 says it, and ends all
            return finish(code) if self.size > 1 else code


def leave(text: str, lock: threading.Lock, code: int) -> None:
    """End this rank now, with one line or none."""
    with lock:
        if text:
            with suppress(OSError):
                os.write(2, f"\n{text}\n".encode("utf-8", "backslashreplace"))
        finish(code)


def finish(code: int) -> NoReturn:
    """End without MPI's own end, which waits for all."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(code)
