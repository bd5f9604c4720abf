"""The command line: ``reppo train``, ``reppo resume``, ``reppo eval``, ``reppo video``, ``reppo export``,
``reppo envs``, ``reppo check-env``, ``reppo repro``, ``reppo bench``, ``reppo report``, ``reppo baseline``, ``reppo toy``.

A command is a dataclass of its arguments and a function; `COMMANDS` lists them, and `reppo.options` parses them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import inspect
import io
import json
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
from rich.columns import Columns
from rich.console import Console
from rich.table import Table
from rich.text import Text
from tyro.conf import FlagCreatePairsOff, Positional

import reppo
from reppo import (
    algorithms,
    baselines,
    compiling,
    envs,
    export,
    faults,
    imports,
    loop,
    onnx_export,
    options,
    outcome,
    provenance,
    same_run,
)
from reppo.config import PRESETS, Config, nearest, preset, shown_count
from reppo.display import ACCENT, PlainDisplay, glyphs_for, make_display, number, shown
from reppo.envs import blame
from reppo.envs.autoreset import check_returns
from reppo.envs.blame import FAILURES
from reppo.envs.check import check
from reppo.errors import ConfigError, Diverged, ReppoError, Stopped
from reppo.evaluate import evaluate_policy
from reppo.files import drop_truncated
from reppo.interrupt import KILLED, NOTHING_YET, STOPPED, Interrupt
from reppo.options import INLINE, unset
from reppo.run_directory import check_free, check_new, claimed, read_description
from reppo.sinks import Sink, WandbSink

DEFAULT_ENV = "playground:CartpoleSwingup"

CHECK_FAILED = 1  #: exit code of `reppo check-env` where a check has failed
USER_ERROR = 2  #: exit code of everything that the user can mend
DIVERGED = 3  #: exit code of a run that its numbers have ended, see `reppo.errors.Diverged`
INTERRUPTED = KILLED + signal.SIGINT
EXIT_CODES = {
    0: "done",
    CHECK_FAILED: "the environment that was checked does not keep the contract",
    USER_ERROR: "something to mend in what was asked for; one line says what",
    DIVERGED: "the run has ended early, because too many of its numbers are not finite",
    STOPPED: "stopped, by Ctrl-C, another signal or a closed output; `reppo resume RUN`, or the same `reppo bench`, goes on",
    INTERRUPTED: "Ctrl-C, and there is nothing to resume",
    KILLED + signal.SIGTERM: "SIGTERM, and there is nothing to resume",
}

imported = time.perf_counter()
started = imported  #: when the clock of a run begins; `main` sets it


# ------------------------------------------------------------------------------------------- the commands


@dataclasses.dataclass(frozen=True)
class TrainArgs:
    """Train REPPO on an environment.

    Examples:
      reppo train
      reppo train playground:CheetahRun --seeds 5 --total-steps 2e6
      reppo train path/to/file.py:MyEnv --v-min 0 --v-max 100
    """

    env: Positional[str] = DEFAULT_ENV
    """suite:Task (`reppo envs` lists them), or path/to/file.py:MyEnv for one of your own."""
    preset: Annotated[str, unset("{" + ",".join(PRESETS) + "}")] = ""
    """A complete configuration; the options below change single values of it. Unset: cpu, or paper-large on a GPU."""
    seed: int = 0
    """The first seed."""
    seeds: int = 1
    """How many seeds to train at once: seed, seed + 1, ... Several devices share them, where each gets as many."""
    out: Annotated[Path | None, unset("PATH")] = None
    """A new directory for the run's files. Unset: runs/TASK-DATE-TIME."""
    wandb: Annotated[str | None, unset("PROJECT")] = None
    """Also log to this Weights & Biases project; uses the network."""
    config: Annotated[Config, INLINE] = dataclasses.field(default_factory=Config)


def train(args: TrainArgs) -> None:
    check_number_of_seeds(args.seeds)
    with claimed(args.out, args.env) as out, reported_run(out, args.env, args.wandb) as how:
        loop.train(args.env, args.config, seed=args.seed, num_seeds=args.seeds, out=out, **how)


