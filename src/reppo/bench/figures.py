"""Figures as SVG text: the same bytes from the same numbers, text that stays text, ink that follows the page's colour."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from reppo.plot import SEED_COLOURS, short

Array = NDArray[np.float64]

INK = "#010203"  #: stands for the page's own colour until it is written
COLOURS = (*SEED_COLOURS, INK)
COLOUR_NAMES = ("blue", "red", "green", "pink", "orange", "light blue")
#: Colours of algorithms, the same in every figure; those that share one are in different suites, or one is published.
OWN = {
    name: COLOURS[i]
    for i, names in enumerate(
        (
            ("reppo", "reppo_large", "reppo_aux_partial_reset"),
            ("reppo-score_q", "reppo-medium", "reppo_medium", "reppo_noaux_partial_reset", "sbx-ppo"),
            ("reppo-score_gae", "reppo-small", "reppo_small", "reppo_aux_no_partial_reset", "sbx-sac"),
            ("ppo", "sb3-ppo", "ppo_50M", "ppo_maniskill"),
            ("sac", "sb3-sac", "sac_brax_5M", "reppo_noaux_no_partial_reset"),
            ("fasttd3", "fasttd3_A", "ppo_maniskill_50M"),
            ("reppo-averaged",),
        )
    )
    for name in names
}
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)))  #: with which lines that share a colour are told apart
CROWDED = len(COLOURS) + 1  #: so many curves in one figure are not told apart
FONTS = "'DejaVu Sans', 'Verdana', sans-serif"  #: as Matplotlib writes those of `STYLE`
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "reppo",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana"],
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "legend.frameon": False,
    "grid.color": INK,
    "grid.alpha": 0.15,
    "grid.linewidth": 0.5,
}


class Line(NamedTuple):
    """A curve with the ends of its interval; arrays of one length."""

    name: str
    x: Array
    y: Array
    low: Array
    high: Array
    published: bool = False
    style: tuple[str, object] | None = None  #: colour and dash, where `styles` does not choose them
    hollow: NDArray[np.bool_] | None = None  #: points are drawn, these of them hollow; without it, none are


class Bar(NamedTuple):
    """A number with the ends of its interval."""

    name: str
    value: float
    low: float
    high: float
    published: bool = False


def svg(draw: Callable[[Axes], None], title: str, size: tuple[float, float] = (5.2, 3.1)) -> str:
    """A figure as an ``<svg>`` element."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure.subplots())
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return inlined(file.getvalue(), title)


def inlined(text: str, title: str) -> str:
    """What a page needs of an SVG file: the element, with a title for readers who hear it, and without ids that clash."""
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[A-Za-z0-9_.]+_\d+">', "<g>", text)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    text = re.sub(r' d="[^"]*"', lambda path: shorter(path[0]), text)
    text = re.sub(r"\n\s+", "\n", text)
    text = text.replace(INK, "currentColor")
    text = text.replace(f"font-family: {FONTS}; ", "")  # said once, for all
    head, _, rest = renamed(text).partition(">")
    return f'{head} role="img" aria-label="{escaped(title)}" font-family="{FONTS}">{rest}'


def renamed(text: str) -> str:
    """An SVG with other ids for its paths: Matplotlib's are hashes of numbers to the last bit, which differs from one
    processor to another. Ours are of what is seen, so that those of two figures on a page do not clash."""
    ids = list(dict.fromkeys(re.findall(r'\bid="([a-z][0-9a-f]{10})"', text)))
    for i, name in enumerate(ids):
        text = text.replace(name, f"@{i}@")
    seen = hashlib.sha256(text.encode()).hexdigest()[:8]
    return re.sub(r"@(\d+)@", rf"p{seen}-\1", text)


def shorter(path: str) -> str:
    """An SVG path to a tenth of a point, which nobody sees; six digits are half of the page."""
    path = re.sub(r"-?\d+\.\d+", lambda number: f"{float(number[0]):.1f}".removesuffix(".0"), path)
    if not re.search(r"[CQ]", path):
        path = re.sub(r"\s+L ", " ", path)  # points after the first one need no letter
    return re.sub(r"\s+", " ", path)


def escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")


def styles(lines: Sequence[Line | Bar]) -> list[tuple[str, object]]:
    """Colour and dash of each: ours are solid, and what was published is dashed. An algorithm of `OWN` has its colour in
    every figure, and others the first that is free among those of their dash."""
    found: list[tuple[str, object]] = []
    for i, line in enumerate(lines):
        dash = DASHES[1 if line.published else 0]
        taken = {colour for colour, other in found if other == dash}
        kept = {OWN[other.name] for other in lines[i:] if other.name in OWN and other.published == line.published}
        free = [colour for colour in COLOURS if colour not in taken | kept]
        own = OWN.get(line.name, "")
        chosen = own if own and own not in taken else [*free, COLOURS[i % len(COLOURS)]][0]
        found.append((isinstance(line, Line) and line.style) or (chosen, dash))
    return found


def colour_name(algorithm: str) -> str:
    """In words, of one of `OWN`."""
    return COLOUR_NAMES[COLOURS.index(OWN[algorithm])]


def lines(
    curves: Sequence[Line],
    title: str,
    *,
    x: str,
    y: str,
    size: tuple[float, float] = (5.2, 3.4),
    legend: bool = True,
    y_range: tuple[float, float] | None = None,
    log: bool = False,
) -> str:
    """Curves with shaded intervals; ``log``: both axes are logarithmic, with ticks where the curves have points. See
    `multiples` for `CROWDED` ones."""

    def draw(axes: Axes) -> None:
        for curve, (colour, dash) in zip(curves, styles(curves), strict=True):
            axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.15, linewidth=0)
            axes.plot(curve.x, curve.y, color=colour, linestyle=dash, linewidth=1.6, label=curve.name)
            if curve.hollow is not None:
                for shown, face in ((~curve.hollow, colour), (curve.hollow, "none")):
                    axes.plot(curve.x[shown], curve.y[shown], "o", markersize=4.5, color=colour, markerfacecolor=face)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        if log:
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.set_xticks(np.unique(np.concatenate([curve.x for curve in curves])), minor=False)
            axes.set_xticks([], minor=True)
        axes.xaxis.set_major_formatter(lambda value, _: short(value))
        axes.yaxis.set_major_formatter(lambda value, _: short(value))
        axes.grid()
        if y_range is not None:
            axes.set_ylim(*y_range)
        if legend:
            axes.figure.legend(loc="outside upper left", ncols=2, fontsize=8, handlelength=1.8)  # pyright: ignore
        else:
            axes.set_title(title, fontsize=9, loc="left")

    return svg(draw, title, size)


