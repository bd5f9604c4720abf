"""Gymnasium's spaces: how a simulator's observations become float vectors or images, and what bounds its actions.

An observation becomes what the networks read, an array ``[N, D]``, one flat dict of them, or an image ``[N, ., ., .]``:

    Box of three axes   if it is the whole observation: an image, in its own order of axes; uint8 and bool stay what they are
    other Box           its entries in C order, as one vector
    Discrete            a one-hot vector
    Dict                one vector for each entry; the keys of nested dicts are joined by "/"
    Tuple               its entries one after another, as one vector; of a dict inside, in the order of its keys
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from reppo.errors import ConfigError
from reppo.images import is_image
from reppo.types import PyTree

Array = npt.NDArray[Any]

UNBOUNDED = 1e10  #: an action bound of this magnitude or more bounds nothing

Path = tuple[str | int, ...]


class Part(NamedTuple):
    """One box of an observation space, or one choice: where it lies in an observation, and the shape of its values."""

    path: Path
    shape: tuple[int, ...]
    choices: tuple[int, int] | None = None  #: how many integers there are, and the first of them; None for a box
    image: bool = False  #: whether its values keep their shape
    dtype: np.dtype[Any] = np.dtype(np.float32)  #: of the values as the networks receive them
    bounds: tuple[Array, Array] = (np.zeros((), np.float32), np.ones((), np.float32))  #: of the values ``[*shape]``
    declared: np.dtype[Any] | None = None  #: of a box, by the space

    @property
    def size(self) -> int:
        """Numbers in our vector."""
        return math.prod(self.shape) if self.choices is None else self.choices[0]

    def vectors(self, array: Array) -> Array:
        """Its values ``[..., *shape]`` as vectors ``[..., size]``, or as they are if an image; raises `WrongObservation`
        for an integer that is none of the choices."""
        if self.image:
            return array
        if self.choices is None:
            return array.reshape(*array.shape[: array.ndim - len(self.shape)], self.size)
        number, first = self.choices
        if not ((array >= first) & (array < first + number)).all():
            raise WrongObservation(f"{_place(self.path)} is {array.tolist()}, not in {first} to {first + number - 1}")
        return (array[..., None] - first == np.arange(number)).astype(np.float32)

    def check_pixels(self, array: Array) -> None:
        """Raise `WrongObservation` for an image of bytes or bools whose values are none: a cast would make others of them,
        and of floats from 0 to 1 a black image."""
        if self.dtype.kind == "f" or array.dtype == self.dtype or array.dtype.kind == "b":
            return
        highest = 1 if self.dtype.kind == "b" else 255
        if array.dtype.kind == "f":
            raise WrongObservation(
                f"{_place(self.path)} is {array.dtype}, its space says {self.dtype}: return {self.dtype}, 0 to {highest}, "
                f"or declare a Box of floats"
            )
        if (wrong := array[(array < 0) | (array > highest)]).size:
            raise WrongObservation(
                f"{_place(self.path)} has the number {wrong[0]}, not in 0 to {highest}: return {self.dtype}, or declare "
                f"a Box of floats"
            )


class WrongObservation(ValueError):
    """An observation that is not of its space; ``index`` is the environment's, where it is known."""

    def __init__(self, text: str, index: int | None = None):
        super().__init__(text)
        self.index = index


