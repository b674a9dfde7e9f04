"""Draw a block and its clocks, as `tools.timetable` has them: `python docs/block.py` writes docs/block.svg.

    python docs/block.py tiny --out tiny.svg          of another preset

Left, how x goes through a block; right, when each part moves while the slowest one moves once.
"""

from __future__ import annotations

import argparse
import sys
from html import escape
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from config import PRESETS, Config  # noqa: E402
from tools.folder import write_text  # noqa: E402
from tools.timetable import timetable  # noqa: E402

STYLE = """
    :root { --paper: #ffffff; --ink: #1f2328; --soft: #656d76; --line: #8c959f; --box: #f6f8fa;
            --memory: #8250df; --level: #0969da; --rest: #9a6700; }
    @media (prefers-color-scheme: dark) {
      :root { --paper: #0d1117; --ink: #e6edf3; --soft: #9198a1; --line: #6e7681; --box: #161b22;
              --memory: #bc8cff; --level: #58a6ff; --rest: #d29922; } }
    text { font: 14px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: var(--ink); }
    .small { font-size: 12px; fill: var(--soft); }
    .paper { fill: var(--paper); }
    .box { fill: var(--box); stroke: var(--line); }
    .frame { fill: none; stroke: var(--line); stroke-dasharray: 4 3; }
    .wire { fill: none; stroke: var(--soft); stroke-width: 1.5; }
    .head { fill: var(--soft); }
    .memory { stroke: var(--memory); fill: var(--memory); } .level { stroke: var(--level); fill: var(--level); }
    .rest { stroke: var(--rest); fill: var(--rest); }
    .tick { stroke-width: 3; } .track { stroke: var(--line); stroke-width: 1; } .many { stroke: none; opacity: 0.75; }
"""
LEFT, WIDE, TRACK, LONG = 74, 250, 500, 340  # where boxes begin, how wide they are; the same of tracks
GREEK = {"eta": "η", "alpha": "α"}
MIXERS = {"titans": "self-modifying Titans", "attention": "attention"}


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:g}" y="{y:g}" class="{kind}" text-anchor="{anchor}">{escape(words)}</text>'


def wire(path: str) -> str:
    return f'<path class="wire" d="{path}" marker-end="url(#arrow)"/>'


def residual(x: float, start: float, end: float, side: float) -> list[str]:
    """A way around what lies between two heights, and the sum where it comes back."""
    turn = x + 9 if side > x else x - 9
    return [wire(f"M{x} {start}H{side}V{end}H{turn}"), f'<circle class="box" cx="{x}" cy="{end}" r="9"/>',
            text(x, end + 5, "+", anchor="middle")]


def track(y: float, kind: str, chunk: float, slowest: float) -> list[str]:
    """When one part moves: a tick at the end of every chunk, a bar where these would touch."""
    moves = round(slowest / chunk) if chunk else 0
    made = [f'<line class="track" x1="{TRACK}" y1="{y}" x2="{TRACK + LONG}" y2="{y}"/>']
    if moves > LONG / 8:
        made.append(f'<rect class="{kind} many" x="{TRACK}" y="{y - 8}" width="{LONG}" height="16"/>')
    else:
        for n in range(1, moves + 1):
            x = TRACK + LONG * n / moves
            made.append(f'<line class="{kind} tick" x1="{x:g}" y1="{y - 9}" x2="{x:g}" y2="{y + 9}"/>')
    times = "once" if moves == 1 else f"{moves:,} times" if moves else "at every token anew"
    return [*made, text(TRACK + LONG + 14, y + 5, times)]


