"""EnvPool (``envpool:CheetahRun-v1``): MuJoCo, dm_control, MuJoCo Playground's robots, Atari and more, in C++ threads.

An environment whose episode has ended is reset by the next step, and spends that row on it: the row's action is ignored,
and its reward means nothing. Where the time limit and a termination fall on the same step, EnvPool reports the time limit.
"""

from __future__ import annotations

import contextlib
import difflib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from reppo.envs import value_ranges
from reppo.envs.host import HostEnv, RawStep, Simulator
from reppo.envs.spaces import Actions, Observations, read_actions
from reppo.errors import ConfigError
from reppo.types import PyTree

Array = npt.NDArray[Any]

#: Families of tasks that work as a whole, by the modules of EnvPool that register them.
FAMILIES = (
    "envpool.atari",
    "envpool.mujoco.dmc",
    "envpool.mujoco.gym",
    "envpool.mujoco.metaworld",
    "envpool.mujoco.playground",
)
#: Further tasks with vectors as observations.
OTHERS = (
    "Acrobot-v1",
    "CartPole-v1",
    "BipedalWalker-v3",
    "BipedalWalkerHardcore-v3",
    "LunarLander-v3",
    "LunarLanderContinuous-v3",
    "MountainCar-v0",
    "MountainCarContinuous-v0",
    "Pendulum-v1",
)


#: The value range of a task, by its family; of all others `value_ranges.of_gymnasium`.
VALUE_RANGES: dict[str, Callable[[str], value_ranges.ValueRange | None]] = {
    "envpool.mujoco.dmc": lambda task: value_ranges.DM_CONTROL,
    "envpool.mujoco.playground": lambda task: value_ranges.of_playground(task.rpartition("/")[2]),
    "envpool.atari": lambda task: value_ranges.ATARI_CLIPPED,
}

#: What the tasks of a family are made with, where that is not EnvPool's own default or has to stay what it is.
SETTINGS: dict[str, dict[str, Any]] = {
    # The protocol of Machado et al. (2018): sticky actions, episodes that end with the game and not with a life.
    "envpool.atari": {
        "stack_num": 4,
        "frame_skip": 4,
        "repeat_action_probability": 0.25,
        "episodic_life": False,
        "reward_clip": True,  # to the sign, or no range of values would fit every game; see `EnvPoolEnv.for_evaluation`
    }
}


class Pool(Simulator):
    """``N`` environments in EnvPool's threads, stepped together.

    EnvPool takes its seed when it is made. So the pool is made at the first reset, and later ones go on drawing from where
    the pool's random numbers are.
    """

    def __init__(self, task: str, observations: Observations, actions: Actions, num_envs: int, settings: dict[str, Any]):
        self.num_envs = num_envs
        self._task, self._observations, self._actions = task, observations, actions
        self._settings = settings  #: of EnvPool, by its names
        self._pool: Any = None
        self._ended, self._any_ended = np.zeros(num_envs, bool), False

    def reset(self, seed: int) -> PyTree:
        if self._pool is None:
            with _quiet():
                self._pool = _envpool().make_gymnasium(self._task, num_envs=self.num_envs, seed=seed, **self._settings)
                _ = self._pool.observation_space  # made once, when it is first asked for
        self._ended, self._any_ended = np.zeros(self.num_envs, bool), False
        obs, _ = self._pool.reset()
        return self._observations.read(obs, self.num_envs)

    def step(self, action: Array) -> RawStep:
        actions = self._actions.as_taken(action)
        raw_obs, reward, terminated, truncated, info = self._pool.step(actions)
        obs = self._observations.read(raw_obs, self.num_envs)
        reset = info["elapsed_step"] == 0
        any_reset, over = bool(reset.any()), terminated | truncated
        if any_reset or self._any_ended:
            if (reset != self._ended).any():
                index = int(np.argmax(reset != self._ended))
                raise RuntimeError(f"environment {index} did not reset where its episode had ended, or did elsewhere")
            over &= ~reset
        self._ended, self._any_ended = over, bool(over.any())
        return RawStep(obs, obs, reward, terminated, truncated, reset if any_reset else None)

    def reset_rows(self, rows: Array) -> PyTree:
        self._ended = self._ended & ~rows
        self._any_ended = bool(self._ended.any())
        indices = np.flatnonzero(rows).astype(np.int32)
        raw_obs, _ = self._pool.reset(indices)
        out = self._observations.empty(self.num_envs)
        fresh = self._observations.read(raw_obs, len(indices))
        for name in (None,) if not isinstance(out, dict) else out:
            (out if name is None else out[name])[indices] = fresh if name is None else fresh[name]
        return out

    def close(self) -> None:
        if self._pool is not None:
            with contextlib.suppress(Exception):
                self._pool.close()
            self._pool = None  # its threads end with the last reference


class EnvPoolEnv(HostEnv):
    """A task of EnvPool, with further settings of EnvPool's for all of its copies."""

    def __init__(self, task: str, settings: dict[str, Any]):
        self.name = f"envpool:{task}"
        self.task, self.settings = task, settings
        try:
            with _quiet():
                spec = _envpool().make_spec(task, **settings)
                observation_space, action_space = spec.gymnasium_observation_space, spec.gymnasium_action_space
        except Exception as error:  # a family that needs a file or a package that is not here
            text = " ".join(str(error).split())
            raise ConfigError(f"{self.name} cannot be made: {type(error).__name__}: {text}") from error
        self.actions = read_actions(self.name, action_space)
        self.observations = Observations(self.name, observation_space)
        limit = int(spec.config.max_episode_steps)
        self.episode_length = limit
        family = _envpool().registration.registry.specs[task][0]
        self.value_range = VALUE_RANGES.get(family, value_ranges.of_gymnasium)(task)
        self.max_return = float(limit) if family == "envpool.mujoco.dmc" else None

    def simulator(self, num_envs: int, episode_length: int) -> Simulator:
        settings = {**self.settings, "max_episode_steps": episode_length}
        return Pool(self.task, self.observations, self.actions, num_envs, settings)

    def for_evaluation(self) -> HostEnv:
        """The same with the rewards as they are: an Atari game's score."""
        return EnvPoolEnv(self.task, {**self.settings, "reward_clip": False}) if "reward_clip" in self.settings else self


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without Gymnasium's warnings about spaces that EnvPool makes, which nobody can act on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _envpool() -> Any:
    import envpool

    return envpool


def names() -> list[str]:
    """The tasks that are known to work, newest versions; `make` takes any id of EnvPool."""
    newest: dict[str, str] = {}
    for name, (module, *_) in _envpool().registration.registry.specs.items():
        alias = module == "envpool.mujoco.playground" and "/" not in name  # each robot has two names
        if module in FAMILIES and not alias:
            base = name.rpartition("-v")[0]
            newest[base] = max(name, newest.get(base, ""))
    return sorted([*newest.values(), *OTHERS])


def make(name: str) -> EnvPoolEnv:
    """A task of EnvPool by its id."""
    known = _envpool().list_all_envs()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise ConfigError(f"EnvPool has no task {name!r}{hint}")
    return EnvPoolEnv(name, SETTINGS.get(_envpool().registration.registry.specs[name][0], {}))
