"""Gymnasium (``gymnasium:HalfCheetah-v5``): registered environments, those of the user, and vector environments.

Single environments are stepped one after another by a loop of ours, because it sees every environment's own successor
before it resets it, knows which one failed, and is faster than worker processes for all but the slowest simulators. The
conventions of Gymnasium's vector environments, three autoreset modes, are known to `VectorSimulator` alone.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import multiprocessing.connection
import re
import signal
import traceback
import weakref
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import gymnasium
import jax
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from reppo.envs import blame, value_ranges
from reppo.envs.blame import FAILURES, counted
from reppo.envs.host import Failure, HostEnv, RawStep, Simulator, WrongNumber, WrongReturn, as_numbers, where_rows
from reppo.envs.spaces import Actions, Observations, read_actions
from reppo.errors import ConfigError
from reppo.interrupt import unheard
from reppo.types import PyTree

Array = npt.NDArray[Any]


# --------------------------------------------------------------------------------------------- single environments


#: What single environments return.
RETURNS = {
    "reset": "reset must return (obs, info)",
    "step": "step must return (obs, reward, terminated, truncated, info)",
}
OLD_GYM = ": the API of the old gym"


def in_words(error: BaseException) -> BaseException:
    """An error of Gymnasium's own code, a wrapper's or a vector's, over what an environment takes and returns, in words for
    the environment's author; any other error as it is."""
    if blame.place(error) is not None:
        return error
    if isinstance(error, ValueError) and (found := re.search(r"values to unpack \(expected ([25])(.*)\)", str(error))):
        number = re.search(r"got (\d+)", found[2])
        got = f", got {number[1]} values" if number else ", got more" if "too many" in str(error) else ""
        return WrongReturn(RETURNS["reset" if found[1] == "2" else "step"] + got + OLD_GYM * (got == ", got 4 values"))
    if isinstance(error, TypeError) and re.search("argument.*'(seed|options)'", str(error)):
        return WrongReturn("reset must take seed and options, as in reset(self, *, seed=None, options=None)")
    return error


class Loop(Simulator):
    """``N`` single environments, stepped one after another."""

    def __init__(self, make: Callable[[], gymnasium.Env], observations: Observations, actions: Actions, num_envs: int):
        self.num_envs = num_envs
        self._observations, self._actions = observations, actions
        self._envs: list[gymnasium.Env] = []
        try:
            for _ in range(num_envs):
                self._envs.append(make())
        except BaseException:
            self.close()
            raise

    def reset(self, seed: int) -> PyTree:
        out = self._observations.empty(self.num_envs)
        for i in range(self.num_envs):
            self._reset_one(i, out, seed + i)
        return out

    def _reset_one(self, i: int, out: PyTree, seed: int | None = None) -> None:
        try:
            returned = self._envs[i].reset(seed=seed)
            if not isinstance(returned, tuple) or len(returned) != 2:
                raise WrongReturn(f"{RETURNS['reset']}, got {counted(returned)}")
        except FAILURES as error:
            raise Failure(i) from in_words(error)
        obs, _ = returned
        self._observations.write(obs, out, i)

    def step(self, action: Array) -> RawStep:
        actions = self._actions.as_taken(action)
        next_obs = self._observations.empty(self.num_envs)
        rewards, terminations, truncations = [], [], []
        for i, env in enumerate(self._envs):
            try:
                returned = env.step(actions[i])
                if not isinstance(returned, tuple) or len(returned) != 5:
                    got = counted(returned)
                    raise WrongReturn(f"{RETURNS['step']}, got {got}{OLD_GYM * (got == '4 values')}")
            except FAILURES as error:
                raise Failure(i) from in_words(error)
            obs, reward, terminated, truncated, _ = returned
            self._observations.write(obs, next_obs, i)
            rewards.append(reward)
            terminations.append(terminated)
            truncations.append(truncated)
        reward = _column("reward", rewards).astype(float)
        terminated = _column("terminated", terminations).astype(bool)
        truncated = _column("truncated", truncations).astype(bool)
        over = terminated | truncated
        obs = where_rows(over, self.reset_rows(over), next_obs) if over.any() else next_obs
        return RawStep(obs, next_obs, reward, terminated, truncated)

    def reset_rows(self, rows: Array) -> PyTree:
        out = self._observations.empty(self.num_envs)
        for i in np.flatnonzero(rows):
            self._reset_one(int(i), out)
        return out

    def frame(self) -> Array:
        frame = self._envs[0].render()
        if not isinstance(frame, np.ndarray):
            raise NotImplementedError
        return frame

    def close(self) -> None:
        while self._envs:
            with contextlib.suppress(Exception):  # the other environments must be closed, too
                self._envs.pop().close()


