"""One page of everything in a directory of results: `reppo report`. It reads nothing else, and no clock: the same results
give the same bytes.

    results/bench/        our runs, see `records`
    results/published/    what others have published
    results/report/       index.html, self-contained; report.md, and its figures

What is missing is listed with the command that would make it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from reppo.bench import figures, records, statistics, suites
from reppo.bench.beside import GRID, in_equal_time, one_preset, toy
from reppo.bench.contents import contents
from reppo.bench.figures import Bar, Line
from reppo.bench.page import Block, Figure, Missing, Note, Section, Table, html, markdown
from reppo.bench.published import MEDIAN, STEPS, TAU, Published, published_sections
from reppo.bench.records import SUCCESS, Key, Record
from reppo.bench.runner import unsuited
from reppo.bench.statistics import PER_1000, REF_BEST, Interval
from reppo.bench.suites import ABLATIONS, DMC23, ESTIMATORS, HUMANOID, NO_HL_GAUSS, NO_KL, REPPO, SUITES, dmc_task
from reppo.errors import ConfigError
from reppo.files import replacing

Array = NDArray[np.float64]

COMPARABLE = 0.1  #: share of the published steps from which on our curve is drawn beside the published one

#: Results of other commands: what they are, their file, the command.
OTHERS = (
    ("the 2-D experiment", "toy_gradients.csv", "reppo toy"),
    ("one preset on several tasks", "tasks_curves.csv", "python benchmarks/learning.py tasks"),
    ("REPPO and Stable-Baselines3 in equal time", "against.csv", "python benchmarks/against.py"),
)

TITLE = "REPPO: results"  #: near the beginning of every page, by which one is known

MEMORY_PARTS = ("parameters", "batch", "replay")  #: of ``computed_memory_bytes``
REPLAY_AND_ALL = (MEMORY_PARTS[2:], MEMORY_PARTS)


def write(results: Path, out: Path | None = None) -> list[Path]:
    """Make the page; returns the files that were written.

    Raises:
        ConfigError: where there are no results, one run is there in two versions, or the pages would replace others.
    """
    if not results.is_dir():
        raise ConfigError(f"there is no folder {results}; `reppo bench` makes one")
    out = out or results / "report"
    sections = page(results)
    files = {out / "index.html": html(sections), out / "report.md": markdown(sections)}
    for block in (block for section in sections for block in section.blocks if isinstance(block, Figure)):
        files[out / "figures" / f"{block.id}.svg"] = block.standalone
    try:
        for path in (out / "index.html", out / "report.md"):
            if path.exists() and TITLE not in path.read_text(errors="replace")[:1000]:
                raise ConfigError(f"{path} is no report of this program and is not overwritten; choose another --out")
        (out / "figures").mkdir(parents=True, exist_ok=True)
        for old in figures_of(out / "report.md") - files.keys():
            old.unlink(missing_ok=True)
        for path, text in files.items():
            with replacing(path) as file:
                file.write(text.encode())
    except OSError as error:
        raise ConfigError(f"cannot write {error.filename or out}: {error.strerror}") from error
    return list(files)


def figures_of(page: Path) -> set[Path]:
    """The figures of a page that is there already; others in its folder are somebody else's."""
    text = page.read_text() if page.is_file() else ""
    return {page.parent / found for found in re.findall(r"\((figures/[\w.-]+\.svg)\)", text)}


def page(results: Path) -> list[Section]:
    """Everything that the report shows, in its order."""
    found = records.read_all(results)
    names = [name for name in SUITES if any(r.key.suite == name for r in found.records)]
    names += sorted({r.key.suite for r in found.records} - set(names))
    published = Published(results / "published")
    sections = [overview(found, names)]
    for name in names:
        sections.append(suite_section(name, [r for r in found.records if r.key.suite == name], published))
    sections += [
        *published_sections(published),
        *toy(results),
        *one_preset(results),
        *in_equal_time(results),
    ]
    lacks = lacking(found.records)
    totals = {name: tuple(map(sum, zip(*of.values(), strict=True))) for name, of in lacks.items()}
    sections.append(Section("The paper's figures and tables", list(contents(sections, totals))))
    sections.append(missing(results, found.records, published, lacks))
    return [section for section in sections if section.blocks]


