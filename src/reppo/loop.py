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
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from reppo import algorithms, checkpoint, compiling, envs, export, faults, run_directory
from reppo.algorithms import make_learner
from reppo.collector import Collected, Collector, JaxCollector, compile_over_seeds, num_devices
from reppo.config import PRESETS, ConfigError, RunConfig, check_config, shown_count, whole, with_later_options
from reppo.envs.host import SimulatorError
from reppo.envs.spec import EnvSpec, resolve
from reppo.evaluate import Evaluation
from reppo.files import set_aside, write_json
from reppo.host_collector import HostCollector
from reppo.interrupt import Interrupt, Stopped
from reppo.keys import Keys, Stream
from reppo.plot import plot_run, read_rows
from reppo.provenance import memory, provenance
from reppo.sinks import CsvSink, Event, Sink, TensorBoardSink, best_evaluation
from reppo.types import PyTree

CLIPPED_WARNING = 0.05  #: share of targets outside the value support above which the user is told, once
INVALID_LIMIT = 0.1  #: share of non-finite environment steps in one iteration above which a run stops
SKIPPED_LIMIT = 0.25  #: share of skipped optimiser steps (critic, actor, duals) in one iteration above which a run stops
MOST_SEEDS = 10_000  #: at once; each has files of its own
SETTLED = 5  #: iterations after which that share means something: the untrained entropy bonus alone can leave the support


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
        """What the run is, as JSON values, see `describe`."""
        return json.loads(json.dumps(describe(self)))

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
        """Refuse a run that cannot fit, before an operating system that promises more than it has ends the process.

        Counted are the learner's state, the rollout, and the order of its rows in all epochs: what there is at least.
        """
        needed, there = sum(self.memory_parts().values()), memory()
        if jax.default_backend() != "cpu":
            needed //= num_devices(len(self.seeds))  # each has a memory of its own
        if there is not None and needed > there:
            raise ConfigError(
                f"this run needs at least {needed / 2**30:,.1f} GiB of memory, and there are {there / 2**30:,.1f}: try "
                f"fewer --num-envs, --num-steps or --seeds, or smaller networks"
            )

    def memory_parts(self) -> dict[str, int]:
        """Bytes that a run has to hold, from shapes: networks and optimisers, one rollout, and the replay memory."""
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
        if differences := other_run(saved.run, self.description):
            raise checkpoint.CheckpointError(f"{at} is not of this run: {', '.join(differences)}")
        like = {"learner": jax.eval_shape(self.init, self.key(Stream.INIT)), "env": self.collector.like()}
        try:
            tree = checkpoint.from_host(saved.arrays, like)
            self.returns = np.array(saved.progress.returns, float).reshape(len(self.seeds), -1)
        except (checkpoint.CheckpointError, ValueError) as error:
            raise checkpoint.CheckpointError(f"{at} is not of this run: {error}") from None
        self._state = tree["learner"]
        self.iteration, self.evaluated = saved.progress.iteration, saved.progress.evaluated
        if elsewhere := changed_provenance(saved.run, self.description):
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
        rows = []
        for k, (seed, returns) in enumerate(zip(self.seeds, self.returns, strict=True)):
            row = {"seed": float(seed), "iteration": float(self.iteration), "env_steps": float(self.env_steps)}
            row |= {"eval/return": float(returns.mean()), "eval/return_std": float(returns.std())}
            row |= {"eval/return_min": float(returns.min()), "eval/return_max": float(returns.max())}
            row |= {"eval/length": float(result.lengths[k].mean()), "eval/episodes": float(len(returns))}
            if not np.isnan(result.success_once).all():
                row["eval/success_once"] = float(result.success_once[k].mean())
                row["eval/success_at_end"] = float(result.success_at_end[k].mean())
            row |= {"eval/broken_episodes": float(result.broken[k].sum()), "time/seconds": clock.seconds}
            rows.append(row)
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


