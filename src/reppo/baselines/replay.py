"""A replay memory as a pytree: a ring of the newest ``C`` steps of ``N`` environments, and n-step transitions out of it."""

from __future__ import annotations

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from reppo.envs.spec import EnvSpec
from reppo.types import PyTree, Rollout


class Replay(eqx.Module):
    """Rows of rollouts, leaves ``[C, N, ...]``; row ``t mod C`` is the environments' step ``t``."""

    rows: Rollout
    #: whether the row before is the step before of the same episode; false, too, where a simulator began anew
    linked: jax.Array
    written: jax.Array  #: steps of each environment so far, int32

    @property
    def capacity(self) -> int:
        return self.linked.shape[0]

    @property
    def filled(self) -> jax.Array:
        """Steps of each environment that are there."""
        return jnp.minimum(self.written, self.capacity)


class Transitions(NamedTuple):
    """``B`` n-step transitions: from ``obs`` by ``action``, and after a few steps in ``next_obs``."""

    obs: PyTree  #: ``[B, D]``
    action: jax.Array  #: ``[B, A]``
    reward: jax.Array  #: the discounted sum of the rewards between, ``[B]``
    discount: jax.Array  #: of the value of ``next_obs``: ``gamma^m`` after ``m`` steps, 0 after a termination, ``[B]``
    next_obs: PyTree  #: the true successor of the last step, ``[B, D]``
    valid: jax.Array  #: 1 for a real transition, else 0, ``[B]``


def init(spec: EnvSpec, capacity: int, num_envs: int) -> Replay:
    """An empty memory."""
    shape = (capacity, num_envs)

    def observations() -> PyTree:
        return jax.tree.map(lambda x: jnp.zeros((*shape, *x.shape), x.dtype), spec.observation)

    rows = Rollout(
        obs=observations(),
        sample=jnp.zeros((*shape, spec.action_size)),
        next_obs=observations(),
        reward=jnp.zeros(shape),
        terminated=jnp.zeros(shape, bool),
        truncated=jnp.zeros(shape, bool),
        valid=jnp.zeros(shape, bool),
    )
    return Replay(rows, jnp.zeros(shape, bool), jnp.zeros((), jnp.int32))


def insert(replay: Replay, rollout: Rollout) -> Replay:
    """The memory with ``T`` new steps, in the place of the oldest ones; ``T`` divides ``C``."""
    at = replay.written % replay.capacity
    newest = jax.tree.map(lambda x: x[(replay.written - 1) % replay.capacity][None], replay.rows.next_obs)

    def leads_here(next_obs: jax.Array, newest: jax.Array, obs: jax.Array) -> jax.Array:
        return jnp.all(jnp.concatenate([newest, next_obs[:-1]]) == obs, axis=tuple(range(2, obs.ndim)))

    same = jax.tree.leaves(jax.tree.map(leads_here, rollout.next_obs, newest, rollout.obs))
    linked = jnp.all(jnp.stack(same), axis=0)
    put = lambda buffer, x: jax.lax.dynamic_update_slice_in_dim(buffer, x.astype(buffer.dtype), at, 0)  # noqa: E731
    steps = rollout.reward.shape[0]
    return Replay(jax.tree.map(put, replay.rows, rollout), put(replay.linked, linked), replay.written + steps)


def sample(replay: Replay, key: jax.Array, num_rows: int, num_steps: int, gamma: float) -> Transitions:
    r"""``B`` transitions of up to ``n`` steps, their first steps drawn uniformly.

    $$ R = \sum_{k < m} \gamma^k r_{t + k}, \qquad \text{discount} = \gamma^m (1 - \text{terminated}_{t + m - 1}) $$

    A transition ends after ``n`` steps or with its episode, whichever is first; after a truncation the value of the true
    successor follows. No transition reaches from the newest step into the oldest one. There must be ``n`` steps.
    """
    key_step, key_env = jax.random.split(key)
    oldest = replay.written - replay.filled
    start = oldest + jax.random.randint(key_step, (num_rows,), 0, replay.filled - num_steps + 1)
    env = jax.random.randint(key_env, (num_rows,), 0, replay.linked.shape[1])
    at = (start[:, None] + jnp.arange(num_steps)) % replay.capacity  # [B, n]

    rows, window = replay.rows, (at, env[:, None])
    terminated = rows.terminated[window]
    ended = terminated | rows.truncated[window]
    follows = ~ended[:, :-1] & replay.linked[window][:, 1:] & rows.valid[window][:, 1:]
    inside = jnp.cumprod(
        jnp.concatenate([jnp.ones((num_rows, 1), bool), follows], 1), axis=1
    )  # [B, n]: 1, ..., 1, 0, ..., 0
    length = jnp.sum(inside, axis=1)

    last = jnp.take_along_axis(at, length[:, None] - 1, axis=1)[:, 0]
    return Transitions(
        obs=jax.tree.map(lambda x: x[at[:, 0], env], rows.obs),
        action=rows.sample[at[:, 0], env],
        reward=jnp.sum(inside * gamma ** jnp.arange(num_steps) * rows.reward[window], axis=1),
        discount=gamma**length * (1.0 - rows.terminated[last, env]),
        next_obs=jax.tree.map(lambda x: x[last, env], rows.next_obs),
        valid=rows.valid[at[:, 0], env].astype(jnp.float32),
    )
