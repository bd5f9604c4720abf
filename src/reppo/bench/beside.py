"""What stands in the report beside the suites: what others have published, and our results of other commands."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from reppo.bench import figures, statistics
from reppo.bench.figures import Bar, Line
from reppo.bench.page import Block, Figure, Note, Section, Table
from reppo.bench.statistics import PER_1000, REF_BEST
from reppo.bench.suites import DMC23
from reppo.toy.experiment import NAMES, Settings, surface
from reppo.toy.figure import COLOURS, LINES, TITLES, draw_paths

Array = NDArray[np.float64]
Rows = list[dict[str, str]]

TAU = 0.9
MEDIAN = "median of task means"  #: the head of a column: it is no median of runs
GRID = 41  #: points of a curve

PAPER = ("reppo_large", "reppo_medium", "reppo_small", "ppo_50M", "sac_brax_5M", "fasttd3_A")


#: What is read of each published table: columns of words, and of numbers.
PUBLISHED = {
    "dmc_curves": (("task", "algorithm"), ("step", "iqm", "lo", "hi")),
    "dmc_aggregates": (
        ("algorithm", "step", "norm", "n_tasks", "seeds_min", "seeds_total"),
        tuple(f"{name}{end}" for name in ("iqm", "median", "mean") for end in ("", "_lo", "_hi")),
    ),
    "dmc_reliability": (("algorithm", "norm"), ("reliable_at_end", "lo", "hi")),
    "wallclock_aggregates": (("algorithm",), ("seconds", "mean_norm_20tasks")),
    "dmc_ablations": (
        ("data", "ablation", "n_tasks", "seeds_min", "seeds_median", "seeds_total"),
        ("iqm", "iqm_lo", "iqm_hi"),
    ),
    "maniskill_aggregates": (("algorithm", "progress"), ("iqm", "iqm_lo", "iqm_hi")),
    "dmc_final": (("suite", "task", "algorithm", "n_seeds"), ("mean", "iqm", "iqm_ci_lo", "iqm_ci_hi")),
}


class Published:
    """The tables of ``results/published``, none where there are none.

    Attributes:
        folder: where they are.
        damaged: names of those that were asked for and cannot be read.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.damaged: list[str] = []
        self._tables: dict[str, Rows] = {}

    @property
    def there(self) -> bool:
        return any((self.folder / f"{name}.csv").is_file() for name in PUBLISHED)

    def rows(self, name: str) -> Rows:
        """A table of `PUBLISHED`, whole and with numbers where it should have them; no rows where it is damaged."""
        if name not in self._tables:
            try:
                self._tables[name] = whole_table(self.folder / f"{name}.csv", *PUBLISHED[name])
            except (OSError, ValueError, KeyError, csv.Error):
                self._tables[name] = []
                self.damaged.append(name)
        return self._tables[name]

    def task(self, task: str) -> list[Line]:
        """The published curves of a DeepMind Control task."""
        found = []
        rows = [row for row in self.rows("dmc_curves") if row["task"] == task]
        for algorithm in PAPER:
            own = [row for row in rows if row["algorithm"] == algorithm]
            if len(own) > 2:
                found.append(Line(algorithm, *columns(own, "step", "iqm", "lo", "hi"), published=True))
        return found

    def wall_clock(self) -> list[Line]:
        """Means against seconds, on the tasks that all have: PPO's over its own 20 would compare unlike tasks."""
        found = []
        for algorithm in PAPER:
            own = [row for row in self.rows("wallclock_aggregates") if row["algorithm"] == algorithm]
            x, y = columns(own, "seconds", "mean_norm_20tasks")
            if len(x):
                found.append(Line(algorithm, x, y, y, y, published=True))
        return found


def whole_table(path: Path, words: Sequence[str], numbers: Sequence[str]) -> Rows:
    """The rows of a CSV file that has these columns.

    Raises:
        OSError, ValueError, KeyError, csv.Error: where it cannot be read, was cut off, lacks a column, or has something
            else in place of a number.
    """
    text = path.read_text()
    rows = list(csv.DictReader(text.splitlines()))
    if not rows or not text.endswith("\n"):
        raise ValueError(f"{path} was cut off")
    for row in rows:
        if None in row or None in row.values():
            raise ValueError(f"{path} has a row that is longer or shorter than its header")
        if not all(math.isfinite(float(row[name])) for name in numbers):
            raise ValueError(f"{path} has a number that is not finite")
    if missing := {*words} - rows[0].keys():
        raise ValueError(f"{path} has no {', '.join(missing)}")
    return rows


def columns(rows: Rows, *names: str) -> list[Array]:
    return [np.array([float(row[name] or "nan") for row in rows]) for name in names]


def published_sections(published: Published) -> Iterator[Section]:
    if not published.there:
        return
    parts = (
        published_efficiency, published_finals, published_reliability, published_wall_clock, published_ablations,
        published_maniskill, published_humanoid,
    )  # fmt: skip
    blocks: list[Block] = [
        Note("Facts to compare with, made from what the authors of REPPO published; see results/published/README.md. "
             "Numbers of seeds differ between algorithms and tasks.")
    ]  # fmt: skip
    blocks += [block for part in parts for block in part(published)]
    curves = list(published_curves(published))
    blocks += [Note(f"published/{name}.csv is damaged or of another program; left out.") for name in published.damaged]
    yield Section("What was published", blocks)
    yield Section("Published curves of every task", curves)