# ------------------------------------------------------------------------------------------------ our runs


def overview(found: records.Found, names: Sequence[str]) -> Section:
    hardware = sorted({record.hardware for record in found.records if record.description})
    failed = [record for record in found.records if record.status != "complete"]
    blocks: list[Block] = [
        Note(
            "Learning curves, aggregates with intervals, and every run that was launched. Shaded and barred: 95 % "
            "stratified bootstrap intervals over seeds; tasks weigh alike. At ten seeds of one task bootstrap intervals are "
            "somewhat too narrow. Dashed: published, not measured here."
        ),
        Note(f"{len(found.records)} runs of {', '.join(names) or 'no suite'}. Hardware: {'; '.join(hardware) or 'none'}."),
    ]
    if found.records and not failed:
        blocks.append(Note("No run failed, and none diverged."))
    if failed:
        rows = [[r.key.suite, r.key.algorithm, r.key.env, str(r.key.seed), r.status, r.problem] for r in failed]
        blocks.append(Table("Runs that failed", ["suite", "algorithm", "task", "seed", "status", "why"], rows))
    if found.problems:
        blocks.append(Table("Files that were left out", ["why"], [[problem] for problem in found.problems]))
    return Section(TITLE, blocks)


class Group(NamedTuple):
    """The runs of one algorithm on one task, of which there is at least one with a curve."""

    algorithm: str
    env: str
    runs: list[Record]

    @property
    def normalisers(self) -> tuple[str, ...]:
        """Those of the task that all of the runs can have."""
        found = suites.normalisers(self.env)
        return () if found == SUCCESS and not all(run.has_success for run in self.runs) else found

    def on(self, grid: Array, normaliser: str = "", column: str = "steps") -> Array:
        """Scores at these steps or seconds, ``[T, N]``; returns without a normaliser."""
        found = [run_on(run, grid, column, measure(normaliser)) for run in self.runs]
        return normalised(self.env, normaliser, np.stack(found, axis=-1))

    def over_the_run(self, normaliser: str) -> Array:
        """Mean over the evaluations, that of the untrained policy left out, ``[N]``: how fast a run has learned."""
        steps = max((run.steps for run in self.runs), key=lambda steps: steps[-1])
        return self.on(steps[1:] if len(steps) > 1 else steps, normaliser).mean(axis=0)

    def finals(self, normaliser: str) -> Array:
        """Scores at the end, ``[N]``."""
        found = [run.measured(measure(normaliser))[-1] for run in self.runs]
        return normalised(self.env, normaliser, np.array(found))


def run_on(run: Record, grid: Array, column: str, measure: str = "return") -> Array:
    values = run.measured(measure)
    if column == "steps":
        return statistics.on_grid(run.steps, values, grid)
    # A run has what it showed last; before its first evaluation it has learned nothing yet.
    return values[np.maximum(np.searchsorted(run.curve[:, 1], grid, side="right") - 1, 0)]


def groups_of(found: Sequence[Record]) -> list[Group]:
    """Groups in the order of the suite, where it has one."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in found:
        if len(record.curve):
            groups.setdefault((record.key.algorithm, record.key.env), []).append(record)
    order = {name: i for i, name in enumerate([*suites.ALGORITHMS, *suites.BASELINES])}
    keys = sorted(groups, key=lambda key: (order.get(key[0], len(order)), key))
    return [Group(*key, groups[key]) for key in keys]


def measure(normaliser: str) -> str:
    """The column of a run's table that a normaliser is of."""
    return normaliser if normaliser in SUCCESS else "return"


def normalised(env: str, normaliser: str, values: Array) -> Array:
    if normaliser == PER_1000:
        return statistics.per_1000(values)
    if normaliser == REF_BEST:
        return statistics.per_reference(values, {**DMC23, **HUMANOID}[env.partition(":")[2]])
    return values