@dataclasses.dataclass(frozen=True)
class ResumeArgs:
    """Go on with a run that was stopped or killed, as if it had never stopped.

    Examples:
      reppo resume runs/CartpoleSwingup-20260131-142500
      reppo resume runs/CartpoleSwingup-20260131-142500 --total-steps 2e6
    """

    run: Positional[Path]
    """The directory of the run."""
    wandb: Annotated[str | None, unset("PROJECT")] = None
    """Also log to this Weights & Biases project; uses the network."""
    config: Annotated[Config, INLINE] = dataclasses.field(default_factory=Config)


def resume(args: ResumeArgs) -> None:
    with reported_run(args.run, read_description(args.run)["env"], args.wandb) as how:
        loop.resume(args.run, args.config, **how)


@contextlib.contextmanager
def reported_run(directory: Path, env: str, wandb: str | None, lost: str = NOTHING_YET) -> Iterator[dict[str, Any]]:
    """What a run of the command line has beside its configuration: a display, stopping on signals, explained errors.

    ``lost`` says why there is nothing to resume, where that is so; given, that is always so.
    """
    display = make_display(directory, started)
    sinks: list[Sink] = [display] if wandb is None else [display, WandbSink(wandb)]

    def how_to_resume() -> str | None:
        begun = lost == NOTHING_YET and (directory / "config.json").exists()
        return f"`reppo resume {shlex.quote(shown(directory))}` goes on" if begun else None

    with (
        contextlib.closing(display),
        Interrupt(how_to_resume, lost) as interrupt,
        interrupt.expendable(),
        explained_errors(env, display),
    ):
        display.prepare(f"loading {env}")
        yield {"sinks": sinks, "started": started, "interrupt": interrupt}
    display.summarise()


@dataclasses.dataclass(frozen=True)
class EvalArgs:
    """Evaluate a saved policy, greedily, on fresh episodes.

    Examples:
      reppo eval runs/CartpoleSwingup-20260131-142500
    """

    run: Positional[Path]
    """A run directory, all of whose seeds are evaluated, or one policy file."""
    env: Annotated[str | None, unset("ENV")] = None
    """Another environment with the same observations and actions. Unset: the one it was trained on."""
    episodes: int = 128
    """Episodes per policy."""
    seed: int = 0
    """Seed of the episodes."""
    best: FlagCreatePairsOff[bool] = False
    """Of a run directory, the policies with the best evaluations instead of the newest."""
    json: FlagCreatePairsOff[bool] = False
    """Print one JSON object instead of a sentence."""


def check_number_of_seeds(seeds: int) -> None:
    """Refuse what no run can have; `reppo.train` does, too, by its own argument's name."""
    if seeds < 1:
        raise ConfigError(f"--seeds must be at least 1, got {seeds}")
    if seeds > loop.MOST_SEEDS:
        raise ConfigError(f"--seeds must be at most {loop.MOST_SEEDS:,}, got {shown_count(seeds)}")


def check_seed(seed: int) -> None:
    """Refuse what is no seed of JAX's random numbers."""
    if not 0 <= seed < 2**32:
        raise ConfigError(f"--seed must be between 0 and 2**32 - 1, got {seed}")


def evaluate(args: EvalArgs) -> None:
    if args.episodes < 1:
        raise ConfigError(f"--episodes must be at least 1, got {args.episodes}")
    check_seed(args.seed)
    policies = {path.name: export.load_policy(path) for path in policy_files(args.run, args.best)}
    env = args.env or trained_on(next(iter(policies.values())))
    results: dict[str, dict[str, np.ndarray]] = {}
    with explained_errors(env), working("compiling, then evaluating"):
        environment = envs.make(env)
        for note in getattr(environment, "notes", ()):
            print(f"reppo: {note}", file=sys.stderr)
        for name, policy in policies.items():
            results[name] = evaluate_policy(policy, environment, episodes=args.episodes, seed=args.seed)
    if args.json:
        print(json.dumps(evaluation_json(env, args.seed, results)))
    else:
        print_evaluation(env, args.seed, results)


def trained_on(policy: export.SavedPolicy) -> str:
    """The environment that a policy was trained on, as a name; raises `ConfigError` where it was made in Python."""
    if ":" not in policy.env:
        again = f"name it with --env, as path/to/file.py:{policy.env}"
        raise ConfigError(f"this policy's environment, {policy.env}, was made in Python: {again}")
    return policy.env


