"""The loop: what repeats to the bit, what evaluation must not touch, several seeds at once, and the tables."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import equinox as eqx
import jax
import numpy as np
import pytest
from breakable import Recorder
from helpers import TINY, assert_identical, differ, leaves
from hypothesis import given
from hypothesis import strategies as st

import reppo
from reppo import checkpoint, envs, health, loop, outcome, provenance
from reppo.config import Config
from reppo.envs.probes import TargetReach
from reppo.errors import ConfigError
from reppo.keys import Keys, Stream
from reppo.plot import read_rows
from reppo.run import Clock, Run, evaluation_due
from reppo.sinks import best_evaluation

TASK = "probe:TargetReach"


def started(config: Config = TINY, seeds: tuple[int, ...] = (3,), env: reppo.Env | None = None) -> Run:
    run = Run(env or envs.make(TASK), config, seeds, None)
    run.start()
    return run


def iterated(run: Run, iterations: int = TINY.num_iterations) -> Run:
    for _ in range(iterations):
        run.iterate(Clock(time.perf_counter()))
    return run


def both(run: Run) -> Any:
    """All that a run carries from one iteration to the next, on the host: the next iteration donates the rest."""
    return jax.device_get((run.state, jax.tree.map(key_data, run.env_state)))


def key_data(x: jax.Array) -> jax.Array:
    return jax.random.key_data(x) if jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key) else x


def test_the_best_policy_is_kept_beside_the_newest(tmp_path: Path) -> None:
    run = started()
    run.directory = tmp_path
    files = []
    for iteration, mean in enumerate((9.0, 3.0, 5.0, 5.0, 4.0)):  # the untrained policy's 9 counts for nothing
        run.iteration = iteration
        run.evaluations.append(
            {"seed": 3.0, "iteration": float(iteration), "env_steps": 64.0 * iteration, "eval/return": mean}
        )
        if iteration > 0:
            run._state = eqx.tree_at(
                lambda s: s.policy.actor, run.state, jax.tree.map(lambda x: x + 1, run.state.policy.actor)
            )
            run.save_policies()
            files.append((tmp_path / "policy.npz").read_bytes())
    assert (tmp_path / "best.npz").read_bytes() == files[1]
    assert len(set(files)) == 4
    assert best_evaluation(run.evaluations, 3)["env_steps"] == 128.0


# ------------------------------------------------------------------------------------------- determinism


def test_the_same_seed_is_the_same_run_in_another_process(trained: Run, tmp_path: Path) -> None:
    program = f"import helpers, reppo\nreppo.train({TASK!r}, helpers.TINY, seed=3, out={str(tmp_path / 'run')!r})\n"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr
    assert trained.directory is not None
    one, other = (checkpoint.newest(d / "checkpoints")[0] for d in (trained.directory, tmp_path / "run"))
    assert one is not None
    assert other is not None
    assert one.progress.iteration == TINY.num_iterations
    assert_identical(one.arrays, other.arrays)
    policies = [(d / "policy.npz").read_bytes() for d in (trained.directory, tmp_path / "run")]
    assert policies[0] == policies[1]
    for table in ("metrics.csv", "evaluations.csv"):
        rows = [untimed(read_rows(d / table)) for d in (trained.directory, tmp_path / "run")]
        assert rows[0] == rows[1]


def untimed(rows: list[dict[str, float]]) -> str:
    return repr([{name: value for name, value in row.items() if not name.startswith("time/")} for row in rows])


def test_another_seed_is_another_run() -> None:
    one, other = (iterated(started(seeds=(seed,)), 1) for seed in (3, 4))
    for part in ("policy", "critic"):
        assert differ(getattr(one.state, part), getattr(other.state, part))
    assert differ(one.env_state.obs, other.env_state.obs)


def test_no_two_purposes_share_a_key() -> None:
    keys = Keys([0, 1])
    paths = [(Stream.INIT,), (Stream.STAGGER,), *((Stream.FIRST, i) for i in range(3))]
    paths += [(Stream.ITERATION, i, part) for i in range(3) for part in range(2)]
    paths += [(Stream.EVALUATION, seed, batch, part) for seed in range(2) for batch in range(2) for part in range(3)]
    paths += [(Stream.SAVED, batch, part) for batch in range(3) for part in range(3)]
    drawn = np.concatenate([np.asarray(jax.random.key_data(keys(*path))) for path in paths])
    assert len(np.unique(drawn, axis=0)) == len(drawn) == 2 * len(paths)


# ------------------------------------------------------------------------------------------- evaluation


def test_evaluation_leaves_training_untouched(trained: Run) -> None:
    # An evaluation after every iteration, with other episodes than environments; one at the start and one at the end,
    # as in the run of the fixture; and none at all.
    often = reppo.train(TASK, dataclasses.replace(TINY, num_evals=TINY.num_iterations, eval_episodes=13), seed=3)
    assert len(often.evaluations) == TINY.num_iterations + 1
    assert len(trained.evaluations) == 2
    never = iterated(started())
    assert never.evaluations == []
    for run in (often, trained):
        assert_identical(both(run), both(never))


def test_an_evaluation_repeats_and_changes_nothing(trained: Run) -> None:
    before = both(trained)
    result, again, other, more = (
        trained.evaluate(), trained.evaluate(), trained.evaluate(seed=1), trained.evaluate(episodes=20)
    )  # fmt: skip
    assert result is not None
    assert other is not None
    assert more is not None
    assert result.returns.shape == result.lengths.shape == (1, TINY.eval_episodes)
    assert (result.lengths == TINY.episode_length).all()
    np.testing.assert_array_equal(result.returns, trained.returns)
    assert_identical(again, result)
    assert_identical(both(trained), before)
    # Another seed asks for other episodes; more episodes begin with the same ones.
    assert (other.returns != result.returns).all()
    assert more.returns.shape == (1, 20)
    np.testing.assert_array_equal(more.returns[:, :8], result.returns)
    assert len(np.unique(more.returns)) == 20


def test_the_saved_policy_is_the_last_one(trained: Run) -> None:
    assert trained.directory is not None
    obs = np.asarray(trained.env_state.obs[0])
    expected = trained.policy()(jax.numpy.asarray(obs)).mode()
    np.testing.assert_allclose(reppo.load_policy(trained.directory)(obs), expected, atol=1e-6)


def test_what_is_evaluated_and_saved_is_the_average(trained: Run, tmp_path: Path) -> None:
    averaging = reppo.train(TASK, dataclasses.replace(TINY, actor_average=0.9), seed=3, out=tmp_path / "run")
    # The same was learned, up to the last bits of another program; another policy was evaluated and saved.
    expected = leaves(trained.state.policy)
    for name, value in leaves(averaging.state.policy).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-3, atol=1e-4, err_msg=name)
    mean = eqx.tree_at(lambda p: p.actor, averaging.state.policy, averaging.state.average.actor)
    assert_identical(averaging.policy(), jax.tree.map(lambda x: x[0], mean))
    assert averaging.state.average.iterations == TINY.num_iterations
    state = eqx.tree_at(lambda s: s.policy.actor, averaging.state, averaging.state.average.actor)
    for evaluated, expected in ((state, averaging.returns), (averaging.state, trained.returns)):
        result = averaging.collector.evaluate(evaluated, TINY.eval_episodes, 0, None)
        assert result is not None
        np.testing.assert_allclose(result.returns, expected, rtol=1e-5)
    assert np.abs(averaging.returns - trained.returns).max() > 1e-3
    obs = np.asarray(averaging.env_state.obs[0])
    np.testing.assert_allclose(
        reppo.load_policy(tmp_path / "run")(obs), averaging.policy()(jax.numpy.asarray(obs)).mode(), atol=1e-6
    )


def evaluation_points(config: Config) -> list[int]:
    return [i for i in range(config.num_iterations + 1) if evaluation_due(config, i)]


@pytest.mark.parametrize(
    ("iterations", "num_evals", "expected"),
    [
        (10, 5, {0, 2, 4, 6, 8, 10}),
        (10, 1, {0, 10}),
        (3, 20, {0, 1, 2, 3}),
        (7, 2, {0, 4, 7}),  # 3.5 is rounded to the even one
        (4, 10**400, {0, 1, 2, 3, 4}),
    ],
)
def test_evaluation_points(iterations: int, num_evals: int, expected: set[int]) -> None:
    config = dataclasses.replace(TINY, total_steps=iterations * TINY.batch_size, num_evals=num_evals)
    assert set(evaluation_points(config)) == expected


@given(st.integers(1, 64 * 500), st.integers(1, 100))
def test_evaluations_are_spread_evenly_from_the_start_to_the_end(total_steps: int, num_evals: int) -> None:
    config = dataclasses.replace(TINY, total_steps=total_steps, num_evals=num_evals)
    points = evaluation_points(config)
    assert points[0] == 0
    assert points[-1] == config.num_iterations
    assert len(points) == 1 + min(num_evals, config.num_iterations)
    gaps = np.diff(points)
    assert gaps.max() - gaps.min() <= 1 + 1e-9 if num_evals <= config.num_iterations else (gaps == 1).all()


# ------------------------------------------------------------------------------------------- what does not fit


@pytest.mark.parametrize(
    "changes",
    [
        {"num_envs": 2**27},
        {"num_epochs": 2**30},
        {"actor_width": 2**20},
        {"critic_width": 2**31 - 1},
        {"num_bins": 2**31 - 1},
    ],
    ids=str,
)
def test_a_run_that_cannot_fit_is_refused_before_anything_is_allocated(
    changes: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outcome, "memory", lambda: 2**34)
    config = dataclasses.replace(TINY, **changes)
    with pytest.raises(ConfigError, match=r"needs at least [\d,]+\.\d GiB of memory, and there are 16\.0: try fewer"):
        reppo.train("probe:TargetReach", config, out=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_what_a_run_needs_is_counted_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(TargetReach(), TINY, [0, 1], None)
    learner = sum(leaf.nbytes for leaf in leaves(run.init(run.key(Stream.INIT))).values())
    # Of each step: observation and successor of two numbers, an action and a reward; and its place in two epochs.
    needed = learner + 2 * 64 * (4 * (2 + 2 + 1 + 1) + 2 * 4)
    monkeypatch.setattr(outcome, "memory", lambda: needed)
    run.check_memory()
    monkeypatch.setattr(outcome, "memory", lambda: needed - 1)
    with pytest.raises(ConfigError, match="needs at least"):
        run.check_memory()
    monkeypatch.setattr(outcome, "memory", lambda: None)
    run.check_memory()


def test_a_container_may_have_less_memory_than_its_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    limit, unlimited = tmp_path / "memory.max", tmp_path / "memory.limit_in_bytes"
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    monkeypatch.setattr(provenance, "CGROUP_LIMITS", (str(limit), str(unlimited)))
    assert provenance.memory() == machine
    unlimited.write_text("9223372036854771712\n")  # what version 1 says where there is none
    limit.write_text("max\n")
    assert provenance.memory() == machine
    limit.write_text("1073741824\n")
    assert provenance.memory() == 2**30


def test_more_seeds_than_can_be_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"num_seeds must be at most 10,000, got 1,000,000,000"):
        reppo.train("probe:TargetReach", TINY, num_seeds=10**9)


# ------------------------------------------------------------------------------------------- several seeds


def test_three_seeds_at_once_are_three_runs(trained: Run) -> None:
    # To the rounding of float32, because vectorised matrix products add in another order: after three iterations
    # parameters have moved by 4e-3, and were seen to differ by 6e-8.
    together = iterated(started(seeds=(3, 4, 5)))
    alone = [trained, *(iterated(started(seeds=(seed,))) for seed in (4, 5))]
    for name, value in leaves(together.state).items():
        single = np.concatenate([leaves(run.state)[name] for run in alone])
        np.testing.assert_allclose(value, single, rtol=1e-5, atol=1e-5, err_msg=name)
    rows = sorted((row for run in alone for row in run.history), key=lambda row: row["iteration"])
    for row, single in zip(together.history, rows, strict=True):
        for name in row.keys() - {"time/seconds", "time/steps_per_second"}:
            np.testing.assert_allclose(row[name], single[name], rtol=1e-4, atol=1e-5, err_msg=name)
    # Each seed's policy is its own row, and no two are the same.
    for k in range(3):
        assert_identical(together.policy(k), jax.tree.map(lambda x, k=k: x[k], together.state.policy))
        assert differ(together.policy(k), together.policy((k + 1) % 3))


@pytest.mark.parametrize(("seed", "num_seeds"), [(-1, 1), (2**32, 1), (2**32 - 1, 2), (0, 0)])
def test_seeds_that_cannot_be(seed: int, num_seeds: int) -> None:
    with pytest.raises(ConfigError, match="seed"):
        reppo.train(TASK, TINY, seed=seed, num_seeds=num_seeds)


# ------------------------------------------------------------------------------------------- first states


class Costly(TargetReach):
    cheap_reset = False


@pytest.mark.parametrize(("env", "period"), [(TargetReach(), 4), (Costly(), 2)], ids=["cheap", "costly"])
def test_new_first_states_are_drawn_now_and_then(env: reppo.Env, period: int) -> None:
    # Cheap resets: every 32 steps, four iterations of 8. A costly one: every four episodes of 4 steps, two iterations.
    run = started(dataclasses.replace(TINY, episode_length=4), env=env)
    stored = [leaves(run.env_state.first.obs)]
    for _ in range(4):
        iterated(run, 1)
        stored.append(leaves(run.env_state.first.obs))
    for i in range(1, 5):
        same = all(np.array_equal(a, b) for a, b in zip(stored[i].values(), stored[i - 1].values(), strict=True))
        assert same == (i % period != 0)


def test_episodes_are_staggered_where_asked_for() -> None:
    assert len(np.unique(started().env_state.elapsed)) > 1
    together = started(dataclasses.replace(TINY, stagger_episodes=False))
    assert not np.asarray(together.env_state.elapsed).any()


def test_the_training_is_cut_where_asked_for_and_the_evaluation_never() -> None:
    run = started(dataclasses.replace(TINY, cut_probability=0.5))
    collected = run.collector.collect(run.state, 0)
    assert 0.3 < np.asarray(collected.rows.truncated).mean() < 0.7
    evaluation = run.evaluate(episodes=4)
    assert evaluation is not None
    assert (evaluation.lengths == run.spec.time_limit).all()


def test_peak_memory_is_of_the_host_and_of_the_fullest_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert outcome.peak_memory()["peak_device_memory_bytes"] is None, "a CPU has no memory of its own"
    devices = [SimpleNamespace(memory_stats=lambda peak=peak: {"peak_bytes_in_use": peak}) for peak in (3, 7, 5)]
    monkeypatch.setattr(outcome.jax, "local_devices", lambda: devices)
    found = outcome.peak_memory()
    assert found["peak_device_memory_bytes"] == 7
    assert (found["peak_memory_bytes"] or 0) > 2**20


# ------------------------------------------------------------------------------------------- tables


def test_a_run_has_a_row_for_every_iteration_and_evaluation(trained: Run) -> None:
    assert [row["iteration"] for row in trained.history] == [1, 2, 3]
    assert [row["env_steps"] for row in trained.history] == [64, 128, 192]
    assert [row["env_steps"] for row in trained.evaluations] == [0, 192]
    last = trained.evaluations[-1]
    assert last["eval/return"] == pytest.approx(trained.returns.mean())
    assert last["eval/return_std"] == pytest.approx(trained.returns.std())
    assert (last["eval/return_min"], last["eval/return_max"]) == (trained.returns.min(), trained.returns.max())
    assert (last["eval/episodes"], last["eval/length"]) == (8, 20)
    assert trained.directory is not None
    for table, rows in (("metrics.csv", trained.history), ("evaluations.csv", trained.evaluations)):
        read = read_rows(trained.directory / table)
        assert list(read[0]) == list(rows[0])
        for a, b in zip(read, rows, strict=True):
            np.testing.assert_allclose(list(a.values()), list(b.values()), rtol=1e-6)


def test_returns_of_training_are_those_of_whole_episodes() -> None:
    # Eight environments, episodes of 4 steps that begin together, 8 steps: each ends two.
    run = iterated(started(dataclasses.replace(TINY, episode_length=4, stagger_episodes=False)), 1)
    (row,) = run.history
    assert (row["episode/count"], row["episode/length"]) == (16, 4)
    assert row["episode/return"] == pytest.approx(4 * row["train/reward"], rel=1e-4)
    # Longer episodes do not end in one iteration: there is no return to speak of.
    (row,) = iterated(started(dataclasses.replace(TINY, stagger_episodes=False)), 1).history
    assert row["episode/count"] == 0
    assert np.isnan(row["episode/return"])


# ------------------------------------------------------------------------------------------- warnings


def value_range_of(v_min: float, v_max: float, num_bins: int = 51) -> tuple[Any, Any]:
    """A run of 40 iterations, and what is told after one of them."""
    config = SimpleNamespace(v_min=v_min, v_max=v_max, num_bins=num_bins, num_iterations=40)
    run = SimpleNamespace(iteration=0, spec=SimpleNamespace(value_range=(v_min, v_max)), config=config)
    warning = health.RangeWarning(run)  # pyright: ignore[reportArgumentType]

    def after(iteration: int, *shares: float, low: float = -1.0, high: float = 12.5, error: float = 0.1) -> list[str]:
        run.iteration = iteration
        targets = {"critic/target_min": low, "critic/target_max": high, "critic/error": error}
        return [event.text for event in warning.check([{"critic/target_clipped": s, **targets} for s in shares])]

    return run, after


def test_a_scalar_critic_has_no_support_to_leave() -> None:
    run, after = value_range_of(-1000.0, 1000.0)
    run.config.hl_gauss = False
    assert after(40, 0.9, error=5.0) == []


def test_the_last_iteration_of_a_short_run_is_judged_as_it_is() -> None:
    run, after = value_range_of(0.0, 10.0)
    run.config.num_iterations = 4
    assert after(3, 0.9) == []
    (text,) = after(4, 0.9)
    assert "90% of the value targets leave the support [0, 10]" in text


def test_from_python_a_warning_is_pythons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "SETTLED", 0)
    with pytest.warns(RuntimeWarning, match=r"of the value targets leave the support \[5, 6\]"):
        reppo.train("probe:TargetReach", dataclasses.replace(TINY, v_min=5.0, v_max=6.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # whoever brings a sink of their own shows it there
        recorder = Recorder()
        reppo.train("probe:TargetReach", dataclasses.replace(TINY, v_min=5.0, v_max=6.0), sinks=[recorder])
    assert any("leave the support" in text for text in recorder.texts)


def test_targets_outside_the_support_are_told_once_and_not_at_the_start() -> None:
    _, after = value_range_of(0.0, 10.0)
    assert after(1, 0.9) == [], "the first targets are of an untrained critic"
    assert after(6, 0.0, 0.05) == []
    (text,) = after(7, 0.0, 0.4)
    assert "40% of the value targets leave the support [0, 10]: they are between -1 and 12.5; set --v-min" in text
    assert after(8, 0.9) == []


def test_a_support_whose_bins_hold_all_targets_is_told_once() -> None:
    """An environment of one's own whose crash costs 100 once, and whose range was given as if every step could crash."""
    run, after = value_range_of(-10_440.0, 0.0)
    wrong = {"low": -160.0, "high": -101.0, "error": 31.0}
    assert after(9, 0.0, **wrong) == [], "before a quarter of the run"
    assert after(10, 0.0, **{**wrong, "error": 10.0}) == [], "it tells them apart"
    assert after(10, 0.0, **{**wrong, "high": 300.0}) == [], "two bins and more"
    run.config.v_min = run.config.v_max = None
    assert after(10, 0.0, **wrong) == [], "the environment's own"
    run.config.v_min = -10_440.0
    (text,) = after(10, 0.0, **wrong)
    assert "between -160 and -101, and one of the critic's 51 bins on [-10440, 0] is 209 wide" in text
    assert after(11, 0.0, **wrong) == []


def test_the_preset_of_a_machine_without_an_accelerator() -> None:
    assert loop.default_preset() == "cpu"
