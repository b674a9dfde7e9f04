"""How does one model serve many?  OpenAI's interface, sessions that learn, and a page to watch them move.

    python -m apps.serve                       the newest run, at http://127.0.0.1:8000
    python -m apps.serve runs/first runs/second     several: requests say which by `model`
    python -m apps.serve runs/nano-… --port 8001 --origin https://chat.example.org
    python -m apps.serve --host 0.0.0.0 --api-key secret --ssl-certfile c.pem --ssl-keyfile k.pem

Learning is off unless a request says `"learn": true` and names a session (field `user` or header
`X-Session`); then what was said is learned when the answer is complete, and only then. Sessions live in the run's
folder, those of every key apart. The run itself is never changed. GET /docs tells what can be asked.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    from tools import early

    early.settle(sys.argv)

import argparse
import contextlib
import ipaddress
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from apps.runs import Run, price_alone
from tools import console
from tools.command import Help, Parser
from tools.folder import locked

KEY = "HOPE_API_KEY"
STOPS = (signal.SIGINT, signal.SIGTERM)


def at_least(least: int, most: float = float("inf")) -> Callable[[str], int]:
    def whole(text: str) -> int:
        number = int(text)
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"{number} is not between {least:,} and {most:,.0f}" if most < float("inf")
                                             else f"{number} is less than {least}")
        return number
    whole.__name__ = "whole number"
    return whole


def days(text: str) -> float:
    if not 0 <= (number := float(text)) < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no number of days; give one, or 0 for never")
    return number


def parser() -> Parser:
    made = Parser(prog="python -m apps.serve", description=__doc__, allow_abbrev=False,
                  formatter_class=Help)
    made.add_argument("runs", nargs="*", metavar="RUN", help="folders of runs, of which the first is meant where a "
                      "request names none [the newest in runs/, else the demonstration]")
    where = made.add_argument_group("where")
    where.add_argument("--host", default="127.0.0.1", help="where to listen; 0.0.0.0 = everywhere [127.0.0.1]")
    where.add_argument("--port", type=at_least(0, 65535), default=8000, help="0 = any that is free [8000]")
    where.add_argument("--ssl-certfile", default="", metavar="FILE", help="serve by TLS with this certificate")
    where.add_argument("--ssl-keyfile", default="", metavar="FILE", help="and this private key")
    who = made.add_argument_group("who may ask")
    who.add_argument("--api-key", action="append", default=[], metavar="KEY",
                     help="clients must send this key; each of several has sessions of its own [$HOPE_API_KEY]")
    who.add_argument("--api-key-file", default="", metavar="FILE",
                     help="a file with such keys, one a line; a line that begins with # is none")
    who.add_argument("--api-key-env", default=KEY, metavar="VARIABLE",
                     help=f"the environment variable that holds a key [{KEY}]")
    who.add_argument("--open", action="store_true", help="ask for no key even beyond this machine")
    who.add_argument("--allowed-host", action="append", default=[], metavar="NAME",
                     help="a name of this server, besides localhost, plain addresses and this machine's own; * = any")
    who.add_argument("--origin", action="append", default=[], metavar="URL",
                     help="a web page's origin that may ask, besides those on this machine; * = all")
    much = made.add_argument_group("how much")
    much.add_argument("--rows", type=at_least(1), default=32, help="requests that run side by side [32]")
    much.add_argument("--queue", type=at_least(0), default=128, help="requests that may wait; others get 429 [128]")
    much.add_argument("--max-tokens", type=at_least(1), default=4096, help="length of an answer, at most [4096]")
    much.add_argument("--max-body", type=at_least(1), default=1 << 20, help="bytes of a request, at most [1048576]")
    much.add_argument("--fast", action="store_true",
                      help="batch even where an answer's last bits then depend on who else asks")
    kept = made.add_argument_group("what is kept")
    kept.add_argument("--session-folder", default="", metavar="FOLDER", help="where sessions are [the run's own]")
    kept.add_argument("--sessions", type=at_least(0), default=32,
                      help="how many stay in memory, the last used ones; the disk keeps all; 0 = no bound [32]")
    kept.add_argument("--session-days", type=days, default=30, help="days without use until one goes; 0 = never [30]")
    kept.add_argument("--quiet", action="store_true", help="no line per request")
    kept.add_argument("--verbose", action="store_true", help="log requests with what is in them")
    return made


def keys(given: argparse.Namespace) -> list[str]:
    """The keys that clients may send; ValueError if there are none and others than this machine's programs can ask."""
    found = list(given.api_key)
    if given.api_key_file:
        try:
            lines = Path(given.api_key_file).read_text(encoding="utf-8-sig").splitlines()
            found += [line for line in lines if not line.lstrip().startswith("#")]
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"--api-key-file {given.api_key_file} cannot be read: {error}") from None
    found.append(os.environ.get(given.api_key_env, ""))
    found = list(dict.fromkeys(filter(None, (key.strip() for key in found))))
    if not found and (given.api_key or given.api_key_file):
        where = given.api_key_file if given.api_key_file else "--api-key"
        raise ValueError(f"{where} holds no key; leave it out if none is wanted")
    if any(not (key.isascii() and key.isprintable()) for key in found):
        raise ValueError("a key has characters that no header can carry; use letters, digits and signs of ASCII")
    if not found and not given.open and not is_loopback(given.host):
        raise ValueError(f"--host {given.host} can be reached by others, and no key is asked for: give --api-key KEY, "
                         "or --open if everybody may ask, teach and delete")
    return found


