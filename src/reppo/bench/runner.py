"""From a suite to results: what is missing is run, each group of seeds in a process of its own, and recorded.

A process is the very command that a user would type, with a run directory under ``runs/bench``; one that was stopped is
resumed. What is recorded is read back from its files once it has ended, so a half-finished run never counts.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import csv
import dataclasses
import json
import math
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reppo import baselines, envs, options, run_directory
from reppo.bench import records
from reppo.bench.launchers import Launcher, Process
from reppo.bench.records import Key, Record
from reppo.bench.suites import ALGORITHMS, REPPO, Suite
from reppo.config import PRESETS, Config, nearest
from reppo.errors import ConfigError
from reppo.files import set_aside
from reppo.interrupt import STOPPED

DIVERGED = 3  #: exit code of a run that its numbers have ended, see `reppo.cli.EXIT_CODES`
DIVERGED_RUN = ".diverged"  #: suffix of the directory of several seeds that one of them has ended
MOST_WORDS = 400  #: of what a process has said last, for the record of its failure


@dataclasses.dataclass(frozen=True)
class Job:
    """One process: an algorithm on a task, with one seed, or several together that follow each other."""

    suite: str
    algorithm: str
    env: str
    seeds: Sequence[int]
    config: Any  #: the algorithm's configuration, see `asked_for`; None where it cannot run
    preset: str  #: of the suite
    problem: str = ""  #: why it cannot run here
    settings: tuple[str, ...] = ()  #: of a baseline, beside its preset

    @property
    def keys(self) -> list[Key]:
        return [Key(self.suite, self.algorithm, self.env, seed) for seed in self.seeds]

    @property
    def name(self) -> str:
        """``laptop/reppo/CartpoleSwingup-seeds0-9``: where its files go, under the folder for them."""
        first = Key(self.suite, self.algorithm, self.env, self.seeds[0])
        stem = first.path(Path()).stem.rpartition("-seed")[0]
        last = f"-{self.seeds[-1]}" if len(self.seeds) > 1 else ""
        return f"{self.suite}/{self.algorithm}/{stem}-seed{'s' if last else ''}{self.seeds[0]}{last}"

    @property
    def command(self) -> list[str]:
        """The words after ``reppo``, but for ``--out``."""
        variant = ALGORITHMS[self.algorithm]
        seeds = ["--seed", str(self.seeds[0]), *(["--seeds", str(len(self.seeds))] if len(self.seeds) > 1 else [])]
        if not variant.baseline:
            return ["train", self.env, "--preset", self.preset, *seeds, *as_options(self.config, self.preset)]
        words = [word for name in GIVEN for word in (options.flag(name), str(getattr(self.config, name)))]
        more = ["--set", *self.settings] if self.settings else []
        return ["baseline", variant.baseline, self.env, "--preset", variant.presets[self.preset], *seeds, *words, *more]

    def __str__(self) -> str:
        many = f"seeds {self.seeds[0]} to {self.seeds[-1]}" if len(self.seeds) > 1 else f"seed {self.seeds[0]}"
        return f"{self.algorithm} on {self.env}, {many}"


def as_options(config: Config, preset: str) -> list[str]:
    """The options of `reppo train` that turn a preset into this configuration."""
    words = []
    for field in dataclasses.fields(Config):
        value = getattr(config, field.name)
        if value == getattr(PRESETS[preset], field.name):
            continue
        flag = options.flag(field.name)
        if isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        elif isinstance(value, tuple):
            words += [flag, *value]
        else:
            words += [flag, f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)]
    return words


# ------------------------------------------------------------------------------------------------ planning


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a suite asks for, what there is of it, and what is left to run."""

    jobs: list[Job]
    done: list[Key]
    impossible: list[Job]  #: cannot run here
    problems: list[str]  #: files that were left out


