"""What a learner must know of an environment, and how the configuration completes it."""

from __future__ import annotations

import dataclasses
import math
import reprlib
from typing import Any

import jax
import numpy as np

from reppo.config import LARGEST_COUNT, RunConfig
from reppo.errors import ConfigError
from reppo.images import is_image
from reppo.types import PyTree


@dataclasses.dataclass(frozen=True)
class EnvSpec:
    """Shapes, bounds, time limit and suggested settings of an environment.

    ``observation`` is the pytree of one environment's observation (``ShapeDtypeStruct`` leaves): a vector, a dict of
    vectors, or an image, which has three axes: height, width, channels, or with ``channels_first`` channels, height,
    width. ``actor_keys`` and ``critic_keys`` name the entries of a dict that each network sees. What an environment does
    not say of itself is None, or infinite for a bound; in a spec that `resolve` has completed nothing is.

    Where actions are ``discrete``, ``action_size`` is their number, and an action is an index below it. ``action_low``
    and ``action_high``, ``[1]``, are then the integers that the environment itself has for the first and the last.
    """

    name: str
    observation: PyTree
    action_size: int
    action_low: np.ndarray
    action_high: np.ndarray
    episode_length: int | None
    value_range: tuple[float, float] | None
    actor_keys: tuple[str, ...] = ()
    critic_keys: tuple[str, ...] = ()
    max_return: float | None = None  #: the best possible episode return, where it is known
    discrete: bool = False  #: whether an action is one of a few, rather than a vector of numbers
    channels_first: bool = False  #: the order of an image's axes; no image is ever transposed before the networks read it

    @property
    def action(self) -> jax.ShapeDtypeStruct:
        """One action as a policy gives it: numbers in [-1, 1], or an index."""
        return action_struct(self.action_size, self.discrete)

    @property
    def image(self) -> bool:
        """Whether the observation is an image."""
        return is_image(self.observation)

    @property
    def image_sides(self) -> tuple[int, int]:
        """Height and width of an image."""
        return self.observation.shape[1:] if self.channels_first else self.observation.shape[:2]

    @property
    def time_limit(self) -> int:
        """The episode length of a resolved spec."""
        assert self.episode_length is not None, "an unresolved spec"
        return self.episode_length

    def obs_size(self, keys: tuple[str, ...]) -> int:
        """Numbers that a network with these keys sees."""
        if not isinstance(self.observation, dict):
            return math.prod(self.observation.shape)
        return sum(self.observation[key].shape[0] for key in keys)


def action_struct(action_size: int, discrete: bool) -> jax.ShapeDtypeStruct:
    """Shape and dtype of one action as a policy gives it."""
    return jax.ShapeDtypeStruct((), np.int32) if discrete else jax.ShapeDtypeStruct((action_size,), np.float32)


