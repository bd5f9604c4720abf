"""gymnax (``gymnax:Pendulum-v1``): classic control, continuous and discrete, and MinAtar.

MinAtar's observations are images, ``[10, 10, C]``, with a plane for each kind of object: their numbers are 0 and 1.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from reppo.envs.base import Env, Transition
from reppo.types import PyTree

#: What the discounted returns of a task can be at gamma 0.99: per-step reward bounds times 100, with room for entropy.
VALUE_RANGES = {
    "Pendulum-v1": (-1700.0, 100.0),
    "MountainCarContinuous-v0": (-20.0, 120.0),
    "Reacher-misc": (-300.0, 50.0),
    "Swimmer-misc": (-50.0, 100.0),
    "PointRobot-misc": (-50.0, 100.0),
    "CartPole-v1": (-20.0, 150.0),  # 1 a step while the pole stands
    "Acrobot-v1": (-120.0, 20.0),  # -1 a step until the end
    "MountainCar-v0": (-120.0, 20.0),  # the same
    # 1 a hit, at most one in a few steps.
    "Asterix-MinAtar": (-5.0, 30.0),
    "Breakout-MinAtar": (-5.0, 30.0),
    "Freeway-MinAtar": (-5.0, 30.0),
    "SpaceInvaders-MinAtar": (-5.0, 30.0),
}


class Gymnax(Env):
    """Adapter from gymnax. It calls ``step_env``, which neither resets nor applies the time limit."""

    def __init__(self, name: str):
        import gymnax

        self.inner, self.params = gymnax.make(name)
        space = self.inner.action_space(self.params)
        if hasattr(space, "n"):
            self.discrete, self.action_size, self.action_shape = True, int(space.n), ()
        else:
            self.action_size = int(np.prod(space.shape)) or 1
            self.action_shape = space.shape
            self.action_low = np.asarray(space.low, np.float32)
            self.action_high = np.asarray(space.high, np.float32)
        self.episode_length = int(self.params.max_steps_in_episode)
        self.value_range = VALUE_RANGES.get(name)
        self._planes = name.endswith("-MinAtar")
        self._name = name

    @property
    def name(self) -> str:
        return f"gymnax:{self._name}"

    def reset(self, key: jax.Array) -> tuple[Any, PyTree]:
        obs, state = self.inner.reset_env(key, self.params)
        return state, self._read(obs)

    def _read(self, obs: jax.Array) -> jax.Array:
        """A vector; or planes as bool, which a rollout holds in a quarter of the memory."""
        return obs.astype(bool) if self._planes else jnp.ravel(obs).astype(jnp.float32)

    def step(self, state: Any, action: jax.Array, key: jax.Array) -> tuple[Any, Transition]:
        obs, state, reward, terminated, _ = self.inner.step_env(key, state, action.reshape(self.action_shape), self.params)
        return state, Transition(self._read(obs), reward, jnp.asarray(terminated))


def names() -> list[str]:
    return sorted(VALUE_RANGES)


def make(name: str) -> Gymnax:
    return Gymnax(name)