def size_of(tree: PyTree) -> int:
    """Bytes of all arrays, or shapes, of a pytree."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def evaluation_due(config: RunConfig, iteration: int) -> bool:
    """Whether the policy is evaluated after an iteration: after 0, and `num_evals` times evenly over the run, the last at
    its end; after every iteration where there are fewer of these."""
    return due(iteration, config.num_iterations, config.num_evals)


def due(i: int, n: int, k: int) -> bool:
    """Whether ``i`` of ``0, ..., n`` is 0 or among the ``k`` that divide them evenly."""
    before = i * k // n
    return any(round(j * n / k) == i for j in (before, before + 1))


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
        sinks: further receivers of metrics, beside the files of ``out``.
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
        config: its configuration with changes; only those of `RESUMABLE` are accepted.
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
    check_changes(saved_config, config)
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
        check_spec(description, run)
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


#: Options that may change when a run is resumed: they do not change what it computes until then.
RESUMABLE = frozenset(["total_steps", "num_evals", "eval_episodes", "checkpoint_minutes", "keep_checkpoints", "keep_best"])


def check_changes(saved: RunConfig, config: RunConfig) -> None:
    """Refuse changes that would make it another run."""
    if type(saved) is not type(config):
        raise ConfigError(f"the run is of {algorithms.name_of(saved)}, not of {algorithms.name_of(config)}")
    changed = [f.name for f in dataclasses.fields(saved) if getattr(saved, f.name) != getattr(config, f.name)]
    refused = [name for name in changed if name not in RESUMABLE]
    if getattr(saved, "anneal_learning_rate", False) and "total_steps" in changed:
        refused.append("total_steps")  # the schedule of the learning rate depends on it
    if refused:
        listed = ", ".join(f"{name} {getattr(saved, name)} -> {getattr(config, name)}" for name in refused)
        raise ConfigError(f"these options would make it another run: {listed}; start a new one with `reppo train`")


def check_spec(description: dict[str, Any], run: Run) -> None:
    """Refuse an environment that has changed since the run began: its values would mean something else."""
    written, now = description.get("spec"), run.description["spec"]
    written = written if isinstance(written, dict) else {}
    changed = [f"{name} {written[name]} -> {now[name]}" for name in now if name in written and written[name] != now[name]]
    if changed:
        raise ConfigError(f"{run.spec.name} has changed since this run began: {', '.join(changed)}; start a new one")


def other_run(written: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Differences between two descriptions of a run that make them two runs: ``name this -> that``."""
    pairs = [(name, written.get(name), now[name]) for name in ("env", "seeds")]
    pairs.append(("algorithm", written.get("algorithm", "reppo"), now["algorithm"]))
    options, own = written.get("config"), now["config"]
    options = with_later_options(options if isinstance(options, dict) else {}, own)
    names = sorted((options.keys() | own.keys()) - RESUMABLE)
    pairs += [(name, options.get(name), own.get(name)) for name in names]
    return [f"{name} {was!r} -> {this!r}" for name, was, this in pairs if was != this]


def changed_provenance(written: dict[str, Any], now: dict[str, Any]) -> str:
    """Versions, source revision and hardware that differ between two descriptions, in words."""

    def flat(description: dict[str, Any]) -> dict[str, Any]:
        parts = (description.get(name) for name in ("hardware", "versions"))
        hardware, versions = (part if isinstance(part, dict) else {} for part in parts)
        return {**versions, "git": description.get("git"), "cpu": hardware.get("cpu"), "devices": hardware.get("devices")}

    was, this = flat(written), flat(now)
    changed = [f"{name} {was.get(name)} -> {this.get(name)}" for name in this if was.get(name) != this[name]]
    return ", ".join(changed)


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
            write_json(directory / "summary.json", summary(run, clock.seconds))
    return run


@dataclasses.dataclass(frozen=True)
class Clock:
    """Wall-clock seconds of a run, those of its earlier processes included."""

    started: float

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started


