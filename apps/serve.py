"""How does one model serve many?  OpenAI's interface, sessions that learn, and a page to watch them move.

    python -m apps.serve                       the newest run, at http://127.0.0.1:8000
    python -m apps.serve runs/nano-… --port 8001 --origin https://chat.example.org
    HOPE_API_KEY=secret python -m apps.serve   clients must send this key

Learning is off unless a request says `"learn": true` and names a session (field `user` or header
`X-Session`); then what was said is learned when the answer is complete, and only then. The run itself is
never changed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import hmac
import json
import os
import re
import secrets
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import uvicorn
from fastapi import FastAPI, Header, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

import hope
from apps.engine import Busy, Closing, Done, Engine, Event, Failed, Heard, Job, Wrote
from apps.runs import END, TEMPLATE, TURN, Place, Run, Token, Utf8, distances, process_bytes
from apps.schemas import (
    Asked,
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    ErrorBody,
    Name,
    ReadRequest,
    Refused,
    ResetRequest,
    TokenizeRequest,
    spoken,
)
from apps.sessions import Session, Sessions

SAVE_EVERY = 5.0  # seconds between two saves of what sessions have learned
Named = Annotated[Name | None, Header(alias="X-Session")]
Retry = Annotated[str | None, Header(alias="X-Stainless-Retry-Count")]
Key = Annotated[str | None, Header(alias="Idempotency-Key")]
LOCAL = r"https?://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?"


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

    async def events(self) -> AsyncIterator[tuple[int, Event]]:
        """Until all jobs are done; Refused as soon as one has failed."""
        left = len(self.jobs)
        try:
            while left:
                index, event = await self.queue.get()
                if isinstance(event, Failed):
                    closing = isinstance(event.error, Closing)
                    raise Refused(503 if closing else 500, str(event.error) or repr(event.error),
                                  code="closing" if closing else "failed")
                left -= isinstance(event, Done)
                yield index, event
        finally:
            self.cancel()

    async def all(self, request: Request) -> list[tuple[int, Event]]:
        """All events at once, unless the client goes away meanwhile."""
        async def gone() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass
            self.cancel()
        watch = asyncio.create_task(gone())
        try:
            return [event async for event in self.events()]
        finally:
            watch.cancel()


# Tokens to text ---------------------------------------------------------------------------------------------


def spelled(byte: int) -> str:
    """A token as OpenAI writes it, every one differently."""
    return chr(byte) if byte < 128 else f"bytes:\\x{byte:02x}"


class Scribe:
    """One choice: its tokens as text, never half a character, and as log-probabilities in either shape."""

    def __init__(self, chat: bool, logprobs: bool):
        self.chat, self.logprobs, self.text, self.offset = chat, logprobs, Utf8(), 0
        self.waiting: list[Token] = []
        self.offsets: list[int] = []

    def write(self, tokens: Sequence[Token], final: bool = False) -> tuple[str, Any]:
        """What can be sent now: text, and log-probabilities if they were asked for."""
        text = ""
        for token in tokens:
            self.offsets.append(self.offset)
            new = self.text.feed([token.byte])
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
        return text, {"tokens": [spelled(token.byte) for token in tokens],
                      "token_logprobs": [token.log_p for token in tokens],
                      "top_logprobs": [self.likely(token) for token in tokens], "text_offset": offsets}

    @staticmethod
    def one(byte: int, log_p: float | None) -> dict[str, Any]:
        return {"token": spelled(byte), "logprob": log_p, "bytes": [byte]}

    @staticmethod
    def likely(token: Token) -> dict[str, float] | None:
        """The likeliest, and the token itself; None where nothing came before."""
        if token.log_p is None:
            return None
        return {spelled(byte): log_p for byte, log_p in (*token.top, (token.byte, token.log_p))}


def watched(event: Heard | Wrote) -> dict[str, Any]:
    """What there is to see of an event: bytes and surprise, levels that moved, drift of the memories."""
    seen = {"bytes": [token.byte for token in event.tokens], "bits": [token.bits for token in event.tokens]}
    if isinstance(event, Heard):
        seen |= {"from": "prompt" if event.prompt else "learning", "moved": event.moved}
    else:
        seen |= {"from": "answer"}
    return seen | ({"drift": event.drift} if event.drift else {})


# One request, answered at once or as a stream ---------------------------------------------------------------


class Answer:
    """What becomes of a chat or completion request."""

    def __init__(self, asked: Asked, run: Run, feed: Feed, prompts: Sequence[bytes]):
        self.asked, self.feed, self.chat = asked, feed, isinstance(asked, ChatRequest)
        self.echo = bool(getattr(asked, "echo", False))
        logprobs = bool(asked.logprobs) if self.chat else asked.logprobs is not None
        self.scribes = [Scribe(self.chat, logprobs) for _ in feed.jobs]
        self.read, self.n = sum(map(len, prompts)), asked.n or 1
        self.drawn, self.learned = 0, False
        self.head = {"id": ("chatcmpl-" if self.chat else "cmpl-") + secrets.token_hex(12),
                     "object": "chat.completion" if self.chat else "text_completion",
                     "created": int(time.time()), "model": run.name}

    @property
    def usage(self) -> dict[str, int]:
        return {"prompt_tokens": self.read, "completion_tokens": self.drawn,
                "total_tokens": self.read + self.drawn}

    def take(self, index: int, event: Event) -> tuple[str, Any, str | None] | None:
        """What an event adds to its choice: text, log-probabilities, why it ended; None if nothing."""
        if isinstance(event, Done):
            self.drawn += event.drawn
            self.learned |= event.learned
            return *self.scribes[index].write([], final=True), event.reason
        if isinstance(event, Wrote) or (self.echo and isinstance(event, Heard) and event.prompt):
            text, logprobs = self.scribes[index].write(event.tokens)
            return (text, logprobs, None) if text or logprobs else None
        return None

    async def whole(self, request: Request) -> dict[str, Any]:
        texts, ends = [""] * len(self.scribes), [""] * len(self.scribes)
        logprobs: list[Any] = [None] * len(self.scribes)
        seen = []
        for index, event in await self.feed.all(request):
            if isinstance(event, Heard | Wrote) and self.asked.trace:
                seen.append({"index": index, **watched(event)})
            if new := self.take(index, event):
                texts[index] += new[0]
                logprobs[index] = joined(logprobs[index], new[1])
                ends[index] = new[2] or ""
        choices = []
        for index, text in enumerate(texts):
            message = {"role": "assistant", "content": text, "refusal": None}
            choices.append({"index": index, **({"message": message} if self.chat else {"text": text}),
                            "logprobs": logprobs[index], "finish_reason": ends[index]})
        extra = {"hope": {"learned": self.learned, "trace": seen}} if self.asked.trace else (
            {"hope": {"learned": self.learned}} if self.asked.learn else {})
        return {**self.head, "choices": choices, "usage": self.usage, **extra}

    async def stream(self) -> AsyncIterator[str]:
        """Server-sent events: role, content, reasons of the ends, usage if asked for, [DONE]."""
        with_usage = bool(self.asked.stream_options and self.asked.stream_options.include_usage)
        if self.chat:
            self.head["object"] += ".chunk"

        def chunk(index: int, text: str | None, logprobs: Any = None, reason: str | None = None,
                  role: bool = False, **extra: Any) -> str:
            delta = ({"role": "assistant"} if role else {}) | ({"content": text} if text is not None else {})
            said = {"delta": delta} if self.chat else {"text": text or ""}
            choice = {"index": index, **said, "logprobs": logprobs, "finish_reason": reason}
            return sse({**self.head, "choices": [choice], **({"usage": None} if with_usage else {}), **extra})
        try:
            if self.chat:
                for index in range(len(self.scribes)):
                    yield chunk(index, "", role=True)
            async for index, event in self.feed.events():
                shown = self.asked.trace and isinstance(event, Heard | Wrote)
                trace = {"hope": watched(event)} if shown else {}
                new = self.take(index, event)
                text, logprobs, reason = new or ("", None, None)
                if text or logprobs or trace:
                    yield chunk(index, text or None, logprobs, **trace)
                if reason:
                    more = {"hope": {"learned": self.learned}} if self.asked.learn else {}
                    yield chunk(index, None, reason=reason, **more)
            if with_usage:
                yield sse({**self.head, "choices": [], "usage": self.usage})
        except Refused as refused:
            yield sse(refused.body)
        yield "data: [DONE]\n\n"


def joined(old: Any, new: Any) -> Any:
    """Log-probabilities of two parts of a text."""
    if not (old and new):
        return old or new
    return {name: old[name] + new[name] if old[name] is not None else None for name in old}


def sse(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body, separators=(',', ':'))}\n\n"


# The doors --------------------------------------------------------------------------------------------------


class Gate:
    """Before anything is read: the key, the size of the body."""

    def __init__(self, app: Any, key: str, limit: int):
        self.app, self.key, self.limit = app, key.encode(), limit

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        try:
            if self.key and scope["path"] not in ("/", "/health"):
                given = dict(scope["headers"]).get(b"authorization", b"")
                if not hmac.compare_digest(given, b"Bearer " + self.key):
                    raise Refused(401, "a key is needed: send Authorization: Bearer KEY",
                                  code="invalid_api_key")
            body, more = bytearray(), True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return None
                body += message.get("body", b"")
                more = message.get("more_body", False)
                if len(body) > self.limit:
                    raise Refused(413, f"the body is larger than {self.limit:,} bytes", code="body_too_large")
        except Refused as refused:
            return await refusal(refused)(scope, receive, send)
        parts = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def replay() -> Any:
            return parts.pop() if parts else await receive()
        return await self.app(scope, replay, send)


def refusal(refused: Refused) -> JSONResponse:
    return JSONResponse(refused.body, refused.status, refused.headers)


def create(engine: Engine, *, key: str = "", body_limit: int = 1 << 20, longest: int = 4096,
           origins: Sequence[str] = (), verbose: bool = False) -> FastAPI:
    """The application around an engine, which it starts and stops; at the end all sessions are saved."""
    run, sessions = engine.run, engine.sessions
    config = run.model.config

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async def save_now_and_then() -> None:
            while True:
                await asyncio.sleep(SAVE_EVERY)
                await asyncio.to_thread(save)
        engine.start()
        saver = asyncio.create_task(save_now_and_then())
        yield
        saver.cancel()
        await asyncio.to_thread(engine.join)
        await asyncio.to_thread(save)

    def save() -> None:
        try:
            sessions.save()
        except OSError as error:
            print(f"apps.serve: sessions cannot be saved: {error}", file=sys.stderr)

    errors: dict[int | str, Any] = {status: {"model": ErrorBody}
                                    for status in (400, 401, 404, 405, 413, 429, 500, 503)}
    app = FastAPI(title="Hope", version="1", lifespan=lifespan, responses=errors, docs_url=None,
                  redoc_url=None)
    app.add_middleware(Gate, key=key, limit=body_limit)
    app.add_middleware(CORSMiddleware, allow_origins=list(origins), allow_origin_regex=LOCAL,
                       allow_methods=["*"], allow_headers=["*"], expose_headers=["retry-after"])

    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> Response:
        return refusal(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        found = max(error.errors(), key=lambda one: len(one["loc"]))  # of a choice, what came closest
        where = [str(part) for part in found["loc"][1:] if not re.search(r"\W|^(str|int)$", str(part))]
        message = found["msg"].removeprefix("Value error, ")
        return refusal(Refused(400, ": ".join([".".join(where), message] if where else [message]),
                               param=where[0] if where else None))

    @app.exception_handler(HTTPException)
    async def failed(_: Request, error: HTTPException) -> Response:
        found = Refused(error.status_code, str(error.detail))
        return JSONResponse(found.body, error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def broken(_: Request, error: Exception) -> Response:
        return refusal(Refused(500, f"{type(error).__name__}: {error}"))

    # the page, and what there is ----------------------------------------------------------------------------

    @app.get("/", response_class=HTMLResponse)
    async def page() -> Response:
        policy = ("default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
                  "connect-src 'self'; img-src data:")
        html = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
        return HTMLResponse(html, headers={"content-security-policy": policy, "cache-control": "no-cache"})

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "running": len(engine.turns), "waiting": len(engine.queue)}

    def about() -> dict[str, Any]:
        return {"id": run.name, "object": "model", "created": started, "owned_by": "hope",
                "max_model_len": None, "hope": {
                    "parameters": hope.count(config), "mixer": config.mixer, "chunks": list(config.chunks),
                    "segment": config.segment, "process_bytes": process_bytes(),
                    "batch_padding": engine.padding}}
    started = int(time.time())

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [about()]}

    @app.get("/v1/models/{name}")
    async def model(name: str) -> dict[str, Any]:
        if name != run.name:
            raise Refused(404, f"there is no model {name!r}; the only one is {run.name!r}", param="model",
                          code="model_not_found")
        return about()

    # tokens -------------------------------------------------------------------------------------------------

    @app.get("/tokenizer_info")
    async def tokenizer_info() -> dict[str, Any]:
        return {"tokenizer_class": "bytes", "vocab_size": 256, "bos_token": None, "eos_token": chr(END),
                "pad_token": chr(END), "chat_template": TEMPLATE}

    @app.post("/tokenize")
    async def tokenize(asked: TokenizeRequest) -> dict[str, Any]:
        tokens = list((asked.prompt if asked.messages is None else spoken(asked.messages)).encode())
        return {"tokens": tokens, "count": len(tokens), "max_model_len": None}

    @app.post("/detokenize")
    async def detokenize(asked: DetokenizeRequest) -> dict[str, Any]:
        return {"prompt": bytes(asked.tokens).decode("utf-8", "replace")}

    # writing ------------------------------------------------------------------------------------------------

    event = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}
    streams: dict[int | str, Any] = {200: {"content": {"application/json": {},
                                                       "text/event-stream": {"schema": event}}}}

    def session_of(asked: Asked | ReadRequest, named: str | None) -> str:
        name = named or asked.user or ""
        if asked.learn and not name:
            raise Refused(400, "learning needs a session: name one in `user` or in the header X-Session",
                          param="user")
        return name

    async def respond(request: Request, asked: ChatRequest | CompletionRequest, named: str | None,
                      retried: str | None, once: str | None, prompts: Sequence[bytes], default: int, top: int,
                      stops: list[bytes]) -> Response:
        """Check what the description cannot say, hand in the jobs, answer in the way that was asked for."""
        limit = asked.max_completion_tokens if asked.max_completion_tokens is not None else asked.max_tokens
        given = [asked.stop] if isinstance(asked.stop, str) else asked.stop or []
        session = session_of(asked, named)
        body = await request.body()
        if verbose:
            print(body.decode("utf-8", "replace"), flush=True)
        common = {"session": session, "learn": asked.learn, "trace": asked.trace, "top": top,
                  "count": min(default if limit is None else limit, longest),
                  "temperature": 1.0 if asked.temperature is None else asked.temperature,
                  "top_p": asked.top_p or 1.0, "top_k": asked.top_k or 0,
                  "stops": [*stops, *(stop.encode() for stop in given)],
                  "key": once or hashlib.sha256(body).hexdigest(),
                  "retry": bool(once) or (retried or "0") != "0"}
        seed = secrets.randbits(64) if asked.seed is None else asked.seed % 2**64
        scoring = getattr(asked, "echo", False) and getattr(asked, "logprobs", None) is not None
        start = Place(last=None) if not session and isinstance(asked, CompletionRequest) else Place()
        feed = Feed(engine).submit([
            {"prompt": prompt, "seed": [seed, i], "place": start, "aside": bool(scoring), **common}
            for prompt in prompts for i in range(asked.n or 1)])
        answer = Answer(asked, run, feed, prompts)
        if asked.stream:
            return StreamingResponse(answer.stream(), media_type="text/event-stream",
                                     headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        return JSONResponse(await answer.whole(request))

    @app.post("/v1/chat/completions", responses=streams)
    async def chat(request: Request, asked: ChatRequest, named: Named = None, retried: Retry = None,
                   once: Key = None) -> Response:
        top, prompt = (asked.top_logprobs or 0) if asked.logprobs else 0, spoken(asked.messages).encode()
        return await respond(request, asked, named, retried, once, [prompt], 256, top, [TURN])

    @app.post("/v1/completions", responses=streams)
    async def completions(request: Request, asked: CompletionRequest, named: Named = None,
                          retried: Retry = None, once: Key = None) -> Response:
        return await respond(request, asked, named, retried, once, asked.prompts, 16, asked.logprobs or 0, [])

    # reading and sessions -----------------------------------------------------------------------------------

    @app.post("/v1/read", responses=streams)
    async def read(request: Request, asked: ReadRequest, named: Named = None) -> Response:
        """Read a text and tell how surprising each byte was; with `learn`, learn from it."""
        feed = Feed(engine).submit([{"prompt": asked.text.encode(), "session": session_of(asked, named),
                                     "aside": True, "learn": asked.learn, "trace": True}])

        def summary(bits: list[float], done: Done) -> dict[str, Any]:
            return {"bytes": len(bits), "bits_per_byte": sum(bits) / len(bits), "learned": done.learned}

        async def stream() -> AsyncIterator[str]:
            bits: list[float] = []
            try:
                async for _, event in feed.events():
                    if isinstance(event, Heard):
                        bits += [token.bits for token in event.tokens if token.bits is not None]
                    yield sse(summary(bits, event) if isinstance(event, Done) else watched(event))
            except Refused as refused:
                yield sse(refused.body)
            yield "data: [DONE]\n\n"
        if asked.stream:
            return StreamingResponse(stream(), media_type="text/event-stream",
                                     headers={"cache-control": "no-cache"})
        events = [event for _, event in await feed.all(request)]
        seen = [watched(event) for event in events if isinstance(event, Heard)]
        bits = [bit for piece in seen for bit in piece["bits"]]
        return JSONResponse({**summary(bits, events[-1]), "pieces": seen})

    def shown(session: Session | None) -> dict[str, Any]:
        if session is None:
            raise Refused(404, "there is no such session", code="session_not_found")
        state = session.place.state
        return {"id": session.name, "object": "session", "bytes": session.place.nbytes,
                "learned": session.learned, "clock": state.clock if state else 0, "created": session.created,
                "used": session.used}

    @app.get("/v1/sessions")
    async def listed() -> dict[str, Any]:
        return {"object": "list", "data": [shown(session) for session in sessions.list()]}

    @app.get("/v1/sessions/{name}")
    async def one(name: Name) -> dict[str, Any]:
        session = sessions.get(name)
        return shown(session) | {"drift": distances(run.model, session.place.state if session else None)}

    @app.post("/v1/sessions/{name}")
    async def reset(name: Name, asked: ResetRequest) -> dict[str, Any]:
        """Let a session forget its memories, what its levels learned, or both."""
        return shown(sessions.reset(name, asked.reset))

    @app.delete("/v1/sessions/{name}")
    async def delete(name: Name) -> dict[str, Any]:
        if not await asyncio.to_thread(sessions.delete, name):
            shown(None)
        return {"id": name, "object": "session", "deleted": True}
    return app


# The command line -------------------------------------------------------------------------------------------


class Server(uvicorn.Server):
    """A server that ends streams when it is asked to stop, instead of waiting for them."""

    def __init__(self, config: uvicorn.Config, engine: Engine):
        super().__init__(config)
        self.engine = engine

    def handle_exit(self, sig: int, frame: Any) -> None:
        self.engine.close()
        super().handle_exit(sig, frame)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m apps.serve", description=__doc__, allow_abbrev=False,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("run", nargs="?", default="", help="a run's folder [the newest in runs/]")
    made.add_argument("--host", default="127.0.0.1", help="where to listen; 0.0.0.0 = everywhere [127.0.0.1]")
    made.add_argument("--port", type=int, default=8000, help="[8000]")
    made.add_argument("--api-key", default="HOPE_API_KEY", metavar="VARIABLE",
                      help="the environment variable with the key clients must send; unset = none "
                           "[HOPE_API_KEY]")
    made.add_argument("--origin", action="append", default=[], metavar="URL",
                      help="a web page's origin that may ask, besides those on this machine; * = all")
    made.add_argument("--rows", type=int, default=32, help="requests that run side by side [32]")
    made.add_argument("--queue", type=int, default=128, help="requests that may wait; others get 429 [128]")
    made.add_argument("--max-tokens", type=int, default=4096, help="length of an answer, at most [4096]")
    made.add_argument("--max-body", type=int, default=1 << 20, help="bytes of a request, at most [1048576]")
    made.add_argument("--sessions", type=int, default=32, help="how many are kept, the last used ones [32]")
    made.add_argument("--session-days", type=float, default=30, help="days without use until one goes [30]")
    made.add_argument("--verbose", action="store_true", help="log requests with what is in them")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns 0, or 2 for bad input."""
    given = parser().parse_args(arguments)
    try:
        run = Run.open(given.run).of_bytes("served")
    except (ValueError, OSError) as error:
        print(f"apps.serve: error: {error}", file=sys.stderr)
        return 2
    sessions = Sessions(run.folder / "sessions" / "serve", run.fingerprint, given.sessions,
                        given.session_days)
    engine = Engine(run, sessions, given.rows, given.queue)
    key = os.environ.get(given.api_key, "")
    app = create(engine, key=key, body_limit=given.max_body, longest=given.max_tokens, origins=given.origin,
                 verbose=given.verbose)
    config = uvicorn.Config(app, given.host, given.port, log_level="info" if given.verbose else "warning",
                            timeout_graceful_shutdown=5)
    print(f"{run.name} at http://{given.host}:{given.port}  (interface: /v1; key: "
          f"{'needed' if key else 'none'}; sessions: {sessions.folder})", flush=True)
    Server(config, engine).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