def worded(normaliser: str, plural: str = "") -> str:
    return normaliser if normaliser in SUCCESS else f"normalised return{plural} ({normaliser})"


def suite_section(name: str, found: Sequence[Record], published: Published) -> Section:
    groups = groups_of(found)
    about = SUITES[name].about if name in SUITES else "not a suite of this version"
    blocks: list[Block] = [Note(f"{about[:1].upper()}{about[1:]}."), counts(name, found)]
    algorithms = list(dict.fromkeys(group.algorithm for group in groups))
    there = {(group.algorithm, group.env): group for group in groups if group.normalisers}
    tasks = list(dict.fromkeys(env for _, env in there))
    common = [task for task in tasks if all((algorithm, task) in there for algorithm in algorithms)]
    common = [task for task in common if suites.normalisers(task) == suites.normalisers(common[0])]
    if common:
        of = {algorithm: [there[algorithm, task] for task in common] for algorithm in algorithms}
        blocks += aggregates(name, of, suites.normalisers(common[0]))
        left = [task for task in tasks if task not in common]
        if left:
            reason = "for want of runs of every algorithm with the same normalisers"
            blocks.append(Note(f"Not in the aggregates, {reason}: {', '.join(left)}."))
    elif groups:
        blocks.append(Note("No task that a normaliser is defined for has runs of every algorithm: no aggregates."))
    parts = [algorithm for algorithm in algorithms if algorithm in ABLATIONS and algorithm != REPPO]
    if common and REPPO in algorithms and NO_HL_GAUSS in parts and len(parts) > 1:
        normaliser = suites.normalisers(common[0])[0]
        scores = {a: [there[a, task].over_the_run(normaliser) for task in common] for a in (REPPO, *parts)}
        blocks += worth(name, scores, normaliser)
    compared = [task for task in tasks if all((algorithm, task) in there for algorithm in ESTIMATORS)]
    compared = [task for task in compared if suites.normalisers(task) == suites.normalisers(compared[0])]
    if compared:
        normaliser = suites.normalisers(compared[0])[0]
        scores = {a: [there[a, task].finals(normaliser) for task in compared] for a in ESTIMATORS}
        blocks.append(ordering(scores, compared, normaliser))
    blocks += task_curves(name, groups, published)
    if common and len(algorithms) < figures.CROWDED:
        of = {algorithm: [there[algorithm, task] for task in common] for algorithm in algorithms}
        blocks += memory_figure(name, of, suites.normalisers(common[0])[0])
    blocks += memory(name, groups)
    blocks.append(every_run(name, found))
    return Section(f"Suite {name}", blocks)


def counts(name: str, found: Sequence[Record]) -> Table:
    """Seeds that there are, by task and algorithm; where they are unequal, it shows."""
    asked = SUITES[name].num_seeds if name in SUITES else None
    tasks = sorted({r.key.env for r in found})
    algorithms = list(dict.fromkeys(g.algorithm for g in groups_of(found)))
    algorithms += sorted({r.key.algorithm for r in found} - set(algorithms))

    def count(task: str, algorithm: str) -> str:
        runs = [r for r in found if r.key.env == task and r.key.algorithm == algorithm]
        failed = sum(r.status == "failed" for r in runs)
        return f"{len(runs) - failed}{f' (+{failed} failed)' if failed else ''}"

    rows = [[task, *(count(task, algorithm) for algorithm in algorithms)] for task in tasks]
    unequal = len({cell for row in rows for cell in row[1:]}) > 1
    caption = f"{asked} seeds are asked for. " if asked else ""
    return Table(
        "Seeds",
        ["task", *algorithms],
        rows,
        caption + ("The numbers of seeds are unequal." if unequal else ""),
        id=f"{name}-seeds",
    )


