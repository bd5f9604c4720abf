"""Optimiser steps that a non-finite gradient cannot spoil."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from reppo.types import PyTree


def count_skipped(*norms: jax.Array) -> jax.Array:
    """How many of the steps with gradients of these norms `apply_gradients` left out."""
    return jnp.sum(~jnp.isfinite(jnp.stack(norms)), dtype=jnp.float32)


def apply_gradients(
    module: PyTree, grads: PyTree, opt_state: PyTree, optimiser: optax.GradientTransformation
) -> tuple[PyTree, PyTree, jax.Array]:
    """One optimiser step; a non-finite gradient changes nothing. Returns (module, state, norm of the gradient).

    The parameters then stay finite: where the gradient's norm is finite, so are Adam's moments, and its step is bounded.
    """
    norm = jnp.linalg.norm(ravel_pytree(grads)[0])  # one kernel; one for each of forty arrays compiles for a second
    finite = jnp.isfinite(norm)
    updates, new_opt_state = optimiser.update(grads, opt_state, module)
    stepped = eqx.apply_updates(module, updates)
    module, opt_state = jax.tree.map(
        lambda new, old: jnp.where(finite, new, old), (stepped, new_opt_state), (module, opt_state)
    )
    return module, opt_state, norm
