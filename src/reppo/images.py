"""How networks read images: convolutions that make a vector of ``[height, width, channels]``, or of channels first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from reppo.types import PyTree

ImageEncoderKind = Literal["auto", "nature", "minatar", "flat"]


class Convolution(NamedTuple):
    """One layer of an image encoder: a square kernel, no padding."""

    channels: int
    size: int
    stride: int


#: The convolutions that read an image: those of Mnih et al. (Nature, 2015), of Young & Tian (2019, MinAtar), and none.
IMAGE_ENCODERS: dict[str, tuple[Convolution, ...]] = {
    "nature": (Convolution(32, 8, 4), Convolution(64, 4, 2), Convolution(64, 3, 1)),
    "minatar": (Convolution(16, 3, 1),),
    "flat": (),
}


def is_image(observation: PyTree) -> bool:
    """Whether one environment's observation, an array or its shape without batch axes, is an image: it has three axes."""
    return not isinstance(observation, dict) and len(observation.shape) == 3


def smallest_side(kind: str) -> int:
    """Pixels that the shorter side of an image must have for an image encoder."""
    side = 1
    for layer in reversed(IMAGE_ENCODERS[kind]):
        side = (side - 1) * layer.stride + layer.size
    return side


def pixel_values(image: jax.Array) -> jax.Array:
    """An image's numbers as the networks read them, float32: uint8 in [0, 1], others as they are."""
    values = image.astype(jnp.float32)
    return values / 255 if image.dtype == jnp.uint8 else values


def fits(kind: str, sides: Sequence[int]) -> bool:
    """Whether an image of height and width ``sides`` is large enough for an image encoder."""
    return min(sides) >= smallest_side(kind)


def automatic(sides: Sequence[int]) -> str:
    """The first of `IMAGE_ENCODERS` that an image of height and width ``sides`` is large enough for."""
    return next(kind for kind in IMAGE_ENCODERS if fits(kind, sides))


def windows(image: Any, size: int, stride: int) -> Any:
    """Every window that a convolution sees, ``[B, H, W, C]`` to ``[B, H', W', size * size * C]``; NumPy or JAX arrays.

    A convolution is then one matrix product. XLA's own is 15 times slower on a CPU where its gradient is taken in a loop.
    """
    height, width = ((side - size) // stride + 1 for side in image.shape[1:3])
    shifted = [
        image[:, row : row + stride * (height - 1) + 1 : stride, column : column + stride * (width - 1) + 1 : stride]
        for row in range(size)
        for column in range(size)
    ]
    return image.__array_namespace__().concat(shifted, axis=-1)


class ImageEncoder(eqx.Module):
    """Images ``[..., height, width, channels]``, or channels first, to features ``[..., F]``.

    Convolutions with SiLU, the last one's output as one vector; the normalised layers of the network follow.
    """

    kernels: tuple[jax.Array, ...]  #: ``[size, size, C, C']``; LeCun-normal
    biases: tuple[jax.Array, ...]  #: ``[C']``; zero
    strides: tuple[int, ...] = eqx.field(static=True)
    channels_first: bool = eqx.field(static=True)
    size: int = eqx.field(static=True)  #: ``F``

    def __init__(self, shape: tuple[int, ...], layers: Sequence[Convolution], channels_first: bool, key: jax.Array):
        *sides, channels = (*shape[1:], shape[0]) if channels_first else shape
        kernels: list[jax.Array] = []
        for layer, layer_key in zip(layers, jax.random.split(key, max(len(layers), 1)), strict=False):
            kernel_shape = (layer.size, layer.size, channels, layer.channels)
            kernels.append(jax.nn.initializers.lecun_normal()(layer_key, kernel_shape))
            sides, channels = [(side - layer.size) // layer.stride + 1 for side in sides], layer.channels
        self.kernels, self.biases = tuple(kernels), tuple(jnp.zeros(layer.channels) for layer in layers)
        self.strides, self.channels_first = tuple(layer.stride for layer in layers), channels_first
        self.size = math.prod(sides) * channels

    def __call__(self, image: jax.Array) -> jax.Array:
        leading = image.shape[:-3]
        x = pixel_values(image).reshape(-1, *image.shape[-3:])
        x = jnp.moveaxis(x, 1, -1) if self.channels_first else x
        for kernel, bias, stride in zip(self.kernels, self.biases, self.strides, strict=True):
            x = windows(x, kernel.shape[0], stride) @ kernel.reshape(-1, bias.size) + bias
            x = jax.nn.silu(x)
        return x.reshape(*leading, self.size)
