"""Running mean and variance of observations, per dimension, on pytrees.

The statistics are frozen within an iteration: rollout, targets and update all see the same ones; the batch is merged
afterwards. Evaluation never touches them. An image has none, and stays as it is: `reppo.images.pixel_values` scales it.
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp

from reppo.images import is_image
from reppo.types import PyTree

EPSILON = 1e-5  #: added to the standard deviation's square, so that a constant dimension does not divide by zero


class Normalizer(eqx.Module):
    """Statistics of every leaf; ``mean`` and ``var`` mirror the observation pytree, ``count`` is the rows seen.

    Both are None where the observation is an image.
    """

    mean: PyTree
    var: PyTree
    count: jax.Array


def init(observation: PyTree) -> Normalizer:
    """The identity normaliser for observations of this pytree of shapes (arrays or ``ShapeDtypeStruct``, no batch axis)."""
    if is_image(observation):
        return Normalizer(None, None, jnp.zeros((), jnp.float32))
    return Normalizer(
        mean=jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), observation),
        var=jax.tree.map(lambda x: jnp.ones(x.shape, jnp.float32), observation),
        count=jnp.zeros((), jnp.float32),
    )


def update(state: Normalizer, batch: PyTree, valid: jax.Array | None = None) -> Normalizer:
    r"""Merge a batch, leaves ``[..., D]`` with any leading axes, by the parallel rule of Chan et al.

    $$ \mu = \mu_a + \delta \frac{n_b}{n}, \qquad
       \sigma^2 = \frac{n_a \sigma_a^2 + n_b \sigma_b^2 + \delta^2 n_a n_b / n}{n}, \qquad \delta = \mu_b - \mu_a $$

    Args:
        state: the statistics so far.
        batch: new observations; the leading axes are those that the observation of `init` lacks.
        valid: bool over the leading axes; rows that are false are left out, whatever they hold.
    """
    if state.mean is None:
        return state
    leading = jax.tree.leaves(batch)[0].ndim - jax.tree.leaves(state.mean)[0].ndim
    axes = tuple(range(leading))
    if valid is None:
        valid = jnp.ones(jax.tree.leaves(batch)[0].shape[:leading], bool)
    new = jnp.sum(valid, dtype=jnp.float32)
    total = state.count + new
    share = new / jnp.maximum(total, 1.0)

    def merge(mean: jax.Array, var: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        mask = jnp.expand_dims(valid, tuple(range(leading, x.ndim)))
        # Select before any arithmetic: NaN times zero is NaN.
        x = jnp.where(mask, x.astype(jnp.float32), 0.0)
        batch_mean = jnp.sum(x, axes) / jnp.maximum(new, 1.0)
        batch_var = jnp.sum(jnp.where(mask, x - batch_mean, 0.0) ** 2, axes) / jnp.maximum(new, 1.0)
        delta = batch_mean - mean
        merged_var = (1 - share) * var + share * batch_var + share * (1 - share) * delta**2
        return mean + share * delta, merged_var

    merged = jax.tree.map(merge, state.mean, state.var, batch)
    mean, var = jax.tree.transpose(jax.tree.structure(batch), jax.tree.structure((0, 0)), merged)
    return Normalizer(mean, var, total)


def normalize(state: Normalizer, observation: PyTree) -> PyTree:
    """``(x - mean) / sqrt(var + 1e-5)`` for every leaf ``[..., D]``; an image as it is."""
    if state.mean is None:
        return observation
    return jax.tree.map(lambda x, mean, var: (x - mean) * jax.lax.rsqrt(var + EPSILON), observation, state.mean, state.var)
