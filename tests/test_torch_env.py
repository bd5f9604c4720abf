"""What simulators with torch share: tensors through DLPack, resets of our own, seeds, success; with arrays in torch's place.

`test_host.py` runs the same scripts through this adapter as through all others.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scripted
from helpers import TINY, assert_identical
from scripted import Scripted, ScriptedTensors, TensorHostEnv

import reppo
from reppo import cli, envs
from reppo.envs.check import check
from reppo.envs.host import SimulatorError
from reppo.envs.spec import resolve
from reppo.envs.torch_env import TensorSimulator, TensorStep, to_array, to_jax, torch_tensors
from reppo.evaluate import FirstEpisodes, first_episodes
from reppo.run import Run

N = 5
CONFIG = dataclasses.replace(TINY, num_envs=N, num_steps=8, eval_episodes=N, episode_length=None, v_min=-10.0, v_max=50.0)


def simulator(batches: int | None = 1, resets_itself: bool = False) -> TensorSimulator:
    return TensorHostEnv(100, batches, resets_itself).simulator(N, 50)


def seeds_of(made: TensorSimulator) -> list[list[int]]:
    """Every seed that was asked of an environment's resets, by environment."""
    parts = [batch.seen for batch in made._batches if isinstance(batch, ScriptedTensors)]
    return [list(column) for seen in parts for column in zip(*seen, strict=True)]


@pytest.mark.parametrize("batches", [1, 2, None])
def test_seeds_of_episodes_come_from_the_seed_and_are_never_used_twice(batches: int | None) -> None:
    found = []
    for seed in (7, 7, 8):
        made = simulator(batches)
        made.reset(seed)
        for _ in range(20):
            made.step(np.zeros((N, 1), np.float32))
        found.append(seeds_of(made))
    assert found[0] == found[1]
    assert len(found[0]) == N
    every = [seed for episodes in found[0] for seed in episodes]
    assert len(set(every)) == len(every) > 4 * N
    # An environment's seeds do not depend on how many there are: seed 8 begins where the second environment of 7 does.
    assert [episodes[0] for episodes in found[2][:-1]] == [episodes[0] for episodes in found[0][1:]]


def test_a_row_that_is_reset_is_the_simulators_and_the_others_go_on() -> None:
    made = simulator(2)
    first = made.reset(0)
    rows = np.array([True, False, False, False, True])
    fresh = made.reset_rows(rows)
    np.testing.assert_array_equal(fresh[rows, 1], first[rows, 1] + 1)  # the next episode of these
    step = made.step(np.zeros((N, 1), np.float32))
    np.testing.assert_array_equal(step.next_obs[:, 1], rows)
    np.testing.assert_array_equal(step.next_obs[:, 2], 1)


@pytest.mark.parametrize("resets_itself", [False, True])
def test_what_was_returned_does_not_change_with_the_simulators_memory(resets_itself: bool) -> None:
    made = simulator(1, resets_itself)
    made.reset(0)
    steps, copies = [], []
    for _ in range(6):
        steps.append(made.step(np.zeros((N, 1), np.float32)))
        copies.append([np.copy(x) for x in steps[-1] if x is not None])
    for step, copy in zip(steps, copies, strict=True):
        for x, y in zip([x for x in step if x is not None], copy, strict=True):
            np.testing.assert_array_equal(x, y)


class OnGpu:
    """A tensor that only a transfer makes readable."""

    is_cuda = True

    def cpu(self) -> Any:
        return np.arange(3.0)


def test_a_tensor_of_a_gpu_is_transferred_and_one_of_the_cpu_is_viewed() -> None:
    np.testing.assert_array_equal(to_array(OnGpu()), [0, 1, 2])
    here = np.arange(3.0)
    assert np.shares_memory(to_array(here), here)


# ------------------------------------------------------------------------------------- on the device


class Alike(ScriptedTensors):
    """One whose observations are float32 in memory that JAX takes without a copy, as those of a GPU are."""

    def __init__(self, num_envs: int):
        super().__init__(range(num_envs), False)
        room = np.zeros(num_envs * 4 + 16, np.float32)
        start = -room.ctypes.data % 64 // 4
        self.buffer = room[start : start + num_envs * 4].reshape(num_envs, 4)


