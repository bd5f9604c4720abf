"""The interface of an environment written in JAX: four facts and two functions."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from reppo.envs.blame import counted
from reppo.envs.spec import EnvSpec, check_claims, shape_of, suggest_keys
from reppo.errors import ConfigError
from reppo.types import PyTree


class Transition(NamedTuple):
    """What `Env.step` returns beside the state: one environment, no batch axis."""

    obs: PyTree  #: the true successor; the environment never resets itself
    reward: jax.Array  #: float scalar
    terminated: jax.Array  #: bool scalar: the task is over and nothing follows. A time limit is not termination.


class Env(abc.ABC):
    """One environment as pure functions, to be traced by JAX. Subclass it in a file of your own and train it with
    ``reppo train path/to/file.py:MyEnv``.

    It neither resets itself nor counts its time: `reppo.envs.autoreset.AutoReset` does both, for every environment in
    the same way.
    """

    action_size: int
    discrete: bool = False  #: whether `step` receives an integer below `action_size`, rather than that many numbers
    action_low: float | np.ndarray = -1.0  #: bounds of the action that `step` receives, scalar or ``[A]``
    action_high: float | np.ndarray = 1.0
    episode_length: int = 1000  #: time limit in steps; the episode is then truncated, not terminated
    value_range: tuple[float, float] | None = None  #: smallest and largest discounted return; the critic's support
    max_return: float | None = None  #: the best possible episode return, where it is known
    actor_obs: tuple[str, ...] = ()  #: entries of a dict observation that the actor sees; unset: see `suggest_keys`
    critic_obs: tuple[str, ...] = ()  #: the same of the critic
    channels_first: bool = False  #: where the observation is an image: whether its channels are the first axis or the last
    cheap_reset: bool = True  #: whether a reset costs no more than a step
    step_seconds: float | None = None  #: how long a step lasts, where that is known, for `reppo video`
    made_from: str | None = None  #: the name that makes this environment again, where it came from a file

    @abc.abstractmethod
    def reset(self, key: jax.Array) -> tuple[Any, PyTree]:
        """A first state, any pytree, and its observation: a float vector, a dict of float vectors, or an image."""

    @abc.abstractmethod
    def step(self, state: Any, action: jax.Array, key: jax.Array) -> tuple[Any, Transition]:
        """The next state and the transition, for an action ``[A]`` within the bounds, or an integer if ``discrete``."""

    def reseed(self, state: Any, key: jax.Array) -> Any:
        """``state`` with fresh randomness inside, for environments that keep a PRNG key in their state."""
        del key
        return state

    def render(self, states: Sequence[Any], height: int, width: int, camera: str | None) -> Sequence[np.ndarray]:
        """Pictures of states, uint8 ``[height, width, 3]`` each, for `reppo video`. An environment need not have it.

        ``camera`` is a name that its user gave, or None.
        """
        raise NotImplementedError

    @property
    def name(self) -> str:
        return self.made_from or type(self).__name__

    def spec(self) -> EnvSpec:
        """This environment's `EnvSpec`.

        Raises:
            ConfigError: where an attribute is none that an environment can have.
        """
        bounds = None if self.discrete else (self.action_low, self.action_high)
        size = getattr(self, "action_size", None)
        check_claims(self.name, size, bounds, self.episode_length, self.value_range, self.max_return)
        first = jax.eval_shape(self.reset, jax.random.key(0))
        if not isinstance(first, tuple | list) or len(first) != 2:
            raise ConfigError(f"{self.name}: reset must return (state, observation), got {counted(first)}")
        observation = first[1]
        actor_keys, critic_keys = self._keys(observation)
        low, high = (0, self.action_size - 1) if self.discrete else (self.action_low, self.action_high)
        bounds_shape = (1,) if self.discrete else (self.action_size,)
        return EnvSpec(
            name=self.made_from or self.name,
            observation=shape_of(observation),
            action_size=int(self.action_size),
            action_low=np.broadcast_to(np.asarray(low, np.float32), bounds_shape),
            action_high=np.broadcast_to(np.asarray(high, np.float32), bounds_shape),
            episode_length=None if self.episode_length is None else int(self.episode_length),
            value_range=None if self.value_range is None else (float(self.value_range[0]), float(self.value_range[1])),
            actor_keys=actor_keys,
            critic_keys=critic_keys,
            max_return=None if self.max_return is None else float(self.max_return),
            discrete=self.discrete,
            channels_first=self.channels_first,
        )

    def _keys(self, observation: PyTree) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Entries of a dict observation that actor and critic see."""
        suggested = dict(zip(("actor_obs", "critic_obs"), suggest_keys(observation), strict=True))
        for attribute in suggested:
            chosen = getattr(self, attribute)
            if isinstance(chosen, str) or not all(isinstance(key, str) for key in chosen):
                raise ConfigError(f"{self.name}: {attribute} must be a tuple of names, such as ('state',), got {chosen!r}")
            if chosen and not (isinstance(observation, dict) and set(chosen) <= set(observation)):
                there = ", ".join(sorted(observation)) if isinstance(observation, dict) else "one array"
                raise ConfigError(f"{self.name}: {attribute} is {', '.join(chosen)}, and the observation has {there}")
            suggested[attribute] = tuple(chosen) or suggested[attribute]
        return suggested["actor_obs"], suggested["critic_obs"]


def read_step(name: str, returned: Any) -> tuple[Any, Transition]:
    """The state and the transition that `Env.step` has returned; raises `ConfigError` where it is something else."""
    if not isinstance(returned, tuple | list) or len(returned) != 2:
        raise ConfigError(f"{name}: step must return (state, reppo.Transition), got {counted(returned)}")
    state, transition = returned
    if not isinstance(transition, tuple | list) or len(transition) != 3:
        what = f"{counted(transition)} in place of the transition"
        raise ConfigError(f"{name}: step must return (state, reppo.Transition(obs, reward, terminated)), got {what}")
    return state, Transition(*transition)
