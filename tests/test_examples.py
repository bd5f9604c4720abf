"""The examples run as a reader would run them, with budgets of one or two iterations."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from reppo import envs
from reppo.envs.check import check

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
STEPS = "2048"  # one iteration of the cpu preset


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("examples")


def run_python(directory: Path, *arguments: str | Path) -> str:
    """Run Python with these arguments, in ``directory``; return what it printed."""
    environment = {**os.environ, "MPLBACKEND": "Agg", "JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(directory / "cache")}
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_own_env_trains_and_its_policy_runs_in_numpy(directory: Path) -> None:
    environment = f"{EXAMPLES / 'own_env.py'}:Pendulum"
    options = ["--preset", "cpu", "--total-steps", STEPS, "--num-evals", "1", "--out", "pendulum"]
    run_python(directory, "-m", "reppo", "train", environment, *options)
    assert "20 actions" in run_python(directory, EXAMPLES / "deploy_policy.py", "pendulum", "--steps", "20")


def test_own_gymnasium_passes_its_checks_and_draws_itself() -> None:
    env = envs.make(f"{EXAMPLES / 'own_gymnasium.py'}:make")
    assert isinstance(env, envs.HostEnv)
    found = {finding.check: finding for finding in check(env, num_envs=2, num_steps=100)}
    assert [name for name, finding in found.items() if finding.passed is False] == []
    assert "-2 to -0.0" in found["rewards"].seen
    simulator, seconds = env.drawn(100, 100, None)
    simulator.reset(0)
    frame = simulator.frame()
    simulator.close()
    assert seconds == pytest.approx(0.03, rel=0.02)
    assert {tuple(colour) for colour in frame.reshape(-1, 3)} == {(255, 255, 255), (220, 60, 60), (40, 80, 160)}


def test_asymmetric_critic_keeps_the_privileged_entry_from_the_actor(directory: Path) -> None:
    out = run_python(directory, EXAMPLES / "asymmetric_critic.py", "--total-steps", STEPS, "--out", "asymmetric")
    assert "the actor saw ('state',), the critic ('privileged_state', 'state')" in out
    assert "the saved policy needs ('state',): 3 numbers in, 1 out" in out


def test_many_seeds_reports_and_draws_every_seed(directory: Path) -> None:
    script = EXAMPLES / "many_seeds.py"
    out = run_python(directory, script, "--seeds", "2", "--total-steps", STEPS, "--plot", "curves.png")
    assert "seed 0:" in out
    assert "seed 1:" in out
    assert (directory / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_readme_shows_the_example_as_it_is() -> None:
    example = (EXAMPLES / "own_env.py").read_text().strip()
    assert example in (ROOT / "README.md").read_text(), "README.md and examples/own_env.py differ"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_every_example_is_listed_in_the_readme(path: Path) -> None:
    assert f"examples/{path.name}" in (ROOT / "README.md").read_text()
