"""mjlab's and Isaac Lab's interface, in a stand-in without torch: nothing of an episode's end is lost or confused."""

from __future__ import annotations

import types
from typing import Any

import gymnasium
import numpy as np
import pytest

from reppo.config import ConfigError
from reppo.envs.check import check
from reppo.envs.host import HostVectorEnv
from reppo.envs.manager_based import Batch, ManagerBased, SelfResettingBatch, as_gymnasium, seconds

N, LIMIT = 4, 6


class StandIn:
    """As much of `ManagerBasedRLEnv` as is documented: groups of observations, five results of a step, resets within it.

    An observation is ``[x, steps, episode]``, where ``x`` moves with the action; above 3 the episode terminates.
    """

    device = "cpu"
    max_episode_length = LIMIT

    def __init__(self, num_envs: int, auto_reset: bool):
        self.num_envs, self.auto_reset = num_envs, auto_reset
        groups = {"policy": 2, "critic": 3}
        boxes = {name: gymnasium.spaces.Box(-np.inf, np.inf, (size,)) for name, size in groups.items()}
        self.single_observation_space = gymnasium.spaces.Dict(boxes)  # pyright: ignore[reportArgumentType]
        self.single_action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,))
        self.observation_manager = types.SimpleNamespace(compute=self.observations)
        self.state = np.zeros((num_envs, 3), np.float32)
        self.closed = False

    def observations(self) -> dict[str, Any]:
        return {"policy": self.state[:, :2].copy(), "critic": self.state.copy()}

    def reset(self, seed: int | None = None, env_ids: Any = None) -> Any:
        if seed is not None:
            self.rng = np.random.default_rng(seed)
        self._reset_idx(np.arange(self.num_envs) if env_ids is None else env_ids)
        return self.observations(), {}

    def _reset_idx(self, env_ids: Any) -> None:
        self.state[env_ids, 0] = self.rng.uniform(0, 1, len(env_ids))
        self.state[env_ids, 1] = 0
        self.state[env_ids, 2] += 1

    def step(self, action: Any) -> Any:
        self.state[:, 0] += action[:, 0]
        self.state[:, 1] += 1
        terminated, time_outs = self.state[:, 0] > 3, self.state[:, 1] >= self.max_episode_length
        reward = self.state[:, 0].copy()
        if self.auto_reset and (over := terminated | time_outs).any():
            self._reset_idx(np.flatnonzero(over))
        return self.observations(), reward, terminated, time_outs, {"log": {}}

    def close(self) -> None:
        self.closed = True


class Resetting(SelfResettingBatch):
    def _indices(self, rows: Any) -> Any:
        return np.flatnonzero(rows)


class Left(Batch):
    def _indices(self, rows: Any) -> Any:
        return np.flatnonzero(rows)


class Task(ManagerBased):
    def __init__(self, batch: type[Batch]):
        self.batch = batch
        super().__init__("stand-in", "Task-v0")

    def _made(self, num_envs: int, episode_length: int | None) -> Any:
        env = StandIn(num_envs, auto_reset=self.batch is Resetting)
        env.max_episode_length = episode_length or LIMIT
        return env

    def _tensors(self, device: Any) -> Any:
        return np.asarray


@pytest.fixture(params=[Resetting, Left])
def task(request: pytest.FixtureRequest) -> Task:
    return Task(request.param)


def started(task: Task) -> HostVectorEnv:
    return task.start(task.spec(), N)


def test_groups_go_to_their_networks(task: Task) -> None:
    spec = task.spec()
    assert (spec.actor_keys, spec.critic_keys) == (("policy",), ("critic",))
    assert spec.episode_length == LIMIT


def test_terminations_time_outs_and_true_successors(task: Task) -> None:
    env = started(task)
    obs = env.reset(3)
    seen = set()
    for t in range(40):
        action = np.where(np.arange(N) % 2 == 0, 1.0, 0.0)[:, None].astype(np.float32)  # the even ones run over 3
        step = env.step(action)
        x, steps, episode = step.next_obs["critic"].T
        before = obs["critic"].T
        np.testing.assert_allclose(x, before[0] + action[:, 0], rtol=1e-6, err_msg=str(t))
        np.testing.assert_array_equal(steps, before[1] + 1)
        np.testing.assert_array_equal(episode, before[2])
        np.testing.assert_array_equal(step.terminated, x > 3)
        np.testing.assert_array_equal(step.truncated, (steps == LIMIT) & ~step.terminated)
        np.testing.assert_allclose(step.reward, x)
        over = step.terminated | step.truncated
        np.testing.assert_array_equal(step.obs["critic"][:, 1], np.where(over, 0, steps))
        np.testing.assert_array_equal(step.obs["critic"][:, 2], episode + over)
        np.testing.assert_array_equal(step.next_obs["policy"], step.next_obs["critic"][:, :2])
        seen |= {("terminated", bool(step.terminated.any())), ("truncated", bool(step.truncated.any()))}
        obs = step.obs
    assert len(seen) == 4


def test_it_passes_the_checks(task: Task) -> None:
    found = {finding.check: finding for finding in check(task, num_envs=N, num_steps=60)}
    assert [finding for finding in found.values() if finding.passed is False] == []
    assert found["true successor"].passed
    assert found["time limit holds"].passed


def test_a_duration_is_rounded_up_to_its_steps() -> None:
    for step in (0.02, 0.005, 1 / 60):
        for length in (1, 7, 200, 1000):
            assert np.ceil(seconds(length, step) / step) == length


class OwnBox:
    """mjlab's spaces have one bound for all entries."""

    def __init__(self, low: float, high: float):
        self.shape, self.low, self.high = (2,), low, high


def test_spaces_of_other_classes() -> None:
    space = as_gymnasium(types.SimpleNamespace(spaces={"actor": OwnBox(-1.0, 2.0)}))
    assert space == gymnasium.spaces.Dict({"actor": gymnasium.spaces.Box(-1.0, 2.0, (2,))})
    assert np.isinf(as_gymnasium(OwnBox(-np.inf, np.inf)).high).all()


def test_other_workflows_are_refused_and_closed() -> None:
    made: list[Any] = []

    class Direct(Task):
        def _made(self, num_envs: int, episode_length: int | None) -> Any:
            made.append(super()._made(num_envs, episode_length))
            del made[-1].observation_manager
            return made[-1]

    with pytest.raises(ConfigError, match="no manager-based environment"):
        Direct(Left)
    assert made[0].closed
