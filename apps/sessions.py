"""What does a conversation leave behind?  A session: a place, by name, replaced and saved as a whole.

    sessions = Sessions(folder, run.fingerprint)     those saved there before
    saved = sessions.commit(before, after)           only if nobody else has changed it meanwhile
    saved.result()                                   True once it is on the disk

A session is a value. Learning makes a new one, which takes the old one's place when all has gone well; a file
is at every moment either the old one or the new one, whole. The one before it is kept beside, to go back to. The
folder keeps all sessions, memory those that were used last.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import queue
import sys
import threading
import time
from collections import OrderedDict
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

import hope
from apps.runs import END, Place
from hope import State
from tools.folder import name_again

DAY = 86400
NOTHING = (0, hashlib.sha256().hexdigest())
Key = tuple[str, str]  # whose it is ("" without keys), and its name


@dataclass(frozen=True)
class Session:
    """A name, the place its conversation has come to, and what was heard up to there (as length and hash)."""

    name: str
    place: Place = field(default_factory=Place)
    heard: tuple[int, str] = NOTHING  # what of the conversation is in the place already
    learned: int = 0  # bytes learned from, all told
    created: float = 0.0
    used: float = 0.0
    requests: tuple[str, ...] = ()  # keys of the last requests that were learned from, for retries
    owner: str = ""  # whose it is
    changes: int = 0  # how often it was replaced: of two changes of one session only the first is taken

    @property
    def key(self) -> Key:
        return self.owner, self.name

    def unheard(self, text: bytes) -> bytes:
        """What of a conversation is not in the place yet: all of it, unless it begins with what was heard."""
        size, digest = self.heard
        return text[size:] if hashlib.sha256(text[:size]).hexdigest() == digest else text

    def after(self, place: Place, learned: int, text: bytes | None = None, key: str = "") -> Session:
        """The session at another place; `text` is the conversation up to there, None if that stood still."""
        now = clock()
        heard = self.heard if text is None else (len(text), hashlib.sha256(text).hexdigest())
        return replace(self, place=place, heard=heard, learned=self.learned + learned, created=self.created or now,
                       used=now, requests=(*self.requests, key)[-16:] if key else self.requests,
                       changes=self.changes + 1)

    def reset(self, what: str = "all", start: int | None = END) -> Session:
        """The session without its memories ("memory"), what levels learned ("levels"), or both ("all").

        Without memories it stands after `start`, where a text begins.
        """
        next_one = replace(self, changes=self.changes + 1)
        if what == "all" or self.place.state is None:
            return replace(next_one, place=Place(last=start), heard=NOTHING, learned=0, requests=())
        state = self.place.state.reset(what)
        if what == "levels":
            return replace(next_one, place=Place(state, self.place.last))
        return replace(next_one, place=Place(state, start), heard=NOTHING)

    def about(self) -> dict[str, Any]:
        """What a list of sessions shows."""
        state = self.place.state
        return {"bytes": self.place.nbytes, "clock": state.clock if state else 0, "learned": self.learned,
                "created": self.created, "used": self.used}

    def save(self, folder: Path, fingerprint: str) -> Path:
        """Write the session beside its file, then rename it."""
        about = {**vars(self), "place": None, "last": self.place.last, "model": fingerprint, "shown": self.about()}
        folder.mkdir(parents=True, exist_ok=True)
        path = file_of(folder, self.name, self.owner)
        hope.write_npz(path, {"session": np.array(json.dumps(about)),
                              **(self.place.state.pack() if self.place.state else {})})
        os.utime(path, (self.used, self.used))
        return path

    @classmethod
    def load(cls, path: Path, fingerprint: str) -> Session:
        """Read what `save` wrote; ValueError for anything else, and for a session with another model."""
        about, state = header(path, fingerprint, whole=True)
        del about["model"], about["shown"]
        last = about.pop("last")
        try:
            return cls(**about | {"place": Place(state, last), "heard": tuple(about["heard"]),
                                  "requests": tuple(about["requests"]), "used": used(path)})
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a readable session ({type(error).__name__}: {error})") from error


def clock() -> float:
    """Now, in seconds; as exact as files keep it."""
    return round(time.time(), 3)


def used(path: Path) -> float:
    """When the session in a file was last used: the file's time."""
    return round(path.stat().st_mtime, 3)