def policy_files(run: Path, best: bool) -> list[Path]:
    """The policies of a run directory, in the order of their seeds, or the one file; `export.load_policy` judges them."""
    found = run.glob("best*.npz" if best else "policy*.npz") if run.is_dir() else []
    files = sorted(found, key=lambda path: (len(path.name), path.name))
    if best and not files:
        raise ConfigError(f"--best looks for best.npz or best_seed*.npz in a run directory; there is none at {run}")
    return files or [run]


@dataclasses.dataclass(frozen=True)
class ExportArgs:
    """Write a saved policy as an ONNX file, for a robot's runtime.

    Examples:
      reppo export runs/CartpoleSwingup-20260131-142500
      reppo export runs/CartpoleSwingup-20260131-142500/best.npz --out balance.onnx
    """

    run: Positional[Path]
    """A run directory, all of whose seeds are exported, or one policy file."""
    out: Annotated[Path | None, unset("PATH")] = None
    """A new file, for one policy. Unset: beside each policy, under its name with the suffix .onnx."""
    best: FlagCreatePairsOff[bool] = False
    """Of a run directory, the policies with the best evaluations instead of the newest."""


def export_onnx(args: ExportArgs) -> None:
    files = policy_files(args.run, args.best)
    if args.out is not None and len(files) > 1:
        raise ConfigError(f"--out names one file, and {args.run} holds {len(files)} policies: name one of them")
    if args.out is not None and args.out.suffix.lower() != ".onnx":
        raise ConfigError(f"{args.out} names no format that this writes: .onnx")
    policies = [export.load_policy(path) for path in files]
    written = [args.out or path.with_suffix(".onnx") for path in files]
    for path in written:
        check_new(path)
    for path, policy in zip(written, policies, strict=True):
        size = onnx_export.save(path, policy)
        print(f"{shown(path)}, {number(size / 1024)} KiB: {policy.env}")
        for what, tensors in (("reads", onnx_export.inputs(policy)), ("gives", [onnx_export.output(policy)])):
            for tensor in tensors:
                print(f"  {what}  {tensor}")


@dataclasses.dataclass(frozen=True)
class VideoArgs:
    """Draw what a saved policy does, as an animated GIF or WebP.

    Examples:
      reppo video runs/CartpoleSwingup-20260131-142500
      reppo video runs/HalfCheetah-20260131-142500 --env gymnasium:HalfCheetah-v5 --out cheetah.webp
    """

    run: Positional[Path]
    """A run directory, whose first seed is drawn, or one policy file."""
    env: Annotated[str | None, unset("ENV")] = None
    """Another environment with the same observations and actions. Unset: the one it was trained on."""
    seconds: float = 10.0
    """How much of the episode is drawn, in the environment's time."""
    seed: int = 0
    """Seed of the episode."""
    camera: Annotated[str | None, unset("NAME")] = None
    """A camera of a MuJoCo model. Unset: the environment's own choice."""
    best: FlagCreatePairsOff[bool] = False
    """Of a run directory, the policy with the best evaluation instead of the newest."""
    out: Annotated[Path | None, unset("PATH")] = None
    """A new file, .gif or .webp. Unset: beside the policy, under its name with the suffix .gif."""


def draw_video(args: VideoArgs) -> None:
    from reppo import video

    check_seed(args.seed)
    if not 0 < args.seconds < float("inf"):
        raise ConfigError(f"--seconds must be positive, got {args.seconds:g}")
    file = policy_files(args.run, args.best)[0]
    policy = export.load_policy(file)
    out = args.out or file.with_suffix(".gif")
    video.check_file(out)
    name = args.env or trained_on(policy)
    imports.for_drawing()
    with explained_errors(name), working("compiling, then drawing"):
        episode = video.record(policy, envs.make(name), seed=args.seed, seconds=args.seconds, camera=args.camera)
    size = video.save(out, episode)
    part = "a whole episode" if episode.over else "the beginning of an episode"
    print(f"{shown(out)}, {number(size / 1024)} KiB: {part} of {name}")
    ended = ", ended by numbers that are not finite" if episode.broken else ""
    print(f"  reward  {number(episode.total_reward)} in {episode.length:,} steps{ended}")


