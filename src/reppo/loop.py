"""The training loop: everything that knows where the run is in time.

Three compiled programs do the work, `first states`, `rollout` and `update`; between them plain Python evaluates, logs
and saves. Every random number is drawn from ``fold_in(run_key, iteration)``, so an interrupted run can draw the same.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import os
import re
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from reppo import envs, export
from reppo.config import PRESETS, Config, ConfigError
from reppo.envs.autoreset import AutoReset, First
from reppo.envs.spec import EnvSpec, resolve
from reppo.plot import plot_run
from reppo.provenance import provenance
from reppo.reppo import make_learner
from reppo.rollout import rollout
from reppo.sinks import CsvSink, Event, Sink, TensorBoardSink
from reppo.types import Learner, Metrics, PyTree

CLIPPED_WARNING = 0.05  #: share of targets outside the value support above which the user is told, once
SETTLED = 5  #: iterations after which that share means something: the untrained entropy bonus alone can leave the support


class Stream:
    """Purposes of randomness, folded into the run's key, so that no two draws share a key."""

    INIT, FIRST, STAGGER, ITERATION, EVALUATION = range(5)


@dataclasses.dataclass(frozen=True)
class Programs:
    """The compiled functions of a run, each over ``K`` seeds: every argument and result has a leading axis ``[K]``."""

    init: Callable[..., PyTree]
    first: Callable[..., First]
    begin: Callable[..., PyTree]
    begin_evaluation: Callable[..., PyTree]
    refresh: Callable[..., PyTree]
    rollout: Callable[..., tuple[PyTree, Any, Metrics]]
    update: Callable[..., tuple[PyTree, Metrics]]


def over_seeds(function: Callable[..., Any], num_seeds: int, in_axes: Sequence[int | None]) -> Callable[..., Any]:
    """``vmap`` over the seed axis; with a single seed the axis is only dropped and restored, which costs nothing."""
    if num_seeds > 1:
        return jax.vmap(function, in_axes=tuple(in_axes))

    def single(*args: Any) -> Any:
        rows = [arg if axis is None else jax.tree.map(lambda x: x[0], arg) for arg, axis in zip(args, in_axes, strict=True)]
        return jax.tree.map(lambda x: x[None], function(*rows))

    return single


def make_programs(env: AutoReset, learner: Learner, config: Config, num_seeds: int) -> Programs:
    def compiled(
        function: Callable[..., Any], axes: Sequence[int | None], donate: tuple[int, ...] = ()
    ) -> Callable[..., Any]:
        return jax.jit(over_seeds(function, num_seeds, axes), donate_argnums=donate)

    def act(state: PyTree, env_state: PyTree, key: jax.Array, greedy: jax.Array) -> Any:
        return rollout(env, learner, learner.policy(state), env_state, key, config.num_steps, greedy)

    def begin(first: First, key: jax.Array) -> PyTree:
        return env.begin(first, key if config.stagger_episodes else None)

    return Programs(
        init=compiled(learner.init, [0]),
        first=compiled(env.first, [0]),
        begin=compiled(begin, [0, 0]),
        begin_evaluation=compiled(env.begin, [0]),
        refresh=compiled(env.refresh, [0, 0], donate=(0,)),
        rollout=compiled(act, [0, 0, 0, None], donate=(1,)),
        update=compiled(learner.update, [0, 0, 0], donate=(0,)),
    )