def _column(name: str, values: list[Any]) -> Array:
    """A number of every environment, ``[N]``; raises `Failure` for the first that is none."""
    try:
        return as_numbers(name, values, (len(values),))  # all at once, as it costs as much as one of them
    except ValueError:  # NumPy's own, too, where they differ in shape
        for i, value in enumerate(values):
            try:
                as_numbers(name, value, ())
            except WrongNumber as error:
                raise Failure(i) from error
        raise


# --------------------------------------------------------------------------------------------- vector environments


#: Where an episode of a vector has ended and a reset is due, bool ``[N]``: a vector may outlive its simulator.
_DUE: weakref.WeakKeyDictionary[VectorEnv, Array] = weakref.WeakKeyDictionary()


class VectorSimulator(Simulator):
    """A `gymnasium.vector.VectorEnv`, in whichever autoreset mode its metadata declares."""

    def __init__(self, env: VectorEnv, observations: Observations, actions: Actions, owned: bool):
        self.num_envs = env.num_envs
        self._env, self._observations, self._actions, self._owned = env, observations, actions, owned
        self._mode = autoreset_mode(env)
        self._of_gymnasium = isinstance(env.unwrapped, SyncVectorEnv | AsyncVectorEnv)
        # Other vector environments need not know the option, and have no way to say so.
        self.resets_rows = self._mode == AutoresetMode.DISABLED or self._of_gymnasium
        #: workers that a reset leaves with the reset of their last end; see `_spend_resets`
        self._forgetful = (
            self._mode == AutoresetMode.NEXT_STEP
            and isinstance(env.unwrapped, AsyncVectorEnv)
            and not env.unwrapped.shared_memory
        )
        self._ended = np.zeros(self.num_envs, bool)
        if self._forgetful:
            self._ended = _DUE.get(env.unwrapped, self._ended)
        self._obs: PyTree = None  #: the last observations, of those that a reset by mask must leave alone

    def reset(self, seed: int) -> PyTree:
        with _index_of_failure(self._env):
            self._spend_resets(self._ended)
            obs, _ = self._env.reset(seed=seed)
        self._remember(np.zeros(self.num_envs, bool))
        self._obs = self._observations.read(obs, self.num_envs)
        return self._obs

    def step(self, action: Array) -> RawStep:
        actions = self._actions.as_taken(action)
        with _index_of_failure(self._env):
            raw_obs, reward, terminated, truncated, info = self._env.step(actions)
        self._obs = obs = next_obs = self._observations.read(raw_obs, self.num_envs)
        reward = as_numbers("reward", reward, (self.num_envs,)).astype(float)
        terminated = as_numbers("terminated", terminated, (self.num_envs,)).astype(bool)
        truncated = as_numbers("truncated", truncated, (self.num_envs,)).astype(bool)
        over, reset = terminated | truncated, None
        if self._mode == AutoresetMode.NEXT_STEP:
            if self._ended.any():
                reset = self._ended
            self._remember(over if reset is None else over & ~reset)
        elif over.any():
            if self._mode == AutoresetMode.SAME_STEP:
                next_obs = self._final_observations(obs, over, info)
            else:
                obs = where_rows(over, self.reset_rows(over), next_obs)
        return RawStep(obs, next_obs, reward, terminated, truncated, reset)

    def _final_observations(self, obs: PyTree, over: Array, info: dict[str, Any]) -> PyTree:
        """The true successors where SAME_STEP has already replaced them by the next episodes' first observations."""
        if "final_obs" not in info:
            raise ValueError("an episode ended in autoreset mode SAME_STEP, but info has no final_obs")
        out = self._observations.empty(self.num_envs)
        for i in np.flatnonzero(over):
            self._observations.write(_row(info["final_obs"], int(i)), out, int(i))
        return where_rows(over, out, obs)

    def reset_rows(self, rows: Array) -> PyTree:
        with _index_of_failure(self._env):
            self._spend_resets(self._ended & rows)
            returned, _ = self._env.reset(options={"reset_mask": rows.copy()})
        self._remember(self._ended & ~rows)
        obs = self._observations.read(returned, self.num_envs)
        # Gymnasium's own obey the mask; and a wrapper of theirs may return other numbers for the same observation.
        if not self._of_gymnasium and (changed := ~rows & _differing_rows(obs, self._obs)).any():
            raise Failure(int(np.argmax(changed))) from WrongReturn(
                "reset(options={'reset_mask': mask}) changed its observation, though the mask is False there: begin an "
                "episode only where it is True, and return the observation that the others have"
            )
        self._obs = where_rows(rows, obs, self._obs)
        return obs

    def _remember(self, ended: Array) -> None:
        self._ended = ended
        if self._forgetful:
            _DUE[self._env.unwrapped] = ended

    def _spend_resets(self, rows: Array) -> None:
        """Let workers, where ``rows``, make the reset now that their next step would be.

        A worker that shares no memory does not forget at a reset that an episode has ended (Gymnasium 1.1 to 1.4). Its next
        step would reset once more: a row that looks like a step of the episode that was begun, but leads into another one.
        """
        if self._forgetful and rows.any():
            workers: Any = self._env.unwrapped
            pipes = [workers.parent_pipes[i] for i in np.flatnonzero(rows)]
            for pipe in pipes:
                pipe.send(("step", None))  # no action, as it is no step
            well = np.ones(self.num_envs, bool)
            well[rows] = [pipe.recv()[1] for pipe in pipes]
            workers._raise_if_errors(well.tolist())

    def close(self) -> None:
        if self._owned:
            close(self._env)


