"""`reppo bench`: what a suite asks for, what is skipped, what is recorded, and what is left out of it."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import importlib.util
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import TINY

from reppo import cli, envs, run_directory
from reppo.bench import launchers, records, runner, suites
from reppo.bench.records import Key, Record
from reppo.bench.runner import Bench, Job, in_threads, make_plan
from reppo.bench.suites import ABLATIONS, ALGORITHMS, AVERAGED, BASELINES, DMC23, ESTIMATORS, HUMANOID, SUITES, Suite
from reppo.config import PRESETS, preset
from reppo.errors import ConfigError

CHANGES = {
    field.name: getattr(TINY, field.name)
    for field in dataclasses.fields(TINY)
    if getattr(TINY, field.name) != getattr(preset("cpu"), field.name)
}
SMALL = Suite("for tests", ("probe:TargetReach",), ("reppo",), num_seeds=2, preset="cpu", options=CHANGES, together=2)
OTHER = suites.Variant("another", baseline="fasttd3", presets={"cpu": "cpu"}, resumes=False)
OF_BASELINE = dataclasses.replace(
    SMALL,
    algorithms=("other",),
    settings={
        "other": ("num_envs=8", "num_steps=2", "learning_starts=2", "minibatch_size=16", "actor_width=8", "critic_width=8")
    },
)


# ------------------------------------------------------------------------------------------- suites


def test_the_reference_returns_are_the_published_ones(root: Path) -> None:
    with (root / "results" / "published" / "dmc_norm_reference.csv").open(newline="") as file:
        assert {row["task"]: float(row["ref_best_mean"]) for row in csv.DictReader(file)} == DMC23


def test_the_humanoids_references_are_the_best_published_means(root: Path) -> None:
    best: dict[str, float] = {}
    with (root / "results" / "published" / "dmc_final.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if row["suite"] == "humanoid":
                best[row["task"]] = max(best.get(row["task"], -np.inf), float(row["mean"]))
    assert best == HUMANOID


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ("playground:CheetahRun", ("ref_best", "/1000")),
        ("envpool:CheetahRun-v1", ("/1000",)),  # the same rewards, another simulation
        ("envpool:HalfCheetah-v5", ()),
        ("playground:G1JoystickFlatTerrain", ("ref_best",)),
        ("maniskill:PullCube-v1", ("success_once", "success_at_end")),
    ],
)
def test_what_makes_returns_of_tasks_comparable(env: str, expected: tuple[str, ...]) -> None:
    assert suites.normalisers(env) == expected


@pytest.mark.parametrize("name", SUITES)
def test_every_suite_can_be_configured(name: str) -> None:
    suite = SUITES[name]
    assert set(suite.algorithms) <= ALGORITHMS.keys()
    for algorithm in suite.algorithms:
        config = suite.configured(algorithm)
        config.validate()
        as_deployed = algorithm == AVERAGED or name == "gymnasium"
        assert ALGORITHMS[algorithm].baseline or (config.actor_average > 0) == as_deployed, (
            "others compare the newest policy"
        )


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_differs_in_what_it_names_alone(name: str) -> None:
    base, algorithm = PRESETS["paper-large"], ABLATIONS[name]
    config = algorithm.configured(base)
    changed = {f.name for f in dataclasses.fields(base) if getattr(base, f.name) != getattr(config, f.name)}
    assert changed == algorithm.options.keys() | ({"num_steps", "num_minibatches"} if algorithm.data_divisor > 1 else set())
    assert bool(changed) == (name != "reppo")


def test_less_data_per_update_is_the_papers() -> None:
    base = PRESETS["paper-large"]
    assert ABLATIONS["reppo-medium"].configured(base) == PRESETS["paper-medium"]
    assert ABLATIONS["reppo-small"].configured(base) == PRESETS["paper-small"]
    with pytest.raises(ConfigError, match="must be multiples of 4"):
        ABLATIONS["reppo-small"].configured(dataclasses.replace(base, num_steps=6))


@pytest.mark.parametrize(
    ("name", "preset_name"),
    [
        ("reppo", "paper-large"),
        ("reppo-fixed", "cpu"),
        ("reppo-mse", "cpu"),
        ("reppo-no_aux", "cpu"),
        ("reppo-small", "cpu"),
    ],
)
def test_the_command_of_a_run_has_its_configuration(name: str, preset_name: str) -> None:
    base = dataclasses.replace(PRESETS[preset_name], total_steps=12_345, v_min=-0.1, actor_obs=("a", "b"))
    job = Job("s", name, "probe:TargetReach", (3, 4), ABLATIONS[name].configured(base), preset_name)
    args = cli.arguments("train", job.command[1:])
    assert args.config == job.config
    assert (args.env, args.seed, args.seeds) == ("probe:TargetReach", 3, 2)


# ------------------------------------------------------------------------------------------- planning


def test_a_plan_of_nothing_done(tmp_path: Path) -> None:
    plan = make_plan("balance", SUITES["balance"], tmp_path)
    assert not plan.done
    assert {job.algorithm for job in plan.jobs} == {*ESTIMATORS, *BASELINES}
    assert {job.algorithm: job.config.total_steps for job in plan.jobs if job.config} == {
        **dict.fromkeys(ESTIMATORS, 800_000),
        **dict.fromkeys(BASELINES, 200_000),
    }
    # Seed by seed, so that an interrupted suite has as many of each.
    compared = (*ESTIMATORS, *BASELINES)
    assert [(job.algorithm, job.seeds) for job in plan.jobs] == [(name, (seed,)) for seed in range(10) for name in compared]
    # From seeds that the preset was not tuned on, and from the first of them where fewer are asked for.
    plan = make_plan("laptop", SUITES["laptop"], tmp_path, seeds=2)
    assert {job.seeds for job in plan.jobs} == {(10,), (11,)}
    suite = SUITES["estimators"]
    plan = make_plan("estimators", suite, tmp_path)
    assert [(job.algorithm, job.env, job.seeds) for job in plan.jobs] == [
        (name, env, tuple(range(10, 20))) for env in suite.tasks for name in ESTIMATORS
    ]
    few = make_plan("estimators", suite, tmp_path, tasks=["CartpoleSwingup"], algorithms=["reppo"], seeds=3, together=2)
    assert [job.name for job in few.jobs] == [
        "estimators/reppo/playground-CartpoleSwingup-seeds10-11",
        "estimators/reppo/playground-CartpoleSwingup-seed12",
    ]
    both = make_plan(
        "dmc23", SUITES["dmc23"], tmp_path, tasks=["CheetahRun"], algorithms=["reppo", "ppo"], seeds=2, together=2
    )
    assert [(job.algorithm, job.seeds) for job in both.jobs] == [("reppo", (0, 1)), ("ppo", (0,)), ("ppo", (1,))]


def test_what_cannot_run_here_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan("maniskill8", SUITES["maniskill8"], tmp_path, tasks=["PokeCube-v1"], algorithms=["reppo"])
    if "maniskill" not in envs.SUITES:
        assert not plan.jobs
        assert runner.summarised(plan.impossible) == {"there is no environment maniskill:PokeCube-v1 here yet": 20}
    host = dataclasses.replace(SMALL, tasks=("gymnasium:Pendulum-v1",), algorithms=("ppo", "reppo"))
    found = make_plan("small", host, tmp_path)
    assert [job.algorithm for job in found.jobs] == ["reppo"]
    assert "ppo takes environments that are written in JAX" in found.impossible[0].problem
    there = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "torch" else there(name))
    both = dataclasses.replace(host, tasks=("gymnasium:Pendulum-v1", "probe:TargetReach"), algorithms=("sb3-ppo",))
    found = make_plan("small", both, tmp_path)
    assert [job.problem for job in found.impossible] == [
        "sb3-ppo needs torch: pip install 'reppo[sb3]'",
        "sb3-ppo takes Gymnasium's environments, and probe:TargetReach is none",
    ]
    monkeypatch.undo()
    unknown = dataclasses.replace(SMALL, tasks=("probe:Nothing",), algorithms=("reppo", "nothing"))
    found = make_plan("small", unknown, tmp_path)
    assert [job.problem for job in found.impossible] == [
        "probe has no task Nothing here",
        "there is no algorithm nothing here yet",
    ]


def test_robots_whose_models_are_not_here_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from mujoco_playground._src import mjx_env

    monkeypatch.delenv("REPPO_ALLOW_DOWNLOAD", raising=False)
    monkeypatch.setattr(mjx_env, "MENAGERIE_PATH", tmp_path / "none")
    plan = make_plan("humanoid", SUITES["humanoid"], tmp_path, seeds=1)
    assert not plan.jobs
    assert all("allow Playground to download them" in job.problem for job in plan.impossible)


def test_a_signal_stops_in_good_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(Bench, "job", interrupted)
    words = ["bench", "smoke", "--tasks", "TargetReach", "--results", str(tmp_path), "--work", str(tmp_path / "work")]
    assert cli.main(words) == runner.STOPPED
    assert "the same command goes on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["smok"], "no suite 'smok'; did you mean smoke?"),
        (["smoke", "--tasks", "Pendulum"], "smoke has no task 'Pendulum'; did you mean Pendulum-v1?"),
        (["smoke", "--algorithms", "ppo2"], "smoke has no algorithm 'ppo2'"),
        (["smoke", "--seeds", "4"], "smoke has 3 seeds, got 4"),
        (["smoke", "--seeds", "0"], "must be at least 1, got 0"),
        (["smoke", "--at-once", "0"], "--at-once must be at least 1"),
    ],
)
def test_mistakes_are_one_line(words: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", *words, "--results", str(tmp_path)]) == cli.USER_ERROR
    assert complaint in capsys.readouterr().err


def test_what_pip_alone_does_not_install_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner.envs, "missing", lambda suite: True)
    assert runner.unavailable("isaaclab:Task") == "isaaclab:Task needs isaaclab: see docs/environments.md"
    assert runner.unavailable("brax:ant") == "brax:ant needs brax: pip install 'reppo[brax]'"


def test_a_dry_run_shows_the_commands_and_runs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "smoke", "--tasks", "TargetReach", "--results", str(tmp_path), "--work", str(tmp_path / "work")]
    assert cli.main([*words, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "smoke: 0 runs are done, 6 to run, in 2 processes" in out
    assert "  reppo train probe:TargetReach --preset cpu --seed 0 --seeds 3 --total-steps 20480" in out
    assert not list(tmp_path.iterdir())


def test_where_nothing_is_to_run_no_engine_is_started(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mujoco_playground", reason="Brax's published settings are in it")

    def unexpected(*_: object) -> launchers.Launcher:
        raise AssertionError

    monkeypatch.setitem(launchers.LAUNCHERS, "ray", unexpected)
    assert cli.main(["bench", "laptop", "--launcher", "ray", "--results", str(root / "results")]) == 0


def test_a_suite_can_set_single_values_of_a_baseline(tmp_path: Path) -> None:
    suite = dataclasses.replace(
        SMALL, algorithms=("fasttd3", "reppo"), settings={"fasttd3": ("learning_starts=1", "gamma=0.9")}
    )
    commands = {job.algorithm: job.command for job in make_plan("small", suite, tmp_path).jobs}
    assert commands["fasttd3"][-3:] == ["--set", "learning_starts=1", "gamma=0.9"]
    assert cli.arguments("baseline", commands["fasttd3"][1:]).set == ("learning_starts=1", "gamma=0.9")
    assert "--set" not in commands["reppo"]


@pytest.mark.parametrize("name", sorted({path.name for path in (Path(__file__).parent.parent / "results/bench").iterdir()}))
def test_the_committed_results_are_of_what_their_suites_ask_for(name: str, root: Path) -> None:
    pytest.importorskip("mujoco_playground", reason="Brax's published settings are in it")
    suite = SUITES[name]
    there = [record for record in records.read_all(root / "results").records if record.key.suite == name]
    asked = {key: runner.asked_for(suite, *key) for key in {record.key[1:3] for record in there}}
    assert there
    for record in there:
        assert runner.other_options(record.key.algorithm, record.config, asked[record.key[1:3]]) == []


def test_a_baseline_is_one_more_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = suites.Variant("another", baseline="fasttd3", presets={"cpu": "published"}, several_seeds=False)
    monkeypatch.setitem(ALGORITHMS, "other", other)
    suite = dataclasses.replace(SMALL, algorithms=("other",), options={**CHANGES, "total_steps": 20_480})
    jobs = make_plan("small", suite, tmp_path).jobs
    assert [job.seeds for job in jobs] == [(0,), (1,)]
    words = "reppo baseline fasttd3 probe:TargetReach --preset published --seed 1 --total-steps 20480 --num-evals 1"
    assert runner.shown_command(jobs[1]) == f"{words} --eval-episodes 8"
    with pytest.raises(ConfigError, match="other has nothing beside the preset paper-large; it has cpu"):
        make_plan("small", dataclasses.replace(suite, preset="paper-large"), tmp_path)


# ------------------------------------------------------------------------------------------- running

Process = Callable[[Sequence[str], Path], int]


def in_order(jobs: Sequence[Job], work: runner.Work, stop: Callable[[], None], at_once: int) -> None:
    """Without threads: a run that is trained here sets signal handlers, which only the main thread may."""
    del stop, at_once
    waiting = list(jobs)
    while waiting:
        waiting += work(waiting.pop(0))


@dataclasses.dataclass
class Here:
    """A launcher whose processes are calls of a function."""

    process: Process
    at_once: int | None = 1

    def start(self, words: Sequence[str], again: Sequence[str], log: Path) -> launchers.Process:
        del again
        return Called(lambda: self.process(words, log))


@dataclasses.dataclass(eq=False)
class Called:
    wait: Callable[[], int]

    def stop(self) -> None:
        raise AssertionError


def in_this_process(words: Sequence[str], log: Path) -> int:
    """What a job's process does, without another start of Python."""
    del log
    assert list(words[1:3]) == ["-m", "reppo"]
    return cli.main(words[3:])