def published_efficiency(published: Published) -> Iterator[Block]:
    for normaliser, name in ((REF_BEST, "ref_best"), (PER_1000, "raw/1000")):
        rows = [r for r in published.rows("dmc_aggregates") if r["norm"] == name and r["step"].isdigit()]
        drawn = []
        for algorithm in PAPER:
            own = [row for row in rows if row["algorithm"] == algorithm]
            if len(own) > 2:
                drawn.append(Line(algorithm, *columns(own, "step", "iqm", "iqm_lo", "iqm_hi"), published=True))
        if not drawn:
            continue
        title = f"Published: sample efficiency on DMC-23, {normaliser}"
        image = figures.lines(drawn, title, x="environment steps", y=f"IQM, {normaliser}")
        id = f"published-dmc-{'ref-best' if normaliser == REF_BEST else '1000'}"
        yield Figure(id, title, image, "IQM over 23 tasks and all seeds, at 5, 10, 20, 30 and 50 million steps.")


def published_finals(published: Published) -> Iterator[Block]:
    rows = [
        r for r in published.rows("dmc_aggregates") if r["norm"] == "ref_best" and r["step"] in ("50000000", "end(5-10M)")
    ]
    table = []
    for r in rows:
        values = [
            f"{float(r[n]):.3f} [{float(r[f'{n}_lo']):.3f}, {float(r[f'{n}_hi']):.3f}]" for n in ("iqm", "median", "mean")
        ]
        table.append([r["algorithm"], *values, r["n_tasks"], f"{r['seeds_total']} (from {r['seeds_min']} a task)"])
    if table:
        header = ["algorithm", "IQM", MEDIAN, "mean", "tasks", "runs"]
        yield Table("Published: final returns on DMC-23", header, table, REF_BEST, id="published-dmc-table")


def published_reliability(published: Published) -> Iterator[Block]:
    rows = [r for r in published.rows("dmc_reliability") if r["norm"] == "ref_best" and r["algorithm"] in PAPER]
    title = f"Published: reliability at tau = {TAU}"
    x = f"share of runs at or above {TAU} at the end, {REF_BEST}"
    values = [(r["algorithm"], *(float(r[n]) for n in ("reliable_at_end", "lo", "hi"))) for r in rows]
    yield from published_bars("reliability", title, values, x, "On DMC-23.")


def published_wall_clock(published: Published) -> Iterator[Block]:
    drawn = published.wall_clock()
    if drawn:
        title = "Published: wall-clock on DMC-23, on the 20 tasks that all have"
        absent = [algorithm for algorithm in PAPER if algorithm not in {line.name for line in drawn}]
        caption = (
            "Mean over the 20 tasks that all have; ppo_50M has no times on the other three. Compilation included; without "
            "intervals."
        )
        if "fasttd3_A" in absent:
            caption += " FastTD3 has no published times."
        image = figures.lines(drawn, title, x="seconds", y=f"mean of 20 tasks, {REF_BEST}")
        yield Figure("published-wall-clock", title, image, caption)


def published_ablations(published: Published) -> Iterator[Block]:
    rows = [r for r in published.rows("dmc_ablations") if r["data"].startswith("large")]
    names = [f"{r['ablation']} ({r['n_tasks']} tasks, {r['seeds_total']} runs)" for r in rows]
    values = [(name, *(float(r[n]) for n in ("iqm", "iqm_lo", "iqm_hi"))) for name, r in zip(names, rows, strict=True)]
    title = "Published: ablations, 128k samples an update"
    seeds = ", ".join(f"{r['ablation']} {r['seeds_min']} and {r['seeds_median']}" for r in rows)
    caption = f"On DMC-23; a bar of fewer tasks is not comparable with the base. Seeds a task, least and median: {seeds}."
    yield from published_bars("ablations", title, values, f"IQM, {REF_BEST}", caption)


def published_maniskill(published: Published) -> Iterator[Block]:
    rows = [r for r in published.rows("maniskill_aggregates") if r["progress"] == "1.0"]
    names = [r["algorithm"].partition("(")[0] for r in rows]  # without the guess of which one the paper shows
    values = [(name, *(float(r[n]) for n in ("iqm", "iqm_lo", "iqm_hi"))) for name, r in zip(names, rows, strict=True)]
    caption = (
        "IQM of success_once at the end, over 8 tasks; what our suite measures is without partial resets. "
        "reppo_aux_partial_reset is most likely what the paper shows."
    )
    yield from published_bars("maniskill", "Published: ManiSkill", values, "success_once", caption)


def published_bars(id: str, title: str, values: Sequence[tuple], x: str, caption: str) -> Iterator[Block]:
    if values:
        image = figures.bars([Bar(*value, published=True) for value in values], title, x=x)
        yield Figure(f"published-{id}", title, image, caption)


def published_humanoid(published: Published) -> Iterator[Block]:
    rows = [r for r in published.rows("dmc_final") if r["suite"] == "humanoid"]
    table = [
        [r["task"], r["algorithm"], r["mean"], f"{r['iqm']} [{r['iqm_ci_lo']}, {r['iqm_ci_hi']}]", r["n_seeds"]]
        for r in rows
    ]
    if table:
        header = ["task", "algorithm", "mean", "IQM", "seeds"]
        yield Table("Published: humanoid locomotion", header, table, id="published-humanoid", folded=True)


def published_curves(published: Published) -> Iterator[Block]:
    if not published.rows("dmc_curves"):
        return
    names = [
        f"{figures.COLOUR_NAMES[i]}: {name}" for i, name in enumerate(line.name for line in published.task("CheetahRun"))
    ]
    yield Note(f"Return against steps; IQM over seeds. {', '.join(names)}.")
    for task in DMC23:
        title = f"Published: {task}"
        image = figures.lines(published.task(task), task, x="", y="", size=(2.9, 2.0), legend=False)
        yield Figure(f"published-{task}", title, image, "", small=True)


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
