"""``reppo check-env``: every adapter passes it on a real environment of its simulator, and broken environments do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from reppo import cli, envs
from reppo.envs.base import Env, Transition
from reppo.envs.check import Finding, check

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning:gymnasium.*", "ignore::DeprecationWarning")


def findings(env: Any, **options: Any) -> dict[str, Finding]:
    return {finding.check: finding for finding in check(envs.make(env), **options)}


def failed(found: dict[str, Finding]) -> list[Finding]:
    return [finding for finding in found.values() if finding.passed is False]


def sync(mode: AutoresetMode) -> Any:
    def make() -> SyncVectorEnv:
        pendulum = lambda: gymnasium.make("Pendulum-v1", max_episode_steps=20)  # noqa: E731
        return SyncVectorEnv([pendulum] * 2, autoreset_mode=mode)

    return make


def workers() -> AsyncVectorEnv:
    return AsyncVectorEnv([lambda: gymnasium.make("Pendulum-v1")] * 2, context="forkserver")


REAL = {
    "probe": "probe:TargetReach",
    "gymnax": "gymnax:Pendulum-v1",
    "gymnax-discrete": "gymnax:CartPole-v1",
    "gymnax-images": "gymnax:Breakout-MinAtar",
    "playground": "playground:CartpoleBalance",
    "brax": "brax:inverted_pendulum",
    "gymnasium": "gymnasium:Pendulum-v1",
    "gymnasium-discrete": "gymnasium:CartPole-v1",
    "gymnasium-mujoco": "gymnasium:InvertedPendulum-v5",
    "gymnasium-next-step": sync(AutoresetMode.NEXT_STEP),
    "gymnasium-same-step": sync(AutoresetMode.SAME_STEP),
    "gymnasium-disabled": sync(AutoresetMode.DISABLED),
    "gymnasium-workers": workers,
    "envpool-classic": "envpool:Pendulum-v1",
    "envpool-discrete": "envpool:CartPole-v1",
    "envpool-mujoco": "envpool:InvertedPendulum-v5",
    "envpool-dm-control": "envpool:PendulumSwingup-v1",
    "envpool-atari": "envpool:Breakout-v5",
    "envpool-robots": "envpool:MuJoCoPlayground/Go1JoystickFlatTerrain-v1",
}


@pytest.mark.parametrize("env", REAL.values(), ids=REAL.keys())
def test_every_adapter_passes(env: Any) -> None:
    found = findings(env, num_envs=2, num_steps=60)
    assert failed(found) == []
    assert {"shapes", "finite numbers", "determinism", "resets", "terminated or truncated"} <= found.keys()
    assert found["time limit holds"].passed
    assert found["true successor"].passed


# ------------------------------------------------------------------------------------- broken ones on the host


class Line(gymnasium.Env):
    """A point that is pushed along a line. It is sound; each of the classes below breaks one thing of it."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
    _max_episode_steps = 100

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.x, self.steps = float(self.np_random.uniform(-1, 1)), 0
        return self.obs(), {}

    def obs(self) -> Any:
        return np.array([self.x, self.steps], np.float32)

    def step(self, action: Any) -> Any:
        self.x, self.steps = self.x + 0.1 * float(action[0]), self.steps + 1
        return self.obs(), -abs(self.x), abs(self.x) > 1.2, False, {}


class Clock(Line):
    def step(self, action: Any) -> Any:
        obs, reward, _, _, info = super().step(action)
        return obs, reward, self.steps == 30, False, info


class Careless(Line):
    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.x = float(np.random.uniform(-1, 1))
        return self.obs(), {}


class Diverging(Line):
    def step(self, action: Any) -> Any:
        obs, *rest = super().step(action)
        return (obs * np.nan if action[0] >= 1.0 else obs), *rest


class Growing(Line):
    def obs(self) -> Any:
        return np.zeros(2 + (self.steps > 20), np.float32)


class Raising(Line):
    def step(self, action: Any) -> Any:
        raise KeyError("torque")


class Hidden(Line):
    observation_space = spaces.Dict({"privileged_state": spaces.Box(-1, 1, (2,))})  # pyright: ignore[reportAssignmentType]

    def obs(self) -> Any:
        return {"privileged_state": super().obs()}


