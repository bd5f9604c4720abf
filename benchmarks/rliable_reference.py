"""What rliable computes from scores that are written down here, for tests/test_statistics.py.

    pip install rliable && python benchmarks/rliable_reference.py > tests/rliable.json

It is not among the dependencies: the file that this wrote is what the tests compare with.
"""

from __future__ import annotations

import json
from importlib import metadata

import numpy as np
from rliable import library, metrics  # pyright: ignore[reportMissingImports]

RESAMPLES = 20_000
SHAPES = {"divisible": (8, 5), "odd": (7, 3)}  #: runs, tasks: a quarter of 40 runs is whole, of 21 it is not
THRESHOLDS = (0.0, 0.25, 0.5, 0.75, 1.0)


def scores(runs: int, tasks: int) -> np.ndarray:
    """Scores ``[runs, tasks]``, rounded so that the file holds them exactly, some of them equal."""
    level = np.linspace(0.2, 0.9, tasks)
    return np.round(np.random.default_rng(runs * tasks).normal(level, 0.2, (runs, tasks)), 2)


def numbers(x: np.ndarray, y: np.ndarray) -> dict[str, object]:
    aggregates = {
        "IQM": metrics.aggregate_iqm,
        "median": metrics.aggregate_median,
        "mean": metrics.aggregate_mean,
        "optimality_gap": metrics.aggregate_optimality_gap,
    }
    intervals = {}
    for name, aggregate in aggregates.items():
        state = np.random.RandomState(0)
        _, interval = library.get_interval_estimates(
            {"x": x}, lambda s, f=aggregate: np.array([f(s)]), reps=RESAMPLES, random_state=state
        )
        intervals[name] = interval["x"][:, 0].tolist()
    profile, _ = library.create_performance_profile({"x": x}, THRESHOLDS, reps=2)
    return {
        "x": x.T.tolist(),  # a list per task
        "y": y.T.tolist(),
        "aggregates": {name: float(aggregate(x)) for name, aggregate in aggregates.items()},
        "intervals": intervals,
        "profile": profile["x"].tolist(),
        "probability_of_improvement": float(metrics.probability_of_improvement(x, y)),
    }


def main() -> None:
    cases = {}
    for name, (runs, tasks) in SHAPES.items():
        x = scores(runs, tasks)
        cases[name] = numbers(x, np.round(x[::-1] * 0.8 + 0.1, 2)[: runs - 1])
    about = {"rliable": metadata.version("rliable"), "resamples": RESAMPLES, "thresholds": THRESHOLDS}
    print(json.dumps({**about, "cases": cases}))


if __name__ == "__main__":
    main()