def aggregates(name: str, of: dict[str, list[Group]], normalisers: Sequence[str]) -> Iterator[Block]:
    """Tables and figures over all tasks, of every algorithm's groups in one order of tasks; figures have the first
    normaliser."""
    main = normalisers[0]
    tasks = [group.env for group in next(iter(of.values()))]
    over = f"{len(tasks)} task{'s' * (len(tasks) > 1)}: {', '.join(t.partition(':')[2] for t in tasks)}"
    # A run that ended early has the return that it had until the end of the others.
    ends = {algorithm: max(run.steps[-1] for group in groups for run in group.runs) for algorithm, groups in of.items()}
    grids = {algorithm: np.linspace(0, end, GRID) for algorithm, end in ends.items()}
    # Of one or two tasks the median of their means is the mean.
    shown_by = {head: f for head, f in statistics.AGGREGATES.items() if head != "median" or len(tasks) > 2}
    rows = []
    for normaliser in normalisers:
        for algorithm, groups in of.items():
            scores = [group.finals(normaliser) for group in groups]
            values = [interval(statistics.bootstrap(scores, f)) for f in shown_by.values()]
            seeds = [len(group.runs) for group in groups]
            shown = str(seeds[0]) if min(seeds) == max(seeds) else f"{min(seeds)} to {max(seeds)}"
            rows.append([algorithm, normaliser, *values, shown])
    heads = [MEDIAN if head == "median" else head for head in shown_by]
    header = ["algorithm", "normaliser", *heads, "seeds a task"]
    unequal = ""
    if max(ends.values()) > 1.1 * min(ends.values()):
        made = ", ".join(f"{algorithm} {end:,.0f}" for algorithm, end in ends.items())
        unequal = f" Not after as many steps: {made}."
    title = "Final success" if main in SUCCESS else "Final returns"
    yield Table(title, header, rows, f"Over {over}.{unequal}", id=f"{name}-aggregates")

    curves = {algorithm: [group.on(grids[algorithm], main) for group in groups] for algorithm, groups in of.items()}
    drawn = [
        Line(algorithm, grids[algorithm], *statistics.sample_efficiency(c, resamples=500)) for algorithm, c in curves.items()
    ]
    title = f"Sample efficiency, {name}"
    caption = f"IQM of {worded(main, 's')} over {over}."
    crowded = len(of) >= figures.CROWDED  # then tables say the rest
    image = (figures.multiples if crowded else figures.lines)(drawn, title, x="environment steps", y=f"IQM, {main}")
    if crowded:
        caption += f" Dashed: {drawn[0].name}."
    yield Figure(f"{name}-sample-efficiency", title, image, caption)
    if not crowded:
        yield wall_clock(name, of, main)
        yield profile(name, of, main, unequal)

    drawn, rows = [], []
    for algorithm, groups in of.items():
        # At the very evaluations: a grid between them would cut off what is there for one of them only.
        steps = np.unique(np.concatenate([run.steps for group in groups for run in group.runs]))
        c = [group.on(steps, main) for group in groups]
        found = statistics.reliability(c, TAU)
        at_end = share_at_end([curve[-1] for curve in c])
        rows.append([algorithm, interval(at_end), f"{found.never_dropped:.2f}", f"{found.reached:.2f}"])
        drawn.append(Line(algorithm, steps, found.from_step, found.from_step, found.from_step))
    title = f"Reliability at tau = {TAU}, {name}"
    if not crowded:
        caption = f"Share of runs that are at or above {TAU} ({main}) from this step on, to the end."
        image = figures.lines(drawn, title, x="environment steps", y="share of runs", y_range=(-0.02, 1.02))
        yield Figure(f"{name}-reliability", title, image, caption)
    header = ["algorithm", "at the end", "never dropped after first reaching it", "ever reached"]
    which = "Wilson's, of the one task" if len(tasks) == 1 else "bootstrap"
    caption = f"Shares of runs, {main}; intervals: {which}.{unequal}"
    yield Table(title, header, rows, caption, id=f"{name}-reliability-table")

    first, *others = of
    apart = [other for other in others if max(ends[first], ends[other]) > 1.1 * min(ends[first], ends[other])]
    others = [other for other in others if other not in apart]
    if apart:
        yield Note(
            f"Left out of the probability of improvement, because {first} made other numbers of steps: {', '.join(apart)}."
        )
    if others:
        values = []
        for other in others:
            x, y = ([group.finals(main) for group in of[a]] for a in (first, other))
            found = statistics.probability_of_improvement(x, y)
            values.append(Bar(f"{first} > {other}", float(found.estimate), float(found.low), float(found.high)))
        title = f"Probability of improvement, {name}"
        image = figures.bars(values, title, x=f"P({first} > other)", reference=0.5)
        caption = "Chance that a run of the first beats one of the other; ties half."
        yield Figure(f"{name}-improvement", title, image, caption)