SUCCESS = {"success_once": "solved it at some step", "success_at_end": "at their last"}


def return_statistics(returns: np.ndarray, lengths: np.ndarray, **success: np.ndarray) -> dict[str, float]:
    """``success`` is ``success_once`` and ``success_at_end``, where the environment says them."""
    numbers = {"mean": returns.mean(), "std": returns.std(), "min": returns.min(), "max": returns.max()}
    statistics = {f"return_{name}": float(value) for name, value in numbers.items()}
    rates = {name: float(values.mean()) for name, values in success.items()}
    return statistics | {"length_mean": float(lengths.mean())} | rates


def evaluation_json(env: str, seed: int, results: dict[str, dict[str, np.ndarray]]) -> dict[str, Any]:
    """All episodes together, and each policy's own; ``returns`` are in the order of the policies."""
    # What only some policies have, broken episodes, the others had none of.
    columns = {name: values.dtype for result in results.values() for name, values in result.items()}
    together = {
        name: np.concatenate([result.get(name, np.zeros(len(result["returns"]), kind)) for result in results.values()])
        for name, kind in columns.items()
    }
    each = [
        {"policy": name, **return_statistics(**result), "returns": result["returns"].tolist()}
        for name, result in results.items()
    ]
    returns = together["returns"].tolist()
    whole = {"env": env, "episodes": len(returns), "seed": seed, **return_statistics(**together)}
    return {**whole, "returns": returns, "policies": each}


def print_evaluation(env: str, seed: int, results: dict[str, dict[str, np.ndarray]]) -> None:
    console = make_console()
    lines, plus_minus = [], glyphs_for(console).plus_minus
    for name, result in results.items():
        s = return_statistics(**result)
        mean = s["return_mean"]
        spread, low, high = (number(s[f"return_{key}"], mean) for key in ("std", "min", "max"))
        lengths = result["lengths"]
        steps = f"{lengths[0]} steps"
        if len(set(lengths)) > 1:
            steps = f"{lengths.min()} to {lengths.max()} steps, {lengths.mean():.0f} in the mean"
        episodes = f"{len(lengths)} greedy episodes of {steps}, seed {seed}"
        rates = [f"{s[key]:.0%} {words}" for key, words in SUCCESS.items() if key in s]
        if "broken" in result:
            rates.append(f"{result['broken'].sum()} ended early, in numbers that are not finite")
        line = f"return {number(mean)} {plus_minus} {spread} (min {low}, max {high}) over {episodes}"
        lines.append((name, mean, "; ".join([line, *rates])))
    if len(lines) == 1:
        console.print(f"{env}: {lines[0][2]}", soft_wrap=True)
        return
    console.print(env)
    width = max(len(name) for name, _, _ in lines)
    for name, _, sentence in lines:
        console.print(f"  {name:{width}}  {sentence}", soft_wrap=True)
    means = np.array([mean for _, mean, _ in lines])
    low, high = (number(bound, means.mean()) for bound in (means.min(), means.max()))
    console.print(f"  {'all':{width}}  return {number(means.mean())} (from {low} to {high}) over {len(means)} policies")


@dataclasses.dataclass(frozen=True)
class EnvsArgs:
    """List what can be trained here, and what to install for the rest.

    Examples:
      reppo envs
      reppo envs cheetah
    """

    search: Annotated[Positional[str | None], unset("[SEARCH]")] = None
    """Only names that contain this."""
    json: FlagCreatePairsOff[bool] = False
    """Print one JSON object instead of a table."""


def list_envs(args: EnvsArgs) -> None:
    suites = {name: described_suite(suite) for name, suite in envs.SUITES.items()}
    word = (args.search or "").lower()
    for name, entry in suites.items():
        entry["tasks"] = [task for task in entry["tasks"] or () if word in f"{name}:{task}".lower()]
    if args.json:
        print(json.dumps(suites))
        return
    if word and not any(entry["tasks"] for entry in suites.values()):
        raise ConfigError(f"no environment here contains {args.search!r}; `reppo envs` lists all")
    shown = {name: entry for name, entry in suites.items() if entry["tasks"] or not word}
    (print_columns if sys.stdout.isatty() else print_names)(shown)


