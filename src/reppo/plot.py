"""The learning curve of a run: as a PNG file, and as text for the terminal."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from rich.text import Text

from reppo.errors import ConfigError
from reppo.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Rows = Sequence[dict[str, float]]


def read_rows(path: Path) -> list[dict[str, float]]:
    """The rows of a CSV table of numbers; empty cells are NaN. Raises `ConfigError` where it is something else."""
    rows, line = [], 0
    try:
        with open(path, newline="") as file:
            for row in (reader := csv.DictReader(file, restkey="")):
                line = reader.line_num
                rows.append({name: float(value or "nan") for name, value in row.items()})
    except (ValueError, TypeError, csv.Error):
        raise ConfigError(f"{path} is damaged: it is no table of numbers after line {line}") from None
    return rows


def short(x: float) -> str:
    """A number for an axis: 1000, 400k, 50M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(x) >= size:
            return f"{x / {'G': 1e9, 'M': 1e6, 'k': 1e3}[letter]:.4g}{letter}"
    return f"{x:.4g}"


class Curve(NamedTuple):
    """A learning curve, steps ascending: the mean return and the range around it, arrays of one length."""

    steps: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def of(cls, evaluations: Sequence[Rows]) -> Curve:
        """From the rows of every evaluation. Of one seed: the mean and standard deviation over its episodes; of several:
        their mean and their range. An evaluation that is not finite is left out."""
        points = [spread(rows) for rows in evaluations]
        table = np.array([p for p in points if np.isfinite(p).all()], float).reshape(-1, 4)
        return cls(*table[np.argsort(table[:, 0], kind="stable")].T)


def spread(rows: Rows) -> tuple[float, float, float, float]:
    """Steps, mean, lower and upper end of one evaluation; see `Curve.of`."""
    means = [row["eval/return"] for row in rows]
    steps, mean = rows[0]["env_steps"], sum(means) / len(means)
    if len(rows) > 1:
        return steps, mean, *(((math.nan, math.nan)) if math.isnan(mean) else (min(means), max(means)))
    return steps, mean, mean - rows[0]["eval/return_std"], mean + rows[0]["eval/return_std"]


# ------------------------------------------------------------------------------------------- PNG

SEED_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  #: Okabe and Ito: safe to tell apart
MANY = len(SEED_COLOURS)  #: more seeds than this are drawn alike
INK, FAINT = "0.15", "0.55"


