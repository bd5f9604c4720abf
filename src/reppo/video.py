"""Pictures of what a policy does: one greedy episode, drawn frame by frame, as an animated GIF or WebP."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from reppo import compiling, envs
from reppo.envs.autoreset import AutoReset, sound_numbers, sound_state
from reppo.envs.base import Transition
from reppo.envs.host import HostVectorEnv
from reppo.envs.spec import EnvSpec
from reppo.errors import ConfigError
from reppo.evaluate import spec_for
from reppo.export import SavedPolicy
from reppo.files import replacing
from reppo.run_directory import check_new

HEIGHT, WIDTH = 240, 320
FRAMES_PER_SECOND = 25  #: about; an environment that steps more often is drawn every few steps
OPENGL = (
    ". Without a screen, MuJoCo draws by EGL, which a GPU's driver brings, or by OSMesa (Debian: apt install libosmesa6); "
    "MUJOCO_GL chooses"
)
FORMATS = {".gif": ("GIF", 10), ".webp": ("WEBP", 1)}  #: by suffix, with the milliseconds that a file counts in


class Episode(NamedTuple):
    """What was seen of one episode, or of its beginning."""

    frames: list[np.ndarray]  #: uint8 ``[height, width, 3]`` each
    frame_seconds: float  #: how long each is shown, for the pace of the environment
    total_reward: float
    length: int  #: steps
    over: bool  #: whether the episode has ended within them
    broken: bool  #: whether numbers that were not finite ended it early


def record(policy: SavedPolicy, env: envs.AnyEnv, *, seed: int, seconds: float, camera: str | None = None) -> Episode:
    """The first ``seconds`` of an episode under the greedy policy, in the environment's time.

    Raises:
        ConfigError: where the environment does not draw itself, or the policy is not for it.
    """
    if isinstance(env, envs.Env) and type(env).render is envs.Env.render:
        raise ConfigError(
            f"{env.name} does not draw itself: give it a method render, see docs/environments.md#pictures, or name another "
            f"environment with the same observations and actions by --env"
        )
    with compiling.full_precision():
        spec = spec_for(policy, env)
        if isinstance(env, envs.HostEnv):
            return _on_host(policy, env.for_evaluation(), spec, seed, seconds, camera)
        return _in_jax(policy, env, spec, seed, seconds, camera)


class Pace(NamedTuple):
    """Which steps are drawn."""

    every: int  #: steps from one frame to the next
    steps: int  #: to be made, at most
    frame_seconds: float

    @classmethod
    def of(cls, step_seconds: float | None, seconds: float, time_limit: int) -> Pace:
        """Of an environment whose steps last ``step_seconds``; each is one frame where that is not known."""
        step_seconds = step_seconds or 1 / FRAMES_PER_SECOND
        every = max(1, round(1 / (FRAMES_PER_SECOND * step_seconds)))
        return cls(every, min(time_limit, max(1, round(seconds / step_seconds))), every * step_seconds)


def _in_jax(policy: SavedPolicy, env: envs.Env, spec: EnvSpec, seed: int, seconds: float, camera: str | None) -> Episode:
    pace = Pace.of(env.step_seconds, seconds, spec.time_limit)
    one = AutoReset(env, 1, spec.time_limit, (spec.action_low, spec.action_high))

    def draw(states: list[Any]) -> list[np.ndarray]:
        with _explained(spec.name):
            return [_picture(frame) for frame in env.render(states, HEIGHT, WIDTH, camera)]

    def advance(state: Any, action: jax.Array, key: jax.Array, first: Any) -> tuple[Any, Transition, jax.Array]:
        after, transition = one.step_alone(state, action, key, jnp.zeros((), int))
        rows = jax.tree.map(lambda x: jnp.asarray(x)[None], (transition.obs, transition.reward, after, first))
        return after, transition, (sound_numbers(rows[:2], 1) & sound_state(rows[2], rows[3], 1))[0]

    step = compiling.compiled(advance, compiling.SIMULATOR)
    key_reset, key_steps = jax.random.split(jax.random.key(seed))
    state, obs = first, _ = compiling.compiled(env.reset, compiling.RESET)(key_reset)
    frames = draw([jax.device_get(state)])  # what cannot be drawn is refused before it is simulated
    states, total, t, over, broken = [], 0.0, 0, False, False
    for t in range(1, pace.steps + 1):
        action = policy.greedy(jax.device_get(obs))
        state, (obs, reward, terminated), valid = step(state, action, jax.random.fold_in(key_steps, t), first)
        if broken := not valid:
            break
        total, over = total + float(reward), bool(terminated) or t == spec.time_limit
        if over or t % pace.every == 0:
            states.append(jax.device_get(state))
        if over:
            break
    frames += draw(states) if states else []
    return Episode(frames, pace.frame_seconds, total, t, over, broken)


def _on_host(
    policy: SavedPolicy, env: envs.HostEnv, spec: EnvSpec, seed: int, seconds: float, camera: str | None
) -> Episode:
    with _explained(spec.name):
        simulator, step_seconds = env.drawn(HEIGHT, WIDTH, camera)
    pace = Pace.of(step_seconds, seconds, spec.time_limit)

    def draw() -> np.ndarray:
        with _explained(spec.name):
            return _picture(simulator.frame())

    with contextlib.closing(HostVectorEnv(simulator, spec)) as vector_env:
        obs = vector_env.reset(seed)
        frames, total, t, over, broken = [draw()], 0.0, 0, False, False
        for t in range(1, pace.steps + 1):
            step = vector_env.step(policy.greedy(obs))
            obs, total = step.obs, total + float(step.reward[0])
            over, broken = bool(step.terminated[0] | step.truncated[0]), not step.valid[0]
            if over or broken:  # the next episode has begun
                break
            if t % pace.every == 0:
                frames.append(draw())
    return Episode(frames, pace.frame_seconds, total, t, over, broken)


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    """Whatever a library raises where it cannot draw becomes one line."""
    try:
        yield
    except ConfigError:
        raise
    except NotImplementedError:
        raise ConfigError(
            f"{name} does not draw itself; --env names another environment with the same observations and actions, "
            f"as gymnasium:HalfCheetah-v5 is for envpool:HalfCheetah-v5"
        ) from None
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(".")
        hint = OPENGL if re.search("GL|gl[A-Z]|glfw", text) else ""
        raise ConfigError(f"{name} could not be drawn: {text}{hint}") from error


def _picture(frame: Any) -> np.ndarray:
    picture = np.asarray(frame)
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[-1] != 3:
        raise ConfigError(f"render returned {picture.dtype}{list(picture.shape)}; a picture is uint8[height, width, 3]")
    return picture


def check_file(path: Path) -> None:
    """Refuse a file that exists, that has no directory to be in, or whose suffix says no format of a video."""
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(f"{path} names no format that this writes: {' or '.join(FORMATS)}")
    check_new(path)


def save(path: Path, episode: Episode) -> int:
    """Write the frames as a new file, and return its size in bytes."""
    check_file(path)
    first, *others = (Image.fromarray(frame) for frame in episode.frames)
    kind, unit = FORMATS[path.suffix.lower()]
    # Each ends at its own time, rounded: rounded durations would add up to another pace.
    ends = [unit * round(i * 1000 * episode.frame_seconds / unit) for i in range(len(episode.frames) + 1)]
    durations = [after - before for before, after in itertools.pairwise(ends)]
    with replacing(path) as file:
        first.save(file, kind, save_all=True, append_images=others, duration=durations, loop=0, quality=80)
    return path.stat().st_size
