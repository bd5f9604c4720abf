"""What others have published, as the report draws it: the tables of ``results/published``."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from reppo.bench import figures
from reppo.bench.figures import Bar, Line
from reppo.bench.page import Block, Figure, Note, Section, Table, anchor
from reppo.bench.statistics import PER_1000, REF_BEST
from reppo.bench.suites import DMC23, HUMANOID, MANISKILL8

Array = NDArray[np.float64]
Rows = list[dict[str, str]]

TAU = 0.9
MEDIAN = "median of task means"  #: the head of a column: it is no median of runs

PAPER = ("reppo_large", "reppo_medium", "reppo_small", "ppo_50M", "sac_brax_5M", "fasttd3_A")
PAPER_MANISKILL = (
    "reppo_aux_partial_reset", "reppo_noaux_partial_reset", "reppo_aux_no_partial_reset", "reppo_noaux_no_partial_reset",
    "ppo_maniskill", "ppo_maniskill_50M",
)  # fmt: skip
NORMALISERS = {REF_BEST: "ref_best", PER_1000: "raw/1000"}  #: as the published tables call them
RELIABLE_FROM = {f"rel_from_{millions}M": millions * 1e6 for millions in (10, 20, 30, 40)}
STEPS = 50_000_000  #: of a published run on DeepMind Control


class Columns(NamedTuple):
    """What is read of a table: columns of words, of numbers, and of numbers or nothing."""

    words: Sequence[str]
    numbers: Sequence[str]
    gaps: Sequence[str] = ()


INTERVAL = ("iqm", "iqm_lo", "iqm_hi")
PUBLISHED = {
    "dmc_curves": Columns(("task", "algorithm"), ("step", "iqm", "lo", "hi")),
    "dmc_aggregates": Columns(
        ("algorithm", "step", "norm", "n_tasks", "seeds_min", "seeds_total"),
        tuple(f"{name}{end}" for name in ("iqm", "median", "mean") for end in ("", "_lo", "_hi")),
    ),
    "dmc_reliability": Columns(
        ("algorithm", "norm"),
        ("reliable_at_end", "lo", "hi", "ever_reached", "never_dropped_after_first"),
        tuple(RELIABLE_FROM),
    ),
    "wallclock_aggregates": Columns(("algorithm",), ("seconds", "mean_norm_20tasks")),
    "wallclock_tasks": Columns(("task", "algorithm", "truncated_at_1200s"), ("run_end_s_median",)),
    "dmc_ablations": Columns(
        ("data", "ablation", "n_tasks", "seeds_min", "seeds_median", "seeds_total"),
        (*INTERVAL, "mean", "mean_lo", "mean_hi", "base_same_tasks_iqm", "base_same_tasks_mean"),
    ),
    "maniskill_curves": Columns(("task", "algorithm"), ("progress", "iqm", "lo", "hi")),
    "maniskill_aggregates": Columns(("algorithm",), ("progress", *INTERVAL)),
    "maniskill_final": Columns(("task", "algorithm", "n_seeds"), ("success_mean",)),
    "dmc_final": Columns(("suite", "task", "algorithm", "n_seeds"), ("mean", "iqm", "iqm_ci_lo", "iqm_ci_hi")),
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

    def rows(self, name: str, **where: str) -> Rows:
        """A table of `PUBLISHED`, whole and with numbers where it should have them, or those of its rows that have these
        words; no rows where it is damaged."""
        if name not in self._tables:
            try:
                self._tables[name] = whole_table(self.folder / f"{name}.csv", PUBLISHED[name])
            except (OSError, ValueError, KeyError, csv.Error):
                self._tables[name] = []
                self.damaged.append(name)
        return [row for row in self._tables[name] if all(row[column] == word for column, word in where.items())]

    def task(self, task: str) -> list[Line]:
        """The published curves of a task of MuJoCo Playground."""
        return curves(self.rows("dmc_curves", task=task), PAPER, "step", "iqm", "lo", "hi")

    def wall_clock(self) -> list[Line]:
        """Means against seconds, on the tasks that all have: PPO's over its own 20 would compare unlike tasks."""
        mean = "mean_norm_20tasks"
        return curves(self.rows("wallclock_aggregates"), PAPER, "seconds", mean, mean, mean, least=1)


