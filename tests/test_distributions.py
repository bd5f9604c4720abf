"""The tanh-Gaussian: the reference's numbers, numerical integration, tails, divergences, entropies."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import GOLDEN, entropy, log_prob_reference
from hypothesis import given
from hypothesis import strategies as st

from reppo.distributions import TanhGaussian, sampled_kl

LOG_2PI = math.log(2 * math.pi)


def gaussian(mean: float, std: float) -> TanhGaussian:
    """One action dimension."""
    return TanhGaussian(jnp.array([mean]), jnp.log(jnp.array([std])))


def golden_policy(dtype: jnp.dtype | type = jnp.float32) -> TanhGaussian:
    return TanhGaussian(*(jnp.asarray(GOLDEN[f"tanh_gaussian/{name}"], dtype) for name in ("mean", "log_std")))


def test_log_prob_matches_the_reference_in_float32() -> None:
    u = jnp.asarray(GOLDEN["tanh_gaussian/pre_tanh"], jnp.float32)
    np.testing.assert_allclose(golden_policy().log_prob(u), GOLDEN["tanh_gaussian/log_prob"], atol=1e-5)


def test_log_prob_and_kl_match_the_reference_in_float64() -> None:
    with jax.enable_x64(True):
        old = golden_policy(jnp.float64)
        u = jnp.asarray(GOLDEN["tanh_gaussian/pre_tanh"])
        np.testing.assert_allclose(old.log_prob(u), GOLDEN["tanh_gaussian/log_prob"], atol=1e-9)
        new = TanhGaussian(jnp.asarray(GOLDEN["kl/mean_new"]), jnp.asarray(GOLDEN["kl/log_std_new"]))
        kl = np.asarray(TanhGaussian(old.mean[:16], old.log_std[:16]).kl(new))
    # The reference is a Monte-Carlo estimate with its own standard error.
    assert (np.abs(kl - GOLDEN["kl/old_to_new"]) < 4 * GOLDEN["kl/standard_error"]).all()


def test_log_prob_by_hand() -> None:
    # mean 0, std 1, u = 0: the Gaussian's -0.5 log(2 pi) = -0.91894, and tanh has slope 1 there.
    np.testing.assert_allclose(gaussian(0.0, 1.0).log_prob(jnp.zeros(1)), -0.91894, atol=1e-5)
    # u = 1: -0.5 - 0.91894 - log(1 - tanh(1)^2) = -1.41894 - log(0.41997) = -1.41894 + 0.86756 = -0.55138.
    np.testing.assert_allclose(gaussian(0.0, 1.0).log_prob(jnp.ones(1)), -0.55138, atol=1e-5)
    # Two independent dimensions add up.
    two = TanhGaussian(jnp.zeros(2), jnp.zeros(2))
    np.testing.assert_allclose(two.log_prob(jnp.array([0.0, 1.0])), -0.91894 - 0.55138, atol=1e-5)


@given(st.floats(-1.5, 1.5), st.floats(0.3, 1.5))
def test_the_density_integrates_to_one_over_actions(mean: float, std: float) -> None:
    # Over actions, not over u: it is the Jacobian that is on trial. Substituting a = tanh(10 s) with the midpoint rule
    # would cancel it; equal steps in a do not.
    edges = np.linspace(-1, 1, 40_001)
    a = (edges[1:] + edges[:-1]) / 2
    with jax.enable_x64(True):
        policy = TanhGaussian(jnp.array([mean]), jnp.array([math.log(std)]))
        log_prob = policy.log_prob(jnp.arctanh(jnp.asarray(a))[:, None])
        total = float(jnp.sum(jnp.exp(log_prob)) * (edges[1] - edges[0]))
    # Densities may be large within half a step of the ends; with these parameters that mass is small.
    assert total == pytest.approx(1.0, abs=5e-3)


@pytest.mark.parametrize("u", [-20.0, 20.0, -200.0, 200.0])
def test_saturated_samples_have_exact_densities_and_gradients(u: float) -> None:
    # 1 - tanh(u)^2 = 4 exp(-2|u|) (1 + O(exp(-2|u|))), so log pi = -(u^2 + log 2 pi)/2 - 2 log 2 + 2 |u|, although
    # tanh(20) is 1 in float32 and log(1 - 1) is not a number.
    def log_prob(u: jax.Array) -> jax.Array:
        return gaussian(0.0, 1.0).log_prob(u[None])

    expected = -0.5 * (u**2 + LOG_2PI) - 2 * math.log(2) + 2 * abs(u)
    np.testing.assert_allclose(log_prob(jnp.array(u)), expected, rtol=1e-6)
    # Its slope is -u + 2 tanh(u).
    np.testing.assert_allclose(jax.grad(log_prob)(jnp.array(u)), -u + 2 * math.copysign(1, u), rtol=1e-6)


def test_samples_have_the_right_moments_and_gradients() -> None:
    policy = TanhGaussian(jnp.array([0.5, -1.0]), jnp.log(jnp.array([0.2, 2.0])))
    u = policy.sample(jax.random.key(0), (20_000,))
    assert u.shape == (20_000, 2)
    np.testing.assert_allclose(u.mean(0), policy.mean, atol=4 * 2.0 / 20_000**0.5)
    np.testing.assert_allclose(u.std(0), [0.2, 2.0], rtol=4 / (2 * 20_000) ** 0.5)
    # u = mean + std * z: slope 1 in the mean, and std * z = u - mean in log std.
    key = jax.random.key(1)
    slope = jax.jacobian(lambda p: p.sample(key))(policy)
    np.testing.assert_allclose(slope.mean, np.eye(2))
    np.testing.assert_allclose(slope.log_std, np.diag(policy.sample(key) - policy.mean), rtol=1e-5, atol=1e-7)


def test_mode_is_the_tanh_of_the_mean() -> None:
    np.testing.assert_allclose(gaussian(0.5, 3.0).mode(), [math.tanh(0.5)], rtol=1e-6)


parameters = st.tuples(st.floats(-3, 3), st.floats(0.05, 3), st.floats(-3, 3), st.floats(0.05, 3))


@given(parameters)
def test_kl_is_never_negative_and_zero_only_for_equals(p: tuple[float, float, float, float]) -> None:
    old, new = gaussian(*p[:2]), gaussian(*p[2:])
    assert old.kl(old) == 0
    assert old.kl(new) >= -1e-6
    if abs(p[0] - p[2]) > 0.1:
        assert old.kl(new) > 1e-4


def test_kl_by_hand() -> None:
    # KL(N(0, 1) || N(1, 2^2)) = log 2 + (1 + 1) / (2 * 4) - 1/2      = 0.69315 + 0.25 - 0.5 = 0.44315
    # KL(N(1, 2^2) || N(0, 1)) = log(1/2) + (4 + 1) / 2 - 1/2         = -0.69315 + 2.5 - 0.5 = 1.30685
    p, q = gaussian(0.0, 1.0), gaussian(1.0, 2.0)
    np.testing.assert_allclose(p.kl(q), 0.44315, atol=1e-5)
    np.testing.assert_allclose(q.kl(p), 1.30685, atol=1e-5)
    # Action dimensions add up.
    both, other = (
        TanhGaussian(jnp.array([0.0, 1.0]), jnp.log(jnp.array([1.0, 2.0]))),
        TanhGaussian(jnp.array([1.0, 0.0]), jnp.log(jnp.array([2.0, 1.0]))),
    )
    np.testing.assert_allclose(both.kl(other), 0.44315 + 1.30685, atol=2e-5)


@pytest.mark.parametrize("parameters", [(0.0, 1.0, 0.3, 0.8), (1.0, 0.5, 0.9, 0.6), (-2.0, 0.3, -2.2, 0.3)])
def test_closed_form_kl_agrees_with_sampling(parameters: tuple[float, float, float, float]) -> None:
    old, new = gaussian(*parameters[:2]), gaussian(*parameters[2:])
    num_samples = 50_000
    u = old.sample(jax.random.key(2), (num_samples,))
    ratios = np.asarray(old.log_prob(u) - new.log_prob(u), np.float64)
    standard_error = ratios.std() / num_samples**0.5
    assert standard_error < 0.1 * old.kl(new), "too noisy to tell anything"
    np.testing.assert_allclose(ratios.mean(), old.kl(new), atol=4 * standard_error)
    # The estimator itself, on samples of its own.
    np.testing.assert_allclose(
        sampled_kl(old, new, jax.random.key(3), num_samples), old.kl(new), atol=4 * standard_error + 1e-6
    )


def test_sampled_kl_keeps_the_batch() -> None:
    old = TanhGaussian(jnp.zeros((4, 2)), jnp.zeros((4, 2)))
    assert sampled_kl(old, old, jax.random.key(0), 16).shape == (4,)
    np.testing.assert_array_equal(sampled_kl(old, old, jax.random.key(0), 16), np.zeros(4))


@given(st.floats(-2, 2), st.floats(0.1, 3))
def test_entropy_never_exceeds_that_of_the_uniform_policy(mean: float, std: float) -> None:
    # The action lies in [-1, 1]: no density there has more than log 2 nats.
    assert entropy(gaussian(mean, std)) <= math.log(2) + 1e-6


@pytest.mark.parametrize(("mean", "std"), [(0.0, 0.87), (0.0, 0.1), (1.0, 0.5)])
def test_the_sampled_entropy_agrees_with_quadrature(mean: float, std: float) -> None:
    # A narrow one around 0 is a Gaussian, of entropy log(0.1 sqrt(2 pi e)) = -0.88365, squeezed by the slope of tanh,
    # 1 - tanh(u)^2 = 1 - u^2 + ..., of which the mean of the log is about -0.01 at this width.
    policy = gaussian(mean, std)
    log_prob = np.asarray(policy.log_prob(policy.sample(jax.random.key(4), (50_000,))), np.float64)
    np.testing.assert_allclose(-log_prob.mean(), entropy(policy), atol=4 * log_prob.std() / 50_000**0.5)
    if std == 0.1:
        assert entropy(policy) == pytest.approx(-0.88365 - 0.01, abs=1e-3)


def test_the_references_of_these_tests_agree_with_each_other() -> None:
    # log_prob_reference is what the quadratures integrate; it must be the golden density too.
    policy = golden_policy()
    u = GOLDEN["tanh_gaussian/pre_tanh"]
    mean, std = np.asarray(policy.mean, np.float64), np.exp(np.asarray(policy.log_std, np.float64))
    np.testing.assert_allclose(log_prob_reference(u, mean, std).sum(-1), GOLDEN["tanh_gaussian/log_prob"], atol=1e-4)
