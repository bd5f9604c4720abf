"""What a policy is at a state: a tanh-Gaussian where actions are continuous (paper, section 3.2), else a categorical.

The algorithm asks the same questions of both, those of `ActionDistribution`, and so is written once. What it calls a
*sample* is what densities are evaluated at, and what a rollout remembers: a number before the tanh for each action
dimension, or the index of a discrete action.
"""

from __future__ import annotations

import abc
import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

LOG_2PI = math.log(2 * math.pi)


class Quadrature(NamedTuple):
    r"""Samples and weights that stand for a policy in an expectation: $E_{a \sim \pi} f(a) = \sum_s w_s f(a_s)$."""

    sample: jax.Array  #: ``[S, ..., A]``, or ``[S, ...]`` of discrete actions
    log_prob: jax.Array  #: ``log pi(a_s)``, ``[S, ...]``
    weight: jax.Array | None  #: ``[S, ...]``; None for ``1 / S``

    def expectation(self, values: jax.Array) -> jax.Array:
        """``E f(a)``, ``[...]``, from ``f(a_s)``, ``[S, ...]``."""
        return jnp.mean(values, 0) if self.weight is None else jnp.sum(self.weight * values, 0)


class ActionDistribution(eqx.Module):
    """A distribution over actions at every state; its parameters have leading axes ``[...]``."""

    @abc.abstractmethod
    def sample(self, key: jax.Array, shape: tuple[int, ...] = ()) -> jax.Array:
        """Samples with leading axes ``shape + [...]``."""

    @abc.abstractmethod
    def greedy(self) -> jax.Array:
        """The sample of the greedy action."""

    @abc.abstractmethod
    def action(self, sample: jax.Array) -> jax.Array:
        """What the critic and the environment receive: in [-1, 1], or the index of a discrete action."""

    @abc.abstractmethod
    def log_prob(self, sample: jax.Array) -> jax.Array:
        """Log-density or log-probability of the sample's action, ``[...]``."""

    @abc.abstractmethod
    def kl(self, other: Any) -> jax.Array:
        """``KL(self || other)`` to another of its class, ``[...]``, exact."""

    @abc.abstractmethod
    def quadrature(self, key: jax.Array, num_samples: int) -> Quadrature:
        """Where, and with which weights, to evaluate a function of the action for its expectation. The gradient of the
        expectation in the policy's parameters is then right, too."""

    @abc.abstractmethod
    def diagnostics(self) -> dict[str, jax.Array]:
        """Numbers worth a look, ``[...]`` each, by name."""

    def mode(self) -> jax.Array:
        """The greedy action, as `action` gives it."""
        return self.action(self.greedy())

    def entropy(self, key: jax.Array) -> jax.Array:
        """``-E log pi(a)``, ``[...]``, from one sample where it is not exact."""
        nodes = self.quadrature(key, 1)
        return -nodes.expectation(nodes.log_prob)


