"""Rollouts: rows in the order of time, each with its own observation, action, reward and successor."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import TINY, as_gaussian, assert_identical

from reppo.envs.autoreset import AutoReset
from reppo.envs.probes import TargetReach
from reppo.envs.spec import resolve
from reppo.reppo import TrainState, act, make_learner
from reppo.rollout import Fault, first_fault, rollout
from reppo.types import Rollout

T, N, LIMIT = 12, 4, 5
LEARNER = make_learner(TINY, resolve(TargetReach().spec(), TINY))
KEY = jax.random.key(1)


@functools.cache
def learner_state() -> TrainState:
    return jax.jit(LEARNER.init)(jax.random.key(0))


@functools.cache
def rolled(seed: int = 1) -> tuple[Any, Rollout, dict[str, Any], Fault, Any]:
    """A rollout from the beginning of ``N`` episodes, on the host, and the state that it began in."""
    env = AutoReset(TargetReach(), N, LIMIT)
    start = env.begin(env.first(jax.random.key(2)))
    run = jax.jit(lambda policy, state, key: rollout(env, LEARNER, policy, state, key, T))
    return *jax.device_get(run(learner_state().policy, start, jax.random.key(seed))), start


def test_every_row_leads_to_the_next() -> None:
    end, rows, _, _, start = rolled()
    assert rows.obs.shape == rows.next_obs.shape == (T, N, 2)
    assert rows.sample.shape == (T, N, 1)
    assert rows.reward.shape == rows.terminated.shape == rows.truncated.shape == rows.valid.shape == (T, N)
    np.testing.assert_array_equal(rows.obs[0], start.obs)
    ended = rows.terminated | rows.truncated
    np.testing.assert_array_equal(ended, np.broadcast_to((np.arange(1, T + 1) % LIMIT == 0)[:, None], (T, N)))
    for t in range(T):
        follows = np.where(ended[t][:, None], start.first.obs, rows.next_obs[t])
        np.testing.assert_array_equal(rows.obs[t + 1] if t + 1 < T else end.obs, follows)


def test_every_row_holds_the_action_that_was_taken() -> None:
    # TargetReach pushes its point by a fifth of the action, which is the tanh of what the row holds.
    _, rows, _, _, _ = rolled()
    position = np.clip(rows.obs[..., 0] + 0.2 * np.tanh(rows.sample[..., 0]), -1, 1)
    np.testing.assert_allclose(rows.next_obs[..., 0], position, atol=1e-6)
    np.testing.assert_array_equal(rows.next_obs[..., 1], rows.obs[..., 1])
    np.testing.assert_allclose(rows.reward, np.exp(-4 * (position - rows.obs[..., 1]) ** 2), atol=1e-6)
    assert rows.valid.all()


def test_actions_are_samples_each_with_its_own_noise() -> None:
    _, rows, _, _, _ = rolled()
    policy = as_gaussian(learner_state().policy(jnp.asarray(rows.obs)))
    noise = (rows.sample - np.asarray(policy.mean)) / np.exp(np.asarray(policy.log_std))
    assert len(np.unique(noise.round(4))) == T * N
    assert abs(noise.mean()) < 4 / (T * N) ** 0.5
    assert noise.std() == pytest.approx(1, abs=4 / (2 * T * N) ** 0.5)


def test_statistics_of_episodes() -> None:
    _, rows, info, _, _ = rolled()
    for episode in range(T // LIMIT):
        last = (episode + 1) * LIMIT - 1
        assert info["episode_done"][last].all()
        assert (info["episode_length"][last] == LIMIT).all()
        total = rows.reward[episode * LIMIT : last + 1].sum(0)
        np.testing.assert_allclose(info["episode_return"][last], total, rtol=1e-5)
    assert info["episode_done"].sum() == N * (T // LIMIT)


def test_the_key_decides() -> None:
    rolled.cache_clear()
    once = rolled()
    rolled.cache_clear()
    assert_identical(once, rolled())
    assert (rolled(2)[1].sample != once[1].sample).all()


def test_greedy_actions_are_the_mode_and_need_no_key() -> None:
    policy = learner_state().policy
    obs = jnp.asarray(rolled()[1].obs[0])
    expected = as_gaussian(policy(obs))
    action, sample = act(policy, obs, KEY, True)
    np.testing.assert_array_equal(sample, expected.mean)
    np.testing.assert_allclose(action, expected.mode(), rtol=1e-6)
    np.testing.assert_array_equal(action, act(policy, obs, jax.random.key(9), True)[0])
    sampled, u = act(policy, obs, KEY, False)
    np.testing.assert_allclose(sampled, np.tanh(u), rtol=1e-6)
    assert (sampled != action).all()


def test_without_a_fault_none_is_found() -> None:
    assert not rolled()[3].found


def test_the_first_fault_is_kept() -> None:
    nothing = Fault(jnp.array(False), jnp.array(0), jnp.zeros(2), jnp.zeros(1), jax.random.key(0))
    states, actions = jnp.arange(6.0).reshape(3, 2), jnp.array([[10.0], [11.0], [12.0]])

    def after(fault: Fault, *valid: bool, key: int = 5) -> Fault:
        return first_fault(fault, jnp.array(valid), states, actions, jax.random.key(key))

    assert not after(nothing, True, True, True).found
    found = after(nothing, True, False, False)
    assert found.found
    assert found.index == 1
    assert found.state.tolist() == [2, 3]
    assert found.action.tolist() == [11]
    assert_identical(found.key, jax.random.key(5))
    # Later ones are left out, and so are steps without one.
    assert_identical(after(found, False, True, True, key=6), found)
    assert_identical(after(found, True, True, True, key=6), found)
