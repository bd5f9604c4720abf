"""mjlab: how a task is made, with a stand-in for its package; and, where it is installed, the real ones."""

from __future__ import annotations

import dataclasses
import math
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import TINY

import reppo
from reppo import cli, envs
from reppo.envs import mjlab
from reppo.envs.check import check
from reppo.errors import ConfigError
from reppo.evaluate import evaluate_policy

installed = pytest.mark.skipif(
    envs.missing(envs.SUITES["mjlab"]), reason="needs reppo[mjlab]; torch and Warp are too large for the test extra"
)


class Made:
    """An environment that describes itself at length, as the real ones do, and has a 20 ms step."""

    num_envs = 1
    observation_manager = None
    single_observation_space = types.SimpleNamespace(
        spaces={"actor": types.SimpleNamespace(shape=(2,), low=-math.inf, high=math.inf)}
    )
    single_action_space = types.SimpleNamespace(shape=(1,), low=-math.inf, high=math.inf)

    def __init__(self, cfg: Any, device: str):
        print("a table of all managers")
        if cfg.broken:
            raise FileNotFoundError("no mesh\nhand.stl")
        self.cfg, self.device = cfg, device

    @property
    def max_episode_length(self) -> int:
        return math.ceil(self.cfg.episode_length_s / 0.02)

    def close(self) -> None:
        pass


def config() -> Any:
    """A task's configuration, as much of it as the adapter reads or sets."""
    return types.SimpleNamespace(
        scene=types.SimpleNamespace(num_envs=1),
        sim=types.SimpleNamespace(mujoco=types.SimpleNamespace(timestep=0.005)),
        decimation=4,
        episode_length_s=20.0,
        commands={},
        seed=None,
        auto_reset=True,
        broken=False,
    )


@pytest.fixture
def cfg(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The configuration of the stand-in's one task, ``Task``."""
    task, seeded = config(), lambda seed: None
    modules = {
        "warp": {"config": types.SimpleNamespace(log_level=20), "LOG_WARNING": 30},
        "mjlab": {},
        "mjlab.envs": {"ManagerBasedRlEnv": Made},
        "mjlab.tasks": {},
        "mjlab.tasks.registry": {"load_env_cfg": lambda name: task, "list_tasks": lambda: ["Task"]},
        "mjlab.utils": {},
        "mjlab.utils.random": {"seed_rng": seeded},
    }
    for name, contents in modules.items():
        module = types.ModuleType(name)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(mjlab, "_device", lambda: "cpu")
    return task


def test_a_task_is_made_without_a_word_and_leaves_its_resets_to_us(cfg: Any, capsys: pytest.CaptureFixture[str]) -> None:
    env = mjlab.make("Task")
    assert env.episode_length == 1000
    made = env._made(3, 7)
    assert (made.cfg.scene.num_envs, made.cfg.auto_reset, made.max_episode_length) == (3, False, 7)
    assert made.cfg.seed is not None  # else what it draws once is drawn from another seed each time
    assert made.seed is sys.modules["mjlab.utils.random"].seed_rng
    assert sys.modules["warp"].config.log_level == 30
    assert capsys.readouterr().out == ""
    assert ["on cpu" in note for note in env.notes] == [True]


def test_what_cannot_be_made_is_one_line(cfg: Any) -> None:
    with pytest.raises(ConfigError, match=r"mjlab has no task 'Tusk'; did you mean Task\?"):
        mjlab.make("Tusk")
    cfg.broken = True
    with pytest.raises(ConfigError, match=r"mjlab:Task cannot be made: FileNotFoundError: no mesh hand.stl"):
        mjlab.make("Task")
    cfg.commands = {"motion": types.SimpleNamespace(motion_file="")}
    with pytest.raises(ConfigError, match="follows a motion, and its configuration names no file"):
        mjlab.make("Task")


def test_where_it_is_missing_one_line_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = dataclasses.replace(envs.SUITES["mjlab"], package="not_installed_anywhere")
    monkeypatch.setitem(envs.SUITES, "mjlab", suite)
    assert cli.main(["check-env", "mjlab:Mjlab-Cartpole-Balance"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "pip install 'reppo[mjlab]'" in error


# ------------------------------------------------------------------------------------- the real ones


@installed
def test_it_passes_the_checks() -> None:
    found = {finding.check: finding for finding in check(envs.make("mjlab:Mjlab-Cartpole-Balance"), num_envs=2, num_steps=9)}
    assert [finding for finding in found.values() if finding.passed is False] == []
    assert found["true successor"].passed
    assert found["time limit holds"].passed


@installed
def test_what_is_drawn_once_is_the_same_again() -> None:
    """Go1's friction, centre of mass and encoders are drawn when the simulation is made, before it gets its seed."""
    env: Any = envs.make("mjlab:Mjlab-Velocity-Flat-Unitree-Go1")
    frictions = []
    for _ in range(2):
        made = env._made(3, None)
        frictions.append(made.sim.model.geom_friction.cpu().numpy().copy())
        made.close()
    np.testing.assert_array_equal(frictions[0], frictions[1])
    assert np.ptp(frictions[0], axis=0).max() > 0.01  # it was drawn, for each environment


@installed
def test_the_whole_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Train, evaluate, save, load; a step pays its reward for 50 ms, and at most one a second."""
    task = "mjlab:Mjlab-Cartpole-Balance"
    bounds: Any = {"action_low": -1.0, "action_high": 1.0, "v_min": -10.0, "v_max": 10.0}
    config = dataclasses.replace(TINY, total_steps=32, num_envs=2, eval_episodes=2, episode_length=4, **bounds)
    run = reppo.train(task, config, out=tmp_path / "run")
    assert all(row["eval/length"] == 4 for row in run.evaluations)
    assert all(0.1 < row["eval/return"] <= 4 * 0.05 for row in run.evaluations)
    policy = reppo.load_policy(tmp_path / "run" / "policy.npz")
    assert policy.env == task
    results = evaluate_policy(policy, envs.make(task), episodes=2, seed=0, episode_length=4)
    np.testing.assert_array_equal(results["lengths"], 4)
    assert (results["returns"] <= 4 * 0.05).all()
    assert "Setting seed" not in capsys.readouterr().out


@installed
def test_real_tasks_that_cannot_be_made_are_one_line() -> None:
    with pytest.raises(ConfigError, match=r"did you mean Mjlab-Cartpole-Balance\?"):
        envs.make("mjlab:Mjlab-Cartpole-Balanc")
    with pytest.raises(ConfigError, match="follows a motion"):
        envs.make("mjlab:Mjlab-Tracking-Flat-Unitree-G1")
    with pytest.raises(ConfigError, match="observes images"):
        envs.make("mjlab:Mjlab-Lift-Cube-Yam-Rgb")
