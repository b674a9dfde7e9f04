"""What becomes of the engine's events?  Answers in OpenAI's shapes, whole or as a stream of server-sent events.

    feed = Feed(engine).submit([{"prompt": …, "count": 40}])
    answer = Answer(asked, run, feed, prompts)
    await answer.whole(request)        or answer.stream()

All this is done in the event loop, in small pieces: nobody's long text keeps others waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from fastapi import Request
from fastapi.responses import Response

from apps.engine import Busy, Closing, Done, Engine, Event, Failed, Heard, Job, TooLong, Wrote
from apps.runs import Run, Token, Utf8
from apps.schemas import ChatRequest, CompletionRequest, Refused
from data import Vocabulary

SLICE = 512  # entries of a list that are encoded at once
BYTES = Vocabulary()
FAILED = ((Closing, 503, "closing"), (TooLong, 400, "context_length_exceeded"))

# From the model's thread to a request -----------------------------------------------------------------------


class Feed:
    """The events of a request's jobs, in the order in which they come; whoever leaves it cancels the jobs."""

    def __init__(self, engine: Engine):
        self.engine, self.loop = engine, asyncio.get_running_loop()
        self.queue: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self.jobs: list[Job] = []

    def emit(self, index: int) -> Callable[[Event], None]:
        def put(event: Event) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
                self.loop.call_soon_threadsafe(self.queue.put_nowait, (index, event))
        return put

    def submit(self, jobs: Sequence[dict[str, Any]]) -> Feed:
        """Hand in the jobs; Refused if there is no room."""
        self.jobs = [Job(emit=self.emit(i), **job) for i, job in enumerate(jobs)]
        try:
            self.engine.submit(self.jobs)
        except Busy as busy:
            raise Refused(429, str(busy), code="queue_full") from None
        except Closing as closing:
            raise Refused(503, str(closing), code="closing") from None
        return self

    def cancel(self) -> None:
        for job in self.jobs:
            job.cancelled = True
        self.engine.wake.set()

    async def events(self) -> AsyncIterator[tuple[int, Heard | Wrote | Done]]:
        """Until all jobs are done; Refused as soon as one has failed."""
        left = len(self.jobs)
        try:
            while left:
                index, event = await self.queue.get()
                if isinstance(event, Failed):
                    status, code = next((known[1:] for known in FAILED if isinstance(event.error, known[0])),
                                        (500, "failed"))
                    raise Refused(status, str(event.error) or repr(event.error), code=code)
                left -= isinstance(event, Done)
                yield index, event
                await asyncio.sleep(0)  # others' turn, however many events are waiting
        finally:
            self.cancel()

    async def until_gone(self, request: Request) -> AsyncIterator[tuple[int, Heard | Wrote | Done]]:
        """All events, unless the client goes away meanwhile."""
        async def gone() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass
            self.cancel()
        watch = asyncio.create_task(gone())
        try:
            async for event in self.events():
                yield event
        finally:
            watch.cancel()


# Tokens to text ---------------------------------------------------------------------------------------------


def spelled(token: int, words: Vocabulary = BYTES) -> str:
    """A token as OpenAI writes it: its text, or else its bytes, or its number where it stands for none."""
    spells = words.spell([token])
    try:
        return spells.decode() or f"token_id:{token}"
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spells)


