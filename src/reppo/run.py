"""A run: what it is, where it is, and the functions that advance it by an iteration or evaluate it.

A `reppo.collector.Collector` steps the environments, and the learner's `update` is a compiled program. Every random number
is drawn from ``fold_in(run_key, iteration)``, so an interrupted run can draw the same.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from reppo import algorithms, checkpoint, compiling, envs, export, faults, outcome, same_run
from reppo.algorithms import make_learner
from reppo.collector import Collected, Collector, JaxCollector, compile_over_seeds, num_devices
from reppo.config import RunConfig
from reppo.envs.spec import EnvSpec, resolve
from reppo.errors import ConfigError
from reppo.evaluate import Evaluation
from reppo.host_collector import HostCollector
from reppo.interrupt import Interrupt
from reppo.keys import Keys, Stream
from reppo.outcome import due, evaluation_row, size_of
from reppo.plot import read_rows
from reppo.sinks import Event, best_evaluation
from reppo.types import PyTree


@dataclasses.dataclass(frozen=True)
class Clock:
    """Wall-clock seconds of a run, those of its earlier processes included."""

    started: float

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started


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
