"""Videos of a policy: which steps are drawn, at what pace, and what is said where nothing can be."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import reppo
from reppo import envs, imports, video
from reppo.envs.brax import Brax
from reppo.envs.brax_style import BraxStyle
from reppo.errors import ConfigError
from reppo.export import FORMAT, SavedPolicy
from reppo.video import Episode, Pace, record, save


def grey(level: int, height: int = 6, width: int = 8) -> np.ndarray:
    return np.full((height, width, 3), level, np.uint8)


def make_policy(bias: float, high: float = 1.0) -> SavedPolicy:
    """Always the same action, ``tanh(bias)`` of the way to a bound of ``high``."""
    bounds = np.array([high], np.float32)
    arrays = {
        "mean": np.zeros(1, np.float32),
        "var": np.ones(1, np.float32),
        "weight0": np.zeros((1, 2), np.float32),
        "bias0": np.array([bias, 0.0], np.float32),
        "action_low": -bounds,
        "action_high": bounds,
    }
    meta = {
        "format": FORMAT,
        "env": "here",
        "obs_keys": [],
        "obs_sizes": [1],
        "layers": 1,
        "min_std": 0.0,
        "episode_length": 100,
    }
    return SavedPolicy({**arrays, "meta": np.frombuffer(json.dumps(meta).encode(), np.uint8)})


class Counter(reppo.Env):
    """Its state counts the steps; its reward is the action. It draws its count."""

    action_size = 1
    action_low, action_high = -3.0, 3.0
    episode_length = 12
    step_seconds = 0.02
    ends_at = 1000

    def reset(self, key: jax.Array) -> tuple[Any, Any]:
        del key
        return jnp.zeros(()), jnp.zeros(1)

    def step(self, state: Any, action: jax.Array, key: jax.Array) -> tuple[Any, reppo.Transition]:
        del key
        return state + 1, reppo.Transition((state + 1)[None], action[0], state + 1 >= self.ends_at)

    def render(self, states: Sequence[Any], height: int, width: int, camera: str | None) -> Sequence[np.ndarray]:
        assert (height, width) == (video.HEIGHT, video.WIDTH)
        return [grey(int(state) + (100 if camera == "near" else 0)) for state in states]


class Undrawn(Counter):
    def render(self, states: Sequence[Any], height: int, width: int, camera: str | None) -> Sequence[np.ndarray]:
        return reppo.Env.render(self, states, height, width, camera)


class NoScreen(Counter):
    def render(self, states: Sequence[Any], height: int, width: int, camera: str | None) -> Sequence[np.ndarray]:
        raise RuntimeError("gladLoadGL\nerror")


class NoPackage(Counter):
    def render(self, states: Sequence[Any], height: int, width: int, camera: str | None) -> Sequence[np.ndarray]:
        raise ImportError("pygame is missing, run `pip install pygame`.")


class Forever(Undrawn):
    """Cannot be drawn, and must not be simulated to find out."""

    def step(self, state: Any, action: jax.Array, key: jax.Array) -> tuple[Any, reppo.Transition]:
        raise AssertionError("stepped")


class Unwritten(Counter):
    def step(self, state: Any, action: jax.Array, key: jax.Array) -> tuple[Any, reppo.Transition]:
        raise NotImplementedError("my physics")


class Breaks(Counter):
    """Its reward is NaN at the fourth step."""

    def step(self, state: Any, action: jax.Array, key: jax.Array) -> tuple[Any, reppo.Transition]:
        state, (obs, reward, terminated) = super().step(state, action, key)
        return state, reppo.Transition(obs, jnp.where(state == 4, jnp.nan, reward), terminated)


class Switch(Counter):
    """Discrete, with a dict observation; its reward is the action."""

    action_size, discrete = 3, True

    def reset(self, key: jax.Array) -> tuple[Any, Any]:
        return jnp.zeros(()), {"action": jnp.ones(1), "privileged_state": jnp.zeros(2)}

    def step(self, state: Any, action: jax.Array, key: jax.Array) -> tuple[Any, reppo.Transition]:
        _, obs = self.reset(key)
        return state + 1, reppo.Transition(obs, action.astype(float), jnp.array(False))


class Floats(Counter):
    def render(self, states: Sequence[Any], height: int, width: int, camera: str | None) -> Sequence[np.ndarray]:
        return [np.zeros((height, width)) for _ in states]


def levels(episode: Episode) -> list[int]:
    return [int(frame[0, 0, 0]) for frame in episode.frames]


# --------------------------------------------------------------------------------------------- environments in JAX


def test_every_second_step_of_fifty_a_second_is_drawn() -> None:
    episode = record(make_policy(50.0), Counter(), seed=0, seconds=0.1)
    assert levels(episode) == [0, 2, 4]
    assert episode.frame_seconds == pytest.approx(0.04)
    assert (episode.length, episode.over) == (5, False)
    assert episode.total_reward == pytest.approx(5 * 3.0)  # in the environment's own bounds


def test_an_episode_ends_at_its_time_limit_or_sooner() -> None:
    episode = record(make_policy(0.0), Counter(), seed=0, seconds=99.0)
    assert (levels(episode), episode.length, episode.over) == ([0, 2, 4, 6, 8, 10, 12], 12, True)
    falling = Counter()
    falling.ends_at = 5
    episode = record(make_policy(0.0), falling, seed=0, seconds=99.0)
    assert (levels(episode), episode.length, episode.over) == ([0, 2, 4, 5], 5, True)


def test_an_episode_ends_where_its_numbers_do() -> None:
    episode = record(make_policy(50.0), Breaks(), seed=0, seconds=99.0)
    assert (levels(episode), episode.length, episode.over, episode.broken) == ([0, 2], 4, False, True)
    assert episode.total_reward == pytest.approx(3 * 3.0)


def test_a_discrete_policy_of_a_dict() -> None:
    policy = make_policy(0.0)
    meta = {**json.loads(policy.arrays["meta"].tobytes()), "discrete": True, "obs_keys": ["action"]}
    arrays = {
        **policy.arrays,
        "weight0": np.zeros((1, 3), np.float32),
        "bias0": np.array([0, 0, 1], np.float32),
        "action_low": np.zeros(1, np.float32),
        "action_high": np.full(1, 2, np.float32),
        "meta": np.frombuffer(json.dumps(meta).encode(), np.uint8),
    }
    episode = record(SavedPolicy(arrays), Switch(), seed=0, seconds=0.1)
    assert (levels(episode), episode.total_reward) == ([0, 2, 4], pytest.approx(5 * 2.0))


def test_an_error_of_the_environment_is_its_own() -> None:
    with pytest.raises(NotImplementedError, match="my physics"):
        record(make_policy(0.0), Unwritten(), seed=0, seconds=0.1)


def test_the_camera_is_passed_on() -> None:
    assert levels(record(make_policy(0.0), Counter(), seed=0, seconds=0.02, camera="near")) == [100]


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (Forever, "Forever does not draw itself"),
        (Undrawn, "Undrawn does not draw itself; --env names another environment"),
        (NoScreen, "NoScreen could not be drawn: RuntimeError: gladLoadGL error. Without a screen, MuJoCo draws by EGL"),
        (NoPackage, "NoPackage could not be drawn: ImportError: pygame is missing, run `pip install pygame`$"),
        (Floats, r"render returned float64\[240, 320\]; a picture is uint8\[height, width, 3\]"),
    ],
)
def test_what_cannot_be_drawn(env: type[Counter], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        record(make_policy(0.0), env(), seed=0, seconds=0.1)


@pytest.mark.parametrize(
    ("step_seconds", "every", "steps", "frame_seconds"),
    [(0.01, 4, 200, 0.04), (0.02, 2, 100, 0.04), (0.05, 1, 40, 0.05), (0.0025, 16, 800, 0.04), (None, 1, 50, 0.04)],
)
def test_pace(step_seconds: float | None, every: int, steps: int, frame_seconds: float) -> None:
    pace = Pace.of(step_seconds, 2.0, 1000)
    assert (pace.every, pace.steps) == (every, steps)
    assert pace.frame_seconds == pytest.approx(frame_seconds)
    assert Pace.of(step_seconds, 2.0, 7).steps == 7


class Inner:
    """What `BraxStyle` uses of a simulator."""

    action_size = 1
    dt = jnp.asarray(0.01)  # Brax's own is on the device

    def reset(self, key: jax.Array) -> Any:
        return key

    def render(self, trajectory: list[Any], height: int, width: int, camera: str | None) -> list[Any]:
        return [(state, height, width, camera) for state in trajectory]


class State:
    pipeline_state = "physics"


def test_brax_draws_the_physics_and_playground_the_state() -> None:
    state = State()
    drawn = [cls(Inner(), "x", 10, None).render([state], 2, 3, "c") for cls in (Brax, BraxStyle)]
    assert drawn == [[("physics", 2, 3, "c")], [(state, 2, 3, "c")]]
    step_seconds = Brax(Inner(), "x", 10, None).step_seconds
    assert isinstance(step_seconds, float)
    assert step_seconds == pytest.approx(0.01)


# --------------------------------------------------------------------------------------------- Gymnasium


class Drawn(gymnasium.Env):
    """Its observation, its reward and its picture say how many steps it has made."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,))
    action_space = gymnasium.spaces.Box(-2.0, 2.0, (1,))
    metadata = {"render_modes": ["rgb_array"], "render_fps": 50}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None):
        self.render_mode, self.steps = render_mode, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: np.ndarray) -> Any:
        self.steps += 1
        return np.full(1, self.steps, np.float32), float(action[0]), self.steps == 9, False, {}

    def render(self) -> Any:
        return grey(self.steps)


