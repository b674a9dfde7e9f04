"""Who runs the model, when many ask at once?  One thread, and all take turns, a piece or a token at a time.

    engine = Engine(run, sessions).start()
    engine.submit([Job(prompt, …, emit=put)])     emit is called in the model's thread with one event after
    another

A job is a generator: it reads its prompt piece by piece, asks for one prediction after another, and commits
what was learned at its end. Where it pauses, others have their turn; all that wait for a prediction get it in
one batch. Whatever a job computes depends on that job alone, to the last bit: see `runs.padding`. That a session
has learned is said when it is on the disk.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import hope
from apps.runs import Place, Run, Stops, Token, alike, distances, judge, padding, predict, read, without_start
from apps.sessions import NOTHING, Key, Session, Sessions

TRACED = 8  # tokens between two measurements of how far memories have drifted


class Busy(Exception):
    """The queue is full."""


class TooLong(ValueError):
    """The model has no positions for so long a text."""


class Closing(Exception):
    """The server is shutting down."""


# Events, in the order in which a job emits them -------------------------------------------------------------


@dataclass(frozen=True)
class Heard:
    """A piece was read: of the prompt, or of the finished answer to learn from it."""

    tokens: list[Token]
    prompt: bool
    moved: list[int]  # chunk sizes of levels
    drift: dict[str, float] | None = None


@dataclass(frozen=True)
class Wrote:
    """Tokens that belong to the answer for certain."""

    tokens: list[Token]
    drift: dict[str, float] | None = None
    cut: int | None = None  # a stop begins within the last token: only so many of its bytes belong to the answer


@dataclass(frozen=True)
class Done:
    """The end: why, how many tokens were read and drawn, and whether the session learned."""

    reason: str  # stop or length
    read: int
    drawn: int
    learned: bool
    saved: bool = True  # what was learned is on the disk


@dataclass(frozen=True)
class Failed:
    """The end, too early; nothing was learned."""

    error: Exception


Event = Heard | Wrote | Done | Failed


@dataclass(eq=False)
class Job:
    """One sequence to read and go on with."""

    prompt: bytes
    tokens: Sequence[int]  # the same
    emit: Callable[[Event], None]
    count: int = 0  # tokens to write, at most
    place: Place = field(default_factory=Place)  # where reading begins outside a session
    session: Key | None = None
    aside: bool = False  # the text is no continuation of the session's conversation
    anew: bool = False  # what continues nothing that the session heard is read with an empty memory
    learn: bool = False
    key: str = ""  # the same for a request and its retries, which learn once
    retry: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    frequency: float = 0.0  # a token's logit is lower by so much for every time it was drawn before …
    presence: float = 0.0  # … and by so much if it was at all
    bias: Mapping[int, float] = field(default_factory=dict)  # added to logits
    seed: Any = None
    stops: Sequence[bytes] = ()
    top: int = 0  # how many likely tokens to tell
    trace: bool = False  # measure drift
    cancelled: bool = False  # set by whoever no longer wants it; nothing is learned then


Life = Generator[Place | None, Any, None]  # yields a place to be told what follows, None to let others go on


@dataclass(eq=False)
class Turn:
    """A job that has begun."""

    job: Job
    life: Life
    asks: Place | None = None


class Engine:
    """The thread that owns the model."""

    def __init__(self, run: Run, sessions: Sessions, rows: int = 32, waiting: int = 128, fast: bool = False):
        self.run, self.sessions, self.rows, self.waiting = run, sessions, rows, waiting
        self.padding = padding(run.model) or int(fast)  # 0: every sequence goes alone
        self.queue: list[Job] = []
        self.turns: deque[Turn] = deque()
        self.lock, self.wake = threading.Lock(), threading.Event()
        self.closed = False
        self.tokens_read = self.tokens_drawn = self.lessons = 0
        self.thread = threading.Thread(target=self.work, name="model", daemon=True)

    # called from anywhere -----------------------------------------------------------------------------------

    def start(self) -> Engine:
        self.thread.start()
        return self

    def submit(self, jobs: Sequence[Job]) -> None:
        """Take all jobs or none; Busy if others wait already, and the queue has no room for these, too."""
        with self.lock:
            if self.closed:
                raise Closing("the server is shutting down")
            if self.queue and len(self.queue) + len(jobs) > self.waiting:
                raise Busy(f"{len(self.queue)} requests are waiting already; try again in a moment")
            self.queue += jobs
        self.wake.set()

    def close(self) -> None:
        """Let every job end with Failed, once the step that is being computed is done."""
        with self.lock:
            self.closed = True
        self.wake.set()

    def join(self) -> None:
        self.close()
        self.thread.join()

    # called from the model's thread -------------------------------------------------------------------------

    def work(self) -> None:
        """Until closed: admit, let one job that reads have its turn, then predict for all that write."""
        with np.errstate(all="ignore"):  # what is not finite is looked for
            while not self.closed:
                self.admit()
                self.listen()
                self.write()
                if not self.turns:
                    self.wake.wait()
                    self.wake.clear()
        for turn in list(self.turns):
            self.end(turn, Failed(Closing("the server is shutting down")))
        for job in self.queue:
            job.emit(Failed(Closing("the server is shutting down")))

    def admit(self) -> None:
        """Begin with the jobs whose turn it is; to learn, one waits until no other learns in its session."""
        for turn in list(self.turns):
            if turn.job.cancelled:
                self.end(turn, Failed(Closing("cancelled")))
        with self.lock:
            learning = {turn.job.session for turn in self.turns if turn.job.learn}
            waiting = []
            for job in self.queue:
                if job.cancelled:
                    job.emit(Failed(Closing("cancelled")))
                elif len(self.turns) >= self.rows or (job.learn and job.session in learning):
                    waiting.append(job)
                else:
                    learning |= {job.session} if job.learn else set()
                    self.turns.append(Turn(job, self.life(job)))
            self.queue = waiting

    def listen(self) -> None:
        """One more piece for the first job that waits for no prediction; it then stands last in line."""
        turn = next((turn for turn in self.turns if turn.asks is None), None)
        if turn:
            self.turns.remove(turn)
            self.turns.append(turn)
            self.advance(turn, None)

    def write(self) -> None:
        """The next token of every job that waits for one, in one batch for all that are alike."""
        groups: dict[Any, list[tuple[Turn, Place]]] = {}
        asking = [(turn, turn.asks) for turn in self.turns if turn.asks is not None]
        together = self.padding > 1 or (self.padding and len(asking) > 1)
        for turn, place in asking:
            groups.setdefault(alike(self.run.model, place) if together else id(turn), []).append((turn, place))
        for key, group in groups.items():
            places = [place for _, place in group]
            filled = 0 if isinstance(key, int) else -len(places) % self.padding  # a number goes alone
            try:
                found = predict(self.run.model, places + places[:1] * filled)
            except Exception as error:
                for turn, _ in group:
                    self.end(turn, Failed(error))
            else:
                for (turn, _), prediction in zip(group, found, strict=False):
                    self.advance(turn, prediction)

    def advance(self, turn: Turn, prediction: Any) -> None:
        """Let a job go on to where it pauses next."""
        try:
            turn.asks = turn.life.send(prediction)
        except StopIteration:
            self.turns.remove(turn)
        except Exception as error:
            self.end(turn, Failed(error))

    def end(self, turn: Turn, event: Event) -> None:
        self.turns.remove(turn)
        turn.life.close()
        turn.job.emit(event)

    # what a job does ----------------------------------------------------------------------------------------

    def life(self, job: Job) -> Life:
        """Read, write, learn, commit."""
        session = self.sessions.get(job.session) if job.session else None
        owner, name = job.session or ("", "")
        before = session or Session(name, job.place, owner=owner)
        learn = job.learn and not (job.retry and job.key in before.requests)
        words, place = self.run.words, before.place
        text = job.prompt if job.aside else before.unheard(job.prompt)
        whole = len(text) == len(job.prompt)
        if job.anew and whole and before.heard != NOTHING:
            place = before.reset("memory", words.start).place
        tokens = without_start(words, place, job.tokens if whole else words.encode(text).tolist())
        if len(tokens) - (place.last is None) > (left := self.room(place)):
            raise TooLong(f"the text is {len(tokens):,} tokens long, and {self.run.name} can read {left:,} more: give "
                          "a shorter one, or reset the session")
        place = yield from self.hear(job, place, tokens, learn, True)
        if place.last is None:
            place = Place(place.state, words.ends[0])  # there must be something to go on from
        written, reason, drawn = yield from self.answer(job, place)
        if learn:
            place = yield from self.hear(job, place, words.encode(written).tolist(), True, False)
            sent_back = job.prompt + written.decode("utf-8", "replace").encode()
            after = before.after(place, len(text) + len(written), None if job.aside else sent_back, job.key)
            saved = None if job.cancelled else self.sessions.commit(session, after)
            if saved:
                self.lessons += 1
                saved.add_done_callback(lambda found: job.emit(
                    Done(reason, len(job.tokens), drawn, True, found.result())))
                return
        elif session:
            self.sessions.touch(session)
        job.emit(Done(reason, len(job.tokens), drawn, False))

    def room(self, place: Place) -> int:
        """How many more tokens the model has positions for, the last one, unread, among them."""
        model, state = self.run.model, place.state
        past = state.blocks[0].mixer if state else None
        return (model.config.positions or sys.maxsize) - (model.blocks[0].mixer.position(past) if past else 0)

    def hear(self, job: Job, place: Place, tokens: Sequence[int], learn: bool, prompt: bool
             ) -> Generator[None, Any, Place]:
        """Read a text, with a pause after each piece; returns the place after it."""
        for piece in read(self.run.model, place, tokens, learn, job.top):
            place = piece.place
            self.tokens_read += len(piece.tokens)
            drift = distances(self.run.model, place.state) if job.trace else None
            job.emit(Heard(piece.tokens, prompt, piece.moved, drift))
            yield None
        return place

    def answer(self, job: Job, place: Place) -> Generator[Place, Any, tuple[bytes, str, int]]:
        """Write up to `count` tokens or a stop; returns their bytes, why it ended, and how many were drawn."""
        words, rng, stops = self.run.words, np.random.default_rng(job.seed), Stops(job.stops)
        waiting: list[tuple[Token, bytes]] = []
        free, written = 0, bytearray()  # of what waits, the first `free` bytes belong to the answer
        counts = np.zeros(self.run.model.config.vocabulary)
        bias = np.zeros_like(counts)
        bias[list(job.bias)] = list(job.bias.values())
        count = min(job.count, self.room(place))
        for drawn in range(1, count + 1):
            logits, state = yield place
            if not np.all(np.isfinite(logits)):
                raise FloatingPointError("the model's prediction is not finite; reset the session, or take "
                                         "another run")
            chosen = logits + bias - job.frequency * counts - job.presence * (counts > 0)
            token = hope.sample(chosen, rng, job.temperature, job.top_k, job.top_p)
            counts[token] += 1
            self.tokens_drawn += 1
            place = Place(state, token)
            judged, spelled, ended = judge([token], logits[None], job.top), words.spell([token]), token in words.ends
            for byte in spelled:
                free += stops.feed(byte)
                if stops.hit:
                    break
            if not ended or stops.hit:
                waiting += [(one, spelled) for one in judged]
            if not stops.hit and (ended or drawn == count):
                free = sum(len(its) for _, its in waiting)
            n, cut = 0, None
            while n < len(waiting) and len(waiting[n][1]) <= free:
                free -= len(waiting[n][1])
                n += 1
            if stops.hit and free:
                n, cut = n + 1, free
            if n:
                drift = distances(self.run.model, state) if job.trace and drawn % TRACED == 0 else None
                job.emit(Wrote([one for one, _ in waiting[:n]], drift, cut))
                *most, last = [its for _, its in waiting[:n]]
                written += b"".join([*most, last[:cut]])
                del waiting[:n]
            if ended or stops.hit:
                return bytes(written), "stop", drawn
        return bytes(written), "length", count
