"""Environments written in JAX as Brax's own training takes them, each with the wrapper that its library has for that."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from brax.envs import State
from brax.envs import base as brax_base
from brax.envs.wrappers import training

from reppo.envs.base import Env
from reppo.envs.brax_style import BraxStyle


def prepared(env: Env) -> tuple[Any, Callable[..., Any]]:
    """The environment for ``brax.training``, and its ``wrap_env_fn``: time limit and automatic reset as published.

    These wrappers return to the first state that an environment was reset to, and put its observation in place of the
    last one of an episode.
    """
    if not isinstance(env, BraxStyle):
        return AsBrax(env), training.wrap
    if importlib.util.find_spec("mujoco_playground") is not None:
        from mujoco_playground import wrapper
        from mujoco_playground._src.mjx_env import MjxEnv

        if isinstance(env.inner, MjxEnv):
            return env.inner, wrapper.wrap_for_brax_training
    return env.inner, training.wrap


class AsBrax(brax_base.Env):
    """A `reppo.Env` by Brax's protocol. Actions in [-1, 1] are mapped to its bounds."""

    def __init__(self, env: Env):
        self.env = env
        spec = env.spec()
        self._observation = spec.observation
        self._low, self._high = jnp.asarray(spec.action_low), jnp.asarray(spec.action_high)

    def reset(self, rng: jax.Array) -> State:
        key, key_reset = jax.random.split(rng)
        state, obs = self.env.reset(jax.random.wrap_key_data(key_reset))
        zero = jnp.zeros(())
        return State(state, obs, zero, zero, {}, {"reppo_key": key})

    def step(self, state: State, action: jax.Array) -> State:
        key, key_step = jax.random.split(state.info["reppo_key"])
        action = self._low + (action + 1) / 2 * (self._high - self._low)
        inner, transition = self.env.step(state.pipeline_state, action, jax.random.wrap_key_data(key_step))
        return state.replace(  # pyright: ignore[reportAttributeAccessIssue]
            pipeline_state=inner,
            obs=transition.obs,
            reward=transition.reward.astype(jnp.float32),
            done=transition.terminated.astype(jnp.float32),
            info={**state.info, "reppo_key": key},
        )

    @property
    def observation_size(self) -> Any:
        return jax.tree.map(lambda x: x.shape[0], self._observation)

    @property
    def action_size(self) -> int:
        return self.env.action_size

    @property
    def backend(self) -> str:
        return "reppo"
