"""Environments on the host: every adapter yields the same transitions, whatever its simulator's reset convention."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import pytest
import scripted
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import TimeLimit
from helpers import TINY
from scripted import BOUNDS, Scripted, Transition

import reppo
from reppo import envs, returns
from reppo.config import Config
from reppo.envs import envpool as envpool_adapter
from reppo.envs import gymnasium as gymnasium_adapter
from reppo.envs.host import HostEnv, HostVectorEnv, SimulatorError
from reppo.envs.spaces import Observations, WrongObservation, read_actions
from reppo.envs.spec import resolve
from reppo.errors import ConfigError
from reppo.evaluate import evaluate_policy, first_episodes
from reppo.run import Run

Array = npt.NDArray[Any]

N, T, SEED = 5, 60, 100
CONFIG = dataclasses.replace(TINY, num_envs=N, num_steps=8, num_minibatches=2, episode_length=None, v_min=-10.0, v_max=50.0)

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning:gymnasium.*", "ignore:.*global_norm:DeprecationWarning")

ADAPTERS = [
    "loop",
    "NEXT_STEP",
    "SAME_STEP",
    "DISABLED",
    "workers",
    "envpool",
    "tensors",
    "tensors alone",
    "tensors reset",
    "tensors on device",
]


@pytest.fixture(params=ADAPTERS)
def env(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> HostEnv:
    return make_env(request.param, monkeypatch)


@functools.cache
def workers() -> AsyncVectorEnv:
    """One vector for all tests, as it takes long to start: each begins where another one has left it."""
    # Forked, they would inherit the locks of JAX's threads.
    return AsyncVectorEnv([Scripted] * N, shared_memory=False, context="forkserver")


@pytest.fixture(scope="module", autouse=True)
def no_workers_left() -> Iterator[None]:
    yield
    if workers.cache_info().currsize:
        gymnasium_adapter.close(workers())
        workers.cache_clear()


def make_env(adapter: str, monkeypatch: pytest.MonkeyPatch, num_envs: int = N) -> HostEnv:
    if adapter == "envpool":
        monkeypatch.setattr(envpool_adapter, "_envpool", scripted.envpool_module)
        return envpool_adapter.make("Scripted")
    if adapter.startswith("tensors"):
        return scripted.TensorHostEnv(
            SEED, None if adapter == "tensors alone" else 1, adapter == "tensors reset", adapter == "tensors on device"
        )
    if adapter == "workers":
        made = envs.make(workers())
        assert isinstance(made, HostEnv)
        made.episode_length = scripted.TIME_LIMIT
        return made
    made = envs.make(Scripted if adapter == "loop" else lambda: scripted.vector(AutoresetMode[adapter], num_envs))
    assert isinstance(made, HostEnv)
    return made


def start(env: HostEnv, config: Config = CONFIG, num_envs: int = N) -> HostVectorEnv:
    return env.start(resolve(env.spec(), config), num_envs)


def squashed(obs: Array) -> Array:
    """A policy, so that what is done does not depend on when: actions in [-1, 1] from observations ``[..., 4]``."""
    return np.sin(np.asarray(obs, np.float32)[..., :3].sum(-1, keepdims=True))


def in_units(obs: Array) -> float:
    low, high = BOUNDS
    return float(low + (squashed(obs)[..., 0] + 1) / 2 * (high - low))


class Row(NamedTuple):
    obs: Array
    next_obs: Array
    reward: Array
    terminated: Array
    truncated: Array
    valid: Array
    info: dict[str, Array]


def roll_out(env: HostVectorEnv, steps: int = T) -> Row:
    """Rows ``[T, N, ...]`` under `squashed`, from a reset."""
    obs = env.reset(SEED)
    rows = []
    for _ in range(steps):
        step = env.step(squashed(obs))
        rows.append(Row(obs, step.next_obs, step.reward, step.terminated, step.truncated, step.valid, step.info))
        obs = step.obs
    return jax.tree.map(lambda *x: np.stack(x), *rows)


def assert_steps_of_one_episode(rows: Any) -> None:
    """Every row that trains is one step of one episode, leaves ``[T, N, ...]``."""
    obs, next_obs = rows.obs[rows.valid], rows.next_obs[rows.valid]
    assert len(obs) > N
    np.testing.assert_array_equal(next_obs[:, :2], obs[:, :2])
    np.testing.assert_array_equal(next_obs[:, 2], obs[:, 2] + 1)


# ------------------------------------------------------------------------------------- the same transitions everywhere


def test_every_adapter_yields_the_transitions_of_the_script(env: HostEnv) -> None:
    rows = roll_out(start(env))
    for n in range(N):
        found = np.flatnonzero(rows.valid[:, n])
        expected = scripted.reference(SEED + n, in_units, len(found))
        assert sum(1 for _ in scripted.episodes(expected)) > 5
        for t, transition in zip(found, expected, strict=True):
            np.testing.assert_allclose(rows.obs[t, n], transition.obs, rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(rows.next_obs[t, n], transition.next_obs, rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(rows.reward[t, n], transition.reward, rtol=1e-6)
            flags = transition.terminated, transition.truncated
            if env.name.startswith("envpool"):  # it has only the time limit where both flags are up
                both = transition.terminated and rows.truncated[t, n]
                flags = (False, True) if both else flags
            assert (rows.terminated[t, n], rows.truncated[t, n]) == flags


def test_rows_spent_on_resets_train_nothing(env: HostEnv) -> None:
    rows = roll_out(start(env))
    ended = rows.terminated | rows.truncated
    spent = ~rows.valid
    np.testing.assert_array_equal(spent, rows.info["reset"])
    assert (rows.reward[spent] == 0.0).all()
    assert not ended[spent].any()


def test_only_next_step_autoreset_spends_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    for adapter in ADAPTERS:
        rows = roll_out(start(make_env(adapter, monkeypatch)))
        ended = (rows.terminated | rows.truncated)[:-1]
        assert (~rows.valid[1:] == (ended if adapter in ("NEXT_STEP", "workers", "envpool") else False)).all()


def value_of(obs: Array) -> Array:
    """A stand-in for the critic and the entropy at a state, so that a wrong successor gives a wrong target."""
    return np.cos(obs @ np.array([0.01, 0.7, 0.3, 0.1]))


def test_targets_match_a_scalar_reference(env: HostEnv) -> None:
    gamma, lam = 0.9, 0.8
    rows = roll_out(start(env))
    values = jnp.asarray(value_of(rows.next_obs))
    targets = returns.soft_lambda_returns(
        jnp.asarray(rows.reward),
        gamma * (1.0 - jnp.asarray(rows.terminated)),
        0.1 * values,
        values,
        returns.lambda_schedule(lam, jnp.asarray(rows.truncated), jnp.asarray(rows.valid)),
    )
    for n in range(N):
        found = np.flatnonzero(rows.valid[:, n])
        script = scripted.reference(SEED + n, in_units, len(found))
        if env.name.startswith("envpool"):
            script = [
                transition._replace(terminated=bool(rows.terminated[t, n]), truncated=bool(rows.truncated[t, n]))
                for t, transition in zip(found, script, strict=True)
            ]
        np.testing.assert_allclose(np.asarray(targets)[found, n], scalar_targets(script, gamma, lam), rtol=1e-5, atol=1e-5)


def scalar_targets(script: list[Transition], gamma: float, lam: float) -> list[float]:
    """``G = r + gamma (1 - terminated) (b + (1 - lam) V + lam G')``, with ``lam = 0`` at a cut and at the end."""
    found: list[float] = []
    following = 0.0
    for i, transition in reversed(list(enumerate(script))):
        value = float(value_of(transition.next_obs))
        cut = transition.truncated or i == len(script) - 1
        mix = value if cut else (1 - lam) * value + lam * following
        following = transition.reward + (0.0 if transition.terminated else gamma * (0.1 * value + mix))
        found.append(following)
    return found[::-1]


def test_a_collectors_rollout_is_what_happened(env: HostEnv) -> None:
    """Through the buffers of training, whose actions are the policy's samples: every row continues the one before it."""
    run = Run(env, dataclasses.replace(CONFIG, stagger_episodes=False), [7], None)
    run.start()
    rows = [jax.device_get(run.collector.collect(run.state, i).rows) for i in range(3)]
    rows = jax.tree.map(lambda *x: np.concatenate(x, axis=1)[0], *rows)
    run.collector.close()
    low, high = BOUNDS
    action = low + (np.tanh(rows.sample) + 1) / 2 * (high - low)
    valid, ended = rows.valid, rows.terminated | rows.truncated
    assert ended.sum() > N
    np.testing.assert_allclose(rows.next_obs[valid][:, 3], action[valid][:, 0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(rows.next_obs[valid][:, 2], rows.obs[valid][:, 2] + 1)
    goes_on = (valid & ~ended)[:-1]
    np.testing.assert_array_equal(rows.obs[1:][goes_on], rows.next_obs[:-1][goes_on])
    begins = (rows.obs[1:, :, 2] == 0) & valid[1:]
    reset_before = ended[:-1] if valid.all() else ~valid[:-1]
    np.testing.assert_array_equal(begins, reset_before & valid[1:])


def test_a_function_that_makes_a_vector_is_evaluated_with_as_many_as_it_has() -> None:
    def vector() -> Any:
        return gymnasium.vector.SyncVectorEnv([lambda: gymnasium.make("Pendulum-v1", max_episode_steps=5)] * 4)

    config = dataclasses.replace(CONFIG, num_envs=4, eval_episodes=2, episode_length=5, v_min=-100.0, v_max=0.0)
    run = Run(envs.make(vector), config, [7], None)
    run.start()
    evaluation = run.evaluate()
    run.collector.close()
    assert evaluation is not None
    assert evaluation.returns.shape == (1, 2)


def test_a_collector_cuts_its_training_alone() -> None:
    config = dataclasses.replace(CONFIG, episode_length=20, cut_probability=0.5)
    run = Run(envs.make(Endless), config, [7], None)  # pyright: ignore[reportArgumentType]
    run.start()
    rows = jax.device_get(run.collector.collect(run.state, 0).rows)
    evaluation = run.collector.evaluate(run.state, 2 * N, 0, None)
    run.collector.close()
    assert rows.truncated.mean() > 0.25
    assert evaluation is not None
    assert (evaluation.lengths == 20).all()


# ------------------------------------------------------------------------------------- evaluation


def test_evaluation_counts_first_episodes_alone(env: HostEnv) -> None:
    found, lengths, *_ = first_episodes(start(env), squashed, SEED)  # pyright: ignore[reportGeneralTypeIssues]
    for n in range(N):
        first = next(scripted.episodes(scripted.reference(SEED + n, in_units, 10)))
        assert lengths[n] == len(first)
        np.testing.assert_allclose(found[n], sum(transition.reward for transition in first), rtol=1e-5)


def test_an_evaluation_leaves_training_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = []
    for evaluates in (False, True):
        run = Run(make_env("loop", monkeypatch), CONFIG, [1, 2], None)
        run.start()
        run.collector.collect(run.state, 0)
        if evaluates:
            found = run.evaluate(7)
            assert found is not None
            assert found[0].shape == found[1].shape == (2, 7)
        rows.append(jax.device_get(run.collector.collect(run.state, 1).rows))
        run.collector.close()
    jax.tree.map(np.testing.assert_array_equal, *rows)


def test_an_evaluation_in_the_only_vector_begins_training_anew() -> None:
    run = Run(envs.make(scripted.vector(AutoresetMode.SAME_STEP, N)), CONFIG, [1], None)
    run.start()
    run.evaluate(N)
    rows = jax.device_get(run.collector.collect(run.state, 5).rows)
    assert (rows.obs[0, 0, :, 2] == 0).all()  # first observations
    with pytest.raises(ConfigError, match="train one seed"):
        Run(envs.make(scripted.vector(AutoresetMode.SAME_STEP, N)), CONFIG, [1, 2], None)
    with pytest.raises(ConfigError, match="a vector of 3 environments: set num_envs"):
        Run(envs.make(scripted.vector(AutoresetMode.SAME_STEP, 3)), CONFIG, [1], None).start()


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_a_vector_keeps_its_mode_when_its_class_gets_another_vector(mode: AutoresetMode) -> None:
    """Gymnasium writes the mode into the class's metadata, for all vectors of it."""
    vector = scripted.vector(mode, N)
    for other in AutoresetMode:
        scripted.vector(other, 1)
    assert gymnasium_adapter.autoreset_mode(vector) == mode
    assert gymnasium_adapter.autoreset_mode(gymnasium.wrappers.vector.RecordEpisodeStatistics(vector)) == mode
    assert_steps_of_one_episode(roll_out(start(envs.make(vector))))  # pyright: ignore[reportArgumentType]


def test_an_evaluation_leaves_no_reset_to_the_training_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gymnasium's workers without shared memory do not forget at a reset that they have one to make at their next step."""
    run = Run(make_env("workers", monkeypatch), dataclasses.replace(CONFIG, stagger_episodes=False), [1], None)
    run.start()
    found, ended = [], False
    for i in range(4):
        rows = jax.tree.map(lambda x: np.asarray(x)[0], run.collector.collect(run.state, i).rows)
        assert_steps_of_one_episode(rows)
        ended |= bool((rows.terminated | rows.truncated)[-1].any())
        found.append(run.evaluate(N))
    run.collector.close()
    assert ended  # or nothing was left to it
    for evaluation in found[1:]:  # of the same episodes, whatever was left to it
        jax.tree.map(np.testing.assert_array_equal, evaluation.lengths, found[0].lengths)


def test_a_seed_does_not_depend_on_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = []
    for seeds in ([4], [3, 4]):
        run = Run(make_env("loop", monkeypatch), CONFIG, seeds, None)
        run.start()
        rows.append(jax.tree.map(lambda x: np.asarray(x)[-1], run.collector.collect(run.state, 0).rows))
        run.collector.close()
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), *rows)


# ------------------------------------------------------------------------------------- time limits


class Endless(Scripted):
    """Its observation counts steps, and nothing ends it but a time limit."""

    _max_episode_steps = None  # pyright: ignore[reportAssignmentType]

    def step(self, action: Array) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, reward, *_ = super().step(action)
        return obs, reward, False, False, {}


def test_staggered_episodes_end_at_different_times_with_their_true_successors() -> None:
    env = start(envs.make(Endless), dataclasses.replace(CONFIG, episode_length=10))  # pyright: ignore[reportArgumentType]
    obs = env.reset(SEED, np.random.default_rng(1))
    ends: list[list[int]] = [[] for _ in range(N)]
    for t in range(40):
        step = env.step(squashed(obs))
        assert not step.terminated.any()
        np.testing.assert_array_equal(step.next_obs[:, 2], obs[:, 2] + 1)
        np.testing.assert_array_equal(step.obs[:, 2], np.where(step.truncated, 0, step.next_obs[:, 2]))
        for n in np.flatnonzero(step.truncated):
            assert step.info["episode_done"][n] == (step.info["episode_length"][n] == step.next_obs[n, 2])
            ends[n].append(t)
        obs = step.obs
    assert len({end[0] for end in ends}) > 1
    assert all(np.diff(end).tolist() == [10] * (len(end) - 1) for end in ends)


def test_episodes_that_are_cut_are_truncated_with_their_true_successors() -> None:
    env = start(envs.make(Endless), dataclasses.replace(CONFIG, episode_length=1000))  # pyright: ignore[reportArgumentType]
    seen = []
    for _ in range(2):  # the same seed cuts at the same steps
        obs, cuts = env.reset(SEED, cut=0.25), []
        for _ in range(200):
            step = env.step(squashed(obs))
            np.testing.assert_array_equal(step.next_obs[:, 2], obs[:, 2] + 1)
            np.testing.assert_array_equal(step.obs[:, 2], np.where(step.truncated, 0, step.next_obs[:, 2]))
            assert not step.terminated.any()
            cuts.append(step.truncated)
            obs = step.obs
        seen.append(np.array(cuts))
    np.testing.assert_array_equal(*seen)
    assert seen[0].mean() == pytest.approx(0.25, abs=0.06)
    env.reset(SEED)
    assert not any(env.step(squashed(env.obs)).truncated.any() for _ in range(50)), "an evaluation is not cut"


def test_a_time_limit_of_the_simulator_is_a_truncation() -> None:
    env = start(envs.make("gymnasium:Pendulum-v1"), dataclasses.replace(CONFIG, episode_length=4))  # pyright: ignore[reportArgumentType]
    obs = env.reset(0)
    for t in range(1, 9):
        step = env.step(np.ones((N, 1), np.float32))
        assert step.truncated.all() == (t % 4 == 0)
        assert not step.terminated.any()
        assert (step.obs != step.next_obs).any() == (t % 4 == 0)
        assert not np.array_equal(obs, step.obs)
        obs = step.obs


def test_a_fault_at_the_time_limit_is_no_ending(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Endless, "breaks", {(0, 3): "nan"})
    env = start(envs.make(Endless), dataclasses.replace(CONFIG, episode_length=3))  # pyright: ignore[reportArgumentType]
    env.reset(SEED)
    for _ in range(2):
        assert env.step(squashed(env.obs)).valid.all()
    step = env.step(squashed(env.obs))
    assert not step.valid.any()
    for flags in (step.terminated, step.truncated, step.info["episode_done"]):
        assert not flags.any()


def test_a_flag_that_is_not_finite_is_refused() -> None:
    class Odd(SyncVectorEnv):
        def step(self, actions: Any) -> Any:
            obs, reward, terminated, truncated, info = super().step(actions)
            return obs, reward, np.where(np.arange(N) == 3, np.nan, terminated), truncated, info

    made = envs.make(lambda: Odd([Scripted] * N, autoreset_mode=AutoresetMode.NEXT_STEP))
    with pytest.raises(SimulatorError, match="step returns a terminated that is not finite; it must be 0 or 1, or a bool"):
        roll_out(start(made))  # pyright: ignore[reportArgumentType]


# ------------------------------------------------------------------------------------- what goes wrong


def broken(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """Script 102, which is environment 2, breaks at the second step of some episode that lasts until then."""
    expected = scripted.reference(SEED + 2, in_units, 100)
    episode = next(int(e[0].obs[1]) for e in scripted.episodes(expected) if len(e) > 3)

    class Breaks(dict[tuple[int, int], str]):
        def get(self, key: Any, default: Any = None) -> Any:
            return how if key == (episode, 2) else default

    original = Scripted.step

    def step(self: Scripted, action: Array) -> Any:
        self.breaks = Breaks() if self.script.name == SEED + 2 else {}
        return original(self, action)

    monkeypatch.setattr(Scripted, "step", step)


@pytest.mark.parametrize("adapter", ["loop", "NEXT_STEP", "SAME_STEP", "DISABLED"])
@pytest.mark.parametrize("how", ["nan", "nan reward"])
def test_numbers_that_are_not_finite_are_contained(adapter: str, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch, how)
    rows = roll_out(start(make_env(adapter, monkeypatch)))
    assert all(np.isfinite(leaf).all() for leaf in (rows.obs, rows.next_obs, rows.reward))
    fault = ~rows.valid & ~rows.info["reset"]
    assert fault.sum() == 1
    t, n = np.argwhere(fault)[0]
    assert n == 2
    assert rows.reward[t, n] == 0.0
    assert not (rows.terminated | rows.truncated)[t, n]
    # That environment was reset: its next row is the first of a new episode.
    assert rows.obs[t, n, 2] == 1
    assert rows.obs[t + 1, n, 1] == rows.obs[t, n, 1] + 1
    assert rows.obs[t + 1, n, 2] == 0
    assert rows.valid[t + 1, n]


@pytest.mark.parametrize("shared", [True, False])
def test_numbers_that_are_not_finite_at_an_end_are_contained(shared: bool) -> None:
    """The environment is reset for them, and by its vector for the end."""
    vector = AsyncVectorEnv([scripted.Blind] * 2, shared_memory=shared, context="forkserver")
    made = envs.make(vector)
    try:
        config = dataclasses.replace(CONFIG, num_envs=2, episode_length=scripted.TIME_LIMIT)
        rows = roll_out(start(made, config, 2))  # pyright: ignore[reportArgumentType]
    finally:
        gymnasium_adapter.close(vector)
    assert (~rows.valid & ~rows.info["reset"]).sum() > 5
    assert_steps_of_one_episode(rows)


class Stubborn(SyncVectorEnv):
    """A vector environment that cannot reset single environments, as far as we know."""

    @property
    def unwrapped(self) -> Any:
        return object()


def test_an_environment_that_cannot_be_reset_is_left_out_until_it_recovers(monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch, "nan")
    made = envs.make(lambda: Stubborn([Scripted] * N, autoreset_mode=AutoresetMode.SAME_STEP))
    assert isinstance(made, HostEnv)
    rows = roll_out(start(made, dataclasses.replace(CONFIG, episode_length=scripted.TIME_LIMIT)))
    assert all(np.isfinite(leaf).all() for leaf in (rows.obs, rows.next_obs, rows.reward))
    (t, n), (t_next, n_next) = np.argwhere(~rows.valid)  # the bad row, and the one whose observation is a stand-in
    assert (n, n_next, t_next) == (2, 2, t + 1)
    np.testing.assert_array_equal(rows.obs[t + 1, n], rows.obs[t, n])
    counted = rows.info["episode_done"][:, n]
    first_end = np.flatnonzero((rows.terminated | rows.truncated)[t:, n])[0] + t
    assert not counted[first_end]  # the episode around it is not counted, as it was not seen whole


@pytest.mark.parametrize(
    ("adapter", "how", "message"),
    [
        ("loop", "raises", "ZeroDivisionError: the motor fell off"),
        ("NEXT_STEP", "raises", "ZeroDivisionError: the motor fell off"),
        ("loop", "exits", "SystemExit: 0"),
        ("NEXT_STEP", "exits", "SystemExit: 0"),
        ("loop", "short", r"observation has shape \[3\], not \[4\]"),
        ("NEXT_STEP", "short", r"observation has shape \[3\], not \[4\]"),
        ("SAME_STEP", "short", r"observation has shape \[3\], not \[4\]"),
        ("loop", "text", "observation is <U32 now"),
        ("NEXT_STEP", "text", "observation is <U32 now"),
        # Gymnasium's own vector environments cast such observations.
        ("loop", "integers", "observation is int64 now"),
    ],
)
def test_a_broken_environment_is_named(adapter: str, how: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch, how)
    env = start(make_env(adapter, monkeypatch))
    with pytest.raises(SimulatorError, match=rf"environment 2 at step \d+: {message}") as error:
        roll_out(env)
    assert "\n" not in str(error.value)


WRONG_NUMBERS = {
    "reward [1]": (0, lambda x: np.array([x]), "step returns reward with shape [1]; it must be a scalar"),
    "reward None": (0, lambda x: None, "step returns reward as NoneType; it must be a number, or a bool"),
    "reward text": (0, str, "step returns reward as str; it must be a number, or a bool"),
    "terminated [1]": (1, lambda x: np.array([x]), "step returns terminated with shape [1]; it must be a scalar"),
    "terminated None": (1, lambda x: None, "step returns terminated as NoneType; it must be a number, or a bool"),
    "truncated None": (2, lambda x: None, "step returns truncated as NoneType; it must be a number, or a bool"),
}


@pytest.mark.parametrize("num_envs", [1, N])
@pytest.mark.parametrize(("which", "change", "message"), WRONG_NUMBERS.values(), ids=WRONG_NUMBERS.keys())
def test_a_reward_or_flag_that_is_no_number_is_named(which: int, change: Any, message: str, num_envs: int) -> None:
    class Odd(Scripted):
        """The last environment, at its third step."""

        def step(self, action: Array) -> Any:
            obs, *row, info = super().step(action)
            self.steps = getattr(self, "steps", 0) + 1
            if self.script.name == SEED + num_envs - 1 and self.steps == 3:
                row[which] = change(row[which])
            return obs, *row, info

    with pytest.raises(SimulatorError) as error:
        roll_out(start(envs.make(Odd), num_envs=num_envs))  # pyright: ignore[reportArgumentType]
    assert str(error.value).endswith(f"Odd: environment {num_envs - 1} at step 3: {message}")


def test_workers_whose_observations_cannot_be_put_together_are_not_blamed_at_random() -> None:
    vector = AsyncVectorEnv([functools.partial(Worker, "short"), Scripted], shared_memory=False, context="forkserver")
    config = dataclasses.replace(CONFIG, num_envs=2, episode_length=scripted.TIME_LIMIT)
    try:
        with pytest.raises(SimulatorError, match=r"AsyncVectorEnv at step \d+: ValueError: all input arrays must have"):
            roll_out(start(envs.make(vector), config, 2))  # pyright: ignore[reportArgumentType]
    finally:
        gymnasium_adapter.close(vector)


def test_a_worker_that_is_killed_is_named() -> None:
    vector = AsyncVectorEnv([Scripted] * 3, context="forkserver")
    config = dataclasses.replace(CONFIG, num_envs=3, episode_length=scripted.TIME_LIMIT)
    env = start(envs.make(vector), config, 3)  # pyright: ignore[reportArgumentType]
    try:
        env.reset(SEED)
        pid = vector.processes[1].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(SimulatorError, match="environment 1 at step 1: RuntimeError: its worker process has ended"):
            env.step(np.zeros((3, 1)))
    finally:
        gymnasium_adapter.close(vector)


@pytest.mark.parametrize("error", [EOFError, ConnectionResetError])
def test_a_connection_of_an_environment_is_no_workers(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def step(self: Scripted, action: Array) -> Any:
        raise error("the robot has hung up")

    monkeypatch.setattr(Scripted, "step", step)
    with pytest.raises(SimulatorError, match=f"environment 0 at step 1: {error.__name__}: the robot has hung up"):
        roll_out(start(make_env("NEXT_STEP", monkeypatch)))


class StepsOn(SyncVectorEnv):
    """It keeps an end's flag up in the row after it."""

    before: Any = False

    def step(self, actions: Any) -> Any:
        obs, reward, terminated, truncated, info = super().step(actions)
        flags, self.before = terminated | self.before, terminated
        return obs, reward, flags, truncated, info


def test_an_end_in_the_row_of_a_reset_is_refused() -> None:
    env = start(envs.make(lambda: StepsOn([Scripted] * N)))  # pyright: ignore[reportArgumentType]
    message = r"environment \d at step \d+: an episode ended in the row after an end, which NEXT_STEP spends on the reset"
    with pytest.raises(SimulatorError, match=message):
        roll_out(env)


class OldGym(Scripted):
    def step(self, action: Array) -> Any:
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, reward, terminated or truncated, info


class NoStep(Scripted):
    def step(self, action: Array) -> Any:
        return None


class NoInfo(Scripted):
    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return super().reset(seed=seed)[0]


class MoreInfo(Scripted):
    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return *super().reset(seed=seed), {}


class NoSeed(Scripted):
    def reset(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().reset(seed=0)


@pytest.mark.parametrize("how", ["alone", "wrapped", "vector"])
@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (OldGym, "step must return (obs, reward, terminated, truncated, info), got 4 values: the API of the old gym"),
        (NoStep, "step must return (obs, reward, terminated, truncated, info), got nothing"),
        (NoInfo, "reset must return (obs, info), got one value"),
        (MoreInfo, "reset must return (obs, info), got 3 values"),
        (NoSeed, "reset must take seed and options, as in reset(self, *, seed=None, options=None)"),
    ],
)
def test_what_reset_and_step_return_and_take(cls: type[Scripted], message: str, how: str) -> None:
    if how != "alone" and cls not in (OldGym, MoreInfo, NoSeed):
        return  # Gymnasium's own code takes four numbers for (obs, info) and more, or cannot say what it got
    makers: dict[str, Any] = {
        "alone": cls,
        "wrapped": lambda: gymnasium.wrappers.TimeLimit(cls(), 9),
        "vector": lambda: SyncVectorEnv([cls] * N, autoreset_mode=AutoresetMode.NEXT_STEP),
    }
    with pytest.raises(SimulatorError) as error:
        roll_out(start(envs.make(makers[how])))  # pyright: ignore[reportArgumentType]
    place = "at step 1" if "step must" in message else "at its reset"
    said = str(error.value).replace("got more", "got 3 values")  # older versions of Python do not count
    assert said.endswith(f"environment 0 {place}: {message}")


WRONG_COLUMNS = {
    "reward [N, 1]": (1, lambda x: x[:, None], "reward with shape [{n}, 1]; it must be [{n}]"),
    "one reward": (1, np.sum, "reward with shape []; it must be [{n}]"),
    "reward None": (1, lambda x: [None] * len(x), "reward as object; it must be a number, or a bool"),
    "terminated [N, 1]": (2, lambda x: x[:, None], "terminated with shape [{n}, 1]; it must be [{n}]"),
    "terminated None": (2, lambda x: [None] * len(x), "terminated as object; it must be a number, or a bool"),
    "one truncated": (3, np.any, "truncated with shape []; it must be [{n}]"),
}


@pytest.mark.parametrize("num_envs", [1, N])
@pytest.mark.parametrize(("which", "change", "message"), WRONG_COLUMNS.values(), ids=WRONG_COLUMNS.keys())
def test_rewards_and_flags_of_a_vector_must_have_its_shape(which: int, change: Any, message: str, num_envs: int) -> None:
    class Odd(SyncVectorEnv):
        def step(self, actions: Any) -> Any:
            row = list(super().step(actions))
            row[which] = change(row[which])
            return tuple(row)

    made = envs.make(lambda: Odd([Scripted] * num_envs, autoreset_mode=AutoresetMode.NEXT_STEP))
    with pytest.raises(SimulatorError) as error:
        roll_out(start(made, num_envs=num_envs))  # pyright: ignore[reportArgumentType]
    assert str(error.value).endswith(f" at step 1: step returns {message.format(n=num_envs)}")


def test_plain_numbers_are_welcome() -> None:
    """What is a number is taken: integers, flags as numbers, arrays without axes."""

    class Plain(Scripted):
        def step(self, action: Array) -> Any:
            obs, reward, terminated, truncated, info = super().step(action)
            return obs, np.array(np.float32(reward)), int(terminated), np.bool_(truncated), info

    found, expected = (roll_out(start(envs.make(env))) for env in (Plain, Scripted))  # pyright: ignore[reportArgumentType]
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_first_observation_that_is_not_finite_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scripted, "reset", lambda self, seed=None, options=None: (np.full(4, np.nan), {}))
    with pytest.raises(SimulatorError, match="environment 0: an observation is not finite right after reset"):
        start(make_env("loop", monkeypatch)).reset(0)


def test_a_pool_that_steps_on_after_an_end_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    class StepsOn(scripted.ScriptedPool):
        def step(self, actions: Array) -> Any:
            self.ended[:] = False
            return super().step(actions)

    env = start(make_env("envpool", monkeypatch))
    monkeypatch.setattr(scripted, "ScriptedPool", StepsOn)
    with pytest.raises(SimulatorError, match=r"environment \d did not reset where its episode had ended"):
        roll_out(env)


# ------------------------------------------------------------------------------------- whole runs


def test_a_vector_that_cannot_reset_one_environment_says_that_it_is_not_cut() -> None:
    def vector() -> gymnasium.vector.VectorEnv:
        return gymnasium.make_vec("CartPole-v1", N, vectorization_mode="vector_entry_point")

    def told(vector: Any = vector, **changes: Any) -> list[str]:
        run = Run(envs.make(vector), dataclasses.replace(CONFIG, num_envs=N, **changes), [0], None)
        run.start()
        run.collector.close()
        return [note.partition(": ")[2] for note in run.notes]

    def endless() -> gymnasium.vector.VectorEnv:
        return Stubborn([Endless] * N, autoreset_mode=AutoresetMode.SAME_STEP)

    begins = "its environments cannot be reset one by one, so episodes are not "
    assert told(cut_probability=0.1, stagger_episodes=True) == [f"{begins}cut nor staggered"]
    assert told(cut_probability=0.1, stagger_episodes=False) == [f"{begins}cut"]
    assert told(cut_probability=0.0, stagger_episodes=False) == []
    calm: dict[str, Any] = {"cut_probability": 0.0, "stagger_episodes": False}
    assert told(endless, **calm, episode_length=6) == [f"{begins}ended after episode_length"]


def test_every_step_of_a_rollout_has_noise_of_its_own() -> None:
    run = Run(envs.make(Scripted), CONFIG, [0], None)
    run.start()
    rows = run.collector.collect(run.state, 0).rows
    run.collector.close()
    policy = run.learner.policy(jax.tree.map(lambda x: x[0], run.state))(rows.obs[0])
    noise = (np.asarray(rows.sample[0]) - np.asarray(policy.mean)) / np.exp(np.asarray(policy.log_std))
    assert len(np.unique(noise.round(4))) == CONFIG.batch_size


class Resumed(NamedTuple):
    """A run that an environment has ended in its fourth iteration, and that was then resumed."""

    error: str
    notes: list[str]
    run: Run


class Listener:
    def __init__(self) -> None:
        self.notes: list[str] = []

    def begin(self, description: dict[str, Any]) -> None: ...

    def write(self, event: Any) -> None:
        if event.kind == "warning":
            self.notes.append(event.text)

    def close(self) -> None: ...


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> Resumed:
    directory = tmp_path_factory.mktemp("resumed") / "run"
    config = dataclasses.replace(CONFIG, total_steps=6 * CONFIG.batch_size)
    original = Scripted.step
    steps = 0

    def step(self: Scripted, action: Array) -> Any:
        nonlocal steps
        steps += 1
        if steps == 4 * CONFIG.batch_size:
            raise OSError("the cable is loose")
        return original(self, action)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scripted, "step", step)
        with pytest.raises(SimulatorError) as error:
            reppo.train(Scripted, config, out=directory)
    listener = Listener()
    run = reppo.resume(directory, env=Scripted, sinks=[listener])
    return Resumed(str(error.value), listener.notes, run)