def _row(batch: Any, index: int) -> Any:
    """One environment's entry of ``final_obs``: an array of observations, or a dict of arrays."""
    return {key: _row(value, index) for key, value in batch.items()} if isinstance(batch, dict) else batch[index]


def _differing_rows(x: PyTree, y: PyTree) -> Array:
    """Rows in which two observations, leaves ``[N, ...]``, are not the same, bool ``[N]``; NaN is the same as NaN."""
    pairs = [(np.asarray(a), np.asarray(b)) for a, b in zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True)]
    differ = [((a != b) & ((a == a) | (b == b))).reshape(len(a), -1).any(axis=1) for a, b in pairs]
    return np.any(differ, axis=0)


@contextlib.contextmanager
def _index_of_failure(env: VectorEnv) -> Iterator[None]:
    """Find out which environment an exception in Gymnasium's vector environments comes from; they do not say it."""
    try:
        yield
    except KeyboardInterrupt as error:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            raise
        # It is a worker's: Gymnasium passes it on. This process has heard the signal, and ends in good order.
        raise Failure(None) from RuntimeError(f"a worker process was interrupted ({error})")
    except FAILURES as error:
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        modules = [str(frame.f_globals.get("__name__")) for frame in frames]
        # The pipe's own error, and none that an environment raises over a connection of its own.
        if isinstance(error, EOFError | ConnectionError) and modules[-1] == multiprocessing.connection.__name__:
            raise Failure(_lost_worker(env)) from RuntimeError("its worker process has ended")
        if any(module.startswith(TOGETHER) for module in modules):
            _refuse_observations(env)
        raise Failure(_index(frames, modules)) from in_words(error)


