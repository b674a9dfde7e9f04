"""What is it like to talk to a model that goes on learning?

    python -m apps.chat                        the newest run
    python -m apps.chat runs/nano-… --learn    another one, and what is said changes its levels
    echo "def main" | python -m apps.chat      a line is a message; only answers are printed

Commands: /learn on|off, /reset, /save NAME, /load NAME, /surprise, /help, /quit. The memories of the model
carry the conversation in any case; with learning on, its levels learn from it, too. The run itself is never
changed: what was learned is a running state, and lives in a session that can be saved and loaded.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

import hope
from apps.runs import TURN, Piece, Place, Run, Stops, Utf8, predict, process_bytes, read
from apps.sessions import Session, file_of
from tools.console import amount

SHADES = (28, 64, 100, 136, 130, 124, 88)  # of the terminal's 256 colours, from expected to surprising
UNSAVED = "unsaved"


class Chat:
    """A conversation: what was said, where it stands, and what to answer with."""

    def __init__(self, run: Run, given: argparse.Namespace, colours: bool):
        self.run, self.given, self.colours = run, given, colours
        self.folder = run.folder / "sessions" / "chat"
        self.words, self.learning = run.words, given.learn
        self.begin(Session("chat", Place(last=run.words.start)))
        self.rng = np.random.default_rng(given.seed)

    def begin(self, session: Session) -> None:
        """Talk in a session in which, as far as this conversation goes, nothing was said yet."""
        self.session, self.saved = session, True
        self.said: list[tuple[str, str]] = []  # messages, by role
        self.heard = ""  # what they were read as, where the model was taught a way to
        self.last: list[Piece] = []  # the last text, as it was read

    # what is said -------------------------------------------------------------------------------------------

    def say(self, message: bytes) -> Iterator[str]:
        """Read a message, and answer it bit by bit; whoever stops half-way keeps what was said so far."""
        self.last = []
        said = [*self.said, ("user", message.decode("utf-8", "replace"))]
        asked = self.words.conversation(said)
        if asked is None:
            self.hear(b"user: " + message + b"\nassistant: ")
        else:
            self.listen(asked)
        answer = bytearray()
        try:
            yield from self.answer(answer)
        finally:
            self.said = [*said, ("assistant", answer.decode("utf-8", "replace"))]
            answered = self.words.conversation(self.said, answer=False)
            if answered is None:
                self.hear(bytes(answer) + b"\n")
            else:
                self.listen(answered)

    def listen(self, text: str) -> None:
        """Read what of a conversation is not in the place yet; where it reads otherwise than before, all of it."""
        if not text.startswith(self.heard):
            forgot = self.session.reset("memory")
            self.session, self.heard = replace(forgot, place=replace(forgot.place, last=self.words.start)), ""
        self.hear(text[len(self.heard):].encode())
        self.heard = text

    def hear(self, text: bytes) -> None:
        """Read, and learn if that is on; the place moves only when all of it was read."""
        if not text:
            return
        tokens, place = self.words.encode(text).tolist(), self.session.place
        if self.words.taught and place.state is None and tokens[0] == place.last:
            del tokens[0]  # what begins a text is in the place, and templates write it, too
        pieces = list(read(self.run.model, self.session.place, tokens, self.learning))
        self.last += pieces
        learned = len(text) if self.learning else 0
        self.session = self.session.after(pieces[-1].place, learned)
        self.saved &= not self.learning

    def answer(self, written: bytearray) -> Iterator[str]:
        """The model's own words; `written` gathers their bytes."""
        place, given = self.session.place, self.given
        text, stops, waiting = Utf8(), Stops([] if self.words.taught else [TURN]), bytearray()
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
                yield visible(text.feed(waiting[:free]))
                del waiting[:free]
                if stops.hit:
                    yield visible(text.feed(b"", final=True))
                    return
        written += waiting
        yield visible(text.feed(waiting, final=True))

    # commands -----------------------------------------------------------------------------------------------

    def command(self, line: str) -> str:
        """Carry out /NAME ARGUMENT and say what happened; ValueError for what cannot be done."""
        name, _, argument = line[1:].partition(" ")
        argument = argument.strip()
        if name == "learn" and argument in ("on", "off"):
            self.learning = argument == "on"
            return f"learning is {argument}"
        if name == "reset":
            self.begin(Session("chat", Place(last=self.words.start)))
            return "all is forgotten; the run is as it was trained"
        if name in ("save", "load") and argument:
            return self.save(argument) if name == "save" else self.load(argument)
        if name == "surprise":
            return self.surprise()
        if name == "help":
            return __doc__.split("Commands: ")[1].strip()
        raise ValueError(f"{line!r} is none of /learn on|off, /reset, /save NAME, /load NAME, /surprise, "
                         "/help, /quit")

    def save(self, name: str) -> str:
        folder = self.run.folder
        vanished = "" if folder.exists() else f"; the run's folder was gone, {folder} is made anew"
        session = replace(self.session, name=name)
        path = session.save(self.folder, self.run.fingerprint)
        self.session, self.saved = session, True
        return f"{name} is saved, {amount(path.stat().st_size)}{vanished}"

    def load(self, name: str) -> str:
        path = file_of(self.folder, name)
        if not path.exists():
            raise ValueError(f"no session {name!r} is in {self.folder}; /save {name} would make one")
        self.begin(Session.load(path, self.run.fingerprint))
        return f"{name} is loaded, {self.session.learned:,} bytes learned so far"

    def keep(self) -> str:
        """At the end: what was learned and not saved is saved."""
        return "" if self.saved else f"{self.save(UNSAVED)}; /load {UNSAVED} goes on with it"

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

    def status(self) -> str:
        parameters, state = hope.count(self.run.model.config), self.session.place.nbytes
        return (f"{self.run.name}: {parameters:,} parameters, state {amount(state)}, process "
                f"{amount(process_bytes())}, learning {'on' if self.learning else 'off'}")


