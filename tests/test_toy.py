"""The 2-D experiment: its estimates against what is known of the surface by hand."""

from __future__ import annotations

import csv
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reppo.errors import ConfigError
from reppo.estimators import Behaviour
from reppo.toy import experiment, figure
from reppo.toy.experiment import START, Settings, ascent, behaviour_at, errors, expectation, quality, surface

KEY = jax.random.key(0)
SMALL = Settings(
    steps=8, reuse=4, paths=2, record_every=1, sample_counts=(2,), replicates=1024, strong=(64, 8, 20), weak=(8, 8, 2)
)  # fmt: skip


def test_the_surface_has_its_top_where_it_says() -> None:
    assert float(surface(jnp.array([1.0, -0.5]))) == 0.0
    np.testing.assert_allclose(jax.grad(surface)(jnp.array([1.0, -0.5])), 0.0)
    assert float(surface(jnp.array([-1.0, 0.5]))) == -2.0  # -(2^2) / 4 - (0.5 - 0.5 + 1)^2


def test_the_expectation_is_that_of_a_polynomial() -> None:
    # E (x - 1)^2 = (m - 1)^2 + s^2, and with y = 0.5 x^2 - 1 + d at the mean: E (d + n - m e - (e^2 - s^2)/2 - s^2/2)^2
    # = (d - s^2/2)^2 + s^2 + m^2 s^2 + s^4/2, for independent noise n and e of variance s^2.
    m, d, s = 0.7, 0.3, 0.4
    mean = jnp.array([m, 0.5 * m**2 - 1 + d])
    by_hand = -0.25 * ((m - 1) ** 2 + s**2) - ((d - s**2 / 2) ** 2 + s**2 + m**2 * s**2 + s**4 / 2)
    np.testing.assert_allclose(expectation(surface, mean, s), by_hand, rtol=1e-5)


def quadratic(point: jax.Array) -> jax.Array:
    """``-(x - 1)^2 - 2 (y + 1)^2``: under any Gaussian its expected gradient is that at the mean."""
    return -((point[..., 0] - 1) ** 2) - 2 * (point[..., 1] + 1) ** 2


@pytest.mark.parametrize("kind", ["score", "reused", "pathwise"])
def test_every_estimate_has_the_gradient_of_a_quadratic_as_its_mean(kind: str) -> None:
    mean, exact = jnp.array([0.5, 0.0]), np.array([1.0, -4.0])

    @jax.jit
    @jax.vmap
    def estimate(key: jax.Array) -> jax.Array:
        behaviour = behaviour_at(mean, 0.3, quadratic, key, 8)  # of the current policy: no ratio is clipped
        return ascent(kind, mean, 0.3, quadratic, behaviour, jax.random.fold_in(key, 1), 8)

    found = np.asarray(estimate(jax.random.split(KEY, 4096)), np.float64)
    standard_error = found.std(0) / len(found) ** 0.5
    assert (standard_error < 0.1).all()
    assert (np.abs(found.mean(0) - exact) < 4 * standard_error).all()


def test_the_pathwise_estimate_is_the_mean_slope_at_its_samples() -> None:
    # Of the quadratic above: -2 (x - 1) and -4 (y + 1) at the samples, which are the mean plus its noise.
    mean, std = jnp.array([0.5, 0.0]), 0.3
    none = Behaviour(jnp.zeros((4, 2)), jnp.zeros(4), jnp.zeros(4))
    x, y = experiment.rows(mean, std, 4).sample(KEY, (1,))[0].T
    found = ascent("pathwise", mean, std, quadratic, none, KEY, 4)
    np.testing.assert_allclose(found, [np.mean(-2 * (x - 1)), np.mean(-4 * (y + 1))], rtol=1e-5)


def test_the_reused_estimate_is_the_score_times_the_advantage() -> None:
    # Two samples, one standard deviation right and two up, worth 3 and 1: advantages 2 and -2 against each other.
    # The score of a Gaussian is (a - mean) / std^2; nothing is clipped where the policy has not moved.
    mean, std = jnp.zeros(2), 0.5
    samples = jnp.array([[0.5, 0.0], [0.0, 1.0]])
    behaviour = Behaviour(samples, experiment.rows(mean, std, 2).log_prob(samples), jnp.array([2.0, -2.0]))
    found = ascent("reused", mean, std, surface, behaviour, KEY, 2)
    np.testing.assert_allclose(found, [0.5 * 2.0 * 0.5 / 0.25, 0.5 * -2.0 * 1.0 / 0.25], rtol=1e-5)