def print_names(suites: dict[str, dict[str, Any]]) -> None:
    """Whole names, a line each, for grep and its like."""
    for name, entry in suites.items():
        for line in [f"# {name}: {entry['problem']}"] if entry["problem"] else [f"{name}:{t}" for t in entry["tasks"]]:
            print(line)


def print_columns(suites: dict[str, dict[str, Any]]) -> None:
    console = make_console()
    for name, entry in suites.items():
        console.print(Text(f"{name}:", style=f"bold {ACCENT}").append(f"  {entry['about']}", style="default not bold"))
        if entry["problem"]:
            console.print(Text(f"  {entry['problem']}", style="yellow"), soft_wrap=True)
        else:
            console.print(Columns([f"  {task}" for task in entry["tasks"]], column_first=True, padding=(0, 1)))
        console.print()
    console.print("Train one with `reppo train SUITE:TASK`, your own with `reppo train path/to/file.py:MyEnv`.")


def described_suite(suite: envs.Suite) -> dict[str, Any]:
    """What a suite is, its tasks, and how to get it where it cannot be used; ``tasks`` is None there."""
    install = suite.install if suite.package else None
    entry: dict[str, Any] = {"about": suite.about, "install": install, "tasks": None, "problem": None}
    if envs.missing(suite):
        return {**entry, "problem": f"not installed: {install}"}
    try:
        return {**entry, "tasks": suite.adapter().names()}
    except Exception as error:  # somebody else's package, in whatever state
        return {**entry, "problem": f"installed, but it cannot be imported ({blame.one_line(error)}): {install}"}


@dataclasses.dataclass(frozen=True)
class ReproArgs:
    """Make again the environment step or the update that had numbers which are not finite.

    Examples:
      reppo repro runs/MyEnv-20260131-142500/fault-000000008192-seed0.npz
    """

    file: Positional[Path]
    """A reproduction file, which a run writes at the first such step and the first such update of a seed."""


def repro(args: ReproArgs) -> None:
    with explained_errors(str(args.file)), working("compiling"):
        outcome = faults.replay(args.file)
    print(outcome)


@dataclasses.dataclass(frozen=True)
class CheckEnvArgs:
    """Check that an environment keeps the contract that training relies on.

    Examples:
      reppo check-env gymnasium:HalfCheetah-v5
      reppo check-env path/to/file.py:MyEnv
    """

    env: Positional[str]
    """suite:Task, path/to/file.py:MyEnv, or module:MyEnv."""
    num_envs: int = 4
    """Environments to step at once."""
    num_steps: int = 300
    """Steps of each under random actions."""
    seed: int = 0
    """Seed of the environments and of the actions."""


def check_env(args: CheckEnvArgs) -> None:
    for name, low in (("num_envs", 1), ("num_steps", 10)):
        if getattr(args, name) < low:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least {low}, got {getattr(args, name)}")
    check_seed(args.seed)
    failed = 0
    with explained_errors(args.env), compiling.full_precision():
        env = envs.make(args.env)
        check_returns(env)
        check_memory(env.spec(), args.num_envs, args.num_steps)
        for finding in check(env, num_envs=args.num_envs, num_steps=args.num_steps, seed=args.seed):
            mark = {True: "ok", False: "FAIL", None: "note"}[finding.passed]
            print(f"{mark:4}  {finding.check:24}{finding.seen}", flush=True)
            if finding.passed is False:
                failed += 1
                print(f"{'':6}{'':24}-> {finding.advice}")
    print(f"{args.env}: {f'{failed} failed' if failed else 'all checks passed'}")
    if failed:
        raise SystemExit(CHECK_FAILED)


