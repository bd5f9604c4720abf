"""Numbers for the log: means over the rows that count, and over the minibatches of an update.

``docs/metrics.md`` defines every metric.
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp

from reppo.types import Metrics


def masked_mean(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean of ``x`` over the rows where ``mask`` is one."""
    return jnp.sum(x * mask) / jnp.maximum(jnp.sum(mask), 1.0)


def masked_means(per_row: Metrics, mask: jax.Array) -> Metrics:
    """`masked_mean` of each entry ``[B]``, all in one reduction."""
    means = jnp.sum(jnp.stack(list(per_row.values())) * mask, -1) / jnp.maximum(jnp.sum(mask), 1.0)
    return dict(zip(per_row, means, strict=True))


def target_metrics(target: jax.Array, mask: jax.Array, support: tuple[float | jax.Array, float | jax.Array]) -> Metrics:
    """What the critic is to learn, ``[B]``, and which share of it leaves its value support."""
    low, high = support
    return {
        "critic/target": masked_mean(target, mask),
        "critic/target_min": jnp.min(target, where=mask > 0, initial=jnp.inf),
        "critic/target_max": jnp.max(target, where=mask > 0, initial=-jnp.inf),
        "critic/target_clipped": masked_mean(((target < low) | (target > high)).astype(jnp.float32), mask),
    }


class Series(eqx.Module):
    """Metrics side by side, the last axis of ``values``: a scan over minibatches then stores one array, not twenty."""

    values: jax.Array
    names: tuple[str, ...] = eqx.field(static=True)

    @classmethod
    def of(cls, metrics: Metrics) -> Series:
        return cls(jnp.stack(list(metrics.values()), -1), tuple(metrics))

    def __getitem__(self, name: str) -> jax.Array:
        return self.values[..., self.names.index(name)]


LAST_EPOCH = {"actor/kl", "actor/kl_outside", "actor/entropy", "actor/std", "actor/greedy_prob"}  #: those of the policy now
COUNTS = {"train/skipped_updates"}  #: those that add up


def over_epochs(history: Series, num_epochs: int) -> Metrics:
    """One number of every metric over the minibatches ``[E M]`` of an update: the mean, of all epochs or of the last."""
    by_epoch = history.values.reshape(num_epochs, -1, len(history.names)).mean(1)
    last = jnp.array([name in LAST_EPOCH for name in history.names])
    means = dict(zip(history.names, jnp.where(last, by_epoch[-1], by_epoch.mean(0)), strict=True))
    return means | {name: jnp.sum(history[name]) for name in history.names if name in COUNTS}