def benching(tmp_path: Path, process: Process, monkeypatch: pytest.MonkeyPatch) -> tuple[Bench, list[str]]:
    said: list[str] = []
    bench = Bench(tmp_path / "results", tmp_path / "work", said.append, Here(process))
    monkeypatch.setattr(runner, "in_threads", in_order)
    return bench, said


def test_a_suite_is_run_recorded_and_then_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench, said = benching(tmp_path, in_this_process, monkeypatch)
    bench.run(make_plan("small", SMALL, bench.results).jobs)
    assert not bench.failed
    assert len(said) == 1
    assert said[0].startswith("reppo on probe:TargetReach, seeds 0 to 1: ")
    found = records.read_all(bench.results)
    assert not found.problems
    assert [record.key.seed for record in found.records] == [0, 1]
    with (tmp_path / "work" / "small/reppo/probe-TargetReach-seeds0-1" / "evaluations.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["seed"] == "1"]
    record = found.records[1]
    np.testing.assert_allclose(record.returns, [float(row["eval/return"]) for row in rows])
    assert record.steps.tolist() == [0, 192]
    assert (record.status, record.seeds_together) == ("complete", 2)
    assert record.config["total_steps"] == 192
    assert record.command.startswith("reppo train probe:TargetReach --preset cpu --seed 0 --seeds 2 ")

    again = make_plan("small", SMALL, bench.results)
    assert not again.jobs
    assert again.done == [Key("small", "reppo", "probe:TargetReach", seed) for seed in (0, 1)]
    more = make_plan("small", dataclasses.replace(SMALL, num_seeds=4), bench.results)
    assert [job.seeds for job in more.jobs] == [(2, 3)]
    # With other options it would be another run, and skipping it a lie.
    other = dataclasses.replace(SMALL, options={**CHANGES, "gamma": 0.9})
    with pytest.raises(ConfigError, match=r"TargetReach-seed0.json was made with other options .*gamma 0.99 -> 0.9"):
        make_plan("small", other, bench.results)


def test_processes_run_side_by_side_and_a_stop_reaches_all(tmp_path: Path) -> None:
    """With real threads: three processes wait for each other, one stops, and the other two are asked to, once each."""
    together, begun = threading.Barrier(3), []

    class Waiting:
        def __init__(self, words: Sequence[str]):
            self.seed, self.asked, self.stops = words[words.index("--seed") + 1], threading.Event(), 0
            begun.append(self)

        def wait(self) -> int:
            together.wait(timeout=60)  # broken where fewer run at once
            if self.seed != "0":
                assert self.asked.wait(timeout=60)
                time.sleep(0.2 * int(self.seed))  # one after the other: the first has ended when the second still saves
            return runner.STOPPED

        def stop(self) -> None:
            self.stops += 1
            self.asked.set()

    class Threads:
        at_once: int | None = None

        def start(self, words: Sequence[str], again: Sequence[str], log: Path) -> launchers.Process:
            del again, log
            return Waiting(words)

    said: list[str] = []
    bench = Bench(tmp_path / "results", tmp_path / "work", said.append, Threads())
    jobs = make_plan("small", dataclasses.replace(SMALL, num_seeds=4, together=1), bench.results).jobs
    with pytest.raises(runner.Interrupted, match="the same command goes on"):
        bench.run(jobs, at_once=3)
    # The fourth was never begun, and what was stopped is neither a result nor a failure.
    assert not together.broken
    assert {process.seed for process in begun} == {"0", "1", "2"}
    assert all(process.stops == 1 for process in begun if process.seed != "0"), "a second signal ends it before it has saved"
    assert (said, bench.failed, bench.left) == ([], [], [])
    assert not list(bench.results.rglob("*"))


def test_a_run_that_was_stopped_is_resumed_and_does_not_count_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[list[str]] = []

    def stopped(words: Sequence[str], log: Path) -> int:
        ran.append(list(words))
        assert in_this_process(words, log) == 0
        (Path(words[-1]) / "summary.json").unlink(missing_ok=True)  # what it would have written last
        return runner.STOPPED

    bench, _ = benching(tmp_path, stopped, monkeypatch)
    jobs = make_plan("small", SMALL, bench.results).jobs
    with pytest.raises(runner.Interrupted, match="was stopped; the same command goes on"):
        bench.run(jobs)
    assert records.read_all(bench.results).records == []

    bench, _ = benching(tmp_path, lambda words, log: ran.append(list(words)) or in_this_process(words, log), monkeypatch)
    bench.run(make_plan("small", SMALL, bench.results).jobs)
    assert ran[0][3] == "train"
    assert ran[1][3:] == ["resume", ran[0][-1]]
    assert len(records.read_all(bench.results).records) == 2


def test_a_run_that_cannot_be_resumed_is_begun_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ALGORITHMS, "other", OTHER)
    bench, _ = benching(tmp_path, in_this_process, monkeypatch)
    (job,) = make_plan("small", OF_BASELINE, bench.results).jobs
    directory = bench.work / job.name
    directory.mkdir(parents=True)
    description = {"env": job.env, "seeds": [0, 1], "config": dataclasses.asdict(job.config), "algorithm": "fasttd3"}
    (directory / "config.json").write_text(json.dumps(description))
    assert runner.is_of(job, directory)
    assert bench.free_directory(job) == directory.with_name(directory.name + "-2")