def test_advantages_are_against_the_mean_of_the_other_samples() -> None:
    behaviour = behaviour_at(jnp.zeros(2), 0.5, lambda a: a[..., 0], KEY, 3)
    x = np.asarray(behaviour.sample[:, 0])
    by_hand = [x[0] - (x[1] + x[2]) / 2, x[1] - (x[0] + x[2]) / 2, x[2] - (x[0] + x[1]) / 2]
    np.testing.assert_allclose(behaviour.advantage, by_hand, rtol=1e-5)


@functools.cache
def outcome() -> experiment.Outcome:
    return experiment.run(SMALL)


def test_with_the_true_function_pathwise_has_no_bias_and_the_least_variance() -> None:
    found = outcome().gradients
    for samples in SMALL.sample_counts:
        assert found["pathwise"][samples].bias < 3 * found["pathwise"][samples].standard_error
        assert found["score"][samples].bias < 3 * found["score"][samples].standard_error
        assert found["pathwise"][samples].variance < found["score"][samples].variance
        # The first network has seen few points, the second next to none: their errors are no noise.
        assert found["weak"][samples].bias > 10 * found["weak"][samples].standard_error
        assert found["reused"][samples].bias > 3 * found["reused"][samples].standard_error


def test_four_times_the_samples_have_a_quarter_of_the_variance() -> None:
    keys = jax.random.split(KEY, SMALL.replicates)
    many = quality(np.asarray(errors("pathwise", surface, SMALL, 8, keys), np.float64)).variance
    assert outcome().gradients["pathwise"][2].variance / many == pytest.approx(4.0, rel=0.25)


def test_variance_and_bias_of_errors_are_counted_by_hand() -> None:
    # Means 1 and 0; squared distances from them 1 + 1 and 4 + 4, over one less than their number.
    found = quality(np.array([[0.0, 2.0], [2.0, -2.0]]))
    assert found == pytest.approx((2.0 + 8.0, 1.0, 5.0**0.5))


def test_the_errors_are_of_the_gradient_at_the_start() -> None:
    # One sample count is enough: the exact gradient of the expectation, by hand as above, is what is taken away.
    s, (x, y) = SMALL.std, START
    d = y - 0.5 * x**2 + 1
    inner = d - s**2 / 2
    exact = np.array([-0.5 * (x - 1) + 2 * x * inner - 2 * x * s**2, -2 * inner])
    behaviour = behaviour_at(jnp.array(START), s, surface, KEY, 2)
    key = jax.random.split(jax.random.split(KEY, 1)[0])[1]
    estimate = ascent("pathwise", jnp.array(START), s, surface, behaviour, key, 2)
    found = errors("pathwise", surface, SMALL, 2, jax.random.split(KEY, 1))[0]
    np.testing.assert_allclose(found, estimate - exact, atol=2e-4)


def table(path: Path) -> list[dict[str, Any]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_the_files_hold_the_experiment_and_are_the_same_again(tmp_path: Path) -> None:
    for name in ("a", "b"):
        figure.save(tmp_path / name, SMALL, outcome() if name == "a" else experiment.run(SMALL))
    for file in ("paths.csv", "gradients.csv", "toy.png"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    paths, gradients = table(tmp_path / "a" / "paths.csv"), table(tmp_path / "a" / "gradients.csv")
    assert len(paths) == 5 * SMALL.paths * (SMALL.steps + 1)
    assert len(gradients) == 5 * len(SMALL.sample_counts)
    # Every estimator but the fitted ones asks for two samples a step, those of `reused` in batches of eight.
    asked = {(row["estimator"], row["step"]): row["evaluations"] for row in paths}
    assert [asked["score", "3"], asked["reused", "3"], asked["strong", "3"]] == ["6", "8", "64"]
    with pytest.raises(ConfigError, match="exists already and is never overwritten"):
        figure.save(tmp_path / "a", SMALL, outcome())
