"""What stands in the report beside the suites: our results of other commands."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from reppo.bench import figures, statistics
from reppo.bench.figures import Line
from reppo.bench.page import Block, Figure, Note, Section, Table
from reppo.bench.published import Rows, columns
from reppo.toy.experiment import NAMES, Settings, surface
from reppo.toy.figure import COLOURS, LINES, TITLES, draw_paths

GRID = 41  #: points of a curve


def toy(results: Path) -> Iterator[Section]:
    """Paths, variance and bias of gradient estimates, from ``results/toy_paths.csv`` and ``results/toy_gradients.csv``,
    which `reppo toy` wrote."""
    blocks: list[Block] = []
    for name, drawn in (("toy_paths.csv", toy_paths), ("toy_gradients.csv", toy_gradients)):
        path = results / name
        if not path.is_file():
            continue
        try:
            with path.open(newline="") as file:
                blocks += list(drawn(list(csv.DictReader(file))))
        except (KeyError, ValueError, TypeError, IndexError, csv.Error):
            blocks.append(Note(f"{name} is damaged or of another program; left out."))
    if blocks:
        yield Section("The 2-D experiment", [Note("Made by `reppo toy`; docs/toy.md says what is seen."), *blocks])


def toy_paths(rows: Rows) -> Iterator[Block]:
    """A panel for each estimator, as `reppo toy` draws it, but with the true surface in all of them.

    Raises:
        IndexError, KeyError, ValueError: where an estimator has no paths, or some that are shorter than others.
    """
    means = {}
    for name in NAMES:
        own = [row for row in rows if row["estimator"] == name]
        paths = dict.fromkeys(row["path"] for row in own)
        means[name] = np.array([np.stack(columns([r for r in own if r["path"] == k], "x", "y"), -1) for k in paths])

    def draw(axes: Axes) -> None:
        figure: Any = axes.figure
        axes.remove()
        panels = figure.subplots(2, 3, sharex=True, sharey=True).flatten()
        for panel, name in zip(panels, NAMES, strict=False):
            draw_paths(panel, name, means[name], surface, Settings.std, ink=figures.INK, points=31)
        panels[-1].remove()

    title = "The 2-D experiment: paths"
    caption = (
        f"Where each estimate leads the policy's mean, from the square, every tenth step; {len(means[NAMES[0]])} paths, the "
        "first one thick. Star: the best mean. Contours: the true surface; what a network has in its place, docs/toy.md "
        "shows."
    )
    yield Figure("toy-paths", title, figures.svg(draw, title, (7.8, 4.9)), caption)


def toy_gradients(rows: Rows) -> Iterator[Block]:
    """Variance and bias against the number of samples, in the colours of the paths; points as `reppo toy` draws them."""
    for what in ("variance", "bias"):
        drawn = []
        for name in dict.fromkeys(row["estimator"] for row in rows):
            x, y, error = columns([row for row in rows if row["estimator"] == name], "samples", what, "standard_error")
            hollow = y <= 2 * error if what == "bias" else np.zeros(len(y), bool)
            drawn.append(Line(TITLES[name], x, y, y, y, style=(COLOURS[name], LINES.get(name, "-")), hollow=hollow))
        title = f"The 2-D experiment: {what} of the gradient"
        image = figures.lines(drawn, title, x="samples", y=what, log=True)
        caption = "Against the number of samples of an estimate."
        if what == "bias":
            caption += " Hollow: within two standard errors of zero, so that none is measured."
        yield Figure(f"toy-{what}", title, image, caption)


def one_preset(results: Path) -> Iterator[Section]:
    """The curves of ``results/tasks_curves.csv``, which `benchmarks/learning.py` wrote."""
    path = results / "tasks_curves.csv"
    if not path.is_file():
        return
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        blocks: list[Block] = [Note("Written by benchmarks/learning.py, as docs/results.md says; 5 seeds in one process.")]
        for env in dict.fromkeys(row["env"] for row in rows):
            own = [row for row in rows if row["env"] == env]
            seeds = sorted({row["seed"] for row in own}, key=int)
            runs = [columns([row for row in own if row["seed"] == seed], "env_steps", "eval/return") for seed in seeds]
            grid = np.linspace(0, runs[0][0][-1], GRID)
            scores = [np.stack([statistics.on_grid(x, y, grid) for x, y in runs], axis=-1)]
            line = Line("reppo, preset cpu", grid, *statistics.sample_efficiency(scores, statistics.mean, resamples=500))
            title = f"{env.partition(':')[2]}, the cpu preset"
            image = figures.lines([line], title, x="environment steps", y="return")
            caption = f"Mean return over {len(seeds)} seeds."
            blocks.append(Figure(f"tasks-{env.replace(':', '-')}", title, image, caption))
    except (KeyError, ValueError, TypeError, csv.Error):
        yield Section("The cpu preset on several tasks", [Note(f"{path.name} is damaged or of another program; left out.")])
        return
    yield Section("The cpu preset on several tasks", blocks)


def in_equal_time(results: Path) -> Iterator[Section]:
    """REPPO beside Stable-Baselines3 and SBX, from ``results/against.csv``, which `benchmarks/against.py` wrote."""
    path = results / "against.csv"
    if not path.is_file():
        return
    title = "Beside Stable-Baselines3, in equal time"
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        drawn, table = [], []
        for task in dict.fromkeys(row["task"] for row in rows):
            figure, lines = compared(task, [row for row in rows if row["task"] == task])
            drawn.append(figure)
            table += lines
    except (KeyError, ValueError, TypeError, IndexError, csv.Error):
        yield Section(title, [Note(f"{path.name} is damaged or of another program; left out.")])
        return
    note = (
        "Written by benchmarks/against.py: every run in a process of its own on one core, from a cold start; imports, "
        "compilation and evaluations count. Stable-Baselines3 and SBX have RL Zoo's settings, on DeepMind Control's tasks "
        "those of the most similar robot, and step Gymnasium's environments; REPPO steps EnvPool's copy where there is one, "
        "on all tasks but CartPole and Breakout-MinAtar, which is part of what it is faster by. It has its cpu preset, on "
        "Breakout-MinAtar as it was at first: 4 epochs, a KL bound of 0.03, no average of weights, no cut episodes. On "
        "Pendulum, CartPole, HalfCheetah and Ant its runs are of a later hour, when the same steps took 1.3 to 1.6 times as "
        "long."
    )
    header = ["task", "algorithm", "seconds", "mean at a third", "mean at the end", "every seed, at the end", "of the run"]
    caption = (
        "Returns. The end is that of the time; of the run: the mean when a run had made all of its steps, where it did."
    )
    yield Section(title, [Note(note), Table("Returns in equal time", header, table, caption, id="against"), *drawn])


def compared(task: str, rows: Rows) -> tuple[Figure, list[list[str]]]:
    """One task: the mean over seeds against seconds, and a row of the table for each algorithm."""
    budget = float(rows[0]["compared_at"])
    grid = np.linspace(0, budget, 121)
    drawn, table = [], []
    for algorithm in dict.fromkeys(row["algorithm"] for row in rows):
        own = [row for row in rows if row["algorithm"] == algorithm]
        runs = [
            columns([row for row in own if row["seed"] == seed], "seconds", "return")
            for seed in sorted({row["seed"] for row in own}, key=int)
        ]
        # What a run shows is its last evaluation; before its first one, it has not learned anything yet.
        seen = np.stack([y[np.maximum(np.searchsorted(x, grid, side="right") - 1, 0)] for x, y in runs], axis=-1)
        curve = statistics.sample_efficiency([seen], statistics.mean, resamples=500)
        begun = grid >= max(x[0] for x, _ in runs)
        drawn.append(Line(algorithm, grid[begun], curve.estimate[begun], curve.low[begun], curve.high[begun]))
        means = seen.mean(axis=1)
        every = ", ".join(whole(value) for value in seen[-1])
        of_run = whole(np.mean([y[-1] for _, y in runs])) if all(row["finished"] == "True" for row in own) else "-"
        table.append([task, algorithm, whole(budget), whole(means[len(grid) // 3]), whole(means[-1]), every, of_run])
    image = figures.lines(drawn, task, x="seconds", y="return")
    caption = f"Mean return over {len({row['seed'] for row in rows})} seeds, from when each has been evaluated."
    return Figure(f"against-{task}", f"{task}, in equal time", image, caption), table


def whole(value: float | np.floating) -> str:
    return str(round(float(value)))
