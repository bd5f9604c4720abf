"""What the terminal shows: numbers as text, what is remembered of a run, and the frames that are drawn of it."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import helpers
import pytest
from rich.console import Console

from reppo import display
from reppo.config import PRESETS
from reppo.display import ASCII, UNICODE, LiveDisplay, PlainDisplay, Telemetry
from reppo.provenance import computer
from reppo.run import Run
from reppo.sinks import Event

DESCRIPTION: dict[str, Any] = {
    "env": "probe:TargetReach",
    "seeds": [0],
    "config": dataclasses.asdict(helpers.TINY),  # 3 iterations of 64 steps
    "spec": {"max_return": 50.0, "action_size": 2},
    "hardware": {"devices": ["cpu"], "cpu": "Abacus", "cpu_cores": 2},
}


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def metrics(iteration: int, seconds: float, seed: int = 0, **values: float) -> dict[str, float]:
    row = {"seed": seed, "iteration": iteration, "env_steps": 64 * iteration, "time/seconds": seconds}
    return row | {"actor/kl": 0.05, "actor/entropy": -1.0, "time/steps_per_second": 100.0} | values


def evaluation(iteration: int, mean: float, std: float = 1.0, seed: int = 0, seconds: float = 0.0) -> dict[str, float]:
    row = {"seed": seed, "iteration": iteration, "env_steps": 64 * iteration, "time/seconds": seconds}
    return row | {"eval/return": mean, "eval/return_std": std, "eval/episodes": 8.0}


def test_a_run_goes_on_when_nobody_reads_what_it_says(telemetry: Telemetry) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as file:
        shown = PlainDisplay(display.Listened(file=file), telemetry)
        for _ in range(3):
            shown.write(Event.status("still here"))
        assert shown.console.quiet


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def telemetry(clock: Clock) -> Telemetry:
    telemetry = Telemetry(None, 0.0, clock)
    telemetry.begin(DESCRIPTION)
    return telemetry


# ------------------------------------------------------------------------------------------- numbers as text


@pytest.mark.parametrize(
    ("x", "text"),
    [(1234.56, "1,234.6"), (56.781, "56.78"), (0.9123, "0.912"), (-3.456, "-3.46"), (0.0, "0.0"), (1e8, "1e+08")],
)
def test_numbers_have_the_decimals_of_their_size(x: float, text: str) -> None:
    assert display.number(x) == text


def test_a_spread_has_the_decimals_of_its_mean() -> None:
    assert display.number(0.5, like=1234.0) == "0.5"
    assert display.number(math.nan) == "nan"


@pytest.mark.parametrize(("x", "text"), [(0.07231, "0.0723"), (0.0, "0.0000"), (3e-5, "3e-05"), (12345.0, "1.23e+04")])
def test_small_numbers_keep_their_point_in_place(x: float, text: str) -> None:
    assert display.small(x) == text


@pytest.mark.parametrize(("seconds", "text"), [(27.4, "0:27"), (59.6, "1:00"), (3753, "1:02:33"), (-5, "0:00")])
def test_clock(seconds: float, text: str) -> None:
    assert display.clock(seconds) == text


def test_returns_of_one_seed_and_of_several() -> None:
    assert display.return_text([evaluation(1, 12.0, 3.0)], UNICODE) == "12.00 ± 3.00"
    assert display.return_text([evaluation(1, 12.0, 3.0)], ASCII) == "12.00 +/- 3.00"
    assert display.return_text([evaluation(1, 10.0), evaluation(1, 20.0)], UNICODE) == "15.00 (10.00 to 20.00)"


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_recognised(name: str) -> None:
    assert display.nearest_preset(dataclasses.asdict(PRESETS[name])) == (name, [])


def test_changes_of_a_preset_are_written_as_they_are_typed() -> None:
    config = dataclasses.replace(PRESETS["cpu"], lambda_=0.9, keep_best=False, actor_obs=("a", "b c"))
    written = json.loads(json.dumps(dataclasses.asdict(config)))
    assert display.nearest_preset(written) == ("cpu", ["--lambda 0.9", "--actor-obs a 'b c'", "--no-keep-best"])


# ------------------------------------------------------------------------------------------- what is remembered


def test_the_time_left_leaves_compilation_out(telemetry: Telemetry, clock: Clock) -> None:
    clock.now = 100.0  # the first iteration is over: nearly all of this was compilation
    telemetry.write(Event("metrics", [metrics(1, 100.0)]))
    assert math.isnan(telemetry.left)
    clock.now = 104.0
    telemetry.write(Event("metrics", [metrics(2, 104.0)]))
    assert telemetry.left == pytest.approx(4.0)  # one iteration to go, and the second one took 4 s
    clock.now = 105.0
    assert telemetry.left == pytest.approx(3.0)
    telemetry.write(Event("metrics", [metrics(3, 107.0)]))
    assert math.isnan(telemetry.left)


def test_metrics_are_averaged_over_seeds_and_what_is_not_finite_is_left_out(telemetry: Telemetry) -> None:
    for kls, mean in (((0.2, 0.4), 0.3), ((math.nan, 0.4), 0.4)):
        telemetry.write(Event("metrics", [metrics(1, 1.0, seed, **{"actor/kl": kl}) for seed, kl in enumerate(kls)]))
        assert telemetry.metrics["actor/kl"] == pytest.approx(mean)


def test_elapsed_includes_earlier_processes(telemetry: Telemetry, clock: Clock) -> None:
    telemetry.write(Event("metrics", [metrics(1, 1000.0)]))
    clock.now = 5.0
    assert telemetry.elapsed == pytest.approx(1005.0)


def test_a_resumed_run_recalls_its_evaluations(trained: Run) -> None:
    telemetry = Telemetry(trained.directory)
    telemetry.begin(DESCRIPTION)
    telemetry.recall()
    assert [rows[0]["env_steps"] for rows in telemetry.evaluations] == [0, 192]
    assert telemetry.steps == 192
    assert telemetry.finished


# ------------------------------------------------------------------------------------------- what is shown


def printed(kind: type[PlainDisplay], telemetry: Telemetry, *events: Event, encoding: str = "utf-8") -> str:
    """What a display prints of a run from its beginning to its end."""
    file = io.TextIOWrapper(io.BytesIO(), encoding)
    console = Console(file=file, width=80, height=40, force_terminal=kind is LiveDisplay, highlight=False, markup=False)
    shown = kind(console, telemetry)
    shown.prepare("loading")
    shown.begin(DESCRIPTION)
    for event in events:
        shown.write(event)
    shown.close()
    shown.summarise()
    file.seek(0)
    return re.sub(r"\x1b\[[0-9;]*m", "", file.read())


RUN = (
    Event.status("compiling"),
    Event("evaluations", [evaluation(0, 10.0)]),
    Event("metrics", [metrics(1, 60.0)]),
    Event.warning("something to act on"),
    Event("metrics", [metrics(2, 61.0)]),
    Event("metrics", [metrics(3, 62.0)]),
    Event("evaluations", [evaluation(3, 40.0, 2.0, seconds=63.0)]),
)


def test_a_log_has_a_line_for_everything_that_happened(telemetry: Telemetry) -> None:
    lines = printed(PlainDisplay, telemetry, *RUN).splitlines()
    assert lines[0] == "REPPO probe:TargetReach"
    assert "  device    Abacus, 2 cores" in lines
    assert "    0:00  compiling" in lines
    assert "    0:00    0 steps  return 10.00 ± 1.00" in lines
    assert "    1:00  warning: something to act on" in lines
    assert "    1:03  192 steps  return 40.00 ± 2.00  100 steps/s  KL 0.0500" in lines
    assert "Trained probe:TargetReach for 192 steps in 1:03" in lines
    assert "  return    40.00 ± 2.00  over 8 greedy episodes, at most 50" in lines


@pytest.mark.parametrize(
    ("returns", "best"),  # the first is that of the untrained policy, which has no file
    [
        ((1.0, 7.0, 5.0), ["  best      7.00 ± 1.00  at 64 steps"]),
        ((1.0, 5.0, 7.0), []),
        ((9.0, 5.0, 7.0), []),
        ((9.0,), []),
    ],
)
def test_a_run_that_was_better_before_says_so(telemetry: Telemetry, returns: Sequence[float], best: list[str]) -> None:
    events = [Event("evaluations", [evaluation(iteration, mean)]) for iteration, mean in enumerate(returns)]
    lines = printed(PlainDisplay, telemetry, *events).splitlines()
    assert [line for line in lines if line.startswith("  best ")] == best


def test_a_log_in_ascii(telemetry: Telemetry) -> None:
    text = printed(PlainDisplay, telemetry, *RUN, encoding="ascii")
    assert "return 40.00 +/- 2.00" in text


def test_the_panel_ends_with_the_last_numbers(telemetry: Telemetry) -> None:
    text = printed(LiveDisplay, telemetry, *RUN)
    last = text[text.rindex("100 %") :]
    assert "192 of 192" in last
    assert "something to act on" in last
    assert "Trained probe:TargetReach" in last
    assert "compiling" not in last
    assert text.count("\x1b[?25h") >= text.count("\x1b[?25l")  # the cursor is shown again whatever happens


@pytest.mark.parametrize("glyphs", [UNICODE, ASCII], ids=["unicode", "ascii"])
@pytest.mark.parametrize("width", [40, 60, 80, 100, 200])
@pytest.mark.parametrize("height", [20, 30, 60])
def test_a_frame_fits_the_terminal(telemetry: Telemetry, glyphs: display.Glyphs, width: int, height: int) -> None:
    shown = LiveDisplay(Console(file=io.StringIO(), width=width, height=height), telemetry)
    shown.glyphs = glyphs
    wide = min(width, display.MAX_WIDTH)
    for event in (*RUN, Event.warning("a long warning " * 8), Event.status("training")):
        shown.write(event)
        lines = shown.panel(wide, height)
        assert len(lines) < height
        assert all(line.cell_len <= wide for line in lines), [line.plain for line in lines if line.cell_len > wide]
        if glyphs is ASCII:
            assert "\n".join(line.plain for line in lines).isascii()


def test_the_curve_is_left_out_where_there_is_no_room(telemetry: Telemetry) -> None:
    shown = LiveDisplay(Console(file=io.StringIO()), telemetry)
    shown.write(Event("evaluations", [evaluation(0, 10.0)]))
    assert any("environment steps" in line.plain for line in shown.panel(80, 30))
    assert not any("environment steps" in line.plain for line in shown.panel(80, 12))


def test_a_warning_is_shown_once_however_often_it_is_given(telemetry: Telemetry) -> None:
    shown = LiveDisplay(Console(file=io.StringIO()), telemetry)
    for _ in range(3):
        shown.write(Event.warning("careful"))
    assert sum("careful" in line.plain for line in shown.panel(80, 30)) == 1


def test_a_finished_run_is_drawn_again_from_its_files(trained: Run) -> None:
    assert trained.directory is not None
    whole = display.capture(trained.directory).export_text()
    assert "Trained probe:TargetReach for 192 steps" in whole
    assert "reppo eval" in whole
    part = display.capture(trained.directory, share=0.4).export_text()
    assert "64 of 192" in part
    assert "Trained" not in part


def test_a_path_is_as_short_as_it_can_be_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert display.shown(tmp_path / "runs" / "mine") == "runs/mine"
    assert display.shown(tmp_path.parent / "other") == str(tmp_path.parent / "other")


@pytest.mark.parametrize(
    ("hardware", "shown"),
    [
        ({"devices": ["cpu"], "cpu": "Abacus", "cpu_cores": 1}, "Abacus, 1 core"),
        ({"devices": ["cpu"], "cpu": "Abacus", "cpu_cores": 2}, "Abacus, 2 cores"),
        ({"devices": ["H100"], "cpu": "Abacus", "cpu_cores": 2}, "H100"),
        ({"devices": ["H100", "H100"], "cpu": "Abacus", "cpu_cores": 2}, "2 x H100"),
        ({}, "unknown, ? cores"),
    ],
)
def test_what_a_run_computed_on_is_said_in_a_few_words(hardware: dict[str, Any], shown: str) -> None:
    assert computer(hardware) == shown
