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
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers import TimeLimit

from reppo import cli, envs
from reppo.envs import probes
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


class Crash(Env):
    """Loses 2 a step, and 100 where it falls, after a random number of steps."""

    action_size = 1

    def reset(self, key: jax.Array) -> tuple[Any, Any]:
        left = jax.random.randint(key, (1,), 1, 9).astype(jnp.float32)
        return left, left

    def step(self, state: Any, action: jax.Array, key: jax.Array) -> tuple[Any, Transition]:
        left = state - 1
        falls = left[0] == 0
        return left, Transition(left, jnp.where(falls, -100.0, -2.0), falls)


class Unpaid(Crash):
    def step(self, state: Any, action: jax.Array, key: jax.Array) -> tuple[Any, Transition]:
        after, transition = super().step(state, action, key)
        return after, transition._replace(reward=jnp.zeros(()))


def test_a_value_range_is_proposed_in_which_what_comes_once_counts_once() -> None:
    found = findings(Crash, num_steps=60)
    assert found["rewards"].seen == "-2 to -2 a step, -100 to -100 at the end, under random actions"
    # From -2 / (1 - 0.99) - 100 = -300 to 0, and a tenth of that at either end.
    assert "propose --v-min -330 --v-max 30 (gamma 0.99)" in found["value range"].seen
    assert "propose none" in findings(Unpaid, num_steps=60)["value range"].seen


@pytest.mark.parametrize("env", REAL.values(), ids=REAL.keys())
def test_every_adapter_passes(env: Any) -> None:
    found = findings(env, num_envs=2, num_steps=60)
    assert failed(found) == []
    assert {"shapes", "finite numbers", "determinism", "resets", "terminated or truncated"} <= found.keys()
    assert found["time limit holds"].passed
    assert found["true successor"].passed


@pytest.mark.parametrize("name", probes.names())
def test_every_probe_passes(name: str) -> None:
    """Some of them always terminate after two steps, which is their task and no time limit."""
    assert failed(findings(f"probe:{name}", num_envs=2, num_steps=60)) == []


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
    length = 30

    def step(self, action: Any) -> Any:
        obs, reward, _, _, info = super().step(action)
        return obs, reward, self.steps == self.length, False, info


class ShortClock(Clock):
    length = _max_episode_steps = 4


class Careless(Line):
    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.x = float(np.random.uniform(-1, 1))
        return self.obs(), {}


class Wide(Line):
    """Within its bounds at first."""

    observation_space = spaces.Dict(  # pyright: ignore[reportAssignmentType]
        {"at": spaces.Box(np.array([-9.0, 0.0]), np.array([9.0, 12.0]), dtype=np.float32)}
    )

    def obs(self) -> Any:
        return {"at": super().obs()}


class Precise(Line):
    """Its numbers are of one kind at resets, of another one in steps."""

    def obs(self) -> Any:
        return super().obs().astype(np.float64 if self.steps == 0 else np.float16)


class Dark(Line):
    """A picture whose numbers are 0 and 1, of 255."""

    observation_space = spaces.Box(0, 255, (4, 4, 1), np.uint8)

    def obs(self) -> Any:
        return (np.arange(16).reshape(4, 4, 1) < self.steps).astype(np.uint8)


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
    found = findings(Line)
    assert failed(found) == []
    assert not {"observation bounds", "kinds of numbers", "image"} & found.keys()


def test_observations_outside_of_their_space_are_told() -> None:
    found = findings(Wide, num_steps=30)
    assert failed(found) == []
    assert "observation['at'][1] of environment 0 is 13 at step 13, not 0 to 12" in found["observation bounds"].seen


def test_other_kinds_of_numbers_than_the_space_says_are_told() -> None:
    told = [finding for finding in check(envs.make(Precise), num_steps=30) if finding.check == "kinds of numbers"]
    assert [finding.passed for finding in told] == [None, None]
    assert told[0].seen.startswith("observation is float64, its space says float32")
    assert told[1].seen.startswith("observation is float64 at first, and float16 later")


def test_an_image_that_is_dark_is_told() -> None:
    found = findings(Dark, num_steps=30)
    assert failed(found) == []
    assert found["image"].seen.startswith("no pixel is above 1 of 255")