def share_at_end(scores: list[Array]) -> Interval:
    """Share of runs at or above `TAU`. Of one task it is a plain share; its bootstrap has no width where all runs agree."""
    if len(scores) > 1:
        return statistics.bootstrap(scores, lambda s: statistics.reliable_at_end(s, TAU))
    return statistics.wilson(int(np.sum(scores[0] >= TAU)), scores[0].shape[-1])


def wall_clock(name: str, of: dict[str, list[Group]], normaliser: str) -> Figure:
    drawn = []
    for algorithm, groups in of.items():
        times = [run.curve[[0, -1], 1] for group in groups for run in group.runs]
        seconds = np.linspace(max(first for first, _ in times), max(last for _, last in times), GRID)
        c = [group.on(seconds, normaliser, "seconds") for group in groups]
        drawn.append(Line(algorithm, seconds, *statistics.sample_efficiency(c, resamples=500)))
    title = f"Wall-clock, {name}"
    caption = (
        "Seconds since the process began, compilation included; where seeds shared a process, of all of them together. Runs "
        "that found their programs in the compilation cache, commonly all but the first of a kind, needed less of it; the "
        "results do not say which did, and nothing is taken off. A curve begins where every run has been evaluated. Seconds "
        "depend on what else the machine does, which docs/results.md tells."
    )
    caption += unlike_hardware([run for groups in of.values() for group in groups for run in group.runs])
    image = figures.lines(drawn, title, x="seconds", y=f"IQM, {normaliser}")
    return Figure(f"{name}-wall-clock", title, image, caption)


def unlike_hardware(runs: Sequence[Record]) -> str:
    """Which runs were made where, if not all on the same hardware: their seconds are not comparable."""
    where: dict[str, list[Record]] = {}
    for run in runs:
        where.setdefault(run.hardware, []).append(run)
    if len(where) < 2:
        return ""
    every = {run.key.algorithm for run in runs}
    parts = []
    for hardware in sorted(where):
        algorithms = {run.key.algorithm for run in where[hardware]}
        of = "" if algorithms == every else f" of {', '.join(sorted(algorithms))}"
        parts.append(f"seeds {spans({run.key.seed for run in where[hardware]})}{of} on {hardware}")
    return f" Not all on the same hardware: {'; '.join(parts)}."


def spans(numbers: Iterable[int]) -> str:
    """``0 to 2, 5``."""
    ordered = sorted(numbers)
    found: list[list[int]] = []
    for number in ordered:
        if found and number == found[-1][-1] + 1:
            found[-1].append(number)
        else:
            found.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in found)


def profile(name: str, of: dict[str, list[Group]], normaliser: str, unequal: str) -> Figure:
    taus = np.linspace(0, 1.1, 111)
    drawn = []
    for algorithm, groups in of.items():
        scores = [group.finals(normaliser) for group in groups]
        shares = statistics.bootstrap(scores, lambda s: statistics.performance_profile(s, taus), resamples=500)
        drawn.append(Line(algorithm, taus, *shares))
    title = f"Performance profile, {name}"
    caption = f"Share of runs whose final {worded(normaliser)} is above tau.{unequal}"
    image = figures.lines(drawn, title, x=f"tau, {normaliser}", y="share of runs", y_range=(-0.02, 1.02))
    return Figure(f"{name}-profile", title, image, caption)