def check_memory(spec: envs.EnvSpec, num_envs: int, num_steps: int) -> None:
    """Refuse a check whose steps cannot be held, as it looks at all of them at once."""
    rows = [*2 * jax.tree.leaves(spec.observation), spec.action, jax.ShapeDtypeStruct((), np.float32)]
    needed, there = outcome.size_of(rows) * num_envs * num_steps, provenance.memory()
    if there is not None and needed > there:
        raise ConfigError(
            f"this check needs at least {needed / 2**30:,.1f} GiB of memory, and there are {there / 2**30:,.1f}: "
            f"{SMALLER['check-env']}"
        )


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
class BaselineArgs:
    """Train what REPPO is compared with; the files are those of `reppo train`.

    Examples:
      reppo baseline ppo playground:CheetahRun
      reppo baseline fasttd3 gymnax:Pendulum-v1 --preset cpu --set total_steps=100000 n_step=1
    """

    algorithm: Positional[str]
    """fasttd3, Brax's (ppo, sac), Stable-Baselines3's (sb3-ppo, sb3-sac), or SBX's (sbx-ppo, sbx-sac)."""
    env: Positional[str]
    """suite:Task, or path/to/file.py:MyEnv."""
    preset: Annotated[str, unset("{published,published-robots,cpu}")] = ""
    """A complete configuration. Unset: cpu, or published on a GPU."""
    set: Annotated[tuple[str, ...], unset("NAME=VALUE")] = ()
    """Single values of it, as docs/baselines.md names them."""
    total_steps: Annotated[int | None, unset("N")] = None
    """Environment steps of the whole run. Unset: the preset's."""
    num_evals: Annotated[int | None, unset("N")] = None
    """Evaluations, evenly over the run. Unset: the preset's."""
    eval_episodes: Annotated[int | None, unset("N")] = None
    """Fresh greedy episodes per evaluation. Unset: the preset's."""
    seed: int = 0
    """The first seed."""
    seeds: int = 1
    """How many seeds to train at once: seed, seed + 1, ... Several devices share them, where each gets as many."""
    out: Annotated[Path | None, unset("PATH")] = None
    """A new directory for the run's files. Unset: runs/TASK-ALGORITHM-DATE-TIME."""
    wandb: Annotated[str | None, unset("PROJECT")] = None
    """Also log to this Weights & Biases project; uses the network."""


def baseline(args: BaselineArgs) -> None:
    given = {name: getattr(args, name) for name in ("total_steps", "num_evals", "eval_episodes")}
    preset = args.preset or ("cpu" if jax.default_backend() == "cpu" else "published")
    config = baselines.configured(args.algorithm, args.env, preset, args.set, given)
    check_number_of_seeds(args.seeds)
    name = f"{args.env}-{args.algorithm}"
    library = algorithms.ALGORITHMS[args.algorithm].library
    if not library:
        with claimed(args.out, name) as out, reported_run(out, args.env, args.wandb) as how:
            loop.train(args.env, config, seed=args.seed, num_seeds=args.seeds, out=out, **how)
        return
    whose = f"{library}'s {args.algorithm}"
    if args.seeds > 1:
        raise ConfigError(f"{whose} trains one seed at a time; leave out --seeds")
    from reppo.baselines import foreign

    words = ["reppo", "baseline", args.algorithm, args.env, "--preset", preset, "--seed", str(args.seed)]
    words += [word for name, value in given.items() if value is not None for word in (options.flag(name), str(value))]
    command = shlex.join([*words, *(["--set", *args.set] if args.set else [])])
    make_agent = algorithms.make_agent(args.algorithm)
    lost = f"a run of {whose} cannot be continued"
    with claimed(args.out, name) as out, reported_run(out, args.env, args.wandb, lost) as how:
        del how["interrupt"]  # it may end at any moment
        foreign.train(args.env, config, make_agent, seed=args.seed, out=out, command=command, **how)


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


COMMANDS: dict[str, tuple[type, Callable[[Any], None]]] = {
    "train": (TrainArgs, train),
    "resume": (ResumeArgs, resume),
    "eval": (EvalArgs, evaluate),
    "video": (VideoArgs, draw_video),
    "export": (ExportArgs, export_onnx),
    "envs": (EnvsArgs, list_envs),
    "check-env": (CheckEnvArgs, check_env),
    "repro": (ReproArgs, repro),
    "bench": (BenchArgs, bench),
    "report": (ReportArgs, report),
    "baseline": (BaselineArgs, baseline),
    "toy": (ToyArgs, toy),
}


# ------------------------------------------------------------------------------------------- arguments


