"""The policy's distribution: a diagonal Gaussian squashed by tanh (paper, section 3.2)."""

from __future__ import annotations

import math

import equinox as eqx
import jax
import jax.numpy as jnp

LOG_2PI = math.log(2 * math.pi)


class TanhGaussian(eqx.Module):
    r"""``u ~ N(mean, exp(log_std)^2)``, ``a = tanh(u)``; both parameters ``[..., A]``.

    Densities are evaluated at the pre-tanh sample ``u``, never at the action: inverting a saturated ``tanh`` loses the
    sample, and clipping it first biases every saturated state.
    """

    mean: jax.Array
    log_std: jax.Array

    def sample(self, key: jax.Array, shape: tuple[int, ...] = ()) -> jax.Array:
        """Reparameterised pre-tanh samples ``u``, ``shape + [..., A]``; the action is ``tanh(u)``."""
        noise = jax.random.normal(key, shape + self.mean.shape, self.mean.dtype)
        return self.mean + jnp.exp(self.log_std) * noise

    def log_prob(self, pre_tanh: jax.Array) -> jax.Array:
        r"""Log-density of the action ``tanh(u)`` at the pre-tanh sample ``u``, summed over actions, ``[...]``.

        $$ \log \pi(a) = \sum_i \log N(u_i; \mu_i, \sigma_i) - \log(1 - \tanh^2 u_i) $$

        with $\log(1 - \tanh^2 u) = 2 (\log 2 - u - \mathrm{softplus}(-2u))$, which is exact in the tails.
        """
        z = (pre_tanh - self.mean) * jnp.exp(-self.log_std)
        gaussian = -0.5 * (z**2 + LOG_2PI) - self.log_std
        log_jacobian = 2 * (math.log(2) - pre_tanh - jax.nn.softplus(-2 * pre_tanh))
        return jnp.sum(gaussian - log_jacobian, axis=-1)

    def kl(self, other: TanhGaussian) -> jax.Array:
        r"""``KL(self || other)``, summed over actions, ``[...]``, in closed form.

        tanh is a bijection, so the divergence of the squashed distributions is that of their Gaussians:

        $$ \sum_i \log\frac{\sigma'_i}{\sigma_i} + \frac{\sigma_i^2 + (\mu_i - \mu'_i)^2}{2 \sigma_i'^2} - \frac12 $$
        """
        log_ratio = other.log_std - self.log_std
        z = (self.mean - other.mean) * jnp.exp(-other.log_std)
        return jnp.sum(log_ratio + 0.5 * (jnp.exp(-2 * log_ratio) + z**2 - 1), axis=-1)

    def mode(self) -> jax.Array:
        """The greedy action ``tanh(mean)``, ``[..., A]``."""
        return jnp.tanh(self.mean)


def sampled_kl(old: TanhGaussian, new: TanhGaussian, key: jax.Array, num_samples: int) -> jax.Array:
    """Monte-Carlo ``KL(old || new)`` from ``num_samples`` samples of ``old``: the paper's estimator, for ablations."""
    u = old.sample(key, (num_samples,))
    return jnp.mean(old.log_prob(u) - new.log_prob(u), axis=0)
