"""Environments whose ``reset(key)`` and ``step(state, action)`` return a Brax ``State``: Brax and MuJoCo Playground."""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from reppo.envs.base import Env, Transition
from reppo.types import PyTree

SUBSTEPS = 20  #: of the physics in a step; Playground's tasks have at most 10


def longest_scan(jaxpr: Any) -> int:
    """Iterations of the longest scan of a traced function; of scans within scans, their product."""
    longest = 1
    for equation in jaxpr.eqns:
        parts = jax.tree.leaves(equation.params, is_leaf=lambda part: hasattr(part, "eqns"))
        inner = max((longest_scan(part) for part in parts if hasattr(part, "eqns")), default=1)
        longest = max(longest, inner * (equation.params["length"] if equation.primitive.name == "scan" else 1))
    return longest


class BraxStyle(Env):
    """Adapter from the Brax protocol. Its ``done`` is termination only: time limits live in wrappers, which we leave out."""

    def __init__(
        self,
        env: Any,
        name: str,
        episode_length: int,
        value_range: tuple[float, float] | None,
        max_return: float | None = None,
        action_repeat: int = 1,
    ):
        self.inner = env
        self.action_size = env.action_size
        self.episode_length = episode_length // action_repeat
        self.action_repeat = action_repeat  #: steps of ``env`` in one of ours; ``episode_length`` is of ``env``'s
        self.value_range = value_range
        self.max_return = max_return
        self._name = name
        # Its shapes are asked for, and later it is compiled: as a compiled function it is traced once for both.
        self._reset = jax.jit(env.reset)

    @property
    def name(self) -> str:
        return self._name

    @functools.cached_property
    def cheap_reset(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether a reset simulates no more than a step does; CheetahRun's simulates 200."""
        return longest_scan(self._reset.trace(jax.random.key(0)).jaxpr) <= SUBSTEPS

    @property
    def step_seconds(self) -> float | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        dt = getattr(self.inner, "dt", None)  # Brax computes it on the device
        return None if dt is None else float(dt) * self.action_repeat

    def reset(self, key: jax.Array) -> tuple[Any, PyTree]:
        state = self._reset(key)
        return state, state.obs

    def step(self, state: Any, action: jax.Array, key: jax.Array) -> tuple[Any, Transition]:
        del key
        # `done` is set at the end of an episode and a stored state may carry it; no environment reads it.
        if self.action_repeat == 1:
            state = self.inner.step(state, action)
            return state, Transition(state.obs, state.reward, state.done.astype(bool))

        def again(state: Any, _: None) -> tuple[Any, jax.Array]:
            """One more step, unless the episode has ended."""
            over = state.done.astype(bool)
            after = self.inner.step(state, action)
            return jax.tree.map(lambda new, old: jnp.where(over, old, new), after, state), jnp.where(over, 0.0, after.reward)

        state = state.replace(done=jnp.zeros_like(state.done))
        state, reward = jax.lax.scan(again, state, length=self.action_repeat)
        return state, Transition(state.obs, reward.sum(), state.done.astype(bool))

    def render(self, states: Sequence[Any], height: int, width: int, camera: str | None) -> Sequence[np.ndarray]:
        with contextlib.redirect_stderr(io.StringIO()):  # a progress bar of its own
            return self.inner.render(self.drawable(states), height=height, width=width, camera=camera)

    def drawable(self, states: Sequence[Any]) -> list[Any]:
        """What the environment's own ``render`` takes."""
        return list(states)

    def reseed(self, state: Any, key: jax.Array) -> Any:
        # Without this, an environment that returns to its stored first state replays the same random numbers.
        if not isinstance(state.info, dict) or "rng" not in state.info:
            return state
        old = state.info["rng"]
        new = key if jnp.issubdtype(old.dtype, jax.dtypes.prng_key) else jax.random.key_data(key)
        return state.replace(info={**state.info, "rng": new})