def is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def listen(host: str, port: int) -> socket.socket:
    """A socket at this place; ValueError says why there can be none."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with contextlib.ExitStack() as failed:
            found = failed.enter_context(socket.socket(family))
            if os.name == "posix":
                found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind(address)
            found.listen()  # whoever comes before all is ready waits
            failed.pop_all()
    except OSError as error:
        raise ValueError(f"cannot listen at {host}, port {port}: {console.reason(error)}; choose another --host or "
                         "--port") from None
    return found


def address_of(found: socket.socket, secure: bool) -> str:
    """Where a browser on this machine finds the server."""
    host, port = found.getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = "127.0.0.1" if found.family == socket.AF_INET else "::1"
    return f"http{'s' * secure}://{f'[{host}]' if ':' in host else host}:{port}"


def expect_writable(folder: Path) -> None:
    """Make the folder; ValueError if nothing can be kept there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".part").touch()
        (folder / ".part").unlink()
    except OSError as error:
        raise ValueError(f"sessions cannot be kept in {folder} ({error.strerror}); choose another --session-folder"
                         ) from None


@contextlib.contextmanager
def ending_well() -> Iterator[list[int]]:
    """Signals that are raised once more when all is over are noted, and end nothing."""
    seen: list[int] = []
    before = {number: signal.signal(number, lambda found, _: seen.append(found)) for number in STOPS}
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def serve(given: argparse.Namespace) -> int:
    """Serve until a signal comes; returns 0, or 130 after Ctrl+C. ValueError for what cannot be served so."""
    try:
        import uvicorn

        from apps.app import create
        from apps.engine import Engine
        from apps.sessions import Sessions
    except ModuleNotFoundError as error:
        raise ValueError(f"{error.name} is not installed: pip install -r apps/requirements.txt") from None

    class Server(uvicorn.Server):
        """A server that ends streams when it is asked to stop, instead of waiting for them."""

        def handle_exit(self, sig: int, frame: Any) -> None:
            for engine in engines:  # by a thread, for the signal may have come while this one holds its lock
                threading.Thread(target=engine.close).start()
            super().handle_exit(sig, frame)
    known, secure = keys(given), bool(given.ssl_certfile)
    for file in filter(None, (given.ssl_certfile, given.ssl_keyfile)):
        if not os.access(file, os.R_OK):
            raise ValueError(f"there is no readable file {file}")
    if given.ssl_keyfile and not secure:
        raise ValueError("--ssl-keyfile needs --ssl-certfile")
    runs = [Run.open(folder) for folder in given.runs or [""]]
    if twice := [run.name for run in runs if [one.name for one in runs].count(run.name) > 1]:
        raise ValueError(f"two runs are called {twice[0]!r}, and requests name them so; rename one's folder")
    folders = [Path(given.session_folder, *[run.name] * (len(runs) > 1)) if given.session_folder else
               run.sessions / "serve" for run in runs]
    with contextlib.ExitStack() as held:
        for folder in folders:
            expect_writable(folder)
            held.enter_context(locked(folder, "serving sessions"))
        socket_here = held.enter_context(contextlib.closing(listen(given.host, given.port)))
        engines = [Engine(run, Sessions(folder.absolute(), run.fingerprint, given.sessions, given.session_days,
                                        run.words.start), given.rows, given.queue, given.fast)
                   for run, folder in zip(runs, folders, strict=True)]
        address = address_of(socket_here, secure)
        own = {given.host.lower(), socket.gethostname().lower(), socket.getfqdn().lower()}
        app = create(engines, keys=known, hosts=[*own, *(name.lower() for name in given.allowed_host)],
                     origins=given.origin, body_limit=given.max_body, longest=given.max_tokens, verbose=given.verbose,
                     log=not given.quiet, address=address)
        config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False,
                                timeout_graceful_shutdown=5, ssl_certfile=given.ssl_certfile or None,
                                ssl_keyfile=given.ssl_keyfile or None)
        try:
            config.load()
        except OSError as error:  # ssl's errors among them
            raise ValueError(f"--ssl-certfile {given.ssl_certfile}: {error}; give a certificate and its key in PEM"
                             ) from None
        kept = ", ".join(str(engine.sessions.folder) for engine in engines)
        print(f"{', '.join(run.name for run in runs)} at {address}  (interface: /v1, told at /docs; key: "
              f"{'needed' if known else 'none'}; sessions: {kept})", flush=True)
        for run in [engine.run for engine in engines if not engine.padding]:
            print(f"{run.name}: on this processor an answer's last bits depend on its place in a batch, so every "
                  f"request is computed alone; eight at once then take {price_alone(run.model):.1f} times the "
                  "processor time, which --fast saves", flush=True)
        with ending_well() as seen:
            Server(config).run(sockets=[socket_here])
    interrupted = signal.SIGINT in seen
    lost = next((engine.sessions.problem for engine in engines if engine.sessions.problem), "")
    many = sum(len(engine.sessions.known) for engine in engines)
    print(f"{'stopped' if interrupted else 'ended'}; {lost or f'sessions kept in {kept}: {many}'}", flush=True)
    return 1 if lost else 130 if interrupted else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns 0, 1 where sessions could not be saved, 2 for bad input, 130 after Ctrl+C."""
    console.ready()
    try:
        return serve(parser().parse_intermixed_args(arguments))
    except KeyboardInterrupt:
        print("stopped; nothing had begun", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"apps.serve: error: {console.reason(error)}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
