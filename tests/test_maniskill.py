"""ManiSkill: how its flags become ours, with a stand-in for its environments; and, where it is installed, the real ones."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import TINY

import reppo
from reppo import cli, envs
from reppo.envs import maniskill
from reppo.envs.check import check
from reppo.errors import ConfigError

installed = pytest.mark.skipif(
    envs.missing(envs.SUITES["maniskill"]), reason="needs reppo[maniskill]; torch is too large for the test extra"
)


class Task:
    """One step of four environments: nothing, success, failure, both. ManiSkill's `terminated` is the last three."""

    num_envs = 4
    device = "cpu"
    success, fail = np.array([[False, True, False, True], [False, False, True, True]])

    def __init__(self, *reports: str):
        self.info = {name: getattr(self, name) for name in reports}
        self.resets: list[Any] = []

    def step(self, action: Any) -> Any:
        none = np.zeros(4, bool)
        return np.zeros((4, 2)), np.ones(4), np.logical_or.reduce([none, *self.info.values()]), none, self.info

    def reset(self, seed: Any, options: Any = None) -> Any:
        self.resets.append((seed, options))
        return np.zeros((4, 2)), {}


def test_success_cuts_an_episode_failure_ends_it() -> None:
    step = maniskill.Batch(Task("success", "fail"), full=False).step(None)
    np.testing.assert_array_equal(step.terminated, Task.fail)
    np.testing.assert_array_equal(step.truncated, Task.success)  # where both are up, termination wins, as everywhere
    np.testing.assert_array_equal(step.success, Task.success)
    only = maniskill.Batch(Task("success"), full=False).step(None)
    assert not np.any(only.terminated)
    np.testing.assert_array_equal(only.truncated, Task.success)
    without = maniskill.Batch(Task("fail"), full=False).step(None)
    np.testing.assert_array_equal(without.terminated, Task.fail)
    assert not np.any(without.truncated)
    assert without.success is None


@pytest.mark.parametrize("reports", [("success", "fail"), ("success",), ("fail",), ()])
def test_nothing_ends_a_full_episode_and_its_success_is_reported(reports: tuple[str, ...]) -> None:
    step = maniskill.Batch(Task(*reports), full=True).step(None)
    assert not np.any(step.terminated)
    assert not np.any(step.truncated)
    np.testing.assert_array_equal(step.success, Task.success if "success" in reports else None)


def test_every_reset_has_seeds() -> None:
    task = Task()
    batch = maniskill.Batch(task, full=False)
    batch.reset([1, 2, 3, 4])
    batch.reset_rows(np.ones(4, bool), [5, 6, 7, 8])
    assert task.resets == [([1, 2, 3, 4], None), ([5, 6, 7, 8], {})]


def test_a_stand_in_for_a_material_takes_what_materials_take() -> None:
    material = maniskill.NoMaterial(base_color=[1, 0, 0, 1])
    assert material.base_color == [1, 0, 0, 1]
    material.roughness = 0.5  # pyright: ignore[reportAttributeAccessIssue]
    material.set_base_color([0, 0, 0, 1])
    assert material.roughness == 0.5  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(AttributeError):
        material.nothing  # noqa: B018


def test_where_it_is_missing_one_line_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = dataclasses.replace(envs.SUITES["maniskill"], package="not_installed_anywhere")
    monkeypatch.setitem(envs.SUITES, "maniskill", suite)
    assert cli.main(["check-env", "maniskill:PickCube-v1"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(ConfigError, match=r"pip install 'reppo\[maniskill\]'"):
        envs.make("maniskill:PickCube-v1")


# ------------------------------------------------------------------------------------- the real ones


@installed
def test_it_passes_the_checks() -> None:
    found = {finding.check: finding for finding in check(envs.make("maniskill:PickCube-v1"), num_envs=2, num_steps=60)}
    assert [finding for finding in found.values() if finding.passed is False] == []
    assert found["true successor"].passed
    assert found["determinism"].passed


@installed
def test_the_whole_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Train, evaluate, save, load; on the CPU backend, where one is made for every environment."""
    config = dataclasses.replace(TINY, total_steps=32, num_envs=2, eval_episodes=2, episode_length=4)
    run = reppo.train("maniskill:PullCube-v1", config, out=tmp_path / "run")
    assert all(row["eval/length"] == 4 for row in run.evaluations)
    assert all(0 <= row["eval/success_at_end"] <= row["eval/success_once"] <= 1 for row in run.evaluations)
    policy = reppo.load_policy(tmp_path / "run" / "policy.npz")
    assert policy.env == "maniskill:PullCube-v1"
    assert cli.main(["eval", str(tmp_path / "run"), "--episodes", "1", "--json"]) == 0
    assert '"success_at_end"' in capsys.readouterr().out


@installed
def test_what_cannot_be_made_is_one_line() -> None:
    with pytest.raises(ConfigError, match="ManiSkill has no task 'PikCube-v1'; did you mean PickCube-v1"):
        envs.make("maniskill:PikCube-v1")
    with pytest.raises(ConfigError, match="download_asset PickSingleYCB-v1"):
        envs.make("maniskill:PickSingleYCB-v1")
    with pytest.raises(ConfigError, match="needs assets"):  # ManiSkill would ask at the terminal
        envs.make("maniskill:AnymalC-Reach-v1")
