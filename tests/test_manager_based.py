"""mjlab's and Isaac Lab's interface, in a stand-in without torch: nothing of an episode's end is lost or confused."""

from __future__ import annotations

import dataclasses
import types
from typing import Any

import gymnasium
import numpy as np
import pytest

from reppo.envs.check import check
from reppo.envs.host import HostVectorEnv
from reppo.envs.manager_based import Batch, ManagerBased, SelfResettingBatch, as_gymnasium, seconds
from reppo.errors import ConfigError

N, LIMIT = 4, 6


class OwnBox:
    """mjlab's spaces have one bound for all entries."""

    def __init__(self, *shape: int, low: float = -np.inf, high: float = np.inf):
        self.shape, self.low, self.high = shape, low, high


class StandIn:
    """`ManagerBasedRlEnv` as mjlab 1.6.0 has it, or with ``auto_reset``: groups of observations, actions without bounds,
    flags that the next step writes over. Without ``auto_reset``, it refuses a step where an episode that is over was not
    reset; with it, it resets within its step, as Isaac Lab does by its documentation.

    An observation is ``[x, steps, episode]``, where ``x`` moves with the action; above 3 the episode terminates.
    """

    device = "cpu"
    max_episode_length = LIMIT

    def __init__(self, num_envs: int, auto_reset: bool):
        self.num_envs, self.auto_reset = num_envs, auto_reset
        self.cfg = types.SimpleNamespace(is_finite_horizon=False)
        groups = {"actor": OwnBox(2), "critic": OwnBox(3)}
        self.single_observation_space = types.SimpleNamespace(spaces=groups)
        self.single_action_space = OwnBox(1)
        self.observation_manager = types.SimpleNamespace(compute=self.observations)
        self.state = np.zeros((num_envs, 3), np.float32)
        self.terminated, self.time_outs, self.pending = np.zeros((3, num_envs), bool)
        self.closed = False

    def observations(self) -> dict[str, Any]:
        return {"actor": self.state[:, :2].copy(), "critic": self.state.copy()}

    def reset(self, seed: int | None = None, env_ids: Any = None) -> Any:
        if seed is not None:
            self.rng = np.random.default_rng(seed)
        self._reset_idx(np.arange(self.num_envs) if env_ids is None else env_ids)
        return self.observations(), {}

    def _reset_idx(self, env_ids: Any) -> None:
        self.state[env_ids, 0] = self.rng.uniform(0, 1, len(env_ids))
        self.state[env_ids, 1] = 0
        self.state[env_ids, 2] += 1
        self.pending[env_ids] = False

    def step(self, action: Any) -> Any:
        if self.pending.any():
            raise RuntimeError(f"Environments {np.flatnonzero(self.pending)} must be reset")
        self.state[:, 0] += action[:, 0]
        self.state[:, 1] += 1
        self.terminated[:], self.time_outs[:] = self.state[:, 0] > 3, self.state[:, 1] >= self.max_episode_length
        reward, over = self.state[:, 0].copy(), self.terminated | self.time_outs
        if not self.auto_reset:
            self.pending[over] = True
        elif over.any():
            self._reset_idx(np.flatnonzero(over))
        return self.observations(), reward, self.terminated, self.time_outs, {"log": {}}

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
    one = np.ones(1, np.float32)
    return task.start(dataclasses.replace(task.spec(), action_low=-one, action_high=one), N)


def test_groups_go_to_their_networks(task: Task) -> None:
    spec = task.spec()
    assert (spec.actor_keys, spec.critic_keys) == (("actor",), ("critic",))
    assert spec.episode_length == LIMIT
    assert np.isinf(spec.action_high).all()


class More(Task):
    """With one more group of observations."""

    def __init__(self, name: str, *shape: int):
        self.more = {name: OwnBox(*shape)}
        super().__init__(Left)

    def _made(self, num_envs: int, episode_length: int | None) -> Any:
        env = super()._made(num_envs, episode_length)
        env.single_observation_space.spaces |= self.more
        return env


def test_isaac_labs_actor_reads_the_group_policy() -> None:
    assert More("policy", 2).spec().actor_keys == ("actor", "policy")


def test_what_no_network_reads_is_told_and_an_image_refused() -> None:
    assert Task(Left).notes == ()
    assert More("teacher", 2).notes == ("stand-in:Task-v0: no network reads its observations teacher",)
    with pytest.raises(ConfigError, match=r"observes images \(camera\) beside other numbers"):
        More("camera", 3, 8, 8)


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
        np.testing.assert_array_equal(step.next_obs["actor"], step.next_obs["critic"][:, :2])
        seen |= {("terminated", bool(step.terminated.any())), ("truncated", bool(step.truncated.any()))}
        obs = step.obs
    assert len(seen) == 4


@pytest.mark.parametrize("batch", [Resetting, Left])
def test_nothing_follows_the_time_limit_of_a_finite_horizon(batch: type[Batch]) -> None:
    class Finite(Task):
        def _made(self, num_envs: int, episode_length: int | None) -> Any:
            env = super()._made(num_envs, episode_length)
            env.cfg.is_finite_horizon = True
            return env

    env = started(Finite(batch))
    env.reset(3)
    for t in range(1, LIMIT + 1):
        step = env.step(np.zeros((N, 1), np.float32))
        np.testing.assert_array_equal(step.terminated, t == LIMIT)
        assert not step.truncated.any()


def test_it_passes_the_checks(task: Task) -> None:
    found = {finding.check: finding for finding in check(task, num_envs=N, num_steps=60)}
    assert [finding for finding in found.values() if finding.passed is False] == []
    assert found["true successor"].passed
    assert found["time limit holds"].passed


def test_a_duration_is_rounded_up_to_its_steps() -> None:
    for step in (0.02, 0.005, 1 / 60):
        for length in (1, 7, 200, 1000):
            assert np.ceil(seconds(length, step) / step) == length


def test_spaces_of_other_classes() -> None:
    space = as_gymnasium(types.SimpleNamespace(spaces={"actor": OwnBox(2, low=-1.0, high=2.0)}))
    assert space == gymnasium.spaces.Dict({"actor": gymnasium.spaces.Box(-1.0, 2.0, (2,))})
    assert as_gymnasium(space) == space  # Isaac Lab's are Gymnasium's own
    assert np.isinf(as_gymnasium(OwnBox(2)).high).all()


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
