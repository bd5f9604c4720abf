"""The three estimators agree in expectation, on a quadratic Q of which quadrature knows the exact gradient.

The gradient of E[alpha log pi(a) - Q(a)] is averaged over many independent estimates; their spread gives the standard
error, and the tests allow four of them. They also require it to be small, or they would pass on noise.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import log_prob_reference, quadrature

from reppo.distributions import TanhGaussian
from reppo.estimators import ESTIMATORS, RATIO_CLIP, Behaviour, Estimator, Q, pathwise, score_gae, score_q

KEY = jax.random.key(0)
ALPHA = 0.2
MEAN, LOG_STD = 0.4, -0.5
ESTIMATES = 40_000  #: independent ones, as rows of one batch
MAX_ERROR = 0.02  #: of the standard error relative to the gradient's length


def q(action: jax.Array) -> jax.Array:
    """``1 - 2 (a - 0.8)^2`` summed over one action dimension, plus an offset that a baseline must cancel."""
    return jnp.sum(1.0 - 2.0 * (action - 0.8) ** 2, axis=-1) + 3.0


def exact_gradient() -> np.ndarray:
    """d/d(mean, log_std) of E[alpha log pi - Q] by central differences of a Gauss-Hermite quadrature, float64."""
    nodes, weights = quadrature()

    def objective(mean: float, log_std: float) -> float:
        std = np.exp(log_std)
        u = mean + std * nodes
        action = np.tanh(u)
        return float(weights @ (ALPHA * log_prob_reference(u, np.asarray(mean), std) - (4.0 - 2.0 * (action - 0.8) ** 2)))

    h = 1e-4
    return np.array([
        (objective(MEAN + h, LOG_STD) - objective(MEAN - h, LOG_STD)) / (2 * h),
        (objective(MEAN, LOG_STD + h) - objective(MEAN, LOG_STD - h)) / (2 * h),
    ])  # fmt: skip


def policy(rows: int = ESTIMATES) -> TanhGaussian:
    return TanhGaussian(jnp.full((rows, 1), MEAN), jnp.full((rows, 1), LOG_STD))


def behaviour(key: jax.Array, rows: int = ESTIMATES) -> Behaviour:
    """The rollout policy is the current one; its advantages are exact up to a constant."""
    u = policy(rows).sample(key)
    log_prob = policy(rows).log_prob(u)
    return Behaviour(u, log_prob, q(jnp.tanh(u)) - ALPHA * log_prob - 3.0)


@functools.partial(jax.jit, static_argnums=(0, 1, 4, 5))
def gradient(
    estimator: Estimator, q: Q, key: jax.Array, key_behaviour: jax.Array, num_samples: int = 4, rows: int = 64
) -> TanhGaussian:
    """Every row has parameters of its own, so the gradient of the sum is every row's estimate."""
    taken = behaviour(key_behaviour, rows)
    return jax.grad(lambda p: jnp.sum(estimator(p, q, jnp.array(ALPHA), taken, key, num_samples)))(policy(rows))


@functools.cache
def estimates(name: str, num_samples: int = 4, seed: int = 0) -> np.ndarray:
    """Independent estimates of the gradient in (mean, log_std), ``[ESTIMATES, 2]``."""
    key, key_behaviour = jax.random.split(jax.random.key(seed))
    grads = gradient(ESTIMATORS[name], q, key, key_behaviour, num_samples, ESTIMATES)
    return np.concatenate([grads.mean, grads.log_std], axis=1).astype(np.float64)


@pytest.mark.parametrize("name", list(ESTIMATORS))
def test_every_estimator_is_unbiased(name: str) -> None:
    rows, exact = estimates(name), exact_gradient()
    mean, standard_error = rows.mean(0), rows.std(0) / len(rows) ** 0.5
    assert (standard_error < MAX_ERROR * np.linalg.norm(exact)).all(), "too noisy to tell anything"
    assert (np.abs(mean - exact) < 4 * standard_error).all(), f"{mean} is not {exact} within {standard_error}"


def test_the_pathwise_estimate_is_the_least_noisy() -> None:
    spread = {name: float(np.linalg.norm(estimates(name, num_samples=2).std(0))) for name in ("pathwise", "score_q")}
    assert spread["pathwise"] < spread["score_q"]


def test_more_samples_make_score_q_less_noisy() -> None:
    few, many = (estimates("score_q", num_samples=s).std(0) for s in (2, 16))
    assert (many < few / 2).all()


def test_score_q_needs_no_gradient_of_q() -> None:
    keys = jax.random.split(KEY)
    a, b = gradient(score_q, q, *keys), gradient(score_q, lambda action: jax.lax.stop_gradient(q(action)), *keys)
    np.testing.assert_array_equal(a.mean, b.mean)
    np.testing.assert_array_equal(a.log_std, b.log_std)


def test_a_constant_added_to_q_does_not_move_score_q() -> None:
    # The leave-one-out baseline cancels it in every single estimate, not only on average.
    keys = jax.random.split(KEY)
    a, b = gradient(score_q, q, *keys), gradient(score_q, lambda action: q(action) + 50.0, *keys)
    np.testing.assert_allclose(a.mean, b.mean, atol=1e-4)
    np.testing.assert_allclose(a.log_std, b.log_std, atol=1e-4)


def test_the_pathwise_gradient_goes_through_the_action() -> None:
    # With Q = 1000 a the entropy is nothing beside it: the loss is -1000 tanh(u), its gradient in the mean
    # -1000 (1 - tanh(u)^2).
    keys = jax.random.split(KEY)
    u = policy(64).sample(keys[0])
    slope = gradient(pathwise, lambda action: 1000.0 * action[..., 0], *keys).mean
    np.testing.assert_allclose(slope, -1000 * (1 - np.tanh(u) ** 2), atol=1.0)


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "moves"),
    [
        (1.0, 2.0, -2.0, True),  # no step yet: -ratio * advantage
        (1.5, 2.0, -2.4, False),  # 1.5 > 1.2 and still wanted: clipped, -(1.2 * 2)
        (0.5, 2.0, -1.0, True),  # moved the wrong way: not clipped, so it comes back
        (0.5, -2.0, 1.6, False),  # 0.5 < 0.8 and still unwanted: clipped, -(0.8 * -2)
        (1.5, -2.0, 3.0, True),
    ],
)
def test_score_gae_clips_the_ratio(ratio: float, advantage: float, value: float, moves: bool) -> None:
    assert RATIO_CLIP == 0.2
    p, u = policy(1), jnp.array([[0.1]])
    rows = Behaviour(u, p.log_prob(u) - jnp.log(ratio), jnp.array([advantage]))

    @jax.jit
    @jax.value_and_grad
    def surrogate(p: TanhGaussian, rows: Behaviour) -> jax.Array:
        return score_gae(p, q, jnp.array(ALPHA), rows, KEY, 1)[0]

    found, slope = surrogate(p, rows)
    np.testing.assert_allclose(found, value, rtol=1e-5)
    assert (slope.mean[0, 0] != 0) == moves
