"""Soft lambda returns: by hand, against the reference's numbers, and against a loop over scalars."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import GOLDEN, Array
from hypothesis import given
from hypothesis import strategies as st

from reppo.returns import lambda_schedule, soft_lambda_returns

T, N = 7, 3


def scalar_reference(
    reward: Array,
    entropy_bonus: Array,
    value: Array,
    terminated: Array,
    truncated: Array,
    valid: Array,
    gamma: float,
    lam: float,
) -> Array:
    """The recursion with one branch for each way in which a row can end."""
    returns = np.zeros(reward.shape)
    for n in range(reward.shape[1]):
        for t in reversed(range(reward.shape[0])):
            if terminated[t, n]:  # nothing follows: no value, and no entropy either
                returns[t, n] = reward[t, n]
            elif truncated[t, n] or t + 1 == reward.shape[0] or not valid[t + 1, n]:  # cut: bootstrap from the successor
                returns[t, n] = reward[t, n] + gamma * (entropy_bonus[t, n] + value[t, n])
            else:
                mixed = (1 - lam) * value[t, n] + lam * returns[t + 1, n]
                returns[t, n] = reward[t, n] + gamma * (entropy_bonus[t, n] + mixed)
    return returns


def column(*values: float) -> jax.Array:
    return jnp.asarray(values, jnp.float32)[:, None]


def test_three_steps_by_hand() -> None:
    # gamma 0.5, lambda 0.5; V = 4, 8, 6 and alpha H = 1, 1, 2; the last row bootstraps from its own V:
    #   G_2 = 3 + 0.5 (2 + 6)                     = 7
    #   G_1 = 2 + 0.5 (1 + 0.5 * 8 + 0.5 * 7)     = 6.25
    #   G_0 = 1 + 0.5 (1 + 0.5 * 4 + 0.5 * 6.25)  = 4.0625
    returns = soft_lambda_returns(
        column(1, 2, 3), column(0.5, 0.5, 0.5), column(1, 1, 2), column(4, 8, 6), column(0.5, 0.5, 0.0)
    )
    np.testing.assert_allclose(returns, [[4.0625], [6.25], [7.0]])


def test_the_last_row_bootstraps_whatever_its_lambda() -> None:
    arguments = column(1, 3), column(0.5, 0.5), column(0, 2), column(4, 6)
    with_zero = soft_lambda_returns(*arguments, column(0.5, 0.0))
    np.testing.assert_array_equal(soft_lambda_returns(*arguments, column(0.5, 0.5)), with_zero)


def test_termination_stops_value_and_entropy() -> None:
    # Row 1 terminates: G_1 = 2 whatever V and alpha H are; G_0 = 1 + 0.5 (1 + 0.5 * 4 + 0.5 * 2) = 3.
    returns = soft_lambda_returns(
        column(1, 2, 3), column(0.5, 0.0, 0.5), column(1, 100, 2), column(4, 1000, 6), column(0.5, 0.5, 0.0)
    )
    np.testing.assert_allclose(returns[:2], [[3.0], [2.0]])


def test_truncation_bootstraps_from_its_own_successor() -> None:
    # Row 1 is cut: G_1 = 2 + 0.5 (1 + 8) = 6.5, nothing of row 2; G_0 = 1 + 0.5 (1 + 0.5 * 4 + 0.5 * 6.5) = 4.125.
    lambda_ = lambda_schedule(0.5, jnp.array([[False], [True], [False]]), jnp.ones((3, 1), bool))
    returns = soft_lambda_returns(column(1, 2, 1e6), column(0.5, 0.5, 0.5), column(1, 1, 1e6), column(4, 8, 1e6), lambda_)
    np.testing.assert_allclose(returns[:2], [[4.125], [6.5]])


def test_schedule_by_hand() -> None:
    # Zero at the cut (row 1), before the row that is no transition (row 2, before row 3), and on the last row.
    truncated = jnp.array([[False, True, False, False, False, False]]).T
    valid = jnp.array([[True, True, True, False, True, True]]).T
    schedule = lambda_schedule(0.9, truncated, valid)
    np.testing.assert_allclose(schedule[:, 0], [0.9, 0.0, 0.0, 0.9, 0.9, 0.0], rtol=1e-6)


def test_the_reference_agrees() -> None:
    gamma, lambda_ = (float(x) for x in GOLDEN["lambda/gamma_lambda"])
    terminated, truncated = (jnp.asarray(GOLDEN[f"lambda/{name}"]) for name in ("terminated", "truncated"))
    reward, value = (jnp.asarray(GOLDEN[f"lambda/{name}"]) for name in ("soft_reward", "next_value"))
    assert terminated.sum() > 10
    assert truncated.sum() > 10
    schedule = lambda_schedule(lambda_, truncated, jnp.ones_like(truncated))
    returns = soft_lambda_returns(reward, gamma * (1.0 - terminated), jnp.zeros_like(reward), value, schedule)
    np.testing.assert_allclose(returns, GOLDEN["lambda/returns"], atol=1e-5)


flags = st.lists(st.booleans(), min_size=T * N, max_size=T * N).map(lambda x: np.array(x).reshape(T, N))


@given(flags, flags, flags, st.floats(0, 1), st.floats(0, 1), st.integers(0, 1000))
def test_any_pattern_of_endings_equals_the_loop_over_scalars(
    terminated: Array, truncated: Array, valid: Array, gamma: float, lambda_: float, seed: int
) -> None:
    truncated = truncated & ~terminated
    reward, bonus, value = np.random.default_rng(seed).normal(size=(3, T, N)).astype(np.float32)
    returns = soft_lambda_returns(
        jnp.asarray(reward),
        jnp.asarray(gamma * (1.0 - terminated), jnp.float32),
        jnp.asarray(bonus),
        jnp.asarray(value),
        lambda_schedule(lambda_, jnp.asarray(truncated), jnp.asarray(valid)),
    )
    expected = scalar_reference(reward, bonus, value, terminated, truncated, valid, gamma, lambda_)
    np.testing.assert_allclose(returns, expected, atol=2e-5)


influence_of_rewards = jax.jit(jax.jacobian(soft_lambda_returns))  #: ``[T, N, T, N]``


@given(flags, flags, flags)
def test_nothing_flows_back_across_an_ending(terminated: Array, truncated: Array, valid: Array) -> None:
    truncated = truncated & ~terminated
    schedule = lambda_schedule(0.9, jnp.asarray(truncated), jnp.asarray(valid))
    discount = jnp.asarray(0.9 * (1.0 - terminated), jnp.float32)
    zeros = jnp.zeros((T, N))
    influence = np.asarray(influence_of_rewards(zeros, discount, zeros, zeros, schedule))
    for n in range(N):
        for t in range(T - 1):
            ends = terminated[t, n] or truncated[t, n] or not valid[t + 1, n]
            later = influence[t, n, t + 1 :, n]
            assert not later.any() if ends else later[0] > 0


def test_lambda_one_is_the_discounted_sum_and_lambda_zero_one_step() -> None:
    rng = np.random.default_rng(0)
    reward, value = (jnp.asarray(x) for x in rng.normal(size=(2, T, N)).astype(np.float32))
    discount, zeros = jnp.full((T, N), 0.9), jnp.zeros((T, N))
    one_step = soft_lambda_returns(reward, discount, zeros, value, zeros)
    np.testing.assert_allclose(one_step, reward + 0.9 * value, rtol=1e-6)
    whole = soft_lambda_returns(reward, discount, zeros, value, jnp.ones((T, N)))
    powers = 0.9 ** np.arange(T)
    np.testing.assert_allclose(whole[0], powers @ np.asarray(reward) + 0.9**T * np.asarray(value)[-1], rtol=1e-4, atol=1e-5)


def test_compiled_equals_interpreted() -> None:
    arguments = [jnp.asarray(x) for x in np.random.default_rng(1).uniform(size=(5, T, N)).astype(np.float32)]
    with jax.disable_jit():
        expected = soft_lambda_returns(*arguments)
    np.testing.assert_allclose(jax.jit(soft_lambda_returns)(*arguments), expected, rtol=1e-5)


def test_shapes_must_agree() -> None:
    x = jnp.zeros((T, N))
    with pytest.raises(ValueError, match="one shape"):
        soft_lambda_returns(x, x, x, x, jnp.zeros(T))