def plot_run(directory: Path) -> Path:
    """Draw ``curve.png`` from ``evaluations.csv``: each seed's mean greedy return, the mean of several, and the spread."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    description = json.loads((directory / "config.json").read_text())
    rows = read_rows(directory / "evaluations.csv")
    figure = Figure(figsize=(7, 4.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    seeds = sorted({row["seed"] for row in rows})
    if len(seeds) > 1:
        _draw_seeds(axes, rows, seeds)
    else:
        _draw_seed(axes, rows)
    _frame(axes, description, rows)
    path = directory / "curve.png"
    with replacing(path) as file:
        figure.savefig(file, format="png")
    return path


def _draw_seed(axes: Axes, rows: Rows) -> None:
    """One seed: its mean, and the standard deviation over its episodes."""
    curve = Curve.of([[row] for row in rows])
    colour = SEED_COLOURS[0]
    axes.fill_between(curve.steps, curve.low, curve.high, color=colour, alpha=0.18, linewidth=0)
    axes.plot(curve.steps, curve.mean, color=colour, linewidth=1.8, marker="o", markersize=3.5)
    if len(curve.steps) == 1:  # a band of no width cannot be seen
        axes.errorbar(curve.steps, curve.mean, (curve.high - curve.low) / 2, color=colour, capsize=3)


def _draw_seeds(axes: Axes, rows: Rows, seeds: Sequence[float]) -> None:
    """Several seeds: each one, the range that they span, and their mean above all."""
    by_steps = [[row for row in rows if row["env_steps"] == steps] for steps in sorted({row["env_steps"] for row in rows})]
    curve = Curve.of([group for group in by_steps if len(group) == len(seeds)])
    axes.fill_between(curve.steps, curve.low, curve.high, color=FAINT, alpha=0.15, linewidth=0)
    for i, seed in enumerate(seeds):
        own = [row for row in rows if row["seed"] == seed]
        few = len(seeds) <= MANY
        axes.plot(
            [row["env_steps"] for row in own],
            [row["eval/return"] for row in own],
            color=SEED_COLOURS[i] if few else FAINT,
            linewidth=1.1 if few else 0.7,
            alpha=0.9 if few else 0.6,
            marker="o",
            markersize=2.2 if few else 1.2,
            label=f"seed {seed:.0f}" if few else (f"{len(seeds)} seeds" if i == 0 else None),
        )
    axes.plot(curve.steps, curve.mean, color=INK, linewidth=2.1, marker="o", markersize=3.2, label="mean")
    # Above the axes, where it hides no curve.
    axes.legend(frameon=False, fontsize=8, ncols=MANY + 1, loc="lower left", bbox_to_anchor=(-0.01, 0.99), handlelength=1.4)


def _frame(axes: Axes, description: dict[str, Any], rows: Rows) -> None:
    """Title, axes, the best possible return, and what the shading means."""
    several = len(description["seeds"]) > 1
    episodes = f"{rows[0]['eval/episodes']:.0f} greedy episodes per point; " if rows else ""
    shading = "shaded: range of the seeds" if several else "shaded: ± one standard deviation over episodes"
    axes.set_title(description["env"].rpartition("/")[2], loc="left", fontsize=12, color=INK, pad=22 if several else 8)
    axes.set_ylabel("return per episode", color=INK)
    axes.set_xlabel(f"environment steps{' per seed' if several else ''}\n", color=INK)
    axes.annotate(
        episodes + shading, (1, 0), (0, -38), "axes fraction", "offset points", ha="right", fontsize=7.5, color=FAINT
    )
    best = description["spec"]["max_return"]
    if best is not None:
        axes.axhline(best, color=FAINT, linewidth=0.9, linestyle=(0, (5, 3)), zorder=1)
        axes.annotate(
            f"at most {short(best)}", (0, best), (3, -3), textcoords="offset points", va="top", fontsize=8, color=FAINT
        )
        if all(row["eval/return_min"] >= 0 for row in rows) and best > 0:
            axes.set_ylim(0, 1.05 * best)
    if not any(math.isfinite(row["eval/return"]) for row in rows):
        axes.annotate("no finite return", (0.5, 0.5), xycoords="axes fraction", ha="center", color=FAINT)
    total = max([description["config"]["total_steps"], *(row["env_steps"] for row in rows)])
    axes.set_xlim(-0.015 * total, 1.02 * total)
    axes.xaxis.set_major_formatter(lambda x, _: short(x))
    axes.yaxis.set_major_formatter(lambda y, _: short(y))
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=9)
    axes.grid(alpha=0.2, linewidth=0.6)
    axes.set_axisbelow(True)


# ------------------------------------------------------------------------------------------- text

LINE, BAND, REFERENCE = range(3)  #: what a character shows; the first that is present wins
BRAILLE = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])  #: bits of a character's 4 x 2 dots


def text_chart(
    curve: Curve,
    *,
    total: float,
    best: float | None,
    width: int,
    height: int,
    styles: Sequence[str] = ("bold", "", "dim"),
    unicode: bool = True,
) -> list[Text]:
    """A learning curve of ``height`` rows, ``width`` columns wide, and an axis of two rows below it.

    ``styles`` are those of the mean, of the spread and of everything else. Without ``unicode`` it is drawn in ASCII.
    """
    bottom, top = _limits(curve, best)
    labels = {0: short(top), height - 1: short(bottom)}
    if height % 2:
        labels[height // 2] = short((top + bottom) / 2)
    margin = max(map(len, labels.values())) + 2
    columns = max(width - margin - 4, 1)
    right = max([total, 1.0, *curve.steps])
    dots = (4, 2) if unicode else (1, 1)
    layers = _rasterise(curve, right, bottom, top, best, height * dots[0], columns * dots[1])
    cells = [layer.reshape(height, dots[0], columns, dots[1]).transpose(0, 2, 1, 3) for layer in layers]

    tick, side, corner, floor = "┤│╰─" if unicode else "||+-"
    lines = []
    for y in range(height):
        text = Text(f"{labels.get(y, ''):>{margin}} {tick if y in labels else side}", style=styles[REFERENCE])
        for x in range(columns):
            shown = next((layer for layer in (LINE, BAND, REFERENCE) if cells[layer][y, x].any()), None)
            if shown is None:
                text.append(" ")
                continue
            glyph = chr(0x2800 + int(BRAILLE[cells[shown][y, x]].sum())) if unicode else "*:-"[shown]
            text.append(glyph, style="not dim " + styles[shown] if shown != REFERENCE else None)
        lines.append(text)
    lines.append(Text(" " * (margin + 1) + corner + floor * columns, style=styles[REFERENCE]))
    name = "environment steps" if columns > 40 else ""
    under = "0" + name.center(columns - 1 - len(short(right))) + short(right)
    lines.append(Text(" " * (margin + 2) + under, style=styles[REFERENCE]))
    return lines


def _limits(curve: Curve, best: float | None) -> tuple[float, float]:
    """Ends of the vertical axis. Where the best possible is known, the spread does not stretch it beyond that."""
    if not len(curve.steps):
        return (0.0, 1.0) if best is None else axis_range(min(best, 0.0), max(best, 0.0))
    if best is None:
        return axis_range(float(curve.low.min()), float(curve.high.max()))
    return axis_range(min(best, float(curve.mean.min())), max(best, float(curve.mean.max())))


def axis_range(low: float, high: float) -> tuple[float, float]:
    """Round numbers around a range, with at most four round steps between them."""
    span = high - low
    if span <= 1e-6 * max(abs(low), abs(high), 1e-6):
        span = max(abs(high), 1.0)
        low, high = low - span / 2, high + span / 2
    step = 10.0 ** math.floor(math.log10(span / 4))
    step = next(multiple * step for multiple in (1, 2, 5, 10, 20) if span <= 4.001 * multiple * step)
    return step * math.floor(low / step + 1e-9), step * math.ceil(high / step - 1e-9)


def _rasterise(
    curve: Curve, right: float, bottom: float, top: float, best: float | None, rows: int, columns: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Dots ``[rows, columns]`` of the mean, of the spread around it, and of a dotted line at the best possible."""
    line, band, reference = np.zeros((3, rows, columns), bool)

    def row(value: np.ndarray | float) -> np.ndarray:
        return np.clip(np.round((top - np.asarray(value)) / (top - bottom) * (rows - 1)), -1, rows).astype(int)

    if best is not None:
        reference[row(best), ::2] = True
    if not len(curve.steps):
        return line, band, reference
    scale = (columns - 1) / right
    first, last = round(curve.steps[0] * scale), round(curve.steps[-1] * scale)
    at = np.arange(first, last + 1)
    mean, low, high = (row(np.interp(at / scale, curve.steps, values)) for values in curve[1:])
    for i, x in enumerate(at):
        y0, y1 = sorted((mean[i], mean[min(i + 1, len(at) - 1)]))
        line[max(y0, 0) : y1 + 1, x] = True
        inside = np.arange(max(high[i], 0), min(low[i], rows - 1) + 1)
        band[inside[(inside + x) % 2 == 0], x] = True  # every other dot: lighter than the line
    return line, band, reference