def header(path: Path, fingerprint: str, whole: bool = False) -> tuple[dict[str, Any], State | None]:
    """What a session's file says of it, and with `whole` its state; ValueError unless it is this model's."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            about = {"shown": {}, **json.loads(str(arrays["session"]))}
            state = State.unpack(arrays) if whole and "state" in arrays else None
        model, name = about["model"], about["name"]
    except FileNotFoundError:
        raise ValueError(f"there is no session {path}") from None
    except Exception as error:
        raise ValueError(f"{path} is not a readable session ({type(error).__name__}: {error})") from error
    if model != fingerprint:
        raise ValueError(f"session {name!r} in {path} belongs to another model, or to this one before it was trained "
                         "further")
    return about, state


def file_of(folder: Path, name: str, owner: str = "") -> Path:
    """Where a session is saved: a hash of its name, which cannot lead out of the folder."""
    text = f"{owner}\n{name}" if owner else name
    return folder / f"{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}.npz"


def before(path: Path) -> Path:
    """Where the session is kept that was in a file before the one that is there now."""
    return path.with_suffix(".before")


def set_aside(path: Path) -> Path:
    """Give a session's file, and that of the one before it, names that no session has."""
    free = next(n for n in itertools.count(1) if not path.with_suffix(f".other-{n}").exists())
    if before(path).exists():
        os.replace(before(path), path.with_suffix(f".other-{free}-before"))
    other = path.with_suffix(f".other-{free}")
    os.replace(path, other)
    return other


def saved_in(folder: Path, fingerprint: str) -> dict[Key, dict[str, Any]]:
    """What is known of all sessions in a folder, the last used first; others are named on the screen and left alone."""
    found = {}
    for path in sorted(folder.glob("*.npz"), key=used, reverse=True):
        try:
            about, _ = header(path, fingerprint)
        except ValueError as error:
            print(f"left alone: {error}", file=sys.stderr)
            continue
        rest = {"bytes": path.stat().st_size, "clock": 0, "learned": about["learned"], "created": about["created"]}
        found[about.get("owner", ""), about["name"]] = {**rest, **about["shown"], "used": used(path)}
    return found