def ordering(scores: dict[str, list[Array]], tasks: Sequence[str], normaliser: str) -> Note:
    """Whether the estimators come out as in the paper, by their interquartile means: on each task, and over all."""

    def verdict(where: str, chosen: slice) -> str:
        of = {a: s[chosen] for a, s in scores.items()}
        means = {a: float(statistics.iqm(s)) for a, s in of.items()}
        pairs = [(a, b, statistics.difference(of[a], of[b], statistics.iqm)) for a, b in itertools.pairwise(ESTIMATORS)]
        # The bootstrap of single runs has no width, which says nothing of chance.
        several = all(task.shape[-1] > 1 for own in of.values() for task in own)
        here = ", ".join(f"{a} {means[a]:.3f}" for a in sorted(means, key=lambda a: -means[a]))
        apart = ", ".join(f"{a} - {b} {interval(found)}" for a, b, found in pairs)
        return f"{where} it {order_verdict([found for *_, found in pairs]) if several else UNTOLD}: {here}; {apart}."

    found = [verdict(f"On {task.rpartition(':')[2]}", slice(i, i + 1)) for i, task in enumerate(tasks)]
    if len(tasks) > 1:
        found.append(verdict("Over all of them", slice(None)))
    order = ", ".join(ESTIMATORS)
    return Note(
        f"The paper's order of gradient estimators is {order}. By IQM, {normaliser}, with differences of neighbours and "
        f"their bootstrap intervals: {' '.join(found)}"
    )


UNTOLD = "cannot be told apart from chance"


def order_verdict(differences: Sequence[Interval]) -> str:
    """Of each in an order minus the next: all of the intervals must be above zero for it to hold, and one below zero refutes
    it. What is zero but for rounding is a tie."""
    if all(found.low > 1e-9 for found in differences):
        return "holds"
    return "does not hold" if any(found.high < -1e-9 for found in differences) else UNTOLD


def worth(name: str, scores: dict[str, list[Array]], normaliser: str) -> Iterator[Block]:
    """What is lost with each part of REPPO, the greatest loss first, and whether that is HL-Gauss, as in the paper, where
    only the KL constraint matters more."""
    lost = {a: statistics.difference(scores[REPPO], s) for a, s in scores.items() if a != REPPO}
    ranked = sorted(lost, key=lambda a: -float(lost[a].estimate))
    rows = [[a, ABLATIONS[a].about, interval(lost[a])] for a in ranked]
    tasks = len(scores[REPPO])
    caption = (
        f"Mean over the run, {normaliser}, of reppo minus that without the part, over {tasks} task{'s' * (tasks > 1)}; a "
        "negative number is a gain. The mean is over all evaluations but that of the untrained policy."
    )
    yield Table("What each part is worth", ["algorithm", "what differs", "drop"], rows, caption, id=f"{name}-parts")
    parts = [a for a in ranked if ABLATIONS[a].data_divisor == 1 and a != NO_KL]  # less data is not a part less
    place, found = parts.index(NO_HL_GAUSS) + 1, interval(lost[NO_HL_GAUSS])
    if place == 1:
        verdict = f"holds: the drop of {NO_HL_GAUSS}, {found}, is the largest of {len(parts)}"
        verdict += "." if lost[NO_HL_GAUSS].low > 0 else ", though chance alone may have made it."
    else:
        # By their intervals, as for the estimators: by rank alone one part of many is always the first.
        refuted = lost[NO_HL_GAUSS].high < max(0.0, lost[parts[0]].low)
        verdict = (
            f"{'does not hold' if refuted else UNTOLD}: the drop of {NO_HL_GAUSS}, {found}, is number {place} of "
            f"{len(parts)}; the largest is that of {parts[0]}, {interval(lost[parts[0]])}."
        )
    yield Note(
        "In the paper, HL-Gauss matters most of the parts other than the KL constraint. By the mean over the run, "
        f"{normaliser}, it {verdict}"
    )