def suggest_keys(observation: PyTree) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Actor and critic keys of a dict observation.

    An entry named ``privileged_state`` is for the critic alone, beside everything else; other entries are for both, in
    sorted order. MuJoCo Playground's robots and rsl_rl's tasks follow this convention.
    """
    if not isinstance(observation, dict):
        return (), ()
    everything = tuple(sorted(observation))
    return tuple(key for key in everything if not key.startswith("privileged")), everything


def check_observation(name: str, observation: PyTree) -> None:
    """Refuse observations that the networks cannot read: anything but a vector, a dict of vectors, or an image."""
    leaves = observation if isinstance(observation, dict) else {"observation": observation}
    for key, leaf in leaves.items():
        if not hasattr(leaf, "shape"):
            raise ConfigError(
                f"{name}: observation entry {key!r} is a {type(leaf).__name__}; use arrays, or one flat dict of arrays"
            )
        floating = np.issubdtype(leaf.dtype, np.floating)
        if is_image(observation) and (floating or leaf.dtype in (np.uint8, np.bool_)):
            continue
        if len(leaf.shape) != 1 or not floating:
            raise ConfigError(
                f"{name}: observation entry {key!r} is {leaf.dtype}{list(leaf.shape)}; it must be a float vector, or the "
                f"whole observation one image with three axes, of uint8, bool or float"
            )


def check_claims(
    name: str, action_size: Any, bounds: tuple[Any, Any] | None, episode_length: Any, value_range: Any, max_return: Any
) -> None:
    """Refuse what no environment can say of itself, before anything is made of it; ``bounds`` is None where actions are
    discrete, and infinite where there is no bound."""

    def refuse(attribute: str, must: str, value: Any) -> ConfigError:
        return ConfigError(f"{name}: {attribute} must be {must}, got {reprlib.repr(value)}")

    if not _is_count(action_size):
        raise refuse("action_size", "a positive whole number", action_size)
    if episode_length is not None and not _is_count(episode_length):
        raise refuse("episode_length", f"a positive whole number of at most {LARGEST_COUNT:,}", episode_length)
    if bounds is not None:
        for attribute, bound in zip(("action_low", "action_high"), bounds, strict=True):
            if (array := _numbers(bound)) is None or np.isnan(array).any() or array.shape not in ((), (1,), (action_size,)):
                raise refuse(attribute, f"a number, or {action_size} of them, as action_size says", bound)
        low, high = (np.broadcast_to(np.asarray(bound, float), (action_size,)) for bound in bounds)
        if not (low < high).all():
            i = int(np.argmin(low < high))
            raise ConfigError(
                f"{name}: action {i} is bounded by [{low[i]:g}, {high[i]:g}]; each action_low must be below its action_high"
            )
    if value_range is not None:
        ends = _numbers(value_range)
        if ends is None or ends.shape != (2,) or not np.isfinite(ends).all() or not ends[0] < ends[1]:
            raise refuse("value_range", "two finite numbers, the smaller first, or None", value_range)
    if max_return is not None and ((best := _numbers(max_return)) is None or best.shape or not np.isfinite(best)):
        raise refuse("max_return", "a finite number, or None", max_return)


def _is_count(value: Any) -> bool:
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    return whole and 0 < int(value) <= LARGEST_COUNT


def _numbers(value: Any) -> np.ndarray | None:
    """As an array; None where it holds anything but numbers, or is ragged."""
    try:
        array = np.asarray(value)
    except (ValueError, TypeError):
        return None
    return array if array.dtype.kind in "fiu" else None


def resolve(spec: EnvSpec, config: RunConfig) -> EnvSpec:
    """The spec with the configuration's choices in it; raises `ConfigError` where neither decides."""
    check_observation(spec.name, spec.observation)
    actor_keys, critic_keys = config.actor_obs or spec.actor_keys, config.critic_obs or spec.critic_keys
    if isinstance(spec.observation, dict):
        for key in actor_keys + critic_keys:
            if key not in spec.observation:
                raise ConfigError(
                    f"{spec.name} has no observation entry {key!r}; it has {', '.join(sorted(spec.observation))}"
                )
        if not actor_keys:
            raise ConfigError(
                f"{spec.name}: all observation entries begin with `privileged`, which are the critic's alone "
                f"({', '.join(sorted(spec.observation))}): choose the actor's with --actor-obs"
            )
    elif config.actor_obs or config.critic_obs:
        raise ConfigError(
            f"{spec.name}: actor_obs and critic_obs choose among the entries of a dict observation; this one is an array"
        )
    suggested = spec.value_range or (None, None)
    v_min = config.v_min if config.v_min is not None else suggested[0]
    v_max = config.v_max if config.v_max is not None else suggested[1]
    if v_min is None or v_max is None:
        raise ConfigError(
            f"{spec.name} does not say what its returns are like: set --v-min and --v-max, the smallest and largest "
            f"discounted return (`reppo check-env` proposes them; docs/environments.md#the-value-range)"
        )
    if not v_min < v_max:
        raise ConfigError(f"{spec.name}: v_min must be below v_max, got [{v_min}, {v_max}]")
    action_low, action_high = resolve_bounds(spec, config)
    if config.episode_length is None and spec.episode_length is None:
        raise ConfigError(f"{spec.name} has no time limit: set --episode-length, the steps after which an episode is cut")
    return dataclasses.replace(
        spec,
        action_low=action_low,
        action_high=action_high,
        actor_keys=actor_keys,
        critic_keys=critic_keys,
        value_range=(float(v_min), float(v_max)),
        episode_length=config.episode_length or spec.episode_length,
    )


def resolve_bounds(spec: EnvSpec, config: RunConfig) -> tuple[np.ndarray, np.ndarray]:
    """Bounds of the actions, ``[A]`` each: the environment's, and the configuration's where it has none."""
    low, high = spec.action_low, spec.action_high
    if spec.discrete:
        if config.action_low is not None:
            raise ConfigError(f"{spec.name} has discrete actions; action_low and action_high are for actions without bounds")
        return low, high
    unbounded = ~(np.isfinite(low) & np.isfinite(high))
    if not unbounded.any():
        if config.action_low is not None:
            raise ConfigError(f"{spec.name} bounds its own actions; action_low and action_high are for those without bounds")
        return low, high
    if config.action_low is None or config.action_high is None:
        index = int(np.argmax(unbounded))
        raise ConfigError(
            f"{spec.name}: action {index} is bounded by [{low[index]:g}, {high[index]:g}]; choose bounds with action_low "
            f"and action_high, which hold for every action that has none"
        )
    low = np.where(np.isfinite(low), low, np.float32(config.action_low))
    high = np.where(np.isfinite(high), high, np.float32(config.action_high))
    if not (low < high).all():
        raise ConfigError(f"{spec.name}: action_low must be below action_high")
    return low, high


def shape_of(tree: PyTree) -> PyTree:
    """The pytree of shapes and dtypes."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
