"""Discrete actions, from the distribution to a trained and exported policy, by numbers worked out by hand.

Four actions with probabilities 1/2, 1/4, 1/8 and 1/8 have an entropy of 1.75 bits.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import equinox as eqx
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from helpers import TINY, Array, assert_identical
from scipy.special import logsumexp, softmax

import reppo
from reppo import envs, export, normalizer
from reppo.config import Config
from reppo.distributions import Categorical, pick, sampled_kl
from reppo.envs.probes import Choice
from reppo.envs.spec import EnvSpec, resolve
from reppo.errors import ConfigError
from reppo.estimators import ESTIMATORS, Behaviour
from reppo.evaluate import evaluate_policy
from reppo.host_collector import HostCollector
from reppo.nets import Actor, CriticOutput, DiscreteCritic
from reppo.reppo import policy_kl, soft_value, target_entropy
from reppo.run import Run

LOG_2 = np.log(2.0)
PROBS = np.array([0.5, 0.25, 0.125, 0.125])
KEY = jax.random.key(0)


def categorical(probs: Any = PROBS, shift: float = 0.0) -> Categorical:
    return Categorical(jnp.log(jnp.asarray(probs, jnp.float32)) + shift)


# ------------------------------------------------------------------------------------------- the distribution


@pytest.mark.parametrize("shift", [0.0, 30.0, -1000.0])
def test_a_categorical_by_hand(shift: float) -> None:
    # A constant added to the logits changes nothing.
    policy = categorical(shift=shift)
    np.testing.assert_allclose(policy.log_prob(jnp.arange(4)), [-LOG_2, -2 * LOG_2, -3 * LOG_2, -3 * LOG_2], atol=1e-4)
    np.testing.assert_allclose(policy.entropy(KEY), 1.75 * LOG_2, rtol=1e-4)
    assert int(policy.greedy()) == int(policy.mode()) == 0
    np.testing.assert_allclose(policy.diagnostics()["greedy_prob"], 0.5, rtol=1e-4)


def test_divergences_by_hand() -> None:
    uniform = categorical(np.full(4, 0.25))
    # sum p log(p / 0.25) = log 4 - H = 0.25 log 2; backwards: sum 0.25 log(0.25 / p) = (-1 + 0 + 1 + 1) / 4 log 2.
    np.testing.assert_allclose(categorical().kl(uniform), 0.25 * LOG_2, rtol=1e-5)
    np.testing.assert_allclose(uniform.kl(categorical()), 0.25 * LOG_2, rtol=1e-5)
    np.testing.assert_allclose(categorical().kl(categorical(shift=7.0)), 0.0, atol=1e-6)
    tilted = categorical([0.7, 0.1, 0.1, 0.1])
    exact = float(np.sum(PROBS * np.log(PROBS / np.array([0.7, 0.1, 0.1, 0.1]))))
    np.testing.assert_allclose(categorical().kl(tilted), exact, rtol=1e-5)
    np.testing.assert_allclose(sampled_kl(categorical(), tilted, KEY, 100_000), exact, atol=0.01)


def test_the_sampled_kl_from_the_new_policy_still_teaches() -> None:
    # Its draws have no gradient, and the mean of the gradient of log new(a) over them is zero.
    config = Config(kl_estimator="sampled", kl_direction="reverse", kl_samples=1)

    def pull(shift: jax.Array) -> jax.Array:
        return policy_kl(categorical(), Categorical(jnp.log(jnp.asarray(PROBS)) + shift), config, KEY)

    def exact(shift: jax.Array) -> jax.Array:
        return Categorical(jnp.log(jnp.asarray(PROBS)) + shift).kl(categorical())

    at = jnp.array([0.5, 0.0, -0.5, 0.2])
    np.testing.assert_allclose(jax.grad(pull)(at), jax.grad(exact)(at), rtol=1e-5)
    assert jnp.abs(jax.grad(pull)(at)).max() > 0.01


def test_an_expectation_is_over_every_action_and_needs_no_sample() -> None:
    policy = categorical([PROBS, PROBS[::-1]])
    nodes = policy.quadrature(KEY, 1)
    assert nodes.sample.shape == nodes.log_prob.shape == (4, 2)
    values = jnp.array([1.0, 2.0, 3.0, 4.0])[nodes.sample]
    # 0.5 + 0.5 + 0.375 + 0.5, and 0.125 + 0.25 + 0.75 + 2.
    np.testing.assert_allclose(nodes.expectation(values), [1.875, 3.125], rtol=1e-6)
    other = policy.quadrature(jax.random.key(1), 9)
    np.testing.assert_array_equal(other.sample, nodes.sample)


def test_actions_are_drawn_by_their_probabilities() -> None:
    drawn = np.asarray(categorical().sample(KEY, (40_000,)))
    assert drawn.dtype == np.int32
    # Four standard errors of a frequency at most: 4 * 0.5 / 200.
    np.testing.assert_allclose(np.bincount(drawn, minlength=4) / 40_000, PROBS, atol=0.01)


def test_pick_broadcasts_and_its_gradient_is_one_at_what_was_picked() -> None:
    values = jnp.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(pick(values, jnp.array([2, 0])), [2, 3])
    np.testing.assert_array_equal(pick(values, jnp.array([[2, 0], [1, 1], [0, 2]])), [[2, 3], [1, 4], [0, 5]])
    slope = jax.grad(lambda v: jnp.sum(pick(v, jnp.array([2, 0]))))(values)
    np.testing.assert_array_equal(slope, [[0, 0, 1], [1, 0, 0]])


# ------------------------------------------------------------------------------------------- the policy's gradient

ALPHA = 0.3
Q = np.array([1.0, -0.5, 2.0, 0.0])


def exact_gradient() -> Array:
    """d/d logits of E[alpha log pi - Q]: ``pi_a (c_a - E c)`` with the cost ``c = alpha log pi - Q``; the gradient of the
    log itself has mean zero."""
    cost = ALPHA * np.log(PROBS) - Q
    return PROBS * (cost - PROBS @ cost)


@functools.partial(jax.jit, static_argnums=(0, 1))
def gradients(name: str, rows: int, key: jax.Array) -> jax.Array:
    """Every row's estimate, ``[rows, A]``."""
    key_behaviour, key = jax.random.split(key)
    policy = Categorical(jnp.broadcast_to(categorical().logits, (rows, 4)))
    taken = policy.sample(key_behaviour)
    log_prob = policy.log_prob(taken)
    behaviour = Behaviour(taken, log_prob, jnp.asarray(Q)[taken] - ALPHA * log_prob - 3.0)

    def surrogate(policy: Categorical) -> jax.Array:
        q = lambda action: jnp.asarray(Q)[action]  # noqa: E731
        return jnp.sum(ESTIMATORS[name](policy, q, jnp.array(ALPHA), behaviour, key, 4))

    return jax.grad(surrogate)(policy).logits