class TanhGaussian(ActionDistribution):
    r"""``u ~ N(mean, exp(log_std)^2)``, ``a = tanh(u)``; both parameters ``[..., A]``.

    Densities are evaluated at the pre-tanh sample ``u``, never at the action: inverting a saturated ``tanh`` loses the
    sample, and clipping it first biases every saturated state.
    """

    mean: jax.Array
    log_std: jax.Array

    def sample(self, key: jax.Array, shape: tuple[int, ...] = ()) -> jax.Array:
        """Reparameterised pre-tanh samples ``u``, ``shape + [..., A]``."""
        noise = jax.random.normal(key, shape + self.mean.shape, self.mean.dtype)
        return self.mean + jnp.exp(self.log_std) * noise

    def greedy(self) -> jax.Array:
        """The mean ``[..., A]``, before the tanh."""
        return self.mean

    def action(self, sample: jax.Array) -> jax.Array:
        return jnp.tanh(sample)

    def log_prob(self, sample: jax.Array) -> jax.Array:
        r"""Log-density of the action ``tanh(u)`` at the pre-tanh sample ``u``, summed over actions, ``[...]``.

        $$ \log \pi(a) = \sum_i \log N(u_i; \mu_i, \sigma_i) - \log(1 - \tanh^2 u_i) $$

        with $\log(1 - \tanh^2 u) = 2 (\log 2 - u - \mathrm{softplus}(-2u))$, which is exact in the tails.
        """
        z = (sample - self.mean) * jnp.exp(-self.log_std)
        gaussian = -0.5 * (z**2 + LOG_2PI) - self.log_std
        log_jacobian = 2 * (math.log(2) - sample - jax.nn.softplus(-2 * sample))
        return jnp.sum(gaussian - log_jacobian, axis=-1)

    def kl(self, other: TanhGaussian) -> jax.Array:
        r"""``KL(self || other)``, summed over actions, ``[...]``, in closed form.

        tanh is a bijection, so the divergence of the squashed distributions is that of their Gaussians:

        $$ \sum_i \log\frac{\sigma'_i}{\sigma_i} + \frac{\sigma_i^2 + (\mu_i - \mu'_i)^2}{2 \sigma_i'^2} - \frac12 $$
        """
        log_ratio = other.log_std - self.log_std
        z = (self.mean - other.mean) * jnp.exp(-other.log_std)
        return jnp.sum(log_ratio + 0.5 * (jnp.exp(-2 * log_ratio) + z**2 - 1), axis=-1)

    def quadrature(self, key: jax.Array, num_samples: int) -> Quadrature:
        """Monte Carlo: ``S`` reparameterised samples of equal weight, so that a gradient is the pathwise one."""
        sample = self.sample(key, (num_samples,))
        return Quadrature(sample, self.log_prob(sample), None)

    def diagnostics(self) -> dict[str, jax.Array]:
        return {"std": jnp.mean(jnp.exp(self.log_std), -1)}


class Categorical(ActionDistribution):
    r"""One of ``A`` discrete actions, $\pi(a) \propto e^{l_a}$; ``logits`` are ``[..., A]``, samples are indices."""

    logits: jax.Array

    @property
    def log_probs(self) -> jax.Array:
        """``log pi(a)`` of every action, ``[..., A]``."""
        return jax.nn.log_softmax(self.logits)

    def sample(self, key: jax.Array, shape: tuple[int, ...] = ()) -> jax.Array:
        """Indices, int32 ``shape + [...]``."""
        return jax.random.categorical(key, self.logits, shape=shape + self.logits.shape[:-1]).astype(jnp.int32)

    def greedy(self) -> jax.Array:
        """The index of the most probable action, the first of those where there are several, int32 ``[...]``."""
        return jnp.argmax(self.logits, -1).astype(jnp.int32)

    def action(self, sample: jax.Array) -> jax.Array:
        return sample

    def log_prob(self, sample: jax.Array) -> jax.Array:
        return pick(self.log_probs, sample)

    def kl(self, other: Categorical) -> jax.Array:
        r"""$\sum_a \pi(a) (\log \pi(a) - \log \pi'(a))$, ``[...]``."""
        return jnp.sum(jnp.exp(self.log_probs) * (self.log_probs - other.log_probs), -1)

    def quadrature(self, key: jax.Array, num_samples: int) -> Quadrature:
        """Every action, weighted by its probability: the expectation is exact, and so is its gradient. ``S = A``."""
        del key, num_samples
        log_prob = jnp.moveaxis(self.log_probs, -1, 0)
        actions = jnp.arange(log_prob.shape[0], dtype=jnp.int32).reshape(-1, *[1] * (log_prob.ndim - 1))
        return Quadrature(jnp.broadcast_to(actions, log_prob.shape), log_prob, jnp.exp(log_prob))

    def diagnostics(self) -> dict[str, jax.Array]:
        return {"greedy_prob": jnp.exp(jnp.max(self.log_probs, -1))}


def pick(values: jax.Array, index: jax.Array) -> jax.Array:
    """The entry ``index``, int ``[S, ...]`` or ``[...]``, of the last axis of ``values``, ``[..., A]``.

    A masked sum: its gradient needs no scatter, which is slow, and the leading axes broadcast.
    """
    chosen = index[..., None] == jnp.arange(values.shape[-1])
    return jnp.sum(jnp.where(chosen, values, 0.0), -1)


def sampled_kl(old: ActionDistribution, new: ActionDistribution, key: jax.Array, num_samples: int) -> jax.Array:
    """Monte-Carlo ``KL(old || new)`` from ``num_samples`` samples of ``old``: the paper's estimator, for ablations."""
    sample = old.sample(key, (num_samples,))
    return jnp.mean(old.log_prob(sample) - new.log_prob(sample), axis=0)