#: Gymnasium's modules with loops over the environments, and its package that puts together what all have returned.
SYNC, ASYNC, TOGETHER = SyncVectorEnv.__module__, AsyncVectorEnv.__module__, "gymnasium.vector.utils"


def _index(frames: list[FrameType], modules: list[str]) -> int | None:
    """The environment that an exception comes from, by the frames it has passed through, outermost first; None: unknown.

    Gymnasium's loops over the environments have it in a local variable. After a loop that is the last one, whoever's fault
    it is.
    """
    index = None
    for frame, module, following in zip(frames, modules, [*modules[1:], None], strict=True):
        local = frame.f_locals
        if module.startswith(TOGETHER):
            return None
        if module in (SYNC, ASYNC):
            if "index" in local:
                return local["index"]  # a worker said so
            # Without a call, it is the loop of the one that fails, and in the other what puts rewards and flags together.
            inside = following is not None or module == SYNC
            index = next((local[name] for name in ("env_idx", "i") if inside and name in local), None)
        elif index is not None and module != "functools":  # by which Gymnasium chooses how to put them together
            break  # an environment's own frames; it may have a vector inside, too
    return index


def _lost_worker(env: VectorEnv, seconds: float = 1.0) -> int | None:
    """The first worker process of a vector that has ended, or that does within ``seconds``."""
    sentinels = [process.sentinel for process in getattr(env.unwrapped, "processes", ())]
    ended = multiprocessing.connection.wait(sentinels, seconds) if sentinels else []
    return min(map(sentinels.index, ended), default=None)  # pyright: ignore[reportArgumentType]


def _refuse_observations(env: VectorEnv) -> None:
    """Raise `WrongObservation` for the first environment in this process whose observation is not of the vector's space;
    where all are put together, NumPy says neither whose it was, nor what is wrong with it."""
    if not isinstance(vector := env.unwrapped, SyncVectorEnv):
        return
    with contextlib.suppress(ConfigError):  # a wrapper of the vector may make what the networks read of another space
        observations = Observations("", vector.single_observation_space)
        out = observations.empty(vector.num_envs)
        for i, obs in enumerate(vector._env_obs):
            observations.write(obs, out, i)


def autoreset_mode(env: VectorEnv) -> AutoresetMode:
    """What a vector environment declares; raises `ConfigError` where it declares nothing."""
    own = env.unwrapped
    try:
        declared = AutoresetMode(env.metadata["autoreset_mode"])
        # Gymnasium's own write it into the metadata of the environment's class, where the class's next vector does as well.
        shared = isinstance(own, SyncVectorEnv | AsyncVectorEnv) and env.metadata is own.metadata
        return own.autoreset_mode if shared else declared  # pyright: ignore[reportAttributeAccessIssue]
    except (KeyError, TypeError, ValueError):
        raise ConfigError(
            f"{type(env).__name__} does not declare how it resets: set metadata['autoreset_mode'] to a value of "
            f"gymnasium.vector.AutoresetMode"
        ) from None


def close(env: VectorEnv, seconds: float = 5.0) -> None:
    """Close a vector environment; worker processes that do not answer within ``seconds`` are killed."""
    workers = env.unwrapped if isinstance(env.unwrapped, AsyncVectorEnv) else None
    with contextlib.suppress(Exception):  # whatever state it is in
        env.close(**({} if workers is None else {"timeout": seconds}))
    if workers is not None:
        workers.closed = True  # where closing has failed, its destructor would try again
        for process in workers.processes:
            if process.is_alive():
                process.kill()
            process.join(seconds)


# --------------------------------------------------------------------------------------------- what they are


