r"""Three estimators of one gradient: that of $J(\theta) = E_{a \sim \pi_\theta}[\alpha \log \pi_\theta(a|x) - Q(x, a)]$.

All have the signature of `Estimator` and return a per-state surrogate whose gradient in the policy's parameters is
the estimate (paper, section 2 and its ablation). They agree in expectation; they differ in variance and in what they
need to know: the gradient of Q, its values, or only a sampled return.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from reppo.distributions import ActionDistribution

Q = Callable[[jax.Array], jax.Array]  #: actions ``[..., B, A]``, or ``[..., B]`` if discrete, to values ``[..., B]``

RATIO_CLIP = 0.2  #: PPO's clip of the importance ratio, for `score_gae`


class Behaviour(NamedTuple):
    """What the rollout remembers of the action it took; only `score_gae` looks at it."""

    sample: jax.Array  #: ``[B, A]``, or ``[B]`` if discrete
    log_prob: jax.Array  #: of the rollout policy, ``[B]``
    advantage: jax.Array  #: soft generalised advantage of that action, ``[B]``


class Estimator(Protocol):
    def __call__(
        self,
        policy: ActionDistribution,
        q: Q,
        alpha: jax.Array,
        behaviour: Behaviour,
        key: jax.Array,
        num_samples: int,
    ) -> jax.Array:
        """The surrogate of every state, ``[B]``.

        Args:
            policy: the current policy at the states ``[B]``; the only argument differentiated.
            q: the value as a function of the action.
            alpha: entropy temperature, a constant here.
            behaviour: the rollout's actions.
            key: PRNG key for fresh samples.
            num_samples: ``S``, for estimators that average several samples.
        """
        ...


def pathwise(
    policy: ActionDistribution, q: Q, alpha: jax.Array, behaviour: Behaviour, key: jax.Array, num_samples: int
) -> jax.Array:
    """The objective itself: at one reparameterised sample, where the gradient goes through Q into the action; or, of
    discrete actions, at all of them, where it goes into their probabilities and nothing is left to estimate."""
    del behaviour, num_samples
    nodes = policy.quadrature(key, 1)
    return nodes.expectation(alpha * nodes.log_prob - q(policy.action(nodes.sample)))


def score_q(
    policy: ActionDistribution, q: Q, alpha: jax.Array, behaviour: Behaviour, key: jax.Array, num_samples: int
) -> jax.Array:
    """REINFORCE with the learned Q: ``S`` samples, each one's baseline the mean of the others."""
    del behaviour
    # Without this stop_gradient the samples would carry a pathwise gradient through log_prob, and bias the score.
    sample = jax.lax.stop_gradient(policy.sample(key, (num_samples,)))
    log_prob = policy.log_prob(sample)
    cost = alpha * log_prob - q(policy.action(sample))
    baseline = (jnp.sum(cost, axis=0) - cost) / (num_samples - 1)
    return jnp.mean(jax.lax.stop_gradient(cost - baseline) * log_prob, axis=0)


def score_gae(
    policy: ActionDistribution, q: Q, alpha: jax.Array, behaviour: Behaviour, key: jax.Array, num_samples: int
) -> jax.Array:
    """PPO's clipped surrogate on the rollout's own actions and their soft advantages."""
    del q, alpha, key, num_samples
    ratio = jnp.exp(policy.log_prob(behaviour.sample) - behaviour.log_prob)
    clipped = jnp.clip(ratio, 1 - RATIO_CLIP, 1 + RATIO_CLIP)
    return -jnp.minimum(ratio * behaviour.advantage, clipped * behaviour.advantage)


ESTIMATORS: dict[str, Estimator] = {"pathwise": pathwise, "score_q": score_q, "score_gae": score_gae}