def test_a_tensor_is_viewed_and_what_becomes_of_it_is_a_copy() -> None:
    env, batch = TensorHostEnv(100), Alike(N)
    assert to_jax(batch.buffer).unsafe_buffer_pointer() == batch.buffer.ctypes.data
    made = TensorSimulator([batch], env.observations, env.actions, np.asarray, on_device=True)
    obs = made.reset(0)
    kept = np.copy(obs)
    batch.buffer[...] = 7.0
    assert isinstance(obs, jax.Array)
    np.testing.assert_array_equal(obs, kept)


@pytest.mark.parametrize("batches", [1, 2])
def test_a_rollout_on_the_device_is_that_of_the_host(batches: int) -> None:
    """To the bit, with ends, cuts and staggered episodes; and the update is not compiled again for where its rows are."""
    config = dataclasses.replace(CONFIG, stagger_episodes=True, cut_probability=0.1)
    collected = []
    for on_device in (False, True):
        run = Run(TensorHostEnv(100, batches, on_device=on_device), config, [3, 4], None)
        run.start()
        collected.append([run.collector.collect(run.state, i) for i in range(3)])
        run.collector.close()
    for host, device in zip(*collected, strict=True):
        assert_identical(host.rows, device.rows)
        assert_identical(host.episodes, device.episodes)
    assert collected[0][0].rows.truncated.any()


def test_training_on_the_device_is_that_of_the_host(tmp_path: Path) -> None:
    runs = [
        reppo.train(TensorHostEnv(100, on_device=on_device), CONFIG, seed=3, out=tmp_path / str(on_device))
        for on_device in (False, True)
    ]
    assert_identical(*(run.state for run in runs))
    np.testing.assert_array_equal(runs[0].returns, runs[1].returns)


def test_observations_and_actions_stay_in_arrays_of_jax() -> None:
    env, taken = TensorHostEnv(100), []

    def as_tensor(action: Any) -> Any:
        taken.append(action)
        return np.asarray(action)

    made = TensorSimulator([Alike(N)], env.observations, env.actions, as_tensor, on_device=True)
    run = Run(env, CONFIG, [3], None)
    env.simulator = lambda num_envs, episode_length: made  # pyright: ignore[reportAttributeAccessIssue]
    rows = (run.start(), run.collector.collect(run.state, 0))[1].rows
    run.collector.close()
    assert len(taken) == CONFIG.num_steps
    assert all(isinstance(action, jax.Array) for action in taken)
    assert all(isinstance(row, jax.Array) for row in rows)


