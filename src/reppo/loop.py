"""The training loop: everything that knows what comes next in a run.

Between two iterations of a `reppo.run.Run` plain Python evaluates, logs and saves.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from reppo import algorithms, checkpoint, envs, health, run_directory, same_run
from reppo.config import PRESETS, RunConfig, check_config, shown_count, whole
from reppo.envs.host import SimulatorError
from reppo.errors import ConfigError, Diverged, Stopped
from reppo.files import set_aside, write_json
from reppo.interrupt import Interrupt
from reppo.keeper import Keeper
from reppo.outcome import summary
from reppo.plot import plot_run
from reppo.run import Clock, Run, evaluation_due
from reppo.sinks import CsvSink, Event, PythonWarnings, Sink, TensorBoardSink

MOST_SEEDS = 10_000  #: at once; each has files of its own


# --------------------------------------------------------------------------------------------- train and resume

EnvLike = str | envs.AnyEnv | Callable[[], Any] | Any


def train(
    env: EnvLike,
    config: RunConfig | None = None,
    *,
    seed: int = 0,
    num_seeds: int = 1,
    out: str | os.PathLike[str] | None = None,
    sinks: Sequence[Sink] = (),
    started: float | None = None,
    interrupt: Interrupt | None = None,
) -> Run:
    """Train REPPO, or FastTD3 where ``config`` is its own, and return the finished run.

    Args:
        env: ``suite:Task``, ``path/to/file.py:MyEnv``, ``module:MyEnv``; or a `reppo.Env`, its class, or a function that
            makes it; or a class or function that makes a `gymnasium.Env`; or a `gymnasium.vector.VectorEnv`, or a function
            that makes one (see ``docs/environments.md``).
        config: the configuration; unset, the preset for this machine's hardware (see `default_preset`).
        seed: the first seed.
        num_seeds: how many seeds, ``seed, seed + 1, ...``, to train at once on this device.
        out: a new directory for the run's files; unset, nothing is written, and nothing can be resumed.
        sinks: further receivers of metrics, beside the files of ``out``; unset, what the user should act on is a
            `RuntimeWarning`.
        started: when the clock of ``time/seconds`` began (`time.perf_counter`); unset, now.
        interrupt: a request to stop, see `reppo.interrupt`.

    Raises:
        ConfigError: for anything that the caller can mend.
        Stopped: where ``interrupt`` asked for it, after the checkpoint.
        Diverged: where too much of the data or of the gradients is not finite.
    """
    clock = Clock(time.perf_counter() if started is None else started)
    if out is not None:
        run_directory.check_free(Path(out))
    seed, num_seeds = whole("seed", seed), whole("num_seeds", num_seeds)
    if num_seeds < 1:
        raise ConfigError(f"num_seeds must be at least 1, got {num_seeds}")
    if num_seeds > MOST_SEEDS:
        raise ConfigError(f"num_seeds must be at most {MOST_SEEDS:,}, got {shown_count(num_seeds)}")
    if seed < 0 or seed + num_seeds > 2**32:
        raise ConfigError(f"seeds must be between 0 and 2**32 - 1, got {seed}")
    if config is not None:
        check_config(config)
        config.validate()
    made = envs.make(env)  # before JAX is asked for its devices, see `envs.leave_gpu_memory`
    config = config or PRESETS[default_preset()]
    run = Run(made, config, range(seed, seed + num_seeds), None)
    if out is None:
        return _drive(run, list(sinks), clock, interrupt)
    run.check_memory()  # before there is a directory
    run.directory = run_directory.create(Path(out), run.description)
    with run_directory.locked(run.directory), run_directory.dropped_unless_begun(run.directory):
        return _drive(run, list(sinks), clock, interrupt)


def resume(
    directory: str | os.PathLike[str],
    config: RunConfig | None = None,
    *,
    env: EnvLike | None = None,
    sinks: Sequence[Sink] = (),
    started: float | None = None,
    interrupt: Interrupt | None = None,
) -> Run:
    """Continue a stopped run from its newest sound checkpoint, as if it had never stopped.

    On the same machine and versions the result is the same to the last bit on a CPU. A run that was stopped before its
    first checkpoint starts from the beginning; one that has finished is returned, or goes on if ``config`` extends it.

    Args:
        directory: the run's directory.
        config: its configuration with changes; only those of `reppo.same_run.RESUMABLE` are accepted.
        env: the environment, where the run was given an object rather than a name.
        sinks: as in `train`.
        started: as in `train`; the seconds of the earlier processes are added.
        interrupt: as in `train`.

    Raises:
        ConfigError: where the directory, its checkpoints or the changes are unusable; nothing is altered then.
    """
    clock = Clock(time.perf_counter() if started is None else started)
    directory = Path(directory)
    description = run_directory.read_description(directory)
    saved_config = algorithms.read_config(description, str(directory / "config.json"))
    if config is not None:
        check_config(config)
    config = config or saved_config
    same_run.check_changes(saved_config, config)
    config.validate()
    with run_directory.locked(directory):
        run = Run(_same_env(description, env), config, description["seeds"], directory)
        saved, damaged = checkpoint.newest(directory / "checkpoints")
        positions = {} if saved is None else saved.progress.positions
        if saved is None:
            run_directory.check_nothing_earned(directory)
            run.notes.append("stopped before its first checkpoint: it starts from the beginning")
        else:
            run.restore(saved)
            clock = Clock(clock.started - saved.progress.seconds)
        same_run.check_spec(description, run.description)
        run_directory.check_rows(directory, positions)
        if run.finished and run_directory.is_finished(directory, run.env_steps):
            run.recall()
            return _nothing_to_do(run, sinks)
        # Until here nothing on the disk has been changed.
        for path, problem in damaged.items():
            aside = set_aside(path)
            run.notes.append(f"{problem}; it is now {aside.name}, and the run goes on from {run.env_steps:,} steps")
        checkpoint.sweep(directory / "checkpoints")
        run_directory.rewind(directory, positions)
        run.recall()
        if config != saved_config:
            changed = {**description, "config": run.description["config"]}
            write_json(directory / "config.json", changed)
        return _drive(run, list(sinks), clock, interrupt)


def _nothing_to_do(run: Run, sinks: Sequence[Sink]) -> Run:
    for sink in sinks:
        sink.begin(run.description)
        sink.write(Event.status(f"finished at {run.env_steps:,} steps: nothing to do (a larger total_steps extends it)"))
        sink.close()
    return run


def _same_env(description: dict[str, Any], env: EnvLike | None) -> envs.AnyEnv:
    name = description["env"]
    if env is None and ":" not in name:
        raise ConfigError(f"this run's environment, {name}, was made in Python: resume it there, reppo.resume(..., env=...)")
    made = envs.make(name if env is None else env)
    if (found := made.spec().name) != name:
        raise ConfigError(f"the run trains {name}, not {found}")
    return made


def _drive(run: Run, sinks: list[Sink], clock: Clock, interrupt: Interrupt | None) -> Run:
    """Advance a run to its end, feeding its sinks, and write its outcome."""
    config, directory = run.config, run.directory
    with (
        jax.default_matmul_precision(config.precision),
        run_directory.explained_disk_errors(directory),
        contextlib.ExitStack() as stack,
    ):
        files: list[CsvSink | TensorBoardSink] = []
        if directory is not None:
            files = [CsvSink(directory), TensorBoardSink(directory / "tensorboard", run.seeds)]
        sinks = sinks or [PythonWarnings()]
        keeper = Keeper(run, files, clock)
        stack.callback(keeper.settle)
        stack.callback(run.collector.close)
        for sink in [*sinks, *files]:
            stack.callback(sink.close)
            sink.begin(run.description)
        try:
            for event in advance(run, keeper, clock, interrupt or Interrupt(str)):
                for sink in [*files, *sinks]:
                    sink.write(event)
        except SimulatorError as error:
            # What has been learned is sound: the rollout in which it happened is lost, and nothing else.
            if run.state is None or run.iteration == 0 or directory is None:
                raise
            keeper.save()
            keeper.wait()
            if interrupt is not None and interrupt.requested:  # a worker process was asked to stop, too
                raise Stopped(f"stopped at {run.env_steps:,} steps; {interrupt.how_to_resume()}") from error
            raise SimulatorError(f"{error}; saved at {run.env_steps:,} steps, `reppo resume {directory}` goes on") from error
        keeper.wait()
        if directory is not None:
            run.save_policies()
            plot_run(directory)
            found = summary(run.description, run.evaluations, run.returns, run.memory_parts(), clock.seconds)
            write_json(directory / "summary.json", found)
    return run


def advance(run: Run, keeper: Keeper, clock: Clock, interrupt: Interrupt) -> Iterator[Event]:
    """Drive a run from where it is to its end; yields what happens, for the sinks."""
    value_range = health.RangeWarning(run)
    yield from told(run.notes)
    with contextlib.ExitStack() as compiling:
        # Until the first iteration is done the process may be stopped at any moment: the disk has all that matters.
        compiling.enter_context(interrupt.expendable())
        if run.state is None:
            yield Event.status(run.collector.preparation)
            run.start()
        else:
            yield Event.status(f"resuming at {run.env_steps:,} steps")
            if run.evaluated and run.iteration > 0:
                run.save_policies()  # a kill may have come between the checkpoint and these
        while True:
            if evaluation_due(run.config, run.iteration) and not run.evaluated:
                evaluation = run.evaluation(clock, interrupt)
                if evaluation is None:
                    break
                yield evaluation
                keeper.save()
                if run.iteration > 0:
                    # After its checkpoint: a kill would leave this evaluation out of the record, and the best policy of the
                    # record must not have been replaced by then.
                    keeper.settle()
                    run.save_policies()
            elif keeper.due:
                keeper.save()
            if run.iteration >= run.config.num_iterations:
                yield from health.left_out(run)
                return
            if interrupt.requested:
                break
            rows = run.iterate(clock)
            compiling.close()
            yield Event("metrics", rows)
            yield from told(run.notes)
            yield from value_range.check(rows)
            if (complaint := health.diverged(run, rows)) is not None:
                keeper.save()
                keeper.wait()
                raise Diverged(complaint)
    keeper.save()
    keeper.wait()
    raise Stopped(f"stopped at {run.env_steps:,} steps; {interrupt.how_to_resume()}")


def told(notes: list[str]) -> Iterator[Event]:
    """Each note as a warning, once."""
    while notes:
        yield Event.warning(notes.pop(0))


def default_preset() -> str:
    """``cpu`` where JAX sees no accelerator, else ``paper-large``."""
    return "cpu" if jax.default_backend() == "cpu" else "paper-large"
