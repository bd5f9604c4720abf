"""Random numbers: which key of a seed is for what."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


class Stream:
    """Purposes of randomness, folded into the key of a seed before all else, so that no two draws share a key.

    ``SAVED`` is the evaluation of a saved policy, whose seed may be that of its training.
    """

    INIT, FIRST, STAGGER, ITERATION, EVALUATION, SAVED = range(6)


class Keys:
    """The keys of a run's seeds: ``keys(purpose, ...)`` is one per seed, ``[R]``, and never the same for two purposes."""

    def __init__(self, seeds: Sequence[int]):
        self.roots = jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))

    def __call__(self, *path: int) -> jax.Array:
        return functools.reduce(lambda keys, word: _fold_in(keys, np.uint32(word)), path, self.roots)


def fold_in(root: jax.Array, *path: Any) -> jax.Array:
    """What `Keys` gives the seed of this root, for use in a compiled program."""
    return functools.reduce(lambda key, word: jax.random.fold_in(key, jnp.uint32(word)), path, root)


@jax.jit
@functools.partial(jax.vmap, in_axes=(0, None))
def _fold_in(key: jax.Array, word: jax.Array) -> jax.Array:
    return jax.random.fold_in(key, word)
