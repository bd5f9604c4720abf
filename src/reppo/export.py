"""Saved policies: one ``.npz`` file, read back with NumPy alone.

No pickle is involved: the file holds plain arrays and one JSON string, and is opened with ``allow_pickle=False``.
"""

from __future__ import annotations

import json
import math
import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from reppo.envs.spec import EnvSpec
from reppo.errors import ConfigError
from reppo.files import replacing
from reppo.images import windows
from reppo.nets import NORM_EPSILON
from reppo.normalizer import EPSILON

FORMAT = "reppo-policy-1"

#: What NumPy, zipfile, json and our own reading raise for a file that is something else, or has been altered.
UNREADABLE = (
    ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError, NotImplementedError, OSError, EOFError,
    zipfile.BadZipFile, zlib.error, struct.error,
)  # fmt: skip


def save_policy(path: Path, policy: Any, spec: EnvSpec) -> None:
    """Write a policy as one file, atomically: a `reppo.reppo.Policy`, or a baseline's of the same parts.

    One whose actor has an output for every action, and no standard deviation, is deterministic: it is saved as a Gaussian
    without width.
    """
    keys = spec.actor_keys or ("",)
    layers = [*policy.actor.mlp.hidden, policy.actor.mlp.output]
    arrays: dict[str, np.ndarray] = {"action_low": spec.action_low, "action_high": spec.action_high}
    image = None
    if spec.image:
        encoder = policy.actor.image
        image = {
            "shape": list(spec.observation.shape),
            "dtype": str(spec.observation.dtype),
            "channels_first": encoder.channels_first,
            "strides": list(encoder.strides),
        }
        for i, (kernel, bias) in enumerate(zip(encoder.kernels, encoder.biases, strict=True)):
            arrays[f"image_kernel{i}"], arrays[f"image_bias{i}"] = np.asarray(kernel), np.asarray(bias)
    else:
        for name, statistic in (("mean", policy.normalizer.mean), ("var", policy.normalizer.var)):
            arrays[name] = np.concatenate([np.asarray(statistic[k] if k else statistic) for k in keys])
    for i, layer in enumerate(layers):
        linear, norm = (layer.linear, layer.norm) if hasattr(layer, "linear") else (layer, None)
        arrays[f"weight{i}"], arrays[f"bias{i}"] = np.asarray(linear.weight), np.asarray(linear.bias)
        if norm is not None and norm.gain is not None:
            arrays[f"gain{i}"] = np.asarray(norm.gain)
        if norm is not None and norm.shift is not None:
            arrays[f"shift{i}"] = np.asarray(norm.shift)
    if not spec.discrete and layers[-1].bias.size == spec.action_size:
        last = len(layers) - 1
        weight, bias = arrays[f"weight{last}"], arrays[f"bias{last}"]
        arrays[f"weight{last}"] = np.concatenate([weight, np.zeros_like(weight)], 1)
        arrays[f"bias{last}"] = np.concatenate([bias, np.full_like(bias, -np.inf)])  # log of a standard deviation of 0
    meta = {
        "format": FORMAT,
        "env": spec.name,
        "obs_keys": list(spec.actor_keys),
        "obs_sizes": [spec.obs_size((k,)) for k in keys],
        "image": image,
        "layers": len(layers),
        "activation": policy.actor.mlp.activation,
        "discrete": spec.discrete,
        "min_std": getattr(policy.actor, "min_std", 0.0),
        "episode_length": spec.episode_length,
    }
    arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    with replacing(path) as file:
        np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]


class ImageFormat(NamedTuple):
    """What the images that a policy reads are like, and how it reads them."""

    shape: tuple[int, ...]  #: ``[height, width, channels]``, or channels first
    dtype: str
    channels_first: bool
    strides: tuple[int, ...]  #: of the convolutions

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> ImageFormat:
        """Raises one of `UNREADABLE` where the values are not those of an image."""
        image = cls(tuple(values["shape"]), values["dtype"], bool(values["channels_first"]), tuple(values["strides"]))
        counts = (*image.shape, *image.strides)
        if len(image.shape) != 3 or not all(type(count) is int and count > 0 for count in counts):
            raise ValueError(f"an image of {counts}")
        return image


