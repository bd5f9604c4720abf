"""The learning curve of a run, as a PNG."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np


def read_table(path: Path) -> dict[str, np.ndarray]:
    """A CSV table of numbers by column; empty cells are NaN."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: np.array([float(row[name] or "nan") for row in rows]) for name in (rows[0] if rows else {})}


def plot_run(directory: Path) -> Path:
    """Draw ``curve.png`` from ``evaluations.csv``: each seed's mean greedy return, and its spread over episodes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    description = json.loads((directory / "config.json").read_text())
    table = read_table(directory / "evaluations.csv")
    figure = Figure(figsize=(7, 4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for seed in description["seeds"]:
        rows = table["seed"] == seed
        steps, mean, spread = (table[name][rows] for name in ("env_steps", "eval/return", "eval/return_std"))
        (line,) = axes.plot(steps, mean, marker="o", markersize=3, label=f"seed {seed}")
        axes.fill_between(steps, mean - spread, mean + spread, color=line.get_color(), alpha=0.15, linewidth=0)
    best = description["spec"]["max_return"]
    if best is not None:
        axes.axhline(best, color="0.6", linewidth=0.8, linestyle="--")
        axes.annotate("best possible", (0, best), (2, -3), textcoords="offset points", va="top", fontsize=8, color="0.4")
    axes.set(title=description["env"], xlabel="environment steps", ylabel="greedy return (mean and spread of episodes)")
    axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1e6:g}M" if x >= 1e6 else f"{x / 1e3:g}k")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    if len(description["seeds"]) > 1:
        axes.legend(frameon=False, fontsize=8)
    path = directory / "curve.png"
    figure.savefig(path)
    return path