def arguments(command: str, argv: Sequence[str]) -> Any:
    """The arguments of a command, an instance of its dataclass."""
    cls, _ = COMMANDS[command]
    if cls not in (TrainArgs, ResumeArgs):
        return options.parse(cls, argv, command)
    # The defaults of a `Config` depend on the preset, or on the run that is resumed, which are arguments themselves.
    wants_help = not options.HELP.isdisjoint(argv)
    words = [word for word in argv if word not in options.HELP]
    if cls is TrainArgs:
        asked = options.parse(TrainArgs, words, command)
        envs.leave_gpu_memory(asked.env)  # to know of a GPU is to start JAX
        name = asked.preset or loop.default_preset()
        return options.parse(TrainArgs, argv, command, TrainArgs(preset=name, config=preset(name)))
    if wants_help:
        return options.parse(ResumeArgs, argv, command, shown=same_run.RESUMABLE)
    run = options.parse(ResumeArgs, words, command).run
    config = algorithms.read_config(read_description(run), str(run / "config.json"))
    if isinstance(config, Config):
        return options.parse(ResumeArgs, argv, command, ResumeArgs(run, config=config))
    # Of a baseline only what may change: its other options are none of ours.
    same = {name: getattr(config, name) for name in same_run.RESUMABLE}
    args = options.parse(ResumeArgs, argv, command, ResumeArgs(run, config=dataclasses.replace(Config(), **same)))
    changes = {name: getattr(args.config, name) for name in same_run.RESUMABLE}
    return dataclasses.replace(args, config=dataclasses.replace(config, **changes))


def print_overview() -> None:
    console = make_console()
    name, _, purpose = (reppo.__doc__ or "").partition("\n")[0].partition(":")
    console.print(Text(f"{name} {reppo.__version__} ", style=f"bold {ACCENT}").append(purpose, style="default not bold"))
    commands = Table(*["", ""], box=None, show_header=False, padding=(0, 2))
    for command, (cls, _) in COMMANDS.items():
        commands.add_row(Text(f"reppo {command}", style=ACCENT), (inspect.getdoc(cls) or "").partition("\n")[0])
    codes = Table(*["", ""], box=None, show_header=False, padding=(0, 2))
    for code, meaning in EXIT_CODES.items():
        codes.add_row(Text(f"{code:3}", style=ACCENT), meaning)
    for part in ("", commands, "\n`reppo COMMAND --help` describes a command's options.\n\nExit codes:\n", codes):
        console.print(part)


# ------------------------------------------------------------------------------------------- errors


#: What takes less memory, by command.
SMALLER = {
    "check-env": "try fewer --num-envs or --num-steps",
    "eval": "try fewer --episodes",
    "video": "try fewer --seconds",
}


def out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


def explain(error: BaseException, command: str = "train") -> str | None:
    """What a user can do about an error that is not ours; None where it is nobody's fault but the program's."""
    text = str(error)
    if out_of_memory(error):
        size = re.search(r"allocat\w+ (\d+) bytes", text)
        asked = f" (it asked for {int(size[1]) / 2**30:,.1f} GiB more)" if size else ""
        advice = SMALLER.get(command, "try fewer --num-envs, --num-steps or --seeds, or smaller networks")
        return f"out of memory{asked}: {advice}"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM):
        return f"{error.strerror}{f': {error.filename}' if error.filename else ''}"
    if isinstance(error, subprocess.CalledProcessError) and "git" in error.cmd:
        return "this task downloads its robot with git at first use, and that failed: is there a network?"
    return None


@contextlib.contextmanager
def explained_errors(env: str, display: PlainDisplay | None = None) -> Iterator[None]:
    """Turn errors that an environment's own code has made into one line that names the place in it.

    Where our code stumbles over what such an environment returns, there is no such place: the line then holds the error
    itself. Once training is under way, such an error is more likely ours, and is left alone.
    """
    try:
        yield
    except FAILURES as error:
        said = isinstance(error, ReppoError)
        if said or out_of_memory(error) or os.environ.get("REPPO_TRACEBACK"):
            raise
        source, name = envs.split_name(env)
        of_suite = not name or source in envs.SUITES
        place = blame.place(error, "" if of_suite else source.partition(".")[0])
        under_way = display is not None and bool(display.telemetry.metrics)
        stumbled = isinstance(error, TypeError | ValueError | LookupError | AttributeError | ArithmeticError)
        ours = of_suite or under_way or not stumbled
        if place is None and ours and not isinstance(error, SystemExit):
            raise
        raise ConfigError(f"{place or env}: {blame.one_line(error)} (REPPO_TRACEBACK=1 shows more)") from error


