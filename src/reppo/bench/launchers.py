"""Where the processes of a benchmark run: on this machine, on a Slurm cluster (submitit), or on a Ray cluster.

All of them run the same commands, and see the same folders: on a cluster, results and run directories are on a file
system that every machine shares.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from reppo.errors import ConfigError
from reppo.files import set_aside
from reppo.interrupt import STOPPED

STOPPED_RUN = ".stopped"  #: suffix of the directory of a run that was moved and cannot go on
MOST_AT_ONCE = 500  #: processes given to a cluster at a time, each watched by a thread


class Process(Protocol):
    """One that runs, or waits for its turn."""

    def wait(self) -> int:
        """Its exit code, once it has ended."""
        ...

    def stop(self) -> None:
        """Ask it to save and end; it then ends with `STOPPED`, also where its turn had not come."""


class Launcher(Protocol):
    """A place for processes."""

    at_once: int | None  #: processes that it is given at a time, unless the user says otherwise; None: all

    def start(self, words: Sequence[str], again: Sequence[str], log: Path) -> Process:
        """Start a command whose output goes to a log. ``again`` goes on with it where it was moved elsewhere; empty, it
        cannot go on. The last word of both is its run directory."""
        ...


class Command:
    """A command as an object that other machines can call: its output goes to a log, and it returns the exit code."""

    def __init__(self, words: Sequence[str], again: Sequence[str], log: Path):
        self.words, self.again, self.log = list(words), list(again), str(Path(log).absolute())
        self.directory = os.getcwd()
        self.process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        self.launch()
        assert self.process is not None
        try:
            while (code := self.process.poll()) is None:
                time.sleep(0.2)  # Ray's way to interrupt a task does not end a wait
            return code
        except BaseException:  # asked to stop: it saves and ends before we do
            self.ask()
            self.process.wait()
            raise

    def launch(self) -> None:
        with open(self.log, "ab") as file:
            # In a session of its own, because a Ctrl-C would reach it beside our signal, and the second one ends it at
            # once. Slurm's warning goes to every process of a job; only the one that saves and moves must heed it.
            quiet = ["/bin/sh", "-c", 'trap "" USR2; exec "$@"', "sh", *self.words]
            self.process = subprocess.Popen(
                quiet,
                stdout=file,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                cwd=self.directory,
            )

    def ask(self) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGTERM)

    def checkpoint(self) -> Any:
        """submitit calls it, inside of `__call__`, when the job must leave its machine; returns the job to queue."""
        if self.process is not None:
            self.ask()
            with contextlib.suppress(ChildProcessError):
                # Not `wait`, whose lock the interrupted call may hold.
                os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
        run = Path(self.directory, self.words[-1])
        words = self.words
        if run.exists() and self.again:
            words = self.again
        elif run.exists():
            set_aside(run, STOPPED_RUN)  # it begins anew, and never over another run
        return package("submitit").helpers.DelayedSubmission(Command(words, self.again, Path(self.log)))


def package(name: str) -> ModuleType:
    """An engine's package; raises `ConfigError` with its extra where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        extra = {"submitit": "slurm", "ray": "ray"}[name]
        raise ConfigError(f"--launcher {extra} needs {name}: pip install 'reppo[{extra}]'") from None


def note(log: Path, line: str) -> None:
    """Add a line to a log: what an engine says of a process that cannot speak any more."""
    with log.open("a") as file:
        file.write(f"\n{line}\n")


# ------------------------------------------------------------------------------------------------ this machine


class LocalProcess:
    def __init__(self, command: Command):
        self.command = command
        command.launch()

    def wait(self) -> int:
        assert self.command.process is not None
        return self.command.process.wait()

    def stop(self) -> None:
        self.command.ask()


class Local:
    """On this machine."""

    at_once: int | None = 1

    def __init__(self, folder: Path, settings: Mapping[str, str]):
        del folder
        if settings:
            raise ConfigError(f"--launcher local has no settings, got {', '.join(settings)}")

    def start(self, words: Sequence[str], again: Sequence[str], log: Path) -> Process:
        return LocalProcess(Command(words, again, log))