def draw(config: Config, step_tokens: int) -> str:
    """The drawing as SVG, light or dark as the reader's screen is."""
    rows = timetable(config, step_tokens)
    first = next(n for n, row in enumerate(rows) if row[0].startswith("level"))
    outside = next(n for n, row in enumerate(rows) if n >= first and not row[0].startswith("level"))
    rows = [*rows[:first][::-1], *rows[first:]]  # what makes k, v, η and α comes before the main memory
    slowest, axis = max(chunk for _, chunk, _, _ in rows), LEFT + WIDE / 2
    ys, y = [], 132
    for n in range(len(rows)):
        ys.append(y)
        y += 50 if n < first - 1 else 96 if n == first - 1 else 74 if n < outside - 1 else 130 if n < outside else 50
    joint, end, height = ys[first - 1] + 50, ys[outside - 1] + 68, y + 2
    name = " + ".join(MIXERS.get(part, part) for part in config.mixer.split("+"))
    made = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 940 {height + 30}" role="img" '
        f'aria-label="A block of Hope, and when each part of it moves">',
        f"<style>{STYLE}</style>",
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path class="head" d="M0 0L8 4L0 8z"/></marker></defs>',
        f'<rect class="paper" width="940" height="{height + 30}" rx="8"/>',
        text(axis, 34, f"x (B, {config.segment}, {config.width})", anchor="middle"),
        text(TRACK, 34, f"moves within {slowest:,.0f} tokens = {slowest / step_tokens:g} steps of the optimiser"),
        text(TRACK, 52, "a tick is a move, at the end of a chunk of C tokens", "small"),
        wire(f"M{axis} 44V84"),
        f'<rect class="frame" x="{LEFT - 16}" y="86" width="{WIDE + 32}" height="{ys[first - 1] - 56}" rx="8"/>',
        text(LEFT, 104, name, "small"),
        wire(f"M{axis} {ys[first - 1] + 30}V{joint - 10}"), *residual(axis, 60, joint, LEFT - 40),
        wire(f"M{axis} {joint + 9}V{ys[first] - 19}"),
    ]
    for n, (row, chunk, _, _) in enumerate(rows):
        y, kind = ys[n], "memory" if n < first else "level" if n < outside else "rest"
        words = row.split(", chunk size")[0] if kind == "level" else row.removesuffix(" of memories")
        for latin, greek in GREEK.items():
            words = words.replace(latin, greek)
        made += [f'<rect class="box" x="{LEFT}" y="{y - 18}" width="{WIDE}" height="36" rx="6"/>',
                 f'<rect class="{kind}" x="{LEFT}" y="{y - 18}" width="5" height="36" rx="2"/>',
                 text(LEFT + 16, y + 5, words, "small" if kind == "rest" else ""),
                 text(TRACK - 16, y + 5, f"C = {chunk:,.0f}", anchor="end"), *track(y, kind, chunk, slowest)]
        if kind == "level":
            below = ys[n + 1] - 19 if n + 1 < outside else end - 16
            made += [wire(f"M{axis} {y + 18}V{y + 27}"), wire(f"M{axis} {y + 45}V{below}"),
                     *residual(axis, y - 24, y + 36, LEFT + WIDE + 16)]
    made += [text(axis, end, "x of the next block", anchor="middle"),
             text(LEFT, ys[outside] - 28, "what the optimiser learns beside the levels", "small"),
             f'<line class="track" x1="{TRACK}" y1="{height - 22}" x2="{TRACK + LONG}" y2="{height - 22}"/>',
             text(TRACK, height - 4, "0", "small"),
             text(TRACK + LONG, height - 4, f"{slowest:,.0f} tokens", "small", "end"), "</svg>"]
    return "\n".join(made) + "\n"


def of(preset: str) -> str:
    """The drawing of a preset."""
    config, training = PRESETS[preset]
    return draw(config, training.batch * training.accumulate * config.segment)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", nargs="?", default="nano", choices=list(PRESETS), help="whose block [nano]")
    parser.add_argument("--out", type=Path, default=HERE / "block.svg", help="the file [docs/block.svg]")
    given = parser.parse_args()
    write_text(given.out, of(given.preset))


if __name__ == "__main__":
    main()