class Plain(Drawn):
    def __init__(self) -> None:
        super().__init__()


class DrawnBreaks(Drawn):
    def step(self, action: np.ndarray) -> Any:
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, np.nan if self.steps == 4 else reward, terminated, truncated, info


gymnasium.register("ReppoDrawnBreaks-v0", f"{__name__}:DrawnBreaks", max_episode_steps=20)
gymnasium.register("ReppoDrawn-v0", f"{__name__}:Drawn", max_episode_steps=20)


def test_gymnasium_draws_by_its_rgb_array() -> None:
    env = envs.make("gymnasium:ReppoDrawn-v0")
    episode = record(make_policy(50.0, 2.0), env, seed=0, seconds=99.0)
    assert levels(episode) == [0, 2, 4, 6, 8]  # at the ninth the next episode has begun
    assert (episode.length, episode.over, episode.total_reward) == (9, True, pytest.approx(18.0))
    assert episode.frame_seconds == pytest.approx(0.04)


def test_a_broken_episode_of_gymnasium_ends_there() -> None:
    env = envs.make("gymnasium:ReppoDrawnBreaks-v0")
    episode = record(make_policy(50.0, 2.0), env, seed=0, seconds=99.0)
    assert (levels(episode), episode.length, episode.over, episode.broken) == ([0, 2], 4, False, True)


