"""HL-Gauss: the reference's numbers, one case by hand, and what must hold for every value."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import GOLDEN
from hypothesis import given
from hypothesis import strategies as st

from reppo import hl_gauss

SUPPORTS = [(0.0, 150.0, 151), (-10.0, 10.0, 151), (-3.0, 7.0, 51)]
supports = st.sampled_from(SUPPORTS)


@pytest.mark.parametrize("name", ["dmc", "humanoid", "maniskill", "odd"])
def test_encode_matches_the_reference(name: str) -> None:
    v_min, v_max, num_bins = GOLDEN[f"hl_gauss/{name}/support"]
    values = GOLDEN[f"hl_gauss/{name}/values"]
    assert (values < v_min).any(), "values outside the support belong to the reference"
    assert (values > v_max).any()
    probs = hl_gauss.encode(values, float(v_min), float(v_max), int(num_bins))
    np.testing.assert_allclose(probs, GOLDEN[f"hl_gauss/{name}/probs"], atol=1e-5)


def test_three_bins_by_hand() -> None:
    # Centres -1, 0, 1; w = 1, sigma = 0.75, edges -1.5, -0.5, 0.5, 1.5. Of a Gaussian around 0,
    #   P(|x| < 0.5) = erf(0.5 / (0.75 sqrt 2)) = erf(0.47140) = 0.49501
    #   P(|x| < 1.5) = erf(1.5 / (0.75 sqrt 2)) = erf(1.41421) = 0.95450
    # so the middle bin has 0.49501 / 0.95450 = 0.51861, and each outer one half of the rest, 0.24070.
    middle = math.erf(0.5 / (0.75 * math.sqrt(2))) / math.erf(1.5 / (0.75 * math.sqrt(2)))
    assert middle == pytest.approx(0.51861, abs=1e-5)
    probs = hl_gauss.encode(jnp.array(0.0), -1.0, 1.0, 3)
    np.testing.assert_allclose(probs, [(1 - middle) / 2, middle, (1 - middle) / 2], atol=1e-6)


def test_decode_is_the_mean_of_the_centres() -> None:
    # Centres 0, 1, 2, 3: 0.1 * 0 + 0.2 * 1 + 0.3 * 2 + 0.4 * 3 = 2.
    np.testing.assert_allclose(hl_gauss.decode(jnp.array([0.1, 0.2, 0.3, 0.4]), 0.0, 3.0), 2.0, rtol=1e-6)
    np.testing.assert_allclose(hl_gauss.centres(0.0, 3.0, 4), [0, 1, 2, 3])


@given(supports, st.floats(-1000, 1000, width=32))
def test_every_encoding_is_a_distribution(support: tuple[float, float, int], value: float) -> None:
    probs = np.asarray(hl_gauss.encode(jnp.asarray(value), *support))
    assert probs.shape == (support[2],)
    assert (probs >= 0).all()
    np.testing.assert_allclose(probs.sum(), 1.0, atol=1e-6)


@given(supports, st.floats(0, 1))
def test_decode_inverts_encode_inside_the_support(support: tuple[float, float, int], fraction: float) -> None:
    v_min, v_max, num_bins = support
    width = (v_max - v_min) / (num_bins - 1)
    # Within three bins of an end the Gaussian's tail is cut off there, which pulls its mean inwards by up to a third of
    # a bin; elsewhere binning costs less than a thousandth.
    value = v_min + 3 * width + fraction * (v_max - v_min - 6 * width)
    decoded = hl_gauss.decode(hl_gauss.encode(jnp.asarray(value), *support), v_min, v_max)
    np.testing.assert_allclose(decoded, value, atol=1e-3 * width + 1e-5)


@pytest.mark.parametrize("support", SUPPORTS)
def test_an_end_of_the_support_is_off_by_less_than_half_a_bin(support: tuple[float, float, int]) -> None:
    v_min, v_max, num_bins = support
    width = (v_max - v_min) / (num_bins - 1)
    decoded = hl_gauss.decode(hl_gauss.encode(jnp.array([v_min, v_max]), *support), v_min, v_max)
    np.testing.assert_allclose(decoded, [v_min, v_max], atol=0.5 * width)


@given(supports, st.floats(0, 500))
def test_values_outside_are_clipped(support: tuple[float, float, int], excess: float) -> None:
    v_min, v_max, _ = support
    values = jnp.array([v_min - excess, v_max + excess])
    np.testing.assert_array_equal(hl_gauss.encode(values, *support), hl_gauss.encode(jnp.array([v_min, v_max]), *support))


@given(st.floats(-10, 10), st.floats(-10, 10))
def test_larger_values_have_larger_means(a: float, b: float) -> None:
    low, high = sorted([a, b])
    means = hl_gauss.decode(hl_gauss.encode(jnp.array([low, high]), -10.0, 10.0, 41), -10.0, 10.0)
    assert means[1] >= means[0] - 1e-5


@given(st.floats(-10, 10, width=32))
def test_a_mirrored_value_has_the_mirrored_encoding(value: float) -> None:
    probs = hl_gauss.encode(jnp.array([value, -value]), -10.0, 10.0, 41)
    np.testing.assert_allclose(probs[0], probs[1][::-1], atol=2e-6)


def test_any_leading_axes_and_jit() -> None:
    values = jnp.linspace(-5, 5, 24).reshape(2, 3, 4)
    probs = jax.jit(hl_gauss.encode, static_argnums=(1, 2, 3))(values, -4.0, 4.0, 17)
    assert probs.shape == (2, 3, 4, 17)
    np.testing.assert_allclose(probs[1, 2, 3], hl_gauss.encode(values[1, 2, 3], -4.0, 4.0, 17), atol=1e-6)
    assert hl_gauss.decode(probs, -4.0, 4.0).shape == (2, 3, 4)


@pytest.mark.parametrize("support", [(1.0, 1.0, 11), (2.0, 1.0, 11), (0.0, 1.0, 1)])
def test_an_empty_support_is_refused(support: tuple[float, float, int]) -> None:
    with pytest.raises(ValueError, match="v_min < v_max"):
        hl_gauss.encode(jnp.zeros(()), *support)