def make_plan(
    name: str,
    suite: Suite,
    results: Path,
    *,
    tasks: Sequence[str] = (),
    algorithms: Sequence[str] = (),
    seeds: int | None = None,
    together: int | None = None,
) -> Plan:
    """Compare a suite with the results that there are.

    Args:
        name: of the suite.
        suite: the suite.
        results: the folder of results.
        tasks: only these; unset, all. As in the suite, or without what is before the colon.
        algorithms: only these; unset, all.
        seeds: only the first so many.
        together: seeds that share a process; unset, as the suite says.

    Raises:
        ConfigError: for a task or an algorithm that the suite does not have, or where a result is there that was made
            with other options, or that may be a copy of another.
    """
    found = records.read_all(results)
    there = {record.key: record for record in found.records}
    together = suite.together if together is None else together
    for option, value in (("--seeds", seeds), ("--together", together)):
        if value is not None and value < 1:
            raise ConfigError(f"{option} must be at least 1, got {value}")
    all_seeds = suite.seeds[: seeds or len(suite.seeds)]
    if seeds is not None and seeds > len(suite.seeds):
        raise ConfigError(f"{name} has {suite.num_seeds} seeds, got {seeds}")
    plan = Plan([], [], [], found.problems)
    for env in chosen(tasks, suite.tasks, "task", name):
        absent = unavailable(env)
        for algorithm in chosen(algorithms, suite.algorithms, "algorithm", name):
            problem = unsuited(algorithm, env) or absent or uninstalled(algorithm, env)
            if problem:
                plan.impossible.append(Job(name, algorithm, env, tuple(all_seeds), None, suite.preset, problem))
                continue
            config = asked_for(suite, algorithm, env)
            missing = []
            for seed in all_seeds:
                key = Key(name, algorithm, env, seed)
                if key in found.copies:
                    raise ConfigError(next(line for line in found.problems if str(key.path(results)) in line))
                record = there.get(key)
                if record is not None and record.status != "failed":
                    refuse_other_options(record, config, results)
                    plan.done.append(record.key)
                else:
                    missing.append(seed)
            size = together if ALGORITHMS[algorithm].several_seeds else 1
            settings = suite.settings.get(algorithm, ())
            plan.jobs.extend(
                Job(name, algorithm, env, group, config, suite.preset, settings=settings) for group in grouped(missing, size)
            )
    plan.jobs.sort(key=lambda job: job.seeds[0])  # so that what an interrupted suite has compares like with like
    return plan


#: Options that a suite gives to a baseline; the rest are its preset's, and the suite's `Suite.settings`.
GIVEN = ("total_steps", "num_evals", "eval_episodes")


def asked_for(suite: Suite, algorithm: str, env: str) -> Any:
    """What a suite has an algorithm train with: REPPO's `Config`, or the configuration of a baseline.

    Raises:
        ConfigError: where that does not fit.
    """
    variant, config = ALGORITHMS[algorithm], suite.configured(algorithm)
    if not variant.baseline:
        return config
    if suite.preset not in variant.presets:
        raise ConfigError(f"{algorithm} has nothing beside the preset {suite.preset}; it has {', '.join(variant.presets)}")
    given = {name: getattr(config, name) for name in GIVEN}
    settings = suite.settings.get(algorithm, ())
    return baselines.configured(variant.baseline, env, variant.presets[suite.preset], settings, given)


def chosen(names: Sequence[str], of: Sequence[str], what: str, suite: str) -> list[str]:
    """The members that are named, in their own order; all where none is."""
    short = {member.rpartition(":")[2]: member for member in of}
    for name in names:
        if name not in of and name not in short:
            raise ConfigError(f"{suite} has no {what} {name!r}{nearest(name, [*short])}; it has {', '.join(short)}")
    wanted = {short.get(name, name) for name in names}
    return [member for member in of if not names or member in wanted]


def grouped(seeds: Sequence[int], together: int) -> Iterator[tuple[int, ...]]:
    """Seeds that follow each other, at most so many in a group."""
    group: list[int] = []
    for seed in seeds:
        if group and (seed != group[-1] + 1 or len(group) == together):
            yield tuple(group)
            group = []
        group.append(seed)
    if group:
        yield tuple(group)


def unavailable(env: str) -> str:
    """Why an environment cannot be run here; empty where it can, as far as its name tells."""
    name, _, task = env.partition(":")
    if name not in envs.SUITES:
        return f"there is no environment {env} here yet"
    suite = envs.SUITES[name]
    if envs.missing(suite):
        return f"{env} needs {suite.package}: {suite.install}"
    if suite.lists_all and task not in suite.adapter().names():
        return f"{name} has no task {task} here"
    more = getattr(suite.adapter(), "unavailable", None)
    return more(task) if more is not None else ""


