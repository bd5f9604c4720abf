"""``N`` copies of a JAX environment, with time limits and automatic resets that lose nothing.

The stock wrappers of the field overwrite the terminal observation with the next episode's first one, and then merge
termination with truncation. Here `TimeStep.next_obs` is always the true successor.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from reppo.envs.base import Env, Transition, read_step
from reppo.envs.spec import action_struct
from reppo.errors import ConfigError
from reppo.types import PyTree, TimeStep


class First(NamedTuple):
    """First states of ``N`` episodes and their observations; leaves ``[N, ...]``."""

    env: Any
    obs: PyTree


class AutoResetState(eqx.Module):
    """State of ``N`` environments; leaves ``[N, ...]``."""

    env: Any  #: the environments' own states
    obs: PyTree  #: what the policy acts on next
    first: First  #: the stored first states that a reset returns to
    elapsed: jax.Array  #: steps since the episode began, for the time limit
    episode_return: jax.Array  #: reward so far
    whole: jax.Array  #: whether the episode began at its beginning (staggered first episodes did not)


def where_rows(mask: jax.Array, x: PyTree, y: PyTree) -> PyTree:
    """Row-wise select between two pytrees with leaves ``[N, ...]``."""

    def select(a: jax.Array, b: jax.Array) -> jax.Array:
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            data = where_rows(mask, jax.random.key_data(a), jax.random.key_data(b))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(a))
        return jnp.where(mask.reshape(mask.shape + (1,) * (a.ndim - mask.ndim)), a, b)

    return jax.tree.map(select, x, y)


LARGEST = 1e10  #: magnitude above which a number is no observation; MuJoCo calls a state bad above the same limit


def is_floating(x: jax.Array) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating)


def floats(tree: PyTree, num_rows: int) -> jax.Array:
    """All numbers of a pytree's floating leaves ``[N, ...]`` side by side, ``[N, D]``.

    Side by side, because XLA copies a chain of one test per leaf into the kernel of every leaf that is selected by it:
    some simulators have a hundred leaves, and compiling them took most of a short run's time.
    """
    leaves = [jnp.zeros((num_rows, 0)), *(x for x in jax.tree.leaves(tree) if is_floating(x))]
    dtype = jnp.result_type(*leaves)
    return jnp.concatenate([x.reshape(num_rows, -1).astype(dtype) for x in leaves], axis=1)


def sound_numbers(tree: PyTree, num_rows: int) -> jax.Array:
    """Rows of which every number is finite and at most `LARGEST`, bool ``[N]``."""
    return jnp.all(jnp.abs(floats(tree, num_rows)) <= LARGEST, axis=1)


def sound_state(state: PyTree, first: PyTree, num_rows: int) -> jax.Array:
    """Rows of a simulator's state that are finite wherever their first state was, bool ``[N]``.

    Simulators keep infinities on purpose, as limits and as the distance of contacts that are none.
    """
    return jnp.all(jnp.isfinite(floats(state, num_rows)) | ~jnp.isfinite(floats(first, num_rows)), axis=1)


def sound_first(state: PyTree, old: PyTree, num_rows: int) -> jax.Array:
    """Rows of a new first state that hold a NaN only where the old one does, bool ``[N]``."""
    return jnp.all(~jnp.isnan(floats(state, num_rows)) | jnp.isnan(floats(old, num_rows)), axis=1)


def check_kept(name: str, what: str, old: PyTree, new: PyTree) -> None:
    """Raise `ConfigError` where a step returns another structure, shape or type than a reset; both ``[N, ...]``."""
    if jax.tree.structure(old) != jax.tree.structure(new):
        raise ConfigError(
            f"{name}: step returns {what} of another structure than reset: {jax.tree.structure(new)}, not "
            f"{jax.tree.structure(old)}"
        )
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(old), jax.tree.leaves(new), strict=True):
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            found, expected = (f"{x.dtype}{list(x.shape[1:])}" for x in (b, a))
            place = f"{what}{jax.tree_util.keystr(path)}"
            raise ConfigError(f"{name}: step returns {place} as {found}, reset as {expected}; they must agree")


def check_transition(name: str, before: Any, obs: PyTree, after: Any, transition: Transition) -> None:
    """Raise `ConfigError` for a step that no loop can take, while it is traced; leaves ``[N, ...]``."""
    check_kept(name, "state", before, after)
    check_kept(name, "obs", obs, transition.obs)
    for what, value in (("reward", transition.reward), ("terminated", transition.terminated)):
        if jnp.ndim(value) != 1:
            raise ConfigError(f"{name}: step returns {what} with shape {list(jnp.shape(value)[1:])}; it must be a scalar")


def check_returns(env: Any) -> None:
    """Raise `ConfigError` where a JAX environment's methods return something else than `Env` says; others are left alone."""
    if isinstance(env, Env):
        env.spec()
        state, _ = jax.eval_shape(env.reset, jax.random.key(0))
        action = action_struct(env.action_size, env.discrete)
        read_step(env.name, jax.eval_shape(env.step, state, action, jax.random.key(0)))


