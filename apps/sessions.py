"""What does a conversation leave behind?  A session: a place, by name, replaced and saved as a whole.

    sessions = Sessions(folder, run.fingerprint)     those saved there before
    sessions.commit(before, after)                   only if nobody else has changed it meanwhile

A session is a value. Learning makes a new one, which takes the old one's place when all has gone well; a file
is at every moment either the old one or the new one, whole.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

import hope
from apps.runs import END, Place
from hope import State

DAY = 86400
NOTHING = (0, hashlib.sha256().hexdigest())


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

    def unheard(self, text: bytes) -> bytes:
        """What of a conversation is not in the place yet: all of it, unless it begins with what was heard."""
        size, digest = self.heard
        return text[size:] if hashlib.sha256(text[:size]).hexdigest() == digest else text

    def after(self, place: Place, learned: int, text: bytes | None = None, key: str = "") -> Session:
        """The session at another place; `text` is the conversation up to there, None if that stood still."""
        now = time.time()
        heard = self.heard if text is None else (len(text), hashlib.sha256(text).hexdigest())
        return replace(self, place=place, heard=heard, learned=self.learned + learned,
                       created=self.created or now, used=now,
                       requests=(*self.requests, key)[-16:] if key else self.requests)

    def reset(self, what: str = "all") -> Session:
        """The session without its memories ("memory"), what levels learned ("levels"), or both ("all")."""
        if what == "all" or self.place.state is None:
            return Session(self.name, created=self.created, used=self.used)
        state = self.place.state.reset(what)
        if what == "levels":
            return replace(self, place=Place(state, self.place.last))
        return replace(self, place=Place(state, END), heard=NOTHING)

    def save(self, folder: Path, fingerprint: str) -> Path:
        """Write the session beside its file, then rename it."""
        about = {**vars(self), "place": None, "last": self.place.last, "model": fingerprint}
        folder.mkdir(parents=True, exist_ok=True)
        path = file_of(folder, self.name)
        hope.write_npz(path, {"session": np.array(json.dumps(about)),
                              **(self.place.state.pack() if self.place.state else {})})
        return path

    @classmethod
    def load(cls, path: Path, fingerprint: str) -> Session:
        """Read what `save` wrote; ValueError for anything else, and for a session with another model."""
        try:
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
                about = json.loads(str(arrays["session"]))
                state = State.unpack(arrays) if "state" in arrays else None
            model, last = about.pop("model"), about.pop("last")
            found = cls(**about | {"place": Place(state, last), "heard": tuple(about["heard"]),
                                   "requests": tuple(about["requests"])})
        except FileNotFoundError:
            raise ValueError(f"there is no session {path}") from None
        except Exception as error:
            raise ValueError(f"{path} is not a readable session ({type(error).__name__}: {error})") from error
        if model != fingerprint:
            raise ValueError(f"session {found.name!r} in {path} belongs to another model, or to this one "
                             "before it was trained further")
        return found


def file_of(folder: Path, name: str) -> Path:
    """Where a session is saved: a hash of its name, which cannot lead out of the folder."""
    return folder / f"{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}.npz"


class Sessions:
    """All sessions of a server, bounded in number and age; may be used from any thread."""

    def __init__(self, folder: Path, fingerprint: str, limit: int = 32, days: float = 30):
        self.folder, self.fingerprint, self.limit, self.days = folder, fingerprint, limit, days
        self.lock = threading.Lock()  # of what is in memory
        self.files = threading.Lock()  # of what is in the folder; taken first where both are
        self.all: dict[str, Session] = {}
        self.unsaved: set[str] = set()
        for path in sorted(folder.glob("*.npz")):
            try:
                found = Session.load(path, fingerprint)
                self.all[found.name] = found
            except ValueError as error:
                print(f"left alone: {error}", file=sys.stderr)

    def get(self, name: str) -> Session | None:
        return self.all.get(name)

    def list(self) -> list[Session]:
        """The last used first."""
        with self.lock:
            return sorted(self.all.values(), key=lambda session: -session.used)

    def commit(self, before: Session | None, after: Session) -> bool:
        """Put a session in another's place, if it is still there as it was (None: if there still is none)."""
        with self.lock:
            now = self.all.get(after.name)
            if (now and now.place) is not (before and before.place):
                return False
            self.all[after.name] = after
            self.unsaved.add(after.name)
            return True

    def touch(self, session: Session) -> None:
        """Note that a session was used just now."""
        with self.lock:
            if session.name in self.all:
                self.all[session.name] = replace(self.all[session.name], used=time.time())

    def reset(self, name: str, what: str) -> Session | None:
        """Make a session forget; None if there is none of this name."""
        with self.lock:
            if name not in self.all:
                return None
            self.all[name] = self.all[name].reset(what)
            self.unsaved.add(name)
            return self.all[name]

    def delete(self, name: str) -> bool:
        """Remove a session and its file; False if there is none of this name."""
        with self.files:
            with self.lock:
                known = self.all.pop(name, None)
                self.unsaved.discard(name)
            if known:
                file_of(self.folder, name).unlink(missing_ok=True)
        return known is not None

    def save(self) -> None:
        """Drop what is too old or too many, and write what has changed; OSError where that cannot be."""
        for i, session in enumerate(self.list()):
            if i >= self.limit or time.time() - session.used > self.days * DAY:
                self.delete(session.name)
        with self.files:
            with self.lock:
                changed = [self.all[name] for name in self.unsaved]
            for session in changed:
                session.save(self.folder, self.fingerprint)
                with self.lock:
                    if self.all.get(session.name) is session:
                        self.unsaved.discard(session.name)
