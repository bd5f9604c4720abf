"""The command line, by calling `cli.main` in this process; a few times, where signals matter, in a process of its own."""

from __future__ import annotations

import dataclasses
import errno
import importlib.util
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import helpers
import numpy as np
import pytest
from onnx.reference import ReferenceEvaluator

import reppo as package
from reppo import cli, envs, health, load_policy, loop, options, outcome, same_run
from reppo.cli import environments, startup, training
from reppo.config import PRESETS
from reppo.display import number
from reppo.errors import ConfigError
from reppo.plot import read_rows
from reppo.run import Run

TINY = [
    word
    for field in dataclasses.fields(helpers.TINY)
    if (value := getattr(helpers.TINY, field.name)) != field.default
    for word in (f"--{field.name.replace('_', '-')}", str(value))
]


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


class Reppo:
    """Calls the command line; remembers nothing."""

    def __init__(self, capsys: pytest.CaptureFixture[str]):
        self._capsys = capsys

    def __call__(self, *words: object) -> Outcome:
        self._capsys.readouterr()
        code = cli.main([str(word) for word in words])
        captured = self._capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    def refuses(self, *words: object, begun: bool = False) -> str:
        """The one line with which a command is refused; fails if it is not refused or says more. Where the run has
        ``begun``, its header has been printed by then."""
        code, out, err = self(*words)
        assert (code, bool(out)) == (cli.USER_ERROR, begun), (code, out, err)
        assert err.startswith("reppo: ")
        assert err.count("\n") == 1, err
        return err.removeprefix("reppo: ").strip()


@pytest.fixture
def reppo(capsys: pytest.CaptureFixture[str]) -> Reppo:
    return Reppo(capsys)


@pytest.fixture
def finished(trained: Run, tmp_path: Path) -> Path:
    """A copy of a finished run, to be changed."""
    assert trained.directory is not None
    return shutil.copytree(trained.directory, tmp_path / "run")


def contents(directory: Path) -> dict[str, bytes]:
    """Every file below a directory."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def user_env(directory: Path, *changes: tuple[str, str]) -> str:
    """A file with an environment in it, ``changes`` made to its source; returns its name for the command line."""
    source = ENV
    for old, new in changes:
        assert old in source
        source = source.replace(old, new)
    (directory / "mine.py").write_text(source)
    return f"{directory / 'mine.py'}:Mine"


ENV = """\
import jax, jax.numpy as jnp
import reppo

class Mine(reppo.Env):
    action_size, value_range = 1, (0.0, 1.0)

    def reset(self, key):
        return jnp.zeros(2), self.observe()

    def step(self, state, action, key):
        return state, reppo.Transition(self.observe(), jnp.float32(0.0), jnp.array(False))

    def observe(self):
        return jnp.zeros(2)
