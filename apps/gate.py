"""Who may ask, and how?  Names of this server, origins of pages, keys, the kind and the size of a body.

    app.add_middleware(Gate, rules=Rules(keys=("secret",)))

A name that an attacker's domain resolves to this machine is refused (its Host is not ours), and so is what a page of
another origin sends. Everything is decided before a body is looked at.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from fastapi.responses import JSONResponse

from apps.schemas import Refused

LOCAL = r"https?://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?"
PUBLIC = ("/", "/health", "/ready", "/docs", "/openapi.json")  # no key is asked for there, nor for what is in /page/


@dataclass(frozen=True)
class Rules:
    """What is asked of a request."""

    keys: tuple[str, ...] = ()  # one of these must be sent; none = no key is needed
    hosts: tuple[str, ...] = ()  # names of this server, besides localhost and plain addresses; * = any
    origins: tuple[str, ...] = ()  # pages that may ask, besides those of this machine and of this server; * = all
    limit: int = 1 << 20  # bytes of a body


def owner_of(key: str) -> str:
    """Whose sessions those of a key are: a short hash of it."""
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def is_ours(host: str, names: Collection[str]) -> bool:
    """Whether a request for this Host is meant for this server: an address, this machine, or a name that was given."""
    name = (host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]).lower().rstrip(".")
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return "*" in names or name == "localhost" or name.endswith(".localhost") or name in names
    return True


class Gate:
    """Lets through what may ask; reads its body, so that nobody behind waits for a slow one."""

    def __init__(self, app: Any, rules: Rules):
        self.app, self.rules = app, rules
        self.owners = {key.encode(): owner_of(key) for key in rules.keys}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        try:
            scope["owner"] = self.admitted(scope)
            body, more = bytearray(), True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return None
                body += message.get("body", b"")
                more = message.get("more_body", False)
                if len(body) > self.rules.limit:
                    raise Refused(413, f"the body is larger than {self.rules.limit:,} bytes", code="body_too_large")
        except Refused as refused:
            return await refusal(refused)(scope, receive, send)
        parts = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def replay() -> Any:
            return parts.pop() if parts else await receive()
        return await self.app(scope, replay, send)

    def admitted(self, scope: Any) -> str:
        """Whose request it is ("" where no keys are used); Refused if it may not pass."""
        headers: dict[str, list[str]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.decode("latin-1"), []).append(value.decode("latin-1"))
        for host in headers.get("host", []):
            if not is_ours(host, self.rules.hosts):
                raise Refused(421, f"this server is not {host!r}; --allowed-host would make that one of its names",
                              code="host_not_allowed")
        if scope["method"] in ("POST", "DELETE"):  # what changes something
            for origin in headers.get("origin", []):
                if not self.may_ask(origin, headers.get("host", [])):
                    raise Refused(403, f"pages of {origin} may not ask here; --origin would allow them",
                                  code="origin_not_allowed")
        if scope["method"] == "POST":
            kind = headers.get("content-type", [""])[0].partition(";")[0].strip().lower()
            if kind != "application/json":
                raise Refused(415, f"the body is of type {kind or 'unknown'}; send content-type: application/json",
                              code="unsupported_media_type")
        path = scope["path"]
        if not self.owners or path in PUBLIC or path.startswith("/page/"):
            return ""
        given = headers.get("authorization", [""])[0].encode("latin-1")
        for key, owner in self.owners.items():
            if hmac.compare_digest(given, b"Bearer " + key):
                return owner
        raise Refused(401, "a key is needed: send Authorization: Bearer KEY", code="invalid_api_key")

    def may_ask(self, origin: str, hosts: list[str]) -> bool:
        return ("*" in self.rules.origins or origin in self.rules.origins or bool(re.fullmatch(LOCAL, origin))
                or origin.partition("://")[2] in hosts)


def refusal(refused: Refused) -> JSONResponse:
    return JSONResponse(refused.body, refused.status, refused.headers)