def test_an_environment_that_exits_ends_its_run_as_any_exception_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Scripted, "breaks", {(5, 1): "exits"})
    config = dataclasses.replace(CONFIG, total_steps=1000 * CONFIG.batch_size, num_evals=1)
    with pytest.raises(SimulatorError, match=r"step \d+: SystemExit: 0 \(.*scripted.py:\d+, in step\)"):
        reppo.train(Scripted, config, out=tmp_path / "run")


def test_where_nothing_has_been_learned_yet_nothing_is_said_to_be_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Loosens(Listener):
        """Once the untrained policy has been evaluated."""

        def write(self, event: Any) -> None:
            if event.kind == "evaluations":
                monkeypatch.setattr(Scripted, "breaks", {(1, 1): "raises"})

    config = dataclasses.replace(CONFIG, num_evals=1)
    with pytest.raises(SimulatorError, match="the motor fell off") as error:
        reppo.train(Scripted, config, out=tmp_path / "run", sinks=[Loosens()])
    assert "saved" not in str(error.value)
    monkeypatch.undo()
    assert reppo.resume(tmp_path / "run", env=Scripted).finished  # from the beginning


def test_a_run_that_an_environment_ends_can_be_resumed(resumed: Resumed) -> None:
    assert re.search(
        r"environment \d at step .*the cable is loose.*; saved at \d+ steps, `reppo resume .*` goes on", resumed.error
    )
    assert "\n" not in resumed.error
    assert resumed.run.env_steps == resumed.run.config.total_steps
    directory = resumed.run.directory
    assert directory is not None
    assert len((directory / "metrics.csv").read_text().splitlines()) == 1 + 6
    assert resumed.run.history[-1]["train/invalid_rows"] == 0