class Keeper:
    """Decides when a run is saved: now and then by the clock, after every evaluation, and when it is told to."""

    def __init__(self, run: Run, files: Sequence[CsvSink | TensorBoardSink], clock: Clock):
        self.run, self.files, self.clock = run, files, clock
        self.saved_at = time.perf_counter()
        self.saved = self._moment if run.state is not None else None  # a run that was restored is on the disk
        self.saver: checkpoint.Saver | None = None
        if run.directory is not None:
            self.saver = checkpoint.Saver(run.directory / "checkpoints", run.config.keep_checkpoints, run.config.keep_best)

    @property
    def _moment(self) -> tuple[int, bool]:
        return self.run.iteration, self.run.evaluated

    @property
    def due(self) -> bool:
        return time.perf_counter() - self.saved_at > 60 * self.run.config.checkpoint_minutes

    def save(self) -> None:
        """Start a checkpoint of this moment, unless there is one; the run goes on while it is written.

        Raises:
            ConfigError: where the one before it could not be written.
        """
        run = self.run
        if self.saver is None or run.directory is None or self.saved == self._moment:
            return
        for file in self.files:
            file.flush()
        progress = checkpoint.Progress(
            iteration=run.iteration,
            env_steps=run.env_steps,
            seconds=self.clock.seconds,
            evaluated=run.evaluated,
            returns=run.returns.tolist(),
            positions=run_directory.positions(run.directory),
        )
        with self._explained():
            self.saver.save({"learner": run.state, "env": run.env_state}, progress, run.description)
        self.saved, self.saved_at = self._moment, time.perf_counter()

    def wait(self) -> None:
        """Until the checkpoint that was started last is on disk; raises `ConfigError` where it could not be written."""
        with self._explained():
            if self.saver is not None:
                self.saver.wait()

    def settle(self) -> None:
        """Let a checkpoint in progress end, whatever went wrong."""
        if self.saver is not None:
            self.saver.settle()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            directory = self.run.directory
            last = checkpoint.listing(directory / "checkpoints")[-1:] if directory else []
            sound = f"the newest is at {checkpoint.steps(last[0]):,} steps" if last else "there is none yet"
            raise ConfigError(
                f"cannot write a checkpoint: {error.strerror or error}; {sound}; mend it, then `reppo resume {directory}`"
            ) from error


def advance(run: Run, keeper: Keeper, clock: Clock, interrupt: Interrupt) -> Iterator[Event]:
    """Drive a run from where it is to its end; yields what happens, for the sinks."""
    value_range = RangeWarning(run)
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
                yield from left_out(run)
                return
            if interrupt.requested:
                break
            rows = run.iterate(clock)
            compiling.close()
            yield Event("metrics", rows)
            yield from told(run.notes)
            yield from value_range.check(rows)
            if (complaint := diverged(run, rows)) is not None:
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


def left_out(run: Run) -> Iterator[Event]:
    """At the end of a run, how much of it was not finite; nothing where all was well."""
    rows = sum(row["train/invalid_rows"] for row in run.history)
    updates = sum(row["train/skipped_updates"] for row in run.history)
    if rows or updates:
        total_rows = len(run.history) * run.config.batch_size
        total_updates = len(run.history) * run.learner.optimiser_steps
        yield Event.warning(
            f"not finite, and therefore left out: {rows:,.0f} of {total_rows:,} environment steps, "
            f"{updates:,.0f} of {total_updates:,} optimiser steps"
        )


class RangeWarning:
    """Tells the user, once each, that the critic's value support is too narrow for the returns, or far too wide."""

    def __init__(self, run: Run):
        self.run, self.told_narrow, self.told_wide = run, False, False

    def check(self, rows: list[dict[str, float]]) -> Iterator[Event]:
        """Warnings, or nothing."""
        low, high = self.run.spec.value_range or (np.nan, np.nan)
        worst = max(rows, key=lambda row: row["critic/target_clipped"])
        settled = self.run.iteration > SETTLED
        if settled and not self.told_narrow and worst["critic/target_clipped"] > CLIPPED_WARNING:
            self.told_narrow = True
            yield Event.warning(
                f"{worst['critic/target_clipped']:.0%} of the value targets leave the support [{low:g}, {high:g}]: they are "
                f"between {worst['critic/target_min']:.4g} and {worst['critic/target_max']:.4g}; set --v-min and --v-max to "
                f"hold them, and the values of the policy that you hope for"
            )
        if settled and not self.told_wide and (coarse := [row for row in rows if self._coarse(row, high - low)]):
            self.told_wide = True
            yield Event.warning(
                f"the value targets are between {coarse[0]['critic/target_min']:.4g} and "
                f"{coarse[0]['critic/target_max']:.4g}, and one of the critic's {self.run.config.num_bins} bins on "
                f"[{low:g}, {high:g}] is {self._bin(high - low):.3g} wide: it can hardly tell good from bad. Set --v-min, "
                f"--v-max closer, with room for the values of the policy that you hope for"
            )

    def _bin(self, support: float) -> float:
        return support / (self.run.config.num_bins - 1)

    def _coarse(self, row: dict[str, float], support: float) -> bool:
        """Whether all targets lie within two bins and the critic's error is of their size, a quarter of the run into it:
        before, that may be so by right. A range that the environment suggests is trusted."""
        config = self.run.config
        if (config.v_min is None and config.v_max is None) or 4 * self.run.iteration < config.num_iterations:
            return False
        span = row["critic/target_max"] - row["critic/target_min"]
        return span < 2 * self._bin(support) and row.get("critic/error", 0.0) > span / 4


