"""A run that was stopped and resumed is the run that never stopped, to the last bit."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import helpers
import numpy as np
import pytest
from breakable import SHARED, Recorder, shared_programs
from tensorboardX.proto.event_pb2 import Event as EventRecord  # pyright: ignore[reportAttributeAccessIssue]

import reppo
from reppo import checkpoint, loop, outcome, run_directory, same_run
from reppo.config import LATER_OPTIONS, Config
from reppo.errors import ConfigError, Stopped
from reppo.interrupt import Interrupt
from reppo.plot import read_rows
from reppo.run import Run

assert shared_programs  # a fixture of this module from here on

ENV = "probe:TargetReach"
STEPS = helpers.TINY.batch_size
#: With evaluations after 0, 2, 4 and 6 iterations.
CONFIG = dataclasses.replace(helpers.TINY, total_steps=6 * STEPS, actor_average=0.5, num_evals=3)


def train(out: Path, seeds: int = 1, config: Config = CONFIG, **how: Any) -> Run:
    return reppo.train(ENV, config, seed=3, num_seeds=seeds, out=out, **how)


def stopped(out: Path, after: int, seeds: int = 1, kind: str = "metrics", run: Any = train) -> Recorder:
    """Train until there have been so many events of a kind, or resume with ``run`` being `loop.resume`."""
    interrupt = Interrupt(lambda: "resume me")
    recorder = Recorder(interrupt, after, kind)
    how = {} if run is loop.resume else {"seeds": seeds}
    with pytest.raises(Stopped, match="resume me"):
        run(out, sinks=[recorder], interrupt=interrupt, **how)
    return recorder


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Run]:
    """Runs that never stopped, by their number of seeds. Do not change them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("reppo.run.make_learner", SHARED.make_learner)
        return {seeds: train(tmp_path_factory.mktemp("reference") / "run", seeds) for seeds in (1, 2)}


def rows_without_time(path: Path) -> list[dict[str, float | None]]:
    """The rows of a table but for its clocks; NaN as None, so that rows can be compared."""
    rows = [row.items() for row in read_rows(path)]
    return [{name: None if np.isnan(x) else x for name, x in row if not name.startswith("time/")} for row in rows]


def events(directory: Path) -> list[tuple[int, tuple[tuple[str, float], ...]]]:
    """The events of TensorBoard but for its clocks, in order of files and within them."""
    found = []
    for path in sorted(directory.rglob("events.out.tfevents.*"), key=lambda p: int(p.name.rpartition(".")[2])):
        data = path.read_bytes()
        while data:
            size = int.from_bytes(data[:8], "little")
            event = EventRecord.FromString(data[12 : 12 + size])
            data = data[16 + size :]
            values = [(v.tag, v.simple_value) for v in event.summary.value if not v.tag.startswith("time/")]
            if values:
                found.append((event.step, tuple(values)))
    return found