@pytest.mark.parametrize(
    ("env", "chosen", "found"),
    [("maniskill:PickCube-v1", None, "false"), ("mjlab:X", "true", "true"), ("gymnax:Pendulum-v1", None, None)],
)
def test_jax_leaves_memory_to_a_simulator_on_the_same_gpu(
    env: str, chosen: str | None, found: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before JAX is asked whether there is a GPU, unless the user has chosen otherwise."""
    variable = "XLA_PYTHON_CLIENT_PREALLOCATE"
    monkeypatch.setenv(variable, chosen or "")  # so that what it was is restored
    if chosen is None:
        monkeypatch.delenv(variable)
    seen = []
    monkeypatch.setattr("reppo.loop.default_preset", lambda: seen.append(os.environ.get(variable)) or "cpu")
    cli.arguments("train", [env])
    assert seen == [found]


def test_tensors_of_torch_share_the_memory_of_arrays_both_ways() -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.arange(64.0).reshape(16, 4)
    array = to_jax(tensor)
    assert array.unsafe_buffer_pointer() == tensor.data_ptr()
    action = jnp.ones((16, 2)) * 0.5
    assert torch_tensors("cpu")(action).data_ptr() == action.unsafe_buffer_pointer()
    np.testing.assert_array_equal(to_jax(tensor[:, :2]), tensor[:, :2].numpy())  # not contiguous: this one is copied


class WrongRewards(ScriptedTensors):
    def step(self, action: Any) -> TensorStep:
        return super().step(action)._replace(reward=np.zeros((self.num_envs, 1)))


def test_a_reward_of_another_shape_ends_the_run_in_one_line() -> None:
    env = TensorHostEnv(100)
    made = TensorSimulator([WrongRewards(range(N), False)], env.observations, env.actions, np.asarray)
    vector = type(env.start(resolve(env.spec(), CONFIG), N))(made, resolve(env.spec(), CONFIG))
    vector.reset(0)
    with pytest.raises(
        SimulatorError, match=r"tensors:Scripted at step 1: step returns reward with shape \[5, 1\]; it must be \[5\]"
    ):
        vector.step(np.zeros((N, 1), np.float32))


def test_it_passes_the_checks() -> None:
    failures = [finding for finding in check(TensorHostEnv(100, None), num_envs=2, num_steps=60) if finding.passed is False]
    assert failures == []


# ------------------------------------------------------------------------------------- success


def test_success_once_and_at_the_end() -> None:
    episodes = FirstEpisodes((4,))
    success = np.array([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 1]], bool)
    over = np.array([[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [1, 1, 1, 1]], bool)
    for row, ends in zip(success, over, strict=True):
        episodes.add(np.ones(4), ends, np.zeros(4, bool), row)
    found = episodes.result()
    np.testing.assert_array_equal(found.success_once, [1, 1, 0, 1])  # the third was over when it came
    np.testing.assert_array_equal(found.success_at_end, [0, 0, 0, 1])


def test_without_a_word_on_success_there_is_none() -> None:
    env = envs.make(Scripted)
    assert isinstance(env, envs.HostEnv)
    found = first_episodes(env.start(resolve(env.spec(), CONFIG), N), lambda obs: np.zeros((N, 1), np.float32), 0)
    assert found is not None
    assert np.isnan(found.success_once).all()
    assert np.isnan(found.success_at_end).all()


class FullEpisodes(TensorHostEnv):
    """Evaluated on other scripts than it is trained on."""

    notes = ("the wheels are switched off",)

    def for_evaluation(self) -> TensorHostEnv:
        return TensorHostEnv(200)


def solved(first_seed: int) -> tuple[float, float]:
    """Success rates of the first episodes of ``N`` scripts, which count as solved in step 2."""
    firsts = [next(scripted.episodes(scripted.reference(first_seed + n, lambda obs: 0.0, 10))) for n in range(N)]
    return float(np.mean([len(e) >= 2 for e in firsts])), float(np.mean([len(e) == 2 for e in firsts]))


def test_a_run_reports_success_on_the_episodes_of_its_suite(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert solved(200) != solved(100)
    told: list[str] = []

    class Listener:
        def begin(self, description: Any) -> None: ...
        def write(self, event: Any) -> None:
            told.extend([event.text] if event.kind == "warning" else [])

        def close(self) -> None: ...

    run = reppo.train(FullEpisodes(100), CONFIG, out=tmp_path / "run", sinks=[Listener()])
    for row in run.evaluations:
        assert (row["eval/success_once"], row["eval/success_at_end"]) == pytest.approx(solved(200))
    header = (tmp_path / "run" / "evaluations.csv").read_text().partition("\n")[0].split(",")
    assert {"eval/success_once", "eval/success_at_end"} <= set(header)
    assert FullEpisodes.notes[0] in told

    monkeypatch.setattr(envs, "make", lambda name: FullEpisodes(100))
    assert cli.main(["eval", str(tmp_path / "run"), "--episodes", str(N), "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    for part in (found, found["policies"][0]):
        assert (part["success_once"], part["success_at_end"]) == pytest.approx(solved(200))
    assert FullEpisodes.notes[0] in err
    assert cli.main(["eval", str(tmp_path / "run"), "--episodes", str(N)]) == 0
    assert f"{solved(200)[0]:.0%} solved it at some step; {solved(200)[1]:.0%} at their last" in capsys.readouterr().out
