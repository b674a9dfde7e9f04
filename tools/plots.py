"""What does a run look like?  loss.png and levels.png, drawn from its log."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tools.folder import read_log

COLOURS = ("#1f5fa8", "#d1731f", "#2f8f4e", "#8a4fa3", "#7a7a7a")


def canvas(title: str, *heights: float, **edges: float) -> tuple[Any, Any]:
    """A figure with panels of these heights, one above the other; it needs no display.

    edges: of the panels, as shares of the figure.
    """
    from matplotlib.figure import Figure  # here, for it takes as long as the rest of the start
    from matplotlib.ticker import MaxNLocator

    figure = Figure((8, 4.5), dpi=140, layout=None if edges else "constrained")
    panels = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights, gridspec_kw=edges)[:, 0]
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
        panel.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    figure.suptitle(title, x=0.01, ha="left", size=11)
    return figure, panels


def tried(*pictures: Callable[[], None]) -> bool:
    """Draw pictures, or say in a line why there are none: that is no reason to lose anything else."""
    try:
        for draw in pictures:
            draw()
    except Exception as error:  # a Matplotlib that is broken, set up for a notebook, or not there raises anything
        print(f"no pictures: {type(error).__name__}: {error}".splitlines()[0])
        return False
    return True


def draw_loss(folder: Path, title: str, found: dict[str, float]) -> None:
    """loss.png: bits per byte of every step, and on validation text."""
    figure, (panel,) = canvas(f"Bits per byte while training, and on validation text (dashed): {title}", 1,
                             left=0.07, right=0.85, bottom=0.11, top=0.92)
    colours, last = dict(zip(("this run", "transformer"), COLOURS, strict=False)), 0
    for name, where in (("this run", folder), ("transformer", folder / "baseline")):
        if name in found:
            lines = read_log(where)
            steps, bits = [line["step"] for line in lines], [line["bits_per_byte"] for line in lines]
            panel.plot(steps, bits, color=colours[name], alpha=0.3, linewidth=0.8)
            panel.plot(steps, smooth(bits), color=colours[name], linewidth=2)
            last = max(last, *steps)
    low, high = min(panel.get_ylim()[0], *found.values()) - 0.1, max(panel.get_ylim()[1], *found.values())
    place = low
    for name, value in sorted(found.items(), key=lambda item: item[1]):
        colour, place = colours.get(name, "0.45"), max(value, place + 0.045 * (high - low))  # labels apart
        panel.axhline(value, color=colour, linewidth=0.9, linestyle=(0, (4, 3)))
        panel.annotate(f"{name} {value:.2f}", (1.01, place), xycoords=panel.get_yaxis_transform(),
                       color=colour, va="center", size=9)
    panel.set(xlabel="step", xlim=(0, last), ylim=(low, high))
    figure.savefig(folder / "loss.png")


def smooth(values: Sequence[float]) -> list[float]:
    """A centred mean over a thirtieth of the values, over fewer near the ends."""
    reach = [min(len(values) // 60, i) for i in range(len(values))]
    return [float(np.mean(values[i - r:i + r + 1])) for i, r in enumerate(reach)]


def draw_levels(folder: Path, close: int = 64) -> None:
    """levels.png: which level moved at which of the last steps, and how far at every step."""
    figure, (raster, path) = canvas("Which level moved when, and how far", 1, 1.7,
                                    left=0.15, right=0.98, bottom=0.11, top=0.92, hspace=0.35)
    lines = read_log(folder)
    steps, chunks = np.array([line["step"] for line in lines]), list(lines[-1]["level_change"])
    for row, chunk in enumerate(chunks):
        colour = COLOURS[row % len(COLOURS)]
        moves = np.array([line["level_change"][chunk] for line in lines])
        raster.barh(row, 0.9, left=steps[-close:][moves[-close:] > 0] - 0.45, height=0.8, color=colour)
        path.semilogy(steps[moves > 0], moves[moves > 0], ".", markersize=4, color=colour)
    raster.set(yticks=range(len(chunks)), yticklabels=[f"chunk size {chunk}" for chunk in chunks],
               ylim=(len(chunks) - 0.5, -0.5), xlim=(max(steps[-1] - close, 0) + 0.5, steps[-1] + 0.5))
    raster.set_xlabel(f"step, the last {min(close, steps[-1])}")
    for row, label in enumerate(raster.get_yticklabels()):
        label.set_color(COLOURS[row % len(COLOURS)])
    path.set(xlabel="step", ylabel="change of weights ‖Δθ‖/‖θ‖", xlim=(0, steps[-1] + 0.5))
    figure.savefig(folder / "levels.png")