class SavedPolicy:
    """A trained policy as a function of NumPy observations: no JAX, no environment, safe to ship to a robot.

    ``policy(obs)`` is the greedy action within the environment's bounds, or its integer where actions are discrete.
    ``obs`` is an array ``[..., D]``, or, for a policy trained on dict observations, a dict with at least the entries
    `obs_keys`, or images as the environment gives them, `image`.
    """

    def __init__(self, arrays: dict[str, np.ndarray]):
        meta = json.loads(arrays["meta"].tobytes())
        if meta.get("format") != FORMAT:
            raise ConfigError(f"its format is {meta.get('format')!r}, not {FORMAT!r}")
        self.env: str = meta["env"]
        self.obs_keys: tuple[str, ...] = tuple(meta["obs_keys"])
        self.obs_sizes: tuple[int, ...] = tuple(meta["obs_sizes"])  #: of the entries, or of the array
        self.obs_size: int = sum(self.obs_sizes)
        image = meta.get("image")
        self.image = ImageFormat.from_json(image) if image is not None else None  #: None where it reads vectors
        self.discrete: bool = meta.get("discrete", False)
        self.min_std: float = meta["min_std"]
        self.activation: str = meta.get("activation", "silu")
        self.episode_length: int | None = meta.get("episode_length")  #: time limit of the training
        self.layers: int = meta["layers"]  #: linear ones
        self.arrays = arrays  #: those of decision 0004
        if self.activation not in ("silu", "relu"):
            raise ConfigError(f"its activation is {self.activation!r}, which this version does not know")
        for name, shape in self._shapes().items():
            if arrays[name].dtype != np.float32 or arrays[name].shape != shape:
                raise ConfigError(f"its {name} is {arrays[name].dtype}{list(arrays[name].shape)}, not float32{list(shape)}")

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape that every array has if the file is whole."""
        inputs, shapes = self._input_shapes()
        sizes = [inputs, *(len(self.arrays[f"bias{i}"]) for i in range(self.layers))]
        for i, size in enumerate(sizes[1:]):
            shapes |= {f"weight{i}": (sizes[i], size), f"bias{i}": (size,)}
            shapes |= {name: (size,) for name in (f"gain{i}", f"shift{i}") if name in self.arrays}
        bounds = (1,) if self.discrete else (sizes[-1] // 2,)
        return {**shapes, "action_low": bounds, "action_high": bounds}

    def _input_shapes(self) -> tuple[int, dict[str, tuple[int, ...]]]:
        """How many numbers the first layer reads, and the shapes of the arrays before it."""
        if self.image is None:
            return self.obs_size, {"mean": (self.obs_size,), "var": (self.obs_size,)}
        shape, shapes = self.image.shape, {}
        *sides, channels = (*shape[1:], shape[0]) if self.image.channels_first else shape
        for i, stride in enumerate(self.image.strides):
            size, out = self.arrays[f"image_kernel{i}"].shape[0], len(self.arrays[f"image_bias{i}"])
            shapes |= {f"image_kernel{i}": (size, size, channels, out), f"image_bias{i}": (out,)}
            sides, channels = [(side - size) // stride + 1 for side in sides], out
        return math.prod(sides) * channels, shapes

    @property
    def action_size(self) -> int:
        """Numbers of an action, or how many discrete actions there are."""
        outputs = len(self.arrays[f"bias{self.layers - 1}"])
        return outputs if self.discrete else outputs // 2

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Bounds of the actions, ``[A]`` each; of discrete ones the first and the last, ``[1]`` each."""
        return self.arrays["action_low"], self.arrays["action_high"]

    def __call__(self, obs: np.ndarray | dict[str, np.ndarray]) -> np.ndarray:
        """Greedy action in the environment's own units: float32 ``[..., A]``, or integers ``[...]`` if discrete."""
        return self._to_environment(self.greedy(self._checked(obs)))

    def sample(self, obs: np.ndarray | dict[str, np.ndarray], rng: np.random.Generator) -> np.ndarray:
        """A sampled action, like that of `__call__`."""
        obs = self._checked(obs)
        if self.discrete:
            logits = self.logits(obs)
            # The largest of the logits with Gumbel noise is a draw from their categorical distribution.
            return self._to_environment(np.argmax(logits + rng.gumbel(size=logits.shape), -1))
        mean, std = self.gaussian(obs)
        return self._to_environment(np.tanh(mean + std * rng.standard_normal(mean.shape, np.float32)))

    def greedy(self, obs: Any) -> Any:
        """Greedy action as a vector environment takes it, in [-1, 1] or an index, for NumPy or JAX arrays (it can be
        traced)."""
        output = self.logits(obs) if self.discrete else self.gaussian(obs)[0]
        xp = output.__array_namespace__()
        return xp.argmax(output, axis=-1) if self.discrete else xp.tanh(output)

    def logits(self, obs: Any) -> Any:
        """Logits of the discrete actions, ``[..., A]``; NumPy or JAX arrays."""
        return self._network(obs)

    def gaussian(self, obs: Any) -> tuple[Any, Any]:
        """Mean and standard deviation of the Gaussian before the tanh, ``[..., A]`` each; NumPy or JAX arrays."""
        x = self._network(obs)
        half = x.shape[-1] // 2
        return x[..., :half], x.__array_namespace__().exp(x[..., half:]) + self.min_std

    def _network(self, obs: Any) -> Any:
        x = obs if not isinstance(obs, dict) else [obs[key] for key in self.obs_keys]
        xp = (x[0] if isinstance(x, list) else x).__array_namespace__()
        x = xp.concat(x, axis=-1) if isinstance(x, list) else x
        a = self.arrays
        x = self._features(x) if self.image is not None else (x - a["mean"]) / xp.sqrt(a["var"] + EPSILON)
        for i in range(self.layers - 1):
            x = x @ a[f"weight{i}"] + a[f"bias{i}"]
            if f"gain{i}" in a:
                if f"shift{i}" in a:
                    x = x - xp.mean(x, axis=-1, keepdims=True)
                x = x * a[f"gain{i}"] / xp.sqrt(xp.mean(x**2, axis=-1, keepdims=True) + NORM_EPSILON)
                x = x + a.get(f"shift{i}", 0.0)
            x = x * (x > 0) if self.activation == "relu" else _silu(x)
        return x @ a[f"weight{self.layers - 1}"] + a[f"bias{self.layers - 1}"]

    def _features(self, image: Any) -> Any:
        """What `reppo.images.ImageEncoder` makes of images; NumPy or JAX arrays."""
        assert self.image is not None
        xp, leading = image.__array_namespace__(), image.shape[:-3]
        x = image.astype(np.float32).reshape(-1, *image.shape[-3:]) / np.float32(255 if image.dtype == np.uint8 else 1)
        x = xp.moveaxis(x, 1, -1) if self.image.channels_first else x
        for i, stride in enumerate(self.image.strides):
            kernel, bias = self.arrays[f"image_kernel{i}"], self.arrays[f"image_bias{i}"]
            x = windows(x, kernel.shape[0], stride) @ kernel.reshape(-1, bias.size) + bias
            x = _silu(x)
        return x.reshape(*leading, -1)

    def _checked(self, obs: np.ndarray | dict[str, np.ndarray]) -> np.ndarray | dict[str, np.ndarray]:
        if self.obs_keys:
            if not isinstance(obs, dict) or any(key not in obs for key in self.obs_keys):
                raise ValueError(f"this policy reads a dict observation with the entries {', '.join(self.obs_keys)}")
            return {key: self._entry(key, size, obs[key]) for key, size in zip(self.obs_keys, self.obs_sizes, strict=True)}
        if self.image is not None:
            image = np.asarray(obs)
            if image.shape[-3:] != self.image.shape or (image.dtype == np.uint8) != (self.image.dtype == "uint8"):
                expected = f"{self.image.dtype} images [..., {', '.join(map(str, self.image.shape))}]"
                raise ValueError(f"this policy reads {expected}, got {image.dtype}{list(image.shape)}")
            return image
        vector = np.asarray(obs, np.float32)
        if vector.ndim == 0 or vector.shape[-1] != self.obs_size:
            raise ValueError(f"this policy reads observations [..., {self.obs_size}], got {list(vector.shape)}")
        return vector

    @staticmethod
    def _entry(key: str, size: int, values: Any) -> np.ndarray:
        """An entry of a dict as ``[..., size]``; a single number may come without an axis of its own."""
        entry = np.asarray(values, np.float32)
        if size == 1 and (entry.ndim == 0 or entry.shape[-1] != 1):
            return entry[..., None]
        if entry.ndim == 0 or entry.shape[-1] != size:
            raise ValueError(f"this policy reads {size} numbers in {key}, got {list(entry.shape)}")
        return entry

    def _to_environment(self, action: np.ndarray) -> np.ndarray:
        low, high = self.bounds
        if self.discrete:
            return action + int(low[0])
        # Rounding would leave the bounds by a last digit, and Gymnasium's spaces refuse that.
        return np.clip((low + (action + 1) / 2 * (high - low)).astype(np.float32), low, high)


