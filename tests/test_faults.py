"""Numbers that are not finite: contained, counted, told of, and made again from a file."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import breakable
import equinox as eqx
import helpers
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from breakable import CONFIG, MARK, SPOTS, VALUES, Breakable, Recorder, shared_programs
from hypothesis import given, settings

from reppo import checkpoint, faults, health, loop, optim
from reppo import reppo as algorithm
from reppo.collector import JaxCollector
from reppo.duals import Duals
from reppo.envs.autoreset import AutoReset, First
from reppo.errors import ConfigError, Diverged
from reppo.run import Clock, Run
from reppo.types import Rollout

assert shared_programs  # a fixture of this module from here on

T, N = CONFIG.num_steps, CONFIG.num_envs
BAD = [name for name in VALUES if name != "mark"]


def planted(state: Any, spot: str, value: str, step: int, indices: list[int]) -> Any:
    """The environments' state ``[1, N]``, in which some will break at an age."""
    numbers = step, len(VALUES) * SPOTS.index(spot) + list(VALUES).index(value)
    leaves = state.env.breaks_at, state.env.breakage
    broken = [leaf.at[0, jnp.asarray(indices)].set(number) for leaf, number in zip(leaves, numbers, strict=True)]
    return eqx.tree_at(lambda s: (s.env.breaks_at, s.env.breakage), state, broken)


class Started:
    """A run that can be put back to its first moment, and what it rolled out last."""

    def __init__(self, directory: Path | None = None, config: Any = CONFIG):
        self.run = Run(Breakable(), config, [5], directory)
        self.run.start()
        assert isinstance(self.run.collector, JaxCollector)
        self.collector = self.run.collector
        self._saved = checkpoint.to_host(self.tree)
        self._like = jax.eval_shape(lambda: self.tree)
        self.clock = Clock(0.0)

    @property
    def tree(self) -> Any:
        return {"learner": self.run.state, "env": self.run.env_state}

    def rewind(self) -> None:
        tree = checkpoint.from_host(self._saved, self._like)
        self.run._state, self.collector.env_state = tree["learner"], tree["env"]
        self.run.iteration, self.run.history = 0, []
        self.run.reproduced.clear()

    def plant(self, spot: str, value: str, step: int, indices: list[int]) -> None:
        """Have these environments return ``value`` at a step of the next rollout."""
        self.collector.env_state = planted(self.run.env_state, spot, value, step, indices)

    def iterate(self) -> tuple[dict[str, float], Rollout]:
        """One iteration: its row of metrics, and its rollout ``[T, N, ...]``."""
        seen: list[Any] = []
        update = self.run.update

        def recording(state: Any, rollout: Rollout, key: jax.Array) -> Any:
            seen.append(jax.tree.map(lambda x: np.array(x[0]), rollout))
            return update(state, rollout, key)

        self.run.update = recording
        try:
            (row,) = self.run.iterate(self.clock)
        finally:
            self.run.update = update
        return row, seen[0]


@pytest.fixture(scope="module")
def started() -> Started:
    return Started()


def assert_finite(tree: Any) -> None:
    for name, leaf in helpers.leaves(tree).items():
        assert np.isfinite(leaf).all(), name


# ------------------------------------------------------------------------------------------- environments


