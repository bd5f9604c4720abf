"""The training loop: everything that knows where the run is in time.

A `reppo.collector.Collector` steps the environments, the learner's `update` is a compiled program, and between the two
plain Python evaluates, logs and saves. Every random number is drawn from ``fold_in(run_key, iteration)``, so an
interrupted run can draw the same.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from reppo import algorithms, checkpoint, compiling, envs, export, faults, health, outcome, run_directory, same_run
from reppo.algorithms import make_learner
from reppo.collector import Collected, Collector, JaxCollector, compile_over_seeds, num_devices
from reppo.config import PRESETS, RunConfig, check_config, shown_count, whole
from reppo.envs.host import SimulatorError
from reppo.envs.spec import EnvSpec, resolve
from reppo.errors import ConfigError, Diverged, Stopped
from reppo.evaluate import Evaluation
from reppo.files import set_aside, write_json
from reppo.host_collector import HostCollector
from reppo.interrupt import Interrupt
from reppo.keeper import Clock, Keeper
from reppo.keys import Keys, Stream
from reppo.outcome import due, evaluation_row, size_of, summary
from reppo.plot import plot_run, read_rows
from reppo.sinks import CsvSink, Event, PythonWarnings, Sink, TensorBoardSink, best_evaluation
from reppo.types import PyTree

MOST_SEEDS = 10_000  #: at once; each has files of its own


class Run:
    """A training run: its state, its directory, and the functions that advance it.

    Attributes:
        directory: where the run's files are, or None for a run that writes none.
        history: one row per seed and iteration, as in ``metrics.csv``.
        evaluations: one row per seed and evaluation, as in ``evaluations.csv``.
        returns: newest greedy evaluation, ``[R, episodes]``.
        evaluated: whether the evaluation due at this iteration has been made.
        reproduced: kind and seed of the reproduction files that there are, see `reppo.faults`.
        notes: what the user has yet to be told.
    """

    def __init__(self, env: envs.AnyEnv, config: RunConfig, seeds: Sequence[int], directory: Path | None):
        config.validate()
        self.algorithm = algorithms.name_of(config)
        self.config, self.seeds, self.directory = config, list(seeds), directory
        with jax.default_matmul_precision(config.precision):  # a compiled reset is then not traced again, see `BraxStyle`
            self.spec: EnvSpec = resolve(env.spec(), config)
        self.learner = make_learner(config, self.spec)
        #: whether the state holds a replay memory, so that an update overwrites it instead of copying it
        self.replays = bool(jax.tree.leaves(jax.eval_shape(self._replay, jax.random.key(0))))
        self.key = Keys(self.seeds)
        kind = HostCollector if isinstance(env, envs.HostEnv) else JaxCollector
        self.collector: Collector = kind(env, self.spec, self.learner, config, self.key)  # pyright: ignore
        self.init = compile_over_seeds(self.learner.init, len(self.seeds), [0], compiling.SELDOM)
        # A state is donated only where it is large: if a gradient is not finite, it takes the old one to make it again.
        in_place = {"donate": (0,)} if self.replays else {}
        self.update = compile_over_seeds(self.learner.update, len(self.seeds), [0, 0, 0], compiling.NETWORKS, **in_place)
        self.history: list[dict[str, float]] = []
        self.evaluations: list[dict[str, float]] = []
        self.returns = np.full((len(self.seeds), 0), np.nan)
        self.iteration = 0
        self.evaluated = False
        self.notes: list[str] = list(env.notes) if isinstance(env, envs.HostEnv) else []
        used, there = num_devices(len(self.seeds)), jax.local_device_count()
        if used < there:
            self.notes.append(f"this run uses {used} of {there} devices: --seeds {there}, or a multiple, has work for all")
        self.reproduced: set[tuple[str, int]] = set()
        self._state: PyTree = None

    @functools.cached_property
    def description(self) -> dict[str, Any]:
        """What the run is, as JSON values, see `reppo.outcome.describe`."""
        config = dataclasses.asdict(self.config)
        return json.loads(json.dumps(outcome.describe(self.algorithm, self.spec, self.seeds, config, self.learner.facts)))

    @property
    def env_steps(self) -> int:
        """Environment steps so far, per seed."""
        return self.iteration * self.config.batch_size

    @property
    def state(self) -> PyTree:
        """The learner's state, leaves ``[R, ...]``; None before `start` or `restore`."""
        return self._state

    @property
    def env_state(self) -> PyTree:
        """The environments' state, leaves ``[R, N, ...]``."""
        return self.collector.env_state

    def policy(self, seed_index: int = 0) -> PyTree:
        """The current policy of one seed, as it is evaluated and saved."""
        return jax.tree.map(lambda x: x[seed_index], self.learner.policy(self.learner.deployed(self._state)))

    def _replay(self, key: jax.Array) -> PyTree:
        """A fresh replay memory of one seed; an empty pytree where the algorithm has none."""
        return self.learner.replay(self.learner.init(key))

    def start(self) -> None:
        """Initialise networks and environments; refuse environments whose first observations are not finite."""
        self.check_memory()
        self._state = self.init(self.key(Stream.INIT))
        if unusual := self.collector.start():
            self.notes.append(unusual)

    def check_memory(self) -> None:
        """Refuse a run that cannot fit, see `reppo.outcome.check_fits`."""
        hint = "try fewer --num-envs, --num-steps or --seeds, or smaller networks"
        devices = 1 if jax.default_backend() == "cpu" else num_devices(len(self.seeds))
        outcome.check_fits(self.memory_parts(), hint, devices)

    def memory_parts(self) -> dict[str, int]:
        """Bytes that a run has to hold at least, from shapes: networks and optimisers, one rollout with the order of its
        rows in all epochs, and the replay memory."""
        config, keys = self.config, self.key(Stream.INIT)
        reward = jax.ShapeDtypeStruct((), np.float32)
        rows = [*2 * jax.tree.leaves(self.spec.observation), self.spec.action, reward]
        per_step = size_of(rows) + config.num_epochs * np.dtype(np.int32).itemsize
        state = jax.eval_shape(self.init, keys)
        replay = size_of(self.learner.replay(state))
        batch = per_step * config.batch_size * len(self.seeds)
        return {"parameters": size_of(state) - replay, "batch": batch, "replay": replay}

    def restore(self, saved: checkpoint.Checkpoint) -> None:
        """Go to where a checkpoint is, instead of `start`; raises `ConfigError` where it is not of this run."""
        at = f"the checkpoint at {saved.progress.env_steps:,} steps"
        if saved.progress.iteration > self.config.num_iterations:
            raise ConfigError(f"{at} is beyond total_steps, {self.config.total_steps:,}")
        if differences := same_run.other_run(saved.run, self.description):
            raise checkpoint.CheckpointError(f"{at} is not of this run: {', '.join(differences)}")
        like = {"learner": jax.eval_shape(self.init, self.key(Stream.INIT)), "env": self.collector.like()}
        try:
            tree = checkpoint.from_host(saved.arrays, like)
            self.returns = np.array(saved.progress.returns, float).reshape(len(self.seeds), -1)
        except (checkpoint.CheckpointError, ValueError) as error:
            raise checkpoint.CheckpointError(f"{at} is not of this run: {error}") from None
        self._state = tree["learner"]
        self.iteration, self.evaluated = saved.progress.iteration, saved.progress.evaluated
        if elsewhere := same_run.changed_provenance(saved.run, self.description):
            self.notes.append(f"{at} was written elsewhere ({elsewhere}): what follows may differ in the last bits")
        if lost := self.collector.restore(tree["env"], self.iteration):
            self.notes.append(lost)

    def iterate(self, clock: Clock) -> list[dict[str, float]]:
        """One iteration: roll out, update. Returns one row of metrics per seed."""
        began = time.perf_counter()
        collected = self.collector.collect(self._state, self.iteration)
        before, key = self._state, self.key(Stream.ITERATION, self.iteration, 1)
        self._state, metrics = self.update(before, collected.rows, key)
        self.iteration += 1
        self.evaluated = False
        metrics = jax.device_get({**metrics, "train/invalid_resets": collected.invalid_resets})
        self._save_faults(collected, before, key, metrics["train/skipped_updates"])
        rows = self._rows(metrics, jax.device_get(collected.episodes))
        for row in rows:
            row["time/seconds"] = clock.seconds
            row["time/steps_per_second"] = self.config.batch_size * len(self.seeds) / (time.perf_counter() - began)
        self.history += rows
        return rows

    def _rows(self, metrics: dict[str, np.ndarray], episodes: dict[str, np.ndarray]) -> list[dict[str, float]]:
        rows = []
        for k, seed in enumerate(self.seeds):
            done = episodes["episode_done"][k]
            row = {"seed": float(seed), "iteration": float(self.iteration), "env_steps": float(self.env_steps)}
            row |= {name: float(values[k]) for name, values in sorted(metrics.items())}
            # The learner leaves out all rows that are no transition; only some of them are an accident.
            row["train/reset_rows"] = float(episodes["reset"][k].sum()) if "reset" in episodes else 0.0
            row["train/invalid_rows"] -= row["train/reset_rows"]
            row["episode/count"] = float(done.sum())
            row["episode/return"] = float(episodes["episode_return"][k][done].mean()) if done.any() else np.nan
            row["episode/length"] = float(episodes["episode_length"][k][done].mean()) if done.any() else np.nan
            rows.append(row)
        return rows

    def evaluate(self, episodes: int | None = None, seed: int = 0, interrupt: Interrupt | None = None) -> Evaluation | None:
        """Fresh greedy episodes; nothing of the run changes.

        None where ``interrupt`` asked to stop before they had ended.
        """
        policy, episodes = self.learner.deployed(self._state), episodes or self.config.eval_episodes
        with jax.default_matmul_precision(self.config.precision):
            return self.collector.evaluate(policy, episodes, seed, interrupt)

    def evaluation(self, clock: Clock, interrupt: Interrupt | None = None) -> Event | None:
        """Evaluate every seed, remember the returns, and report them; None where ``interrupt`` asked to stop."""
        result = self.evaluate(interrupt=interrupt)
        if result is None:
            return None
        self.returns, self.evaluated = np.asarray(result.returns, float), True
        each = [Evaluation(*(values[k] for values in result)) for k in range(len(self.seeds))]
        rows = [
            evaluation_row(seed, self.iteration, self.env_steps, episodes, clock.seconds)
            for seed, episodes in zip(self.seeds, each, strict=True)
        ]
        self.evaluations += rows
        return Event("evaluations", rows)

    @property
    def finished(self) -> bool:
        """Whether nothing is left to compute."""
        return self.iteration >= self.config.num_iterations and self.evaluated

    def recall(self) -> None:
        """Read back the tables, and which seeds have a reproduction file."""
        if self.directory is None:
            return
        for table, rows in (("metrics", self.history), ("evaluations", self.evaluations)):
            path = self.directory / f"{table}.csv"
            rows[:] = read_rows(path) if path.is_file() else []
        # A fault after this iteration counts, too: it will be met again, and is in its file already.
        kinds = itertools.product(("fault", "gradient"), self.seeds)
        self.reproduced = {(kind, seed) for kind, seed in kinds if any(self.directory.glob(f"{kind}-*-seed{seed}.npz"))}

    def _save_faults(self, collected: Collected, state: PyTree, key: jax.Array, skipped: np.ndarray) -> None:
        """Tell of every seed's first fault of each kind, and write its reproduction file; see `reppo.faults`."""
        fault = collected.fault
        for k, seed in enumerate(self.seeds):
            own = functools.partial(jax.tree.map, lambda x, k=k: x[k])
            if fault is not None and bool(fault.found[k]) and ("fault", seed) not in self.reproduced:
                what = f"environment {int(fault.index[k])} returned numbers that are not finite; such steps train nothing"
                if path := self._reproduction("fault", seed, what):
                    faults.save_step(path, own(fault), self.description)
            if skipped[k] > 0 and ("gradient", seed) not in self.reproduced:
                if self.replays:  # the state before has been overwritten
                    self.reproduced.add(("gradient", seed))
                    self.notes.append(f"seed {seed}, at {self.env_steps:,} steps: a gradient is not finite, and left out")
                    continue
                what = "a gradient is not finite; such steps of an optimiser are left out"
                if path := self._reproduction("gradient", seed, what):
                    faults.save_update(path, own(state), own(collected.rows), own(key), self.description)

    def _reproduction(self, kind: str, seed: int, what: str) -> Path | None:
        """Where a seed's reproduction file goes, None for a run without files; notes what happened."""
        self.reproduced.add((kind, seed))
        note = f"seed {seed}, at {self.env_steps:,} steps: {what}"
        if self.directory is None:
            self.notes.append(note)
            return None
        path = self.directory / f"{kind}-{self.env_steps:012d}-seed{seed}.npz"
        self.notes.append(f"{note}; `reppo repro {path}` makes it again")
        return path

    def save_policies(self) -> list[Path]:
        """Write every seed's policy into the run directory, and once more where its evaluation is the seed's best."""
        if self.directory is None:
            return []
        suffixes = [f"_seed{seed}" for seed in self.seeds] if len(self.seeds) > 1 else [""]
        paths = [self.directory / f"policy{suffix}.npz" for suffix in suffixes]
        for k, path in enumerate(paths):
            policy = jax.device_get(self.policy(k))
            export.save_policy(path, policy, self.spec)
            if best_evaluation(self.evaluations, self.seeds[k])["iteration"] == self.iteration:
                export.save_policy(self.directory / f"best{suffixes[k]}.npz", policy, self.spec)
        return paths


def evaluation_due(config: RunConfig, iteration: int) -> bool:
    """Whether the policy is evaluated after an iteration: after 0, and `num_evals` times evenly over the run, the last at
    its end; after every iteration where there are fewer of these."""
    return due(iteration, config.num_iterations, config.num_evals)


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
