"""mjlab and Isaac Lab (``mjlab:Mjlab-Cartpole-Balance``, ``isaaclab:Isaac-Ant-v0``): their manager-based environments.

The two have one interface: `step` returns a dict of observation groups, the reward, whether episodes terminated, whether
they timed out, and extras. The group ``policy`` or ``actor`` is for the actor, ``critic`` for the critic. Both reset
within `step`. mjlab can be told not to; of Isaac Lab we observe what it resets just before it does.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from reppo.envs.host import HostEnv, Simulator
from reppo.envs.spaces import Observations, read_actions
from reppo.envs.spec import EnvSpec
from reppo.envs.torch_env import Tensor, TensorEnv, TensorSimulator, TensorStep, stays_on_device, torch_tensors
from reppo.errors import ConfigError

Array = npt.NDArray[Any]

ACTOR_GROUPS, CRITIC_GROUP = ("actor", "policy"), "critic"

#: Of what a task draws once, when it is made, such as the friction of its feet: a simulator gets its seed only later. The
#: packages draw that from another seed each time where they are given none.
SEED = 0


class Batch(TensorEnv):
    """An environment that leaves its resets to us."""

    def __init__(self, env: Any):
        self.num_envs = env.num_envs
        self._env: Any = env

    def reset(self, seeds: Sequence[int]) -> Any:
        return self._env.reset(seed=seeds[0])[0]

    def reset_rows(self, rows: Array, seeds: Sequence[int]) -> Any:
        # A seed each time, because its generator is that of the process, which an evaluation draws from, too.
        return self._env.reset(seed=seeds[0], env_ids=self._indices(rows))[0]

    def _indices(self, rows: Array) -> Tensor:
        return torch_tensors(self._env.device)(np.flatnonzero(rows))

    def step(self, action: Tensor) -> TensorStep:
        obs, reward, terminated, time_outs, _ = self._env.step(action)
        return TensorStep(obs, reward, self._over(terminated, time_outs), time_outs)

    def _over(self, terminated: Tensor, time_outs: Tensor) -> Tensor:
        """Where nothing follows: at the time limit, too, of a task that says its horizon is finite."""
        return terminated | time_outs if self._env.cfg.is_finite_horizon else terminated

    def close(self) -> None:
        if self._env is not None:
            self._env.close()
            self._env = None


class SelfResettingBatch(Batch):
    """An environment that resets within `step`: it is observed once more, before it does."""

    def __init__(self, env: Any):
        super().__init__(env)
        self._stepping, self._successor = False, None
        reset_rows = env._reset_idx

        def observe_then_reset(indices: Any) -> None:
            if self._stepping:
                self._successor = env.observation_manager.compute()
            reset_rows(indices)

        env._reset_idx = observe_then_reset

    def step(self, action: Tensor) -> TensorStep:
        self._stepping, self._successor = True, None
        try:
            obs, reward, terminated, time_outs, _ = self._env.step(action)
        finally:
            self._stepping = False
        successor = obs if self._successor is None else self._successor
        return TensorStep(successor, reward, self._over(terminated, time_outs), time_outs, obs=obs)


class ManagerBased(HostEnv):
    """A task of either package; a subclass says how it is made."""

    batch: type[Batch] = Batch

    def __init__(self, suite: str, task: str):
        self.name, self.task = f"{suite}:{task}", task
        probe = self._made(1, None)
        try:
            if not hasattr(probe, "observation_manager"):
                raise ConfigError(f"{self.name} is no manager-based environment, and those alone are supported")
            space = as_gymnasium(probe.single_observation_space)
            unread = {name: group for name, group in space.spaces.items() if name not in (*ACTOR_GROUPS, CRITIC_GROUP)}
            if images := [name for name, group in unread.items() if len(group.shape or ()) == 3]:
                raise ConfigError(f"{self.name} observes images ({', '.join(images)}) beside other numbers: not supported")
            if unread:
                self.notes = (f"{self.name}: no network reads its observations {', '.join(unread)}",)
            self.observations = Observations(self.name, space)
            self.actions = read_actions(self.name, as_gymnasium(probe.single_action_space))
            self.episode_length = int(probe.max_episode_length)
        finally:
            probe.close()

    def spec(self) -> EnvSpec:
        groups = self.observations.spec
        actor = tuple(key for key in groups if key.partition("/")[0] in ACTOR_GROUPS)
        critic = tuple(key for key in groups if key.partition("/")[0] == CRITIC_GROUP)
        return dataclasses.replace(super().spec(), actor_keys=actor, critic_keys=critic or actor)

    def simulator(self, num_envs: int, episode_length: int) -> Simulator:
        env = self._made(num_envs, episode_length)
        return TensorSimulator(
            [self.batch(env)],
            self.observations,
            self.actions,
            self._tensors(env.device),
            on_device=stays_on_device(env.device),
        )

    def _tensors(self, device: Any) -> Any:
        return torch_tensors(device)

    @abc.abstractmethod
    def _made(self, num_envs: int, episode_length: int | None) -> Any:
        """The package's environment, with its own time limit where ``episode_length`` is None."""


def as_gymnasium(space: Any) -> Any:
    """A space of either package; mjlab has classes of its own. Bounds of observations mean nothing to us."""
    from gymnasium import spaces

    if hasattr(space, "spaces"):
        return spaces.Dict({name: as_gymnasium(inner) for name, inner in space.spaces.items()})
    return spaces.Box(np.float32(np.min(space.low)), np.float32(np.max(space.high)), tuple(space.shape), np.float32)


def seconds(episode_length: int, step: float) -> float:
    """The duration that a task rounds up to this many steps, which last ``step`` seconds each."""
    return (episode_length - 0.5) * step