def whole_table(path: Path, expected: Columns) -> Rows:
    """The rows of a CSV file that has these columns; names of algorithms without remarks in brackets.

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
        values = [float(row[name]) for name in expected.numbers] + [float(row[name] or 0) for name in expected.gaps]
        if not all(map(math.isfinite, values)):
            raise ValueError(f"{path} has a number that is not finite")
    if missing := {*expected.words} - rows[0].keys():
        raise ValueError(f"{path} has no {', '.join(missing)}")
    return [{**row, "algorithm": row.get("algorithm", "").partition("(")[0]} for row in rows]


def columns(rows: Rows, *names: str) -> list[Array]:
    return [np.array([float(row[name] or "nan") for row in rows]) for name in names]


def curves(rows: Rows, algorithms: Sequence[str], *names: str, least: int = 3) -> list[Line]:
    """Those of the algorithms that have this many points: columns of x, y, and the ends of its interval."""
    own = {algorithm: [row for row in rows if row["algorithm"] == algorithm] for algorithm in algorithms}
    return [Line(a, *columns(found, *names), published=True) for a, found in own.items() if len(found) >= least]


def interval(row: dict[str, str], *names: str) -> str:
    value, low, high = (float(row[name]) for name in names)
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


# ------------------------------------------------------------------------------------------------ sections


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
    of_tasks = list(published_curves(published))
    blocks += [Note(f"published/{name}.csv is damaged or of another program; left out.") for name in published.damaged]
    yield Section("What was published", blocks)
    yield Section("Published curves of every task", of_tasks)


def published_efficiency(published: Published) -> Iterator[Block]:
    for normaliser, name in NORMALISERS.items():
        rows = [row for row in published.rows("dmc_aggregates", norm=name) if row["step"].isdigit()]
        drawn = curves(rows, PAPER, "step", *INTERVAL)
        if not drawn:
            continue
        title = f"Published: sample efficiency on DMC-23, {normaliser}"
        image = figures.lines(drawn, title, x="environment steps", y=f"IQM, {normaliser}")
        id = f"published-dmc-{'ref-best' if normaliser == REF_BEST else '1000'}"
        yield Figure(id, title, image, "IQM over 23 tasks and all seeds, at 5, 10, 20, 30 and 50 million steps.")


def published_finals(published: Published) -> Iterator[Block]:
    table = []
    for r in published.rows("dmc_aggregates", norm="ref_best"):
        if r["step"] in (str(STEPS), "end(5-10M)"):
            values = [interval(r, name, f"{name}_lo", f"{name}_hi") for name in ("iqm", "median", "mean")]
            table.append([r["algorithm"], *values, r["n_tasks"], f"{r['seeds_total']} (from {r['seeds_min']} a task)"])
    if table:
        header = ["algorithm", "IQM", MEDIAN, "mean", "tasks", "runs"]
        yield Table("Published: final returns on DMC-23", header, table, REF_BEST, id="published-dmc-table")
    rows = published.rows("dmc_final", suite="dmc")
    caption = "Mean return at the end, and in brackets the number of seeds."
    yield from by_task("dmc-tasks", "final return of every task", rows, PAPER, "mean", caption)


def by_task(
    id: str, title: str, rows: Rows, algorithms: Sequence[str], column: str, caption: str, digits: int = 1
) -> Iterator[Table]:
    """A row for each task, and in it a number of each algorithm, with the seeds behind it where the table has them."""
    found = {(row["task"], row["algorithm"]): row for row in rows}
    algorithms = [name for name in algorithms if any(name == algorithm for _, algorithm in found)]
    tasks = list(dict.fromkeys(task for task, algorithm in found if algorithm in algorithms))

    def cell(row: dict[str, str] | None) -> str:
        if row is None:
            return "-"
        number = f"{float(row[column]):.{digits}f}"
        return number + (f" ({row['n_seeds']})" if "n_seeds" in row else "")

    table = [[task, *(cell(found.get((task, name))) for name in algorithms)] for task in tasks]
    if table:
        yield Table(f"Published: {title}", ["task", *algorithms], table, caption, id=f"published-{id}", folded=True)


def published_reliability(published: Published) -> Iterator[Block]:
    rows = [row for row in published.rows("dmc_reliability") if row["algorithm"] in PAPER]
    drawn = []
    for row in rows:
        if row["norm"] == "ref_best" and all(row[name] for name in RELIABLE_FROM):
            x = np.array([*RELIABLE_FROM.values(), STEPS])
            (y,) = np.array(columns([row], *RELIABLE_FROM, "reliable_at_end")).T
            drawn.append(Line(row["algorithm"], x, y, y, y, published=True))
    title = f"Published: reliability at tau = {TAU}"
    caption = (
        f"Share of runs that are at or above {TAU} ({REF_BEST}) from this step on, to the end, on DMC-23; known at 10, 20, "
        "30, 40 and 50 million steps."
    )
    if drawn:
        image = figures.lines(drawn, title, x="environment steps", y="share of runs", y_range=(-0.02, 1.02))
        yield Figure("published-reliability", title, image, caption)
    names = {name: normaliser for normaliser, name in NORMALISERS.items()}
    table = [
        [
            r["algorithm"], names[r["norm"]], interval(r, "reliable_at_end", "lo", "hi"),
            *(f"{float(r[name]):.2f}" for name in ("never_dropped_after_first", "ever_reached")),
        ]
        for norm in names for r in rows if r["norm"] == norm
    ]  # fmt: skip
    if table:
        header = ["algorithm", "normaliser", "at the end", "never dropped after first reaching it", "ever reached"]
        caption = "Shares of runs. SAC's end is after 5 million steps, and of its way there nothing is known."
        yield Table(title, header, table, caption, id="published-reliability-table")


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
    rows = [row for row in published.rows("wallclock_tasks") if row["truncated_at_1200s"] == "False"]
    caption = (
        "Median over seeds, compilation included, in steps of 63 seconds; SAC made 5 million steps, the others 50. "
        "A dash: no time, or more than 1200 seconds."
    )
    title = "seconds of a run on every task"
    yield from by_task("wall-clock-tasks", title, rows, PAPER, "run_end_s_median", caption, digits=0)


def published_ablations(published: Published) -> Iterator[Block]:
    """A figure for every number of samples an update, and one table."""
    rows = published.rows("dmc_ablations")
    caption = (
        "On DMC-23; a bar of fewer tasks is not comparable with the base, which the table has on the same tasks. full: the "
        "KL penalty is added instead of switched; value: no KL."
    )
    table = []
    for data in dict.fromkeys(row["data"] for row in rows):
        own = [row for row in rows if row["data"] == data]
        size = data.partition("(")[2].rstrip(")") or data
        names = [f"{r['ablation']} ({r['n_tasks']} tasks, {r['seeds_total']} runs)" for r in own]
        values = [(name, *(float(r[n]) for n in INTERVAL)) for name, r in zip(names, own, strict=True)]
        title = f"Published: ablations, {size} samples an update"
        id = "ablations" if data.startswith("large") else f"ablations-{anchor(size)}"
        yield from published_bars(id, title, values, f"IQM, {REF_BEST}", "Otherwise the same." if table else caption)
        table += [
            [
                size, r["ablation"], interval(r, *INTERVAL), f"{float(r['base_same_tasks_iqm']):.3f}",
                interval(r, "mean", "mean_lo", "mean_hi"), f"{float(r['base_same_tasks_mean']):.3f}", r["n_tasks"],
                f"{r['seeds_total']} (from {r['seeds_min']}, median {r['seeds_median']}, a task)",
            ]
            for r in own
        ]  # fmt: skip
    if table:
        header = ["samples", "ablation", "IQM", "base, same tasks", "mean", "base, same tasks", "tasks", "runs"]
        yield Table("Published: ablations", header, table, REF_BEST, id="published-ablations-table", folded=True)


def published_maniskill(published: Published) -> Iterator[Block]:
    rows = published.rows("maniskill_aggregates")
    drawn = curves(rows, PAPER_MANISKILL, "progress", *INTERVAL)
    if drawn:
        title = "Published: sample efficiency on ManiSkill"
        image = figures.lines(drawn, title, x="share of the run", y="IQM, success_once")
        yield Figure("published-maniskill-efficiency", title, image, "IQM over 8 tasks, at a quarter, a half and the end.")
    values = [(r["algorithm"], *(float(r[n]) for n in INTERVAL)) for r in rows if float(r["progress"]) == 1]
    caption = (
        "IQM of success_once at the end, over 8 tasks; what our suite measures is without partial resets. "
        "reppo_aux_partial_reset is most likely what the paper shows."
    )
    yield from published_bars("maniskill", "Published: ManiSkill", values, "success_once", caption)
    caption = "Mean success_once at the end, and in brackets the number of seeds."
    rows = published.rows("maniskill_final")
    yield from by_task(
        "maniskill-tasks", "final success on ManiSkill", rows, PAPER_MANISKILL, "success_mean", caption, digits=3
    )


def published_bars(id: str, title: str, values: Sequence[tuple], x: str, caption: str) -> Iterator[Block]:
    if values:
        image = figures.bars([Bar(*value, published=True) for value in values], title, x=x)
        yield Figure(f"published-{id}", title, image, caption)


def published_humanoid(published: Published) -> Iterator[Block]:
    table = [
        [r["task"], r["algorithm"], r["mean"], f"{r['iqm']} [{r['iqm_ci_lo']}, {r['iqm_ci_hi']}]", r["n_seeds"]]
        for r in published.rows("dmc_final", suite="humanoid")
    ]
    if table:
        header = ["task", "algorithm", "mean", "IQM", "seeds"]
        yield Table("Published: humanoid locomotion", header, table, id="published-humanoid", folded=True)


def published_curves(published: Published) -> Iterator[Block]:
    """A small figure of every task, and before those of a suite what their colours are."""
    rows = published.rows("maniskill_curves")
    maniskill = {
        task: curves([row for row in rows if row["task"] == task], PAPER_MANISKILL, "progress", "iqm", "lo", "hi")
        for task in MANISKILL8
    }
    for what, drawn in (
        ("DeepMind Control: return against steps", {task: published.task(task) for task in DMC23}),
        ("Humanoids: return against steps", {task: published.task(task) for task in HUMANOID}),
        ("ManiSkill: success_once against the share of the run", maniskill),
    ):
        names = dict.fromkeys(line.name for found in drawn.values() for line in found)
        if names:
            yield Note(f"{what}; IQM over seeds. {', '.join(f'{figures.colour_name(name)}: {name}' for name in names)}.")
        for task, found in drawn.items():
            if found:
                image = figures.lines(found, task, x="", y="", size=(2.9, 2.0), legend=False)
                yield Figure(f"published-{task}", f"Published: {task}", image, "", small=True)