def visible(text: str) -> str:
    """What a terminal may be given: letters, spaces and newlines; anything else as an escape."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


# Lines in, lines out ----------------------------------------------------------------------------------------


def typed(prompt: str) -> Iterator[str]:
    """Messages from a terminal; lines that are pasted together are one."""
    while True:
        try:
            lines = [input(prompt)]
            while os.name == "posix" and select.select([sys.stdin], [], [], 0.02)[0]:
                lines.append(input())  # more was waiting: a paste
        except EOFError:
            return
        except KeyboardInterrupt:
            print("  (/quit ends)")
            continue
        yield "\n".join(lines)


def converse(chat: Chat, lines: Iterator[bytes], show: bool) -> int:
    """Answer line by line; returns whether a line could not be answered."""
    failed = 0
    for line in lines:
        try:
            if line.strip() == b"/quit":
                break
            if line.startswith(b"/"):
                print(chat.command(line.decode("utf-8", "replace").strip()))
            elif line.strip():
                with contextlib.closing(chat.say(line)) as answer:
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


def dim(text: str) -> str:
    width = shutil.get_terminal_size().columns
    return f"\x1b[2m{text[:width]}\x1b[0m"


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m apps.chat", description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    made.add_argument("run", nargs="?", default="", help="a run's folder [the newest in runs/]")
    made.add_argument("--learn", action="store_true", help="begin with learning on")
    made.add_argument("--load", default="", metavar="NAME", help="begin with a saved session")
    made.add_argument("--max-tokens", type=int, default=300, help="length of an answer, at most [300]")
    made.add_argument("--temperature", type=float, default=0.8, help="0 takes the likeliest byte [0.8]")
    made.add_argument("--top-k", type=int, default=0, help="choose among so many bytes; 0 = all [0]")
    made.add_argument("--top-p", type=float, default=0.95, help="choose among so probable bytes [0.95]")
    made.add_argument("--seed", type=int, default=None, help="same seed, same answers [another each time]")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns 0, 1 if something could not be done, 2 for bad input."""
    given = parser().parse_args(arguments)
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    try:
        chat = Chat(Run.open(given.run), given, colours=terminal and "NO_COLOR" not in os.environ)
        if given.load:
            chat.load(given.load)
    except (ValueError, OSError) as error:
        print(f"apps.chat: error: {error}", file=sys.stderr)
        return 2
    sys.stdout.reconfigure(errors="backslashreplace")
    if terminal:
        with contextlib.suppress(ImportError):  # line editing, and pastes in one piece
            import readline  # noqa: F401
        sys.stdin.reconfigure(errors="surrogateescape")  # bytes that are no text are read as they are
        print(f"{chat.status()}\n/help lists the commands")
        lines = (line.encode("utf-8", "surrogateescape") for line in typed("> "))
    else:
        lines = (line.rstrip(b"\r\n") for line in sys.stdin.buffer)
    try:
        failed = converse(chat, lines, terminal)
    except (BrokenPipeError, KeyboardInterrupt):
        failed = 1
        with contextlib.suppress(OSError):  # nobody reads on: what is still buffered goes nowhere
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    try:
        if kept := chat.keep():
            print(kept, file=sys.stderr)
    except OSError as error:
        print(f"apps.chat: what was learned could not be saved: {error}", file=sys.stderr)
        return 1
    return failed


if __name__ == "__main__":
    sys.exit(main())
