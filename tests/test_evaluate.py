"""Evaluation of saved policies: the first episode of every environment, greedily, and nothing else."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import TINY

from reppo import evaluate
from reppo.cli import policies
from reppo.envs.autoreset import AutoReset
from reppo.envs.base import Env, Transition
from reppo.errors import ConfigError
from reppo.evaluate import FirstEpisodes, evaluate_policy
from reppo.export import SavedPolicy
from reppo.keys import Keys, Stream
from reppo.run import Run


class Fuse(Env):
    """Burns for 1 to 5 steps, at random, which it shows; the reward of a step is the action."""

    action_size = 1
    action_low, action_high = 0.0, 10.0
    episode_length = 1000

    def reset(self, key: jax.Array) -> tuple[Any, Any]:
        left = jax.random.randint(key, (1,), 1, 6).astype(jnp.float32)
        return left, left

    def step(self, state: Any, action: jax.Array, key: jax.Array) -> tuple[Any, Transition]:
        left = state - 1
        return left, Transition(left, action[0], left[0] == 0)


class Faulty(Fuse):
    """The fuses of five steps return a NaN at the third."""

    def reset(self, key: jax.Array) -> tuple[Any, Any]:
        left, _ = super().reset(key)
        return jnp.concatenate([left, left]), left

    def step(self, state: Any, action: jax.Array, key: jax.Array) -> tuple[Any, Transition]:
        left, length = state - jnp.array([1.0, 0.0])
        reward = jnp.where((length == 5) & (left == 2), jnp.nan, action[0])
        return jnp.stack([left, length]), Transition(left[None], reward, left == 0)


def test_a_saved_policys_episodes_begin_where_no_run_of_that_seed_began(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    first = AutoReset.first

    def seen(env: AutoReset, key: jax.Array) -> Any:
        drawn.append(key)
        return first(env, key)

    monkeypatch.setattr(AutoReset, "first", seen)
    monkeypatch.setattr(evaluate.compiling, "compiled", lambda function, *args, **options: function)  # so that keys are seen
    evaluate_policy(constant_policy(0.5), Fuse(), episodes=3 * evaluate.MAX_PARALLEL, seed=0)
    run = Keys([0])
    training = [run(Stream.FIRST, iteration)[0] for iteration in range(5)]
    evaluation = [run(Stream.EVALUATION, 0, batch, 0)[0] for batch in range(5)]
    keys = [tuple(jax.random.key_data(key).tolist()) for key in (*drawn, *training, *evaluation)]
    assert len(set(keys)) == len(keys) == 3 + 10


def constant_policy(squashed: float, obs_size: int = 1, log_std: float = 3.0) -> SavedPolicy:
    """A policy whose greedy action is the same everywhere. Its samples are nowhere near."""
    meta = {"format": "reppo-policy-1", "env": "fuse", "obs_keys": [], "obs_sizes": [obs_size], "layers": 1, "min_std": 0.0}
    arrays = {
        "mean": np.zeros(obs_size),
        "var": np.ones(obs_size),
        "weight0": np.zeros((obs_size, 2)),
        "bias0": np.array([np.arctanh(squashed), log_std]),
        "action_low": np.array([0.0]),
        "action_high": np.array([10.0]),
    }
    described = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    return SavedPolicy({**{name: array.astype(np.float32) for name, array in arrays.items()}, "meta": described})


def results(env: Env | None = None, episodes: int = 60, seed: int = 0, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    found = evaluate_policy(constant_policy(0.5), env or Fuse(), episodes=episodes, seed=seed, **options)
    return found["returns"], found["lengths"]


def test_only_the_first_episode_of_each_environment_counts() -> None:
    # While the longest fuse burns, the shortest could burn five times.
    returns, lengths = results()
    assert set(lengths) == {1, 2, 3, 4, 5}
    # The greedy action, 0.5 of [-1, 1], is 7.5 of [0, 10].
    np.testing.assert_allclose(returns, 7.5 * lengths, rtol=1e-5)
    assert np.bincount(lengths)[1:].min() >= 4, "60 fuses, about 12 of each"


def test_what_comes_after_the_first_episode_of_an_environment_is_not_of_it() -> None:
    # One solves its task and lets go, one does so at its last step, one only in its next episode, one breaks before it does.
    episodes = FirstEpisodes((4,))
    none = np.zeros(4, bool)
    steps = [
        ([1, 0, 0, 0], [False, False, True, False], [False, False, False, True]),
        ([0, 1, 1, 1], [True, True, False, False], none),
        ([1, 0, 1, 1], [True, True, True, True], [True, True, True, True]),
    ]
    for i, (success, over, broken) in enumerate(steps):
        episodes.add(np.full(4, 10.0**i), np.array(over), np.array(broken), np.array(success, float))
    found = episodes.result()
    assert not episodes.running.any()
    np.testing.assert_array_equal(found.success_once, [1, 1, 0, 0])
    np.testing.assert_array_equal(found.success_at_end, [0, 1, 0, 0])
    np.testing.assert_array_equal(found.returns, [11, 11, 1, 1])
    np.testing.assert_array_equal(found.lengths, [2, 2, 1, 1])
    np.testing.assert_array_equal(found.broken, [False, False, False, True])


def test_the_time_limit_ends_an_episode() -> None:
    returns, lengths = results(episode_length=3)
    assert set(lengths) == {1, 2, 3}
    np.testing.assert_allclose(returns, 7.5 * lengths, rtol=1e-5)


def test_a_step_that_is_no_transition_ends_the_episode_with_the_return_so_far() -> None:
    returns, lengths = results(Faulty())
    _, sound = results()
    np.testing.assert_array_equal(lengths, np.where(sound == 5, 3, sound))
    np.testing.assert_allclose(returns, 7.5 * np.where(sound == 5, 2, sound), rtol=1e-5)


def test_episodes_that_broke_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    sound = evaluate_policy(constant_policy(0.5), Fuse(), episodes=60, seed=0)
    broken = evaluate_policy(constant_policy(0.5), Faulty(), episodes=60, seed=0)
    assert "broken" not in sound
    np.testing.assert_array_equal(broken["broken"], sound["lengths"] == 5)
    number = broken["broken"].sum()
    policies.print_evaluation("fuse", 0, {"policy.npz": broken})
    said = capsys.readouterr().out
    assert "over 60 greedy episodes of 1 to 4 steps, 2 in the mean" in said
    assert f"{number} ended early, in numbers that are not finite" in said
    both = policies.evaluation_json("fuse", 0, {"a": sound, "b": broken})
    assert both["broken"] == number / 120


class Precise(Fuse):
    """Notes the precision that its products are traced with."""

    seen: set[Any]

    def reset(self, key: jax.Array) -> tuple[Any, Any]:
        self.seen.add(jax.config.jax_default_matmul_precision)  # pyright: ignore[reportAttributeAccessIssue]
        return super().reset(key)

    def step(self, state: Any, action: jax.Array, key: jax.Array) -> tuple[Any, Transition]:
        self.seen.add(jax.config.jax_default_matmul_precision)  # pyright: ignore[reportAttributeAccessIssue]
        return super().step(state, action, key)


def test_products_are_in_float32() -> None:
    env = Precise()
    env.seen = set()
    evaluate_policy(constant_policy(0.5), env, episodes=2, seed=0)
    assert env.seen == {"highest"}


def test_a_run_evaluates_in_its_own_precision() -> None:
    env = Precise()
    env.seen = set()
    run = Run(env, dataclasses.replace(TINY, precision="high", v_min=0.0, v_max=50.0), [0], None)
    run.start()
    env.seen.clear()
    run.evaluate(episodes=2)
    assert env.seen == {"high"}


def test_the_seed_decides() -> None:
    np.testing.assert_array_equal(results(seed=1), results(seed=1))
    assert (results(seed=1)[1] != results(seed=2)[1]).any()


def test_more_episodes_than_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "MAX_PARALLEL", 8)
    returns, lengths = results(episodes=20)
    assert returns.shape == lengths.shape == (20,)
    np.testing.assert_allclose(returns, 7.5 * lengths, rtol=1e-5)
    assert list(lengths[:8]) != list(lengths[8:16]), "every batch has its own first states"


def test_a_policy_of_another_environment_is_refused() -> None:
    says = "the policy maps 3 observations to 1 actions, but Fuse has 1 and 1"
    with pytest.raises(ConfigError, match=says):
        evaluate_policy(constant_policy(0.5, obs_size=3), Fuse(), episodes=1, seed=0)