class Diverged(RuntimeError):
    """Too much of a run's data or of its gradients is not finite for it to go on; one line."""


def diverged(run: Run, rows: list[dict[str, float]]) -> str | None:
    """Why a run must stop, or None: see `INVALID_LIMIT` and `SKIPPED_LIMIT`."""
    config = run.config
    for row in rows:
        invalid = row["train/invalid_rows"] / config.batch_size
        skipped = row["train/skipped_updates"] / run.learner.optimiser_steps
        if invalid > INVALID_LIMIT:
            kind, what = "fault", f"{invalid:.0%} of the environment's steps returned numbers that are not finite"
        elif skipped > SKIPPED_LIMIT:
            kind, what = "gradient", f"{skipped:.0%} of the optimiser steps had gradients that are not finite"
        else:
            continue
        seed = int(row["seed"])
        files = sorted(run.directory.glob(f"{kind}-*-seed{seed}.npz")) if run.directory else []
        hint = f"; `reppo repro {files[0]}` makes the first one again" if files else ""
        return f"seed {seed} stopped at {run.env_steps:,} steps: {what}{hint}"
    return None


def default_preset() -> str:
    """``cpu`` where JAX sees no accelerator, else ``paper-large``."""
    return "cpu" if jax.default_backend() == "cpu" else "paper-large"


# --------------------------------------------------------------------------------------------- what is written of a run


def describe(run: Run) -> dict[str, Any]:
    """Everything that says what a run is, as JSON values: the contents of ``config.json``."""
    return {
        "algorithm": run.algorithm,
        "env": run.spec.name,
        "seeds": run.seeds,
        "config": dataclasses.asdict(run.config),
        "spec": {
            "action_size": run.spec.action_size,
            "discrete": run.spec.discrete,
            **algorithms.named(run.algorithm).facts(run.config, run.spec),
            "episode_length": run.spec.episode_length,
            "value_range": run.spec.value_range,
            "max_return": run.spec.max_return,
            "actor_keys": run.spec.actor_keys,
            "critic_keys": run.spec.critic_keys,
        },
        **provenance(),
    }


def peak_memory() -> dict[str, int | None]:
    """The most that this process has held so far, of the host's memory and of a device's own; None where it has none."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    return {
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        "peak_device_memory_bytes": max((s["peak_bytes_in_use"] for s in stats if s), default=None),
    }


def summary(run: Run, seconds: float) -> dict[str, Any]:
    """The contents of ``summary.json``: what came out, per seed."""
    best = [best_evaluation(run.evaluations, seed) for seed in run.seeds]
    return {
        "algorithm": run.algorithm,
        "env": run.spec.name,
        "env_steps": run.env_steps,
        "seconds": round(seconds, 2),
        **peak_memory(),
        "computed_memory_bytes": run.memory_parts(),
        "seeds": [
            {
                "seed": seed,
                "return_mean": float(r.mean()),
                "return_std": float(r.std()),
                "episodes": len(r),
                "best_return_mean": top["eval/return"],
                "best_env_steps": int(top["env_steps"]),
            }
            for seed, r, top in zip(run.seeds, run.returns, best, strict=True)
        ],
    }
