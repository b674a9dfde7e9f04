"""What happened?  Every request gets a number, a line in the log without its contents, and is counted.

    app = Record(app, engines)     around everything else; GET /metrics gives app.metrics()

The counts are in the text format of Prometheus.
"""

from __future__ import annotations

import re
import secrets
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from apps.engine import Engine
from apps.runs import process_bytes

METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}  # of others one is counted like the other
UNDER = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)  # seconds
SAFE = (("x-content-type-options", "nosniff"), ("referrer-policy", "no-referrer"), ("x-frame-options", "DENY"),
        ("cross-origin-opener-policy", "same-origin"),
        ("content-security-policy", "default-src 'none'; frame-ancestors 'none'"))


class Record:
    """Around an application: ids, headers, HEAD as GET, the access log and the counts."""

    def __init__(self, app: Any, engines: Sequence[Engine], log: bool):
        self.app, self.engines, self.log = app, engines, log
        self.requests: Counter[tuple[str, str, int]] = Counter()  # method, path, status
        self.seconds = 0.0
        self.buckets = [0] * len(UNDER)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started, status, sent = time.perf_counter(), 499, 0  # as nginx has it: the client went away
        given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        number = given if re.fullmatch(r"[\w.:/+=-]{1,128}", given, re.ASCII) else secrets.token_hex(8)
        inner = {**scope, "method": "GET" if scope["method"] == "HEAD" else scope["method"]}

        async def answer(message: Any) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
                names = {name for name, _ in message["headers"]}
                extra = [(name.encode(), value.encode()) for name, value in (*SAFE, ("x-request-id", number))
                         if name.encode() not in names]
                message = {**message, "headers": [*message["headers"], *extra]}
            sent += len(message.get("body", b""))
            await send(message)
        try:
            await self.app(inner, receive, answer)
        finally:
            route = getattr(inner.get("route"), "path_format", "")
            method = scope["method"] if scope["method"] in METHODS else "other"
            self.count(method, route or "other", status, time.perf_counter() - started)
            if self.log:
                path = route or repr(scope["path"][:100])[1:-1]
                client = (scope.get("client") or ["-"])[0]
                print(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {number} {client} {scope['method']} {path} {status} "
                      f"{1e3 * (time.perf_counter() - started):.0f} ms {sent} bytes", file=sys.stderr, flush=True)

    def count(self, method: str, path: str, status: int, seconds: float) -> None:
        self.requests[method, path, status] += 1
        self.seconds += seconds
        for i, bound in enumerate(UNDER):
            self.buckets[i] += seconds <= bound

    def metrics(self) -> str:
        """All counts, each with what it counts."""
        def each(count: Callable[[Engine], float], more: str = "") -> list[tuple[str, float]]:
            return [(f'{{model="{engine.run.name}"{more}}}', count(engine)) for engine in self.engines]
        total = sum(self.requests.values())
        families: list[tuple[str, str, str, list[tuple[str, float]]]] = [
            ("requests_total", "counter", "Requests that were answered, by method, path and status.",
             [(f'{{method="{method}",path="{path}",status="{status}"}}', n)
              for (method, path, status), n in sorted(self.requests.items())]),
            ("request_seconds", "histogram", "From a request's first byte to its answer's last.",
             [*((f'_bucket{{le="{bound:g}"}}', n) for bound, n in zip(UNDER, self.buckets, strict=True)),
              ('_bucket{le="+Inf"}', total), ("_sum", self.seconds), ("_count", total)]),
            ("read_tokens_total", "counter", "Tokens of texts that were read.", each(lambda e: e.tokens_read)),
            ("drawn_tokens_total", "counter", "Tokens that were written.", each(lambda e: e.tokens_drawn)),
            ("lessons_total", "counter", "Requests from which a session learned.", each(lambda e: e.lessons)),
            ("requests_running", "gauge", "Requests whose turn it is.", each(lambda e: len(e.turns))),
            ("requests_waiting", "gauge", "Requests in the queue.", each(lambda e: len(e.queue))),
            ("sessions", "gauge", "Sessions in memory, and all that there are.",
             [*each(lambda e: len(e.sessions.memory), ',where="memory"'),
              *each(lambda e: len(e.sessions.known), ',where="disk"')]),
            ("sessions_evicted_total", "counter", "Times that a session left memory for the disk.",
             each(lambda e: e.sessions.evicted)),
            ("saves_failed_total", "counter", "Times that a session could not be saved.",
             each(lambda e: e.sessions.failures)),
            ("ready", "gauge", "Whether GET /ready says so.", [("", float(not problem(self.engines)))]),
            ("resident_memory_bytes", "gauge", "Memory of this process.", [("", process_bytes())])]
        lines = []
        for name, kind, meaning, values in families:
            lines += [f"# HELP hope_{name} {meaning}", f"# TYPE hope_{name} {kind}"]
            lines += [f"hope_{name}{labels} {value:.12g}" for labels, value in values]
        return "\n".join(lines) + "\n"


def problem(engines: Sequence[Engine]) -> str:
    """Why no more should be asked of this server just now; "" if nothing is wrong."""
    for engine in engines:
        if engine.closed:
            return "the server is shutting down"
        if not engine.thread.is_alive():
            return f"the thread of the model {engine.run.name} has ended"
        if engine.sessions.problem:
            return engine.sessions.problem
    return ""