def unsuited(algorithm: str, env: str) -> str:
    """Why an algorithm cannot be run on an environment that is here; empty where it can."""
    if algorithm not in ALGORITHMS:
        return f"there is no algorithm {algorithm} here yet"
    takes, name = ALGORITHMS[algorithm].takes, env.partition(":")[0]
    suite = envs.SUITES.get(name)
    if takes == "jax" and suite is not None and not suite.in_jax:
        return f"{algorithm} takes environments that are written in JAX, and {env} is not"
    if takes == "gymnasium" and name != "gymnasium":
        return f"{algorithm} takes Gymnasium's environments, and {env} is none"
    return ""


def uninstalled(algorithm: str, env: str) -> str:
    """The package that an algorithm lacks here; empty where there is none."""
    baseline = ALGORITHMS[algorithm].baseline
    return baselines.uninstalled(baseline, env) if baseline else ""


def refuse_other_options(record: Record, config: Any, results: Path) -> None:
    """Raise `ConfigError` where a result is of the same run with other options: skipping it would pass it off as this."""
    if changed := other_options(record.key.algorithm, record.config, config):
        raise ConfigError(
            f"{record.key.path(results)} was made with other options than {record.key.suite} has now "
            f"({', '.join(changed)}): move it and its table elsewhere, or choose another --results"
        )


# ------------------------------------------------------------------------------------------------ launching


Work = Callable[[Job], list[Job]]


def in_threads(jobs: Sequence[Job], work: Work, stop: Callable[[], None], at_once: int) -> None:
    """Do the work of every job, and of the jobs that it returns, until there are none; call ``stop`` on an error."""
    with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
        waiting = {pool.submit(work, job) for job in jobs}
        try:
            while waiting:
                done, waiting = concurrent.futures.wait(waiting, return_when=concurrent.futures.FIRST_COMPLETED)
                for future in done:
                    waiting |= {pool.submit(work, job) for job in future.result()}
        except BaseException:
            stop()  # the pool waits for its threads, and they for their processes
            for future in waiting:
                future.cancel()
            raise


class Interrupted(Exception):
    """Raised by a job whose process was stopped from outside."""