@pytest.mark.parametrize("indices", [[2], list(range(N))], ids=["one", "all"])
@pytest.mark.parametrize("step", [0, T // 2, T - 1], ids=["first", "middle", "last"])
@pytest.mark.parametrize("spot", SPOTS)
@pytest.mark.parametrize("value", BAD)
def test_an_environment_that_breaks_is_contained(
    started: Started, value: str, spot: str, step: int, indices: list[int]
) -> None:
    started.rewind()
    started.plant(spot, value, step, indices)
    rows: list[dict[str, float]] = []
    rollouts: list[Rollout] = []
    for _ in range(2):
        row, rollout = started.iterate()
        rows.append(row)
        rollouts.append(rollout)

    # A huge number that is hidden in the state is found when the observation shows it, one step later.
    first_bad = step + (spot == "state" and value == "1e30")
    expected = np.ones((2 * T, N), bool)
    expected[first_bad, indices] = False
    valid = np.concatenate([rollout.valid for rollout in rollouts])
    np.testing.assert_array_equal(valid, expected)
    assert [row["train/invalid_rows"] for row in rows] == [(~expected[:T]).sum(), (~expected[T:]).sum()]
    assert sum(row["train/skipped_updates"] for row in rows) == 0

    assert_finite(started.run.state)
    assert_finite(rollouts)
    seen = np.concatenate([rollout.obs for rollout in rollouts]).astype(np.float64)[expected]
    statistics = started.run.state.policy.normalizer
    assert int(statistics.count[0]) == len(seen) == 2 * T * N - len(indices)
    np.testing.assert_allclose(statistics.mean[0], seen.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(statistics.var[0], seen.var(0), rtol=1e-5)


def test_only_the_environment_that_breaks_is_reset(started: Started) -> None:
    started.rewind()
    _, clean = started.iterate()
    started.rewind()
    started.plant("reward", "nan", 3, [2])
    _, broken = started.iterate()
    others = np.arange(N) != 2
    # The policy is frozen within a rollout, so that nothing of the other environments may differ.
    helpers.assert_identical(jax.tree.map(lambda x: x[:, others], broken), jax.tree.map(lambda x: x[:, others], clean))
    np.testing.assert_array_equal(broken.obs[:4], clean.obs[:4])
    np.testing.assert_array_equal(broken.obs[4, 2], clean.obs[0, 2])  # back at its first state
    np.testing.assert_array_equal(broken.next_obs[3, 2], clean.obs[3, 2])  # no number of the broken step
    assert broken.reward[3, 2] == 0


def test_first_states_that_are_not_finite_are_not_used() -> None:
    env = AutoReset(Breakable(), N, 100)
    first = jax.jit(env.first)
    old, new = first(jax.random.key(0)), first(jax.random.key(1))
    state = env.begin(old)
    bad_obs = new.obs.at[1, 0].set(jnp.nan).at[2, 1].set(-jnp.inf).at[3, 0].set(1e30)
    bad_env = eqx.tree_at(lambda s: s.momentum, new.env, new.env.momentum.at[4, 1].set(jnp.nan))
    after, refused = env.refresh(state, First(bad_env, bad_obs))
    assert int(refused) == 4
    expected = np.array(new.obs)
    expected[1:5] = old.obs[1:5]
    np.testing.assert_array_equal(after.first.obs, expected)
    assert np.isfinite(after.first.env.momentum).all()
    np.testing.assert_array_equal(after.obs, state.obs)


def test_infinities_that_a_first_state_holds_on_purpose_are_left_alone() -> None:
    class Bounded(Breakable):
        def reset(self, key: jax.Array) -> Any:
            state, obs = super().reset(key)
            return (state, jnp.full(1, jnp.inf)), obs

        def step(self, state: Any, action: jax.Array, key: jax.Array) -> Any:
            after, transition = super().step(state[0], action, key)
            return (after, state[1]), transition

    env = AutoReset(Bounded(), N, 100)

    @jax.jit
    def one_step(key: jax.Array) -> Any:
        return env.step(env.begin(env.first(key)), jnp.zeros((N, 1)), key)

    _, timestep = one_step(jax.random.key(0))
    assert timestep.valid.all()


def test_observations_that_are_not_finite_at_the_start_are_refused() -> None:
    class BrokenReset(Breakable):
        def reset(self, key: jax.Array) -> Any:
            state, obs = super().reset(key)
            return state, obs.at[1].set(1e30)

    with pytest.raises(ConfigError, match=r"BrokenReset: obs\[1\] of environment 0 is 1e\+30 right after reset"):
        Run(BrokenReset(), CONFIG, [0], None).start()


def test_an_evaluation_counts_the_episodes_that_break(started: Started) -> None:
    started.rewind()
    collector, programs = started.collector, started.collector.programs

    def begin_broken(first: First) -> Any:
        return planted(programs.begin_evaluation(first), "obs", "nan", 7, [3])

    collector.programs = dataclasses.replace(programs, begin_evaluation=begin_broken)
    before = helpers.leaves(started.tree)
    try:
        event = started.run.evaluation(started.clock)
    finally:
        collector.programs = programs
    assert event is not None
    (row,) = event.rows
    assert row["eval/broken_episodes"] == 1
    assert row["eval/length"] == (7 * 1000 + 8) / 8
    helpers.assert_identical(helpers.leaves(started.tree), before)


# ------------------------------------------------------------------------------------------- gradients

PARTS = ("critic", "actor", "duals")


class BrokenLosses:
    """The losses, with gradients that a reward of ``MARK + 3 * part + value`` makes NaN, infinite or huge."""

    @classmethod
    @contextlib.contextmanager
    def compiled(cls) -> Iterator[None]:
        """Programs that are made and first called here have them."""
        with pytest.MonkeyPatch.context() as patch:
            cls(patch)
            patch.setattr(breakable.SHARED, "variant", "broken losses")
            yield

    def __init__(self, patch: pytest.MonkeyPatch):
        self._critic, self._actor = algorithm.critic_loss, algorithm.actor_loss
        patch.setattr(algorithm, "critic_loss", self.critic)
        patch.setattr(algorithm, "actor_loss", self.actor)

    @staticmethod
    def value(batch: algorithm.Batch, part: str) -> jax.Array:
        code = (jnp.max(batch.reward) - MARK).astype(jnp.int32)
        index = code - 3 * PARTS.index(part)
        chosen = (index >= 0) & (index < 3)
        return jnp.where(chosen, jnp.asarray([VALUES[name] for name in BAD])[jnp.clip(index, 0, 2)], 0.0)

    @staticmethod
    def steep(module: Any, value: jax.Array) -> jax.Array:
        """A term whose gradient is ``value`` in every parameter."""
        return sum((value * jnp.sum(leaf) for leaf in jax.tree.leaves(module)), jnp.zeros(()))

    def critic(self, critic: Any, batch: algorithm.Batch, aux_weight: float) -> Any:
        # The marks are rewards, and nothing must come of them but what is wanted.
        loss, metrics = self._critic(critic, batch._replace(reward=jnp.minimum(batch.reward, 0.0)), aux_weight)
        return loss + self.steep(critic, self.value(batch, "critic")), metrics

    def actor(self, actor: Any, critic: Any, duals: Any, batch: algorithm.Batch, config: Any, key: jax.Array) -> Any:
        loss, metrics = self._actor(actor, critic, duals, batch, config, key)
        broken = self.value(batch, "duals")
        metrics["actor/entropy"] = jnp.where(broken == 0, metrics["actor/entropy"], broken)
        return loss + self.steep(actor, self.value(batch, "actor")), metrics


class Update:
    """One update whose gradients can be broken."""

    def __init__(self) -> None:
        started = Started()
        self.run, self.state, self.keys = started.run, started.run.state, started.run.key(7)
        self.rollout = started.collector.collect(self.state, 0).rows
        self.run.update(self.state, self.rollout, self.keys)  # compiled while the losses are patched
        state, rollout, key = self.own(self.state, self.rollout, self.keys)
        config: Any = self.run.config
        prepare = jax.jit(functools.partial(algorithm.minibatches, config=config, spec=self.run.spec))
        _, order, _ = prepare(state, rollout, key)
        self.order = np.array(order)  #: rows of every minibatch

    @staticmethod
    def own(*trees: Any) -> Any:
        return jax.tree.map(lambda x: x[0], trees)

    def marked(self, part: str, value: str, row: int | None) -> Rollout:
        """The rollout with a mark at one row of the batch, or at every row."""
        rewards = np.array(self.rollout.reward)
        marked = rewards.reshape(-1)
        marked[slice(None) if row is None else row] = MARK + 3 * PARTS.index(part) + BAD.index(value)
        return self.rollout._replace(reward=jnp.asarray(rewards))

    def broken(self, part: str, value: str, row: int | None) -> tuple[Any, float]:
        """The state after an update with that mark, and how many steps it left out."""
        state, metrics = self.run.update(self.state, self.marked(part, value, row), self.keys)
        return self.own(state)[0], float(metrics["train/skipped_updates"][0])


@pytest.fixture(scope="module")
def breaking() -> Update:
    with BrokenLosses.compiled():
        return Update()


@pytest.mark.parametrize("position", [0, 2, 3], ids=["first", "middle", "last"])
@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("part", PARTS)
def test_a_gradient_that_breaks_skips_its_own_step(breaking: Update, part: str, value: str, position: int) -> None:
    state, skipped = breaking.broken(part, value, int(breaking.order[position][0]))
    assert skipped == 1
    assert_finite(state)
    counts = {name: _adam_steps(getattr(state, f"{name}_opt")) for name in PARTS}
    assert counts == {name: 4 - (name == part) for name in PARTS}


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("part", PARTS)
def test_gradients_that_all_break_change_nothing(breaking: Update, part: str, value: str) -> None:
    after, skipped = breaking.broken(part, value, None)
    (before,) = breaking.own(breaking.state)
    assert skipped == 4
    own = {"critic": lambda s: s.critic, "actor": lambda s: s.policy.actor, "duals": lambda s: s.duals}[part]
    helpers.assert_identical(own(after), own(before))
    helpers.assert_identical(getattr(after, f"{part}_opt"), getattr(before, f"{part}_opt"))
    assert_finite(after)


def _adam_steps(opt_state: Any) -> int:
    (count,) = {int(leaf) for leaf in jax.tree.leaves(opt_state) if jnp.issubdtype(leaf.dtype, jnp.integer)}
    return count


HUGE = st.floats(width=32, allow_nan=True, allow_infinity=True)


@given(gradients=st.lists(st.tuples(HUGE, HUGE), min_size=1, max_size=20))
@settings(max_examples=60)
def test_parameters_stay_finite_whatever_the_gradients(gradients: list[tuple[float, float]]) -> None:
    for optimiser in algorithm.optimisers(CONFIG):
        module = Duals(jnp.asarray(0.5), jnp.asarray(-0.5))
        state = optimiser.init(eqx.filter(module, eqx.is_array))
        skipped = 0
        for gradient in gradients:
            grads = Duals(*(jnp.asarray(g, jnp.float32) for g in gradient))
            finite = bool(jnp.isfinite(optax.tree.norm(grads)))
            before = (module, state)
            module, state, norm = _apply(module, grads, state, optimiser)
            assert bool(jnp.isfinite(norm)) == finite
            skipped += not finite
            if not finite:
                helpers.assert_identical((module, state), before)
        assert_finite((module, state))
        assert _adam_steps(state) == len(gradients) - skipped


_APPLY: dict[int, Any] = {}


def _apply(module: Any, grads: Any, state: Any, optimiser: Any) -> Any:
    structure = hash(str(jax.tree.structure(state)))
    if structure not in _APPLY:
        _APPLY[structure] = jax.jit(lambda m, g, s: optim.apply_gradients(m, g, s, optimiser))
    return _APPLY[structure](module, grads, state)


# ------------------------------------------------------------------------------------------- what the user is told


def test_a_run_tells_of_its_faults_once_and_writes_how_to_make_them_again(tmp_path: Path) -> None:
    started = Started(directory=tmp_path)
    rollouts = []
    for step in (3, T + 5):  # one in each of two iterations
        started.plant("obs", "inf", step, [4])
        rollouts.append(started.iterate()[1])
    assert len(started.run.notes) == 1
    (path,) = tmp_path.glob("*.npz")
    assert path.name == f"fault-{T * N:012d}-seed5.npz"
    assert "seed 5, at 128 steps: environment 4 returned numbers that are not finite" in started.run.notes[0]
    assert f"`reppo repro {path}`" in started.run.notes[0]

    with np.load(path) as file:
        np.testing.assert_allclose(file["['action']"], np.tanh(rollouts[0].sample[3, 4]), rtol=1e-5)
    told = faults.replay(path, Breakable())
    assert "environment 4" in told
    assert "obs[0] is inf (2 of 2)" in told
    assert faults.NOT_REPRODUCED in faults.replay(path, _Mended())

    again = Started(directory=tmp_path)
    again.run.recall()
    again.plant("obs", "inf", 3, [4])
    again.iterate()
    assert again.run.notes == []


def test_numbers_that_are_finite_but_absurd_are_named() -> None:
    tree = {"x": jnp.array([1.0, -1e30, jnp.nan])}
    assert faults._wrong(tree, "obs") == ["  obs['x'][1] is -1.0000000150474662e+30 (2 of 3)"]
    assert faults._wrong(tree, "state", state=True) == ["  state['x'][2] is nan (1 of 3)"]
    (line,) = faults._gradient_lines({"critic": {"w": jnp.full(3, 1e30)}})
    assert line == "    gradient of the critic: its numbers are finite, its norm is inf"


class _Mended(Breakable):
    def step(self, state: Any, action: jax.Array, key: jax.Array) -> Any:
        return super().step(eqx.tree_at(lambda s: s.breaks_at, state, jnp.full((), -1)), action, key)


def test_an_update_can_be_made_again(breaking: Update, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    BrokenLosses(monkeypatch)
    path = tmp_path / "gradient.npz"
    for part in ("actor", "duals"):
        marked = breaking.marked(part, "nan", int(breaking.order[2][0]))
        state, rollout, key = breaking.own(breaking.state, marked, breaking.keys)
        faults.save_update(path, state, rollout, key, breaking.run.description)
        told = faults.replay(path, Breakable())
        assert "1 of 12 optimiser steps had a gradient that is not finite" in told
        assert "the first in minibatch 3 of 4" in told
        assert {"actor": "gradient of the actor, .mlp", "duals": "gradient of alpha and beta"}[part] in told
        assert "reward from" in told


def test_a_run_whose_gradients_break_too_often_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "SKIPPED_LIMIT", 0.1)  # the marked rows may miss a minibatch
    recorder = Recorder()
    with BrokenLosses.compiled():
        started = Started(directory=tmp_path)
        started.plant("reward", "mark", 3, list(range(N)))
        with pytest.raises(Diverged) as raised:
            loop._drive(started.run, [recorder], started.clock, None)
    (path,) = tmp_path.glob("gradient-*.npz")
    message = rf"seed 5 stopped at {T * N} steps: \d\d% of the optimiser steps had gradients that are not finite"
    assert re.match(message, str(raised.value))
    assert str(path) in str(raised.value)
    assert sum("a gradient is not finite" in text for text in recorder.texts) == 1
    # The state is saved all the same, for whoever wants to look into it.
    assert checkpoint.steps(checkpoint.listing(tmp_path / "checkpoints")[-1]) == T * N


def test_a_run_whose_environments_break_too_often_stops(tmp_path: Path) -> None:
    started = Started(directory=tmp_path)
    started.plant("reward", "nan", 2, list(range(N)))
    row, _ = started.iterate()
    assert health.diverged(started.run, [row]) is None  # 6 %
    complaint = health.diverged(started.run, [row | {"train/invalid_rows": 0.11 * T * N}])
    assert complaint is not None
    assert "11% of the environment's steps returned numbers that are not finite" in complaint
    assert "fault-" in complaint


def test_the_end_of_a_run_says_how_much_was_left_out(started: Started) -> None:
    started.rewind()
    assert list(health.left_out(started.run)) == []
    started.plant("reward", "nan", 2, [1, 2, 3])
    started.iterate()
    (event,) = health.left_out(started.run)
    assert event.text == ("not finite, and therefore left out: 3 of 128 environment steps, 0 of 12 optimiser steps")


# ------------------------------------------------------------------------------------------- damaged files


@pytest.fixture(scope="module")
def fault_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    started = Started(directory=tmp_path_factory.mktemp("fault"))
    started.plant("obs", "nan", 3, [4])
    started.iterate()
    assert started.run.directory is not None
    return next(started.run.directory.glob("fault-*.npz"))


@given(data=st.data())
def test_a_damaged_reproduction_file_is_refused_or_replayed(fault_file: Path, data: st.DataObject) -> None:
    content = bytearray(fault_file.read_bytes())
    if data.draw(st.booleans()):
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    else:
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    damaged = fault_file.with_name("damaged.npz")
    damaged.write_bytes(content)
    try:
        arrays, meta = faults._load(damaged)
    except ConfigError:
        pass
    else:  # a byte that means nothing, such as a time stamp of the archive
        assert {*arrays, "meta"} == set(np.load(fault_file).files)
        assert meta["env"] == "Breakable"


def test_foreign_reproduction_files_are_refused(fault_file: Path, tmp_path: Path) -> None:
    with np.load(fault_file) as file:
        arrays = dict(file)
    meta = json.loads(arrays["meta"].tobytes())

    def written(**changes: Any) -> Path:
        changed = {**meta, **changes}
        path = tmp_path / "other.npz"
        np.savez(path, **{**arrays, "meta": np.frombuffer(json.dumps(changed).encode(), np.uint8)})
        return path

    with pytest.raises(ConfigError, match="not a reproduction file"):
        faults.replay(written(format="reppo-fault-0"), Breakable())
    with pytest.raises(ConfigError, match="gamma cannot be 'high'"):
        faults.replay(written(config={**meta["config"], "gamma": "high"}), Breakable())
    with pytest.raises(ConfigError, match="is not of Breakable"):
        faults.replay(written(), _Wider())
    with pytest.raises(ConfigError, match="no file"):
        faults.replay(tmp_path / "none.npz")


class _Wider(Breakable):
    action_size = 2
