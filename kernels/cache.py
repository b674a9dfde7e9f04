"""Where compiled kernels are kept from one process to the next.

Every kernel's file has folders of its own, named after a hash of all the sources that its code is made of: an edit of
any of them is seen, and one elsewhere throws nothing away.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import pickle
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps

KEPT = 8  # folders of former versions of a kernel's sources


def _candidates() -> list[Path]:
    """Where compiled code may be kept: NUMBA_CACHE_DIR alone, if it is set; else beside the sources, or at home."""
    if chosen := numba.config.CACHE_DIR:
        return [Path(chosen)]
    home = os.environ.get("XDG_CACHE_HOME") or Path("~").expanduser() / ".cache"
    return [Path(__file__).parent / "__pycache__", Path(home) / "kernels"]


def writable() -> Path | None:
    """The first of them in which a file can be made."""
    for folder in _candidates():
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
            return folder
    return None


def sources(path: Path) -> list[Path]:
    """A file and all those of this package that it imports, at any depth; not cache and ahead, which change no code."""
    found, waiting = [], [path]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.append(path)
            names = re.findall(r"^ *(?:from|import) kernels\.(?!cache\b|ahead\b)([\w.]+)",
                               path.read_text(encoding="utf-8"), re.MULTILINE)
            waiting += [Path(__file__).parent.joinpath(*name.split(".")).with_suffix(".py") for name in names]
    return sorted(found)


@functools.cache
def version(path: Path) -> str:
    """A hash of all that the compiled code of a file depends on, but for the processor."""
    made_by = sys.version, numba.__version__, numba.config.OPT
    return hashlib.sha256(repr((made_by, [p.read_bytes() for p in sources(path)])).encode()).hexdigest()[:16]


class Cache:
    """Numba's cache of one function: a file for every signature and processor, behind the file's own hash.

    A file that is empty, cut or changed counts as missing. Where none can be written, the process goes on without.
    """

    def __init__(self, function: Callable):
        path = Path(function.__code__.co_filename)
        self.name, self.prefix = function.__name__, f"{function.__module__}-"
        self.folder = self.prefix + version(path)  # now: a later edit is not what was imported

    def _file(self, signature: Any, codegen: Any) -> str:
        target = hashlib.sha256(repr((str(signature), codegen.magic_tuple())).encode()).hexdigest()[:16]
        return f"{self.name}-{target}.bin"

    def holds(self, signature: Any, target_context: Any) -> bool:
        """Whether there is a file, right or wrong."""
        return any((folder / self.folder / self._file(signature, target_context.codegen())).exists()
                   for folder in _candidates())

    def load_overload(self, signature: Any, target_context: Any) -> Any:
        target_context.refresh()
        for folder in _candidates():
            file = folder / self.folder / self._file(signature, target_context.codegen())
            with contextlib.suppress(Exception):  # whatever is wrong with a file, it can be made anew
                content = file.read_bytes()
                if hashlib.sha256(content[32:]).digest() == content[:32]:
                    with contextlib.suppress(OSError):
                        os.utime(file.parent)  # still in use
                    return CompileResult._rebuild(target_context, *pickle.loads(content[32:]))
        return None

    def save_overload(self, signature: Any, result: Any) -> None:
        folder = writable()
        if folder is None or result.library.has_dynamic_globals:
            return
        content, part = dumps(result._reduce()), None
        try:
            self._make(folder)
            with tempfile.NamedTemporaryFile(dir=folder / self.folder, delete=False) as file:
                part = file.name
                file.write(hashlib.sha256(content).digest() + content)
            os.replace(part, folder / self.folder / self._file(signature, result.codegen))
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            _say_not_kept(folder, "its disk is full" if full else error.strerror or str(error))
        finally:
            if part:
                Path(part).unlink(missing_ok=True)

    def _make(self, folder: Path) -> None:
        """The folder of this version; of former ones of this kernel the last few stay, for other checkouts."""
        if not (folder / self.folder).exists():
            (folder / self.folder).mkdir(exist_ok=True)
            with contextlib.suppress(OSError):  # another process does the same
                for old in sorted(folder.glob(f"{self.prefix}*"), key=os.path.getmtime)[:-KEPT]:
                    shutil.rmtree(old)

    cache_path = property(lambda self: self.folder)  # and what else Numba may ask of a cache
    enable = disable = flush = lambda self: None


@functools.cache
def _say_not_kept(folder: Path, why: str) -> None:
    if sys.stderr:
        print(f"compiled kernels are not kept in {folder} ({why}): the next start compiles them again",
              file=sys.stderr, flush=True)