def test_the_gradient_is_exact_at_every_state() -> None:
    found = gradients("pathwise", 3, KEY)
    np.testing.assert_allclose(found, np.broadcast_to(exact_gradient(), (3, 4)), rtol=1e-5)


@pytest.mark.parametrize("name", ["score_q", "score_gae"])
def test_the_other_estimators_agree_with_it_on_average(name: str) -> None:
    rows = np.asarray(gradients(name, 40_000, KEY), np.float64)
    standard_error = rows.std(0) / 200
    assert (standard_error < 0.05).all(), "too noisy to tell anything"
    assert (np.abs(rows.mean(0) - exact_gradient()) < 4 * standard_error).all()


# ------------------------------------------------------------------------------------------- the critic

OBS = jnp.asarray(np.random.default_rng(0).normal(size=(7, 5)), jnp.float32)
ACTIONS = jnp.array([0, 1, 2, 2, 1, 0, 1])
EVERY = jnp.arange(3)[:, None]  #: every action, at each of the states


@jax.jit
def evaluate(c: DiscreteCritic, action: jax.Array) -> CriticOutput:
    return c.evaluate(OBS, action)


@functools.cache
def critic(num_bins: int = 21) -> DiscreteCritic:
    fresh = jax.jit(lambda: DiscreteCritic(5, 3, 16, "rms", num_bins, -5.0, 5.0, key=KEY))()
    return eqx.tree_at(lambda c: c.head.output.weight, fresh, 30.0 * fresh.head.output.weight)


@pytest.mark.parametrize("num_bins", [21, 1])
def test_the_critic_has_a_value_for_each_action(num_bins: int) -> None:
    c = critic(num_bins)
    every = evaluate(c, EVERY).value
    assert every.shape == (3, 7)
    output = evaluate(c, ACTIONS)
    assert output.logits.shape == (7, num_bins)
    assert output.embedding.shape == output.next_embedding.shape == (7, 16)
    np.testing.assert_allclose(output.value, np.asarray(every)[ACTIONS, np.arange(7)], rtol=1e-5)
    np.testing.assert_allclose(c.value_of_logits(output.logits), output.value, rtol=1e-4, atol=1e-5)
    assert np.ptp(every, axis=0).min() > 0.01, "actions differ"


def test_the_critics_first_values_are_near_zero() -> None:
    fresh = jax.jit(lambda: DiscreteCritic(5, 3, 16, "rms", 21, -5.0, 5.0, key=KEY))()
    assert np.abs(evaluate(fresh, EVERY).value).max() < 0.25  # half a bin


