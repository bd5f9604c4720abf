"""Evaluation of a saved policy on fresh episodes.

Evaluation during training lives in `reppo.loop.Run.evaluate`, where it shares the training rollout's compiled program.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from reppo import envs
from reppo.config import ConfigError
from reppo.envs.autoreset import AutoReset
from reppo.export import SavedPolicy
from reppo.types import PyTree

MAX_PARALLEL = 128  #: environments stepped at once


class _Progress(eqx.Module):
    env: Any
    returns: jax.Array
    lengths: jax.Array
    running: jax.Array
    step: jax.Array


def first_episodes(env: AutoReset, action_of: Callable[[PyTree], jax.Array], key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns and lengths, ``[N]`` each, of the first episode of every environment under ``action_of(obs)``.

    A row that is not valid (the simulator returned a non-finite number) ends its episode with the return so far.
    """
    key_first, key_steps = jax.random.split(key)

    def step(progress: _Progress) -> _Progress:
        action = action_of(progress.env.obs)
        env_state, timestep = env.step(progress.env, action, jax.random.fold_in(key_steps, progress.step))
        over = timestep.terminated | timestep.truncated | ~timestep.valid
        return _Progress(
            env=env_state,
            returns=progress.returns + jnp.where(progress.running, timestep.reward, 0.0),
            lengths=progress.lengths + progress.running,
            running=progress.running & ~over,
            step=progress.step + 1,
        )

    start = _Progress(
        env=env.begin(env.first(key_first)),
        returns=jnp.zeros(env.num_envs),
        lengths=jnp.zeros(env.num_envs, jnp.int32),
        running=jnp.ones(env.num_envs, bool),
        step=jnp.zeros((), jnp.int32),
    )
    end = jax.lax.while_loop(lambda p: p.running.any() & (p.step < env.episode_length), step, start)
    return end.returns, end.lengths


def evaluate_policy(
    policy: SavedPolicy, env: envs.Env, *, episodes: int, seed: int, episode_length: int | None = None
) -> dict[str, np.ndarray]:
    """Greedy episodes of a saved policy: ``{"returns": [episodes], "lengths": [episodes]}``.

    Raises:
        ConfigError: where the environment's observations or actions are not those that the policy was trained on.
    """
    spec = env.spec()
    sizes = (spec.obs_size(policy.obs_keys or spec.actor_keys), spec.action_size)
    if sizes != (policy.obs_size, policy.action_size):
        raise ConfigError(
            f"the policy maps {policy.obs_size} observations to {policy.action_size} actions, "
            f"but {spec.name} has {sizes[0]} and {sizes[1]}"
        )
    num_envs = min(episodes, MAX_PARALLEL)
    vector_env = AutoReset(env, num_envs, episode_length or spec.episode_length)
    run = jax.jit(lambda key: first_episodes(vector_env, policy.squashed, key))
    keys = jax.random.split(jax.random.key(seed), -(-episodes // num_envs))
    batches = [jax.device_get(run(key)) for key in keys]
    returns, lengths = (np.concatenate(parts)[:episodes] for parts in zip(*batches, strict=True))
    return {"returns": returns, "lengths": lengths}
