"""Where a run's rollouts come from: one interface for the training loop, whatever steps the environments.

`JaxCollector` steps environments that are written in JAX, in one compiled program over all seeds;
`reppo.host_collector.HostCollector` steps all others.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from reppo import compiling
from reppo.config import RunConfig
from reppo.envs.autoreset import LARGEST, AutoReset, First
from reppo.envs.base import Env
from reppo.envs.spec import EnvSpec
from reppo.errors import ConfigError
from reppo.evaluate import Evaluation, FirstEpisodes
from reppo.interrupt import Interrupt
from reppo.keys import Keys, Stream
from reppo.rollout import Fault, rollout
from reppo.types import Learner, Metrics, PyTree, Rollout


class Collected(NamedTuple):
    """What one iteration has seen; leaves ``[R, T, N, ...]``."""

    rows: Rollout
    #: ``episode_return``, ``episode_length``, whether ``episode_done``, and where rows are spent on a reset: ``reset``
    episodes: dict[str, Any]
    fault: Fault | None  #: the first step of every seed that was no transition, ``[R]``, where it can be made again
    invalid_resets: Any  #: first states that were not finite, and are not used, ``[R]``


class Collector(Protocol):
    """The environments of a run, ``N`` for each of its ``R`` seeds, and all that is known of how they are stepped."""

    preparation: str  #: what `start` does, in words for the user

    @property
    def env_state(self) -> PyTree:
        """What a checkpoint holds of environments that have begun, leaves ``[R, N, ...]``; empty of a simulator."""

    def start(self) -> str | None:
        """Begin episodes everywhere; returns what the user should know of them, if anything. Raises `ConfigError` where a
        first observation is not finite."""

    def like(self) -> PyTree:
        """The shapes of `env_state`."""

    def restore(self, env_state: PyTree, iteration: int) -> str | None:
        """Go to where a checkpoint is, instead of `start`; returns what the user should know of it, if anything."""

    def collect(self, state: PyTree, iteration: int) -> Collected:
        """Roll out the policies of a learner's state, leaves ``[R, ...]``, from where the last rollout ended."""
        ...

    def evaluate(self, state: PyTree, episodes: int, seed: int, interrupt: Interrupt | None) -> Evaluation | None:
        """Greedy, fresh episodes, ``[R, episodes]``; None where ``interrupt`` asked to stop."""

    def close(self) -> None:
        """Give back what the environments hold; they are of no use afterwards."""


# --------------------------------------------------------------------------------------------- environments in JAX


def over_seeds(function: Callable[..., Any], num_seeds: int, in_axes: Sequence[int | None]) -> Callable[..., Any]:
    """``vmap`` over the seed axis; with a single seed the axis is only dropped and restored, which costs nothing."""
    if num_seeds > 1:
        return jax.vmap(function, in_axes=tuple(in_axes))

    def single(*args: Any) -> Any:
        rows = [arg if axis is None else jax.tree.map(lambda x: x[0], arg) for arg, axis in zip(args, in_axes, strict=True)]
        return jax.tree.map(lambda x: x[None], function(*rows))

    return single


def num_devices(num_seeds: int) -> int:
    """How many of this process's devices share the seeds: as many as can, if each has equally many."""
    return max(d for d in range(1, jax.local_device_count() + 1) if num_seeds % d == 0)


def mesh_of_seeds(num_seeds: int) -> Mesh:
    """The devices that share the seeds, along an axis ``seed``."""
    return Mesh(jax.local_devices()[: num_devices(num_seeds)], ("seed",))


