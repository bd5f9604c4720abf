"""The command line, by calling `cli.main` in this process; a few times, where signals matter, in a process of its own."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import helpers
import pytest

from reppo import cli
from reppo.loop import Run
from reppo.plot import read_rows

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

    def refuses(self, *words: object) -> str:
        """The one line with which a command is refused; fails if it is not refused or says more."""
        code, out, err = self(*words)
        assert (code, out) == (cli.USER_ERROR, ""), (code, out, err)
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


def iterations(directory: Path) -> list[float]:
    return [row["iteration"] for row in read_rows(directory / "metrics.csv")]


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


@pytest.mark.parametrize(("words", "message"), [(["resume"], "RUN"), (["resume", "."], "config.json")])
def test_resume_needs_a_run(reppo: Reppo, words: list[str], message: str) -> None:
    assert message in reppo.refuses(*words)


NAN_REWARD = """
import jax.numpy as jnp
import reppo

class Broken(reppo.Env):
    action_size, value_range = 1, (0.0, 1.0)

    def reset(self, key):
        return jnp.zeros(2), jnp.zeros(2)

    def step(self, state, action, key):
        return state, reppo.Transition(state, jnp.float32(jnp.nan), jnp.array(False))
"""


def test_a_diverged_run_has_its_own_exit_code_and_can_be_reproduced(reppo: Reppo, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(NAN_REWARD)
    run = tmp_path / "run"
    code, _, err = reppo("train", f"{tmp_path / 'broken.py'}:Broken", *TINY, "--out", run)
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


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    """Until a process has written something into a file."""
    while not (path.is_file() and path.stat().st_size):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def test_a_signal_ends_a_run_in_good_order_and_resume_goes_on(reppo: Reppo, tmp_path: Path) -> None:
    run = tmp_path / "a run"
    process = start("train", "probe:TargetReach", *TINY, "--total-steps", "1e9", "--out", run)
    wait_for(run / "metrics.csv", process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == cli.STOPPED, err
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


SLOW_IMPORT = """
import sys, time

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
