"""What compares algorithms: ``reppo bench``, ``reppo report`` and ``reppo toy``."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import FlagCreatePairsOff, Positional

from reppo import compiling
from reppo.cli.exits import check_seed
from reppo.cli.terminal import working
from reppo.display import shown
from reppo.errors import ConfigError, Stopped
from reppo.options import unset
from reppo.run_directory import check_free, claimed


@dataclasses.dataclass(frozen=True)
class BenchArgs:
    """Run a suite of tasks, algorithms and seeds, as far as it has not been run yet.

    Examples:
      reppo bench
      reppo bench laptop --dry-run
      reppo bench dmc23 --algorithms reppo --tasks CheetahRun HopperStand --seeds 5
      reppo bench dmc23 --launcher slurm --launcher-set slurm_partition=gpu gpus_per_node=1 timeout_min=600
    """

    suite: Annotated[Positional[str | None], unset("[SUITE]")] = None
    """A suite. Unset: list them."""
    tasks: Annotated[tuple[str, ...], unset("TASK ...")] = ()
    """Only these of its tasks. Unset: all."""
    algorithms: Annotated[tuple[str, ...], unset("NAME ...")] = ()
    """Only these of its algorithms. Unset: all."""
    seeds: Annotated[int | None, unset("N")] = None
    """Only the first so many of its seeds. Unset: all."""
    together: Annotated[int | None, unset("N")] = None
    """Seeds that share a process, vectorised on one device. Unset: as the suite says."""
    at_once: Annotated[int | None, unset("N")] = None
    """Processes at a time. Unset: one on this machine, all of them elsewhere."""
    launcher: Literal["local", "slurm", "ray"] = "local"
    """Where the processes run: on this machine, as jobs of Slurm, or as tasks of Ray."""
    launcher_set: Annotated[tuple[str, ...], unset("NAME=VALUE ...")] = ()
    """What each process asks the launcher for, such as timeout_min=600 gpus_per_node=1 (slurm), or num_gpus=1 (ray)."""
    results: Path = Path("results")
    """Where the results go, a small table for each run, and where those are that need not be run again."""
    work: Path = Path("runs/bench")
    """Where the run directories and logs go, which are needed until a run has ended."""
    dry_run: FlagCreatePairsOff[bool] = False
    """Say what would run, and run nothing."""


def bench(args: BenchArgs) -> None:
    from reppo.bench import runner, suites

    if args.suite is None:
        for name, suite in suites.SUITES.items():
            counts = f"{len(suite.tasks)} tasks x {len(suite.algorithms)} algorithms x {suite.num_seeds} seeds"
            print(f"{name:12}{counts:44}{suite.about}")
        return
    if args.at_once is not None and args.at_once < 1:
        raise ConfigError(f"--at-once must be at least 1, got {args.at_once}")
    plan = runner.make_plan(
        args.suite,
        suites.suite(args.suite),
        args.results,
        tasks=args.tasks,
        algorithms=args.algorithms,
        seeds=args.seeds,
        together=args.together,
    )
    to_run = sum(len(job.seeds) for job in plan.jobs)
    for problem in plan.problems:
        print(f"left out: {problem}")
    for problem, count in runner.summarised(plan.impossible).items():
        print(f"cannot run here: {count} runs: {problem}")
    print(f"{args.suite}: {len(plan.done)} runs are done, {to_run} to run, in {len(plan.jobs)} processes", flush=True)
    if args.dry_run:
        for job in plan.jobs:
            print(f"  {runner.shown_command(job)}")
        return
    if plan.jobs:
        run_plan(args, plan.jobs)


def run_plan(args: BenchArgs, jobs: Sequence[Any]) -> None:
    """Run the jobs of a plan; SIGTERM stops them as Ctrl-C does."""
    from reppo.bench import launchers, runner

    launcher = launchers.LAUNCHERS[args.launcher](args.work, launchers.settings(args.launcher_set))
    benching = runner.Bench(args.results, args.work, lambda line: print(line, flush=True), launcher)
    at_once = args.at_once or launcher.at_once or min(max(len(jobs), 1), launchers.MOST_AT_ONCE)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        benching.run(jobs, at_once)
    except (KeyboardInterrupt, runner.Interrupted):
        raise Stopped("stopped; the same command goes on") from None
    finally:
        signal.signal(signal.SIGTERM, before)
    if benching.failed:
        raise ConfigError(f"{len(benching.failed)} of {len(jobs)} processes failed; their logs are under {args.work}")
    if benching.left:
        runs = sum(len(job.seeds) for job in benching.left)
        raise Stopped(
            f"{runs} runs were left to the processes that have them; the same command goes on when those have ended"
        )


@dataclasses.dataclass(frozen=True)
class ReportArgs:
    """Make one page of all results: figures, tables of every run, and what is missing.

    Examples:
      reppo report
      reppo report results --out page
    """

    results: Positional[Path] = Path("results")
    """The folder of results, as `reppo bench` has written it."""
    out: Annotated[Path | None, unset("PATH")] = None
    """Where index.html, report.md and figures/ go. Unset: report/ in the folder of results."""


def report(args: ReportArgs) -> None:
    from reppo.bench import report

    folder = args.results
    others = [folder / name for _, name, _ in report.OTHERS]
    if folder.is_dir() and not any((folder / "bench").rglob("*.json")) and not any(path.is_file() for path in others):
        raise ConfigError(f"{folder} holds no results: it has no folder bench with runs, as `reppo bench` writes them")
    written = report.write(args.results, args.out)
    print(f"{written[0]}\n{written[1]}")


@dataclasses.dataclass(frozen=True)
class ToyArgs:
    """Run the paper's 2-D experiment: paths, variance and bias of each gradient estimator on a known surface.

    Examples:
      reppo toy
      reppo toy --seed 1 --out runs/toy
    """

    seed: int = 0
    """Of the paths, of the fitted networks, and of the replicates."""
    out: Annotated[Path | None, unset("PATH")] = None
    """A new directory for the picture and its numbers. Unset: runs/toy-DATE-TIME."""


def toy(args: ToyArgs) -> None:
    from reppo.toy import experiment, figure

    check_seed(args.seed)
    with claimed(args.out, "toy") as out:
        check_free(out)
        settings = experiment.Settings(seed=args.seed)
        with working("compiling, then climbing"), compiling.full_precision():
            figure.save(out, settings, experiment.run(settings))
    print(f"picture   {shown(out / 'toy.png')}")
    print(f"numbers   {shown(out / 'paths.csv')}, {shown(out / 'gradients.csv')}")
