"""Environments that run outside of JAX, on the host: what they have in common, whatever the simulator.

An adapter is a `HostEnv`, which says what an environment is, and a `Simulator`, which steps ``N`` of them and is the only
place that knows the simulator's reset convention. `HostVectorEnv` makes the `reppo.types.TimeStep` of it: bounds, time
limit, numbers that are not finite, statistics. It is the counterpart of `reppo.envs.autoreset.AutoReset`.
"""

from __future__ import annotations

import abc
from typing import Any, NamedTuple

import jax
import numpy as np
import numpy.typing as npt

from reppo.envs import blame
from reppo.envs.autoreset import LARGEST
from reppo.envs.blame import FAILURES
from reppo.envs.spaces import Actions, Observations, WrongObservation, namespace
from reppo.envs.spec import EnvSpec, check_claims, suggest_keys
from reppo.errors import ConfigError
from reppo.types import PyTree, TimeStep

Array = npt.NDArray[Any]


class SimulatorError(ConfigError):
    """An environment broke its contract or raised an exception; one line with its index and step."""


class Failure(Exception):
    """Raised by a `Simulator` to say which environment its cause comes from."""

    def __init__(self, index: int | None):
        super().__init__(index)
        self.index = index


class WrongNumber(ValueError):
    """A reward or a flag that is no number, or not one for each environment."""


class WrongReturn(ValueError):
    """What an environment's method takes or returns is not what its interface says."""


class RawStep(NamedTuple):
    """One step as a simulator sees it, before it is judged; leaves ``[N, ...]``, observations of the spec's dtype.

    The simulator does not write to these arrays again. All are NumPy's, but for the observations of a simulator that is
    `Simulator.on_device`.
    """

    obs: PyTree  #: what the policy acts on next; the same object as ``next_obs`` where nothing was reset
    next_obs: PyTree  #: the true successor of the action
    reward: Array  #: float ``[N]``
    terminated: Array  #: bool ``[N]``
    truncated: Array  #: bool ``[N]``
    reset: Array | None = None  #: bool ``[N]``: rows that were spent on a reset, and are no step; None: there are none
    success: Array | None = None  #: bool ``[N]``: whether the task is solved in ``next_obs``; None: it does not say


class Simulator(abc.ABC):
    """``N`` running copies of an environment, as their package offers them.

    Attributes:
        num_envs: ``N``.
        resets_rows: whether `reset_rows` works, so that single environments can be reset at any time.
        on_device: whether its observations are arrays of JAX on an accelerator, and actions reach it as such.
    """

    num_envs: int
    resets_rows: bool = True
    on_device: bool = False

    @abc.abstractmethod
    def reset(self, seed: int) -> PyTree:
        """Begin an episode everywhere; returns first observations, leaves ``[N, D]``."""

    @abc.abstractmethod
    def step(self, action: Array) -> RawStep:
        """Step with actions ``[N, A]`` within the bounds, or with discrete ones ``[N]``. Environments whose episode ended
        have been reset by it, or will spend their next row on that."""

    def reset_rows(self, rows: Array) -> PyTree:
        """Begin an episode where ``rows``, bool ``[N]``; returns first observations, leaves ``[N, D]``, of which the
        other rows mean nothing."""
        raise NotImplementedError

    def frame(self) -> Array:
        """A picture of the first environment, uint8 ``[height, width, 3]``; of `HostEnv.drawn` alone."""
        raise NotImplementedError

    @abc.abstractmethod
    def close(self) -> None:
        """End everything that it has started; it may be called twice."""


class HostEnv(abc.ABC):
    """An environment that runs on the host: what it is, and as many running copies as are asked for."""

    name: str
    observations: Observations
    actions: Actions
    episode_length: int | None  #: its own time limit in steps, or None
    value_range: tuple[float, float] | None = None  #: of discounted returns, where it is known
    max_return: float | None = None  #: the best possible episode return, where it is known
    made_from: str | None = None  #: the name that makes this environment again, where it came from a file or a module
    one_only: bool = False  #: whether there is one simulator, which training and evaluation must share
    fixed_num_envs: int | None = None  #: the only ``N`` that it can have, or None
    notes: tuple[str, ...] = ()  #: what its user should know of how it runs on this machine

    def spec(self) -> EnvSpec:
        """Its `EnvSpec`; raises `ConfigError` where it says of itself what cannot be."""
        name, bounds = self.made_from or self.name, None if self.actions.discrete else (self.actions.low, self.actions.high)
        check_claims(name, self.actions.size, bounds, self.episode_length, self.value_range, self.max_return)
        actor_keys, critic_keys = suggest_keys(self.observations.spec)
        return EnvSpec(
            name=name,
            observation=self.observations.spec,
            action_size=self.actions.size,
            action_low=self.actions.low,
            action_high=self.actions.high,
            discrete=self.actions.discrete,
            episode_length=self.episode_length,
            value_range=self.value_range,
            actor_keys=actor_keys,
            critic_keys=critic_keys,
            max_return=self.max_return,
            channels_first=self.observations.channels_first,
        )

    @abc.abstractmethod
    def simulator(self, num_envs: int, episode_length: int) -> Simulator:
        """``N`` running copies, whose own time limit, where they have one that can be set, is ``episode_length``."""

    def for_evaluation(self) -> HostEnv:
        """The environment whose episodes are reported; another one where a suite trains on shorter ones."""
        return self

    def drawn(self, height: int, width: int, camera: str | None) -> tuple[Simulator, float | None]:
        """One running copy whose `Simulator.frame` draws it, and how long a step lasts in seconds, where that is known.

        For `reppo video`; an environment need not have it.
        """
        raise NotImplementedError

    def start(self, spec: EnvSpec, num_envs: int) -> HostVectorEnv:
        """``N`` running copies behind the common contract; ``spec`` is resolved."""
        return HostVectorEnv(self.simulator(num_envs, spec.time_limit), spec)


