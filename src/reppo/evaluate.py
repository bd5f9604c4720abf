"""Evaluation: greedy returns of fresh episodes, the first of every environment. It changes nothing of a run."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from reppo import compiling, envs
from reppo.envs.autoreset import AutoReset
from reppo.envs.host import HostVectorEnv
from reppo.envs.spec import EnvSpec
from reppo.errors import ConfigError
from reppo.export import SavedPolicy
from reppo.interrupt import Interrupt
from reppo.keys import Stream, fold_in
from reppo.types import PyTree

MAX_PARALLEL = 128  #: environments in which `evaluate_policy` steps at once
CHUNK = 100  #: steps between two looks of Python at an evaluation, to see whether it is over


class Evaluation(NamedTuple):
    """Fresh greedy episodes, ``[..., episodes]`` each."""

    returns: np.ndarray
    lengths: np.ndarray
    broken: np.ndarray  #: whether numbers that were not finite ended it early
    success_once: np.ndarray  #: whether the task was solved at any step, 0 or 1; NaN where the environment does not say
    success_at_end: np.ndarray  #: whether it was solved at the last step


class FirstEpisodes:
    """The first episode of every environment, as its steps come; arrays of any shape ``[..., N]``.

    A row that is not valid (the simulator returned a non-finite number) ends its episode with the return so far.
    """

    def __init__(self, shape: tuple[int, ...]):
        self.returns = np.zeros(shape)
        self.lengths = np.zeros(shape, int)
        self.running = np.ones(shape, bool)  #: whether the first episode still runs
        self.broken = np.zeros(shape, bool)  #: whether numbers that were not finite ended it early
        self.success_once, self.success_at_end = np.full((2, *shape), np.nan)

    def add(self, reward: np.ndarray, over: np.ndarray, broken: np.ndarray, success: np.ndarray | None = None) -> None:
        """One step of every environment, whether it was an episode's last, and whether that is for its numbers; and
        whether it solved the task, where the environment says that."""
        self.returns += np.where(self.running, reward, 0.0)
        if success is not None:
            self.success_once = np.where(self.running, np.fmax(self.success_once, success), self.success_once)
            self.success_at_end = np.where(self.running, success, self.success_at_end)
        self.lengths += self.running
        self.broken |= self.running & broken
        self.running &= ~(over | broken)

    def result(self) -> Evaluation:
        return Evaluation(self.returns, self.lengths, self.broken, self.success_once, self.success_at_end)


def first_episodes(
    env: HostVectorEnv, action_of: Callable[[PyTree], np.ndarray], seed: int, interrupt: Interrupt | None = None
) -> Evaluation | None:
    """Fresh episodes on the host, ``[N]``, under ``action_of(obs)``, with actions in [-1, 1].

    None where ``interrupt`` asked to stop.
    """
    obs = env.reset(seed)
    episodes = FirstEpisodes((env.num_envs,))
    for _ in range(env.spec.time_limit):
        if interrupt is not None and interrupt.requested:
            return None
        step = env.step(action_of(obs))
        obs = step.obs
        episodes.add(step.reward, step.terminated | step.truncated, ~step.valid, step.info.get("success"))
        if not episodes.running.any():
            break
    return episodes.result()


def evaluate_policy(
    policy: SavedPolicy, env: envs.AnyEnv, *, episodes: int, seed: int, episode_length: int | None = None
) -> dict[str, np.ndarray]:
    """Greedy episodes of a saved policy: ``{"returns": [episodes], "lengths": [episodes]}``, and ``success_once`` and
    ``success_at_end`` where the environment says whether its task is solved, and ``broken`` where numbers that were not
    finite ended any of them early.

    Raises:
        ConfigError: where the environment's observations or actions are not those that the policy was trained on.
    """
    play = _on_host if isinstance(env, envs.HostEnv) else _in_jax
    num_envs = getattr(env, "fixed_num_envs", None) or min(episodes, MAX_PARALLEL)
    with compiling.full_precision():
        spec = spec_for(policy, env, episode_length)
        batches = play(policy, env, spec, num_envs, -(-episodes // num_envs), seed)
    whole = Evaluation(*(np.concatenate(parts)[:episodes] for parts in zip(*batches, strict=True)))
    result = {"returns": whole.returns, "lengths": whole.lengths}
    if not np.isnan(whole.success_once).any():
        result |= {"success_once": whole.success_once, "success_at_end": whole.success_at_end}
    if whole.broken.any():
        result["broken"] = whole.broken
    return result


def spec_for(policy: SavedPolicy, env: envs.AnyEnv, episode_length: int | None = None) -> EnvSpec:
    """The environment's spec, with the bounds and the time limit that this policy acts within.

    Raises:
        ConfigError: where the environment's observations or actions are not those that the policy was trained on.
    """
    spec = env.spec()
    check_keys(policy, spec)
    sizes = (spec.obs_size(policy.obs_keys or spec.actor_keys), spec.action_size)
    if (*sizes, spec.discrete) != (policy.obs_size, policy.action_size, policy.discrete):
        kinds = ["discrete actions" if discrete else "actions" for discrete in (policy.discrete, spec.discrete)]
        raise ConfigError(
            f"the policy maps {policy.obs_size} observations to {policy.action_size} {kinds[0]}, "
            f"but {spec.name} has {sizes[0]} and {sizes[1]}{' ' + kinds[1] if kinds[0] != kinds[1] else ''}"
        )
    shapes = (policy.image.shape if policy.image else None), (spec.observation.shape if spec.image else None)
    if shapes[0] != shapes[1]:
        seen = [f"images {list(shape)}" if shape else "vectors" for shape in shapes]
        raise ConfigError(f"the policy reads {seen[0]}, but the observations of {spec.name} are {seen[1]}")
    trained = policy.episode_length if spec.name == policy.env else None  # elsewhere its own limit may mean nothing
    length = episode_length or trained or spec.episode_length or policy.episode_length
    if length is None:
        raise ConfigError(f"{spec.name} has no time limit, and the policy was saved by a version that did not note it")
    bounded = bool(np.isfinite([spec.action_low, spec.action_high]).all())
    low, high = (spec.action_low, spec.action_high) if bounded else policy.bounds
    return dataclasses.replace(spec, action_low=low, action_high=high, episode_length=length)


def check_keys(policy: SavedPolicy, spec: EnvSpec) -> None:
    """Refuse an environment whose observations have not the entries that the policy reads; raises `ConfigError`."""
    there = tuple(sorted(spec.observation)) if isinstance(spec.observation, dict) else ()
    if bool(policy.obs_keys) != bool(there) or not set(policy.obs_keys) <= set(there):
        read, seen = (f"a dict with {', '.join(keys)}" if keys else "one array" for keys in (policy.obs_keys, there))
        raise ConfigError(f"the policy reads {read}, but the observations of {spec.name} are {seen}")


class GreedyEpisodes:
    """Fresh greedy episodes on ``N`` copies of an environment in JAX, of policies that differ in their parameters alone.

    ``act(params, obs)`` gives actions in [-1, 1]; what contains the simulator is compiled once.
    """

    def __init__(self, env: envs.Env, spec: EnvSpec, num_envs: int, act: Callable[[PyTree, PyTree], Any]):
        vector_env = AutoReset(env, num_envs, spec.time_limit, (spec.action_low, spec.action_high))
        self.num_envs = num_envs

        def start(key: jax.Array) -> Any:
            return vector_env.begin(vector_env.first(key))

        def steps(params: PyTree, env_state: Any, key: jax.Array) -> tuple[Any, Any]:
            def step(env_state: Any, key: jax.Array) -> tuple[Any, Any]:
                env_state, timestep = vector_env.step(env_state, act(params, env_state.obs), key)
                return env_state, (timestep.reward, timestep.terminated | timestep.truncated, ~timestep.valid)

            return jax.lax.scan(step, env_state, jax.random.split(key, CHUNK))

        self._start = compiling.compiled(start, compiling.RESET)
        self._steps = compiling.compiled(steps, compiling.SIMULATOR)

    def __call__(self, params: PyTree, number: int, seed: int) -> list[Evaluation]:
        """``number`` batches of ``N`` episodes."""
        batches = []
        root = jax.random.key(seed)
        for batch in range(number):
            env_state, episodes = self._start(fold_in(root, Stream.SAVED, batch, 0)), FirstEpisodes((self.num_envs,))
            for part in itertools.count(1):
                env_state, seen = self._steps(params, env_state, fold_in(root, Stream.SAVED, batch, part))
                for row in zip(*jax.device_get(seen), strict=True):
                    episodes.add(*row)
                if not episodes.running.any():
                    break
            batches.append(episodes.result())
        return batches


def _in_jax(policy: SavedPolicy, env: Any, spec: EnvSpec, num_envs: int, number: int, seed: int) -> list[Evaluation]:
    """``number`` batches of ``N`` episodes."""
    return GreedyEpisodes(env, spec, num_envs, lambda _, obs: policy.greedy(obs))((), number, seed)


def _on_host(policy: SavedPolicy, env: Any, spec: EnvSpec, num_envs: int, number: int, seed: int) -> list[Evaluation]:
    """The same of environments on the host."""
    with contextlib.closing(env.for_evaluation().start(spec, num_envs)) as vector_env:
        seeds = np.random.default_rng(seed).integers(0, 2**31, number)
        batches = [first_episodes(vector_env, policy.greedy, int(first)) for first in seeds]
    return [batch for batch in batches if batch is not None]