class Run:
    """A training run: its state, its directory, and the functions that advance it.

    Attributes:
        directory: where the run's files are, or None for a run that writes none.
        history: one row per seed and iteration, as in ``metrics.csv``.
        evaluations: one row per seed and evaluation, as in ``evaluations.csv``.
        returns: final greedy evaluation, ``[K, episodes]``.
    """

    def __init__(self, env: envs.Env, config: Config, seeds: Sequence[int], directory: Path | None):
        config.validate()
        self.config, self.seeds, self.directory = config, list(seeds), directory
        self.spec: EnvSpec = resolve(env.spec(), config)
        self.learner = make_learner(config, self.spec)
        self.vector_env = AutoReset(env, config.num_envs, self.spec.episode_length)
        self.programs = make_programs(self.vector_env, self.learner, config, len(self.seeds))
        self.keys = jax.vmap(jax.random.key)(jnp.asarray(self.seeds, jnp.uint32))
        self.history: list[dict[str, float]] = []
        self.evaluations: list[dict[str, float]] = []
        self.returns = np.full((len(self.seeds), 0), np.nan)
        self.iteration = 0
        self._state: PyTree = None
        self._env_state: PyTree = None

    @property
    def env_steps(self) -> int:
        """Environment steps so far, per seed."""
        return self.iteration * self.config.batch_size

    @property
    def state(self) -> PyTree:
        """The learner's state, leaves ``[K, ...]``."""
        return self._state

    def policy(self, seed_index: int = 0) -> PyTree:
        """The current policy of one seed."""
        return self.learner.policy(jax.tree.map(lambda x: x[seed_index], self._state))

    def key(self, *path: int) -> jax.Array:
        """A key per seed, ``[K]``, for one purpose."""
        return functools.reduce(lambda keys, word: _fold_in(keys, jnp.uint32(word)), path, self.keys)

    def start(self) -> None:
        """Initialise networks and environments; refuse environments whose first observations are not finite."""
        self._state = self.programs.init(self.key(Stream.INIT))
        first = self.programs.first(self.key(Stream.FIRST, 0))
        check_first_observations(self.spec.name, first.obs)
        self._env_state = self.programs.begin(first, self.key(Stream.STAGGER))

    def iterate(self) -> list[dict[str, float]]:
        """One iteration: roll out, update. Returns one row of metrics per seed."""
        key_rollout, key_update = (self.key(Stream.ITERATION, self.iteration, part) for part in (0, 1))
        env_state, rows, episodes = self.programs.rollout(self._state, self._env_state, key_rollout, jnp.asarray(False))
        self._state, metrics = self.programs.update(self._state, rows, key_update)
        self._env_state = env_state
        self.iteration += 1
        period = -(-self.vector_env.refresh_every // self.config.num_steps)
        if self.iteration % period == 0:
            first = self.programs.first(self.key(Stream.FIRST, self.iteration))
            self._env_state = self.programs.refresh(self._env_state, first)
        return self._rows(jax.device_get(metrics), jax.device_get(episodes))

    def _rows(self, metrics: dict[str, np.ndarray], episodes: dict[str, np.ndarray]) -> list[dict[str, float]]:
        rows = []
        for k, seed in enumerate(self.seeds):
            done = episodes["episode_done"][k]
            row = {"seed": float(seed), "iteration": float(self.iteration), "env_steps": float(self.env_steps)}
            row |= {name: float(values[k]) for name, values in sorted(metrics.items())}
            row["episode/count"] = float(done.sum())
            row["episode/return"] = float(episodes["episode_return"][k][done].mean()) if done.any() else np.nan
            row["episode/length"] = float(episodes["episode_length"][k][done].mean()) if done.any() else np.nan
            rows.append(row)
        return rows

    def evaluate(self, episodes: int | None = None, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Greedy returns and lengths of fresh episodes, ``[K, episodes]`` each; nothing of the run changes."""
        episodes = episodes or self.config.eval_episodes
        batches = [self._evaluate_batch(i, seed) for i in range(-(-episodes // self.config.num_envs))]
        returns, lengths = (np.concatenate(parts, 1)[:, :episodes] for parts in zip(*batches, strict=True))
        return returns, lengths

    def _evaluate_batch(self, batch: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """The first episode of every environment; the training rollout's own program, greedy."""
        first = self.programs.first(self.key(Stream.EVALUATION, seed, batch, 0))
        env_state = self.programs.begin_evaluation(first)
        returns = np.zeros((len(self.seeds), self.config.num_envs))
        lengths = np.zeros_like(returns, int)
        running = np.ones_like(returns, bool)
        for part in itertools.count(1):
            key = self.key(Stream.EVALUATION, seed, batch, part)
            env_state, rows, _ = self.programs.rollout(self._state, env_state, key, jnp.asarray(True))
            reward, over = np.asarray(rows.reward), np.asarray(rows.terminated | rows.truncated | ~rows.valid)
            for t in range(self.config.num_steps):
                returns += np.where(running, reward[:, t], 0.0)
                lengths += running
                running &= ~over[:, t]
            if not running.any() or part * self.config.num_steps >= self.spec.episode_length:
                return returns, lengths
        raise AssertionError("unreachable")

    def evaluation(self, seconds: float) -> Event:
        """Evaluate every seed, remember the returns, and report them."""
        self.returns, lengths = self.evaluate()
        rows = []
        for seed, returns, length in zip(self.seeds, self.returns, lengths, strict=True):
            row = {"seed": float(seed), "iteration": float(self.iteration), "env_steps": float(self.env_steps)}
            row |= {"eval/return": float(returns.mean()), "eval/return_std": float(returns.std())}
            row |= {"eval/return_min": float(returns.min()), "eval/return_max": float(returns.max())}
            row |= {"eval/length": float(length.mean()), "eval/episodes": float(len(returns)), "time/seconds": seconds}
            rows.append(row)
        self.evaluations += rows
        return Event("evaluations", rows)

    def save_policies(self) -> list[Path]:
        """Write every seed's policy into the run directory."""
        if self.directory is None:
            return []
        many = len(self.seeds) > 1
        paths = [self.directory / (f"policy_seed{seed}.npz" if many else "policy.npz") for seed in self.seeds]
        for k, path in enumerate(paths):
            export.save_policy(path, jax.device_get(self.policy(k)), self.spec)
        return paths


@jax.jit
@functools.partial(jax.vmap, in_axes=(0, None))
def _fold_in(key: jax.Array, word: jax.Array) -> jax.Array:
    return jax.random.fold_in(key, word)


def check_first_observations(name: str, obs: PyTree) -> None:
    """Raise `ConfigError` for the first observation that is not finite; leaves ``[K, N, D]``."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(obs):
        bad = np.argwhere(~np.isfinite(np.asarray(leaf)))
        if len(bad):
            _, env, *index = bad[0]
            entry = f"obs{jax.tree_util.keystr(path)}{[int(i) for i in index]}"
            raise ConfigError(f"{name}: {entry} of environment {env} is {np.asarray(leaf)[tuple(bad[0])]} right after reset")


def evaluation_points(config: Config) -> set[int]:
    """Iterations after which the policy is evaluated: 0, and `num_evals` evenly over the run, the last at its end."""
    return {round(i * config.num_iterations / config.num_evals) for i in range(config.num_evals + 1)}


def train(
    env: str | envs.Env | type[envs.Env] | Callable[[], envs.Env],
    config: Config | None = None,
    *,
    seed: int = 0,
    num_seeds: int = 1,
    out: str | os.PathLike[str] | None = None,
    sinks: Sequence[Sink] = (),
    started: float | None = None,
) -> Run:
    """Train REPPO and return the finished run.

    Args:
        env: ``suite:Task``, ``path/to/file.py:MyEnv``, a `reppo.Env`, its class, or a function that makes it.
        config: the configuration; unset, the preset for this machine's hardware (see `default_preset`).
        seed: the first seed.
        num_seeds: how many seeds, ``seed, seed + 1, ...``, to train at once on this device.
        out: a new directory for the run's files; unset, nothing is written.
        sinks: further receivers of metrics, beside the files of ``out``.
        started: when the clock of ``time/seconds`` began (`time.perf_counter`); unset, now.

    Raises:
        ConfigError: for anything that the caller can mend.
    """
    started = time.perf_counter() if started is None else started
    environment = envs.make(env)
    config = config or PRESETS[default_preset()]
    config.validate()
    if num_seeds < 1:
        raise ConfigError(f"num_seeds must be at least 1, got {num_seeds}")
    if seed < 0 or seed + num_seeds > 2**32:
        raise ConfigError(f"seeds must be between 0 and 2**32 - 1, got {seed}")
    resolve(environment.spec(), config)
    directory = create_run_directory(Path(out)) if out is not None else None
    with jax.default_matmul_precision(config.precision), contextlib.ExitStack() as stack:
        run = Run(environment, config, range(seed, seed + num_seeds), directory)
        description = describe(run)
        receivers = list(sinks)
        if directory is not None:
            write_json(directory / "config.json", description)
            receivers += [CsvSink(directory), TensorBoardSink(directory / "tensorboard", run.seeds)]
        for sink in receivers:
            stack.callback(sink.close)
            sink.begin(description)
        for event in advance(run, started):
            for sink in receivers:
                sink.write(event)
        if directory is not None:
            write_json(directory / "summary.json", summary(run, time.perf_counter() - started))
            plot_run(directory)
    return run


def advance(run: Run, started: float) -> Iterator[Event]:
    """Drive a run from its beginning to its end; yields what happens, for the sinks."""
    config, points = run.config, evaluation_points(run.config)
    yield Event.status("compiling the simulator, drawing first states")
    run.start()
    yield Event.status("evaluating the untrained policy")
    yield run.evaluation(time.perf_counter() - started)
    yield Event.status("compiling the update")
    warned = False
    while run.iteration < config.num_iterations:
        before = time.perf_counter()
        rows = run.iterate()
        now = time.perf_counter()
        for row in rows:
            row["time/seconds"] = now - started
            row["time/steps_per_second"] = config.batch_size * len(run.seeds) / (now - before)
        run.history += rows
        yield Event("metrics", rows)
        if not warned and run.iteration > SETTLED and (warning := clipped_warning(run, rows)):
            warned = True
            yield Event.warning(warning)
        if run.iteration in points:
            yield run.evaluation(time.perf_counter() - started)
            run.save_policies()


def clipped_warning(run: Run, rows: list[dict[str, float]]) -> str | None:
    """What to tell a user whose returns leave the critic's value support, or None."""
    worst = max(rows, key=lambda row: row["critic/target_clipped"])
    if worst["critic/target_clipped"] <= CLIPPED_WARNING:
        return None
    low, high = run.spec.value_range or (np.nan, np.nan)
    return (
        f"{worst['critic/target_clipped']:.0%} of the value targets leave the support [{low:g}, {high:g}]: they are between "
        f"{worst['critic/target_min']:.4g} and {worst['critic/target_max']:.4g}; set --v-min and --v-max to hold them"
    )


def default_preset() -> str:
    """``cpu`` where JAX sees no accelerator, else ``paper-large``."""
    return "cpu" if jax.default_backend() == "cpu" else "paper-large"


# --------------------------------------------------------------------------------------------- the run directory


def create_run_directory(path: Path) -> Path:
    """Make a new directory; one that exists and is not empty is never touched."""
    try:
        if path.is_dir() and not any(path.iterdir()):
            return path
        path.mkdir(parents=True)
    except FileExistsError:
        raise ConfigError(f"{path} exists already and is never overwritten; choose another --out") from None
    except OSError as error:
        raise ConfigError(f"cannot create {path}: {error.strerror}") from error
    return path


def new_run_name(env: str) -> str:
    """``CheetahRun-20260131-142500``: a directory name for a run of an environment that starts now."""
    task = re.sub(r"[^A-Za-z0-9_.-]+", "-", env.rpartition(":")[2]).strip("-") or "run"
    return f"{task}-{time.strftime('%Y%m%d-%H%M%S')}"


def describe(run: Run) -> dict[str, Any]:
    """Everything that says what a run is, as JSON values: the contents of ``config.json``."""
    return {
        "env": run.spec.name,
        "seeds": run.seeds,
        "config": dataclasses.asdict(run.config),
        "spec": {
            "action_size": run.spec.action_size,
            "episode_length": run.spec.episode_length,
            "value_range": run.spec.value_range,
            "max_return": run.spec.max_return,
            "actor_keys": run.spec.actor_keys,
            "critic_keys": run.spec.critic_keys,
        },
        **provenance(),
    }


def summary(run: Run, seconds: float) -> dict[str, Any]:
    """The contents of ``summary.json``: what came out, per seed."""
    return {
        "env": run.spec.name,
        "env_steps": run.env_steps,
        "seconds": round(seconds, 2),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "seeds": [
            {"seed": seed, "return_mean": float(r.mean()), "return_std": float(r.std()), "episodes": len(r)}
            for seed, r in zip(run.seeds, run.returns, strict=True)
        ],
    }


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(temporary, path)
