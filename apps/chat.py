"""What is it like to talk to a model that goes on learning?

    python -m apps.chat                        the newest run, or the demonstration
    python -m apps.chat runs/nano-… --learn    another one, and what is said changes its levels
    python -m apps.chat --complete             every line is the beginning of a text, which it continues
    echo "def main" | python -m apps.chat      a line is a message; only answers are printed

Commands: /complete on|off, /learn on|off, /undo, /reset, /sessions, /save NAME, /load NAME, /surprise, /help, /quit.
A line that begins with // is a message that begins with /. The memories of the model carry the conversation in any
case; with learning on, its levels learn from it, too. The run itself is never changed: what was learned is a running
state, and lives in a session that can be saved and loaded.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    from tools import early

    early.settle(sys.argv)

import argparse
import codecs
import contextlib
import itertools
import math
import os
import re
import select
import signal
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import hope
from apps.about import About
from apps.runs import TURN, Piece, Place, Run, Stops, Utf8, predict, process_bytes, read, without_start
from apps.sessions import Session, before, file_of, saved_in
from config import nearest
from tools import console, stopping
from tools.command import Help, Parser
from tools.console import amount
from tools.folder import expect_writable, name_again

SHADES = (28, 64, 100, 136, 130, 124, 88)  # of the terminal's 256 colours, from expected to surprising
UNSAVED = "unsaved"
RANGES = (("max_tokens", 1, math.inf), ("temperature", 0, math.inf), ("top_k", 0, math.inf), ("top_p", 0, 1),
          ("seed", 0, math.inf))
COMMANDS = ("complete", "learn", "undo", "reset", "sessions", "save", "load", "surprise", "help", "quit")


class Chat:
    """A conversation: what was said, where it stands, and what to answer with."""

    def __init__(self, run: Run, given: argparse.Namespace, colours: bool):
        self.run, self.given, self.colours = run, given, colours
        self.folder = Path(given.session_folder) if given.session_folder else run.sessions / "chat"
        self.words = run.words
        self.learning, self.completing = given.learn, given.complete
        self.begin(Session("", Place(last=run.words.start)))
        self.before = self.standing  # the last message
        self.known: dict[Path, int] = {}  # files of sessions, as this conversation last saw them
        self.rng = np.random.default_rng(given.seed)

    def begin(self, session: Session) -> None:
        """Talk in a session in which, as far as this conversation goes, nothing was said yet."""
        self.session, self.saved = session, True
        self.said: list[tuple[str, str]] = []  # messages, by role
        self.heard = ""  # what they were read as, where the model was taught a way to
        self.last: list[Piece] = []  # the last text, as it was read

    @property
    def standing(self) -> tuple[Session, list[tuple[str, str]], str, bool]:
        """Where the conversation stands, for /undo."""
        return self.session, self.said, self.heard, self.saved

    # what is said -------------------------------------------------------------------------------------------

    def say(self, message: bytes) -> Generator[str, None, None]:
        """Read a message, and answer it bit by bit; whoever stops half-way keeps what was said so far."""
        self.last, self.before = [], self.standing
        said, asked = self.said, None
        if self.completing:  # a text of its own, after what was read before
            self.session = replace(self.session, place=Place(self.session.place.state, self.words.start))
            self.hear(message)
        else:
            said = [*said, ("user", message.decode("utf-8", "replace"))]
            asked = self.words.conversation(said)
            if asked is None:
                self.hear(b"user: " + message + b"\nassistant: ")
            else:
                self.listen(asked)
        answer = bytearray()
        try:
            yield from self.answer(answer)
        finally:
            if not self.completing:
                self.said = [*said, ("assistant", answer.decode("utf-8", "replace"))]
            if asked is None:
                self.hear(bytes(answer) + b"\n")
            else:
                self.listen(self.words.conversation(self.said, answer=False) or "")

    def listen(self, text: str) -> None:
        """Read what of a conversation is not in the place yet; where it reads otherwise than before, all of it."""
        if not text.startswith(self.heard):
            self.session, self.heard = self.session.reset("memory", self.words.start), ""
        self.hear(text[len(self.heard):].encode())
        self.heard = text

    def hear(self, text: bytes) -> None:
        """Read, and learn if that is on; the place moves only when all of it was read."""
        if not text:
            return
        tokens = without_start(self.words, self.session.place, self.words.encode(text).tolist())
        pieces = list(read(self.run.model, self.session.place, tokens, self.learning))
        if not pieces:  # a text of which the vocabulary makes nothing
            return
        self.last += pieces
        learned = len(text) if self.learning else 0
        self.session = self.session.after(pieces[-1].place, learned)
        self.saved &= not self.learning

    def answer(self, written: bytearray) -> Iterator[str]:
        """The model's own words; `written` gathers their bytes."""
        place, given = self.session.place, self.given
        text, stops, waiting = Utf8(), Stops([] if self.completing or self.words.taught else [TURN]), bytearray()
        shown = Squeezed(within=self.completing)
        for _ in range(given.max_tokens):
            (logits, state), = predict(self.run.model, [place])
            token = hope.sample(logits, self.rng, given.temperature, given.top_k, given.top_p)
            place = Place(state, token)
            if token in self.words.ends:
                break
            for byte in self.words.spell([token]):
                waiting.append(byte)
                free = stops.feed(byte)
                written += waiting[:free]
                yield shown.feed(visible(text.feed(waiting[:free])))
                del waiting[:free]
                if stops.hit:
                    waiting.clear()  # the stop itself
                    break
            if stops.hit:
                break
        written += waiting
        yield shown.feed(visible(text.feed(waiting, final=True)))

    # commands -----------------------------------------------------------------------------------------------

    def command(self, line: str) -> str:
        """Carry out /NAME ARGUMENT and say what happened; ValueError for what cannot be done."""
        name, _, argument = line[1:].partition(" ")
        argument = argument.strip()
        if name == "learn" and argument in ("on", "off"):
            self.learning = argument == "on"
            return f"learning is {argument}" + (self.unsaveable() if self.learning else "")
        if name == "complete" and argument in ("on", "off"):
            self.completing = argument == "on"
            return "lines are beginnings of texts" if self.completing else "lines are messages"
        if name == "reset":
            self.before = self.standing
            self.begin(Session("", Place(last=self.words.start)))
            return "all is forgotten; the run is as it was trained (/undo takes that back)"
        if name == "undo":
            undone = self.session is not self.before[0]
            self.session, self.said, self.heard, self.saved = self.before
            self.last = []
            return "the last message is undone" if undone else "there is nothing to undo"
        if name in ("save", "load") and argument:
            return self.save(argument) if name == "save" else self.load(argument)
        if name in ("surprise", "sessions"):
            return self.surprise() if name == "surprise" else self.sessions()
        if name == "help":
            return (__doc__ or "").split("Commands: ")[1].strip()
        raise ValueError(f"{line!r} is none of /complete on|off, /learn on|off, /undo, /reset, /sessions, /save NAME, "
                         "/load NAME, /surprise, /help, /quit")

    def unsaveable(self) -> str:
        """What stands in the way of keeping what is learned, if anything does."""
        try:
            expect_writable(self.folder, "--session-folder")
        except ValueError as error:
            return f", and cannot be kept: {error}"
        return ""

    def sessions(self) -> str:
        """What was saved, the last used first."""
        found = saved_in(self.folder, self.run.fingerprint)
        lines = [f"{name}: {about['learned']:,} bytes learned, "
                 f"{time.strftime('%Y-%m-%d %H:%M', time.localtime(about['used']))}"
                 for (_, name), about in found.items()]
        return "\n".join(lines) or "no session is saved; /save NAME saves this one"

    def save(self, name: str) -> str:
        folder = self.run.folder
        gone = not self.given.session_folder and not folder.exists()
        vanished = f"; the run's folder was gone, {folder} is made anew" if gone else ""
        session = replace(self.session, name=name)
        path = file_of(self.folder, name)
        taken = path.exists() and (self.session.name != name or path.stat().st_mtime_ns != self.known.get(path))
        if taken:
            name_again(path, before(path))
        session.save(self.folder, self.run.fingerprint)
        self.known[path] = path.stat().st_mtime_ns
        if self.session is self.before[0]:
            self.before = (session, *self.before[1:3], True)
        elif self.before[0].name == name:  # it is on the disk no longer
            self.before = (*self.before[:3], self.before[0].learned == 0)
        self.session, self.saved = session, True
        was = f"; the {name} that was there is kept as {before(path).name}" if taken else ""
        return f"{name} is saved, {amount(path.stat().st_size)}{was}{vanished}"

    def load(self, name: str) -> str:
        path = file_of(self.folder, name)
        if not path.exists():
            raise ValueError(f"no session {name!r} is in {self.folder}; /save {name} would make one")
        seen, session = path.stat().st_mtime_ns, Session.load(path, self.run.fingerprint)
        self.known[path] = seen
        self.begin(session)
        self.before = self.standing
        return f"{name} is loaded, {self.session.learned:,} bytes learned so far"

    def keep(self) -> str:
        """At the end: what was learned and not saved is saved, under a name that is free."""
        if self.saved:
            return ""
        names = itertools.chain([UNSAVED], (f"{UNSAVED}-{n}" for n in itertools.count(2)))
        name = next(name for name in names if not file_of(self.folder, name).exists())
        return f"{self.save(name)}; /load {name} goes on with it"

    # what a person sees -------------------------------------------------------------------------------------

    def surprise(self) -> str:
        """The last text, coloured by surprise, and under it which levels moved at which byte."""
        if not self.last:
            return "nothing was said yet"
        tokens = [token for piece in self.last for token in piece.tokens]
        out, text, total, at = [], Utf8(), 0.0, 0
        for token in tokens:
            total += token.bits or 0.0
            if character := text.feed(self.words.spell([token.byte])):
                out.append(self.paint(visible(character), total))
                total = 0.0
        moves = []
        for piece in self.last:
            at += len(piece.tokens)
            if piece.moved:
                moves.append(f"{self.words.unit} {at}: levels with chunk size {', '.join(map(str, piece.moved))}")
        size = self.words.count([token.byte for token in tokens])
        mean = np.sum([token.bits or 0.0 for token in tokens]) / max(size, 1)
        return "\n".join(["".join(out), f"{mean:.2f} bits per byte of {size} bytes",
                          *(moves or ["no level moved" + ("" if self.learning else ": learning is off")])])

    def paint(self, text: str, bits: float) -> str:
        if not self.colours or text == "\n":
            return text
        return f"\x1b[97;48;5;{SHADES[min(int(bits / 1.5), len(SHADES) - 1)]}m{text}\x1b[0m"

    def introduction(self) -> str:
        """What the model is, and what to try."""
        about = About.of(self.run.folder)
        trained = f", {about.sentence}" if about.sentence else ""
        model = f"{self.run.name}: {hope.count(self.run.model.config):,} parameters{trained}."
        if self.words.taught:
            return f"{model} /help lists the commands."
        how = "begin one" if self.completing else "begin one after /complete on"
        return (f"{model}\nIt continues texts, and was not taught to converse: {how}, such as `{about.example}`. "
                "/help lists the commands.")

    def status(self) -> str:
        return (f"{self.session.learned:,} bytes learned, state {amount(self.session.place.nbytes)}, process "
                f"{amount(process_bytes())}, learning {'on' if self.learning else 'off'}")


