"""Running statistics: the reference's numbers, invariance to order and splitting, and rows that must not enter."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import GOLDEN, Array, assert_identical
from hypothesis import given
from hypothesis import strategies as st

from reppo import normalizer
from reppo.normalizer import Normalizer

VECTOR = jax.ShapeDtypeStruct((3,), jnp.float32)

update = jax.jit(normalizer.update)


def fresh(*batches: Array) -> Normalizer:
    state = normalizer.init(VECTOR)
    for batch in batches:
        state = update(state, jnp.asarray(batch))
    return state


def test_three_batches_match_the_reference() -> None:
    batches = [GOLDEN[f"normalizer/batch{i}"] for i in range(3)]
    state = normalizer.init(jax.ShapeDtypeStruct((5,), jnp.float32))
    for batch in batches:
        state = normalizer.update(state, jnp.asarray(batch))
    np.testing.assert_allclose(state.mean, GOLDEN["normalizer/mean"], atol=1e-5)
    np.testing.assert_allclose(state.var, GOLDEN["normalizer/var"], atol=1e-5)
    assert state.count == sum(map(len, batches))


def test_two_batches_by_hand() -> None:
    # 1, 3 and then 8: mean 4, variance ((1-4)^2 + (3-4)^2 + (8-4)^2) / 3 = 26 / 3.
    state = normalizer.init(jax.ShapeDtypeStruct((1,), jnp.float32))
    state = normalizer.update(state, jnp.array([[1.0], [3.0]]))
    np.testing.assert_allclose((state.mean[0], state.var[0]), (2.0, 1.0))
    state = normalizer.update(state, jnp.array([[8.0]]))
    np.testing.assert_allclose((state.mean[0], state.var[0]), (4.0, 26 / 3), rtol=1e-6)


def test_a_new_normaliser_changes_nothing() -> None:
    x = jnp.array([[1.0, -2.0, 3.0]])
    np.testing.assert_allclose(normalizer.normalize(normalizer.init(VECTOR), x), x, rtol=1e-5)


def test_normalised_data_is_standard_in_every_dimension() -> None:
    # Scales a thousand times apart: one scalar for all dimensions would not do.
    data = np.random.default_rng(0).normal([5.0, -3.0, 100.0], [0.01, 1.0, 10.0], (500, 3)).astype(np.float32)
    z = np.asarray(normalizer.normalize(fresh(data), jnp.asarray(data)))
    np.testing.assert_allclose(z.mean(0), 0.0, atol=1e-3)
    # 0.01^2 is ten times the epsilon under the root, so the first one falls short of 1 by about a twentieth.
    np.testing.assert_allclose(z.std(0), [0.953, 1.0, 1.0], atol=5e-3)


def test_a_constant_dimension_becomes_zero() -> None:
    state = fresh(np.full((10, 3), 7.0, np.float32))
    np.testing.assert_allclose(normalizer.normalize(state, jnp.full((1, 3), 7.0)), 0.0)


@given(st.integers(0, 10_000), st.integers(1, 29))
def test_order_and_splitting_do_not_matter(seed: int, cut: int) -> None:
    rng = np.random.default_rng(seed)
    data = rng.normal(rng.normal(size=3), 1.0, (30, 3)).astype(np.float32)
    mask = np.arange(30) < cut

    def merged(*masks: Array) -> Normalizer:
        state = normalizer.init(VECTOR)
        for chosen in masks:  # masks instead of slices, so that every split is one compiled shape
            state = update(state, jnp.asarray(data), jnp.asarray(chosen))
        return state

    whole = fresh(data)
    np.testing.assert_allclose(whole.mean, data.mean(0), atol=1e-5)
    np.testing.assert_allclose(whole.var, data.var(0), rtol=1e-4, atol=1e-6)
    for other in (fresh(rng.permutation(data)), merged(mask, ~mask), merged(~mask, mask)):
        np.testing.assert_allclose(other.mean, whole.mean, atol=1e-5)
        np.testing.assert_allclose(other.var, whole.var, rtol=1e-4, atol=1e-6)
        assert other.count == 30


@given(st.lists(st.sampled_from([np.nan, np.inf, -np.inf, 1e30]), min_size=3, max_size=3), st.integers(0, 4))
def test_invalid_rows_never_enter(poison: list[float], row: int) -> None:
    clean = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)
    valid = jnp.arange(5) != row
    zeroed, poisoned = clean.copy(), clean.copy()
    zeroed[row], poisoned[row] = 0.0, poison
    state = update(fresh(clean), jnp.asarray(poisoned), valid)
    assert_identical(state, update(fresh(clean), jnp.asarray(zeroed), valid))
    np.testing.assert_allclose(state.mean, np.concatenate([clean, np.delete(clean, row, 0)]).mean(0), atol=1e-6)
    assert state.count == 9


def test_a_batch_without_valid_rows_changes_nothing() -> None:
    invalid = jnp.zeros(4, bool)
    for state in (fresh(), fresh(np.random.default_rng(2).normal(size=(6, 3)).astype(np.float32))):
        assert_identical(normalizer.update(state, jnp.full((4, 3), jnp.nan), invalid), state)


def test_rollouts_and_dicts() -> None:
    # Leaves [T, N, D] of different D, one mask [T, N] for all.
    rng = np.random.default_rng(3)
    batch = {"a": rng.normal(2.0, 1.0, (4, 5, 2)).astype(np.float32), "b": rng.normal(0, 3.0, (4, 5, 1)).astype(np.float32)}
    valid = rng.random((4, 5)) < 0.5
    shapes = {"a": jax.ShapeDtypeStruct((2,), jnp.float32), "b": jax.ShapeDtypeStruct((1,), jnp.float32)}
    state = normalizer.update(normalizer.init(shapes), jax.tree.map(jnp.asarray, batch), jnp.asarray(valid))
    for name, x in batch.items():
        np.testing.assert_allclose(state.mean[name], x[valid].mean(0), rtol=1e-5)
        np.testing.assert_allclose(state.var[name], x[valid].var(0), rtol=1e-4)
    z = normalizer.normalize(state, jax.tree.map(jnp.asarray, batch))
    np.testing.assert_allclose(z["b"], (batch["b"] - state.mean["b"]) / np.sqrt(state.var["b"] + 1e-5), rtol=1e-5)


@pytest.mark.parametrize("offset", [1e2, 1e4])
def test_a_large_offset_does_not_swallow_the_variance(offset: float) -> None:
    data = np.random.default_rng(4).normal(offset, 1.0, (2000, 3)).astype(np.float32)
    state = fresh(data[:500], data[500:600], data[600:])
    np.testing.assert_allclose(state.var, data.astype(np.float64).var(0), rtol=0.01)