def _silu(x: Any) -> Any:
    """``x * sigmoid(x)``, without overflow."""
    return x * 0.5 * (1 + x.__array_namespace__().tanh(0.5 * x))


def load_policy(path: str | os.PathLike[str]) -> SavedPolicy:
    """A saved policy: the ``.npz`` file, or a run directory that holds one.

    Raises:
        ConfigError: where there is no policy, or the file is damaged or something else.
    """
    path = Path(path)
    if path.is_dir():
        found = sorted(path.glob("policy*.npz"), key=lambda file: (len(file.name), file.name))
        if not found:
            raise ConfigError(f"{path} holds no policy (policy.npz); has the run reached its first evaluation?")
        if len(found) > 1 and found[0].name != "policy.npz":
            names = ", ".join(file.name for file in found)
            raise ConfigError(f"{path} holds {len(found)} policies, {names}: name one of them")
        path = found[0]
    if not path.is_file():
        raise ConfigError(f"no policy at {path}")
    try:
        with np.load(path, allow_pickle=False) as file:
            return SavedPolicy({name: file[name] for name in file.files})
    except ConfigError as error:
        raise ConfigError(f"{path} is not a policy of this program: {error}") from None
    except UNREADABLE as error:
        raise ConfigError(f"{path} is not a policy of this program, or is damaged ({type(error).__name__})") from error