class Squeezed:
    """Text as it comes, with runs of blank lines made one, and none at its beginning and end."""

    def __init__(self, within: bool = False):
        self.blank, self.begun = "", within  # what was held back; whether anything was shown

    def feed(self, text: str) -> str:
        solid = text.rstrip()
        if not solid:
            self.blank += text
            return ""
        whole, begun = self.blank + solid, self.begun
        self.blank, self.begun = text[len(solid):], True
        return re.sub(r"\n[ \t\r]*\n\s*\n", "\n\n", whole) if begun else whole.lstrip()


def visible(text: str) -> str:
    """What a terminal may be given: letters, spaces and newlines; anything else as an escape."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


# Lines in, lines out ----------------------------------------------------------------------------------------


def waiting(seconds: float) -> bool:
    """Whether more has been typed already."""
    return os.name == "posix" and bool(select.select([sys.stdin], [], [], seconds)[0])


def typed(prompt: str) -> Iterator[str]:
    """Messages from a terminal: lines pasted together are one, lines typed ahead while it answered are one each."""
    while True:
        try:
            ahead = waiting(0)
            lines = [input(prompt)]
            while not ahead and waiting(0.02):
                lines.append(input())  # more was there at once: a paste
        except EOFError:
            return
        except KeyboardInterrupt:
            print("  (/quit ends)")
            continue
        yield "\n".join(lines)


def command_in(line: bytes) -> str:
    """The command that a line is, "" if it is a message; ValueError for what looks like a command and is none."""
    text = line.decode("utf-8", "replace").strip()
    name = text[1:].split(" ")[0]
    if not text.startswith("/") or "\n" in text or text.startswith("//"):
        return ""
    if name not in COMMANDS and (close := nearest(name, COMMANDS)):
        raise ValueError(f"there is no command /{name}{close} Begin with // to say it")
    return text if name in COMMANDS else ""


def converse(chat: Chat, lines: Iterator[bytes], show: bool) -> int:
    """Answer line by line; returns whether a line could not be answered."""
    failed = 0
    for line in lines:
        try:
            if command := command_in(line):
                if command == "/quit":
                    break
                print(chat.command(command))
            elif line.strip():
                said = line[1:] if line.startswith(b"//") else line
                if show and chat.completing:
                    print(visible(said.decode("utf-8", "replace")), end="", flush=True)
                with contextlib.closing(chat.say(said)) as answer:
                    for text in answer:
                        print(text, end="", flush=True)
                print()
                if show:
                    print(dim(chat.status()))
        except KeyboardInterrupt:
            print("  (stopped)", flush=True)
        except BrokenPipeError:
            raise
        except (ValueError, OSError, FloatingPointError) as error:
            print(f"apps.chat: {error}", file=sys.stderr)
            failed = 1
    return failed


class Ended(BaseException):
    """The program was asked to end, or its terminal was closed; the signal."""


def end(number: int, frame: Any) -> None:
    for other in stopping.SIGNALS:  # what is saved is saved wholly
        signal.signal(other, signal.SIG_IGN)
    raise Ended(number)


def dim(text: str) -> str:
    return f"\x1b[2m{text[:console.columns()]}\x1b[0m"


def parser() -> Parser:
    made = Parser(prog="python -m apps.chat", description=__doc__, allow_abbrev=False,
                  formatter_class=Help)
    made.add_argument("run", nargs="?", default="", help="a run's folder [the newest in runs/, else the demonstration]")
    made.add_argument("--complete", action="store_true", help="continue texts instead of answering messages")
    made.add_argument("--learn", action="store_true", help="begin with learning on")
    made.add_argument("--session-folder", default="", help="where sessions are kept [sessions/chat in the run's]")
    made.add_argument("--load", default="", metavar="NAME", help="begin with a saved session")
    made.add_argument("--max-tokens", type=int, default=300, help="length of an answer, at most [300]")
    made.add_argument("--temperature", type=float, default=0.8, help="0 takes the likeliest byte [0.8]")
    made.add_argument("--top-k", type=int, default=0, help="choose among so many bytes; 0 = all [0]")
    made.add_argument("--top-p", type=float, default=0.95, help="choose among so probable bytes [0.95]")
    made.add_argument("--seed", type=int, default=None, help="same seed, same answers [another each time]")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns 0, 1 if something could not be done, 2 for bad input, 128 and a signal."""
    console.ready()
    try:
        given = parser().parse_args(arguments)
        for name, least, most in RANGES:
            if (value := getattr(given, name)) is not None and not least <= value <= most:
                raise ValueError(f"--{name.replace('_', '-')} is {value}; it must be at least {least}"
                                 + (f", and at most {most}" if most < math.inf else ""))
        terminal = sys.stdin.isatty() and sys.stdout.isatty()
        chat = Chat(Run.open(given.run), given, colours=terminal and "NO_COLOR" not in os.environ)
        if given.load:
            chat.load(given.load)
    except (ValueError, OSError) as error:
        print(f"apps.chat: error: {console.reason(error)}", file=sys.stderr)
        return 2
    if terminal:
        with contextlib.suppress(ImportError):  # line editing, and pastes in one piece
            import readline  # noqa: F401
        if hasattr(sys.stdin, "reconfigure"):
            sys.stdin.reconfigure(errors="surrogateescape")  # bytes that are no text are read as they are
        print(chat.introduction())
        lines: Iterator[bytes] = (line.encode("utf-8", "surrogateescape") for line in typed("> "))
    else:
        lines = piped()
    if chat.learning and (why := chat.unsaveable()):
        print(f"learning is on{why}", file=sys.stderr)
    with stopping.answering({**dict.fromkeys(stopping.SIGNALS, end), signal.SIGINT: signal.default_int_handler}):
        try:
            try:  # from here on Ctrl+C stops an answer, not the program
                failed = converse(chat, lines, terminal)
            except (OSError, KeyboardInterrupt):
                failed = 1
                with contextlib.suppress(OSError):  # nobody reads on: what is still buffered goes nowhere
                    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            with stopping.answering(dict.fromkeys(stopping.SIGNALS, signal.SIG_IGN)):  # saved is saved wholly
                return kept(chat) or failed
        except Ended as ended:  # it may come after the last line: a terminal that is closed ends its input first
            return kept(chat) or 128 + ended.args[0]


def kept(chat: Chat) -> int:
    """Save what was learned and not saved, and say where; returns whether that failed."""
    try:
        words, failed = chat.keep(), 0
    except OSError as error:
        words, failed = f"apps.chat: what was learned could not be saved: {error}", 1
    with contextlib.suppress(OSError):  # of a terminal that was closed
        print(words, end="\n" if words else "", file=sys.stderr, flush=True)
    return failed


def piped() -> Iterator[bytes]:
    """Lines that come from elsewhere, without a byte order mark."""
    for number, line in enumerate(sys.stdin.buffer):
        yield (line.removeprefix(codecs.BOM_UTF8) if number == 0 else line).rstrip(b"\r\n")


if __name__ == "__main__":
    sys.exit(main())