@dataclasses.dataclass
class Bench:
    """Runs the jobs of a plan.

    Attributes:
        results: where records go.
        work: where run directories and logs go.
        tell: receives a line for whoever watches.
        launcher: where the processes run.
        failed: jobs whose process has failed.
        left: jobs that are left to a process which runs them already.
    """

    results: Path
    work: Path
    tell: Callable[[str], None]
    launcher: Launcher
    failed: list[Job] = dataclasses.field(default_factory=list)
    left: list[Job] = dataclasses.field(default_factory=list)
    _processes: set[Process] = dataclasses.field(default_factory=set)
    _asked: set[Process] = dataclasses.field(default_factory=set)  #: to save and end
    _asking: threading.Lock = dataclasses.field(default_factory=threading.Lock)
    _stopping: threading.Event = dataclasses.field(default_factory=threading.Event)

    def run(self, jobs: Sequence[Job], at_once: int = 1) -> None:
        """Run all jobs; those that fail are in `failed`. Processes end with this one, and can be resumed."""
        if not jobs:
            return
        folder = self.work / jobs[0].suite
        folder.mkdir(parents=True, exist_ok=True)
        with run_directory.locked(folder):
            in_threads(jobs, self.job, self.stop, at_once)

    def stop(self) -> None:
        """Ask every process to save and end."""
        self._stopping.set()
        for process in list(self._processes):
            self.ask(process)

    def ask(self, process: Process) -> None:
        """Ask a process to save and end, once: a second signal would end it before it has saved."""
        with self._asking:
            if process not in self._asked:
                self._asked.add(process)
                process.stop()

    def job(self, job: Job) -> list[Job]:
        """Run one job and record it; returns the jobs that it has to be divided into, usually none."""
        if self._stopping.is_set() or all(self.recorded(key) for key in job.keys):  # by another bench, since the plan
            return []
        if (found := self.left_behind(job)) is not None:
            return self.record(job, found)
        if self.is_left(job):
            return []
        directory = self.free_directory(job)
        log = directory.with_name(directory.name + ".log")
        log.parent.mkdir(parents=True, exist_ok=True)
        began = time.perf_counter()
        code = self.process(job, directory, log)
        seconds = time.perf_counter() - began
        if code == STOPPED or (self._stopping.is_set() and code not in (0, DIVERGED)):
            self.stop()  # here, before this thread takes the next job
            raise Interrupted(f"{job} was stopped; the same command goes on")
        if code == DIVERGED and len(job.seeds) > 1:
            # One seed has ended the others with it. Alone, each comes as far as it can. Nothing goes on from here.
            set_aside(directory, DIVERGED_RUN)
            self.tell(f"{job}: diverged; each seed is run again by itself")
            return [dataclasses.replace(job, seeds=(seed,)) for seed in job.seeds]
        if code not in (0, DIVERGED):
            if self.is_left(job):  # that process had only begun, and had no directory yet
                return []
            self.fail(job, directory, f"exit code {code}: {last_words(log)}", seconds)
            return []
        try:
            found = collected(
                job, directory, "complete" if code == 0 else "diverged", last_words(log) if code else "", seconds
            )
        except ConfigError as error:
            self.fail(job, directory, str(error), seconds)
            return []
        return self.record(job, found)

    def record(self, job: Job, found: Sequence[Record]) -> list[Job]:
        """Write the records of a job, and tell of them."""
        for record in found:
            records.write(record, self.results)
        finals = ", ".join(f"{record.returns[-1]:.4g}" for record in found)
        self.tell(f"{job}: {finals} ({found[0].seconds:.0f} s){' diverged' if found[0].status == 'diverged' else ''}")
        return []

    def recorded(self, key: Key) -> bool:
        """Whether a run has a sound record, of something else than its failure."""
        try:
            return records.read(key.path(self.results)).status != "failed"
        except ConfigError:
            return False

    def directories(self, job: Job) -> Iterator[Path]:
        """Where a job's runs are, one after another, the last of them free."""
        for number in range(1, 1000):
            directory = self.work / (job.name + (f"-{number}" if number > 1 else ""))
            yield directory
            if not directory.exists():
                return
        raise ConfigError(f"there are too many directories like {self.work / job.name}; remove some")

    def left_behind(self, job: Job) -> list[Record] | None:
        """What a process has left that came to its end when nobody recorded it, because its bench had been killed."""
        for directory in self.directories(job):
            if (directory / "summary.json").is_file() and is_of(job, directory):
                with contextlib.suppress(ConfigError):  # not as it should be: it is run again
                    found = collected(job, directory, "complete", "", math.nan)
                    revision = found[0].description.get("git") or "unknown"
                    self.tell(f"{job}: not run again, it had ended in {directory} (revision {revision[:7]})")
                    return found
        return None

    def is_left(self, job: Job) -> bool:
        """Whether a process runs some of a job's seeds already, because its bench was killed and it was not."""
        for directory in sorted((self.work / job.suite / job.algorithm).glob("*/")):
            process = run_directory.holder(directory)
            if process is not None and {*seeds_of(job, directory)} & {*job.seeds}:
                self.left.append(job)
                self.tell(f"{job}: left to process {process}, which runs it in {directory}")
                return True
        return False

    def free_directory(self, job: Job) -> Path:
        """The run directory to go on in, or a new one: one of something else is never touched, nor one that cannot go on."""
        resumes = ALGORITHMS[job.algorithm].resumes
        return next(d for d in self.directories(job) if not d.exists() or (resumes and is_of(job, d)))

    def process(self, job: Job, directory: Path, log: Path) -> int:
        """Run a job's process to its end, a new run, or the rest of one that was stopped; returns its exit code."""
        reppo = [sys.executable, "-m", "reppo"]
        new = [*reppo, *job.command, "--out", str(directory)]
        again = [*reppo, "resume", str(directory)] if ALGORITHMS[job.algorithm].resumes else []
        process = self.launcher.start(again if directory.exists() else new, again, log)
        self._processes.add(process)
        if self._stopping.is_set():  # it began while the others were told
            self.ask(process)
        try:
            return process.wait()
        finally:
            self._processes.discard(process)

    def fail(self, job: Job, directory: Path, problem: str, seconds: float) -> None:
        """Record that a job has failed: it was launched, so the tables have it, with the returns that it had."""
        self.failed.append(job)
        self.tell(f"{job}: failed: {problem}")
        try:
            found = collected(job, directory, "failed", problem, seconds)
        except ConfigError:  # it came to nothing that can be read
            empty = np.zeros((0, len(records.COLUMNS)))
            command = shown_command(job)
            found = [Record(key, "failed", command, {}, seconds, len(job.seeds), None, empty, problem) for key in job.keys]
        for record in found:
            if not self.recorded(record.key):  # by another bench meanwhile
                records.write(record, self.results)