class GymnasiumEnv(HostEnv):
    """Environments with Gymnasium's spaces: what `SingleEnv` and `WholeVector` have in common."""

    def __init__(self, name: str, observation_space: Any, action_space: Any, episode_length: int | None):
        self.name = name
        self.observations = Observations(name, observation_space)
        self.actions = read_actions(name, action_space)
        self.episode_length = episode_length
        self.value_range = value_ranges.of_gymnasium(name.rpartition(":")[2])

    def check_length(self, episode_length: int, shorter: bool = True) -> None:
        """Refuse a time limit that is longer than the environment's own, or, where no environment can be reset by itself,
        shorter; raises `ConfigError`."""
        own = self.episode_length
        if own is not None and (episode_length > own or (episode_length < own and not shorter)):
            how = "lengthened" if shorter else "changed"
            raise ConfigError(f"{self.name}: its time limit is {own} and cannot be {how} from outside")


class SingleEnv(GymnasiumEnv):
    """A function that makes a `gymnasium.Env`; it is called for every environment of a run, and for its evaluation.

    ``takes_length`` says whether it takes the time limit, as ``max_episode_steps``.
    """

    def __init__(self, name: str, make: Callable[..., gymnasium.Env], probe: gymnasium.Env, takes_length: bool = False):
        try:
            super().__init__(name, *_spaces(name, probe), time_limit(probe))
        finally:
            probe.close()
        self._make, self._takes_length = make, takes_length
        #: whether its pictures have a size and a camera that can be chosen
        classes = type(probe.unwrapped).__mro__
        self._has_cameras = any(cls.__module__.startswith("gymnasium.envs.mujoco") for cls in classes)

    def simulator(self, num_envs: int, episode_length: int) -> Simulator:
        if not self._takes_length:
            self.check_length(episode_length)
        make = functools.partial(self._make, max_episode_steps=episode_length) if self._takes_length else self._make
        return Loop(make, self.observations, self.actions, num_envs)

    def drawn(self, height: int, width: int, camera: str | None) -> tuple[Simulator, float | None]:
        options: dict[str, Any] = {"render_mode": "rgb_array"}
        if self._has_cameras:
            options |= {"height": height, "width": width} | ({} if camera is None else {"camera_name": camera})
        elif camera is not None:
            raise ConfigError(f"{self.name} has no cameras to choose from")
        try:
            env = self._make(**options)
        except TypeError as error:
            if "render_mode" not in str(error):
                raise
            raise ConfigError(
                f"{self.made_from or self.name} cannot be drawn: what makes it must accept render_mode=None and pass it on"
            ) from error
        if camera is not None:
            model = env.unwrapped.model  # pyright: ignore[reportAttributeAccessIssue]
            cameras = [model.camera(i).name for i in range(model.ncam)]
            if camera not in cameras:  # MuJoCo would take any word for the free camera
                env.close()
                raise ConfigError(f"{self.name} has no camera {camera!r}; it has {', '.join(cameras) or 'none'}")
        rate = env.metadata.get("render_fps")
        return Loop(lambda: env, self.observations, self.actions, 1), 1 / rate if rate else None


class WholeVector(GymnasiumEnv):
    """A `gymnasium.vector.VectorEnv`, or a function that makes one: for training, and again for evaluation.

    One object is shared: an evaluation ends the episodes of training, which begin anew after it. The object stays open
    after the run, as it belongs to whoever has made it.
    """

    def __init__(self, name: str, make: Callable[[], VectorEnv] | None, probe: VectorEnv):
        self._make, self._only, self.fixed_num_envs = make, probe if make is None else None, probe.num_envs
        self.one_only = make is None
        try:
            autoreset_mode(probe)
            super().__init__(name, *_spaces(name, probe, "single_"), time_limit(probe))
        finally:
            if make is not None:
                close(probe)

    def simulator(self, num_envs: int, episode_length: int) -> Simulator:
        if num_envs != self.fixed_num_envs:
            raise ConfigError(f"{self.name} is a vector of {self.fixed_num_envs} environments: set num_envs to that")
        with unheard():
            env = self._only if self._make is None else self._make()
        assert env is not None
        simulator = VectorSimulator(env, self.observations, self.actions, owned=self._make is not None)
        try:
            self.check_length(episode_length, shorter=simulator.resets_rows)
        except ConfigError:
            simulator.close()
            raise
        return simulator