def baseline(monkeypatch: pytest.MonkeyPatch, bench: Bench) -> tuple[Job, Path]:
    """A job of a baseline that cannot be resumed, and a finished run of it that nobody has recorded."""
    monkeypatch.setitem(ALGORITHMS, "other", OTHER)
    (job,) = make_plan("small", OF_BASELINE, bench.results).jobs
    directory = bench.work / job.name
    directory.parent.mkdir(parents=True)
    assert cli.main([*job.command, "--out", str(directory)]) == 0
    return job, directory


def test_a_run_that_ended_when_nobody_recorded_it_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unexpected(words: Sequence[str], log: Path) -> int:
        raise AssertionError

    bench, said = benching(tmp_path, unexpected, monkeypatch)
    job, directory = baseline(monkeypatch, bench)
    bench.run([job])
    assert not bench.failed
    seconds = json.loads((directory / "summary.json").read_text())["seconds"]
    assert f"not run again, it had ended in {directory} (revision " in said[0]
    assert said[1].endswith(f"({seconds:.0f} s)")
    assert [record.status for record in records.read_all(bench.results).records] == 2 * ["complete"]
    # One that has not ended is no result: it would be run again, in a directory of its own.
    (directory / "summary.json").unlink()
    assert bench.left_behind(job) is None


