"""The directory of a run: never overwritten, held by one process, cut back to a checkpoint, refused where it is damaged."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import helpers
import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from reppo import run_directory
from reppo.config import Config
from reppo.errors import ConfigError
from reppo.run import Run

DESCRIPTION = {"env": "probe:TargetReach", "seeds": [0], "config": {}}


def raising(number: int) -> Callable[..., Any]:
    """A system call that fails."""

    def call(*args: Any) -> None:
        raise OSError(number, os.strerror(number))

    return call


# ------------------------------------------------------------------------------------------- making one


def test_a_name_is_the_task_and_the_time() -> None:
    for env, task in [
        ("playground:CheetahRun", "CheetahRun"),
        ("a/b.py:Mine", "Mine"),
        ("x:Éa b/c", "a-b-c"),
        ("x:", "run"),
    ]:
        name, date, time = run_directory.new_run_name(env).rsplit("-", 2)
        assert (name, len(date), len(time)) == (task, 8, 6)


def test_runs_that_start_at_once_get_directories_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_directory, "new_run_name", lambda env: f"{env}-now")
    runs, together = tmp_path / "runs", threading.Barrier(8)

    def start(_: int) -> str:
        together.wait()
        with run_directory.claimed(None, "task", runs) as path:
            together.wait()
            return run_directory.create(path, DESCRIPTION).name

    with ThreadPoolExecutor(8) as pool:
        names = sorted(pool.map(start, range(8)))
    assert names == sorted(["task-now", *(f"task-now-{number}" for number in range(2, 9))])
    assert sorted(path.name for path in runs.iterdir()) == names


def test_a_directory_of_its_own_goes_where_nothing_came_of_it(tmp_path: Path) -> None:
    with run_directory.claimed(None, "task", tmp_path / "runs") as path:
        assert path.is_dir()
    assert list(tmp_path.iterdir()) == []
    with run_directory.claimed(tmp_path / "given", "task") as path:
        assert path == tmp_path / "given"
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    refused = pytest.raises(ConfigError, match=r"^cannot create .*file/task.*(is no directory|Not a directory)$")
    with refused, run_directory.claimed(None, "task", tmp_path / "file"):
        pass


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
    (tmp_path / "empty").mkdir()
    assert run_directory.read_description(run_directory.create(tmp_path / "empty", DESCRIPTION)) == DESCRIPTION


def test_a_failed_creation_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", raising(errno.ENOSPC))
    with pytest.raises(ConfigError, match="No space left on device"):
        run_directory.create(tmp_path / "run", DESCRIPTION)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cannot create .*/file/run: Not a directory"):
        run_directory.create(tmp_path / "file" / "run", DESCRIPTION)


def test_a_run_that_fails_before_it_begins_leaves_no_directory(tmp_path: Path) -> None:
    for begun in (False, True):
        path = run_directory.create(tmp_path / "run", DESCRIPTION)
        if begun:
            (path / "checkpoints").mkdir()
        with pytest.raises(ConfigError), run_directory.dropped_unless_begun(path):
            raise ConfigError("anything")
        assert path.exists() == begun


# ------------------------------------------------------------------------------------------- holding one

HOLDER = """
import fcntl, os, sys, time
file = open(sys.argv[1], "a+")
fcntl.flock(file, fcntl.LOCK_EX)
file.write(str(os.getpid()))
file.flush()
print("locked", flush=True)
time.sleep(60)
"""


def test_a_directory_is_held_by_one_process_until_that_ends_however_it_ends(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path / "lock")], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        with pytest.raises(ConfigError, match=f"is in use by process {holder.pid}"), run_directory.locked(tmp_path):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    refused = pytest.raises(ConfigError, match=f"is in use by process {os.getpid()}")
    with run_directory.locked(tmp_path), refused, run_directory.locked(tmp_path):
        pass
    with run_directory.locked(tmp_path):
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_directory_that_cannot_be_written_is_one_line(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "open", raising(number))
    refused = pytest.raises(ConfigError, match=f"cannot write in {tmp_path}: {os.strerror(number)}")
    with refused, run_directory.locked(tmp_path):
        pass


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_what_a_disk_refuses_is_one_line(tmp_path: Path, number: int) -> None:
    line = rf"cannot write in .*: {os.strerror(number)}; mend it, then `reppo resume"
    with pytest.raises(ConfigError, match=line), run_directory.explained_disk_errors(tmp_path):
        raising(number)()
    with pytest.raises(ConnectionResetError), run_directory.explained_disk_errors(tmp_path):
        raising(errno.ECONNRESET)()
    with pytest.raises(OSError, match=os.strerror(number)), run_directory.explained_disk_errors(None):
        raising(number)()


# ------------------------------------------------------------------------------------------- its description


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


ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from([10**400, -1, 2**63]) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


@given(data=st.data())
@settings(max_examples=100)
def test_an_altered_description_is_refused_or_is_one(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    run = tmp_path_factory.getbasetemp() / "altered"
    run.mkdir(exist_ok=True)
    description: dict[str, Any] = {**DESCRIPTION, "config": dataclasses.asdict(helpers.TINY)}
    content = bytearray(json.dumps(description, indent=2).encode())
    kind = data.draw(st.sampled_from(["flip", "cut", "field", "option", "missing"]))
    if kind == "flip":
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    elif kind == "cut":
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        holder = description["config"] if kind == "option" else description
        name = data.draw(st.sampled_from([*holder, "new"]))
        if kind == "missing":
            holder.pop(name, None)
        else:
            holder[name] = data.draw(ODD)
        content = json.dumps(description).encode()
    (run / "config.json").write_bytes(content)
    message = ""
    try:
        found = run_directory.read_description(run)
        config = Config.from_json(found["config"], "config.json")
    except ConfigError as error:
        message = str(error)
    else:
        assert isinstance(found["env"], str)
        assert all(0 <= seed < 2**32 for seed in found["seeds"])
        assert dataclasses.asdict(config).keys() == found["config"].keys()
        assert config.num_iterations >= 1
    assert "\n" not in message


def test_what_is_no_run_is_said_to_be_none(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere", Path(__file__)):
        with pytest.raises(ConfigError, match=r"is not a run directory: it has no config\.json"):
            run_directory.read_description(path)


# ------------------------------------------------------------------------------------------- winding back


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


GROWING = (
    "metrics.csv",
    "evaluations.csv",
    "tensorboard/events.out.tfevents.1.a.0",
    "tensorboard/seed1/events.out.tfevents.1",
)


@given(
    before=st.dictionaries(st.sampled_from(GROWING), st.binary(max_size=20)),
    after=st.dictionaries(st.sampled_from([*GROWING, "tensorboard/events.out.tfevents.2.a.1"]), st.binary(max_size=20)),
)
def test_whatever_has_been_appended_is_cut_off_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, before: dict[str, bytes], after: dict[str, bytes]
) -> None:
    run = tmp_path_factory.mktemp("run")
    others = {"config.json": b"{}", "tensorboard/notes.txt": b"mine", "policy.npz": b"p"}

    def append(rows: dict[str, bytes]) -> None:
        for name, data in rows.items():
            (run / name).parent.mkdir(parents=True, exist_ok=True)
            with (run / name).open("ab") as file:
                file.write(data)

    append({**before, **others})
    at = run_directory.positions(run)
    assert at == {name: len(data) for name, data in before.items()}
    append(after)
    run_directory.rewind(run, at)
    found = {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert found == {**before, **others}


def test_lost_rows_are_not_papered_over(trained: Run, tmp_path: Path) -> None:
    assert trained.directory is not None
    path = shutil.copytree(trained.directory, tmp_path / "run")
    before = run_directory.positions(path)
    os.truncate(path / "metrics.csv", 10)
    evaluations = (path / "evaluations.csv").read_bytes()
    with pytest.raises(ConfigError, match=r"rows are lost: .*metrics.csv has 10 bytes"):
        run_directory.rewind(path, {**before, "evaluations.csv": 0})
    with pytest.raises(ConfigError, match=r"rows are lost: .*tensorboard/x has 0 bytes"):
        run_directory.rewind(path, {"evaluations.csv": 0, "tensorboard/x": 1})
    assert (path / "evaluations.csv").read_bytes() == evaluations


@pytest.mark.parametrize(
    ("content", "finished"),
    [(None, False), ('{"env_steps": 100}', True), ('{"env_steps": 99}', False), ("", False), ("[]", False), ("{}", False)],
)
def test_finished_means_a_whole_summary(tmp_path: Path, content: str | None, finished: bool) -> None:
    if content is not None:
        (tmp_path / "summary.json").write_text(content)
    assert run_directory.is_finished(tmp_path, 100) is finished
