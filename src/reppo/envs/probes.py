"""Probe environments: so small that their values are known in closed form, so that a learner is tested in seconds.

Each isolates one thing that an implementation can get wrong; ``tests/test_probes.py`` derives the numbers.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from reppo.envs.base import Env, Transition


class _Probe(Env):
    action_size = 1
    value_range = (-4.0, 4.0)
    episode_length = 1_000_000

    def reset(self, key: jax.Array) -> tuple[Any, jax.Array]:
        del key
        obs = jnp.zeros(1)
        return obs, obs


class ConstantReward(_Probe):
    """Value only: one step, reward 1, terminated. ``Q = 1``."""

    max_return = 1.0

    def step(self, state: Any, action: jax.Array, key: jax.Array) -> tuple[Any, Transition]:
        return state, Transition(state, jnp.ones(()), jnp.array(True))


class ObservationReward(_Probe):
    """Value from the observation: one step, observation +1 or -1 at random, reward equal to it. ``Q(x) = x``."""

    def reset(self, key: jax.Array) -> tuple[Any, jax.Array]:
        obs = jax.random.rademacher(key, (1,), jnp.float32)
        return obs, obs

    def step(self, state: Any, action: jax.Array, key: jax.Array) -> tuple[Any, Transition]:
        return state, Transition(state, state[0], jnp.array(True))


class ActionReward(_Probe):
    """Reward from the action: one step, ``r = 1 - (a - 0.5)^2``. The best action is 0.5, its value 1."""

    max_return = 1.0

    def step(self, state: Any, action: jax.Array, key: jax.Array) -> tuple[Any, Transition]:
        return state, Transition(state, 1.0 - (action[0] - 0.5) ** 2, jnp.array(True))


class DelayedReward(_Probe):
    """Discounting: two steps, reward 1 only at the second, then terminated.

    ``Q(x_0) = gamma (alpha H + 1)``, ``Q(x_1) = 1``.
    """

    max_return = 1.0

    def step(self, state: jax.Array, action: jax.Array, key: jax.Array) -> tuple[Any, Transition]:
        second = state[0] > 0
        obs = jnp.ones(1)
        return obs, Transition(obs, jnp.where(second, 1.0, 0.0), second)


class Choice(_Probe):
    """Discrete actions: two steps, reward 1, 0.5 or 0 for the action at the second, then terminated.

    Whatever comes first, ``Q(x_0) = gamma alpha log sum_a exp(r_a / alpha)`` under the best policy, and ``Q(x_1, a) = r_a``.
    """

    action_size = 3
    discrete = True
    max_return = 1.0

    def step(self, state: jax.Array, action: jax.Array, key: jax.Array) -> tuple[Any, Transition]:
        second = state[0] > 0
        obs = jnp.ones(1)
        return obs, Transition(obs, jnp.where(second, 1.0 - 0.5 * action, 0.0), second)


class Truncating(_Probe):
    """Two states that alternate, 0, 1, 0, 1, with reward 0.1 throughout, cut after two steps by a time limit.

    The value goes on beyond the cut: ``Q = (r + gamma alpha H) / (1 - gamma)`` in both states.
    """

    value_range = (-1.0, 3.0)
    episode_length = 2
    terminates = False

    def step(self, state: jax.Array, action: jax.Array, key: jax.Array) -> tuple[Any, Transition]:
        obs = 1.0 - state
        return obs, Transition(obs, jnp.full((), 0.1), self.terminates & (state[0] > 0))


class Terminating(Truncating):
    """The same dynamics and rewards, but the second step ends the task: ``Q(1) = r``, ``Q(0) = r + gamma (alpha H + r)``."""

    episode_length = 1_000_000
    terminates = True


class Swapping(_Probe):
    """One step, from -1 to 1 or from 1 to -1, first state at random, reward half the state, cut by a time limit.

    The state that follows differs from the one that a reset leads to, and so does its value:
    ``Q(x) = gamma alpha H / (1 - gamma) + x / (2 (1 + gamma))``.
    """

    episode_length = 1

    def reset(self, key: jax.Array) -> tuple[Any, jax.Array]:
        obs = jax.random.rademacher(key, (1,), jnp.float32)
        return obs, obs

    def step(self, state: jax.Array, action: jax.Array, key: jax.Array) -> tuple[Any, Transition]:
        return -state, Transition(-state, 0.5 * state[0], jnp.array(False))


class TargetReach(_Probe):
    """A point on a line is pushed to a target that it is shown: a small real task for tests and demonstrations.

    The best return is near ``episode_length``; doing nothing earns about half of it.
    """

    episode_length = 50
    value_range = (0.0, 110.0)  # the time limit is a truncation: up to 1 / (1 - gamma), and room for entropy

    def reset(self, key: jax.Array) -> tuple[Any, jax.Array]:
        obs = jax.random.uniform(key, (2,), minval=-1.0, maxval=1.0)
        return obs, obs

    def step(self, state: jax.Array, action: jax.Array, key: jax.Array) -> tuple[Any, Transition]:
        position = jnp.clip(state[0] + 0.2 * action[0], -1.0, 1.0)
        obs = jnp.stack([position, state[1]])
        return obs, Transition(obs, jnp.exp(-4.0 * (position - state[1]) ** 2), jnp.array(False))


CLASSES: tuple[type[Env], ...] = (
    ConstantReward,
    ObservationReward,
    ActionReward,
    DelayedReward,
    Choice,
    Terminating,
    Truncating,
    Swapping,
    TargetReach,
)
PROBES = {cls.__name__: cls for cls in CLASSES}


def names() -> list[str]:
    return sorted(PROBES)


def make(name: str) -> Env:
    env = PROBES[name]()
    env.made_from = f"probe:{name}"
    return env
