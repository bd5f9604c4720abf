"""Evaluation: greedy returns of fresh episodes, the first of every environment. It changes nothing of a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from reppo import envs
from reppo.config import ConfigError
from reppo.envs.autoreset import AutoReset, First
from reppo.export import SavedPolicy
from reppo.types import PyTree

MAX_PARALLEL = 128  #: environments in which `evaluate_policy` steps at once
CHUNK = 100  #: steps between two looks of Python at an evaluation: to stop it, or to see that it is over


class Episodes(eqx.Module):
    """The first episodes of ``N`` environments, under way; leaves ``[N, ...]``."""

    env: Any  #: `AutoResetState`
    returns: jax.Array  #: reward so far
    lengths: jax.Array  #: steps so far
    running: jax.Array  #: whether the first episode still runs
    broken: jax.Array  #: whether numbers that were not finite ended it early


def begin(env: AutoReset, first: First) -> Episodes:
    """First episodes, none of which has made a step."""
    n = env.num_envs
    return Episodes(env.begin(first), jnp.zeros(n), jnp.zeros(n, jnp.int32), jnp.ones(n, bool), jnp.zeros(n, bool))


def advance(env: AutoReset, action_of: Callable[[PyTree], jax.Array], episodes: Episodes, key: jax.Array) -> Episodes:
    """Up to `CHUNK` steps under ``action_of(obs)``, fewer where all episodes end before.

    A row that is not valid (the simulator returned a non-finite number) ends its episode with the return so far.
    """

    def step(now: Episodes, key: jax.Array) -> tuple[Episodes, None]:
        env_state, timestep = env.step(now.env, action_of(now.env.obs), key)
        over = timestep.terminated | timestep.truncated | ~timestep.valid
        returns = now.returns + jnp.where(now.running, timestep.reward, 0.0)
        broken = now.broken | (now.running & ~timestep.valid)
        return Episodes(env_state, returns, now.lengths + now.running, now.running & ~over, broken), None

    return jax.lax.scan(step, episodes, jax.random.split(key, CHUNK))[0]


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

    @jax.jit
    def first_episodes(key: jax.Array) -> Episodes:
        key_first, key_steps = jax.random.split(key)
        start = (jnp.array(0), begin(vector_env, vector_env.first(key_first)))

        def chunk(carry: tuple[jax.Array, Episodes]) -> tuple[jax.Array, Episodes]:
            i, now = carry
            return i + 1, advance(vector_env, policy.squashed, now, jax.random.fold_in(key_steps, i))

        return jax.lax.while_loop(lambda carry: carry[1].running.any(), chunk, start)[1]

    keys = jax.random.split(jax.random.key(seed), -(-episodes // num_envs))
    batches = [jax.device_get(first_episodes(key)) for key in keys]
    returns, lengths = (np.concatenate([getattr(b, name) for b in batches])[:episodes] for name in ("returns", "lengths"))
    return {"returns": returns, "lengths": lengths}