class Scribe:
    """One choice: its tokens as text, never half a character, and as log-probabilities in either shape."""

    def __init__(self, chat: bool, logprobs: bool, words: Vocabulary = BYTES):
        self.chat, self.logprobs, self.words, self.text, self.offset = chat, logprobs, words, Utf8(), 0
        self.waiting: list[Token] = []
        self.offsets: list[int] = []

    def write(self, tokens: Sequence[Token], final: bool = False, cut: int | None = None) -> tuple[str, Any]:
        """What can be sent now: text, with `cut` only so many bytes of its last token; log-probabilities if asked for.
        """
        text = ""
        for i, token in enumerate(tokens, 1):
            self.offsets.append(self.offset)
            new = self.text.feed(self.words.spell([token.byte])[:cut if i == len(tokens) else None])
            self.offset += len(new)
            text += new
        text += self.text.feed(b"", final)
        self.waiting += tokens
        if not text and not final:
            return "", None
        tokens, offsets, self.waiting, self.offsets = self.waiting, self.offsets, [], []
        if not self.logprobs or not tokens:
            return text, None
        if self.chat:
            return text, {"refusal": None, "content": [
                {**self.one(token.byte, token.log_p), "top_logprobs": [self.one(*pair) for pair in token.top]}
                for token in tokens]}
        return text, {"tokens": [spelled(token.byte, self.words) for token in tokens],
                      "token_logprobs": [token.log_p for token in tokens],
                      "top_logprobs": [self.likely(token) for token in tokens], "text_offset": offsets}

    def one(self, token: int, log_p: float | None) -> dict[str, Any]:
        return {"token": spelled(token, self.words), "logprob": log_p, "bytes": list(self.words.spell([token]))}

    def likely(self, token: Token) -> dict[str, float] | None:
        """The likeliest, and the token itself; None where nothing came before."""
        if token.log_p is None:
            return None
        return {spelled(i, self.words): log_p for i, log_p in (*token.top, (token.byte, token.log_p))}


def watched(event: Heard | Wrote, words: Vocabulary = BYTES) -> dict[str, Any]:
    """What there is to see of an event: bytes and their surprise, levels that moved, drift of the memories.

    The surprise of a token is that of its bytes, in equal shares.
    """
    spells = [words.spell([token.byte]) for token in event.tokens]
    if isinstance(event, Wrote) and event.cut:
        spells[-1] = spells[-1][:event.cut]
    seen: dict[str, Any] = {"bytes": list(b"".join(spells)), "bits": [
        None if token.bits is None else token.bits / len(its)
        for token, its in zip(event.tokens, spells, strict=True) for _ in its]}
    if isinstance(event, Heard):
        seen |= {"from": "prompt" if event.prompt else "learning", "moved": event.moved}
    else:
        seen |= {"from": "answer"}
    return seen | ({"drift": event.drift} if event.drift else {})


# One request, answered at once or as a stream ---------------------------------------------------------------