def in_use(bench: Bench, job: Job, seeds: Sequence[int], stack: contextlib.ExitStack) -> Path:
    """The directory of a run with a job's options that is locked, as by a process whose bench was killed."""
    directory = bench.work / dataclasses.replace(job, seeds=seeds).name
    directory.mkdir(parents=True)
    description = {"env": job.env, "seeds": list(seeds), "config": dataclasses.asdict(job.config)}
    (directory / "config.json").write_text(
        json.dumps({**description, "algorithm": ALGORITHMS[job.algorithm].baseline or "reppo"})
    )
    stack.enter_context(run_directory.locked(directory))
    return directory


@pytest.mark.parametrize("resumes", [True, False])
@pytest.mark.parametrize("seeds", [(0, 1), (1,)])
def test_a_run_that_a_process_has_already_is_left_to_it(
    resumes: bool, seeds: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unexpected(words: Sequence[str], log: Path) -> int:
        raise AssertionError

    monkeypatch.setitem(ALGORITHMS, "other", dataclasses.replace(OTHER, resumes=resumes))
    bench, said = benching(tmp_path, unexpected, monkeypatch)
    (job,) = make_plan("small", OF_BASELINE, bench.results).jobs
    with contextlib.ExitStack() as stack:
        directory = in_use(bench, job, seeds, stack)
        bench.run([job])
        assert (bench.left, bench.failed) == ([job], [])
        assert said == [
            f"other on probe:TargetReach, seeds 0 to 1: left to process {os.getpid()}, which runs it in {directory}"
        ]
    assert not records.read_all(bench.results).records
    # Once that process has ended it is run, and so is what has other seeds or options than what is in use.
    assert not bench.is_left(job)
    with contextlib.ExitStack() as stack:
        in_use(bench, job, (2,), stack)
        assert not bench.is_left(job)
        changed = dataclasses.replace(job, config=dataclasses.replace(job.config, num_evals=7))
        directory = in_use(bench, changed, (0,), stack)
        assert run_directory.holder(directory) == str(os.getpid())
        assert not bench.is_left(job)


def test_a_run_that_another_process_has_begun_meanwhile_has_not_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with contextlib.ExitStack() as stack:

        def too_late(words: Sequence[str], log: Path) -> int:
            del words
            in_use(bench, job, job.seeds, stack)
            log.write_text("reppo: it exists already\n")
            return 2

        bench, said = benching(tmp_path, too_late, monkeypatch)
        (job,) = make_plan("small", SMALL, bench.results).jobs
        bench.run([job])
    assert (bench.left, bench.failed) == ([job], [])
    assert "left to process" in said[0]
    assert not (bench.results / "bench").exists()


def test_a_bench_that_left_runs_to_others_is_not_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bench, _ = benching(tmp_path, in_this_process, monkeypatch)
    jobs = make_plan("smoke", SUITES["smoke"], bench.results, tasks=["TargetReach"]).jobs
    with contextlib.ExitStack() as stack:
        for job in jobs:
            in_use(bench, job, job.seeds, stack)
        words = ["bench", "smoke", "--tasks", "TargetReach", "--results", str(bench.results), "--work", str(bench.work)]
        assert cli.main(words) == runner.STOPPED
    said = capsys.readouterr()
    assert said.out.count("left to process") == 2
    assert said.err.startswith("reppo: 6 runs were left to the processes that have them; the same command goes on")


@pytest.mark.parametrize(
    ("changes", "changed"),
    [
        ({"options": {**CHANGES, "total_steps": 384}}, "total_steps 192 -> 384"),
        ({"settings": {"other": (*OF_BASELINE.settings["other"], "gamma=0.9")}}, "gamma 0.97 -> 0.9"),
    ],
)
def test_a_baseline_of_other_options_is_neither_taken_nor_resumed(
    changes: dict[str, Any], changed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, _ = benching(tmp_path, in_this_process, monkeypatch)
    job, directory = baseline(monkeypatch, bench)
    (other,) = make_plan("small", dataclasses.replace(OF_BASELINE, **changes), bench.results).jobs
    assert runner.is_of(job, directory)
    assert not runner.is_of(other, directory)
    assert bench.left_behind(other) is None
    bench.run([job])
    with pytest.raises(ConfigError, match=f"was made with other options .*{changed}"):
        make_plan("small", dataclasses.replace(OF_BASELINE, **changes), bench.results)


def test_a_run_that_ends_while_the_bench_is_stopped_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ends(words: Sequence[str], log: Path) -> int:
        code = in_this_process(words, log)
        bench._stopping.set()
        return code

    bench, _ = benching(tmp_path, ends, monkeypatch)
    bench.run(make_plan("small", SMALL, bench.results).jobs)
    assert len(records.read_all(bench.results).records) == 2


def test_a_failure_does_not_replace_what_another_bench_has_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = benching(tmp_path, in_this_process, monkeypatch)
    jobs = make_plan("small", SMALL, first.results).jobs

    def late(words: Sequence[str], log: Path) -> int:
        del words, log
        dataclasses.replace(first, work=tmp_path / "elsewhere").run(jobs)
        return 2

    second, said = benching(tmp_path, late, monkeypatch)
    second.run(jobs)
    assert "failed" in said[0]
    assert [record.status for record in records.read_all(first.results).records] == 2 * ["complete"]
    # And a plan that is older than a result is not carried out.
    second.run(jobs)
    assert len(said) == 1


def test_a_directory_of_another_run_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench, _ = benching(tmp_path, in_this_process, monkeypatch)
    (job,) = make_plan("small", SMALL, bench.results).jobs
    directory = bench.work / job.name
    directory.mkdir(parents=True)
    (directory / "precious").touch()
    assert bench.free_directory(job) == directory.with_name(directory.name + "-2")


def test_a_process_that_failed_is_recorded_and_launched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(words: Sequence[str], log: Path) -> int:
        del words
        log.write_text("something\nreppo: out of memory\n")
        return 2

    bench, said = benching(tmp_path, failing, monkeypatch)
    jobs = make_plan("small", SMALL, bench.results).jobs
    bench.run(jobs)
    assert bench.failed == jobs
    assert said == ["reppo on probe:TargetReach, seeds 0 to 1: failed: exit code 2: out of memory"]
    found = records.read_all(bench.results).records
    assert [(record.status, record.problem) for record in found] == 2 * [("failed", "exit code 2: out of memory")]
    assert make_plan("small", SMALL, bench.results).jobs == jobs


def test_a_process_that_failed_counts_with_the_returns_that_it_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crashing(words: Sequence[str], log: Path) -> int:
        assert in_this_process(words, log) == 0
        directory = Path(words[-1])
        (directory / "summary.json").unlink()
        table = directory / "evaluations.csv"
        table.write_bytes(table.read_bytes()[:-9])  # while it wrote the last row, of seed 1
        log.write_text("killed\n")
        return 1

    bench, said = benching(tmp_path, crashing, monkeypatch)
    jobs = make_plan("small", SMALL, bench.results).jobs
    bench.run(jobs)
    assert said == ["reppo on probe:TargetReach, seeds 0 to 1: failed: exit code 1: killed"]
    found = records.read_all(bench.results)
    assert not found.problems
    assert [(record.status, record.steps.tolist()) for record in found.records] == [("failed", [0, 192]), ("failed", [0])]
    with (bench.work / jobs[0].name / "evaluations.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["seed"] == "0"]
    np.testing.assert_allclose(found.records[0].returns, [float(row["eval/return"]) for row in rows])
    assert found.records[0].config["total_steps"] == 192
    assert make_plan("small", SMALL, bench.results).jobs == jobs


def test_a_process_that_left_nothing_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench, said = benching(tmp_path, lambda words, log: 0, monkeypatch)
    bench.run(make_plan("small", SMALL, bench.results).jobs)
    assert "does not hold a finished run" in said[0]
    assert len(bench.failed) == 1


def test_seeds_that_one_of_them_has_ended_run_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def diverging(words: Sequence[str], log: Path) -> int:
        code = in_this_process(words, log)
        log.write_text("reppo: seed 1 stopped at 192 steps\n")
        alone = "--seeds" not in words
        return runner.DIVERGED if not alone or words[words.index("--seed") + 1] == "1" else code

    bench, said = benching(tmp_path, diverging, monkeypatch)
    bench.run(make_plan("small", SMALL, bench.results).jobs)
    assert "each seed is run again by itself" in said[0]
    (aside,) = bench.work.glob("**/*.diverged")
    assert aside.is_dir(), "nothing may go on from where a seed has ended the others"
    found = records.read_all(bench.results).records
    assert [(r.status, r.problem) for r in found] == [("complete", ""), ("diverged", "seed 1 stopped at 192 steps")]
    # A run that failed is a run with the return it had: it is not launched again.
    assert not make_plan("small", SMALL, bench.results).jobs


def test_what_a_job_asks_for_is_done_and_an_error_stops_the_rest() -> None:
    def job(*seeds: int) -> Job:
        return Job("s", "reppo", "probe:TargetReach", seeds, None, "cpu")

    done: list[tuple[int, ...]] = []

    def work(job: Job) -> list[Job]:
        done.append(tuple(job.seeds))
        return [dataclasses.replace(job, seeds=(seed,)) for seed in job.seeds] if len(job.seeds) > 1 else []

    in_threads([job(0, 1), job(2)], work, pytest.fail, 2)
    assert sorted(done) == [(0,), (0, 1), (1,), (2,)]

    def broken(job: Job) -> list[Job]:
        raise runner.Interrupted(str(job))

    stopped: list[bool] = []
    with pytest.raises(runner.Interrupted):
        in_threads([job(0)], broken, lambda: stopped.append(True), 1)
    assert stopped == [True]


def test_a_real_process_and_its_log(tmp_path: Path) -> None:
    log, launcher = tmp_path / "log", launchers.Local(tmp_path, {})
    python = runner.sys.executable
    said = "print('one'); print('reppo: two'); raise SystemExit(3)"
    assert launcher.start([python, "-c", said], [], log).wait() == 3
    assert runner.last_words(log) == "two"
    process = launcher.start([python, "-c", "import time; time.sleep(60)"], [], log)
    process.stop()
    assert process.wait() == -15


# ------------------------------------------------------------------------------------------- files


def record(seed: int = 0, **changes: object) -> Record:
    config = {**dataclasses.asdict(TINY)}
    curve = np.array([[0, 1.5, 2.0, 0.1, 8], [192, 2.5, 4.0, 0.2, 8]])
    key = Key("small", "reppo", "probe:TargetReach", seed)
    return dataclasses.replace(Record(key, "complete", "reppo train", {"config": config}, 3.0, 1, 1000, curve), **changes)  # pyright: ignore[reportArgumentType]


def other_record(seed: int) -> Record:
    """With other seconds, as another process has."""
    return record(seed, curve=np.add(record().curve, [0, 1, 0, 0, 0]))


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    path = records.write(record(), tmp_path)
    back = records.read(path)
    np.testing.assert_array_equal(back.curve, record().curve)
    for field in dataclasses.fields(Record):
        if field.name != "curve":
            written = json.loads(json.dumps(getattr(record(), field.name)))
            assert json.loads(json.dumps(getattr(back, field.name))) == written, field.name


def test_success_is_recorded_where_the_environment_says_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def solving(words: Sequence[str], log: Path) -> int:
        code = in_this_process(words, log)
        path = Path(words[-1]) / "evaluations.csv"
        header, *rows = path.read_text().splitlines()
        more = [",eval/success_once,eval/success_at_end", *(f",{0.25 * i},{0.125 * i}" for i in range(len(rows)))]
        path.write_text("".join(f"{line}{end}\n" for line, end in zip([header, *rows], more, strict=True)))
        return code

    bench, _ = benching(tmp_path, solving, monkeypatch)
    bench.run(make_plan("small", SMALL, bench.results).jobs)
    found = records.read_all(bench.results)
    assert not found.problems
    # Rows are of seeds 0 and 1, and again.
    assert [record.measured("success_once").tolist() for record in found.records] == [[0, 0.5], [0.25, 0.75]]
    assert [record.measured("success_at_end").tolist() for record in found.records] == [[0, 0.25], [0.125, 0.375]]
    path = found.records[0].key.path(bench.results).with_suffix(".csv")
    assert path.read_text().splitlines()[0] == "env_steps,seconds,return,return_std,episodes,success_once,success_at_end"


def test_a_table_without_success_has_the_bytes_that_it_always_had(tmp_path: Path) -> None:
    path = records.write(record(), tmp_path).with_suffix(".csv")
    assert path.read_bytes() == b"env_steps,seconds,return,return_std,episodes\n0,1.5,2,0.1,8\n192,2.5,4,0.2,8\n"
    assert not records.read(path.with_suffix(".json")).has_success


@pytest.mark.parametrize("success", [1.5, -0.1, np.nan])
def test_success_is_a_share(success: float, tmp_path: Path) -> None:
    curve = np.hstack([record().curve, [[0, 0], [success, 0.5]]])
    with pytest.raises(ConfigError, match="is no learning curve"):
        records.read(records.write(record(curve=curve), tmp_path))


def test_a_damaged_result_is_set_aside_before_its_place_is_taken(tmp_path: Path) -> None:
    path = records.write(record(), tmp_path)
    path.with_suffix(".csv").write_bytes(b"not the table")
    assert records.write(record(), tmp_path) == path
    assert records.read(path).returns.tolist() == record().returns.tolist()
    assert path.with_name(path.stem + ".csv.damaged").read_bytes() == b"not the table"
    assert path.with_name(path.name + ".damaged").exists()


def test_a_return_that_is_not_finite_counts_as_the_one_before() -> None:
    curve = record().curve.copy()
    curve[1, 2] = np.nan
    assert record(curve=curve).returns.tolist() == [2.0, 2.0]


def test_a_failed_runs_table_is_checked(tmp_path: Path) -> None:
    empty = record().curve[:0]
    assert len(records.read(records.write(record(status="failed", curve=empty), tmp_path)).curve) == 0
    earlier = record().curve.copy()
    earlier[-1, 1] = earlier[0, 1] - 1.0  # seconds
    for spoilt in (record().curve[::-1], np.where(record().curve == 192, np.nan, record().curve), earlier):
        path = records.write(record(status="failed", curve=spoilt), tmp_path)
        with pytest.raises(ConfigError, match="is no learning curve"):
            records.read(path)


def spoil_table(path: Path) -> None:
    table = path.with_suffix(".csv")
    table.write_text(table.read_text().replace("4", "9"))


def cut_table(path: Path) -> None:
    table = path.with_suffix(".csv")
    table.write_bytes(table.read_bytes()[:-5])


def change(**values: object) -> Callable[[Path], None]:
    return lambda path: path.write_text(json.dumps({**json.loads(path.read_text()), **values}))  # pyright: ignore


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (spoil_table, "seed0.csv is damaged: it is not the table that probe-TargetReach-seed0.json was written with"),
        (cut_table, "seed0.csv is damaged"),
        (lambda path: path.with_suffix(".csv").unlink(), "there is no probe-TargetReach-seed0.csv"),
        (lambda path: path.write_text("{"), "seed0.json is damaged (JSONDecodeError"),
        (lambda path: path.write_text("[1]"), "is not a result of `reppo bench`"),
        (change(format="other"), "is not a result of `reppo bench`"),
        (change(status="fine"), "it does not say which run it is"),
        (change(seed="0"), "it does not say which run it is"),
        (change(seconds=float("nan")), "seconds and bytes must be finite and not negative"),
        (change(seconds=-1.0), "seconds and bytes must be finite and not negative"),
        (change(peak_memory_bytes=-1), "seconds and bytes must be finite and not negative"),
        (change(description=7), "is damaged (TypeError"),
        (change(description={"config": {"total_steps": 1000}}), "has not ended: 192 of 1,000 steps"),
        (change(description={"config": "x"}), "it does not describe a run"),
        (change(description={"hardware": "x"}), "it does not describe a run"),
        (change(description={"hardware": {"devices": [1]}}), "it does not describe a run"),
        (change(description={"hardware": {"devices": "gpu"}}), "it does not describe a run"),
        (change(description={"git": 7}), "it does not describe a run"),
        (change(description={"seeds": 0}), "it does not describe a run"),
        (change(description={"seeds": [1, 2]}), "it describes another run than it is of"),
        (change(description={"env": "probe:OneStep"}), "it describes another run than it is of"),
        (lambda path: path.unlink(), "or its run has not ended"),
    ],
)
def test_a_damaged_or_foreign_file_is_named_and_left_out(
    damage: Callable[[Path], None], complaint: str, tmp_path: Path
) -> None:
    damage(records.write(record(0), tmp_path))
    records.write(other_record(1), tmp_path)
    found = records.read_all(tmp_path)
    assert [r.key.seed for r in found.records] == [1]
    assert len(found.problems) == 1
    assert complaint in found.problems[0]


def test_two_versions_of_one_run_are_refused(tmp_path: Path) -> None:
    path = records.write(record(0), tmp_path)
    for suffix in (".json", ".csv"):
        shutil.copy(path.with_suffix(suffix), path.with_name("copy" + suffix))
    with pytest.raises(ConfigError, match=r"two versions of one run, reppo on probe:TargetReach, seed 0: .*copy.json and"):
        records.read_all(tmp_path)


def test_two_runs_with_one_table_are_left_out(tmp_path: Path) -> None:
    both = {**record().description, "seeds": [0, 1, 2]}
    paths = [records.write(record(seed, description=both), tmp_path) for seed in (0, 1)]
    records.write(dataclasses.replace(other_record(2), description=both), tmp_path)
    found = records.read_all(tmp_path)
    assert [r.key.seed for r in found.records] == [2]
    line = f"{paths[0]} and {paths[1]} have one table: one of them is a copy; remove it"
    assert found.problems == [line]
    # They are not run again over each other, either: the user has to say which one is sound.
    with pytest.raises(ConfigError, match=r"have one table"):
        make_plan("small", SMALL, tmp_path)
    for suffix in (".json", ".csv"):
        paths[1].with_suffix(suffix).unlink()
    assert [r.key.seed for r in records.read_all(tmp_path).records] == [0, 2]


def test_seeds_that_got_nothing_may_have_one_table(tmp_path: Path) -> None:
    nothing = record().curve * [1, 1, 0, 0, 1]
    for seed in (0, 1):
        records.write(record(seed, curve=nothing, seeds_together=2), tmp_path)
    assert [r.key.seed for r in records.read_all(tmp_path).records] == [0, 1]


def test_seeds_of_other_options_are_refused(tmp_path: Path) -> None:
    records.write(other_record(0), tmp_path)
    other = {"config": {**dataclasses.asdict(TINY), "gamma": 0.5, "keep_best": False}}
    records.write(record(1, description=other), tmp_path)
    with pytest.raises(ConfigError, match=r"seed 1 differs from seed 0 in gamma 0.99 -> 0.5; keep one"):
        records.read_all(tmp_path)


def test_a_file_that_is_elsewhere_is_named(tmp_path: Path) -> None:
    path = records.write(record(0), tmp_path)
    for suffix in (".json", ".csv"):
        path.with_suffix(suffix).rename(path.with_name("moved" + suffix))
    found = records.read_all(tmp_path)
    assert not found.records
    assert "moved.json is not where reppo on probe:TargetReach, seed 0 of small belongs" in found.problems[0]


def test_every_suite_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(suites.SUITES)
