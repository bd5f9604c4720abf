"""Small things that several test files need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import numpy.typing as npt

from reppo.config import Config
from reppo.distributions import TanhGaussian

Array = npt.NDArray[Any]

GOLDEN = np.load(Path(__file__).parent / "golden.npz", allow_pickle=False)

#: A configuration that compiles and runs in seconds: 3 iterations of 64 steps. It learns nothing.
TINY = Config(
    total_steps=3 * 8 * 8,
    num_envs=8,
    num_steps=8,
    num_minibatches=2,
    num_epochs=2,
    target_samples=2,
    actor_width=16,
    critic_width=16,
    num_bins=21,
    episode_length=20,
    num_evals=1,
    eval_episodes=8,
)


def as_gaussian(policy: Any) -> TanhGaussian:
    """What a policy of continuous actions is."""
    assert isinstance(policy, TanhGaussian)
    return policy


def leaves(tree: Any) -> dict[str, Array]:
    """Every array of a pytree by its path, on the host; PRNG keys as their data."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        is_key = jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        found[jax.tree_util.keystr(path)] = np.array(jax.random.key_data(leaf) if is_key else leaf)
    return found


def assert_identical(tree: Any, other: Any) -> None:
    """Two pytrees are the same to the last bit."""
    a, b = leaves(tree), leaves(other)
    assert a.keys() == b.keys()
    for name, value in a.items():
        np.testing.assert_array_equal(value, b[name], err_msg=name)


def differ(tree: Any, other: Any) -> bool:
    """Whether any number of two pytrees of one structure differs."""
    a, b = leaves(tree), leaves(other)
    return any(not np.array_equal(a[name], b[name]) for name in a)


def quadrature(num_points: int = 200) -> tuple[Array, Array]:
    """Nodes and weights of E[f(z)], z ~ N(0, 1), by Gauss-Hermite."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(num_points)
    return nodes, weights / np.sqrt(2 * np.pi)


def log_prob_reference(u: Array, mean: Array, std: Array) -> Array:
    """Log-density of ``tanh(u)`` for ``u ~ N(mean, std^2)``, one dimension, float64."""
    gaussian = -0.5 * ((u - mean) / std) ** 2 - np.log(std) - 0.5 * np.log(2 * np.pi)
    return gaussian - 2 * (np.log(2) - u - np.logaddexp(0, -2 * u))


def entropy(policy: TanhGaussian) -> Array:
    """Differential entropy of a tanh-Gaussian's action, summed over dimensions, by quadrature in float64."""
    nodes, weights = quadrature()
    mean, std = np.asarray(policy.mean, np.float64)[..., None], np.exp(np.asarray(policy.log_std, np.float64))[..., None]
    return -np.sum(log_prob_reference(mean + std * nodes, mean, std) @ weights, axis=-1)