class AutoReset:
    """``num_envs`` copies of a JAX environment, which yield `reppo.types.TimeStep`.

    An environment whose episode ends returns to a stored first state, as in Brax and Playground, because a full reset
    can cost hundreds of steps. The loop draws new first states every `refresh_every` steps, so that they do not stay
    the same for the whole run.
    """

    def __init__(self, env: Env, num_envs: int, episode_length: int, bounds: tuple[Any, Any] | None = None):
        self.env = env
        self.num_envs = num_envs
        self.episode_length = episode_length
        low, high = bounds or (env.spec().action_low, env.spec().action_high)
        self.low, self.high = jnp.asarray(low), jnp.asarray(high)
        self.action = action_struct(env.action_size, env.discrete)  #: one action as `step` receives it
        # Where a reset simulates 200 steps, as CheetahRun's does, four episodes of 1000 steps make it 5 % of the cost.
        # One that costs no more than a step is 3 % of it, or less where a rollout has more steps than that.
        self.refresh_every = 32 if env.cheap_reset else 4 * episode_length

    def first(self, key: jax.Array) -> First:
        """Draw ``N`` new first states: the costly part of a reset."""
        return First(*jax.vmap(self.env.reset)(jax.random.split(key, self.num_envs)))

    def begin(self, first: First, stagger: jax.Array | None = None) -> AutoResetState:
        """Begin an episode everywhere. With a key ``stagger``, each starts at a random point of its time limit, so that
        the environments do not end in step."""
        elapsed = jnp.zeros(self.num_envs, jnp.int32)
        if stagger is not None:
            elapsed = jax.random.randint(stagger, (self.num_envs,), 0, self.episode_length)
        # Copies, because the loop donates this state's buffers and one buffer can be donated only once.
        env, obs = jax.tree.map(jnp.copy, (first.env, first.obs))
        return AutoResetState(env, obs, first, elapsed, jnp.zeros(self.num_envs), elapsed == 0)

    def refresh(self, state: AutoResetState, first: First) -> tuple[AutoResetState, jax.Array]:
        """Replace the stored first states; running episodes go on.

        A first state that is not finite takes no place. Returns the state, and how many those were.
        """
        sound = sound_numbers(first.obs, self.num_envs) & sound_first(first.env, state.first.env, self.num_envs)
        kept = where_rows(sound, first, state.first)
        return eqx.tree_at(lambda s: s.first, state, kept), jnp.sum(~sound)

    def scale(self, action: jax.Array) -> jax.Array:
        """Actions in [-1, 1] to the environment's bounds; discrete ones stay as they are."""
        if self.env.discrete:
            return action
        return self.low + (action + 1) / 2 * (self.high - self.low)

    def step_alone(self, state: Any, action: jax.Array, key: jax.Array, index: jax.Array) -> tuple[Any, Transition]:
        """The step that `step` takes in environment ``index``, without a reset: to look into one that went wrong."""
        keys = jax.random.split(jax.random.split(key, 3)[0], self.num_envs)
        return self._step_env(state, self.scale(action), keys[index])

    def _step_env(self, state: Any, action: jax.Array, key: jax.Array) -> tuple[Any, Transition]:
        return read_step(self.env.name, self.env.step(state, action, key))

    def step(
        self, state: AutoResetState, action: jax.Array, key: jax.Array, cut: float | jax.Array = 0.0
    ) -> tuple[AutoResetState, TimeStep]:
        """Step every environment with an action ``[N, A]`` in [-1, 1], mapped affinely to the bounds, or with a discrete
        one, ``[N]``. ``cut`` is the chance that an episode is cut here, as a truncation.

        A row whose successor, reward or state is not finite is no transition: it is reported as invalid, its numbers
        are replaced so that they can reach nothing, and only that environment is reset.
        """
        key_step, key_reset, key_cut = jax.random.split(key, 3)
        env, transition = jax.vmap(self._step_env)(state.env, self.scale(action), jax.random.split(key_step, self.num_envs))
        next_obs, reward, terminated = transition
        check_transition(self.env.name, state.env, state.obs, env, transition)
        reward = reward.astype(jnp.float32)
        valid = sound_numbers((next_obs, reward, terminated), self.num_envs) & sound_state(
            env, state.first.env, self.num_envs
        )
        next_obs = where_rows(valid, next_obs, state.obs)
        reward = jnp.where(valid, reward, 0.0)
        terminated = terminated.astype(bool) & valid
        elapsed = state.elapsed + 1
        over = (elapsed >= self.episode_length) | jax.random.bernoulli(key_cut, cut, (self.num_envs,))
        truncated = over & ~terminated & valid

        done = terminated | truncated | ~valid
        episode_return = state.episode_return + reward
        info = {
            "episode_return": episode_return,
            "episode_length": elapsed,
            "episode_done": (terminated | truncated) & state.whole,
        }
        fresh = jax.vmap(self.env.reseed)(state.first.env, jax.random.split(key_reset, self.num_envs))
        next_state = AutoResetState(
            env=where_rows(done, fresh, env),
            obs=where_rows(done, state.first.obs, next_obs),
            first=state.first,
            elapsed=jnp.where(done, 0, elapsed),
            episode_return=jnp.where(done, 0.0, episode_return),
            whole=state.whole | done,
        )
        return next_state, TimeStep(next_state.obs, next_obs, reward, terminated, truncated, valid, info)