# ------------------------------------------------------------------------------------------- running


def make_console(stderr: bool = False) -> Console:
    return Console(highlight=False, markup=False, emoji=False, stderr=stderr)


def working(what: str) -> contextlib.AbstractContextManager[Any]:
    """A sign of life on a terminal's stderr, nothing elsewhere."""
    console = make_console(stderr=True)
    return console.status(what) if console.is_terminal and not console.is_dumb_terminal else contextlib.nullcontext()


def process_start() -> float:
    """When this process began, on the clock of `time.perf_counter`: a run's seconds are those that its user waited."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return time.perf_counter() - (time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError, AttributeError):  # not Linux
        return imported


def unraisable(what: Any) -> None:
    """Python's own `sys.unraisablehook`, but for what Orbax's threads say, each, where one array cannot be read."""
    if not (what.exc_type is RuntimeError and str(what.exc_value) == "Event loop is closed"):
        sys.__unraisablehook__(what)


def quieten() -> None:
    """Silence what other packages say to their developers; ``-W`` and ``PYTHONWARNINGS`` bring the warnings back."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = os.environ.get("REPPO_XLA_LOG_LEVEL", "3")
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # it, too, tells of arrays that cannot be read
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = unraisable
    if not sys.warnoptions:
        for package in (
            "brax",
            "envpool",
            "flax",
            "gymnasium",
            "gymnax",
            "jax",
            "mani_skill",
            "mujoco",
            "mujoco_playground",
            "orbax",
            "sapien",
            "tensorboardX",
        ):
            warnings.filterwarnings("ignore", module=rf"{package}(\.|$)")


def spell_what_cannot_be_written() -> None:
    """A character that a terminal's encoding lacks, as of a path, becomes a question mark rather than an exception."""
    for file in (sys.stdout, sys.stderr):
        if isinstance(file, io.TextIOWrapper) and not file.encoding.lower().startswith("utf"):
            file.reconfigure(errors="replace")


def use_compilation_cache() -> None:
    """Keep compiled programs in the user's cache folder, so that a second start is fast."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "reppo" / "jax"
    with contextlib.suppress(OSError):  # a cache that cannot be written is none
        drop_truncated(cache)
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def run(argv: Sequence[str]) -> None:
    if not argv or argv[0] in options.HELP:
        return print_overview()
    if argv[0] == "--version":
        return print(f"reppo {reppo.__version__}")
    command, *rest = argv
    if command not in COMMANDS:
        raise ConfigError(f"no command {command!r}{nearest(command, COMMANDS)}; there are {', '.join(COMMANDS)}")
    args = arguments(command, rest)
    use_compilation_cache()
    return COMMANDS[command][1](args)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code, see `EXIT_CODES`."""
    global started
    started = process_start() if argv is None else time.perf_counter()
    words = sys.argv[1:] if argv is None else argv
    try:
        with warnings.catch_warnings():
            quieten()
            spell_what_cannot_be_written()
            run(words)
    except KeyboardInterrupt:
        print("reppo: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `reppo envs | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except SystemExit as end:  # the help has been printed, or a check has failed
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(f"reppo: {' '.join(str(end.code).split())}", file=sys.stderr)
        return USER_ERROR
    except Stopped as stopped:
        print(f"reppo: {stopped}", file=sys.stderr)
        return STOPPED
    except Diverged as diverged:
        print(f"reppo: {diverged}", file=sys.stderr)
        return DIVERGED
    except Exception as error:
        line = str(error) if isinstance(error, ConfigError) else explain(error, words[0])
        if line is None or os.environ.get("REPPO_TRACEBACK"):
            raise
        print(f"reppo: {' '.join(line.split())}", file=sys.stderr)
        return USER_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main())