@pytest.mark.parametrize("make", [Plain, lambda: Drawn()])
def test_a_factory_that_takes_no_render_mode(make: Any) -> None:
    message = "cannot be drawn: what makes it must accept render_mode=None and pass it on"
    with pytest.raises(ConfigError, match=message):
        record(make_policy(0.0, 2.0), envs.make(make), seed=0, seconds=1.0)


class Undrawable(Counter):
    render = reppo.Env.render  # pyright: ignore[reportAssignmentType]

    def reset(self, key: jax.Array) -> Any:
        raise AssertionError("it is refused before that")


def test_an_environment_without_render_is_told_of_it_first() -> None:
    with pytest.raises(ConfigError, match=r"Undrawable does not draw itself: give it a method render, see docs/env"):
        record(make_policy(0.0), Undrawable(), seed=0, seconds=1.0)


def test_a_camera_where_there_is_none() -> None:
    with pytest.raises(ConfigError, match="ReppoDrawn-v0 has no cameras to choose from"):
        record(make_policy(0.0, 2.0), envs.make("gymnasium:ReppoDrawn-v0"), seed=0, seconds=1.0, camera="near")


def test_a_camera_that_is_not_there() -> None:
    env = envs.make("gymnasium:InvertedPendulum-v5")
    with pytest.raises(ConfigError, match="InvertedPendulum-v5 has no camera 'near'; it has none"):
        env.drawn(8, 8, "near")  # pyright: ignore[reportAttributeAccessIssue]


# --------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".GIF"])
def test_the_file_shows_every_frame(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"video{suffix}"
    frames = [grey(level, 16, 16) for level in (0, 80, 160, 240)]
    assert save(path, Episode(frames, 0.04, 0.0, 4, True, False)) == path.stat().st_size
    with Image.open(path) as image:
        assert image.n_frames == 4  # pyright: ignore[reportAttributeAccessIssue]
        assert image.size == (16, 16)
        for i, level in enumerate((0, 80, 160, 240)):
            image.seek(i)
            pixel = image.convert("RGB").getpixel((8, 8))
            assert isinstance(pixel, tuple)
            assert pixel[0] == pytest.approx(level, abs=6)
            assert image.info["duration"] == 40
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_the_pace_is_kept_where_the_format_counts_coarsely(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"video{suffix}"
    save(path, Episode([grey(8 * i, 16, 16) for i in range(30)], 1 / 30, 0.0, 30, True, False))
    with Image.open(path) as image:
        durations = []
        for i in range(30):
            image.seek(i)
            image.load()
            durations.append(image.info["duration"])
    assert sum(durations) == 1000


def test_a_file_is_never_overwritten(tmp_path: Path) -> None:
    episode = Episode([grey(0)], 0.04, 0.0, 0, False, False)
    path = tmp_path / "video.gif"
    path.write_text("mine")
    with pytest.raises(ConfigError, match="never overwritten"):
        save(path, episode)
    assert path.read_text() == "mine"
    with pytest.raises(ConfigError, match=r"video\.mp4 names no format that this writes: \.gif or \.webp"):
        save(tmp_path / "video.mp4", episode)


# --------------------------------------------------------------------------------------------- where there is no screen


def test_what_the_user_has_chosen_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imports.subprocess, "run", lambda *args, **kwargs: pytest.fail("asked"))
    monkeypatch.setattr(imports.sys, "platform", "linux")
    monkeypatch.delitem(imports.sys.modules, "mujoco", raising=False)
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    imports.for_drawing()
    assert imports.os.environ["MUJOCO_GL"] == "glfw"


def test_the_first_that_works_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    class Outcome:
        def __init__(self, returncode: int):
            self.returncode = returncode

    monkeypatch.setattr(imports.sys, "platform", "linux")
    monkeypatch.delitem(imports.sys.modules, "mujoco", raising=False)
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.setenv("MUJOCO_GL", "")  # so that it is given back afterwards
    monkeypatch.delenv("MUJOCO_GL")
    monkeypatch.setattr(imports.subprocess, "run", lambda *_, env, **__: Outcome(int(env["MUJOCO_GL"] != "osmesa")))
    imports.for_drawing()
    assert imports.os.environ["MUJOCO_GL"] == "osmesa"
