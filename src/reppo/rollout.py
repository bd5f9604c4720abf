"""Acting: ``T`` steps of ``N`` environments under one frozen policy."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from reppo.envs.autoreset import AutoReset
from reppo.types import Learner, PyTree, Rollout


class Fault(eqx.Module):
    """The first step of a rollout that was no transition, with all that it takes to make it again."""

    found: jax.Array  #: bool; the rest means nothing without it
    index: jax.Array  #: the environment's index
    state: Any  #: its state before the step
    action: jax.Array  #: ``[A]``, in [-1, 1], or a discrete action's index
    key: jax.Array  #: of the whole step, `AutoReset.step_alone` derives the environment's own


def rollout(
    env: AutoReset,
    learner: Learner,
    policy: PyTree,
    env_state: Any,
    key: jax.Array,
    num_steps: int,
    greedy: bool | jax.Array = False,
    cut: float | jax.Array = 0.0,
) -> tuple[Any, Rollout, dict[str, jax.Array], Fault]:
    """Step the environments ``num_steps`` times, with draws from the policy or with its ``greedy`` actions. ``cut`` is the
    chance that an episode is cut, at every step.

    Returns the environments' state, the rollout, episode statistics ``[T, N]``, and the first fault.
    """

    def step(carry: tuple[Any, Fault], key: jax.Array) -> tuple[tuple[Any, Fault], tuple[Rollout, dict[str, jax.Array]]]:
        before, fault = carry
        key_act, key_env = jax.random.split(key)
        obs = before.obs
        action, sample = learner.act(policy, obs, key_act, greedy)
        after, timestep = env.step(before, action, key_env, cut)
        fault = first_fault(fault, timestep.valid, before.env, action, key_env)
        row = Rollout(
            obs,
            sample,
            timestep.next_obs,
            timestep.reward,
            timestep.terminated,
            timestep.truncated,
            timestep.valid,
        )
        return (after, fault), (row, timestep.info)

    keys = jax.random.split(key, num_steps)
    nothing = Fault(
        jnp.zeros((), bool),
        jnp.zeros((), jnp.int32),
        jax.tree.map(lambda x: x[0], env_state.env),
        jnp.zeros(env.action.shape, env.action.dtype),
        keys[0],
    )
    (env_state, fault), (rows, info) = jax.lax.scan(step, (env_state, nothing), keys)
    return env_state, rows, info, fault


def first_fault(fault: Fault, valid: jax.Array, state: Any, action: jax.Array, key: jax.Array) -> Fault:
    """``fault``, or where there was none yet and a row of this step is not valid, that row."""
    index = jnp.argmin(valid).astype(jnp.int32)
    new = Fault(~valid.all(), index, jax.tree.map(lambda x: x[index], state), action[index], key)
    return jax.tree.map(lambda old, new: jnp.where(fault.found, old, new), fault, new)