def as_numbers(name: str, value: Any, shape: tuple[int, ...]) -> Array:
    """A reward or a flag as an environment returned it, ``[N]``, or ``[]`` of a single one; ``name`` says which it is.

    Raises:
        WrongNumber: for another shape, which broadcasting would hide or trip over, or for what is no number.
    """
    array = np.asarray(value)
    if array.shape != shape:
        expected = list(shape) if shape else "a scalar"
        raise WrongNumber(f"step returns {name} with shape {list(array.shape)}; it must be {expected}")
    if array.dtype.kind not in "fiub":
        kind = array.dtype if shape else type(value).__name__
        raise WrongNumber(f"step returns {name} as {kind}; it must be a number, or a bool")
    if array.dtype.kind == "f" and name in ("terminated", "truncated") and not np.isfinite(array).all():
        raise WrongNumber(f"step returns a {name} that is not finite; it must be 0 or 1, or a bool")
    return array


def where_rows(rows: Array, x: PyTree, y: PyTree) -> PyTree:
    """Row-wise select between two pytrees with leaves ``[N, ...]``."""
    return jax.tree.map(lambda a, b: namespace(a, b).where(rows.reshape(-1, *[1] * (a.ndim - 1)), a, b), x, y)


def sound_rows(tree: PyTree, num_envs: int) -> Array | None:
    """Rows of which every number is finite and at most `LARGEST`, bool ``[N]``; None where all are, which is cheaper."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if leaf.dtype.kind == "f"]
    # One pass: a sum of squares that is small enough bounds every number. It is false for NaN.
    if all(namespace(leaf).vdot(leaf, leaf) <= LARGEST**2 for leaf in leaves):
        return None
    rows = np.ones(num_envs, bool)
    for leaf in leaves:
        rows &= np.asarray((abs(leaf) <= LARGEST).reshape(num_envs, -1).all(axis=1))
    return rows


def _refuse_ends_in_resets(raw: RawStep) -> None:
    """A row that was spent on a reset ends nothing. Where it does, the simulator has stepped instead, and every other row
    would be lost, for ever and in silence."""
    if raw.reset is not None and (again := raw.reset & (raw.terminated | raw.truncated)).any():
        raise Failure(int(np.argmax(again))) from WrongReturn(
            "an episode ended in the row after an end, which NEXT_STEP spends on the reset: reset there, with both "
            "flags False, or declare the autoreset mode that it has"
        )


class HostVectorEnv:
    """``N`` host environments with the contract of `TimeStep`, in NumPy.

    Attributes:
        strict: whether an episode that ends in a row that was spent on a reset is an error; `reppo.envs.check` looks on.

    The time limit is kept here as well as in the simulator, because a staggered first episode ends before the simulator's
    own limit: such rows are truncated, with their true successor, and reset. A row whose successor or reward is not finite
    is no transition: it is reported as invalid, its numbers are replaced, and that environment is reset. Where the simulator
    cannot reset single environments (`Simulator.resets_rows`), episodes are neither staggered nor cut, the time limit is the
    simulator's alone, and an environment with such numbers goes on until its own episode ends.
    """

    def __init__(self, simulator: Simulator, spec: EnvSpec):
        self.simulator, self.spec = simulator, spec
        self.num_envs = simulator.num_envs
        # Of discrete actions, only where they begin.
        self._centre = spec.action_low.astype(int) if spec.discrete else (spec.action_low + spec.action_high) / 2
        self._half = 1 if spec.discrete else (spec.action_high - spec.action_low) / 2
        self.strict = True
        self._steps = 0
        self.obs: PyTree = None  #: what the policy acts on next
        self.raw: RawStep | None = None  #: the last step as the simulator returned it, for `reppo.envs.check`
        self._actual: Array | None = None  #: where `obs` is the simulator's, and no stand-in for NaN; None: everywhere
        self._everywhere, self._nowhere = np.ones(self.num_envs, bool), np.zeros(self.num_envs, bool)  #: never written to
        self._whole = np.ones(self.num_envs, bool)  #: whether the episode began at its beginning
        self._elapsed = np.zeros(self.num_envs, np.int64)
        self._return = np.zeros(self.num_envs)
        self._cut, self._chance = 0.0, np.random.default_rng()

    def reset(self, seed: int, stagger: np.random.Generator | None = None, cut: float = 0.0) -> PyTree:
        """Begin an episode everywhere; with ``stagger``, each at a random point of its time limit, so that the
        environments do not end in step. ``cut`` is the chance that an episode is cut, at every step. Returns first
        observations.

        Raises:
            SimulatorError: where the simulator fails, or a first observation is not finite.
        """
        self._steps = 0
        try:
            obs = self.simulator.reset(seed)
        except FAILURES as error:
            raise self._explained(error) from error
        if (sound := sound_rows(obs, self.num_envs)) is not None:
            index = int(np.argmin(sound))
            raise SimulatorError(f"{self.spec.name}: environment {index}: an observation is not finite right after reset")
        self.obs = obs
        self._actual = None
        self._return, self._elapsed = np.zeros(self.num_envs), np.zeros(self.num_envs, np.int64)
        if stagger is not None and self.simulator.resets_rows:
            self._elapsed = stagger.integers(0, self.spec.time_limit, self.num_envs)
        self._whole = self._elapsed == 0
        self._cut, self._chance = cut, np.random.default_rng([seed, 1])
        return obs

    def step(self, action: Array) -> TimeStep:
        """Step every environment with an action ``[N, A]`` in [-1, 1], mapped affinely to the bounds, or with the index of a
        discrete one, ``[N]``.

        Raises:
            SimulatorError: where the simulator fails, or returns what is not of its spaces.
        """
        self._steps += 1
        try:
            raw = self.simulator.step(action * self._half + self._centre)
            if self.strict:
                _refuse_ends_in_resets(raw)
        except FAILURES as error:
            raise self._explained(error) from error
        self.raw = raw
        obs, next_obs, reward = raw.obs, raw.next_obs, raw.reward.astype(np.float32, copy=False)
        terminated, truncated, valid = raw.terminated, raw.truncated & ~raw.terminated, self._everywhere
        sound = sound_rows((next_obs, reward), self.num_envs)
        # Most steps are ordinary in every environment. They skip what would change nothing, as it costs more than the rest.
        ordinary = raw.reset is None and sound is None and self._actual is None
        if not ordinary:
            for rows in (sound, self._actual, None if raw.reset is None else ~raw.reset):
                valid = valid if rows is None else valid & rows
            next_obs = where_rows(valid, next_obs, self.obs)
            reward = np.where(valid, reward, np.float32(0.0))
            terminated, truncated = terminated & valid, truncated & valid
        self._elapsed = self._elapsed + 1
        self._return = self._return + reward
        over = terminated | truncated

        forced = self._nowhere if ordinary else ~valid if raw.reset is None else ~valid & ~raw.reset
        if self.simulator.resets_rows:
            late = self._elapsed >= self.spec.time_limit
            if self._cut:
                late |= self._chance.random(self.num_envs) < self._cut
            if late.any():
                late &= valid & ~over
                truncated, over, forced = truncated | late, over | late, forced | late
        ended = not ordinary or bool(over.any())
        info = {
            "episode_return": self._return,
            "episode_length": self._elapsed,
            "episode_done": over & self._whole if ended else self._nowhere,
            "reset": self._nowhere if raw.reset is None else raw.reset,
        }
        if raw.success is not None:
            info["success"] = raw.success
        self._actual = None
        if obs is not next_obs or (ended and forced.any()):
            obs = self._begin_again(obs, forced)
        self.obs = obs
        if ended:
            rows = over | ~valid
            self._elapsed, self._return = np.where(rows, 0, self._elapsed), np.where(rows, 0.0, self._return)
            # An environment that could not be reset goes on in the middle of its episode.
            self._whole = np.where(forced, self.simulator.resets_rows, self._whole | rows)
        return TimeStep(obs, next_obs, reward, terminated, truncated, valid, info)

    def _begin_again(self, obs: PyTree, forced: Array) -> PyTree:
        """Reset where ``forced``, and keep what is not finite from the policy; returns what it acts on next."""
        if forced.any() and self.simulator.resets_rows:
            try:
                obs = where_rows(forced, self.simulator.reset_rows(forced), obs)
            except FAILURES as error:
                raise self._explained(error) from error
        if (sound := sound_rows(obs, self.num_envs)) is not None:
            obs = where_rows(sound, obs, self.obs)
            self._actual = sound
        return obs

    def close(self) -> None:
        """End the simulator's processes and threads."""
        self.simulator.close()

    def _explained(self, error: BaseException) -> SimulatorError:
        index = error.index if isinstance(error, Failure | WrongObservation) else None
        if isinstance(error, Failure) and error.__cause__ is not None:
            error = error.__cause__
        place = self.spec.name if index is None else f"{self.spec.name}: environment {index}"
        when = f"at step {self._steps:,}" if self._steps else "at its reset"
        if isinstance(error, WrongObservation | WrongNumber | WrongReturn):
            return SimulatorError(f"{place} {when}: {error}")
        text = " ".join(str(error).split())
        what = f"{type(error).__name__}: {text}" if text else type(error).__name__
        where = blame.place(error)
        return SimulatorError(f"{place} {when}: {what}{f' ({where})' if where else ''}")