def multiples(curves: Sequence[Line], title: str, *, x: str, y: str) -> str:
    """A small panel for each curve but the first, which is in all of them, dashed, to compare with."""
    first, *others = curves
    columns = 3

    def draw(axes: Axes) -> None:
        figure = axes.figure
        assert isinstance(figure, Figure)
        axes.remove()
        panels = figure.subplots(-(-len(others) // columns), columns, sharex=True, sharey=True, squeeze=False).flatten()
        for panel, curve in zip(panels, others, strict=False):
            panel.fill_between(curve.x, curve.low, curve.high, color=COLOURS[0], alpha=0.15, linewidth=0)
            panel.plot(first.x, first.y, color=INK, linestyle=DASHES[1], linewidth=0.8)
            panel.plot(curve.x, curve.y, color=COLOURS[0], linewidth=1.4)
            panel.set_title(curve.name, fontsize=8)
            panel.xaxis.set_major_locator(MaxNLocator(2))
            panel.yaxis.set_major_locator(MaxNLocator(3))
            panel.xaxis.set_major_formatter(lambda value, _: short(value))
            panel.yaxis.set_major_formatter(lambda value, _: short(value))
            panel.grid()
        for panel in panels[len(others) :]:
            panel.remove()
        figure.supxlabel(x, fontsize=9)
        figure.supylabel(y, fontsize=9)

    return svg(draw, title, (5.2, 0.6 + 1.1 * -(-len(others) // columns)))


def bars(values: Sequence[Bar], title: str, *, x: str, reference: float | None = None) -> str:
    """Numbers under each other, each with its interval."""

    def draw(axes: Axes) -> None:
        for i, bar in enumerate(values):
            draw_bar(axes, i, bar)
        if reference is not None:
            axes.axvline(reference, color=INK, linewidth=0.8, linestyle=DASHES[1])
        label_bars(axes, [bar.name for bar in values], x)

    return svg(draw, title, (5.2, 0.9 + 0.24 * len(values)))


def memory(values: Sequence[tuple[Bar, Bar, float]], title: str, *, y: str) -> str:
    """A row for each algorithm: what it holds, a bar from its networks and batch to the whole, and hollow what its process
    takes, all in MiB; and beside that what it has learned."""

    def draw(axes: Axes) -> None:
        figure: Any = axes.figure
        axes.remove()
        left, right = figure.subplots(1, 2, sharey=True)
        for i, (held, learned, taken) in enumerate(values):
            draw_bar(left, i, held)
            left.plot([taken], [i], "o", markersize=6, color=COLOURS[0], markerfacecolor="none")
            draw_bar(right, i, learned)
        left.set_xscale("log")
        left.xaxis.set_major_formatter(lambda value, _: short(value))
        label_bars(left, [held.name for held, *_ in values], "memory, MiB")
        label_bars(right, [held.name for held, *_ in values], y)

    return svg(draw, title, (5.2, 0.9 + 0.24 * len(values)))


def draw_bar(axes: Axes, place: int, bar: Bar) -> None:
    colour = COLOURS[1 if bar.published else 0]
    axes.plot([bar.low, bar.high], [place, place], color=colour, linewidth=5, alpha=0.35, solid_capstyle="butt")
    axes.plot([bar.value], [place], color=colour, marker="|", markersize=11, markeredgewidth=2)


def label_bars(axes: Axes, names: Sequence[str], x: str) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)  # downwards, with room for whole bars at both ends
    axes.set_xlabel(x)
    axes.grid(axis="x")
