"""Tables and event files hold what was written, and go on where they were."""

from __future__ import annotations

import math
import struct
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboardX.proto.event_pb2 import Event as EventRecord  # pyright: ignore[reportAttributeAccessIssue]

from reppo import sinks
from reppo.plot import read_rows
from reppo.sinks import CsvSink, Event, TensorBoardSink, WandbSink

ROW = {"seed": 3.0, "iteration": 1.0, "env_steps": 64.0, "actor/kl": 0.125, "episode/return": math.nan}


def row(**values: float) -> dict[str, float]:
    return ROW | {name.replace("__", "/"): value for name, value in values.items()}


def test_a_table_has_a_header_and_a_row_per_seed(tmp_path: Path) -> None:
    sink = CsvSink(tmp_path)
    sink.begin({})
    sink.write(Event("metrics", [row(), row(seed=4.0, actor__kl=1 / 3)]))
    sink.write(Event("evaluations", [row()]))
    sink.write(Event.status("nothing to write"))
    sink.close()
    header, first, second = (tmp_path / "metrics.csv").read_text().splitlines()
    assert header == "seed,iteration,env_steps,actor/kl,episode/return"
    assert first == "3,1,64,0.125,"  # whole numbers without a point, nothing for what does not exist
    assert second == "4,1,64,0.333333333,"
    assert len((tmp_path / "evaluations.csv").read_text().splitlines()) == 2


def test_a_table_that_exists_is_continued(tmp_path: Path) -> None:
    for iteration in (1.0, 2.0):
        sink = CsvSink(tmp_path)
        sink.write(Event("metrics", [row(iteration=iteration)]))
        sink.close()
    rows = read_rows(tmp_path / "metrics.csv")
    assert [entry["iteration"] for entry in rows] == [1.0, 2.0]
    assert math.isnan(rows[0]["episode/return"])


@given(st.floats(width=32, allow_nan=False))
def test_a_number_reads_back_as_the_same_float32(value: float) -> None:
    assert np.float32(float(sinks.as_written(value))) == np.float32(value)


def records(directory: Path) -> list[Any]:
    """The events of the only event file in a directory: length, its checksum, data, checksum."""
    (path,) = directory.glob("events.out.tfevents.*")
    data, found = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        found.append(EventRecord.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return found


def test_event_files_hold_every_number_of_their_seed(tmp_path: Path) -> None:
    sink = TensorBoardSink(tmp_path, [3, 4])
    sink.begin({})
    sink.write(Event("metrics", [row(), row(seed=4.0, actor__kl=0.5)]))
    sink.flush()
    (written,) = [record for record in records(tmp_path / "seed4") if record.HasField("summary")]
    assert written.step == 64
    assert {value.tag: value.simple_value for value in written.summary.value} == {"actor/kl": 0.5}
    sink.close()


def test_one_seed_needs_no_directory_of_its_own(tmp_path: Path) -> None:
    sink = TensorBoardSink(tmp_path, [3])
    sink.begin({})
    sink.write(Event("evaluations", [row()]))
    assert records(tmp_path)[-1].summary.value[0].simple_value == 0.125
    sink.close()


def test_wandb_gets_a_run_per_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    class FakeRun:
        def __init__(self, **options: Any):
            self.options, self.logged, self.finished = options, [], False

        def log(self, values: dict[str, float]) -> None:
            self.logged.append(values)

        def finish(self) -> None:
            self.finished = True

    runs: list[FakeRun] = []

    def init(**options: Any) -> FakeRun:
        runs.append(FakeRun(**options))
        return runs[-1]

    fake = types.SimpleNamespace(init=init, util=types.SimpleNamespace(generate_id=lambda: "abc"))
    monkeypatch.setitem(sys.modules, "wandb", fake)  # type: ignore[arg-type]
    sink = WandbSink("project")
    sink.begin({"env": "probe:TargetReach", "seeds": [3, 4]})
    sink.write(Event("metrics", [row(seed=4.0)]))
    sink.close()
    assert [run.options["name"] for run in runs] == ["probe:TargetReach-3", "probe:TargetReach-4"]
    assert len({run.options["group"] for run in runs}) == 1
    assert [run.logged for run in runs] == [[], [{"actor/kl": 0.125, "env_steps": 64.0}]]
    assert all(run.finished for run in runs)