class Sessions:
    """All sessions of a server; may be used from any thread. A thread of its own writes, in the order of changes."""

    def __init__(self, folder: Path, fingerprint: str, limit: int = 32, days: float = 30, start: int | None = END):
        self.folder, self.fingerprint, self.limit, self.days = folder, fingerprint, limit, days
        self.start = start  # the token after which a text begins
        self.lock = threading.Lock()  # of what is in memory
        self.files = threading.Lock()  # of what is in the folder; taken first where both are
        self.memory: OrderedDict[Key, Session] = OrderedDict()  # the last used last
        self.known = saved_in(folder, fingerprint)
        ours = {file_of(folder, name, owner) for owner, name in self.known}
        self.strange = set(folder.glob("*.npz")) - ours  # of another model, or damaged: nothing takes their place
        self.writing: dict[Key, int] = {}  # how many versions of a session have not been written yet
        self.unsaved: set[Key] = set()  # those whose last version could not be written
        self.jobs: queue.SimpleQueue[tuple[Session | None, bool, Future[bool]] | None] = queue.SimpleQueue()
        self.problem = ""  # why some of them could not
        self.failures = self.evicted = 0
        self.writer = threading.Thread(target=self.write, name="sessions", daemon=True)
        self.writer.start()

    # looking ------------------------------------------------------------------------------------------------

    def get(self, key: Key) -> Session | None:
        """The session, from memory or from its file; ValueError if that is damaged."""
        with self.lock:
            if key in self.memory:
                self.memory.move_to_end(key)
                return self.memory[key]
            if key not in self.known:
                return None
        with self.files:
            with self.lock:
                if key in self.memory or key not in self.known:
                    return self.memory.get(key)
            found = Session.load(file_of(self.folder, key[1], key[0]), self.fingerprint)
            with self.lock:
                self.hold(found)
        return found

    def list(self, owner: str = "") -> list[tuple[str, dict[str, Any]]]:
        """Names of an owner's sessions and what is known of them, the last used first."""
        with self.lock:
            found = [(name, about) for (whose, name), about in self.known.items() if whose == owner]
        return sorted(found, key=lambda one: -one[1]["used"])

    # changing -----------------------------------------------------------------------------------------------

    def commit(self, old: Session | None, new: Session, undone: bool = False) -> Future[bool] | None:
        """Put a session in another's place; None if that is no longer as it was (or, for None, if there is one).

        The future is True once the new one is on the disk, False if it could not be written.
        """
        now = self.get(new.key)
        with self.lock:
            now = self.memory.get(new.key, now) if new.key in self.known else None
            if (now and (now.created, now.changes)) != (old and (old.created, old.changes)):
                return None
            return self.send(new, undone)

    def send(self, session: Session, undone: bool = False) -> Future[bool]:
        """Hand a session to the writer."""
        saved: Future[bool] = Future()
        self.writing[session.key] = self.writing.get(session.key, 0) + 1
        self.hold(session)
        self.jobs.put((session, undone, saved))
        return saved

    def hold(self, session: Session) -> None:
        """Keep a session in memory, and let go of those that were not used for longest and are on the disk."""
        self.memory[session.key] = session
        self.memory.move_to_end(session.key)
        self.known[session.key] = session.about()
        saved = [key for key in self.memory
                 if key not in self.writing and key not in self.unsaved and key != session.key]
        for key in saved[:max(0, len(self.memory) - self.limit)] if self.limit else ():
            del self.memory[key]
            self.evicted += 1

    def touch(self, session: Session) -> None:
        """Note that a session was used just now."""
        now = clock()
        with self.lock:
            if session.key not in self.known:
                return
            self.known[session.key]["used"] = now
            if session.key in self.memory:
                self.memory[session.key] = replace(self.memory[session.key], used=now)
        path = file_of(self.folder, session.name, session.owner)
        try:
            os.utime(path, (now, now))
        except OSError:  # not written yet: then the time is in it
            return

    def reset(self, key: Key, what: str) -> Future[bool] | None:
        """Make a session forget, or ("last") go back to before its last change; None if there is none of this name.

        LookupError if there is nothing to go back to.
        """
        while session := self.get(key):
            old = session.reset(what, self.start) if what != "last" else self.undone(session)
            if saved := self.commit(session, old, undone=what == "last"):
                return saved  # else somebody has changed it meanwhile: then it is that which is reset
        return None

    def undone(self, session: Session) -> Session:
        """The session as it was before its last change; LookupError if that is not known."""
        self.flush()  # the version before this one may be on its way to the disk
        path = before(file_of(self.folder, session.name, session.owner))
        if not path.exists():
            raise LookupError("there is nothing to undo")
        return replace(Session.load(path, self.fingerprint), changes=session.changes + 1, used=clock(),
                       created=session.created)

    def delete(self, key: Key) -> bool:
        """Remove a session and its files; False if there is none of this name."""
        with self.files:
            with self.lock:
                known = key in self.known
            if known:  # what cannot be removed is not forgotten
                path = file_of(self.folder, key[1], key[0])
                for old in (path, before(path)) if path not in self.strange else ():  # those are another model's
                    old.unlink(missing_ok=True)
            with self.lock:
                self.known.pop(key, None)
                self.memory.pop(key, None)
                self.unsaved.discard(key)
        return known

    def sweep(self) -> int:
        """Remove what was not used for too long; how many those were."""
        with self.lock:
            old = [key for key, about in self.known.items() if clock() - about["used"] > self.days * DAY]
        return len([key for key in old if self.delete(key)]) if self.days > 0 else 0

    # writing ------------------------------------------------------------------------------------------------

    def write(self) -> None:
        """The writer's life: one version after another, each with the one before it kept beside."""
        while job := self.jobs.get():
            session, undone, saved = job
            if session is None:
                saved.set_result(True)
                continue
            error: Exception | None = None
            try:
                with self.files:
                    with self.lock:
                        known = self.known.get(session.key)
                        wanted = known and known["created"] == session.created  # else it was deleted meanwhile
                    if wanted:
                        self.store(session, undone)
            except Exception as found:  # whatever it was, the next one may be written
                error = found
            with self.lock:
                self.writing[session.key] -= 1
                if not self.writing[session.key]:
                    del self.writing[session.key]
                if error:
                    self.unsaved.add(session.key)
                    self.problem, self.failures = f"sessions cannot be saved: {error}", self.failures + 1
                else:
                    self.unsaved.discard(session.key)
                    self.problem = self.problem if self.unsaved else ""
            if error:
                with suppress(OSError):  # where the log is on the same full disk
                    print(f"apps.serve: {self.problem}", file=sys.stderr, flush=True)
            saved.set_result(error is None)

    def store(self, session: Session, undone: bool) -> None:
        path = file_of(self.folder, session.name, session.owner)
        old = before(path)
        if undone:
            session.save(self.folder, self.fingerprint)
            old.unlink(missing_ok=True)
            return
        if path in self.strange and path.exists():
            print(f"apps.serve: another model's session {session.name!r} is now {set_aside(path)}", file=sys.stderr)
        self.strange.discard(path)
        if path.exists():
            name_again(path, old)
        else:
            empty = Session(session.name, Place(last=self.start), created=session.created, used=session.used,
                            owner=session.owner)
            os.replace(empty.save(self.folder, self.fingerprint), old)
        session.save(self.folder, self.fingerprint)

    def flush(self) -> None:
        """Return when all that was committed before is written, or could not be."""
        done: Future[bool] = Future()
        self.jobs.put((None, False, done))
        done.result()

    def retry(self) -> None:
        """Try once more to write what could not be written."""
        with self.lock:
            for key in self.unsaved - set(self.writing):
                if key in self.memory:
                    self.send(self.memory[key])

    def close(self) -> None:
        """Write what is left, and end."""
        self.retry()
        self.jobs.put(None)
        self.writer.join()
