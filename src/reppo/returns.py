"""Soft TD-lambda returns (paper, section 3.1)."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def soft_lambda_returns(
    reward: jax.Array, discount: jax.Array, entropy_bonus: jax.Array, next_value: jax.Array, lambda_: jax.Array
) -> jax.Array:
    r"""Multi-step soft returns by backward recursion; every argument and the result ``[T, N]``.

    $$ G_t = r_t + d_t \big[ \alpha H_t + (1 - \lambda_t) V_t + \lambda_t G_{t+1} \big] $$

    Args:
        reward: ``r_t``.
        discount: ``d_t = gamma * (1 - terminated_t)``; zero stops the bootstrap *and* the entropy bonus.
        entropy_bonus: ``alpha * H_t``, the entropy of the policy at the true successor ``x'_t``.
        next_value: ``V_t``, the value of the true successor ``x'_t``.
        lambda_: ``lambda_t``; zero wherever row ``t + 1`` does not continue row ``t`` (truncation, invalid rows).
            The last row has no successor in the rollout: it always bootstraps from ``next_value``.

    The flags of an episode's end live in ``discount`` and ``lambda_`` alone, so none appears in the recursion.
    """
    if not reward.shape == discount.shape == entropy_bonus.shape == next_value.shape == lambda_.shape:
        shapes = [x.shape for x in (reward, discount, entropy_bonus, next_value, lambda_)]
        raise ValueError(f"soft_lambda_returns needs five arrays of one shape [T, N], got {shapes}")

    def step(following: jax.Array, row: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        r, d, bonus, v, lam = row
        g = r + d * (bonus + (1 - lam) * v + lam * following)
        return g, g

    rows = (reward, discount, entropy_bonus, next_value, lambda_)
    _, returns = jax.lax.scan(step, next_value[-1], rows, reverse=True)
    return returns


def lambda_schedule(lambda_: float, truncated: jax.Array, valid: jax.Array) -> jax.Array:
    """``lambda_t`` of the recursion, ``[T, N]``: zero where row ``t + 1`` does not continue row ``t``.

    That is where the episode was cut (``truncated``), where the next row is no real transition (``~valid``), and on
    the last row.
    """
    next_is_real = jnp.concatenate([valid[1:], jnp.zeros_like(valid[:1])])
    return lambda_ * (~truncated & next_is_real).astype(jnp.float32)
