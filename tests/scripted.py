"""An environment that follows a script, as Gymnasium, EnvPool and packages with torch would offer it, and what each script
means.

An observation is ``[script, episode, step, last action]``, a reward a function of the first three. How long an episode is
and how it ends, terminated, truncated or both at once, is drawn from the seed. So a transition says where it belongs, and
every adapter must yield the same ones.
"""

from __future__ import annotations

import os
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from reppo.envs.host import HostEnv
from reppo.envs.spaces import Observations, read_actions
from reppo.envs.torch_env import TensorEnv, TensorSimulator, TensorStep

Array = npt.NDArray[Any]

TIME_LIMIT = 50  #: longer than any script's episodes
BOUNDS = (-2.0, 6.0)  #: of the action
JUNK = 777.0  #: what a row that is no step returns as its reward, which nobody may read


class Transition(NamedTuple):
    obs: Array
    action: float  #: in the simulator's units
    reward: float
    next_obs: Array
    terminated: bool
    truncated: bool


class Script:
    """The dynamics: one episode after another, all from one seed."""

    def __init__(self, seed: int):
        self.rng, self.name, self.episode = np.random.default_rng(seed), float(seed % 1000), -1

    def reset(self) -> Array:
        self.episode += 1
        self.length = int(self.rng.integers(1, 7))
        self.kind = self.rng.choice(["terminated", "truncated", "both"])
        self.step_count, self.action = 0, -1.0
        return self.obs()

    def obs(self) -> Array:
        return np.array([self.name, self.episode, self.step_count, self.action])

    def step(self, action: float) -> tuple[Array, float, bool, bool]:
        reward = self.name / 1000 + self.episode + 0.1 * self.step_count
        self.step_count, self.action = self.step_count + 1, action
        over = self.step_count == self.length
        return self.obs(), reward, over and self.kind != "truncated", over and self.kind != "terminated"


def reference(seed: int, act: Callable[[Array], float], number: int) -> list[Transition]:
    """The transitions of a script, without any vectorisation; where both flags are up, termination wins."""
    script, found = Script(seed), []
    obs = script.reset()
    for _ in range(number):
        action = act(obs)
        next_obs, reward, terminated, truncated = script.step(action)
        found.append(Transition(obs, action, reward, next_obs, terminated, truncated and not terminated))
        obs = script.reset() if terminated or truncated else next_obs
    return found