def test_an_action_trains_its_own_values_alone() -> None:
    slope = jax.jit(jax.grad(lambda c: jnp.sum(c.evaluate(OBS, jnp.full(7, 1)).logits[:, 0])))(critic())
    bias = np.asarray(slope.head.output.bias).reshape(3, 21)
    assert bias[1, 0] == 7
    assert np.count_nonzero(bias) == 1


def test_predictions_depend_on_the_action_and_embeddings_do_not() -> None:
    one, other = (evaluate(critic(), jnp.full(7, a)) for a in (0, 2))
    np.testing.assert_array_equal(one.embedding, other.embedding)
    assert (np.asarray(one.reward) != np.asarray(other.reward)).all()
    assert (np.asarray(one.next_embedding) != np.asarray(other.next_embedding)).any(axis=1).all()


def test_soft_values_are_exact() -> None:
    policy = Categorical(jnp.asarray(np.random.default_rng(1).normal(size=(7, 3)), jnp.float32))
    found = jax.jit(lambda policy: soft_value(policy, critic(), OBS, KEY, 1))(policy)
    probs = softmax(np.asarray(policy.logits, np.float64), axis=-1)
    every = np.asarray(evaluate(critic(), EVERY).value).T
    np.testing.assert_allclose(found.value, np.sum(probs * every, -1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.entropy, -np.sum(probs * np.log(probs), -1), rtol=1e-4)
    np.testing.assert_allclose(found.embedding, evaluate(critic(), ACTIONS).embedding, atol=1e-5)


# ------------------------------------------------------------------------------------------- a learner

GAMMA, TEMPERATURE, REWARDS = 0.9, 0.4, np.array([1.0, 0.5, 0.0])

CHOICE = Config(
    total_steps=100 * 64 * 8,
    num_envs=64,
    num_steps=8,
    num_minibatches=4,
    num_epochs=2,
    gamma=GAMMA,
    actor_width=32,
    critic_width=32,
    num_bins=81,
    actor_output_scale=0.01,
    initial_alpha=TEMPERATURE,
    learn_alpha=False,
    learning_rate=3e-3,
    num_evals=1,
    eval_episodes=4,
)


@pytest.fixture(scope="module")
def chosen(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run on `Choice`, with a fixed temperature."""
    return reppo.train("probe:Choice", CHOICE, out=tmp_path_factory.mktemp("choice") / "run")


def test_the_learner_finds_the_soft_values(chosen: Run) -> None:
    """At the second state the best policy is the softmax of the rewards over the temperature. At the first, every action
    is worth the soft value of the second: the log-sum-exp."""
    state = jax.tree.map(lambda x: x[0], chosen.state)
    obs = normalizer.normalize(state.policy.normalizer, jnp.array([[0.0], [1.0]]))
    values = np.asarray(jax.jit(lambda critic: critic(obs, EVERY))(state.critic)).T
    np.testing.assert_allclose(values[0], GAMMA * TEMPERATURE * logsumexp(REWARDS / TEMPERATURE), atol=0.02)
    np.testing.assert_allclose(values[1], REWARDS, atol=0.02)
    policy = state.policy(jnp.array([[0.0], [1.0]]))
    np.testing.assert_allclose(jnp.exp(policy.log_probs[0]), 1 / 3, atol=0.03)
    np.testing.assert_allclose(jnp.exp(policy.log_probs[1]), softmax(REWARDS / TEMPERATURE), atol=0.03)


def test_the_greedy_policy_is_evaluated(chosen: Run) -> None:
    np.testing.assert_array_equal(chosen.returns, np.ones((1, 4)))


def test_metrics_are_those_of_discrete_actions(chosen: Run) -> None:
    row = chosen.history[-1]
    assert 1 / 3 < row["actor/greedy_prob"] < 1
    assert "actor/std" not in row
    assert row["actor/entropy"] < np.log(3)


def test_the_exported_policy_is_the_policy(chosen: Run) -> None:
    assert chosen.directory is not None
    saved = reppo.load_policy(chosen.directory)
    assert (saved.discrete, saved.action_size, saved.obs_size) == (True, 3, 1)
    obs = np.array([[0.0], [1.0]], np.float32)
    expected = chosen.policy()(jnp.asarray(obs))
    np.testing.assert_allclose(saved.logits(obs), expected.logits, atol=1e-5)
    np.testing.assert_array_equal(saved(obs), expected.greedy())
    assert int(saved(obs[1])) == 0
    drawn = saved.sample(np.repeat(obs[1:], 20_000, 0), np.random.default_rng(0))
    frequencies = np.bincount(drawn, minlength=3) / 20_000
    np.testing.assert_allclose(frequencies, np.exp(np.asarray(expected.log_probs[1])), atol=0.015)


def test_a_saved_policy_is_evaluated_where_it_belongs(chosen: Run) -> None:
    assert chosen.directory is not None
    saved = reppo.load_policy(chosen.directory)
    np.testing.assert_array_equal(evaluate_policy(saved, Choice(), episodes=3, seed=0)["returns"], np.ones(3))
    with pytest.raises(ConfigError, match="1 observations to 3 discrete actions, but ConstantReward has 1 and 1 actions"):
        evaluate_policy(saved, envs.probes.ConstantReward(), episodes=1, seed=0)  # pyright: ignore


def test_a_checkpoint_brings_the_learner_back(chosen: Run) -> None:
    assert chosen.directory is not None
    assert_identical(reppo.resume(chosen.directory).state, chosen.state)


def spec_of(env: str) -> EnvSpec:
    return resolve(envs.make(env).spec(), Config())


def test_target_entropies() -> None:
    assert target_entropy(Config(), spec_of("probe:Choice")) == pytest.approx(0.5 * np.log(3))
    changed = Config(target_entropy_discrete=0.1, target_entropy_per_action=7.0)
    assert target_entropy(changed, spec_of("probe:Choice")) == pytest.approx(0.1 * np.log(3))
    assert target_entropy(Config(), spec_of("probe:TargetReach")) == -0.5
    with pytest.raises(ConfigError, match="target_entropy_discrete must be between 0 and 1"):
        Config(target_entropy_discrete=1.5).validate()


def test_the_first_policy_is_uniform_where_its_scale_is_small() -> None:
    actor = jax.jit(lambda: Actor(1, 3, 16, 3, "rms", discrete=True, output_scale=0.0, key=KEY))()
    np.testing.assert_allclose(jnp.exp(actor(jnp.ones((2, 1))).log_prob(jnp.array([0, 2]))), 1 / 3, rtol=1e-6)


# ------------------------------------------------------------------------------------------- environments on the host


class Counting(gymnasium.Env):
    """Three actions, which are called -1, 0 and 1. The reward is the action that was received."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Discrete(3, start=-1)  # pyright: ignore[reportAssignmentType]
    _max_episode_steps = 10

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action)
        return np.ones(2, np.float32), float(action), False, False, {}


HOST = dataclasses.replace(TINY, v_min=-10.0, v_max=10.0, episode_length=None)


def test_the_environment_and_the_user_see_its_own_integers(tmp_path: Path) -> None:
    run = Run(envs.make(Counting), HOST, [0], None)
    run.start()
    assert isinstance(run.collector, HostCollector)
    rows = jax.device_get(run.collector.collect(run.state, 0).rows)
    run.collector.close()
    assert rows.sample.dtype == np.int32
    assert rows.sample.shape == (1, TINY.num_steps, TINY.num_envs)
    np.testing.assert_array_equal(rows.reward, rows.sample - 1)
    assert set(np.unique(rows.sample)) == {0, 1, 2}

    export.save_policy(tmp_path / "policy.npz", jax.device_get(run.policy()), run.spec)
    saved = reppo.load_policy(tmp_path)
    drawn = saved.sample(np.zeros((500, 2), np.float32), np.random.default_rng(0))
    assert set(np.unique(drawn)) == {-1, 0, 1}
    returns = evaluate_policy(saved, envs.make(Counting), episodes=2, seed=0)["returns"]
    np.testing.assert_array_equal(returns, int(saved(np.zeros(2))) + 9 * int(saved(np.ones(2))))


@pytest.mark.parametrize("env", ["gymnasium:CartPole-v1", "envpool:CartPole-v1", "gymnax:CartPole-v1"])
def test_cart_poles_are_one_task(env: str) -> None:
    spec = spec_of(env)
    assert (spec.discrete, spec.action_size, spec.time_limit) == (True, 2, 500)
    assert spec.obs_size(()) == 4
    assert spec.value_range == (-20.0, 150.0)


def test_discrete_actions_have_no_bounds_to_set() -> None:
    with pytest.raises(ConfigError, match="has discrete actions; action_low and action_high are for actions without bounds"):
        resolve(Choice().spec(), Config(action_low=-1.0, action_high=1.0))


@pytest.mark.parametrize("space", [spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(4), spaces.Tuple([spaces.Discrete(2)])])
def test_other_actions_are_refused(space: Any) -> None:
    other = type("Other", (Counting,), {"action_space": space})
    with pytest.raises(ConfigError, match=f"has {type(space).__name__} actions; REPPO acts in a Box"):
        envs.make(other)