class Observations:
    """Reads a simulator's observations into float32 vectors or an image, and refuses those that are not of the space.

    Attributes:
        spec: the shapes of one environment's observation, as in `reppo.envs.spec.EnvSpec`.
        channels_first: whether an image's channels are its first axis. A space does not say; the shorter one of the first
            axis and the last is taken for them.
        bounds: the lowest and the highest numbers that the space declares, each with the structure of ``spec``.
    """

    def __init__(self, name: str, space: Any):
        self._entries = _entries(name, space)
        self._dtypes: dict[Path, list[np.dtype[Any]]] = {}  #: of all observations so far; the first one's come first
        shapes = {key: _struct(parts) for key, parts in self._entries.items()}
        self.spec: PyTree = shapes if None not in self._entries else shapes[None]
        self.channels_first: bool = is_image(self.spec) and self.spec.shape[0] < self.spec.shape[-1]
        if not sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(self.spec)):
            raise ConfigError(f"{name}: its observation space is empty: a policy needs at least one number to act on")
        ends = [{key: _side(parts, end) for key, parts in self._entries.items()} for end in (0, 1)]
        self.bounds: tuple[PyTree, PyTree] = (ends[0].get(None, ends[0]), ends[1].get(None, ends[1]))

    def remarks(self) -> list[str]:
        """What is no error, but may not be meant: other kinds of float or integer than the space says, or than before. All
        become float32, or what an image is."""
        found = []
        for part in (part for parts in self._entries.values() for part in parts if part.path in self._dtypes):
            first, *others = self._dtypes[part.path]
            if part.declared is not None and first != part.declared:
                found.append(f"{_place(part.path)} is {first}, its space says {part.declared}")
            if others:
                found.append(f"{_place(part.path)} is {first} at first, and {' and '.join(map(str, others))} later")
        return found

    def empty(self, num_envs: int) -> PyTree:
        """Room for the observations of ``N`` environments, for `write`."""
        return jax.tree.map(lambda x: np.empty((num_envs, *x.shape), x.dtype), self.spec)

    def read(self, obs: Any, num_envs: int) -> PyTree:
        """The observations of ``N`` environments in one batch, leaves ``[N, D]``: copies, in JAX of JAX's, else in NumPy.

        Raises:
            WrongObservation: for another structure, shape, or kind of number.
        """
        vectors = {}
        for key, parts in self._entries.items():
            columns = []
            for part in parts:
                array = self._checked(obs, part, (num_envs, *part.shape))
                # A copy, because a simulator may write its next observations into the same array.
                columns.append(namespace(array).array(part.vectors(array), part.dtype))
            vectors[key] = columns[0] if len(columns) == 1 else namespace(*columns).concatenate(columns, axis=1)
        return vectors.get(None, vectors)

    def write(self, obs: Any, out: PyTree, index: int) -> None:
        """The observation of one environment into row ``index`` of ``out``; raises `WrongObservation` as `read` does."""
        try:
            for key, parts in self._entries.items():
                row = (out if key is None else out[key])[index]
                start = 0
                for part in parts:
                    array = self._checked(obs, part, part.shape)
                    if part.image:
                        row[...] = array
                        break
                    row[start : start + part.size] = part.vectors(array)
                    start += part.size
        except WrongObservation as error:
            error.index = index
            raise

    def _checked(self, obs: Any, part: Part, shape: tuple[int, ...]) -> Array:
        for step in part.path:
            if isinstance(step, str) and (not isinstance(obs, Mapping) or step not in obs):
                raise WrongObservation(f"{_place(part.path)} is missing")
            obs = obs[step]
        array: Any = obs if isinstance(obs, jax.Array) else np.asarray(obs)
        if array.shape != shape:
            raise WrongObservation(f"{_place(part.path)} has shape {list(array.shape)}, not {list(shape)}")
        dtype, seen = array.dtype, self._dtypes.get(part.path)
        if seen is None:
            seen = self._dtypes[part.path] = [dtype]
        elif dtype not in seen:
            if dtype.kind != seen[0].kind:
                raise WrongObservation(f"{_place(part.path)} is {dtype} now; its first one was no such number")
            seen.append(dtype)
        if dtype.kind not in "fiub":
            raise WrongObservation(f"{_place(part.path)} is {dtype}, not numbers")
        if part.image:
            part.check_pixels(array)
        return array


def namespace(*arrays: Any) -> Any:
    """The module whose functions take these arrays: ``jax.numpy`` where one is an array of JAX, else ``numpy``."""
    return jnp if any(isinstance(array, jax.Array) for array in arrays) else np


def _struct(parts: list[Part]) -> jax.ShapeDtypeStruct:
    """Shape and dtype of what becomes of these parts together: one vector, or an image."""
    if len(parts) == 1 and parts[0].image:
        return jax.ShapeDtypeStruct(parts[0].shape, parts[0].dtype)
    return jax.ShapeDtypeStruct((sum(part.size for part in parts),), np.float32)


def _side(parts: list[Part], end: int) -> Array:
    """The lower bounds (``end`` 0) or the upper ones (1) of what becomes of these parts together."""
    if len(parts) == 1 and parts[0].image:
        return parts[0].bounds[end]
    return np.concatenate([np.broadcast_to(part.bounds[end].ravel(), (part.size,)) for part in parts])


def _place(path: Path) -> str:
    return "observation" + "".join(f"[{step!r}]" for step in path)


def _entries(name: str, space: Any) -> dict[str | None, list[Part]]:
    """The parts of every vector of our observation; the key is None where it is an array and no dict."""
    from gymnasium import spaces

    if isinstance(space, spaces.Box) and len(space.shape) == 3:
        dtype = np.dtype(space.dtype if space.dtype in (np.uint8, np.bool_) else np.float32)
        return {None: [Part((), tuple(space.shape), None, True, dtype, _bounds(space, dtype), np.dtype(space.dtype))]}
    if not isinstance(space, spaces.Dict):
        return {None: _parts(name, space, ())}
    entries: dict[str | None, list[Part]] = {}

    def descend(dict_space: Any, path: Path) -> None:
        for key, inner in dict_space.spaces.items():
            if isinstance(inner, spaces.Dict):
                descend(inner, (*path, key))
            else:
                joined = "/".join((*map(str, path), key))
                if joined in entries:
                    raise ConfigError(
                        f"{name}: its observation space has two entries that are {joined!r} where the keys of nested dicts "
                        f"are joined by '/': rename one"
                    )
                entries[joined] = _parts(name, inner, (*path, key))

    descend(space, ())
    return dict(sorted(entries.items(), key=lambda entry: str(entry[0])))