class Answer:
    """What becomes of a chat or completion request."""

    def __init__(self, asked: ChatRequest | CompletionRequest, run: Run, feed: Feed, prompts: Sequence[Sequence[int]]):
        self.asked, self.feed, self.chat, self.words = asked, feed, isinstance(asked, ChatRequest), run.words
        self.echo = isinstance(asked, CompletionRequest) and bool(asked.echo)
        logprobs = bool(asked.logprobs) if isinstance(asked, ChatRequest) else asked.logprobs is not None
        self.scribes = [Scribe(self.chat, logprobs, run.words) for _ in feed.jobs]
        self.read, self.n = sum(map(len, prompts)), asked.n or 1
        self.drawn, self.learned, self.saved = 0, False, True
        self.head: dict[str, Any] = {
            "id": ("chatcmpl-" if self.chat else "cmpl-") + secrets.token_hex(12),
            "object": "chat.completion" if self.chat else "text_completion", "created": int(time.time()),
            "model": run.name}

    @property
    def usage(self) -> dict[str, int]:
        return {"prompt_tokens": self.read, "completion_tokens": self.drawn,
                "total_tokens": self.read + self.drawn}

    @property
    def lesson(self) -> dict[str, bool]:
        return {"learned": self.learned, **({} if self.saved else {"saved": False})}

    def take(self, index: int, event: Heard | Wrote | Done) -> tuple[str, Any, str | None] | None:
        """What an event adds to its choice: text, log-probabilities, why it ended; None if nothing."""
        if isinstance(event, Done):
            self.drawn += event.drawn
            self.learned |= event.learned
            self.saved &= event.saved
            return *self.scribes[index].write([], final=True), event.reason
        if isinstance(event, Wrote) or (self.echo and isinstance(event, Heard) and event.prompt):
            cut = event.cut if isinstance(event, Wrote) else None
            text, logprobs = self.scribes[index].write(event.tokens, cut=cut)
            return (text, logprobs, None) if text or logprobs else None
        return None

    async def whole(self, request: Request) -> dict[str, Any]:
        texts: list[list[str]] = [[] for _ in self.scribes]
        ends = [""] * len(self.scribes)
        logprobs = [Columns() for _ in self.scribes]
        seen: list[Raw] = []
        async for index, event in self.feed.until_gone(request):
            if isinstance(event, Heard | Wrote) and self.asked.trace:
                seen.append(raw({"index": index, **watched(event, self.words)}))
            if new := self.take(index, event):
                texts[index].append(new[0])
                logprobs[index].add(new[1])
                ends[index] = new[2] or ""
        choices = []
        for index, parts in enumerate(texts):
            message = {"role": "assistant", "content": "".join(parts), "refusal": None}
            choices.append({"index": index, **({"message": message} if self.chat else {"text": "".join(parts)}),
                            "logprobs": logprobs[index].whole, "finish_reason": ends[index]})
        extra: dict[str, Any] = {"hope": {**self.lesson, "trace": seen}} if self.asked.trace else (
            {"hope": self.lesson} if self.asked.learn else {})
        return {**self.head, "choices": choices, "usage": self.usage, **extra}

    async def stream(self) -> AsyncIterator[str]:
        """Server-sent events: role, content, reasons of the ends, usage if asked for, [DONE]."""
        with_usage = bool(self.asked.stream_options and self.asked.stream_options.include_usage)
        if self.chat:
            self.head["object"] += ".chunk"

        def chunk(index: int, text: str | None, logprobs: Any = None, reason: str | None = None,
                  role: bool = False, seen: dict[str, Any] | None = None) -> str:
            delta = ({"role": "assistant"} if role else {}) | ({"content": text} if text is not None else {})
            said = {"delta": delta} if self.chat else {"text": text or ""}
            choice = {"index": index, **said, "logprobs": logprobs, "finish_reason": reason}
            more = {**({"usage": None} if with_usage else {}), **({"hope": seen} if seen else {})}
            return sse({**self.head, "choices": [choice], **more})
        try:
            if self.chat:
                for index in range(len(self.scribes)):
                    yield chunk(index, "", role=True)
            async for index, event in self.feed.events():
                seen = (watched(event, self.words) if self.asked.trace and isinstance(event, Heard | Wrote)
                        else None)
                text, logprobs, reason = self.take(index, event) or ("", None, None)
                if text or logprobs or seen:
                    yield chunk(index, text or None, logprobs, seen=seen)
                if reason:
                    yield chunk(index, None, reason=reason, seen=self.lesson if self.asked.learn else None)
            if with_usage:
                yield sse({**self.head, "choices": [], "usage": self.usage})
        except Refused as refused:
            yield sse(refused.body)
        yield "data: [DONE]\n\n"


class Raw(str):
    """JSON that is spelled already: a long answer is kept as few strings, not as many objects."""


def raw(value: Any) -> Raw:
    return Raw(json.dumps(value, separators=(",", ":")))


class Columns:
    """Log-probabilities of a text, part by part."""

    def __init__(self) -> None:
        self.parts: dict[str, list[Raw]] = {}

    def add(self, new: dict[str, Any] | None) -> None:
        for name, values in (new or {}).items():
            self.parts.setdefault(name, []).extend([raw(values)] if values else [])

    @property
    def whole(self) -> dict[str, Any] | None:
        """What OpenAI's interface has there; None if nothing was asked for."""
        joined = {name: Raw("[" + ",".join(part[1:-1] for part in parts) + "]") if parts else None
                  for name, parts in self.parts.items()}
        return joined or None


def sse(body: dict[str, Any]) -> str:
    return f"data: {raw(body)}\n\n"


async def encoded(value: Any) -> str:
    """JSON of something large, a slice at a time, with others' turns in between."""
    if isinstance(value, dict):
        return "{" + ",".join([f"{json.dumps(key)}:{await encoded(its)}" for key, its in value.items()]) + "}"
    if not isinstance(value, list):
        return value if isinstance(value, Raw) else raw(value)
    parts = []
    for i in range(0, len(value), SLICE):
        some = value[i:i + SLICE]
        simple = not any(isinstance(one, dict | list | Raw) for one in some)
        parts += [raw(some)[1:-1]] if simple else [await encoded(one) for one in some]
        await asyncio.sleep(0)
    return "[" + ",".join(parts) + "]"


async def answered(value: dict[str, Any]) -> Response:
    return Response(await encoded(value), media_type="application/json")
