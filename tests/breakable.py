"""What the tests of reliability share: an environment that can be broken at will, and runs that share their programs."""

from __future__ import annotations

import dataclasses
import math
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import equinox as eqx
import helpers
import jax
import jax.numpy as jnp
import pytest

import reppo
from reppo import algorithms, collector, same_run
from reppo.collector import compile_over_seeds
from reppo.compiling import Options
from reppo.config import Config
from reppo.envs.autoreset import AutoReset
from reppo.envs.spec import EnvSpec
from reppo.interrupt import Interrupt
from reppo.sinks import Event

#: One episode is longer than the run, so that the only resets are those that a test asks for.
CONFIG = dataclasses.replace(
    helpers.TINY,
    total_steps=4 * 8 * 16,
    num_steps=16,
    episode_length=1000,
    stagger_episodes=False,
    num_evals=4,
    num_epochs=1,
    num_minibatches=4,
)
SPOTS = ("obs", "reward", "state")
MARK = 1e6  #: a finite reward, by which tests tell a loss to break
VALUES = {"nan": math.nan, "inf": math.inf, "1e30": 1e30, "mark": MARK}


class BreakableState(eqx.Module):
    position: jax.Array
    momentum: jax.Array  #: hidden: it moves the position at the next step
    age: jax.Array
    breaks_at: jax.Array  #: the age at which it breaks; never where it is negative
    breakage: jax.Array  #: how: an index into `SPOTS` times `VALUES`; the numbers would break the state


class Breakable(reppo.Env):
    """A point that is pushed. A test plants what is to go wrong into its state; a reset forgets it."""

    action_size = 1
    value_range = (-10.0, 10.0)

    def reset(self, key: jax.Array) -> tuple[BreakableState, jax.Array]:
        position = jax.random.uniform(key, (2,), minval=-1.0, maxval=1.0)
        state = BreakableState(position, jnp.zeros(2), jnp.zeros((), jnp.int32), jnp.full((), -1), jnp.zeros((), int))
        return state, position

    def step(self, state: BreakableState, action: jax.Array, key: jax.Array) -> tuple[BreakableState, reppo.Transition]:
        now = jnp.arange(12) == jnp.where(state.age == state.breaks_at, state.breakage, -1)
        numbers = jnp.where(now.reshape(3, 4), jnp.asarray(list(VALUES.values())), 0.0)
        in_obs, in_reward, in_state = jnp.sum(numbers, axis=1)
        momentum = 0.9 * state.momentum + 0.1 * jnp.concatenate([action, -action])
        position = jnp.tanh(state.position) + state.momentum
        after = BreakableState(position, momentum + in_state, state.age + 1, state.breaks_at, state.breakage)
        reward = jnp.where(in_reward == 0, -jnp.sum(position**2), in_reward)
        return after, reppo.Transition(position + in_obs, reward, jnp.array(False))


class Shared:
    """Compiled programs that outlive a run: another of the same configuration takes them instead of its own."""

    def __init__(self) -> None:
        self.variant = ""  #: of the algorithm, where a test has patched it
        self._kept: dict[Any, Any] = {}
        self._make_programs, self._make_learner = collector.make_programs, algorithms.make_learner

    def _once(self, make: Callable[[], Any], *key: Any) -> Any:
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    @staticmethod
    def _meaning(config: Config) -> Config:
        """The configuration without the options that change no program."""
        return dataclasses.replace(config, **{name: getattr(Config(), name) for name in same_run.RESUMABLE})

    def make_learner(self, config: Config, spec: EnvSpec) -> Any:
        key = "learner", self.variant, spec.name, self._meaning(config)
        return self._once(lambda: self._make_learner(config, spec), *key)

    def compile_over_seeds(
        self, function: Callable[..., Any], num_seeds: int, in_axes: Sequence[int | None], options: Options
    ) -> Any:
        # The learner is kept, too, and with it the functions that it is made of.
        return self._once(lambda: compile_over_seeds(function, num_seeds, in_axes, options), function, num_seeds)

    def make_programs(self, env: AutoReset, eval_env: AutoReset, learner: Any, config: Config, num_seeds: int) -> Any:
        key = "programs", self.variant, env.env.name, env.episode_length, eval_env.num_envs, self._meaning(config), num_seeds
        return self._once(lambda: self._make_programs(env, eval_env, learner, config, num_seeds), *key)


SHARED = Shared()


@pytest.fixture(scope="module", autouse=True)
def shared_programs() -> Iterator[None]:
    """Runs within a module that imports this take their compiled programs from those that came before.

    With the precision that `loop` sets, or what a test calls by itself would be compiled a second time.
    """
    with pytest.MonkeyPatch.context() as patch, jax.default_matmul_precision(CONFIG.precision):
        patch.setattr(collector, "make_programs", SHARED.make_programs)
        patch.setattr("reppo.run.make_learner", SHARED.make_learner)
        patch.setattr("reppo.run.compile_over_seeds", SHARED.compile_over_seeds)
        yield


class Recorder:
    """A `reppo.sinks.Sink` that remembers every event, and asks to stop at a given one."""

    def __init__(self, interrupt: Interrupt | None = None, stop_after: int | None = None, kind: str = "metrics"):
        self.interrupt, self.stop_after, self.kind = interrupt, stop_after, kind
        self.events: list[Event] = []

    def begin(self, description: dict[str, Any]) -> None:
        self.description = description

    def write(self, event: Event) -> None:
        self.events.append(event)
        seen = sum(e.kind == self.kind for e in self.events)
        if self.interrupt is not None and event.kind == self.kind and seen == self.stop_after:
            self.interrupt.requested = signal.SIGTERM

    def close(self) -> None:
        self.closed = True

    @property
    def texts(self) -> list[str]:
        return [event.text for event in self.events if event.text]