@pytest.mark.parametrize(
    ("env", "name", "seen", "advice"),
    [
        (Clock, "terminated or truncated", "every termination came after exactly 30 steps", "a time limit is a truncation"),
        (
            ShortClock,
            "terminated or truncated",
            "every termination came after exactly 4 steps",
            "a time limit is a truncation",
        ),
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


class Vector(VectorEnv):
    """Four lines as a vector that is none of Gymnasium's own, so that nothing of it can be set from outside. It says that it
    resets as ``declared``, and does it as ``done``."""

    limit = 20

    def __init__(self, declared: AutoresetMode, done: AutoresetMode):
        self.lines = SyncVectorEnv([lambda: TimeLimit(Line(), self.limit)] * 4, autoreset_mode=done)
        self.num_envs, self.metadata = 4, {"autoreset_mode": declared}
        self.single_observation_space, self.single_action_space = Line.observation_space, Line.action_space

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return self.lines.reset(seed=seed, options=options)

    def step(self, actions: Any) -> Any:
        return self.lines.step(actions)


class Forgetful(Vector):
    """In place of the successor it has the next episode's first observation."""

    def step(self, actions: Any) -> Any:
        obs, reward, terminated, truncated, info = super().step(actions)
        return obs, reward, terminated, truncated, {**info, "final_obs": obs}


class Repeating(Vector):
    """It keeps an end's flag up for the row of the reset."""

    def step(self, actions: Any) -> Any:
        obs, reward, terminated, truncated, info = super().step(actions)
        before, self.ended = getattr(self, "ended", terminated), terminated
        return obs, reward, terminated | before, truncated, info

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        self.ended = np.zeros(4, bool)
        return super().reset(seed=seed, options=options)


class Paying(Vector):
    """It has a reward in every row, those of resets among them."""

    def step(self, actions: Any) -> Any:
        obs, reward, *rest = super().step(actions)
        return obs, reward + 1.0, *rest


class Overdue(Vector):
    _max_episode_steps = 5


class Deaf(Vector):
    """It begins every episode anew, whatever the mask says."""

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return super().reset(seed=seed)


class Reusing(Line):
    """All observations are the same array."""

    def obs(self) -> Any:
        self.buffer = getattr(self, "buffer", np.zeros(2, np.float32))
        self.buffer[:] = super().obs()
        return self.buffer


class Orbit(Line):
    """Each episode begins at 0 and ends there, which is no mistake."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.x = 0.0
        return self.obs(), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        self.x = float(self.steps % 5)
        over = self.steps == 5
        self.steps %= 5
        return self.obs(), 0.0, False, over, {}


NEXT_STEP, SAME_STEP, DISABLED = AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED


@pytest.mark.parametrize("mode", AutoresetMode)
def test_a_sound_vector_of_another_kind_passes(mode: AutoresetMode) -> None:
    found = findings(lambda: Vector(mode, mode))
    assert failed(found) == []
    assert found["resets"].passed
    assert found["successor at an end"].passed


@pytest.mark.parametrize(
    ("vector", "declared", "done", "name", "seen", "advice"),
    [
        (
            Vector,
            NEXT_STEP,
            SAME_STEP,
            "resets",
            "another action in them changed what happened",
            "declare AutoresetMode.SAME",
        ),
        (Repeating, NEXT_STEP, NEXT_STEP, "resets", "ended in such a row, at step", "declare AutoresetMode.SAME_STEP"),
        (Forgetful, SAME_STEP, SAME_STEP, "successor at an end", "those that the next episodes begin with", "final_obs"),
        (Overdue, SAME_STEP, SAME_STEP, "episodes end", "one lasted for", "the time limit is 5: apply it"),
        (Deaf, DISABLED, DISABLED, "runs", "changed its observation, though the mask is False there", "mend this first"),
    ],
)
def test_a_vector_that_resets_otherwise_than_it_says_fails(
    vector: type[Vector], declared: AutoresetMode, done: AutoresetMode, name: str, seen: str, advice: str
) -> None:
    (failure,) = failed(findings(lambda: vector(declared, done)))
    assert failure.check == name
    assert seen in failure.seen
    assert advice in failure.advice


def test_an_environment_that_reuses_its_observation_loses_its_successors_in_same_step() -> None:
    """Gymnasium holds the array itself, and the reset that follows writes to it."""
    (failure,) = failed(findings(lambda: SyncVectorEnv([lambda: TimeLimit(Reusing(), 20)] * 4, autoreset_mode=SAME_STEP)))
    assert failure.check == "successor at an end"
    assert "return a copy of the observation" in failure.advice


class Eager(Vector):
    """It resets at an end, and once more when it is told to."""

    def step(self, actions: Any) -> Any:
        obs, reward, terminated, truncated, info = super().step(actions)
        over = terminated | truncated
        return (self.reset(options={"reset_mask": over})[0] if over.any() else obs), reward, terminated, truncated, info


def test_a_vector_that_resets_before_it_is_told_to_is_suspected() -> None:
    found = findings(lambda: Eager(DISABLED, DISABLED))["successor at an end"]
    assert found.passed is None
    assert found.seen.endswith(
        "but all lie where episodes begin, and those before them do not: if it resets itself, they are lost"
    )
    assert findings(lambda: Vector(DISABLED, DISABLED))["successor at an end"].passed


def test_a_reward_in_the_row_of_a_reset_is_told() -> None:
    found = findings(lambda: Paying(NEXT_STEP, NEXT_STEP))
    assert failed(found) == []
    rows, paid = (int(word) for word in found["resets"].seen.split() if word.isdigit())
    assert rows == paid > 0


def test_too_few_ends_are_told() -> None:
    found = findings(lambda: Vector(SAME_STEP, SAME_STEP), num_steps=10)
    assert found["resets"].passed is found["successor at an end"].passed is None
    assert "no episode ended in 10 steps" in found["resets"].seen
    assert "0 ends are too few" in found["successor at an end"].seen


def test_an_episode_may_end_where_it_began() -> None:
    found = findings(Orbit)
    assert failed(found) == []
    assert found["successor at an end"].passed is None


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
