"""Learning curves as text and as PNG."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reppo import plot
from reppo.plot import Curve, text_chart


def evaluation(steps: float, mean: float, std: float = 1.0, seed: int = 0) -> dict[str, float]:
    row = {"seed": float(seed), "env_steps": steps, "eval/return": mean, "eval/return_std": std}
    return row | {"eval/return_min": mean - std, "eval/return_max": mean + std, "eval/episodes": 8.0}


@pytest.mark.parametrize(
    ("x", "text"),
    [(7.0, "7"), (9999, "9999"), (12_000, "12k"), (401_408, "401.4k"), (5e7, "50M"), (2e9, "2G"), (-3e4, "-30k")],
)
def test_numbers_on_an_axis_are_short(x: float, text: str) -> None:
    assert plot.short(x) == text


def test_a_curve_of_one_seed_has_the_spread_of_its_episodes() -> None:
    curve = Curve.of([[evaluation(100, 5.0, 2.0)], [evaluation(0, 1.0, 0.5)], [evaluation(200, math.nan)]])
    np.testing.assert_array_equal(curve.steps, [0, 100])  # in order; what is not finite is left out
    np.testing.assert_array_equal(curve.mean, [1.0, 5.0])
    np.testing.assert_array_equal(curve.low, [0.5, 3.0])
    np.testing.assert_array_equal(curve.high, [1.5, 7.0])


def test_a_curve_of_several_seeds_has_their_range() -> None:
    curve = Curve.of([[evaluation(0, 1.0, 9.0, 0), evaluation(0, 2.0, 9.0, 1), evaluation(0, 6.0, 9.0, 2)]])
    assert [values.item() for values in curve] == [0.0, 3.0, 1.0, 6.0]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1000, (0, 1000)), (3, 47, (0, 60)), (-1, 1, (-1, 1)), (5, 5, (2, 8)), (0, 0, (-0.5, 0.5))],
)
def test_axes_end_at_round_numbers(low: float, high: float, expected: tuple[float, float]) -> None:
    assert plot.axis_range(low, high) == pytest.approx(expected)


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6))
def test_an_axis_holds_its_range_and_little_more(low: float, span: float) -> None:
    bottom, top = plot.axis_range(low, low + span)
    room = 1e-6 * max(abs(low), abs(low + span), 1.0)
    assert bottom <= low + room
    assert top >= low + span - room
    assert top - bottom <= 3 * max(span, abs(low), abs(low + span), 1.0)


def chart(curve: Curve, best: float | None = None, unicode: bool = False) -> list[str]:
    """A chart 5 rows high, without its two rows of axis."""
    lines = text_chart(curve, total=100.0, best=best, width=40, height=5, unicode=unicode)
    assert len(lines) == 7
    assert all(line.cell_len <= 40 for line in lines)
    return [line.plain for line in lines[:5]]


def test_a_text_chart_rises_with_the_return() -> None:
    rows = chart(Curve.of([[evaluation(0, 0.0, 0.0)], [evaluation(100, 10.0, 0.0)]]))
    assert rows[0].split("|")[0].strip() == "10"
    assert rows[4].split("|")[0].strip() == "0"
    assert rows[0].rstrip().endswith("*")  # the last point is at the top right
    assert rows[4].split("|")[1].startswith("*")  # the first one at the bottom left
    first = [row.split("|")[1].index("*") for row in rows]
    assert first == sorted(first, reverse=True)


def test_a_text_chart_shows_the_spread_and_the_best_possible() -> None:
    points = [[evaluation(0, 5.0, 4.0)], [evaluation(100, 5.0, 4.0)]]
    rows = chart(Curve.of(points))
    assert "*" in rows[2]
    assert all(":" in rows[i] for i in (0, 1, 3, 4))
    best = chart(Curve.of(points), best=20.0)[0].split("|")
    assert best[0].strip() == "20"
    assert set(best[1]) == {"-", " "}


def test_a_text_chart_without_a_single_finite_return() -> None:
    assert not any("*" in row for row in chart(Curve.of([[evaluation(0, math.nan)]])))


def test_a_text_chart_in_braille() -> None:
    rows = chart(Curve.of([[evaluation(0, 0.0, 0.0)], [evaluation(100, 10.0, 0.0)]]), unicode=True)
    assert any(0x2800 < ord(character) < 0x2900 for character in "".join(rows))


def run_directory(path: Path, rows: list[dict[str, float]], seeds: list[int], best: float | None) -> Path:
    path.mkdir()
    description: dict[str, Any] = {"env": "probe:TargetReach", "seeds": seeds, "config": {"total_steps": 300}}
    (path / "config.json").write_text(json.dumps(description | {"spec": {"max_return": best}}))
    with (path / "evaluations.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows({name: "" if math.isnan(x) else x for name, x in row.items()} for row in rows)
    return path


@pytest.mark.parametrize("num_seeds", [1, 3, 9])
@pytest.mark.parametrize("returns", [[0.0, 40.0], [5.0], [math.nan, math.nan]], ids=["two", "one", "nan"])
def test_every_run_gets_a_picture(tmp_path: Path, num_seeds: int, returns: list[float]) -> None:
    seeds = list(range(num_seeds))
    rows = [evaluation(100.0 * i, mean, 1.0, seed) for i, mean in enumerate(returns) for seed in seeds]
    path = plot.plot_run(run_directory(tmp_path / "run", rows, seeds, best=50.0))
    assert path.read_bytes().startswith(b"\x89PNG")
