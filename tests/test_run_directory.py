"""The directory of a run: never overwritten, held by one process, cut back to a checkpoint, refused where it is damaged."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from reppo import run_directory
from reppo.config import ConfigError
from reppo.loop import Run

DESCRIPTION = {"env": "probe:TargetReach", "seeds": [0], "config": {}}


def test_a_name_is_the_task_and_the_time() -> None:
    for env, task in [
        ("playground:CheetahRun", "CheetahRun"),
        ("a/b.py:Mine", "Mine"),
        ("x:Éa b/c", "a-b-c"),
        ("x:", "run"),
    ]:
        name, date, time = run_directory.new_run_name(env).rsplit("-", 2)
        assert (name, len(date), len(time)) == (task, 8, 6)


def test_an_empty_directory_is_free_and_everything_else_is_not(tmp_path: Path) -> None:
    run_directory.check_free(tmp_path / "new")
    (tmp_path / "empty").mkdir()
    run_directory.check_free(tmp_path / "empty")
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("file", "link", "."):
        with pytest.raises(ConfigError, match="exists already and is never overwritten"):
            run_directory.check_free(tmp_path / name)


def test_a_directory_appears_with_its_description_in_it(tmp_path: Path) -> None:
    path = run_directory.create(tmp_path / "deep" / "run", DESCRIPTION)
    assert run_directory.read_description(path) == DESCRIPTION
    assert [p.name for p in path.parent.iterdir()] == ["run"]


def test_a_failed_creation_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_directory, "write_json", full)
    with pytest.raises(ConfigError, match="No space left on device"):
        run_directory.create(tmp_path / "run", DESCRIPTION)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    refused = pytest.raises(ConfigError, match=f"is in use by process {os.getpid()}")
    with run_directory.locked(tmp_path), refused, run_directory.locked(tmp_path):
        pass
    with run_directory.locked(tmp_path):
        pass


def test_a_run_that_fails_before_it_begins_leaves_no_directory(tmp_path: Path) -> None:
    for begun in (False, True):
        path = run_directory.create(tmp_path / "run", DESCRIPTION)
        if begun:
            (path / "checkpoints").mkdir()
        with pytest.raises(ConfigError), run_directory.dropped_unless_begun(path):
            raise ConfigError("anything")
        assert path.exists() == begun


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        "\x00\xff",
        json.dumps(DESCRIPTION | {"seeds": []}),
        json.dumps(DESCRIPTION | {"seeds": [-1]}),
        json.dumps(DESCRIPTION | {"seeds": [True]}),
        json.dumps(DESCRIPTION | {"env": 3}),
        json.dumps(DESCRIPTION | {"config": []}),
        "[" * 100_000,
    ],
)
def test_a_damaged_description_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match="is damaged or of another program"):
        run_directory.read_description(tmp_path)


def test_tables_are_cut_back_to_where_they_were(trained: Run, tmp_path: Path) -> None:
    assert trained.directory is not None
    path = shutil.copytree(trained.directory, tmp_path / "run")
    before = run_directory.positions(path)
    assert {"metrics.csv", "evaluations.csv"} < before.keys()
    assert any(name.startswith("tensorboard/") for name in before)
    with (path / "metrics.csv").open("a") as file:
        file.write("3,4,256,half a ro")
    (path / "tensorboard" / "events.out.tfevents.later").write_text("of a killed process")
    run_directory.rewind(path, before)
    assert run_directory.positions(path) == before
    assert (path / "metrics.csv").read_bytes() == (trained.directory / "metrics.csv").read_bytes()


def test_lost_rows_are_not_papered_over(trained: Run, tmp_path: Path) -> None:
    assert trained.directory is not None
    path = shutil.copytree(trained.directory, tmp_path / "run")
    before = run_directory.positions(path)
    os.truncate(path / "metrics.csv", 10)
    evaluations = (path / "evaluations.csv").read_bytes()
    with pytest.raises(ConfigError, match=r"rows are lost: .*metrics.csv has 10 bytes"):
        run_directory.rewind(path, {**before, "evaluations.csv": 0})
    assert (path / "evaluations.csv").read_bytes() == evaluations


def test_finished_means_a_whole_summary(tmp_path: Path) -> None:
    assert not run_directory.is_finished(tmp_path, 100)
    (tmp_path / "summary.json").write_text('{"env_steps": 1')
    assert not run_directory.is_finished(tmp_path, 100)
    run_directory.write_json(tmp_path / "summary.json", {"env_steps": 100})
    assert run_directory.is_finished(tmp_path, 100)
    assert not run_directory.is_finished(tmp_path, 101)
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]