# ------------------------------------------------------------------------------------------------ Slurm


class SlurmProcess:
    def __init__(self, job: Any, log: Path):
        self.job, self.log, self.stopped = job, log, False

    def wait(self) -> int:
        try:
            return self.job.result()
        except Exception as error:  # submitit's own, or what the job has raised
            if self.stopped:
                return STOPPED
            note(self.log, f"Slurm's job {self.job.job_id} did not end by itself: {str(error).splitlines()[0]}")
            return 1

    def stop(self) -> None:
        self.stopped = True
        self.job.cancel()


class Slurm:
    """As jobs of Slurm, through submitit. A job that reaches its time limit, or is preempted, saves and is queued again."""

    at_once: int | None = None

    def __init__(self, folder: Path, settings: Mapping[str, str]):
        submitit = package("submitit")
        settings = dict(settings)
        cluster = settings.pop("cluster", "slurm")
        try:
            self.executor = submitit.AutoExecutor(folder / "slurm", cluster=cluster)
            self.executor.update_parameters(name="reppo", **{name: number(value) for name, value in settings.items()})
        except Exception as error:
            raise ConfigError(f"--launcher slurm: {str(error).splitlines()[0]}") from None

    def start(self, words: Sequence[str], again: Sequence[str], log: Path) -> Process:
        return SlurmProcess(self.executor.submit(Command(words, again, log)), log)


# ------------------------------------------------------------------------------------------------ Ray


class RayProcess:
    def __init__(self, ray: ModuleType, task: Any, log: Path):
        self.ray, self.task, self.log, self.stopped = ray, task, log, False

    def wait(self) -> int:
        try:
            return self.ray.get(self.task)
        except Exception as error:  # Ray's own
            if self.stopped:
                return STOPPED
            note(self.log, f"Ray lost the task: {str(error).strip().splitlines()[0]}")
            return 1

    def stop(self) -> None:
        self.stopped = True
        self.ray.cancel(self.task)


class Ray:
    """As tasks of Ray: of a cluster that is there (``address``), or of one that begins and ends with this process."""

    at_once: int | None = None

    def __init__(self, folder: Path, settings: Mapping[str, str]):
        del folder
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no network unless the user asked for it
        ray = package("ray")
        settings = dict(settings)
        address = settings.pop("address", None)
        try:
            needs = {name: number(value) for name, value in settings.items()}
            # A lost machine's task is tried again by the user, who sees why it was lost; a second try would not resume.
            self.task = ray.remote(max_retries=0, **needs)(call)
            if not ray.is_initialized():
                ray.init(address=address, include_dashboard=False, log_to_driver=False)
        except Exception as error:
            raise ConfigError(f"--launcher ray: {str(error).strip().splitlines()[0]}") from None
        self.ray = ray

    def start(self, words: Sequence[str], again: Sequence[str], log: Path) -> Process:
        return RayProcess(self.ray, self.task.remote(Command(words, again, log)), log)


def call(command: Command) -> int:
    """What a worker of Ray does."""
    # Ray cancels a task by SIGINT, which workers ignore whose cluster a shell has started with ``&``.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return command()


LAUNCHERS: dict[str, Callable[[Path, Mapping[str, str]], Launcher]] = {"local": Local, "slurm": Slurm, "ray": Ray}


def settings(words: Sequence[str]) -> dict[str, str]:
    """``NAME=VALUE`` words as a dict; raises `ConfigError` for a word that is none, and for a name that comes twice."""
    found: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise ConfigError(f"--launcher-set takes NAME=VALUE, got {word!r}")
        if name in found:
            raise ConfigError(f"--launcher-set: {name} is given twice")
        found[name] = value
    return found


def number(word: str) -> int | float | str:
    """A setting's value: a number where the word is one."""
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(word)
    return word