def _parts(name: str, space: Any, path: Path) -> list[Part]:
    """The boxes and choices of one vector, in order."""
    from gymnasium import spaces

    if isinstance(space, spaces.Tuple):
        return [part for i, inner in enumerate(space.spaces) for part in _parts(name, inner, (*path, i))]
    if isinstance(space, spaces.Dict):
        return [part for key in sorted(space.spaces) for part in _parts(name, space.spaces[key], (*path, key))]
    if isinstance(space, spaces.Discrete):
        return [Part(path, (), (int(space.n), int(space.start)))]
    if not isinstance(space, spaces.Box):
        kind = type(space).__name__
        raise ConfigError(
            f"{name}: {_place(path)} is a {kind}; the networks read Box and Discrete, also in Dict and Tuple "
            f"(gymnasium.wrappers.FlattenObservation makes a Box of most others)"
        )
    if space.dtype == np.uint8 and len(space.shape) > 1:
        raise ConfigError(
            f"{name}: {_place(path)} is uint8{list(space.shape)}; the networks read an image with three axes, where it is "
            f"the whole observation"
        )
    return [Part(path, tuple(space.shape), bounds=_bounds(space, np.dtype(np.float32)), declared=np.dtype(space.dtype))]


def _bounds(space: Any, dtype: np.dtype[Any]) -> tuple[Array, Array]:
    """A box's bounds as its values become: infinite where no float32 is as large."""
    with np.errstate(over="ignore"):
        return np.asarray(space.low).astype(dtype), np.asarray(space.high).astype(dtype)


class Actions(NamedTuple):
    """The action space of one environment: ``A`` numbers, or ``A`` discrete actions."""

    low: Array  #: ``[A]``, float32; -inf where there is no bound. Of discrete actions the first, ``[1]``.
    high: Array  #: ``[A]``; inf where there is none. Of discrete actions the last, ``[1]``.
    shape: tuple[int, ...]  #: of the simulator's own actions
    dtype: np.dtype[Any]
    discrete: bool = False
    bounds: tuple[Array, Array] | None = None  #: low and high, ``[A]`` each, in the simulator's own dtype

    @property
    def size(self) -> int:
        return int(self.high[0] - self.low[0]) + 1 if self.discrete else len(self.low)

    def as_taken(self, action: Array) -> Array:
        """Actions ``[N, A]``, or discrete ones ``[N]``, as the simulator takes them: rounding never leaves its bounds. Those
        that are arrays of JAX stay so, in 32 bits."""
        xp = namespace(action)
        taken = action.astype(self.dtype if xp is np else jax.dtypes.canonicalize_dtype(self.dtype), copy=False)
        if self.bounds is not None:
            taken = xp.clip(taken, *self.bounds)
        return taken.reshape(-1, *self.shape)


def read_actions(name: str, space: Any) -> Actions:
    """The actions of a space; raises `ConfigError` for actions that the policy cannot take."""
    from gymnasium import spaces

    if isinstance(space, spaces.Discrete):
        first, last = int(space.start), int(space.start + space.n) - 1
        bounds = (np.array([bound], np.float32) for bound in (first, last))
        return Actions(*bounds, shape=(), dtype=np.dtype(space.dtype), discrete=True)
    if not isinstance(space, spaces.Box):
        raise ConfigError(
            f"{name} has {type(space).__name__} actions; REPPO acts in a Box, a vector of bounded numbers, or in a "
            f"Discrete, one choice of a few"
        )
    if not np.issubdtype(space.dtype, np.floating) or math.prod(space.shape) == 0:
        raise ConfigError(f"{name} has {space.dtype}{list(space.shape)} actions; REPPO acts in a Box of floats")
    with np.errstate(over="ignore"):
        low, high = (np.asarray(bound, np.float32).ravel() for bound in (space.low, space.high))
    low, high = np.where(low <= -UNBOUNDED, -np.inf, low), np.where(high >= UNBOUNDED, np.inf, high)
    bounds = (np.asarray(space.low).ravel(), np.asarray(space.high).ravel())
    return Actions(low.astype(np.float32), high.astype(np.float32), tuple(space.shape), np.dtype(space.dtype), bounds=bounds)
