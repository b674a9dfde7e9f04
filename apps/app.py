"""What does the server answer?  The application: a page, OpenAI's interface, reading, sessions, health and counts.

    app = create([engine])    for any ASGI server; it starts the engines, and saves the sessions at the end

Requests say by `model` which run is meant; none is the first.
"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import gc
import hashlib
import json
import re
import secrets
import sys
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Header, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

import hope
from apps import reference
from apps.about import About, facts
from apps.answers import Answer, Feed, answered, raw, sse, watched
from apps.engine import Done, Engine
from apps.gate import LOCAL, Gate, Rules, refusal
from apps.record import Record, problem
from apps.runs import LEARN, TEMPLATE, TURN, Place, Run, distances, process_bytes
from apps.schemas import (
    Asked,
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    ErrorBody,
    Message,
    Name,
    ReadRequest,
    Refused,
    ResetRequest,
    TokenizeRequest,
    Unsupported,
    spoken,
)
from apps.sessions import Key

RETRY_EVERY = 5.0  # seconds until what could not be saved is tried once more
SWEEP_EVERY = 3600.0  # seconds between two looks for sessions that nobody has used for long
PAGE = Path(__file__).parent / "page"
KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
POLICY = ("default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src data:; "
          "base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
Named = Annotated[Name | None, Header(alias="X-Session")]
Retry = Annotated[str | None, Header(alias="X-Stainless-Retry-Count")]
Once = Annotated[str | None, Header(alias="Idempotency-Key")]
ELSEWHERE = {  # what other servers and newer interfaces have, and what is nearest to it here
    "/v1/responses": "/v1/chat/completions", "/responses": "/v1/chat/completions", "/api/chat": "/v1/chat/completions",
    "/v1/messages": "/v1/chat/completions", "/api/generate": "/v1/completions", "/generate": "/v1/completions",
    "/completion": "/v1/completions", "/infill": "/v1/completions", "/models": "/v1/models", "/api/tags": "/v1/models"}


def in_utf8(header: str) -> str:
    """A header, read as UTF-8 where it is; HTTP has it as Latin-1."""
    try:
        return header.encode("latin-1").decode()
    except UnicodeError:
        return header


def after_message(run: Run) -> int:
    """Bytes of a conversation, as the model reads it, between its last message and the answer; 0 if nobody can say."""
    try:
        text = spoken([Message(role="user", content="?")], run.words)
    except Refused:
        return 0
    return run.words.count(run.words.encode(text.rpartition("?")[2].encode()))


def create(engines: Sequence[Engine], *, keys: Sequence[str] = (), hosts: Sequence[str] = (),
           origins: Sequence[str] = (), body_limit: int = 1 << 20, longest: int = 4096, verbose: bool = False,
           log: bool = False, address: str = "http://127.0.0.1:8000") -> Record:
    """The application around engines, which it starts and stops; at the end all sessions are saved."""
    by_name = {engine.run.name: engine for engine in engines}
    trained, started = {name: About.of(engine.run.folder) for name, engine in by_name.items()}, int(time.time())
    tails = {name: after_message(engine.run) for name, engine in by_name.items()}

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async def every(seconds: float, what: Any) -> None:
            while True:
                try:
                    await asyncio.to_thread(what)
                except Exception as error:  # the next time it may go
                    with contextlib.suppress(OSError):
                        print(f"apps.serve: {error}", file=sys.stderr, flush=True)
                await asyncio.sleep(seconds)

        def sweep() -> None:
            for sessions in (engine.sessions for engine in engines):
                if gone := sessions.sweep():
                    print(f"apps.serve: removed {gone} sessions, not used for {sessions.days:g} days", flush=True)

        def retry() -> None:
            for engine in engines:
                engine.sessions.retry()
        gc.collect()
        gc.freeze()  # what is loaded stays: the collector looks at requests only, and holds them for no time
        for engine in engines:
            engine.start()
        chores = [asyncio.create_task(every(RETRY_EVERY, retry)),
                  asyncio.create_task(every(SWEEP_EVERY, sweep))]
        yield
        for chore in chores:
            chore.cancel()
        for engine in engines:
            engine.close()
        for engine in engines:
            await asyncio.to_thread(engine.join)
            await asyncio.to_thread(engine.sessions.close)

    errors: dict[int | str, Any] = {status: {"model": ErrorBody}
                                    for status in (400, 401, 403, 404, 405, 409, 413, 415, 421, 429, 500, 503)}
    app = FastAPI(title="Hope", version="1", lifespan=lifespan, responses=errors, docs_url=None, redoc_url=None)
    app.add_middleware(Gate, rules=Rules(tuple(keys), tuple(hosts), tuple(origins), body_limit))
    app.add_middleware(CORSMiddleware, allow_origins=list(origins), allow_origin_regex=LOCAL, allow_methods=["*"],
                       allow_headers=["*"], expose_headers=["retry-after", "x-request-id"])
    record = Record(app, engines, log)

    # errors -------------------------------------------------------------------------------------------------

    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> Response:
        return refusal(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        # of a choice, what came closest: what is deepest, and of the right kind
        found = max(error.errors(), key=lambda one: (len(one["loc"]), not one["type"].endswith("_type")))
        if found["type"] == "json_invalid":
            why, at = found["ctx"]["error"], found["loc"][-1]
            return refusal(Refused(400, f"the body is not JSON: {why} at character {at}"))
        if found["loc"] == ("body",) and found["type"] == "missing":
            return refusal(Refused(400, "the body is empty; it must be a JSON object, see GET /docs"))
        where = [str(part) for part in found["loc"][1:] if not re.search(r"\W|^(str|int)$", str(part))]
        cause = found.get("ctx", {}).get("error")
        if isinstance(cause, Unsupported):
            where = [cause.name]
            return refusal(Refused(400, str(cause), param=cause.name, code="unsupported_parameter"))
        message = found["msg"].removeprefix("Value error, ")
        return refusal(Refused(400, ": ".join([".".join(where), message] if where else [message]),
                               param=where[0] if where else None))

    @app.exception_handler(HTTPException)
    async def failed(request: Request, error: HTTPException) -> Response:
        message = nowhere(request.url.path) if error.status_code == 404 else str(error.detail)
        return JSONResponse(Refused(error.status_code, message).body, error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def broken(_: Request, error: Exception) -> Response:
        return refusal(Refused(500, f"{type(error).__name__}: {error}"))

    def nowhere(path: str) -> str:
        """What to say of a path that is none of ours."""
        paths = list(described["paths"])
        there = ELSEWHERE.get(path.rstrip("/")) or next(iter(
            [one for one in paths if one == "/v1" + path] or difflib.get_close_matches(path, paths, 1, 0.8)), "")
        if "embedding" in path:
            return "this model gives no embeddings; GET /docs tells what can be asked"
        return f"there is nothing at {path}; " + (f"use {there}" if there else "GET /docs tells what can be asked")

    # the page, and what there is ----------------------------------------------------------------------------

    @app.get("/", response_class=HTMLResponse)
    async def page() -> Response:
        """The page."""
        return await part("index.html")

    @app.get("/page/{name}", include_in_schema=False)
    async def part(name: str) -> Response:
        """What the page is made of."""
        if name not in {path.name for path in PAGE.iterdir() if path.suffix in KINDS}:
            raise Refused(404, f"the page has no part {name!r}")
        text = (PAGE / name).read_text(encoding="utf-8")
        return Response(text, media_type=KINDS[Path(name).suffix],
                        headers={"content-security-policy": POLICY, "cache-control": "no-cache"})

    @app.get("/health")
    async def health() -> dict[str, Any]:
        """Whether the process answers."""
        return {"status": "ok", "running": sum(len(engine.turns) for engine in engines),
                "waiting": sum(len(engine.queue) for engine in engines)}

    @app.get("/ready")
    async def ready() -> dict[str, Any]:
        """Whether it should be asked: 503 while sessions cannot be saved, or at the end."""
        if why := problem(engines):
            raise Refused(503, why, code="not_ready")
        return {"status": "ready"}

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Counts, in the text format of Prometheus."""
        return Response(record.metrics(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/docs", response_class=HTMLResponse)
    async def docs() -> Response:
        """This page."""
        text = reference.page(described, f"Hope, {', '.join(by_name)}", address, bool(keys))
        return HTMLResponse(text, headers={"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; "
                                                                      "frame-ancestors 'none'"})

    def about(engine: Engine) -> dict[str, Any]:
        run, config = engine.run, engine.run.model.config
        return {"id": run.name, "object": "model", "created": started, "owned_by": "hope",
                "max_model_len": config.positions or None,
                "hope": {"parameters": hope.count(config), "mixer": config.mixer, "chunks": list(config.chunks),
                         "segment": config.segment, "tick": LEARN, "trained": facts(trained[run.name]),
                         "unit": run.words.unit, "taught": run.words.taught, "tail": tails[run.name],
                         "process_bytes": process_bytes(), "batch_padding": engine.padding}}

    def chosen(name: str | None) -> Engine:
        """The engine of the model that is meant; none means the first. Refused if there is no such model."""
        if name and name not in by_name:
            raise Refused(404, f"there is no model {name!r}; there is {', '.join(map(repr, by_name))}", param="model",
                          code="model_not_found")
        return by_name[name] if name else engines[0]

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The models that are served, the first of which is meant where none is named."""
        return {"object": "list", "data": [about(engine) for engine in engines]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        """The model of this name."""
        return about(chosen(name))

    # tokens -------------------------------------------------------------------------------------------------

    async def told(run: Run, given: str | list[int], param: str = "prompt") -> tuple[bytes, Sequence[int]]:
        """A text, or token ids, as bytes and as tokens; Refused if there is no such token."""
        words, size = run.words, run.model.config.vocabulary
        if not isinstance(given, str):
            if given and max(given) >= size:
                raise Refused(400, f"{param} has the token {max(given)}; those of {run.name} are 0 to {size - 1}",
                              param=param)
            return words.spell(given), given
        text = given.encode()
        return text, text if words.unit == "byte" else (await asyncio.to_thread(words.encode, text)).tolist()

    @app.get("/tokenizer_info")
    async def tokenizer_info(model: str = "") -> dict[str, Any]:
        """What tokens are: bytes, or those of shards or of an adopted model."""
        words = chosen(model).run.words
        marks = getattr(words, "marks", {"bos_token": None, "eos_token": words.spell(words.ends[:1]).decode()})
        return {"tokenizer_class": f"{words.unit}s", "vocab_size": words.size, **marks,
                "pad_token": marks["eos_token"], "chat_template": getattr(words, "template", None) or TEMPLATE}

    @app.post("/tokenize")
    async def tokenize(asked: TokenizeRequest) -> Response:
        """The tokens of a text, or of a conversation as the model sees it."""
        run = chosen(asked.model).run
        text = spoken(asked.messages or [], run.words) if asked.prompt is None else asked.prompt
        _, tokens = await told(run, text)
        return await answered({"tokens": list(tokens), "count": len(tokens),
                               "max_model_len": run.model.config.positions or None})

    @app.post("/detokenize")
    async def detokenize(asked: DetokenizeRequest) -> Response:
        """The text of tokens."""
        text, _ = await told(chosen(asked.model).run, asked.tokens, "tokens")
        return await answered({"prompt": text.decode("utf-8", "replace")})

    # writing ------------------------------------------------------------------------------------------------

    event = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}
    streams: dict[int | str, Any] = {200: {"content": {"application/json": {},
                                                       "text/event-stream": {"schema": event}}}}

    def session_of(request: Request, asked: Asked | ReadRequest, named: str | None) -> Key | None:
        name = in_utf8(named or "") or asked.user or ""
        if asked.learn and not name:
            raise Refused(400, "learning needs a session: name one in `user` or in the header X-Session",
                          param="user")
        return (request.scope["owner"], name) if name else None

    def streamed(events: AsyncIterator[str]) -> Response:
        return StreamingResponse(events, media_type="text/event-stream",
                                 headers={"cache-control": "no-cache", "x-accel-buffering": "no"})

    async def respond(request: Request, asked: ChatRequest | CompletionRequest, named: str | None,
                      retried: str | None, once: str | None, engine: Engine, given_prompts: Sequence[str | list[int]],
                      default: int, top: int, stops: list[bytes]) -> Response:
        """Check what the description cannot say, hand in the jobs, answer in the way that was asked for."""
        run = engine.run
        bias = {int(token): value for token, value in (asked.logit_bias or {}).items()}
        if bias and max(bias) >= run.model.config.vocabulary:
            raise Refused(400, f"logit_bias has the token {max(bias)}; those of {run.name} are 0 to "
                          f"{run.model.config.vocabulary - 1}")
        prompts = [await told(run, prompt) for prompt in given_prompts]
        limit = asked.max_completion_tokens if asked.max_completion_tokens is not None else asked.max_tokens
        given = [asked.stop] if isinstance(asked.stop, str) else asked.stop or []
        session = session_of(request, asked, named)
        body = await request.body()
        if verbose:
            print(body.decode("utf-8", "replace"), flush=True)
        common = {"session": session, "learn": asked.learn, "trace": asked.trace, "top": top,
                  "count": min(default if limit is None else limit, longest),
                  "temperature": 1.0 if asked.temperature is None else asked.temperature,
                  "top_p": 1.0 if asked.top_p is None else asked.top_p, "top_k": asked.top_k or 0,
                  "frequency": asked.frequency_penalty or 0.0, "presence": asked.presence_penalty or 0.0,
                  "bias": bias,
                  "stops": [*stops, *(stop.encode() for stop in given)],
                  "key": once or hashlib.sha256(body).hexdigest(), "retry": bool(once) or (retried or "0") != "0"}
        seed = secrets.randbits(64) if asked.seed is None else asked.seed % 2**64
        completing = isinstance(asked, CompletionRequest)
        scoring = isinstance(asked, CompletionRequest) and asked.echo and asked.logprobs is not None
        bare = completing and not session and (run.words.unit == "byte" or not all(
            isinstance(prompt, str) for prompt in given_prompts))  # where nothing comes before: ids are all there is
        start = Place(last=None if bare else run.words.start)
        feed = Feed(engine).submit([
            {"prompt": prompt, "tokens": tokens, "seed": [seed, i], "place": start, "aside": bool(scoring),
             "anew": run.words.taught and not completing, **common}
            for prompt, tokens in prompts for i in range(asked.n or 1)])
        answer = Answer(asked, run, feed, [tokens for _, tokens in prompts])
        return streamed(answer.stream()) if asked.stream else await answered(await answer.whole(request))

    @app.post("/v1/chat/completions", responses=streams)
    async def chat(request: Request, asked: ChatRequest, named: Named = None, retried: Retry = None,
                   once: Once = None) -> Response:
        """Answer the last message of a conversation."""
        engine, top = chosen(asked.model), (asked.top_logprobs or 0) if asked.logprobs else 0
        words = engine.run.words
        return await respond(request, asked, named, retried, once, engine, [spoken(asked.messages, words)], 256, top,
                             [] if words.taught else [TURN])

    @app.post("/v1/completions", responses=streams)
    async def completions(request: Request, asked: CompletionRequest, named: Named = None, retried: Retry = None,
                          once: Once = None) -> Response:
        """Go on with a text, or with each of several; with `echo` and `logprobs` score it."""
        return await respond(request, asked, named, retried, once, chosen(asked.model), asked.prompts, 16,
                             asked.logprobs or 0, [])

    # reading and sessions -----------------------------------------------------------------------------------

    @app.post("/v1/read", responses=streams)
    async def read(request: Request, asked: ReadRequest, named: Named = None) -> Response:
        """Read a text and tell how surprising each byte was; with `learn`, learn from it."""
        engine = chosen(asked.model)
        session, words = session_of(request, asked, named), engine.run.words
        text, tokens = await told(engine.run, asked.text, "text")
        feed = Feed(engine).submit([
            {"prompt": text, "tokens": tokens, "session": session, "place": Place(last=words.start), "aside": True,
             "learn": asked.learn, "trace": True}])
        total, count = 0.0, 0

        def shows(found: Any) -> dict[str, Any]:
            nonlocal total, count
            if isinstance(found, Done):  # of a single token after which nothing came, nothing is known
                return {"bytes": count, "bits_per_byte": total / count if count else None, "learned": found.learned,
                        **({} if found.saved else {"saved": False})}
            judged = [token for token in found.tokens if token.bits is not None]
            total += sum(token.bits for token in judged)
            count += words.count([token.byte for token in judged])
            return watched(found, words)

        async def stream() -> AsyncIterator[str]:
            try:
                async for _, found in feed.events():
                    yield sse(shows(found))
            except Refused as refused:
                yield sse(refused.body)
            yield "data: [DONE]\n\n"
        if asked.stream:
            return streamed(stream())
        *pieces, end = [raw(shows(found)) async for _, found in feed.until_gone(request)]
        return await answered({**json.loads(end), "pieces": pieces})

    def shown(name: str, found: dict[str, Any] | None) -> dict[str, Any]:
        if found is None:
            raise Refused(404, "there is no such session", code="session_not_found")
        return {"id": name, "object": "session", **found}

    @app.get("/v1/sessions")
    async def listed(request: Request, model: str = "") -> dict[str, Any]:
        """All sessions of this key with a model, the last used first."""
        found = chosen(model).sessions.list(request.scope["owner"])
        return {"object": "list", "data": [shown(*one) for one in found]}

    @app.get("/v1/sessions/{name:path}")
    async def one(request: Request, name: Name, model: str = "") -> dict[str, Any]:
        """A session, and how far each of its memories has drifted."""
        engine = chosen(model)
        session = await asyncio.to_thread(engine.sessions.get, (request.scope["owner"], name))
        found, state = shown(name, session.about() if session else None), session.place.state if session else None
        return found | {"drift": await asyncio.to_thread(distances, engine.run.model, state)}

    @app.post("/v1/sessions/{name:path}")
    async def reset(request: Request, name: Name, asked: ResetRequest, model: str = "") -> dict[str, Any]:
        """Let a session forget its memories, what its levels learned, or both; or undo its last change."""
        key, sessions = (request.scope["owner"], name), chosen(model).sessions
        try:
            saved = await asyncio.to_thread(sessions.reset, key, asked.reset)
        except LookupError as error:
            raise Refused(409, str(error), code="nothing_to_undo") from None
        if saved:
            await asyncio.wrap_future(saved)
        session = await asyncio.to_thread(sessions.get, key)
        return shown(name, session.about() if session else None)

    @app.delete("/v1/sessions/{name:path}")
    async def delete(request: Request, name: Name, model: str = "") -> dict[str, Any]:
        """Forget a session altogether."""
        if not await asyncio.to_thread(chosen(model).sessions.delete, (request.scope["owner"], name)):
            shown(name, None)
        return {"id": name, "object": "session", "deleted": True}
    described = app.openapi()  # made once, now: it takes a moment
    return record
