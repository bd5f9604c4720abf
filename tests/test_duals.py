"""The two multipliers: their gradients by hand, and the direction in which they move."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from reppo import duals
from reppo.duals import Duals


def stepped(entropy: float, kl: float, steps: int = 1) -> Duals:
    """Both at 0.1, after Adam has moved them; target entropy -1, KL bound 0.1."""
    state = duals.init(0.1, 0.1)
    adam = optax.adam(1e-2)
    opt_state = adam.init(state)  # pyright: ignore[reportArgumentType]
    gradient = jax.jit(jax.grad(duals.loss))
    for _ in range(steps):
        grads = gradient(state, jnp.array(entropy), -1.0, jnp.array(kl), 0.1)
        updates, opt_state = adam.update(grads, opt_state)
        state = eqx.apply_updates(state, updates)
    return state


def test_initial_values() -> None:
    state = duals.init(0.01, 0.3)
    np.testing.assert_allclose((state.alpha, state.beta), (0.01, 0.3), rtol=1e-6)


def test_gradients_by_hand() -> None:
    # d/d log alpha of alpha (H - target) is alpha (H - target)   = 0.5 * (2 - (-1))    = 1.5
    # d/d log beta of -beta (KL - bound)   is -beta (KL - bound)  = -0.2 * (0.35 - 0.1) = -0.05
    grads = jax.grad(duals.loss)(duals.init(0.5, 0.2), jnp.array(2.0), -1.0, jnp.array(0.35), 0.1)
    np.testing.assert_allclose((grads.log_alpha, grads.log_beta), (1.5, -0.05), rtol=1e-5)


@pytest.mark.parametrize(("entropy", "rises"), [(-3.0, True), (-1.5, True), (-0.5, False), (2.0, False)])
def test_entropy_below_its_target_raises_alpha(entropy: float, rises: bool) -> None:
    state = stepped(entropy=entropy, kl=0.1)
    assert (state.alpha > 0.1) == rises
    np.testing.assert_allclose(state.beta, 0.1, rtol=1e-6)


@pytest.mark.parametrize(("kl", "rises"), [(0.5, True), (0.11, True), (0.09, False), (0.0, False)])
def test_kl_above_its_bound_raises_beta(kl: float, rises: bool) -> None:
    state = stepped(entropy=-1.0, kl=kl)
    assert (state.beta > 0.1) == rises
    np.testing.assert_allclose(state.alpha, 0.1, rtol=1e-6)


def test_they_stay_positive() -> None:
    state = stepped(entropy=100.0, kl=0.0, steps=300)
    assert 0 < state.alpha < 0.02
    assert 0 < state.beta < 0.02


def test_nothing_flows_into_entropy_or_kl() -> None:
    state = duals.init(0.5, 0.2)
    grads = jax.grad(lambda h, kl: duals.loss(state, h, -1.0, kl, 0.1), argnums=(0, 1))(jnp.array(2.0), jnp.array(0.3))
    assert grads == (0.0, 0.0)


def test_the_floor_of_beta_by_hand() -> None:
    state = duals.init(0.01, 0.02)
    np.testing.assert_allclose(duals.bounded(state, 0.1).beta, 0.1, rtol=1e-6)
    np.testing.assert_allclose(duals.bounded(state, 0.1).alpha, 0.01, rtol=1e-6)
    np.testing.assert_allclose(duals.bounded(duals.init(0.01, 0.3), 0.1).beta, 0.3, rtol=1e-6)


@pytest.mark.parametrize(("value", "found"), [(1e-20, 1e-6), (1e-5, 1e-5), (1e5, 1e5), (1e20, 1e6)])
def test_without_a_floor_both_are_free_within_their_limits(value: float, found: float) -> None:
    state = duals.bounded(duals.init(value, value), 0.0)
    np.testing.assert_allclose((state.alpha, state.beta), found, rtol=1e-5)


def test_beta_comes_back_from_where_it_decayed_to() -> None:
    """Adam's steps are relative to the gradient, and that is nothing to it where beta is far below its epsilon."""
    state, adam = duals.init(0.1, 0.1), optax.adam(3e-3)
    opt_state = adam.init(state)  # pyright: ignore[reportArgumentType]

    @jax.jit
    def step(state: Duals, opt_state: Any, kl: float) -> Any:
        updates, opt_state = adam.update(jax.grad(duals.loss)(state, jnp.array(-1.0), -1.0, kl, 0.1), opt_state)
        return duals.bounded(eqx.apply_updates(state, updates), 0.0), opt_state

    for kl, steps in ((0.05, 10_000), (0.5, 5_000)):
        for _ in range(steps):
            state, opt_state = step(state, opt_state, jnp.array(kl))
    assert state.beta > 0.01
