"""Statistics over runs: figures worked out by hand, rliable's on the same scores, and the published aggregates."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reppo.bench import statistics
from reppo.bench.statistics import Scores

RLIABLE: dict[str, Any] = json.loads((Path(__file__).parent / "rliable.json").read_text())


def tasks(*runs: list[float]) -> Scores:
    return [np.array(task) for task in runs]


# ------------------------------------------------------------------------------------------- by hand


def test_normalisers() -> None:
    np.testing.assert_allclose(statistics.per_1000(np.array([875.4, 0.0])), [0.8754, 0.0])
    np.testing.assert_allclose(statistics.per_reference(np.array([875.4, 437.7]), 875.4), [1.0, 0.5])
    for reference in (0.0, -130.0, np.nan):
        with pytest.raises(ValueError, match="must be positive"):
            statistics.per_reference(np.array([1.0]), reference)


def test_aggregates_of_equal_counts() -> None:
    scores = tasks([1.0, 2.0, 3.0, 10.0], [0.0, 4.0, 6.0, 8.0])
    assert statistics.mean(scores) == pytest.approx(4.25)  # (4 + 4.5) / 2
    assert statistics.median(scores) == pytest.approx(4.25)  # of 4 and 4.5
    # 0 1 | 2 3 4 6 | 8 10: two of the eight are left out at either end.
    assert statistics.iqm(scores) == pytest.approx(15 / 4)
    assert statistics.optimality_gap(scores, target=3.0) == pytest.approx(((2 + 1 + 0 + 0) / 4 + 3 / 4) / 2)


def test_the_median_is_that_of_task_means_not_of_runs() -> None:
    scores = tasks([0.0, 0.0, 9.0], [1.0], [2.0])  # means 3, 1, 2; the median of the runs would be 1
    assert statistics.median(scores) == 2.0


def test_tasks_weigh_alike_however_many_runs_they_have() -> None:
    scores = tasks([0.0], [1.0] * 99)
    assert statistics.mean(scores) == 0.5  # not 0.99
    assert statistics.performance_profile(scores, np.array([0.5])) == pytest.approx([0.5])
    assert statistics.iqm(scores) == pytest.approx(0.5)


def test_a_quartile_divides_a_run_where_numbers_are_unequal() -> None:
    # Weights 1/4, 1/4 and 1/6 each, sorted: 1 (to 1/4: out), 2 (to 1/2), 3 (to 2/3), 4 (to 5/6: half of it), 5 (out).
    scores = tasks([1.0, 2.0], [3.0, 4.0, 5.0])
    assert statistics.iqm(scores) == pytest.approx((2 / 4 + 3 / 6 + 4 / 12) / (1 / 2))


def test_a_quartile_divides_no_run_where_numbers_are_equal() -> None:
    assert statistics.iqm(tasks([0.0, 1.0, 2.0], [4.0, 8.0, 90.0])) == pytest.approx((1 + 2 + 4 + 8) / 4)  # of six


@pytest.mark.parametrize(("num_tasks", "num_runs"), [(1, 24), (2, 12), (3, 8), (1, 36), (6, 6), (3, 40)])
def test_a_run_that_ends_at_a_quartile_is_out_whatever_the_rounding(num_tasks: int, num_runs: int) -> None:
    # Weights of 1/24 do not add up to 1/4 in floating point.
    quarter = num_tasks * num_runs // 4
    runs = np.array([-70.0] * quarter + [1.0, 3.0] * quarter + [900.0] * quarter)
    assert statistics.iqm(list(runs.reshape(num_tasks, num_runs))) == pytest.approx(2.0)


def test_an_outlier_moves_the_mean_and_not_the_iqm() -> None:
    scores, spoilt = tasks([1.0, 2.0, 3.0, 4.0]), tasks([1.0, 2.0, 3.0, 400.0])
    assert statistics.iqm(scores) == statistics.iqm(spoilt) == 2.5
    assert statistics.mean(spoilt) > 100


def test_profile_counts_runs_strictly_above() -> None:
    scores = tasks([0.1, 0.5, 0.9, 0.9], [0.5, 0.5, 1.0, 0.0])
    profile = statistics.performance_profile(scores, np.array([0.0, 0.5, 0.9, 1.0]))
    np.testing.assert_allclose(profile, [(1 + 3 / 4) / 2, (2 / 4 + 1 / 4) / 2, (0 + 1 / 4) / 2, 0])


def test_probability_of_improvement_counts_ties_half() -> None:
    x, y = tasks([1.0, 3.0], [5.0]), tasks([1.0, 2.0, 4.0], [5.0])
    # Task 1: 1 ties with 1, and loses twice; 3 wins twice, and loses once: 2.5 of 6. Task 2: a tie.
    interval = statistics.probability_of_improvement(x, y)
    assert interval.estimate == pytest.approx((2.5 / 6 + 0.5) / 2)
    assert interval.low <= interval.estimate <= interval.high
    assert statistics.probability_of_improvement(y, x).estimate == pytest.approx(1 - interval.estimate)
    with pytest.raises(ValueError, match="same tasks"):
        statistics.probability_of_improvement(x, y[:1])


def test_reliability() -> None:
    # Steps down, runs across: one stays, one comes back, one ends below, one never gets there.
    curves = [np.array([[0.0, 0.9, 0.0, 0.1], [0.9, 0.5, 1.0, 0.2], [1.0, 0.95, 0.8, 0.89]])]
    found = statistics.reliability(curves, tau=0.9)
    assert (found.reached, found.final, found.never_dropped) == (3 / 4, 2 / 4, 1 / 4)
    np.testing.assert_allclose(found.from_step, [0, 1 / 4, 2 / 4])
    # A second task, with one run that is always there: tasks weigh alike.
    both = statistics.reliability([*curves, np.ones((3, 1))], tau=0.9)
    assert (both.reached, both.final, both.never_dropped) == (7 / 8, 3 / 4, 5 / 8)
    assert statistics.reliable_at_end([curve[-1] for curve in curves]) == 0.5


def test_a_curve_on_other_steps() -> None:
    grid = np.array([0.0, 5.0, 10.0, 20.0, 30.0])
    np.testing.assert_allclose(statistics.on_grid(np.array([0, 10, 20]), np.array([0, 1, 3]), grid), [0, 0.5, 1, 3, 3])
    for steps in ([], [0, 0], [5, 1]):
        with pytest.raises(ValueError, match="increase"):
            statistics.on_grid(np.array(steps), np.zeros(len(steps)), grid)


@pytest.mark.parametrize("scores", [[], [np.array([])], [np.array([1.0, np.nan])], [np.array(1.0)]])
def test_what_is_no_score_is_refused(scores: Scores) -> None:
    for statistic in statistics.AGGREGATES.values():
        with pytest.raises(ValueError, match=r"not finite|at least one run"):
            statistic(scores)


# ------------------------------------------------------------------------------------------- bootstrap


def test_the_bootstrap_is_that_of_its_seed() -> None:
    scores = tasks([1.0, 2.0, 3.0, 4.0], [2.0, 5.0])
    first, again, other = (statistics.bootstrap(scores, statistics.mean, seed=seed, resamples=99) for seed in (1, 1, 2))
    assert first == again
    assert first.low != other.low or first.high != other.high


def test_runs_are_drawn_within_their_task() -> None:
    # Between the tasks lies all the spread, within them none: the interval has no width.
    interval = statistics.bootstrap(tasks([0.0] * 5, [1.0] * 5), statistics.mean)
    assert interval == (0.5, 0.5, 0.5)


def test_the_interval_of_a_mean_is_that_of_its_standard_error() -> None:
    runs = np.random.default_rng(0).normal(size=400)
    interval = statistics.bootstrap([runs], statistics.mean, resamples=4000)
    error = 1.96 * runs.std() / 20
    assert interval.low == pytest.approx(runs.mean() - error, abs=0.01)
    assert interval.high == pytest.approx(runs.mean() + error, abs=0.01)


def test_a_share_of_which_all_runs_agree_has_an_interval_too() -> None:
    # Of n of n the lower end is n / (n + z^2): 10 / 13.8415. Of 5 of 10 it is 1/2 +- z / (2 sqrt(10 + z^2)).
    assert statistics.wilson(10, 10) == pytest.approx((1.0, 0.7225, 1.0), abs=1e-4)
    assert statistics.wilson(0, 10) == pytest.approx((0.0, 0.0, 0.2775), abs=1e-4)
    assert statistics.wilson(5, 10) == pytest.approx((0.5, 0.5 - 0.2634, 0.5 + 0.2634), abs=1e-4)
    for count, total in ((0, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="no share"):
            statistics.wilson(count, total)


def test_the_interval_of_a_difference_is_that_of_both_standard_errors() -> None:
    rng = np.random.default_rng(0)
    first, second = [rng.normal(5, 3, 400)], [rng.normal(4, 4, 400)]
    found = statistics.difference(first, second)
    assert found.estimate == pytest.approx(first[0].mean() - second[0].mean())
    half = 1.96 * (first[0].var() / 400 + second[0].var() / 400) ** 0.5
    assert float(found.high - found.low) == pytest.approx(2 * half, rel=0.1)
    assert float(found.high + found.low) / 2 == pytest.approx(float(found.estimate), abs=0.1 * half)
    # Runs of two algorithms do not belong together, even where they are the same runs.
    assert float(statistics.difference(first, first).high) > half / 2
    with pytest.raises(ValueError, match="must have the same tasks, got 1 and 2"):
        statistics.difference(first, [*first, *first])


def test_the_interval_of_a_probability_of_improvement_is_that_of_the_rank_sum() -> None:
    # Of n runs each, from one distribution, the variance is (2n + 1) / (12 n^2). They do not belong together, even where
    # they are the same runs: that would be 1/2 in every resample.
    runs = [np.random.default_rng(0).normal(size=50)]
    found = statistics.probability_of_improvement(runs, runs)
    assert found.estimate == 0.5
    half = 1.96 * (101 / (12 * 50**2)) ** 0.5
    assert float(found.high - found.low) == pytest.approx(2 * half, rel=0.1)
    assert float(found.high + found.low) / 2 == pytest.approx(0.5, abs=0.1 * half)


def test_a_resampled_curve_is_the_curve_of_one_run() -> None:
    curves = [np.array([[0.0, 10.0, 20.0], [1.0, 11.0, 21.0]])]  # every run rises by one
    drawn = statistics.resampled(curves, 50, seed=0)[0]
    assert drawn.shape == (50, 2, 3)
    np.testing.assert_array_equal(drawn[:, 1] - drawn[:, 0], 1.0)
    interval = statistics.sample_efficiency(curves, statistics.mean)
    np.testing.assert_allclose(interval.estimate, [10, 11])
    np.testing.assert_allclose(interval.high - interval.high[0], [0, 1])


# ------------------------------------------------------------------------------------------- others' figures


@pytest.mark.parametrize("case", RLIABLE["cases"])
def test_rliable_says_the_same(case: str) -> None:
    said = RLIABLE["cases"][case]
    x, y = tasks(*said["x"]), tasks(*said["y"])
    ours = {**statistics.AGGREGATES, "optimality_gap": statistics.optimality_gap}
    assert ours.keys() == said["aggregates"].keys()
    for name, statistic in ours.items():
        interval = statistics.bootstrap(x, statistic, resamples=RLIABLE["resamples"])
        assert interval.estimate == pytest.approx(said["aggregates"][name], abs=1e-12), name
        # Other random numbers: the ends differ by the Monte Carlo error of a 2.5 % quantile.
        assert [interval.low, interval.high] == pytest.approx(said["intervals"][name], abs=0.005), name
    np.testing.assert_allclose(statistics.performance_profile(x, np.array(RLIABLE["thresholds"])), said["profile"])
    assert statistics.probability_of_improvement(x, y, resamples=9).estimate == pytest.approx(
        said["probability_of_improvement"]
    )


def published(root: Path, name: str) -> list[dict[str, str]]:
    with (root / "results" / "published" / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    "algorithm", ["reppo_large", "reppo_medium", "reppo_small", "reppo_large_noKL", "ppo_50M", "fasttd3_A"]
)
def test_the_published_means_and_medians_are_those_of_the_published_tasks(root: Path, algorithm: str) -> None:
    # Only the figures of whole tasks are published, so the IQM cannot be made again. These two take task means alone.
    references = {row["task"]: float(row["ref_best_mean"]) for row in published(root, "dmc_norm_reference")}
    finals = {
        row["task"]: np.array([float(row["mean"])])
        for row in published(root, "dmc_final")
        if row["algorithm"] == algorithm and row["suite"] == "dmc"
    }
    assert finals.keys() == references.keys()
    normalised = {
        "raw/1000": [statistics.per_1000(mean) for mean in finals.values()],
        "ref_best": [statistics.per_reference(mean, references[task]) for task, mean in finals.items()],
    }
    said = [r for r in published(root, "dmc_aggregates") if r["algorithm"] == algorithm and r["step"] == "50000000"]
    assert len(said) == 2
    for row in said:
        scores = normalised[row["norm"]]
        assert statistics.mean(scores) == pytest.approx(float(row["mean"]), abs=2e-4), row["norm"]
        assert statistics.median(scores) == pytest.approx(float(row["median"]), abs=2e-4), row["norm"]