def _spaces(name: str, env: gymnasium.Env | VectorEnv, prefix: str = "") -> tuple[Any, Any]:
    """What an environment observes and takes; raises `ConfigError` where it does not say."""
    names = [f"{prefix}{what}_space" for what in ("observation", "action")]
    for attribute in names:
        if getattr(env, attribute, None) is None:
            raise ConfigError(f"{name} has no {attribute}: set it in the class or in __init__, as {names[0]} and {names[1]}")
    return getattr(env, names[0]), getattr(env, names[1])


def time_limit(env: gymnasium.Env | VectorEnv) -> int | None:
    """The time limit that an environment is registered or wrapped with, or None."""
    layer: Any = env
    while layer is not None:
        limit = getattr(getattr(layer, "spec", None), "max_episode_steps", None) or getattr(
            layer, "_max_episode_steps", None
        )
        if limit is not None:
            return int(limit)
        layer = vars(layer).get("env")
    inner = env.unwrapped
    if isinstance(inner, SyncVectorEnv):
        return time_limit(inner.envs[0])
    if isinstance(inner, AsyncVectorEnv):
        return getattr(inner.get_attr("spec")[0], "max_episode_steps", None)
    return None


def with_vectors(env: gymnasium.Env, name: str, vector: Callable[[PyTree], Array], size: int) -> gymnasium.Env:
    """``env`` with one vector of ``size`` numbers for its observation: ``vector`` makes it of ours, in a batch of one."""
    observations = Observations(name, env.observation_space)

    def read(obs: Any) -> Array:
        out = observations.empty(1)
        observations.write(obs, out, 0)
        return vector(out)[0]

    space = gymnasium.spaces.Box(-np.inf, np.inf, (size,), np.float32)
    return gymnasium.wrappers.TransformObservation(env, read, space)


def from_object(env: Any, name: str, make: Callable[[], Any] | None) -> HostEnv | None:
    """The `HostEnv` of what ``make`` has made, or of an object that was given; None where it is not Gymnasium's."""
    if isinstance(env, VectorEnv):
        return WholeVector(name, make, env)
    if not isinstance(env, gymnasium.Env):
        return None
    if make is None:
        raise ConfigError(f"{name}: one environment was given, but a run needs many: pass its class, or a function")
    return SingleEnv(name, make, env)


def names() -> list[str]:
    """The tasks that are known to work; `make` takes any registered id."""
    versions: dict[str, int] = {}
    for spec in gymnasium.registry.values():
        if spec.namespace is None and spec.name in value_ranges.GYMNASIUM:
            versions[spec.name] = max(versions.get(spec.name, 0), spec.version or 0)
    return sorted(f"{task}-v{version}" for task, version in versions.items())


def make(name: str) -> HostEnv:
    """A registered environment, by its id; ``gymnasium:package:Id-v0`` imports the package that registers it."""
    create = functools.partial(gymnasium.make, name, disable_env_checker=True)
    try:
        probe = create()
    except gymnasium.error.UnregisteredEnv:
        close_names = difflib.get_close_matches(name, gymnasium.registry, n=3)
        hint = f"; did you mean {' or '.join(close_names)}?" if close_names else ""
        raise ConfigError(f"Gymnasium has no environment {name!r}{hint}") from None
    except FAILURES as error:  # whatever its author's code raises
        text = " ".join(str(error).split())
        raise ConfigError(f"gymnasium:{name} cannot be made: {type(error).__name__}: {text}") from error
    return SingleEnv(f"gymnasium:{name}", create, probe, takes_length=True)