def test_a_resumed_run_says_that_its_episodes_begin_anew(resumed: Resumed) -> None:
    assert any("a simulator on the host cannot be saved, so its episodes begin anew" in note for note in resumed.notes)


def test_a_saved_policy_is_evaluated(resumed: Resumed) -> None:
    directory = resumed.run.directory
    assert directory is not None
    policy = reppo.load_policy(directory)
    found, again, other = (evaluate_policy(policy, envs.make(Scripted), episodes=7, seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(found["returns"], again["returns"])
    assert not np.array_equal(found["returns"], other["returns"])
    assert found["returns"].shape == found["lengths"].shape == (7,)
    assert (found["lengths"] >= 1).all()
    assert (found["lengths"] <= 6).all()


def test_rows_spent_on_resets_are_no_accident(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of all rows here, but the run goes on: the limit is for numbers that are not finite."""
    run = reppo.train(make_env("NEXT_STEP", monkeypatch), CONFIG)
    for row in run.history:
        assert row["train/reset_rows"] > 0.1 * CONFIG.batch_size
        assert row["train/invalid_rows"] == 0


# ------------------------------------------------------------------------------------- worker processes


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until_dead(pids: list[int], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and any(map(alive, pids)):
        time.sleep(0.05)
    assert not any(map(alive, pids))


class Worker(Scripted):
    """Breaks as told in processes of its own, where no patch of a test reaches."""

    def __init__(self, how: str):
        self.breaks = {(1, 1): how}


@pytest.mark.parametrize("how", ["returns", "raises", "dies"])
def test_workers_end_with_the_run(how: str) -> None:
    pids: list[int] = []

    def make() -> AsyncVectorEnv:
        # Forked, they would inherit the locks of JAX's threads.
        env = AsyncVectorEnv([functools.partial(Worker, how)] * 2, context="forkserver")
        pids.extend(process.pid for process in env.processes if process.pid is not None)
        return env

    message = {"raises": "the motor fell off", "dies": "its worker process has ended"}
    run = Run(envs.make(make), dataclasses.replace(CONFIG, num_envs=2, episode_length=scripted.TIME_LIMIT), [0], None)
    try:
        run.start()
        run.evaluate(2)
        if how == "returns":
            run.collector.collect(run.state, 0)
        else:
            with pytest.raises(SimulatorError, match=r"environment \d at step \d+: .*" + message[how]):
                run.collector.collect(run.state, 0)
    finally:
        run.collector.close()
    assert len(set(pids)) == 3 * 2  # to see what it is, for training, for evaluation
    wait_until_dead(pids)


#: A user's file beside two others, one of which it needs only once an episode begins.
LATHE = """
from gymnasium.vector import AsyncVectorEnv
from scripted import Scripted

import {name}_tools

class Lathe(Scripted):
    def reset(self, **options):
        from {name}_work import PIECE
        obs, info = super().reset(**options)
        obs[3] = {name}_tools.CHISEL + PIECE
        return obs, info

def workers():
    return AsyncVectorEnv([Lathe] * 2, context="forkserver")
"""


@pytest.mark.parametrize("maker", ["Lathe", "workers"])
@pytest.mark.parametrize("ending", [".py", ""], ids=["file", "module"])
def test_an_environment_finds_the_files_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, maker: str
) -> None:
    """Also late, in processes of their own, and from elsewhere."""
    name = f"lathe_{'file' if ending else 'module'}_{maker}"  # of its own, as a module is imported once
    (tmp_path / f"{name}.py").write_text(LATHE.format(name=name))
    (tmp_path / f"{name}_tools.py").write_text("CHISEL = 40")
    (tmp_path / f"{name}_work.py").write_text("PIECE = 2")
    path = list(sys.path)
    monkeypatch.setattr(sys, "path", list(path))
    monkeypatch.chdir(tmp_path)
    made = envs.make(f"{name}{ending}:{maker}")
    assert sys.path == [*path, str(tmp_path)]  # last, so that it hides nothing
    monkeypatch.chdir("/")
    env = start(made, dataclasses.replace(CONFIG, episode_length=scripted.TIME_LIMIT), 2)  # pyright: ignore[reportArgumentType]
    try:
        assert env.reset(SEED)[:, 3].tolist() == [42, 42]
    finally:
        env.close()


def test_a_module_that_is_not_there_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "halves.py").write_text("import no_such_tools")
    path = list(sys.path)
    for name, message in [
        ("no_such_lathe:Lathe", "no suite"),
        ("halves:Lathe", "halves could not be imported: No module named 'no_such_tools'"),
        ("halves.py:Lathe", "halves.py could not be imported: ModuleNotFoundError: No module named 'no_such_tools'"),
    ]:
        with pytest.raises(ConfigError, match=message):
            envs.make(name)
        assert sys.path == path


def test_a_run_closes_its_environments_however_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Scripted] = []
    closed: list[Scripted] = []
    monkeypatch.setattr(Scripted, "__init__", lambda self: opened.append(self))
    monkeypatch.setattr(Scripted, "close", lambda self: closed.append(self))
    config = dataclasses.replace(CONFIG, total_steps=CONFIG.batch_size)
    reppo.train(Scripted, config)
    assert len(opened) == 1 + 2 * N
    assert {id(env) for env in opened} == {id(env) for env in closed}
    monkeypatch.setattr(Scripted, "breaks", {(1, 1): "raises"})
    with pytest.raises(SimulatorError):
        reppo.train(Scripted, dataclasses.replace(config, total_steps=10_000))
    assert {id(env) for env in opened} == {id(env) for env in closed}


WORKERS = """
import sys, time
sys.path[:0] = [{tests!r}]
import scripted
from gymnasium.vector import AsyncVectorEnv
env = AsyncVectorEnv([scripted.Scripted] * 3)
env.reset(seed=0)
print(*[process.pid for process in env.processes], flush=True)
while True:
    env.step(env.action_space.sample())
"""


def test_workers_notice_that_their_run_was_killed(tmp_path: Path) -> None:
    """They read from a pipe whose other end is closed by the kernel; ours keep no copy of it open."""
    command = [sys.executable, "-c", WORKERS.format(tests=str(Path(__file__).parent))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        pids = [int(word) for word in process.stdout.readline().split()]
        assert len(pids) == 3
        os.kill(process.pid, signal.SIGKILL)
    wait_until_dead(pids)


# ------------------------------------------------------------------------------------- spaces


def test_observations_are_flattened_in_a_stated_order() -> None:
    space = spaces.Dict(
        {
            "b": spaces.Box(-1, 1, (2, 2)),
            "a": spaces.Tuple([spaces.Box(0, 9, (2,), np.int64), spaces.Box(-1, 1, ())]),
            "privileged_state": spaces.Dict({"z": spaces.Box(-1, 1, (1,)), "y": spaces.Box(-1, 1, (1,))}),
        }
    )
    read = Observations("test", space)
    assert {key: leaf.shape for key, leaf in read.spec.items()} == {
        "a": (3,),
        "b": (4,),
        "privileged_state/y": (1,),
        "privileged_state/z": (1,),
    }
    one = {
        "b": np.arange(4.0).reshape(2, 2),
        "a": (np.array([7, 8]), 9.0),
        "privileged_state": {"z": np.array([10.0]), "y": np.array([11.0])},
    }
    out = read.empty(2)
    read.write(one, out, 1)
    assert out["a"][1].tolist() == [7, 8, 9]
    assert out["b"][1].tolist() == [0, 1, 2, 3]
    assert (out["privileged_state/z"][1], out["privileged_state/y"][1]) == (10, 11)
    batch = jax.tree.map(lambda x: np.stack([x, x]), one, is_leaf=lambda x: not isinstance(x, dict | tuple))
    for key, leaf in Observations("test", space).read(batch, 2).items():
        np.testing.assert_array_equal(leaf[0], out[key][1])
        assert leaf.dtype == np.float32


def test_a_tuple_is_one_vector() -> None:
    read = Observations("test", spaces.Tuple([spaces.Box(-1, 1, (2,)), spaces.Box(-1, 1, (1,))]))
    assert read.read((np.ones((3, 2)), np.zeros((3, 1))), 3).tolist() == [[1, 1, 0]] * 3


def test_observations_are_copies() -> None:
    """A simulator may write its next observation into the same array."""
    read = Observations("test", spaces.Box(-1, 1, (2,)))
    buffer = np.zeros((3, 2), np.float32)
    found = read.read(buffer, 3)
    buffer += 1
    assert (found == 0).all()


def test_choices_are_one_hot_and_a_dict_in_a_tuple_goes_by_its_keys() -> None:
    box = spaces.Box(-9, 9, (2,))
    inner = spaces.Dict({"b": spaces.Discrete(2), "a": box})
    space = spaces.Tuple([spaces.Discrete(3, start=-1), inner, box])
    read = Observations("test", space)
    assert read.spec.shape == (9,)

    def observation(choice: Any, b: Any, a: Any, last: Any) -> Any:
        return choice, {"b": b, "a": np.asarray(a, float)}, np.asarray(last, float)

    out = read.empty(2)
    read.write(observation(-1, 1, [3, 4], [5, 6]), out, 0)
    read.write(observation(np.int64(1), 0, [7, 8], [9, 0]), out, 1)
    expected = [[1, 0, 0, 3, 4, 0, 1, 5, 6], [0, 0, 1, 7, 8, 1, 0, 9, 0]]
    np.testing.assert_array_equal(out, expected)
    batch = observation(np.array([-1, 1]), np.array([1, 0]), [[3, 4], [7, 8]], [[5, 6], [9, 0]])
    np.testing.assert_array_equal(read.read(batch, 2), expected)
    with pytest.raises(WrongObservation, match=r"observation\[0\] is 2, not in -1 to 1"):
        read.write(observation(2, 0, [0, 0], [0, 0]), out, 0)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (spaces.MultiDiscrete([4, 2]), "is a MultiDiscrete; the networks read Box and Discrete"),
        (spaces.Dict({"x": spaces.MultiBinary(3)}), r"observation\['x'\] is a MultiBinary"),
        (spaces.Tuple([spaces.Dict({"x": spaces.Text(3)})]), r"observation\[0\]\['x'\] is a Text"),
        (spaces.Box(-1, 1, (0,)), "test: its observation space is empty"),
        (spaces.Dict({}), "test: its observation space is empty"),
        (
            spaces.Dict({"a": spaces.Dict({"b": spaces.Box(-1, 1, (1,))}), "a/b": spaces.Box(-1, 1, (2,))}),
            "has two entries that are 'a/b' where the keys of nested dicts are joined by '/': rename one",
        ),
    ],
)
def test_other_observations_are_refused(space: gymnasium.Space[Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Observations("test", space)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (spaces.MultiDiscrete([2, 3]), "MultiDiscrete actions; REPPO acts in a Box"),
        (spaces.Dict({}), "Dict actions"),
        (spaces.Box(0, 9, (2,), np.int64), "int64"),
    ],
)
def test_other_actions_are_refused(space: gymnasium.Space[Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_actions("test", space)


class Unbounded(Scripted):
    action_space = spaces.Box(np.array([-np.inf, -1.0]), np.array([np.inf, 1.0]), dtype=np.float64)


def test_unbounded_actions_need_a_choice() -> None:
    made = envs.make(Unbounded)
    with pytest.raises(ConfigError, match=r"action 0 is bounded by \[-inf, inf\]; choose bounds with action_low"):
        resolve(made.spec(), CONFIG)
    spec = resolve(made.spec(), dataclasses.replace(CONFIG, action_low=-3.0, action_high=5.0))
    assert spec.action_low.tolist() == [-3.0, -1.0]
    assert spec.action_high.tolist() == [5.0, 1.0]
    with pytest.raises(ConfigError, match="bounds its own actions"):
        resolve(envs.make(Scripted).spec(), dataclasses.replace(CONFIG, action_low=-3.0, action_high=5.0))
    with pytest.raises(ConfigError, match="belong together"):
        dataclasses.replace(CONFIG, action_low=-3.0).validate()


def test_bounds_without_anything_between_them_are_refused() -> None:
    class Stuck(Scripted):
        action_space = spaces.Box(0.0, 0.0, (1,))

    with pytest.raises(ConfigError, match=r"Stuck: action 0 is bounded by \[0, 0\]; each action_low must be below"):
        reppo.train(Stuck, CONFIG)


def test_actions_of_any_shape_reach_the_simulator_within_its_bounds() -> None:
    seen: list[Array] = []

    class Matrix(Scripted):
        action_space = spaces.Box(
            np.array([[-1.0, 0.0], [2.0, -4.0]]), np.array([[1.0, 10.0], [3.0, 4.0]]), dtype=np.float32
        )

        def step(self, action: Array) -> Any:
            seen.append(action)
            return super().step(action[0])

    env = start(envs.make(Matrix))  # pyright: ignore[reportArgumentType]
    env.reset(0)
    for value in (-1.0, 0.0, 1.0):
        env.step(np.full((N, 4), value, np.float32))
    low, middle, high = seen[0], seen[N], seen[2 * N]
    assert low.dtype == np.float32
    assert low.tolist() == [[-1, 0], [2, -4]]
    assert middle.tolist() == [[0, 5], [2.5, 0]]
    assert high.tolist() == [[1, 10], [3, 4]]


# ------------------------------------------------------------------------------------- names


def test_names_of_environments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, message in [
        ("gymnasium:HalfCheeta-v5", "did you mean HalfCheetah-v5"),
        ("envpool:CheetaRun-v1", "did you mean CheetahRun-v1"),
        ("envpool:Pomg-v5", "did you mean Pong-v5"),
    ]:
        with pytest.raises(ConfigError, match=message):
            envs.make(name)
    (tmp_path / "some_module_of_mine.py").write_text("from scripted import Scripted\nnumber = 3\n")
    monkeypatch.chdir(tmp_path)
    made = envs.make("some_module_of_mine:Scripted")
    assert made.spec().name == "some_module_of_mine:Scripted"
    by_file = envs.make("some_module_of_mine.py:Scripted")
    assert by_file.spec().name == f"{tmp_path / 'some_module_of_mine.py'}:Scripted"
    with pytest.raises(ConfigError, match="defines no 'Scriptet'; did you mean Scripted"):
        envs.make("some_module_of_mine:Scriptet")
    with pytest.raises(ConfigError, match="is a int; name a class"):
        envs.make("some_module_of_mine:number")
    with pytest.raises(ConfigError, match="no suite 'playgrond'"):
        envs.make("playgrond:CheetahRun")
    with pytest.raises(ConfigError, match="pass its class, or a function"):
        envs.make(Scripted())


def test_an_environment_must_say_what_it_observes_and_takes() -> None:
    class Bare(gymnasium.Env):
        pass

    class Half(gymnasium.Env):
        observation_space = Scripted.observation_space

    with pytest.raises(ConfigError, match=r"^Bare has no observation_space: set it in the class or in __init__"):
        reppo.train(Bare, CONFIG)
    with pytest.raises(ConfigError, match=r"^Half has no action_space: set it"):
        envs.make(Half)


def test_an_environment_without_a_time_limit_needs_one() -> None:
    class Timeless(Scripted):
        _max_episode_steps = None

    with pytest.raises(ConfigError, match="has no time limit: set --episode-length"):
        resolve(envs.make(Timeless).spec(), CONFIG)


def test_a_time_limit_that_nobody_would_keep_is_refused() -> None:
    made = envs.make(lambda: Stubborn([lambda: TimeLimit(Scripted(), 20)] * N, autoreset_mode=AutoresetMode.SAME_STEP))
    made.episode_length = 20  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ConfigError, match="its time limit is 20 and cannot be changed"):
        start(made, dataclasses.replace(CONFIG, episode_length=10))  # pyright: ignore[reportArgumentType]


def test_a_time_limit_cannot_be_longer_than_what_the_environment_keeps() -> None:
    def limited() -> gymnasium.Env:
        return TimeLimit(Endless(), 6)

    for make in (limited, lambda: SyncVectorEnv([limited] * N, autoreset_mode=AutoresetMode.DISABLED)):
        with pytest.raises(ConfigError, match="its time limit is 6 and cannot be lengthened from outside"):
            start(envs.make(make), dataclasses.replace(CONFIG, episode_length=12))  # pyright: ignore[reportArgumentType]
        start(envs.make(make), dataclasses.replace(CONFIG, episode_length=3)).close()  # pyright: ignore[reportArgumentType]


def test_a_vector_environment_must_say_how_it_resets() -> None:
    vector = scripted.vector(AutoresetMode.SAME_STEP, 2)
    vector.metadata = {}
    with pytest.raises(ConfigError, match="does not declare how it resets"):
        envs.make(vector)
