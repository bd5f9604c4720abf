"""The two dual variables: the entropy temperature alpha and the KL multiplier beta (paper, section 3.2).

Both are optimised in log space, so they stay positive and move by relative steps.
"""

from __future__ import annotations

import math

import equinox as eqx
import jax
import jax.numpy as jnp


class Duals(eqx.Module):
    """``eta_alpha = log alpha`` and ``eta_beta = log beta``, scalars."""

    log_alpha: jax.Array
    log_beta: jax.Array

    @property
    def alpha(self) -> jax.Array:
        return jnp.exp(self.log_alpha)

    @property
    def beta(self) -> jax.Array:
        return jnp.exp(self.log_beta)


def init(alpha: float, beta: float) -> Duals:
    """Multipliers that start at these values, both positive."""
    return Duals(jnp.asarray(math.log(alpha), jnp.float32), jnp.asarray(math.log(beta), jnp.float32))


def loss(duals: Duals, entropy: jax.Array, target_entropy: float, kl: jax.Array, kl_bound: float) -> jax.Array:
    r"""Its gradient raises alpha while the entropy is below its target, and beta while the KL is above its bound.

    $$ \alpha\,\mathrm{sg}[\mathcal H - \bar{\mathcal H}] - \beta\,\mathrm{sg}[\mathrm{KL} - \bar{\mathrm{KL}}] $$

    ``entropy`` and ``kl`` are batch means, scalars.
    """
    entropy_gap = jax.lax.stop_gradient(entropy - target_entropy)
    kl_gap = jax.lax.stop_gradient(kl - kl_bound)
    return duals.alpha * entropy_gap - duals.beta * kl_gap


LIMITS = 1e-6, 1e6  #: of both multipliers, far from where either does anything


def bounded(duals: Duals, min_beta: float) -> Duals:
    r"""The duals with $\beta \ge \beta_{min}$, and both within `LIMITS`: the step of the dual ascent, projected.

    While a policy moves by less than its bound, $\beta$ decays without end, and the gate's $\beta\,\mathrm{KL}$ is then no
    constraint in the very iteration that needs it. A ``min_beta`` of zero leaves that to the limits: below them gradients
    vanish beside Adam's epsilon, and a multiplier hardly comes back.
    """
    low, high = (math.log(limit) for limit in LIMITS)
    return Duals(
        jnp.clip(duals.log_alpha, low, high),
        jnp.clip(duals.log_beta, max(low, math.log(min_beta) if min_beta > 0 else low), high),
    )