class Scripted(gymnasium.Env):
    """A script as a `gymnasium.Env`; it breaks as the class attribute ``breaks`` says, ``{(episode, step): how}``."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (4,), np.float64)
    action_space = gymnasium.spaces.Box(*BOUNDS, (1,), np.float64)
    _max_episode_steps = TIME_LIMIT
    breaks: dict[tuple[int, int], str] = {}  # noqa: RUF012

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            self.script = Script(seed)
        return self.script.reset(), {}

    def step(self, action: Array) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated = self.script.step(float(action[0]))
        how = self.breaks.get((self.script.episode, self.script.step_count))
        if how == "raises":
            raise ZeroDivisionError("the motor fell off")
        if how == "exits":
            raise SystemExit(0)
        if how == "dies":
            os._exit(1)
        changed: dict[Any, Any] = {
            "nan": obs * np.nan,
            "nan reward": obs,
            "short": obs[:3],
            "text": obs.astype(str),
            "integers": obs.astype(int),
        }
        return changed.get(how, obs), np.nan if how == "nan reward" else reward, terminated, truncated, {}


class Blind(Scripted):
    """Every other episode ends in numbers that are not finite."""

    def step(self, action: Array) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = super().step(action)
        blind = (terminated or truncated) and self.script.episode % 2 == 1
        return obs * np.nan if blind else obs, reward, terminated, truncated, info


def vector(mode: AutoresetMode, num_envs: int) -> SyncVectorEnv:
    return SyncVectorEnv([Scripted] * num_envs, autoreset_mode=mode)


class ScriptedPool:
    """The same scripts with EnvPool's conventions: an episode's end is followed by a row that is spent on the reset, whose
    reward means nothing, and whose ``elapsed_step`` is 0; both flags at once are reported as the time limit."""

    def __init__(self, num_envs: int, seed: int):
        self.scripts = [Script(seed + i) for i in range(num_envs)]
        self.ended = np.zeros(num_envs, bool)
        self.elapsed = np.zeros(num_envs, np.int32)
        self.observation_space = Scripted.observation_space

    def reset(self, indices: Array | None = None) -> tuple[Array, dict[str, Array]]:
        rows = np.arange(len(self.scripts)) if indices is None else indices
        self.ended[rows], self.elapsed[rows] = False, 0
        return np.stack([self.scripts[i].reset() for i in rows]), {"elapsed_step": self.elapsed[rows]}

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Array]]:
        rows = [
            (script.reset(), JUNK, False, False) if ended else script.step(float(action[0]))
            for script, ended, action in zip(self.scripts, self.ended, actions, strict=True)
        ]
        obs, reward, terminated, truncated = (np.array(column) for column in zip(*rows, strict=True))
        self.elapsed = np.where(self.ended, 0, self.elapsed + 1)
        self.ended = terminated | truncated
        return obs, reward, terminated & ~truncated, truncated, {"elapsed_step": self.elapsed}

    def close(self) -> None:
        pass


def envpool_module() -> Any:
    """As much of the package as our adapter uses."""

    def make_gymnasium(task: str, *, num_envs: int, seed: int, max_episode_steps: int) -> ScriptedPool:
        return ScriptedPool(num_envs, seed)

    spec = types.SimpleNamespace(
        gymnasium_observation_space=Scripted.observation_space,
        gymnasium_action_space=Scripted.action_space,
        config=types.SimpleNamespace(max_episode_steps=TIME_LIMIT),
    )
    registration = types.SimpleNamespace(registry=types.SimpleNamespace(specs={"Scripted": ("scripted",)}))
    return types.SimpleNamespace(
        make_gymnasium=make_gymnasium,
        make_spec=lambda task: spec,
        registration=registration,
        list_all_envs=lambda: ["Scripted"],
    )


class ScriptedTensors(TensorEnv):
    """The same scripts as a package with torch would offer them, in arrays, which are tensors as far as DLPack knows.

    One buffer is used for all observations, as a simulator may. ``resets_itself`` makes it one whose `step` has already
    begun the next episodes when it returns.
    """

    def __init__(self, seeds: Sequence[int], resets_itself: bool):
        self.num_envs, self.resets_itself = len(seeds), resets_itself
        self.scripts = [Script(seed) for seed in seeds]
        self.buffer, self.rewards = np.empty((len(seeds), 4)), np.empty(len(seeds))
        self.seen: list[Sequence[int]] = []  #: the seeds of all resets

    def reset(self, seeds: Sequence[int]) -> Any:
        self.scripts = [Script(int(script.name)) for script in self.scripts]
        return self.reset_rows(np.ones(self.num_envs, bool), seeds)

    def reset_rows(self, rows: Array, seeds: Sequence[int]) -> Any:
        self.seen.append(seeds)
        for i in np.flatnonzero(rows):
            self.buffer[i] = self.scripts[i].reset()
        return self.buffer

    def step(self, action: Any) -> TensorStep:
        terminated, truncated = np.empty((2, self.num_envs), bool)
        for i, script in enumerate(self.scripts):
            self.buffer[i], self.rewards[i], terminated[i], truncated[i] = script.step(float(action[i, 0]))
        success = self.buffer[:, 2] == 2
        if not self.resets_itself:
            return TensorStep(self.buffer, self.rewards, terminated, truncated, success)
        next_obs = self.buffer.copy()
        next_obs[~(terminated | truncated)] = JUNK
        obs = self.reset_rows(terminated | truncated, [])
        return TensorStep(next_obs, self.rewards, terminated, truncated, success, obs)

    def close(self) -> None:
        pass


class TensorHostEnv(HostEnv):
    """`ScriptedTensors` behind the shared adapter: ``batches`` of them, which share the environments out;
    with ``on_device``, observations stay in arrays of JAX, as on a GPU."""

    name = "tensors:Scripted"
    episode_length = TIME_LIMIT

    def __init__(self, first_seed: int, batches: int | None = 1, resets_itself: bool = False, on_device: bool = False):
        self.observations = Observations(self.name, Scripted.observation_space)
        self.actions = read_actions(self.name, Scripted.action_space)
        self._how = first_seed, batches, resets_itself, on_device

    def simulator(self, num_envs: int, episode_length: int) -> TensorSimulator:
        first_seed, batches, resets_itself, on_device = self._how
        seeds = np.array_split(np.arange(first_seed, first_seed + num_envs), batches or num_envs)
        made = [ScriptedTensors([int(seed) for seed in part], resets_itself) for part in seeds]
        return TensorSimulator(made, self.observations, self.actions, np.asarray, on_device)


def episodes(transitions: list[Transition]) -> Iterator[list[Transition]]:
    """Whole episodes, in order."""
    episode: list[Transition] = []
    for transition in transitions:
        episode.append(transition)
        if transition.terminated or transition.truncated:
            yield episode
            episode = []