def interval(found: Interval, digits: int = 3) -> str:
    # Adding zero makes -0.000 of a rounding error 0.000.
    estimate, low, high = (f"{round(float(value), digits) + 0.0:.{digits}f}" for value in found)
    return f"{estimate} [{low}, {high}]"


def task_curves(name: str, groups: Sequence[Group], published: Published) -> Iterator[Block]:
    """A figure for every task: the mean over seeds, beside the published IQM where the steps are comparable. Of success,
    where that is what the task's runs are compared by."""
    for env in dict.fromkeys(group.env for group in groups):
        own = [group for group in groups if group.env == env]
        shown = SUCCESS[0] if all(group.normalisers == SUCCESS for group in own) else ""
        drawn = []
        for group in own:
            grid = np.linspace(0, max(run.steps[-1] for run in group.runs), GRID)
            drawn.append(
                Line(
                    group.algorithm,
                    grid,
                    *statistics.sample_efficiency([group.on(grid, shown)], statistics.mean, resamples=500),
                )
            )
        task = dmc_task(env)
        crowded = len(drawn) >= figures.CROWDED
        caption = f"Mean {measure(shown)} over seeds." + crowded * f" Dashed: {drawn[0].name}."
        if task is not None:
            if max(line.x[-1] for line in drawn) >= COMPARABLE * STEPS:
                drawn += published.task(task)
                caption += " In the last panels: published IQM." if crowded else " Dashed: published IQM."
            elif published.there:
                caption += f" Published after 50 million steps, best of all methods: {DMC23[task]:.4g}."
        title = f"{env.partition(':')[2]}, {name}"
        image = (figures.multiples if crowded else figures.lines)(drawn, title, x="environment steps", y=measure(shown))
        yield Figure(f"{name}-{env.replace(':', '-')}", title, image, caption)


def memory_figure(name: str, of: dict[str, list[Group]], normaliser: str) -> Iterator[Block]:
    """Memory beside what was learned with it, of algorithms that have processes with one run in them."""
    drawn = []
    for algorithm, groups in of.items():
        runs = [run for group in groups for run in group.runs if run.seeds_together == 1]
        held = [run.computed_memory_bytes for run in runs if run.computed_memory_bytes]
        taken = [run.peak_memory_bytes for run in runs if run.peak_memory_bytes is not None]
        if not held or not taken:
            continue
        replay, whole = (np.median([sum(m.get(p, 0) for p in parts) for m in held]) / 2**20 for parts in REPLAY_AND_ALL)
        bar = Bar(algorithm, float(whole), float(whole - replay), float(whole))
        found = statistics.bootstrap([group.finals(normaliser) for group in groups], statistics.iqm)
        drawn.append(
            (bar, Bar("", float(found.estimate), float(found.low), float(found.high)), float(np.median(taken)) / 2**20)
        )
    if len(drawn) > 1:
        title = f"Memory and return, {name}"
        caption = (
            "Left, on a logarithmic axis: mark, what an algorithm holds, computed, of which the bar is the replay memory; "
            "circle, the most that its process took, which on a CPU is mostly the program and its compiler; medians over "
            f"runs. Right: IQM of the final {worded(normaliser)}."
        )
        yield Figure(f"{name}-memory-return", title, figures.memory(drawn, title, y=f"IQM, {normaliser}"), caption)


def memory(name: str, groups: Sequence[Group]) -> Iterator[Block]:
    """What a process holds, computed, and the most that it took, measured; of the runs that say it."""
    rows = []
    for group in groups:
        for together in sorted({run.seeds_together for run in group.runs}):
            runs = [r for r in group.runs if r.seeds_together == together and r.computed_memory_bytes]
            peaks = [r.peak_memory_bytes / 2**20 for r in runs if r.peak_memory_bytes is not None]
            if not runs:
                continue
            parts = runs[0].computed_memory_bytes or {}
            cells = [f"{parts[part] / 2**20:,.1f}" if part in parts else "-" for part in MEMORY_PARTS]
            peak = f"{np.median(peaks):,.0f}" if peaks else "-"
            rows.append([group.env, group.algorithm, str(together), *cells, peak])
    if rows:
        caption = (
            "MiB of one process. Computed: networks with their optimisers, one rollout, the replay memory. Measured: its "
            "highest resident memory, median over processes, which on a CPU is mostly the program and its compiler."
        )
        header = ["task", "algorithm", "seeds", *MEMORY_PARTS, "measured"]
        yield Table(f"Memory, {name}", header, rows, caption, id=f"{name}-memory")


