"""The records that pass between environments, learners and the training loop.

Shape vocabulary, used everywhere in this package:

    T  rollout steps        N  environments       B  minibatch rows
    A  action dimensions    K  value bins         S  action samples
    D  observation features H  hidden width       R  seeds that are trained at once
    E  epochs               M  minibatches

Where actions are discrete, ``A`` is how many there are.

Arrays of a rollout are time-major: ``[T, N, ...]``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax

PyTree = Any
Metrics = dict[str, jax.Array]


class TimeStep(NamedTuple):
    """What every vector environment returns for one step, in JAX or, on the host, in NumPy; leaves are ``[N, ...]``.

    ``terminated`` ends the return: nothing follows. ``truncated`` only ends the episode: the value of
    ``next_obs`` follows. The two are never both true, and never merged into one ``done``.
    """

    obs: PyTree  #: what the policy acts on next (after a reset, the new episode's first observation)
    next_obs: PyTree  #: the true successor of the action, also where the environment was reset
    reward: Any  #: float ``[N]``
    terminated: Any  #: bool ``[N]``
    truncated: Any  #: bool ``[N]``
    valid: Any  #: bool ``[N]``; false where the row is no real transition and must train nothing
    info: dict[str, Any]  #: episode statistics for logging, ``[N]`` each


class Rollout(NamedTuple):
    """``T`` steps of ``N`` environments under one frozen policy, time-major."""

    obs: PyTree  #: ``[T, N, D]``
    sample: jax.Array  #: what the policy drew: before the tanh, ``[T, N, A]``, or a discrete action's index, ``[T, N]``
    next_obs: PyTree  #: ``[T, N, D]``
    reward: jax.Array  #: ``[T, N]``
    terminated: jax.Array  #: ``[T, N]``
    truncated: jax.Array  #: ``[T, N]``
    valid: jax.Array  #: ``[T, N]``


class Learner(NamedTuple):
    """An algorithm, as pure functions; every algorithm shares one training loop."""

    init: Callable[[jax.Array], PyTree]  #: key -> state
    policy: Callable[[PyTree], PyTree]  #: state -> the small pytree that acting, evaluation and export need
    #: (policy, obs, key, greedy) -> (action in [-1, 1] or index, the sample behind it)
    act: Callable[[PyTree, PyTree, jax.Array, bool | jax.Array], tuple[jax.Array, jax.Array]]
    update: Callable[[PyTree, Rollout, jax.Array], tuple[PyTree, Metrics]]
    optimiser_steps: int  #: that an update takes, all optimisers together
    #: state -> the part of it that is a replay memory, if any: an update then overwrites the state in place
    replay: Callable[[PyTree], PyTree] = lambda state: ()
    #: state -> the same with the policy that is evaluated and saved, where it is another than the one that explores
    deployed: Callable[[PyTree], PyTree] = lambda state: state
    facts: Mapping[str, Any] = MappingProxyType({})  #: what it derives from the environment, for ``config.json``