def compile_over_seeds(
    function: Callable[..., Any],
    num_seeds: int,
    in_axes: Sequence[int | None],
    options: compiling.Options,
    donate: tuple[int, ...] = (),
) -> Callable[..., Any]:
    """A compiled program over ``R`` seeds: arguments and results have a leading axis ``[R]``, but for axes None.

    Several devices share the seeds. None of them waits for another, because each runs the program of its own seeds alone.
    """
    devices = num_devices(num_seeds)
    program = over_seeds(function, num_seeds // devices, in_axes)
    if devices > 1:
        mesh = mesh_of_seeds(num_seeds)
        own = tuple(PartitionSpec() if axis is None else PartitionSpec("seed") for axis in in_axes)
        program = jax.shard_map(program, mesh=mesh, in_specs=own, out_specs=PartitionSpec("seed"), check_vma=False)
    return compiling.compiled(program, options, donate)


@dataclasses.dataclass(frozen=True)
class Programs:
    """The compiled functions that contain the simulator, each over ``R`` seeds."""

    first: Callable[..., First]
    begin: Callable[..., PyTree]
    refresh: Callable[..., tuple[PyTree, jax.Array]]
    rollout: Callable[..., tuple[PyTree, Rollout, Metrics, Fault]]
    begin_evaluation: Callable[..., PyTree]
    evaluate: Callable[..., tuple[PyTree, Rollout, Metrics, Fault]]  #: `rollout`, where it is of as many environments


def make_programs(env: AutoReset, eval_env: AutoReset, learner: Learner, config: RunConfig, num_seeds: int) -> Programs:
    """The programs; each compiles at its first call."""

    def roll_out(env: AutoReset) -> Callable[..., Any]:
        def act(state: PyTree, env_state: PyTree, key: jax.Array, greedy: jax.Array) -> Any:
            # One program for both, so an evaluation is known by its greedy actions. Its episodes are whole.
            cut = jnp.where(greedy, 0.0, config.cut_probability)
            return rollout(env, learner, learner.policy(state), env_state, key, config.num_steps, greedy, cut)

        return compile_over_seeds(act, num_seeds, [0, 0, 0, None], compiling.SIMULATOR, donate=(1,))

    def begin(first: First, key: jax.Array) -> PyTree:
        return env.begin(first, key if config.stagger_episodes else None)

    def begin_evaluation(first: First) -> PyTree:
        # Drawn by the program that draws the training's first states: to compile another one takes longer.
        return eval_env.begin(jax.tree.map(lambda x: x[: eval_env.num_envs], first))

    training = roll_out(env)
    return Programs(
        first=compile_over_seeds(env.first, num_seeds, [0], compiling.RESET),
        begin=compile_over_seeds(begin, num_seeds, [0, 0], compiling.SELDOM),
        refresh=compile_over_seeds(env.refresh, num_seeds, [0, 0], compiling.SELDOM, donate=(0,)),
        rollout=training,
        begin_evaluation=compile_over_seeds(begin_evaluation, num_seeds, [0], compiling.SELDOM),
        evaluate=training if eval_env.num_envs == env.num_envs else roll_out(eval_env),
    )


class JaxCollector:
    """Environments written in JAX: a rollout is one compiled program over all seeds."""

    preparation = "compiling the simulator, drawing first states"

    def __init__(self, env: Env, spec: EnvSpec, learner: Learner, config: RunConfig, keys: Keys):
        self.spec, self.config, self.keys = spec, config, keys
        self.num_seeds = len(keys.roots)
        bounds = spec.action_low, spec.action_high
        self.vector_env = AutoReset(env, config.num_envs, spec.time_limit, bounds)
        self.eval_env = AutoReset(env, min(config.eval_episodes, config.num_envs), spec.time_limit, bounds)
        self.programs = make_programs(self.vector_env, self.eval_env, learner, config, self.num_seeds)
        #: iterations between draws of new first states
        self.refresh_period = -(-self.vector_env.refresh_every // config.num_steps)
        self.env_state: PyTree = None

    def start(self) -> str | None:
        first = self.programs.first(self.keys(Stream.FIRST, 0))
        check_first_observations(self.spec.name, first.obs)
        self.env_state = self.programs.begin(first, self.keys(Stream.STAGGER))

    def like(self) -> PyTree:
        keys = self.keys(Stream.FIRST, 0)
        return jax.eval_shape(self.programs.begin, jax.eval_shape(self.programs.first, keys), keys)

    def restore(self, env_state: PyTree, iteration: int) -> str | None:
        del iteration
        self.env_state = env_state

    def collect(self, state: PyTree, iteration: int) -> Collected:
        key = self.keys(Stream.ITERATION, iteration, 0)
        self.env_state, rows, episodes, fault = self.programs.rollout(state, self.env_state, key, False)
        invalid_resets = np.zeros(self.num_seeds)
        if (iteration + 1) % self.refresh_period == 0:
            first = self.programs.first(self.keys(Stream.FIRST, iteration + 1))
            self.env_state, invalid_resets = self.programs.refresh(self.env_state, first)
        return Collected(rows, episodes, fault, invalid_resets)

    def evaluate(self, state: PyTree, episodes: int, seed: int, interrupt: Interrupt | None) -> Evaluation | None:
        batches = []
        for i in range(-(-episodes // self.eval_env.num_envs)):
            batch = self._evaluate_batch(state, i, seed, interrupt)
            if batch is None:
                return None
            batches.append(batch)
        return Evaluation(*(np.concatenate(parts, 1)[:, :episodes] for parts in zip(*batches, strict=True)))

    def _evaluate_batch(self, state: PyTree, batch: int, seed: int, interrupt: Interrupt | None) -> Evaluation | None:
        """The first episode of every evaluation environment."""
        env_state = self.programs.begin_evaluation(self.programs.first(self.keys(Stream.EVALUATION, seed, batch, 0)))
        episodes = FirstEpisodes((self.num_seeds, self.eval_env.num_envs))
        for part in itertools.count(1):
            if interrupt is not None and interrupt.requested:
                return None
            key = self.keys(Stream.EVALUATION, seed, batch, part)
            env_state, rows, _, _ = self.programs.evaluate(state, env_state, key, True)
            reward, over, valid = jax.device_get((rows.reward, rows.terminated | rows.truncated, rows.valid))
            for t in range(self.config.num_steps):
                episodes.add(reward[:, t], over[:, t], ~valid[:, t])
            if not episodes.running.any():
                return episodes.result()
        raise AssertionError("unreachable")

    def close(self) -> None:
        """Nothing is held: arrays are freed with their last reference."""


def check_first_observations(name: str, obs: PyTree) -> None:
    """Raise `ConfigError` for the first observation that is not finite; leaves ``[R, N, D]``."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(obs):
        bad = np.argwhere(~(np.abs(np.asarray(leaf)) <= LARGEST))
        if len(bad):
            _, env, *index = bad[0]
            entry, value = f"obs{jax.tree_util.keystr(path)}{[int(i) for i in index]}", np.asarray(leaf)[tuple(bad[0])]
            raise ConfigError(f"{name}: {entry} of environment {env} is {value:g} right after reset")