def test_a_sound_environment_passes() -> None:
    assert failed(findings(Line)) == []


@pytest.mark.parametrize(
    ("env", "name", "seen", "advice"),
    [
        (Clock, "terminated or truncated", "every termination came after exactly 30 steps", "a time limit is a truncation"),
        (Careless, "determinism", "the same seed gives other first observations", "draw every random number from the seed"),
        (Diverging, "finite numbers", "numbers that are not finite, first environment 0 at step 2", "diverges"),
        (Growing, "runs", "environment 0 at step 21: observation has shape [3], not [2]", "mend this first"),
        (Raising, "runs", "environment 0 at step 1: KeyError: 'torque'", "mend this first"),
        (Hidden, "dict entries", "actor: nothing", "the actor needs another"),
    ],
)
def test_a_broken_environment_fails(env: type[Line], name: str, seen: str, advice: str) -> None:
    (failure,) = failed(findings(env))
    assert failure.check == name
    assert seen in failure.seen
    assert advice in failure.advice


class Late(SyncVectorEnv):
    """It resets in the same step, and keeps the successor to itself."""

    def step(self, actions: Any) -> Any:
        obs, reward, terminated, truncated, info = super().step(actions)
        return obs, reward, terminated, truncated, {key: x for key, x in info.items() if key != "final_obs"}


def test_a_lost_successor_fails() -> None:
    made = envs.make(lambda: Late([Line] * 4, autoreset_mode=AutoresetMode.SAME_STEP))
    (failure,) = [finding for finding in check(made) if finding.passed is False]
    assert "info has no final_obs" in failure.seen


# ------------------------------------------------------------------------------------- broken ones in JAX


class Point(Env):
    action_size = 1
    value_range = (-10.0, 10.0)

    def reset(self, key: jax.Array) -> Any:
        x = jax.random.uniform(key, (1,))
        return x, x

    def step(self, state: Any, action: jax.Array, key: jax.Array) -> Any:
        state = state + 0.1 * action
        return state, Transition(state, -jnp.abs(state[0]), jnp.array(False))


class Widening(Point):
    def step(self, state: Any, action: jax.Array, key: jax.Array) -> Any:
        state, transition = super().step(state, action, key)
        return state.astype(jnp.float16), transition


class TwoRewards(Point):
    def step(self, state: Any, action: jax.Array, key: jax.Array) -> Any:
        state, transition = super().step(state, action, key)
        return state, transition._replace(reward=state)


class Infinite(Point):
    def step(self, state: Any, action: jax.Array, key: jax.Array) -> Any:
        state, transition = super().step(state, action, key)
        return state, transition._replace(reward=jnp.where(action[0] == 1.0, jnp.inf, 0.0))


@pytest.mark.parametrize(
    ("env", "name", "seen"),
    [
        (Widening, "pytrees", "state is float32[1] after `reset`, float16[1] after `step`"),
        (TwoRewards, "pytrees", "the reward has shape [1]"),
        (Infinite, "finite numbers", "first environment 0 at step 2"),
    ],
)
def test_a_broken_environment_in_jax_fails(env: type[Point], name: str, seen: str) -> None:
    found = failed(findings(env, num_envs=2, num_steps=30))
    assert found[0].check == name
    assert seen in found[0].seen


# ------------------------------------------------------------------------------------- the command


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check-env", "probe:TargetReach", "--num-steps", "60"]) == 0
    out = capsys.readouterr().out
    assert "ok    determinism" in out
    assert "all checks passed" in out
    file = tmp_path / "mine.py"
    file.write_text(
        f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\nfrom test_check import Clock as Mine\n"
    )
    assert cli.main(["check-env", f"{file}:Mine"]) == 1
    out = capsys.readouterr().out
    assert "FAIL  terminated or truncated" in out
    assert "-> a time limit is a truncation" in out
    assert "1 failed" in out
    assert cli.main(["check-env", "gymnasium:CartPool-v1"]) == 2
    assert "did you mean CartPole-v1" in capsys.readouterr().err