def contents(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def assert_same_run(run: Run, reference: Run) -> None:
    """Two finished runs are the same, in memory and on disk, but for clocks."""
    helpers.assert_identical(
        {"learner": run.state, "env": run.env_state}, {"learner": reference.state, "env": reference.env_state}
    )
    np.testing.assert_array_equal(run.returns, reference.returns)
    ours, theirs = run.directory, reference.directory
    assert ours is not None
    assert theirs is not None
    for table, rows in (("metrics.csv", run.history), ("evaluations.csv", run.evaluations)):
        assert rows_without_time(ours / table) == rows_without_time(theirs / table)
        assert [row["iteration"] for row in rows] == [row["iteration"] for row in read_rows(theirs / table)]
    for seed in run.seeds:
        name = f"seed{seed}" if len(run.seeds) > 1 else "."
        assert events(ours / "tensorboard" / name) == events(theirs / "tensorboard" / name)
    for path in [*theirs.glob("policy*.npz"), *theirs.glob("best*.npz")]:
        with np.load(path) as expected, np.load(ours / path.name) as found:
            helpers.assert_identical(dict(found), dict(expected))
    outcomes = [json.loads((path / "summary.json").read_text()) for path in (ours, theirs)]
    assert outcomes[0]["seeds"] == outcomes[1]["seeds"]
    assert {"config.json", "curve.png", "lock"} < set(contents(ours))
    assert not [name for name in contents(ours) if "partial" in name or "removed" in name]


# ------------------------------------------------------------------------------------------- exactness


@pytest.mark.parametrize(("after", "seeds"), [(1, 1), (2, 1), (5, 1), (2, 2)])
def test_a_run_stopped_after_an_iteration_goes_on_as_if_it_had_not(
    references: dict[int, Run], tmp_path: Path, after: int, seeds: int
) -> None:
    stopped(tmp_path / "run", after, seeds)  # where an evaluation is due, as after 2, before it
    last = checkpoint.listing(tmp_path / "run" / "checkpoints")[-1]
    assert last.name == f"{after * STEPS:012d}"
    assert_same_run(reppo.resume(tmp_path / "run"), references[seeds])


def test_a_run_stopped_after_an_evaluation_goes_on_as_if_it_had_not(references: dict[int, Run], tmp_path: Path) -> None:
    stopped(tmp_path / "run", 3, kind="evaluations")
    last = checkpoint.listing(tmp_path / "run" / "checkpoints")[-1]
    assert last.name == f"{4 * STEPS:012d}-evaluated"
    assert_same_run(reppo.resume(tmp_path / "run"), references[1])


def test_a_run_stopped_within_an_evaluation_makes_it_again(
    references: dict[int, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt, evaluate = Interrupt(lambda: "resume me"), Run.evaluate

    def interrupted(run: Run, *args: Any, **how: Any) -> Any:
        if run.iteration == 4:
            interrupt.requested = signal.SIGTERM
        return evaluate(run, *args, **how)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "evaluate", interrupted)
        with pytest.raises(Stopped, match=f"stopped at {4 * STEPS} steps; resume me"):
            train(tmp_path / "run", interrupt=interrupt)
    last = checkpoint.listing(tmp_path / "run" / "checkpoints")[-1]
    assert last.name == f"{4 * STEPS:012d}"  # not evaluated
    assert [row["iteration"] for row in read_rows(tmp_path / "run" / "evaluations.csv")] == [0, 2]
    assert_same_run(reppo.resume(tmp_path / "run"), references[1])


def test_a_run_stopped_again_and_again_arrives_all_the_same(references: dict[int, Run], tmp_path: Path) -> None:
    stopped(tmp_path / "run", 1, 2)
    for _ in range(4):
        stopped(tmp_path / "run", 1, run=loop.resume)
    run = reppo.resume(tmp_path / "run")
    assert_same_run(run, references[2])
    clock = [row["time/seconds"] for row in run.history]
    assert clock == sorted(clock)


def test_a_run_killed_before_its_first_checkpoint_starts_from_the_beginning(
    references: dict[int, Run], tmp_path: Path
) -> None:
    stopped(tmp_path / "run", 2)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    for policy in (tmp_path / "run").glob("*.npz"):
        policy.unlink()
    recorder = Recorder()
    assert_same_run(reppo.resume(tmp_path / "run", sinks=[recorder]), references[1])
    assert "stopped before its first checkpoint: it starts from the beginning" in recorder.texts


def test_results_without_checkpoints_are_not_begun_anew(tmp_path: Path) -> None:
    train(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    for config in (None, dataclasses.replace(CONFIG, total_steps=8 * STEPS)):
        with pytest.raises(ConfigError, match=r"has best.npz and no checkpoint to go on from"):
            reppo.resume(tmp_path / "run", config)
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}


def test_an_environment_that_has_changed_is_refused(tmp_path: Path) -> None:
    stopped(tmp_path / "run", 1)
    file = tmp_path / "run" / "config.json"
    description = json.loads(file.read_text())
    description["spec"]["value_range"] = [-1.0, 2.5]
    file.write_text(json.dumps(description))
    with pytest.raises(
        ConfigError, match=r"^probe:TargetReach has changed since this run began: value_range \[-1.0, 2.5\] -> "
    ):
        reppo.resume(tmp_path / "run")


class Killed(BaseException):
    pass


@pytest.mark.parametrize("at", ["save_policies", "summary"])
def test_a_run_killed_while_it_writes_its_outcome_writes_it_again(
    references: dict[int, Run], tmp_path: Path, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(*args: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        if at == "save_policies":
            patch.setattr(Run, at, kill)
        else:
            patch.setattr(loop, at, kill)
        with pytest.raises(Killed):
            train(tmp_path / "run", config=CONFIG)
    assert not (tmp_path / "run" / "summary.json").exists()
    assert_same_run(reppo.resume(tmp_path / "run"), references[1])


def test_a_best_policy_is_replaced_when_its_evaluation_is_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill in between would leave a file whose evaluation is in no table. One after it is made up for."""
    newest = []

    def kill_at_the_last(run: Run) -> None:
        assert run.directory is not None
        newest.append(checkpoint.listing(run.directory / "checkpoints")[-1].name == f"{run.env_steps:012d}-evaluated")
        if len(newest) == CONFIG.num_evals:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Run, "save_policies", kill_at_the_last)
        with pytest.raises(Killed):
            train(tmp_path / "run", config=CONFIG)
    assert newest == [True] * CONFIG.num_evals
    assert not list((tmp_path / "run").glob("*.npz"))
    with np.load(reppo.resume(tmp_path / "run").directory / "policy.npz") as found:  # pyright: ignore[reportOptionalOperand]
        assert len(found) > 0


@pytest.mark.parametrize(("minutes", "between"), [(1e-9, True), (60.0, False)])
def test_a_checkpoint_is_due_by_the_clock_between_evaluations(tmp_path: Path, minutes: float, between: bool) -> None:
    config = dataclasses.replace(CONFIG, num_evals=1, checkpoint_minutes=minutes, keep_checkpoints=100)
    train(tmp_path / "run", config=config)
    found = [path.name for path in checkpoint.listing(tmp_path / "run" / "checkpoints")]
    evaluated = [name for name in found if name.endswith("-evaluated")]
    expected = [f"{i * STEPS:012d}" for i in range(1, config.num_iterations)] if between else []
    assert [name for name in found if name not in evaluated] == expected


# ------------------------------------------------------------------------------------------- the end, and beyond it


@pytest.fixture
def finished(references: dict[int, Run], tmp_path: Path) -> Path:
    """A copy of a finished run, to be changed."""
    assert references[1].directory is not None
    return shutil.copytree(references[1].directory, tmp_path / "run")


def test_a_finished_run_has_nothing_to_do_and_is_left_alone(finished: Path, references: dict[int, Run]) -> None:
    before = contents(finished)
    recorder = Recorder()
    run = reppo.resume(finished, sinks=[recorder])
    assert recorder.texts == ["finished at 384 steps: nothing to do (a larger total_steps extends it)"]
    assert contents(finished) == {**before, "lock": f"{os.getpid()}\n".encode()}
    helpers.assert_identical(run.state, references[1].state)
    assert [row["iteration"] for row in run.history] == [1, 2, 3, 4, 5, 6]
    assert len(run.evaluations) == 4


def test_a_finished_run_can_be_extended_to_what_a_longer_run_would_have_been(finished: Path, tmp_path: Path) -> None:
    longer = dataclasses.replace(CONFIG, total_steps=8 * STEPS, num_evals=4)  # evaluations at the same places
    extended = reppo.resume(finished, longer)
    assert_same_run(extended, train(tmp_path / "longer", config=longer))
    description = run_directory.read_description(finished)
    assert description["config"]["total_steps"] == 8 * STEPS
    assert reppo.resume(finished).iteration == 8  # without being told again


def test_policies_that_a_kill_has_kept_from_the_disk_are_written_when_the_run_goes_on(finished: Path) -> None:
    (finished / "policy.npz").unlink()
    there: list[bool] = []

    class Looks(Recorder):
        def write(self, event: Any) -> None:
            if event.kind == "metrics":
                there.append((finished / "policy.npz").is_file())

    reppo.resume(finished, dataclasses.replace(CONFIG, total_steps=8 * STEPS, num_evals=1), sinks=[Looks()])
    assert there[0], "before anything else is learned"


def test_a_run_cannot_be_made_shorter_than_it_is(finished: Path) -> None:
    before = contents(finished)
    with pytest.raises(ConfigError, match="the checkpoint at 384 steps is beyond total_steps, 128"):
        reppo.resume(finished, dataclasses.replace(CONFIG, total_steps=2 * STEPS))
    assert contents(finished) == {**before, "lock": f"{os.getpid()}\n".encode()}


def test_options_that_would_make_another_run_are_refused_with_the_list(finished: Path) -> None:
    changed = dataclasses.replace(CONFIG, gamma=0.9, num_epochs=3, eval_episodes=4, checkpoint_minutes=1.0)
    with pytest.raises(ConfigError, match=r"another run: num_epochs 2 -> 3, gamma 0\.99 -> 0\.9;"):
        reppo.resume(finished, changed)


def test_a_learning_rate_that_is_annealed_fixes_the_end(tmp_path: Path) -> None:
    saved = dataclasses.replace(CONFIG, anneal_learning_rate=True)
    with pytest.raises(ConfigError, match="total_steps 384 -> 768"):
        same_run.check_changes(saved, dataclasses.replace(saved, total_steps=12 * STEPS))


def test_a_run_from_before_an_option_there_is_now_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = dataclasses.replace(CONFIG, **LATER_OPTIONS)
    describe = outcome.describe

    def older(*args: Any) -> dict[str, Any]:
        described = describe(*args)
        config = {name: value for name, value in described["config"].items() if name not in LATER_OPTIONS}
        return {**described, "config": config}

    with monkeypatch.context() as patch:
        patch.setattr(outcome, "describe", older)
        stopped(tmp_path / "run", 3, run=functools.partial(train, config=plain))
    assert not LATER_OPTIONS.keys() & run_directory.read_description(tmp_path / "run")["config"].keys()
    assert_same_run(reppo.resume(tmp_path / "run"), train(tmp_path / "whole", config=plain))


# ------------------------------------------------------------------------------------------- damage


def damage(path: Path) -> None:
    file = max(path.rglob("ocdbt.process_0/d/*"), key=lambda p: p.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_an_older_checkpoint_takes_the_place_of_a_damaged_one(references: dict[int, Run], tmp_path: Path) -> None:
    stopped(tmp_path / "run", 5)
    directory = tmp_path / "run" / "checkpoints"
    assert [path.name[-4:] for path in checkpoint.listing(directory)][-1] == "0320"
    damage(checkpoint.listing(directory)[-1])
    recorder = Recorder()
    run = reppo.resume(tmp_path / "run", sinks=[recorder])
    assert_same_run(run, references[1])
    (warning,) = (text for text in recorder.texts if "damaged" in text)
    assert "is not what was written; it is now 000000000320.damaged, and the run goes on from 256 steps" in warning
    assert (directory / "000000000320.damaged").is_dir()


def test_a_run_without_a_sound_checkpoint_is_refused_and_left_alone(tmp_path: Path) -> None:
    stopped(tmp_path / "run", 3)
    for path in checkpoint.listing(tmp_path / "run" / "checkpoints"):
        damage(path)
    before = contents(tmp_path / "run")
    with pytest.raises(ConfigError, match="is not what was written; there is no sound one to go on from"):
        reppo.resume(tmp_path / "run")
    assert contents(tmp_path / "run") == before


def test_the_checkpoint_of_another_run_is_refused(references: dict[int, Run], tmp_path: Path) -> None:
    stopped(tmp_path / "run", 3)
    directory = tmp_path / "run" / "checkpoints"
    shutil.rmtree(directory)
    other = reppo.train(ENV, CONFIG, seed=4, out=tmp_path / "other")
    assert other.directory is not None
    shutil.copytree(other.directory / "checkpoints", directory)
    with pytest.raises(ConfigError, match=r"the checkpoint at 384 steps is not of this run: seeds \[4\] -> \[3\]"):
        reppo.resume(tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"env": "probe:Terminating"}, "env 'probe:TargetReach' -> 'probe:Terminating'"),
        ({"seeds": [3, 4]}, r"seeds \[3\] -> \[3, 4\]"),
        ({"config": {"gamma": 0.98}}, r"gamma 0\.99 -> 0\.98"),
        ({"config": {"critic_width": 32}}, "critic_width 16 -> 32"),
    ],
)
def test_a_description_that_is_not_that_of_the_checkpoints_is_refused(
    finished: Path, change: dict[str, Any], message: str
) -> None:
    description = run_directory.read_description(finished)
    config = {**description["config"], **change.get("config", {})}
    (finished / "config.json").write_text(json.dumps({**description, **change, "config": config}))
    with pytest.raises(ConfigError, match=f"is not of this run: {message}"):
        reppo.resume(finished)


def test_other_versions_are_told_of(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    provenance = outcome.provenance()
    versions = {**provenance["versions"], "jax": "9.9"}
    monkeypatch.setattr(outcome, "provenance", lambda: {**provenance, "versions": versions})
    recorder = Recorder()
    reppo.resume(finished, dataclasses.replace(CONFIG, total_steps=7 * STEPS), sinks=[recorder])
    (note,) = (text for text in recorder.texts if "written elsewhere" in text)
    assert f"(jax {provenance['versions']['jax']} -> 9.9): what follows may differ in the last bits" in note


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("metrics.csv", b"", "rows are lost"),
        ("metrics.csv", b"x" * 100_000, r"has other columns than this version writes: .{,300}$"),
        ("evaluations.csv", b"seed,iteration\n" + b"1,z\n" * 10_000, "it is no table of numbers after line"),
        ("config.json", b"{", "is damaged or of another program"),
    ],
)
def test_damaged_tables_are_refused(tmp_path: Path, file: str, content: bytes, message: str) -> None:
    stopped(tmp_path / "run", 3)
    (tmp_path / "run" / file).write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        reppo.resume(tmp_path / "run")


def test_a_table_of_other_columns_is_not_continued(tmp_path: Path) -> None:
    stopped(tmp_path / "run", 3)
    path = tmp_path / "run" / "metrics.csv"
    path.write_bytes(path.read_bytes().replace(b"actor/std", b"actor/old"))
    with pytest.raises(ConfigError, match="has other columns than this version writes: actor/old, actor/std"):
        reppo.resume(tmp_path / "run")


def test_a_run_in_use_is_refused_and_left_alone(finished: Path) -> None:
    with run_directory.locked(finished):
        before = contents(finished)
        with pytest.raises(ConfigError, match=f"is in use by process {os.getpid()}"):
            reppo.resume(finished)
        assert contents(finished) == before


def test_an_environment_that_was_made_in_python_is_asked_for(tmp_path: Path) -> None:
    class Mine(type(reppo.envs.make(ENV))):  # pyright: ignore
        made_from = None

    interrupt = Interrupt(str)
    with pytest.raises(Stopped):
        reppo.train(Mine, CONFIG, out=tmp_path / "run", sinks=[Recorder(interrupt, 1)], interrupt=interrupt)
    with pytest.raises(ConfigError, match=r"Mine, was made in Python: resume it there, reppo\.resume\(\.\.\., env=\.\.\.\)"):
        reppo.resume(tmp_path / "run")
    with pytest.raises(ConfigError, match="the run trains Mine, not probe:TargetReach"):
        reppo.resume(tmp_path / "run", env=ENV)
    assert reppo.resume(tmp_path / "run", env=Mine).iteration == 6


def test_what_a_disk_refuses_ends_a_run_in_one_line_and_it_can_be_resumed(
    references: dict[int, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = loop.CsvSink.write

    def full(self: Any, event: Any) -> None:
        if event.rows and event.rows[0]["iteration"] == 5:
            raise OSError(28, "No space left on device")
        write(self, event)

    with monkeypatch.context() as patch:
        patch.setattr(loop.CsvSink, "write", full)
        with pytest.raises(ConfigError, match=r"cannot write in .*: No space left on device; mend it, then `reppo resume"):
            train(tmp_path / "run")
    assert_same_run(reppo.resume(tmp_path / "run"), references[1])


@pytest.mark.parametrize("written", [{}, {"hardware": 5, "versions": [1]}, {"hardware": None, "versions": "x", "git": 3}])
def test_where_a_foreign_checkpoint_was_written_is_never_an_error(written: dict[str, Any]) -> None:
    now = {"hardware": {"cpu": "a", "devices": ["b"]}, "versions": {"jax": "1"}, "git": "c"}
    assert "jax None -> 1" in same_run.changed_provenance(written, now)