def is_of(job: Job, directory: Path) -> bool:
    """Whether a run directory is of this job."""
    return seeds_of(job, directory) == list(job.seeds)


def seeds_of(job: Job, directory: Path) -> list[int]:
    """The seeds of a run directory that is of a job's task, algorithm and options; none where it is not."""
    try:
        description = run_directory.read_description(directory)
    except ConfigError:
        return []
    if description["env"] != job.env:
        return []
    if records.algorithm_of(description) != (ALGORITHMS[job.algorithm].baseline or REPPO):
        return []
    return [] if other_options(job.algorithm, description["config"], job.config) else description["seeds"]


def other_options(algorithm: str, made_with: dict[str, Any], config: Any) -> list[str]:
    """``name this -> that`` of the options in which a run differs from what its suite asks for now."""
    return records.differences(ALGORITHMS[algorithm].baseline or REPPO, made_with, dataclasses.asdict(config))


def last_words(log: Path) -> str:
    """The last line that a process has said, without the name of the program."""
    try:
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    except OSError:
        lines = []
    return (lines[-1] if lines else "it said nothing").removeprefix("reppo: ")[:MOST_WORDS]


def shown_command(job: Job) -> str:
    """What to type to make a job's run again."""
    return shlex.join(["reppo", *job.command])


def collected(job: Job, directory: Path, status: records.Status, problem: str, seconds: float) -> list[Record]:
    """The records of a run directory whose process has ended, one for each seed. One that has failed may have none of its
    evaluations; a row that was cut off in the middle is none.

    Raises:
        ConfigError: where the directory does not have what a run of `reppo train` leaves.
    """
    try:
        description: dict[str, Any] = json.loads((directory / "config.json").read_text())
        text = (directory / "evaluations.csv").read_text()
        rows = list(csv.DictReader(text[: text.rfind("\n") + 1].splitlines()))
        summary = {}
        if status == "complete":
            summary = json.loads((directory / "summary.json").read_text())
        columns = ["env_steps", "time/seconds", "eval/return", "eval/return_std", "eval/episodes"]
        success = [f"eval/{name}" for name in records.SUCCESS]
        columns += success if rows and all(row.get(c) for row in rows for c in success) else []
        curves = {
            seed: np.array([[float(row[c] or "nan") for c in columns] for row in rows if float(row["seed"]) == seed])
            for seed in job.seeds
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{directory} does not hold a finished run ({type(error).__name__}: {error})") from None
    found = []
    for key in job.keys:
        record = Record(
            key=key,
            status=status,
            command=shown_command(job),
            description=description,
            # A run that was resumed knows the seconds of its earlier processes; it counts from its process's start.
            seconds=float(summary.get("seconds", seconds)),
            seeds_together=len(job.seeds),
            peak_memory_bytes=summary.get("peak_memory_bytes"),
            curve=curves[key.seed].reshape(-1, len(columns)),
            problem=problem,
            computed_memory_bytes=summary.get("computed_memory_bytes"),
        )
        records.check(record, directory)
        found.append(record)
    return found


def summarised(jobs: Iterable[Job]) -> dict[str, int]:
    """How many runs each reason keeps from running here."""
    counts: dict[str, int] = {}
    for job in jobs:
        counts[job.problem] = counts.get(job.problem, 0) + len(job.seeds)
    return counts
