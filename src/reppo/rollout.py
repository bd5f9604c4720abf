"""Acting: ``T`` steps of ``N`` environments under one frozen policy, for training and for evaluation alike."""

from __future__ import annotations

from typing import Any

import jax

from reppo.envs.autoreset import AutoReset
from reppo.types import Learner, PyTree, Rollout


def rollout(
    env: AutoReset, learner: Learner, policy: PyTree, env_state: Any, key: jax.Array, num_steps: int, greedy: jax.Array
) -> tuple[Any, Rollout, dict[str, jax.Array]]:
    """Step the environments ``num_steps`` times; returns (environment state, rollout, episode statistics ``[T, N]``).

    ``greedy`` is traced, so that training and evaluation run one compiled program: compiling a simulator's step is what
    takes longest before the first iteration.
    """

    def step(env_state: Any, key: jax.Array) -> tuple[Any, tuple[Rollout, dict[str, jax.Array]]]:
        key_act, key_env = jax.random.split(key)
        obs = env_state.obs
        action, pre_tanh = learner.act(policy, obs, key_act, greedy)
        env_state, timestep = env.step(env_state, action, key_env)
        row = Rollout(
            obs,
            pre_tanh,
            timestep.next_obs,
            timestep.reward,
            timestep.terminated,
            timestep.truncated,
            timestep.valid,
        )
        return env_state, (row, timestep.info)

    env_state, (rows, info) = jax.lax.scan(step, env_state, jax.random.split(key, num_steps))
    return env_state, rows, info
