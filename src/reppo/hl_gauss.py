"""HL-Gauss: a scalar as a histogram of a narrow Gaussian (paper, section 3.3; Imani & White 2018).

``K`` bin centres are spread evenly on ``[v_min, v_max]`` with spacing ``w = (v_max - v_min) / (K - 1)``. The
bins' edges therefore run from ``v_min - w/2`` to ``v_max + w/2``, and both ends of the support are centres.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.scipy.special import erf

SIGMA_IN_BINS = 0.75  #: standard deviation of the Gaussian, in units of the bin width ``w``


def centres(v_min: float, v_max: float, num_bins: int) -> jax.Array:
    """The ``K`` bin centres, ``[K]``."""
    return jnp.linspace(v_min, v_max, num_bins)


def encode(values: jax.Array, v_min: float, v_max: float, num_bins: int) -> jax.Array:
    r"""Values ``[...]`` to bin probabilities ``[..., K]``.

    $$ p_k \propto \Phi\big((e_{k+1} - G) / \sigma\big) - \Phi\big((e_k - G) / \sigma\big), \qquad \sigma = 0.75\,w $$

    ``G`` is the value clipped to the support. The mass outside the outer edges is renormalised away.

    Raises:
        ValueError: if the support is empty or has fewer than two bins.
    """
    if num_bins < 2 or not v_min < v_max:
        raise ValueError(f"a value support needs v_min < v_max and at least 2 bins, got [{v_min}, {v_max}] and {num_bins}")
    width = (v_max - v_min) / (num_bins - 1)
    edges = jnp.linspace(v_min - width / 2, v_max + width / 2, num_bins + 1)
    clipped = jnp.clip(values, v_min, v_max)[..., None]
    cdf = erf((edges - clipped) / (SIGMA_IN_BINS * width * jnp.sqrt(2.0)))
    mass = cdf[..., 1:] - cdf[..., :-1]
    return mass / (cdf[..., -1:] - cdf[..., :1])


def decode(probs: jax.Array, v_min: float, v_max: float) -> jax.Array:
    """The mean of bin probabilities ``[..., K]``, ``[...]``: ``sum_k p_k c_k``."""
    return probs @ centres(v_min, v_max, probs.shape[-1])
