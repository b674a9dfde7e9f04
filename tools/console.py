"""What does a person see?  Sizes and times in words, and lines that any screen can show."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path


def ready() -> None:
    """Let output escape what its encoding lacks, and go nowhere where there is no screen; no input is an empty one."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # a program without a console
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8", errors="replace"))
        elif hasattr(stream, "reconfigure"):  # a notebook's and IDLE's have their own ways
            stream.reconfigure(errors="backslashreplace")
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")


def columns(unknown: int = 80) -> int:
    """The width of the screen; `unknown` where it has none or says 0, which Python before 3.11 passes on."""
    return shutil.get_terminal_size((unknown, 24)).columns or unknown


def readable(text: str) -> str:
    """Text with what cannot be printed written as an escape."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


def reason(error: Exception) -> str:
    """What went wrong, in one line."""
    text = str(error)
    if isinstance(error, OSError):
        text = str(error.strerror or error) + (f": {error.filename}" if error.filename else "")
    return text or type(error).__name__


def what_now(folder: Path) -> None:
    """What one may do with a run that is done."""
    where = shlex.quote(str(folder))
    print("\nwhat now?")
    for does, how in (("let it write, and learn from what you say", f"python -m apps.chat {where}"),
                      ("a page where its memories are seen to move", f"python -m apps.serve {where}"),
                      ("a Transformer of its size beside it", f"python train.py --resume {where} --baseline"),
                      ("teach it something else", f"python train.py --from {where} --data OTHER")):
        print(f"  {how}    {does}")


def report(lines: dict[str, str]) -> None:
    """Names and what is to be said of them, in two columns."""
    for name, text in lines.items():
        print(f"{name:>11}  {text}")


def amount(n: float) -> str:
    """Bytes in words."""
    return scaled(n, {"TB": 1e12, "GB": 1e9, "MB": 1e6, "kB": 1e3, "bytes": 1})


def duration(seconds: float) -> str:
    """Seconds in words."""
    return scaled(seconds, {"years": 3.156e7, "days": 86400, "hours": 3600, "minutes": 60, "seconds": 1})


def scaled(n: float, units: dict[str, float]) -> str:
    name = next((name for name, unit in units.items() if n >= unit), list(units)[-1])
    return f"{n / units[name]:.3g} {name}"
