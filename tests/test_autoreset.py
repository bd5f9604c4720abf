"""Automatic resets, on an environment that counts, and against a simulation of it in plain Python.

The action says what goes wrong: a script of events drives every way in which a step can end.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import Array, leaves
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from reppo.envs.autoreset import LARGEST, AutoReset, AutoResetState, First
from reppo.envs.base import Env, Transition
from reppo.types import TimeStep

N, T, LIMIT = 3, 10, 4

GO, TERMINATE, OBS_NAN, REWARD_INF, STATE_NAN, OBS_HUGE, END_NAN, END_IN_NAN = range(8)  #: what an action makes of its step


class Counting(Env):
    """State: where the episode began (``start``, random), steps since, and a number that `reseed` replaces.

    The observation is ``[start, steps]``, the reward ``100 start + steps`` after the step. There is an infinity in the
    state, on purpose, as simulators have them.
    """

    action_size = 1
    action_low, action_high = 0.0, 10.0

    def reset(self, key: jax.Array) -> tuple[Any, Any]:
        start = jax.random.randint(key, (), 0, 1000).astype(jnp.float32)
        state = {"start": start, "steps": jnp.zeros(()), "luck": jnp.zeros(()), "limit": jnp.array(jnp.inf)}
        return state, {"where": jnp.stack([start, 0.0])}

    def step(self, state: Any, action: jax.Array, key: jax.Array) -> tuple[Any, Transition]:
        event = jnp.round(action[0]).astype(jnp.int32)
        steps = state["steps"] + 1
        reward = jnp.where(event == REWARD_INF, jnp.inf, 100 * state["start"] + steps)
        seen = jnp.where(
            (event == OBS_NAN) | (event == END_IN_NAN), jnp.nan, jnp.where(event == OBS_HUGE, 2 * LARGEST, steps)
        )
        terminated = jnp.where(event == END_NAN, jnp.nan, (event == TERMINATE) | (event == END_IN_NAN))
        after = {**state, "steps": jnp.where(event == STATE_NAN, jnp.nan, steps)}
        return after, Transition({"where": jnp.stack([state["start"], seen])}, reward, terminated)

    def reseed(self, state: Any, key: jax.Array) -> Any:
        return {**state, "luck": jax.random.uniform(key, minval=1.0, maxval=2.0)}


def action(event: int | Array) -> jax.Array:
    """The action in [-1, 1] that the bounds 0 and 10 make an event of."""
    return jnp.asarray(event, jnp.float32)[..., None] / 5 - 1


@functools.cache
def vector_env(limit: int = LIMIT) -> AutoReset:
    return AutoReset(Counting(), N, limit)


@functools.cache
def compiled(name: str, limit: int = LIMIT) -> Callable[..., Any]:
    return jax.jit(getattr(vector_env(limit), name))


def begun(stagger: jax.Array | None = None, limit: int = LIMIT) -> AutoResetState:
    return compiled("begin", limit)(compiled("first", limit)(jax.random.key(0)), stagger)


def step(state: AutoResetState, events: list[int], limit: int = LIMIT, seed: int = 0) -> tuple[AutoResetState, TimeStep]:
    return compiled("step", limit)(state, action(np.asarray(events)), jax.random.key(seed))


def where(obs: Any) -> list[tuple[float, ...]]:
    return [tuple(float(x) for x in row) for row in obs["where"]]


# ------------------------------------------------------------------------------------------- by hand


def test_an_episode_counts_and_then_begins_again() -> None:
    state = begun()
    starts = [x for x, _ in where(state.obs)]
    assert len(set(starts)) == N, "every environment has its own first state"
    for t in (1, 2, 3):
        state, row = step(state, [GO, GO, GO])
        assert where(row.obs) == where(row.next_obs) == [(x, t) for x in starts]
        np.testing.assert_allclose(row.reward, [100 * x + t for x in starts])
        assert not (row.terminated | row.truncated).any()
        assert row.valid.all()
    state, row = step(state, [GO, TERMINATE, GO])
    # The fourth step reaches the limit. The true successor is where the step led, the observation where the next begins.
    assert where(row.next_obs) == [(x, 4) for x in starts]
    assert where(row.obs) == where(state.obs) == [(x, 0) for x in starts]
    assert row.truncated.tolist() == [True, False, True]
    assert row.terminated.tolist() == [False, True, False]
    assert row.info["episode_done"].all()
    assert row.info["episode_length"].tolist() == [4, 4, 4]
    np.testing.assert_allclose(row.info["episode_return"], [400 * x + 1 + 2 + 3 + 4 for x in starts])
    # And a new episode begins its own account.
    state, row = step(state, [GO, GO, GO])
    assert row.info["episode_length"].tolist() == [1, 1, 1]
    np.testing.assert_allclose(row.info["episode_return"], [100 * x + 1 for x in starts])


def test_termination_resets_that_environment_alone() -> None:
    state, _ = step(begun(), [GO, GO, GO])
    starts = [x for x, _ in where(state.obs)]
    state, row = step(state, [GO, TERMINATE, GO])
    assert row.terminated.tolist() == [False, True, False]
    assert where(row.next_obs) == [(x, 2) for x in starts]
    assert where(row.obs) == [(starts[0], 2), (starts[1], 0), (starts[2], 2)]
    assert state.elapsed.tolist() == [2, 0, 2]


@pytest.mark.parametrize("limit", [1, 2])
def test_an_episode_has_exactly_as_many_steps_as_its_limit(limit: int) -> None:
    state = begun(limit=limit)
    for t in range(1, 5):
        state, row = step(state, [GO, GO, GO], limit)
        assert row.truncated.all() == (t % limit == 0)
        assert row.truncated.any() == row.truncated.all()


@pytest.mark.parametrize("event", [OBS_NAN, REWARD_INF, STATE_NAN, OBS_HUGE, END_NAN, END_IN_NAN])
def test_numbers_that_are_not_finite_are_contained(event: int) -> None:
    before, _ = step(begun(), [GO, GO, GO])
    starts = [x for x, _ in where(before.obs)]
    state, row = step(before, [GO, event, GO])
    assert row.valid.tolist() == [True, False, True]
    assert not (row.terminated | row.truncated | row.info["episode_done"]).any()
    # That environment begins again; its row holds nothing that could spread; the others go on.
    assert where(row.obs) == [(starts[0], 2), (starts[1], 0), (starts[2], 2)]
    assert where(row.next_obs) == [(starts[0], 2), (starts[1], 1), (starts[2], 2)]
    assert row.reward[1] == 0
    assert state.elapsed.tolist() == [2, 0, 2]
    assert state.episode_return[1] == 0
    numbers = leaves((state, row))
    assert all(np.isfinite(x).all() for name, x in numbers.items() if "limit" not in name)


def test_a_fault_at_the_time_limit_or_at_a_termination_is_no_ending() -> None:
    state = begun()
    for _ in range(LIMIT - 1):
        state, _ = step(state, [GO, GO, GO])
    _, row = step(state, [OBS_NAN, STATE_NAN, GO])
    assert row.truncated.tolist() == [False, False, True]
    assert row.info["episode_done"].tolist() == [False, False, True]
    _, row = step(begun(), [END_NAN, END_IN_NAN, TERMINATE])
    assert row.terminated.tolist() == [False, False, True]
    assert row.valid.tolist() == [False, False, True]
    assert row.info["episode_done"].tolist() == [False, False, True]


def test_infinities_that_belong_to_the_state_are_no_fault() -> None:
    state = begun()
    assert np.isinf(state.env["limit"]).all()
    _, row = step(state, [GO, GO, GO])
    assert row.valid.all()


@pytest.mark.parametrize(("low", "high"), [(0.0, 10.0), (np.array([-2.0, 1.0]), np.array([2.0, 4.0]))])
def test_actions_are_mapped_to_the_bounds(low: Any, high: Any) -> None:
    class Bounded(Counting):
        action_size = 2 if np.ndim(low) else 1
        action_low, action_high = low, high

    env = AutoReset(Bounded(), N, LIMIT)
    size = Bounded.action_size
    for squashed, expected in ((-1.0, low), (1.0, high), (0.0, (low + high) / 2), (0.5, low + 0.75 * (high - low))):
        np.testing.assert_allclose(env.scale(jnp.full(size, squashed)), np.broadcast_to(expected, size), rtol=1e-6)


def test_staggered_episodes_end_apart_and_the_partial_ones_do_not_count() -> None:
    limit = 100
    state = begun(stagger=jax.random.key(3), limit=limit)
    elapsed = state.elapsed.tolist()
    assert all(0 <= x < limit for x in elapsed)
    assert len(set(elapsed)) == N
    assert all(x > 0 for x in elapsed)
    ends: list[list[int]] = [[] for _ in range(N)]
    counted: list[list[int]] = [[] for _ in range(N)]
    for t in range(1, 2 * limit + 1):
        state, row = step(state, [GO] * N, limit)
        for n in range(N):
            if row.truncated[n]:
                ends[n].append(t)
            if row.info["episode_done"][n]:
                counted[n].append(int(row.info["episode_length"][n]))
    assert ends == [[limit - x, 2 * limit - x] for x in elapsed]
    assert counted == [[limit]] * N


def test_without_stagger_every_episode_begins_at_its_beginning() -> None:
    state = begun()
    assert state.elapsed.tolist() == [0] * N
    assert state.whole.all()


def test_episodes_that_are_cut_are_truncated_and_lose_nothing() -> None:
    limit, chance, steps = 1000, 0.25, 400
    state = begun(limit=limit)
    step_or_cut = jax.jit(functools.partial(vector_env(limit).step, cut=chance))
    count, lengths = np.zeros(N), []
    starts = [x for x, _ in where(state.first.obs)]
    for t in range(steps):
        state, row = step_or_cut(state, action(np.full(N, GO)), jax.random.key(t))
        count += 1
        assert where(row.next_obs) == [(start, c) for start, c in zip(starts, count, strict=True)]
        lengths += count[row.truncated].tolist()
        count[row.truncated] = 0
        assert where(row.obs) == [(start, c) for start, c in zip(starts, count, strict=True)]
        assert not row.terminated.any()
        assert row.valid.all()
    # A geometric distribution with a mean of 4 and a standard deviation of 3.5, over 300 episodes.
    assert len(lengths) == pytest.approx(chance * N * steps, abs=60)
    assert np.mean(lengths) == pytest.approx(1 / chance, abs=0.8)
    assert np.std(lengths) == pytest.approx(np.sqrt(1 - chance) / chance, abs=0.9)


def test_a_terminal_step_is_not_cut() -> None:
    _, row = vector_env().step(begun(), action(np.array([GO, TERMINATE, OBS_NAN])), jax.random.key(0), cut=1.0)
    assert row.truncated.tolist() == [True, False, False]
    assert row.terminated.tolist() == [False, True, False]


def test_new_first_states_wait_for_the_next_episode() -> None:
    state, _ = step(begun(), [GO, GO, GO])
    old = [x for x, _ in where(state.obs)]
    first = compiled("first")(jax.random.key(1))
    new = [x for x, _ in where(first.obs)]
    assert not set(old) & set(new)
    state, _ = compiled("refresh")(state, first)
    assert where(state.obs) == [(x, 1) for x in old]
    state, row = step(state, [GO, TERMINATE, GO])
    assert where(row.next_obs) == [(x, 2) for x in old]
    assert where(state.obs) == [(old[0], 2), (new[1], 0), (old[2], 2)]


def test_a_new_first_state_that_is_not_sound_is_not_taken() -> None:
    state, first = begun(), compiled("first")(jax.random.key(1))
    old, new = ([x for x, _ in where(obs)] for obs in (state.obs, first.obs))
    broken = first._replace(env={**first.env, "luck": first.env["luck"].at[1].set(jnp.nan)})
    state, _ = compiled("refresh")(state, broken)
    state, _ = step(state, [TERMINATE, TERMINATE, TERMINATE])
    assert where(state.obs) == [(new[0], 0), (old[1], 0), (new[2], 0)]


def test_a_reset_brings_new_luck() -> None:
    # An environment that draws from its state would otherwise repeat itself in every episode.
    state = begun()
    first = state.first
    luck = []
    for seed in range(3):
        state, _ = step(state, [TERMINATE, TERMINATE, GO], seed=seed)
        luck.append(state.env["luck"].tolist())
        assert not state.first.env["luck"].any(), "the stored first state stays as it was drawn"
    assert [row[2] for row in luck] == [0, 0, 0]
    assert len({row[n] for row in luck for n in (0, 1)}) == 6, "every reset of every environment has its own"
    np.testing.assert_array_equal(state.first.obs["where"], first.obs["where"])


def test_expensive_resets_are_drawn_every_four_episodes() -> None:
    class Expensive(Counting):
        cheap_reset = False

    assert AutoReset(Expensive(), N, 50).refresh_every == 200
    assert AutoReset(Counting(), N, 50).refresh_every == 32


def test_a_step_alone_is_the_step_of_all() -> None:
    state, _ = step(begun(), [GO, GO, GO])
    events = np.array([GO, STATE_NAN, GO])
    for n in range(N):
        row = jax.tree.map(lambda x, n=n: x[n], state.env)
        after, transition = vector_env().step_alone(row, action(events)[n], jax.random.key(0), jnp.asarray(n))
        assert transition.obs["where"].tolist() == [float(state.env["start"][n]), 2.0]
        assert bool(jnp.isnan(after["steps"])) == (n == 1)


# ------------------------------------------------------------------------------------------- any script of events


@dataclasses.dataclass
class Counter:
    """The same environment with its resets, one of `N`, in plain Python."""

    start: float
    first: float
    elapsed: int
    steps: int = 0
    total: float = 0.0
    whole: bool = True

    def step(self, event: int) -> dict[str, Any]:
        self.elapsed += 1
        before = self.start, self.steps
        valid = event in (GO, TERMINATE)
        if valid:
            self.steps += 1
        reward = 100 * self.start + self.steps if valid else 0.0
        self.total += reward
        terminated = event == TERMINATE
        truncated = valid and not terminated and self.elapsed == LIMIT
        row = {
            "next_obs": (self.start, self.steps) if valid else before,
            "reward": reward,
            "terminated": terminated,
            "truncated": truncated,
            "valid": valid,
            "episode_return": self.total,
            "episode_length": self.elapsed,
            "episode_done": (terminated or truncated) and self.whole,
        }
        if terminated or truncated or not valid:
            self.start, self.steps, self.elapsed, self.total, self.whole = self.first, 0, 0, 0.0, True
        return {**row, "obs": (self.start, self.steps)}


@jax.jit
def simulate(key: jax.Array, stagger: jax.Array, refresh: jax.Array, events: jax.Array) -> Any:
    """Run a script of events ``[T, N]``; where ``refresh``, ``[T]``, new first states are stored before the step."""
    env = vector_env()
    keys = jax.random.split(key, T)

    def advance(state: AutoResetState, row: Any) -> Any:
        new, key, event = row
        first: First = env.first(key)
        chosen = jax.tree.map(lambda a, b: jnp.where(new, a, b), first, state.first)
        state, timestep = env.step(env.refresh(state, chosen)[0], action(event), key)
        return state, (chosen.obs["where"][:, 0], timestep)

    start = env.begin(env.first(keys[0]), stagger)
    return start, jax.lax.scan(advance, start, (refresh, keys, events))[1]


scripts = arrays(int, (T, N), elements=st.sampled_from([GO] * 6 + [*range(TERMINATE, END_IN_NAN + 1)]))


@given(scripts, arrays(bool, T), st.integers(0, 1000))
def test_any_script_equals_the_simulation(events: Array, refresh: Array, seed: int) -> None:
    start, (firsts, rows) = jax.device_get(simulate(*jax.random.split(jax.random.key(seed)), refresh, events))
    counters = [
        Counter(start.obs["where"][n, 0], start.obs["where"][n, 0], int(start.elapsed[n]), whole=start.elapsed[n] == 0)
        for n in range(N)
    ]
    assert not (rows.terminated & rows.truncated).any()
    for t in range(T):
        for n, counter in enumerate(counters):
            counter.first = firsts[t, n]
            expected = counter.step(events[t, n])
            found = {
                "obs": tuple(rows.obs["where"][t, n]),
                "next_obs": tuple(rows.next_obs["where"][t, n]),
                **{name: getattr(rows, name)[t, n] for name in ("reward", "terminated", "truncated", "valid")},
                **{name: values[t, n] for name, values in rows.info.items()},
            }
            assert found == expected, (t, n)  # whole numbers, exact in float32
