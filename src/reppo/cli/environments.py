"""What is known of environments without training: ``reppo envs``, ``reppo check-env`` and ``reppo repro``."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
from rich.columns import Columns
from rich.text import Text
from tyro.conf import FlagCreatePairsOff, Positional

from reppo import compiling, envs, faults, outcome, provenance
from reppo.cli.exits import CHECK_FAILED, SMALLER, check_seed, explained_errors
from reppo.cli.terminal import make_console, working
from reppo.display import ACCENT
from reppo.envs import blame
from reppo.envs.autoreset import check_returns
from reppo.envs.check import check
from reppo.errors import ConfigError
from reppo.options import unset


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
