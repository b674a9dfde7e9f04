"""What does a file say without its markup?  Text of HTML, XML, manual pages, POD, dictionaries of dictd."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from html.parser import HTMLParser

SILENT = {"script", "style", "head", "nav", "header", "footer", "svg", "math", "button", "form", "select"}
BLOCKS = {"p", "div", "section", "article", "table", "tr", "ul", "ol", "dl", "dt", "li", "dd", "pre", "blockquote",
          "br", "h1", "h2", "h3", "h4", "h5", "h6", "title", "hr", "page", "steps", "item", "note", "list", "terms"}
DROPPED = ("TH", "if", "ie", "el", "de", "ds", "nr", "so", "hy", "ad", "in", "ta", "tr")  # requests without prose
ENTRY = 20_000  # characters of a dictionary that make a document


def texts(name: str, data: bytes) -> Iterator[str]:
    """The documents in a file, by the end of its name, unpacked where it is packed; none if it is no text."""
    name = name.rsplit("/", 1)[-1]
    if name.endswith((".gz", ".dz")):
        data, name = gzip.decompress(data), name[:-3] if name.endswith(".gz") else name
    if b"\0" in data[:8192]:
        return
    text = decoded(data)
    kind = name.rsplit(".", 1)[-1].lower() if "." in name else ""
    if kind in ("html", "htm", "page", "xhtml"):
        yield of_html(text)
    elif kind == "pod":
        yield of_pod(text)
    elif kind == "dz":
        yield from entries(text, r"\n(?=\S)")
    elif re.fullmatch(r"[1-9][a-z]*", kind):
        yield of_roff(text)
    elif not kind and "\n%\n" in text:  # as fortune(6) has them
        yield from entries(text.replace("\n%\n", "\n\n"), r"\n\n(?=\S)")
    else:
        yield text.replace("\f", "\n").replace("\r\n", "\n")


def decoded(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")


class Page(HTMLParser):
    """Collects what is read of a page; lines keep their breaks within <pre>."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.silent: list[str] = []
        self.kept = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag == "body":  # the end of a head may be left out
            self.silent.clear()
        if tag in SILENT:
            self.silent.append(tag)
        if tag in BLOCKS:
            self.parts.append("\n")
        if tag == "pre":
            self.kept += 1

    def handle_endtag(self, tag: str) -> None:
        if tag in self.silent:  # and whatever in it was left open
            while self.silent.pop() != tag:
                pass
        if tag in BLOCKS:
            self.parts.append("\n")
        if tag == "pre":
            self.kept = max(self.kept - 1, 0)

    def handle_data(self, data: str) -> None:
        if not self.silent:
            self.parts.append(data if self.kept else re.sub(r"\s+", " ", data))


def of_html(text: str) -> str:
    page = Page()
    page.feed(text)
    page.close()
    lines = (line.rstrip() for line in "".join(page.parts).replace("¶", "").splitlines())
    lines = (line.removeprefix(" ") if line[:2].strip() else line for line in lines)
    return spaced("\n".join(lines))


def of_roff(text: str) -> str:
    """A manual page: requests are dropped, the words of macros kept, escapes resolved."""
    out: list[str] = []
    for line in text.splitlines():
        if not line.strip():
            out.append("\n\n")
        elif line[0] in ".'":
            macro, _, rest = line[1:].strip().partition(" ")
            if macro.startswith('\\"') or macro in DROPPED:
                continue
            if macro in ("SH", "SS", "Sh", "Ss"):
                out.append("\n\n" + rest.strip('"') + "\n")
            elif macro in ("PP", "P", "LP", "TP", "IP", "HP", "Pp", "sp", "br", "RS", "RE", "nf", "fi"):
                mark = rest.split('"')[1] if '"' in rest else rest.split(" ")[0]
                out += ["\n" if macro in ("br", "RS", "RE") else "\n\n", f"{mark} " if macro == "IP" else ""]
            else:
                out.append(rest.replace('"', "") + " " if macro not in ("BR", "RB", "IR", "RI", "BI", "IB")
                           else re.sub(r'"([^"]*)"|(\S+)\s*', r"\1\2", rest) + " ")
        else:
            out.append(line + ("\n" if line[:1] in " \t" else " "))
    joined = re.sub(r"\\f(\[\w*\]|\(..|.)|\\s[-+]?\d|\\[&|^/,:%]|\\\".*", "", "".join(out))
    for escape, letter in (("\\-", "-"), ("\\(bu", "•"), ("\\(em", "—"), ("\\(en", "–"), ("\\(aq", "'"), ("\\(dq", '"'),
                           ("\\(lq", "“"), ("\\(rq", "”"), ("\\e", "\\"), ("\\ ", " "), ("\\'", "´"), ("\\(ti", "~"),
                           ("\\~", " "), ("\\(ha", "^"), ("\\(co", "©")):
        joined = joined.replace(escape, letter)
    return spaced(joined)


def spaced(text: str) -> str:
    """Text without spaces at the ends of lines, and with one empty line where there were several."""
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+\n", "\n", text)).strip()


def of_pod(text: str) -> str:
    """Perl's documentation: commands lose their sign, and C<…>, L<…> and others their brackets."""
    text = re.sub(r"(?m)^=(?:encoding|over|back|cut|pod|for|begin|end).*$", "", text)
    text = re.sub(r"(?m)^=(?:head\d|item)\s*", "", text)
    for _ in range(3):  # they may stand in one another
        text = re.sub(r"\b[BCFILSX]<(?:<+ (.*?) >+|([^<>]*))>", r"\1\2", text)
    return spaced(text.replace("E<gt>", ">").replace("E<lt>", "<"))


def entries(text: str, before: str) -> Iterator[str]:
    """A dictionary in documents of neighbouring entries; what stands before an entry is a regular expression."""
    start = 0
    for end in (match.end() for match in re.finditer(before, text)):
        if end - start >= ENTRY:
            yield text[start:end].strip()
            start = end
    yield text[start:].strip()