"""


def iterations(directory: Path) -> list[float]:
    return [row["iteration"] for row in read_rows(directory / "metrics.csv")]


# ------------------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--total-steps", "2e6"], {"total_steps": 2_000_000}),
        (["--total-steps", "400_000"], {"total_steps": 400_000}),
        (["--total-steps=400,000"], {"total_steps": 400_000}),
        (["--total-steps=2,400,000", "--v-min", "-1,000.5"], {"total_steps": 2_400_000, "v_min": -1000.5}),
        (["--num_envs", "64"], {"num_envs": 64}),
        (["--v-min", "-4", "--v-max", "-.5"], {"v_min": -4.0, "v_max": -0.5}),
        (["--v-max", "-1e3", "--v-min=-2e3"], {"v_max": -1000.0, "v_min": -2000.0}),
        (["--v-max", "None", "--episode-length", "1e3"], {"v_max": None, "episode_length": 1000}),
        (["--lambda", "0.9"], {"lambda_": 0.9}),
        (["--no-keep-best", "--anneal-learning-rate"], {"keep_best": False, "anneal_learning_rate": True}),
        (["--actor-obs", "position", "velocity"], {"actor_obs": ("position", "velocity")}),
        (["--norm", "layer"], {"norm": "layer"}),
        (["--preset", "paper-small"], dataclasses.asdict(PRESETS["paper-small"])),
        (["--gamma", "0.9", "--preset", "paper-small"], dataclasses.asdict(PRESETS["paper-small"]) | {"gamma": 0.9}),
        ([], dataclasses.asdict(PRESETS["cpu"])),
    ],
)
def test_options_become_the_configuration(words: list[str], expected: dict[str, object]) -> None:
    config = dataclasses.asdict(cli.arguments("train", words).config)
    assert {name: config[name] for name in expected} == expected
    untouched = dataclasses.asdict(PRESETS["cpu"])
    assert config == untouched | expected


@pytest.mark.parametrize(
    ("word", "hint", "value"),
    [
        ("1,000", int, 1000),
        ("4e5", int | None, 400_000),
        ("NONE", float | None, None),
        ("1,000,000.5", float, 1_000_000.5),
        ("True", bool, True),
        ("16,32", tuple[int, ...], (16, 32)),
        ("state,command", tuple[str, ...], ("state", "command")),
        ("1,2", str, "1,2"),
    ],
)
def test_values_are_read_by_their_type(word: str, hint: Any, value: Any) -> None:
    assert options.read_value(word, hint) == value
    assert type(options.read_value(word, hint)) is type(value)


def test_what_is_not_an_option_of_the_configuration() -> None:
    args = cli.arguments("train", ["brax:ant", "--seeds", "3", "--seed", "7", "--out", "here", "--wandb", "mine"])
    assert (args.env, args.seeds, args.seed, args.out, args.wandb) == ("brax:ant", 3, 7, Path("here"), "mine")
    assert cli.arguments("train", []).env == training.DEFAULT_ENV


def test_the_help_shows_the_defaults_of_the_chosen_preset_by_section(reppo: Reppo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    code, out, err = reppo("train", "--help", "--preset", "paper-large")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert out.index("budget and data options") < out.index("--total-steps N") < out.index("returns options")
    assert "(default: 50_000_000)" in out
    assert f"(default: {PRESETS['cpu'].total_steps:_})" in reppo("train", "-h").out
    for field in dataclasses.fields(PRESETS["cpu"]):
        assert options.flag(field.name) in out, field.name
    assert "  reppo train playground:CheetahRun --seeds 5 --total-steps 2e6" in lines  # examples keep their lines


def test_the_help_of_resume_shows_what_may_change(reppo: Reppo) -> None:
    out = reppo("resume", "--help").out
    for field in dataclasses.fields(PRESETS["cpu"]):
        assert (f"{options.flag(field.name)}" in out) == (field.name in same_run.RESUMABLE), field.name
    assert "(default:" not in out


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_the_overview_lists_commands_and_exit_codes(reppo: Reppo, words: list[str]) -> None:
    code, out, _ = reppo(*words)
    assert code == 0
    assert all(f"reppo {command}" in out for command in cli.COMMANDS)
    assert all(f" {code} " in out for code in cli.EXIT_CODES)


def test_version(reppo: Reppo) -> None:
    assert reppo("--version") == (0, f"reppo {package.__version__}\n", "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "trian",
            "no command 'trian'; did you mean train?; there are train, resume, eval, video, export, envs, check-env",
        ),
        ("train --num-env 3", "unknown option --num-env; did you mean --num-envs or --num-evals?; `reppo train --help`"),
        ("train --num_env=3", "unknown option --num_env=3; did you mean --num-envs"),
        ("train --no-keep-bst", "unknown option --no-keep-bst; did you mean --no-keep-best"),
        ("train --frobnicate", "unknown option --frobnicate; `reppo train --help` lists them"),
        ("train probe:TargetReach 7", "unexpected argument '7'; see `reppo train --help`"),
        ("train --num-envs many", "--num-envs must be a whole number, got 'many'"),
        ("train --num-envs 1.5", "--num-envs must be a whole number, got '1.5'"),
        ("train --num-envs 1e400", "--num-envs must be a whole number, got '1e400'"),
        ("train --seeds 1,2,3", "--seeds must be a whole number, got '1,2,3': how many; --seed is the first"),
        ("train --seeds 1,2", "--seeds must be a whole number, got '1,2': how many; --seed is the first"),
        ("train --total-steps 1,5e3", "--total-steps must be a whole number, got '1,5e3'"),
        ("train --total-steps 4,000,00", "--total-steps must be a whole number, got '4,000,00'"),
        ("train --v-min 1,5", "--v-min must be a finite number or None, got '1,5'"),
        ("bench --seeds 1,2", "--seeds must be a whole number or None, got '1,2'"),
        ("train --gamma nan", "--gamma must be a finite number, got 'nan'"),
        ("train --v-min low", "--v-min must be a finite number or None, got 'low'"),
        ("train --norm batch", "invalid choice 'batch' for argument '--norm'. Expected one of ('rms', 'layer', 'none')."),
        ("train --num-envs", "missing value for argument '--num-envs'"),
        ("train --keep-best false", "--keep-best takes no value, got 'false'; write --keep-best or --no-keep-best"),
        ("train --keep-best=0", "--keep-best takes no value, got '0'; write --keep-best or --no-keep-best"),
        ("train --preset paper-larg", "no preset 'paper-larg'; did you mean paper-large"),
        ("train --seeds 0", "--seeds must be at least 1, got 0"),
        ("train --seeds 20000", "--seeds must be at most 10,000, got 20,000"),
        ("baseline fasttd3 probe:TargetReach --preset cpu --seeds 20000", "--seeds must be at most 10,000, got 20,000"),
        ("train probe:TargetReach --seed -1", "seeds must be between 0 and 2**32 - 1, got -1"),
        ("train probe:TargetReach --num-envs 0", "num_envs must be positive, got 0"),
        (
            "train probe:TargetReach --num-minibatches 7 --num-envs 8 --num-steps 4",
            "num_minibatches (7) must divide num_envs * num_steps (8 * 4 = 32)",
        ),
        ("train probe:TargetReach --v-min 5 --v-max 5", "v_min must be below v_max, got [5.0, 5.0]"),
        ("train probe:TargetReach --actor-obs eyes", "this one is an array"),
        (
            "train --env probe:TargetReach",
            "unknown option --env: it is an argument without a name, `reppo train ENV`",
        ),
        ("eval --run=nothing x", "unknown option --run: it is an argument without a name, `reppo eval RUN`"),
        ("report .", "no results: it has no folder bench with runs, as `reppo bench` writes them"),
        ("train prob:TargetReach", "no suite 'prob'; did you mean probe?"),
        ("train probe:TargetReech", "probe has no task 'TargetReech'; did you mean TargetReach?"),
        ("train nothing.py:Mine", "no file nothing.py"),
        ("eval", "missing from reppo eval: RUN"),
        ("eval nothing", "no policy at nothing"),
        ("eval . --episodes 0", "--episodes must be at least 1, got 0"),
        ("resume", "missing from reppo resume: RUN"),
        ("resume nothing", "nothing is not a run directory: it has no config.json"),
        ("repro nothing", "no file nothing"),
    ],
)
def test_bad_input_is_one_line(
    reppo: Reppo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in reppo.refuses(*words.split())
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("columns", ["20", "200"])
def test_complaints_of_the_parser_lose_their_frame(monkeypatch: pytest.MonkeyPatch, encoding: str, columns: str) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding))
    with pytest.raises(ConfigError) as caught:
        cli.arguments("train", ["--norm", "batch"])
    assert str(caught.value) == "invalid choice 'batch' for argument '--norm'. Expected one of ('rms', 'layer', 'none')."


# ------------------------------------------------------------------------------------------- environments


def test_a_bare_task_name_is_answered_with_its_suite(reppo: Reppo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(envs, "SUITES", {"probe": envs.SUITES["probe"]})  # the others take seconds to import
    assert "did you mean probe:TargetReach?" in reppo.refuses("train", "targetreach")


def test_a_missing_suite_names_its_extra(reppo: Reppo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None)
    assert reppo.refuses("train", "brax:ant") == "brax:ant needs brax: pip install 'reppo[brax]'"
    code, out, _ = reppo("envs")
    assert code == 0
    assert "# brax: not installed: pip install 'reppo[brax]'" in out.splitlines()
    assert "probe:TargetReach" in out.splitlines()


def test_envs_lists_names_for_people_and_machines(reppo: Reppo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(envs, "SUITES", {"probe": envs.SUITES["probe"]})
    assert reppo("envs", "reach").out == "probe:TargetReach\n"
    assert json.loads(reppo("envs", "--json").out)["probe"]["tasks"] == envs.SUITES["probe"].adapter().names()
    assert "no environment here contains 'xyz'" in reppo.refuses("envs", "xyz")


#: What is replaced in `ENV`, by what, and the complaint.
MISTAKES_AT_THE_DOOR = {
    "import": ("import reppo", "import repo", "could not be imported: ModuleNotFoundError: No module named 'repo'"),
    "syntax": ("(reppo.Env):", "(reppo.Env)", "mine.py could not be imported: SyntaxError"),
    "constructor": ("    def reset", "    def __init__(self):\n        1 / 0\n\n    def reset", "in __init__: ZeroDivision"),
    "reset": ("return jnp.zeros(2), self", "return undefined, self", "mine.py:8, in reset: NameError: name 'undefined'"),
    "matrix": ("return jnp.zeros(2)", "return jnp.zeros((2, 3))", "is float32[2, 3]; it must be a float vector"),
    "integers": ("return jnp.zeros(2)", "return jnp.zeros(2, int)", "is int32[2]; it must be a float vector"),
    "nested": ("return jnp.zeros(2)", "return {'a': {'b': jnp.zeros(2)}}", "use arrays, or one flat dict of arrays"),
    "no first state": ("return jnp.zeros(2), self", "return self", "Mine: reset must return (state, observation), got one"),
    "three at reset": ("return jnp.zeros(2), self", "return 1.0, 2.0, self", "(state, observation), got 3 values"),
    "exit at import": ("import reppo", "import reppo\nraise SystemExit(0)", "could not be imported: SystemExit: 0 ("),
    "exit in reset": ("return jnp.zeros(2), self", "quit()", "mine.py:8, in reset: SystemExit"),
    "value range": ("(0.0, 1.0)", "None", "does not say what its returns are like: set --v-min and --v-max"),
}
MISTAKES_BEFORE_THE_FIRST_STEP = {
    "step": (
        "return state, reppo",
        "raise KeyError('torque')\n        return state, reppo",
        ", in step: KeyError: 'torque'",
    ),
    "exit": (
        "return state, reppo",
        "raise SystemExit('no\\nmotor')\n        return state, reppo",
        ", in step: SystemExit: no",
    ),
    "callback": (
        "jnp.float32(0.0)",
        "jax.pure_callback(lambda: {}['torque'], jax.ShapeDtypeStruct((), 'float32'), vmap_method='sequential')",
        "mine.py:11, in <lambda>: KeyError: 'torque'",
    ),
    "nan": ("return jnp.zeros(2)", "return jnp.array([0.0, jnp.nan])", "obs[1] of environment 0 is nan right after reset"),
    "no state": ("return state, reppo", "return reppo", "Mine: step must return (state, reppo.Transition), got 3 values"),
    "reward": (
        "return state, reppo",
        "return state, 0.0, reppo",
        "step must return (state, reppo.Transition), got 3 values",
    ),
    "no transition": (
        "return state, reppo.Transition(self.observe(), jnp.float32(0.0), jnp.array(False))",
        "return state, jnp.zeros(3)",
        "(state, reppo.Transition(obs, reward, terminated)), got one value in place of the transition",
    ),
    "nothing": ("return state, reppo", "return None and reppo", "step must return (state, reppo.Transition), got nothing"),
}


@pytest.mark.parametrize(("old", "new", "message"), MISTAKES_AT_THE_DOOR.values(), ids=MISTAKES_AT_THE_DOOR)
def test_a_mistake_in_the_users_file(reppo: Reppo, tmp_path: Path, old: str, new: str, message: str) -> None:
    line = reppo.refuses("train", user_env(tmp_path, (old, new)), *TINY, "--out", tmp_path / "run")
    assert message in line
    assert "mine.py" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"), MISTAKES_BEFORE_THE_FIRST_STEP.values(), ids=MISTAKES_BEFORE_THE_FIRST_STEP
)
def test_a_mistake_that_shows_when_the_run_begins(reppo: Reppo, tmp_path: Path, old: str, new: str, message: str) -> None:
    env = user_env(tmp_path, (old, new))
    line = reppo.refuses("train", env, *TINY, "--out", tmp_path / "run", begun=True)
    assert message in line
    assert "mine.py" in line
    if "must return" in message:
        assert message in reppo.refuses("check-env", env)
    assert not (tmp_path / "run").exists(), "the corrected file can be trained with the same command"


@pytest.mark.parametrize(
    "error", ["KeyError('torque')", "RuntimeError('torque')", "OSError('torque')", "SystemExit('torque')"]
)
@pytest.mark.parametrize("command", ["train", "check-env"])
@pytest.mark.parametrize("ending", ["", ".py"], ids=["module", "file"])
def test_a_mistake_in_a_neighbour_of_the_users_file(
    reppo: Reppo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, command: str, error: str
) -> None:
    # Modules are imported once in a process: each case has its own.
    base, own = (f"{word}_{abs(hash((command, ending, error)))}" for word in ("base", "own"))
    user_env(tmp_path, ("return state, reppo", f"raise {error}\n        return state, reppo"))
    (tmp_path / "mine.py").rename(tmp_path / f"{base}.py")
    (tmp_path / f"{own}.py").write_text(f"import {base}\n\nclass Own({base}.Mine):\n    pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    options, begun = (TINY, True) if command == "train" else ((), False)
    line = reppo.refuses(command, f"{own}{ending}:Own", *options, begun=begun)
    assert line.startswith(f"{base}.py:11, in step: {error.partition('(')[0]}: ")
    assert "torque" in line


@pytest.mark.parametrize("needs", [False, True])
def test_a_file_that_parses_arguments_gets_none_of_ours(reppo: Reppo, tmp_path: Path, needs: bool) -> None:
    parse = f"p = argparse.ArgumentParser()\np.add_argument('--motor', required={needs})\np.parse_args()"
    env = user_env(tmp_path, ("import reppo", f"import argparse, reppo\n{parse}"))
    code, _, err = reppo("train", env, *TINY, "--out", tmp_path / "run")
    assert code == cli.USER_ERROR * needs, err
    if needs:
        *usage, line = err.splitlines()
        assert usage[0].startswith("usage: mine.py"), "not ours"
        assert "mine.py could not be imported: SystemExit: 2 (" in line


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Mime", "defines no 'Mime'; did you mean Mine?"),
        ("mine", "defines no 'mine'; did you mean Mine?"),
        ("jnq", "defines no 'jnq'; there are Mine"),
        ("", "name the environment: "),
        ("Other", "neither a reppo.Env nor"),
    ],
)
def test_a_name_that_the_users_file_does_not_have(reppo: Reppo, tmp_path: Path, name: str, message: str) -> None:
    env = user_env(tmp_path, ("import reppo", "import reppo\nOther = dict"))
    assert message in reppo.refuses("train", env.replace(":Mine", f":{name}"), *TINY)


# ------------------------------------------------------------------------------------------- directories


def test_an_existing_run_is_never_overwritten(reppo: Reppo, finished: Path) -> None:
    before = contents(finished)
    line = reppo.refuses("train", "probe:TargetReach", *TINY, "--out", finished)
    assert line == f"{finished} exists already and is never overwritten; choose another --out, or `reppo resume {finished}`"
    assert contents(finished) == before


def test_only_a_run_is_advised_to_be_resumed(reppo: Reppo, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("precious")
    for path in (tmp_path, tmp_path / "notes.txt"):
        line = reppo.refuses("train", "probe:TargetReach", *TINY, "--out", path)
        assert line == f"{path} exists already and is never overwritten; choose another --out"


def test_a_directory_that_cannot_be_made(reppo: Reppo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("precious")
    line = reppo.refuses("train", "probe:TargetReach", *TINY, "--out", tmp_path / "file" / "run")
    assert line == f"cannot create {tmp_path / 'file' / 'run'}: Not a directory"
    assert (tmp_path / "file").read_text() == "precious"

    def read_only(*arguments: object, **options: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "mkdir", read_only)  # tests may be run by root, who may write anywhere
    line = reppo.refuses("train", "probe:TargetReach", *TINY, "--out", tmp_path / "run")
    assert line == f"cannot create {tmp_path / 'run'}: Read-only file system"


def test_wandb_that_is_not_installed(reppo: Reppo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    line = reppo.refuses("train", "probe:TargetReach", *TINY, "--wandb", "mine", "--out", tmp_path / "run")
    assert line == "--wandb needs wandb: pip install 'reppo[wandb]'"
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------------- eval


def test_eval_reports_fresh_episodes(reppo: Reppo, finished: Path) -> None:
    code, out, err = reppo("eval", finished, "--episodes", 8, "--json")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert (report["env"], report["episodes"], report["seed"]) == ("probe:TargetReach", 8, 0)
    assert len(report["returns"]) == 8
    assert report["return_mean"] == pytest.approx(np.mean(report["returns"]))
    assert report["return_min"] <= report["return_mean"] <= report["return_max"]
    out = reppo("eval", finished / "policy.npz", "--episodes", 8).out
    mean, std = (number(report[name], report["return_mean"]) for name in ("return_mean", "return_std"))
    assert out.startswith(f"probe:TargetReach: return {mean} ± {std} (min ")
    assert out.endswith(" over 8 greedy episodes of 20 steps, seed 0\n"), "as long as the training's own evaluations"
    assert json.loads(reppo("eval", finished, "--episodes", 8, "--seed", 1, "--json").out)["returns"] != report["returns"]


ELSEWHERE = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "POSIX"}


def test_a_terminal_without_unicode(finished: Path, tmp_path: Path) -> None:
    policy = shutil.copy(finished / "policy.npz", tmp_path / "läufer.npz")
    environment = {**os.environ, **ELSEWHERE, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "reppo"]
    done = subprocess.run([*command, "eval", policy, "--episodes", "8"], env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b" +/- " in done.stdout
    done = subprocess.run([*command, "export", policy], env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"ufer.onnx, " in done.stdout
    mistake = [*command, "train", "probe:Läufer", "--out", tmp_path / "new"]
    done = subprocess.run(mistake, env=environment, capture_output=True, check=False)
    assert done.returncode == cli.USER_ERROR
    assert done.stderr.startswith(b"reppo: probe has no task ")


def test_eval_of_several_seeds(reppo: Reppo, finished: Path) -> None:
    for seed in (2, 10):
        shutil.copy(finished / "policy.npz", finished / f"policy_seed{seed}.npz")
    (finished / "policy.npz").unlink()
    report = json.loads(reppo("eval", finished, "--episodes", 8, "--json").out)
    assert [entry["policy"] for entry in report["policies"]] == ["policy_seed2.npz", "policy_seed10.npz"]
    assert report["episodes"] == 16
    lines = reppo("eval", finished, "--episodes", 8).out.splitlines()
    assert [line.split()[0] for line in lines] == ["probe:TargetReach", "policy_seed2.npz", "policy_seed10.npz", "all"]


def test_eval_of_the_best_policy(reppo: Reppo, finished: Path, tmp_path: Path) -> None:
    best = json.loads(reppo("eval", finished, "--episodes", 8, "--best", "--json").out)
    assert [entry["policy"] for entry in best["policies"]] == ["best.npz"]
    assert best["returns"] == json.loads(reppo("eval", finished / "best.npz", "--episodes", 8, "--json").out)["returns"]
    (finished / "best.npz").unlink()
    line = reppo.refuses("eval", finished, "--best")
    assert line == f"--best looks for best.npz or best_seed*.npz in a run directory; there is none at {finished}"


def test_a_policy_of_an_environment_made_in_python_wants_its_name(reppo: Reppo, finished: Path, tmp_path: Path) -> None:
    with np.load(finished / "policy.npz") as file:
        meta = json.loads(file["meta"].tobytes())
        arrays = {name: file[name] for name in file.files if name != "meta"}
    meta = np.frombuffer(json.dumps({**meta, "env": "Mine"}).encode(), np.uint8)
    np.savez(tmp_path / "policy.npz", meta=meta, **arrays)
    for words in (["eval"], ["video", "--out", tmp_path / "a.gif"]):
        line = reppo.refuses(words[0], tmp_path / "policy.npz", *words[1:])
        assert line == "this policy's environment, Mine, was made in Python: name it with --env, as path/to/file.py:Mine"


def test_export_writes_what_another_runtime_reads(reppo: Reppo, finished: Path, tmp_path: Path) -> None:
    path = tmp_path / "policy.onnx"
    lines = reppo("export", finished / "policy.npz", "--out", path).out.splitlines()
    assert lines[0].startswith(f"{path}, ")
    assert lines[1].split() == ["reads", "obs", "float32", "[batch,", "2]"]
    policy, obs = load_policy(finished), np.array([[0.5, 0.1], [-2.0, 1.0]], np.float32)
    (action,) = ReferenceEvaluator(str(path)).run(None, {"obs": obs})
    np.testing.assert_allclose(np.asarray(action), policy(obs), atol=1e-5)
    assert "never overwritten" in reppo.refuses("export", finished, "--out", path)
    assert "no policy at nothing" in reppo.refuses("export", "nothing")
    text = tmp_path / "policy.txt"
    assert reppo.refuses("export", finished, "--out", text) == f"{text} names no format that this writes: .onnx"
    assert not text.exists()
    assert "there is no directory" in reppo.refuses("export", finished, "--out", tmp_path / "nowhere" / "policy.onnx")


def test_export_of_several_seeds_has_a_file_for_each(reppo: Reppo, finished: Path, tmp_path: Path) -> None:
    for seed in (3, 4):
        shutil.copy(finished / "policy.npz", tmp_path / f"policy_seed{seed}.npz")
    assert "holds 2 policies: name one of them" in reppo.refuses("export", tmp_path, "--out", tmp_path / "policy.onnx")
    reppo("export", tmp_path)
    assert {path.name for path in tmp_path.glob("*.onnx")} == {"policy_seed3.onnx", "policy_seed4.onnx"}


def test_video(reppo: Reppo, finished: Path, tmp_path: Path) -> None:
    refusal = reppo.refuses("video", finished)
    # A probe environment.
    assert "does not draw itself: give it a method render, see docs/environments.md#pictures" in refusal
    assert "names no format" in reppo.refuses("video", finished, "--out", tmp_path / "policy.avi")
    assert "no policy at nothing" in reppo.refuses("video", "nothing")
    assert "--seconds must be positive" in reppo.refuses("video", finished, "--seconds", 0)
    (finished / "policy.gif").write_text("mine")
    assert "never overwritten" in reppo.refuses("video", finished)


def test_eval_of_what_is_no_policy(reppo: Reppo, finished: Path, tmp_path: Path) -> None:
    assert "config.json is not a policy of this program" in reppo.refuses("eval", finished / "config.json")
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    assert "other.npz is not a policy of this program" in reppo.refuses("eval", tmp_path / "other.npz")
    line = reppo.refuses("eval", finished, "--env", "probe:ActionReward")
    assert line == "the policy maps 2 observations to 1 actions, but probe:ActionReward has 1 and 1"
    (finished / "policy.npz").unlink()
    assert "holds no policy (policy.npz)" in reppo.refuses("eval", finished)


# ------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (MemoryError(), "out of memory: try fewer --num-envs"),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 4294967296 bytes."), "(it asked for 4.0 GiB more)"),
        (OSError(errno.ENOSPC, "No space left on device", "x/y"), "No space left on device: x/y"),
        (KeyboardInterrupt(), "interrupted"),
    ],
)
def test_errors_that_a_user_can_mend(reppo: Reppo, monkeypatch: pytest.MonkeyPatch, error: BaseException, line: str) -> None:
    def fail(args: object) -> None:
        raise error

    monkeypatch.setitem(cli.COMMANDS, "envs", (environments.EnvsArgs, fail))
    code, out, err = reppo("envs")
    assert (code, out) == (cli.INTERRUPTED if isinstance(error, KeyboardInterrupt) else cli.USER_ERROR, "")
    assert line in err
    assert err.count("\n") == 1


def test_what_takes_less_memory_is_the_commands_own(reppo: Reppo, monkeypatch: pytest.MonkeyPatch) -> None:
    line = reppo.refuses("check-env", "probe:TargetReach", "--num-envs", 10**9)
    assert re.match(r"this check needs at least [\d,]+\.\d GiB of memory, and there are .*: try fewer --num-envs or", line)

    def fail(*args: object, **options: object) -> None:
        raise MemoryError

    monkeypatch.setattr(environments, "check", fail)
    assert reppo.refuses("check-env", "probe:TargetReach") == "out of memory: try fewer --num-envs or --num-steps"


def test_a_run_that_cannot_fit_makes_no_directory(reppo: Reppo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcome, "memory", lambda: 1)
    monkeypatch.setattr(loop.run_directory, "create", lambda path, description: pytest.fail("it is made"))
    line = reppo.refuses("train", "probe:TargetReach", *TINY, "--out", tmp_path / "run")
    assert "this run needs at least 0.0 GiB of memory" in line


def test_errors_of_ours_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(args: object) -> None:
        raise RuntimeError("a mistake of ours")

    monkeypatch.setitem(cli.COMMANDS, "envs", (environments.EnvsArgs, fail))
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        cli.main(["envs"])


# ------------------------------------------------------------------------------------------- resume and repro


def test_resume_extends_a_run(reppo: Reppo, finished: Path) -> None:
    code, out, _ = reppo("resume", finished, "--total-steps", 5 * helpers.TINY.batch_size)
    assert code == 0
    assert "resuming at 192 steps" in out
    assert "Trained probe:TargetReach for 320 steps" in out
    assert iterations(finished) == [1, 2, 3, 4, 5]


def test_resume_refuses_what_would_make_it_another_run(reppo: Reppo, finished: Path) -> None:
    before = contents(finished)
    line = reppo.refuses("resume", finished, "--num-envs", 16, "--gamma", "0.9", "--total-steps", 1000)
    assert "num_envs 8 -> 16, gamma 0.99 -> 0.9;" in line
    assert contents(finished) == before


def test_resume_accepts_options_that_the_run_has_already(reppo: Reppo, finished: Path) -> None:
    before = contents(finished)
    code, _, err = reppo("resume", finished, "--num-envs", helpers.TINY.num_envs, "--gamma", 0.99)
    assert (code, err) == (0, "")
    after = contents(finished)
    summary, summary_before = (json.loads(files["summary.json"]) for files in (after, before))
    assert summary["seeds"] == summary_before["seeds"]
    assert after["metrics.csv"] == before["metrics.csv"]


def test_a_diverged_run_has_its_own_exit_code_and_can_be_reproduced(reppo: Reppo, tmp_path: Path) -> None:
    run = tmp_path / "run"
    env = user_env(tmp_path, ("jnp.float32(0.0)", "jnp.float32(jnp.nan)"))
    code, _, err = reppo("train", env, *TINY, "--out", run)
    assert code == cli.DIVERGED
    assert err.count("\n") == 1
    assert "100% of the environment's steps returned numbers that are not finite" in err
    fault = next(run.glob("fault-*-seed0.npz"))
    assert str(fault) in err
    code, out, _ = reppo("repro", fault)
    assert code == 0
    assert "reward is nan" in out


def test_repro_needs_a_reproduction_file(reppo: Reppo, finished: Path) -> None:
    assert "is not a reproduction file" in reppo.refuses("repro", finished / "policy.npz")
    assert "no file" in reppo.refuses("repro", finished / "nothing.npz")


# ------------------------------------------------------------------------------------------- signals


def start(*words: object) -> subprocess.Popen[str]:
    """The command line in a process of its own."""
    command = [sys.executable, "-m", "reppo", *map(str, words)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(path: Path, process: subprocess.Popen[str], lines: int = 1) -> None:
    """Until a process has written so many lines into a file."""
    while not path.is_file() or path.read_text().count("\n") < lines:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def test_a_signal_ends_a_run_in_good_order_and_resume_goes_on(reppo: Reppo, tmp_path: Path) -> None:
    run = tmp_path / "a run"
    words = ["--total-steps", "1e9", "--v-max", "0.5"]
    process = start("train", "probe:TargetReach", *TINY, *words, "--out", run)
    wait_for(run / "metrics.csv", process, lines=health.SETTLED + 4)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == cli.STOPPED, err
    (warning,) = [line for line in out.splitlines() if "warning: " in line]
    assert re.search(
        r"\d+% of the value targets leave the support \[0, 0.5\]: they are between .* and .*; set --v-min", warning
    )
    assert f"steps; `reppo resume '{run}'` goes on" in err.splitlines()[-1]
    assert "Traceback" not in err
    done = len(iterations(run))
    assert done > 0
    assert reppo("resume", run, "--total-steps", (done + 2) * helpers.TINY.batch_size).code == 0
    assert iterations(run) == list(range(1, done + 3))


def test_ctrl_c_while_compiling_ends_a_run_at_once(tmp_path: Path) -> None:
    process = start("train", "probe:TargetReach", *TINY, "--out", tmp_path / "run")
    wait_for(tmp_path / "run" / "config.json", process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == cli.STOPPED, err
    assert err.splitlines()[-1].endswith(f"`reppo resume {tmp_path / 'run'}` goes on")
    assert "Traceback" not in err


# A shell starts its background jobs with SIGINT ignored, and so then are the tests: not what they are about.
SLOW_IMPORT = """
import signal, sys, time

signal.signal(signal.SIGINT, signal.default_int_handler)

class Slow:
    def find_spec(self, name, path, target=None):
        if name == "reppo.cli":
            print("importing", flush=True)
            time.sleep(60)

sys.meta_path.insert(0, Slow())
from reppo.__main__ import main
sys.exit(main())
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_the_imports_ends_the_program_without_a_traceback(number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_IMPORT], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "importing\n"
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (-number, "")


def test_importing_the_package_imports_nothing_large() -> None:
    program = "import sys, reppo; print([name for name in ('jax', 'numpy', 'tyro') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_what_the_threads_of_orbax_say_is_left_out_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Any] = []
    monkeypatch.setattr(sys, "__unraisablehook__", said.append)
    for error in (RuntimeError("Event loop is closed"), RuntimeError("else"), ValueError("Event loop is closed")):
        startup.unraisable(SimpleNamespace(exc_type=type(error), exc_value=error))
    assert [str(what.exc_value) for what in said] == ["else", "Event loop is closed"]
