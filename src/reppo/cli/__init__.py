"""The command line: ``reppo train``, ``reppo resume``, ``reppo eval``, ``reppo video``, ``reppo export``,
``reppo envs``, ``reppo check-env``, ``reppo repro``, ``reppo bench``, ``reppo report``, ``reppo baseline``, ``reppo toy``.

A command is a dataclass of its arguments and a function; `COMMANDS` lists them, and `reppo.options` parses them. They lie
in `training`, `policies`, `environments` and `comparisons`, which do not know one another, and share what is below them:
`exits`, `terminal` and `startup`.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from rich.table import Table
from rich.text import Text

import reppo
from reppo import options
from reppo.cli import comparisons, environments, policies, startup, training
from reppo.cli.exits import DIVERGED, EXIT_CODES, INTERRUPTED, USER_ERROR, explain
from reppo.cli.terminal import make_console, spell_what_cannot_be_written
from reppo.config import nearest
from reppo.display import ACCENT
from reppo.errors import ConfigError, Diverged, Stopped
from reppo.files import drop_truncated
from reppo.interrupt import STOPPED

COMMANDS: dict[str, tuple[type, Callable[[Any], None]]] = {
    "train": (training.TrainArgs, training.train),
    "resume": (training.ResumeArgs, training.resume),
    "eval": (policies.EvalArgs, policies.evaluate),
    "video": (policies.VideoArgs, policies.draw_video),
    "export": (policies.ExportArgs, policies.export_onnx),
    "envs": (environments.EnvsArgs, environments.list_envs),
    "check-env": (environments.CheckEnvArgs, environments.check_env),
    "repro": (environments.ReproArgs, environments.repro),
    "bench": (comparisons.BenchArgs, comparisons.bench),
    "report": (comparisons.ReportArgs, comparisons.report),
    "baseline": (training.BaselineArgs, training.baseline),
    "toy": (comparisons.ToyArgs, comparisons.toy),
}


def arguments(command: str, argv: Sequence[str]) -> Any:
    """The arguments of a command, an instance of its dataclass."""
    if command == "train":
        return training.train_arguments(argv)
    if command == "resume":
        return training.resume_arguments(argv)
    cls, _ = COMMANDS[command]
    return options.parse(cls, argv, command)


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
    startup.start_clock(with_process=argv is None)
    words = sys.argv[1:] if argv is None else argv
    try:
        with warnings.catch_warnings():
            startup.quieten()
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