def every_run(name: str, found: Sequence[Record]) -> Table:
    rows = []
    more = SUCCESS if any(r.has_success for r in found) else ()
    for r in found:
        memory = "-" if r.peak_memory_bytes is None else f"{r.peak_memory_bytes / 2**20:,.0f}"
        final = f"{r.returns[-1]:.4g}" if len(r.curve) else "-"
        steps = f"{r.steps[-1]:,.0f}" if len(r.curve) else "-"
        shared = f"{r.seconds:,.0f}{f' (of {r.seeds_together} seeds)' if r.seeds_together > 1 else ''}"
        revision = str(r.description.get("git") or "-")
        revision = revision[:9] + ("+" if revision.endswith("+changes") else "")
        rows.append(
            [
                r.key.algorithm,
                r.key.env,
                str(r.key.seed),
                steps,
                final,
                *(f"{r.measured(column)[-1]:.3f}" if r.has_success and len(r.curve) else "-" for column in more),
                shared,
                memory,
                r.hardware if r.description else "-",
                revision,
                r.status,
            ]
        )
    header = ["algorithm", "task", "seed", "steps", "return", *more, "seconds", "peak MiB", "hardware", "revision", "status"]
    caption = "A revision with + had changes that were not committed."
    return Table("Every run", header, rows, caption, folded=len(rows) > 12, id=f"{name}-runs")


# ------------------------------------------------------------------------------------------------ missing


Lacks = dict[str, dict[str, tuple[int, int]]]  #: of a suite's algorithm: the runs that it lacks, and has when complete


def lacking(found: Sequence[Record]) -> Lacks:
    there = {r.key for r in found if r.status != "failed"}

    def count(name: str, algorithm: str) -> tuple[int, int]:
        tasks = [env for env in SUITES[name].tasks if not unsuited(algorithm, env)]
        asked = {Key(name, algorithm, env, seed) for env in tasks for seed in SUITES[name].seeds}
        return len(asked - there), len(asked)

    return {name: {algorithm: count(name, algorithm) for algorithm in suite.algorithms} for name, suite in SUITES.items()}


def missing(results: Path, found: Sequence[Record], published: Published, lacks: Lacks) -> Section:
    """Parts of the paper and of the suites that there are no results of, with the command that would make them."""
    blocks: list[Block] = []
    for name, suite in SUITES.items():
        for algorithm in suite.algorithms:
            refused = [problem for env in suite.tasks if (problem := unsuited(algorithm, env))]
            if refused:
                reason = f"cannot be run on {len(refused)} of {len(suite.tasks)} tasks: {refused[0]}"
                blocks.append(Missing(f"{name}: {algorithm}", reason, ""))
            absent, asked = lacks[name][algorithm]
            if absent:
                command = f"reppo bench {name} --algorithms {algorithm}"
                blocks.append(Missing(f"{name}: {algorithm}", f"{absent} of {asked} runs", command))
    if not published.there:
        blocks.append(Missing("published figures", "there is no results/published", "git checkout results/published"))
    for what, name, command in OTHERS:
        if not (results / name).is_file():
            blocks.append(Missing(what, f"there is no results/{name}", command))
    if not {suites.REPPO, *suites.BASELINES} <= {r.key.algorithm for r in found if r.computed_memory_bytes}:
        what = "memory of REPPO, PPO, SAC and FastTD3 on one task"
        blocks.append(Missing(what, "no run of some of them says what it holds", "reppo bench laptop"))
    return Section("Missing", blocks)
