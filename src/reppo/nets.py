"""The actor and the critic (paper, section 3.3 and its table of architectures).

Every module works on arrays with any leading axes, ``[..., D]``, so that a batch is one matrix product.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp

from reppo import hl_gauss
from reppo.distributions import TanhGaussian
from reppo.types import PyTree

NormKind = Literal["rms", "layer", "none"]

NORM_EPSILON = 1e-6
ZERO_VALUE_LOGITS = 40.0  #: the initial logits are this times the encoding of 0, so that the first values are near zero


def select(observation: PyTree, keys: Sequence[str]) -> jax.Array:
    """The part of an observation that a network sees, ``[..., D]``: the array itself, or the entries ``keys`` joined."""
    if not isinstance(observation, dict):
        return observation
    return jnp.concatenate([observation[key] for key in keys], axis=-1)


class Linear(eqx.Module):
    """``x @ weight + bias``; LeCun-normal weights, zero bias."""

    weight: jax.Array
    bias: jax.Array

    def __init__(self, in_size: int, out_size: int, key: jax.Array):
        self.weight = jax.nn.initializers.lecun_normal()(key, (in_size, out_size))
        self.bias = jnp.zeros(out_size)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x @ self.weight + self.bias


class Norm(eqx.Module):
    """RMSNorm ``g x / rms(x)``, LayerNorm ``g (x - mean) / std + b``, or nothing, over the last axis."""

    gain: jax.Array | None
    shift: jax.Array | None
    kind: NormKind = eqx.field(static=True)

    def __init__(self, size: int, kind: NormKind):
        self.kind = kind
        self.gain = None if kind == "none" else jnp.ones(size)
        self.shift = jnp.zeros(size) if kind == "layer" else None

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.gain is None:
            return x
        if self.shift is None:
            return x * (self.gain * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + NORM_EPSILON))
        x = x - jnp.mean(x, -1, keepdims=True)
        return x * (self.gain * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + NORM_EPSILON)) + self.shift


class Hidden(eqx.Module):
    """Linear, normalisation, SiLU."""

    linear: Linear
    norm: Norm

    def __init__(self, in_size: int, out_size: int, norm: NormKind, key: jax.Array):
        self.linear = Linear(in_size, out_size, key)
        self.norm = Norm(out_size, norm)

    def __call__(self, x: jax.Array) -> jax.Array:
        return jax.nn.silu(self.norm(self.linear(x)))


class MLP(eqx.Module):
    """``layers`` linear maps: ``layers - 1`` hidden ones and a plain linear output."""

    hidden: tuple[Hidden, ...]
    output: Linear

    def __init__(self, in_size: int, width: int, out_size: int, layers: int, norm: NormKind, key: jax.Array):
        keys = jax.random.split(key, layers)
        sizes = [in_size] + [width] * (layers - 1)
        self.hidden = tuple(Hidden(sizes[i], width, norm, keys[i]) for i in range(layers - 1))
        self.output = Linear(sizes[-1], out_size, keys[-1])

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.hidden:
            x = layer(x)
        return self.output(x)


class Actor(eqx.Module):
    """Observations ``[..., D]`` to a tanh-Gaussian over ``A`` actions."""

    mlp: MLP
    min_std: float = eqx.field(static=True)

    def __init__(
        self,
        obs_size: int,
        action_size: int,
        width: int,
        layers: int,
        norm: NormKind,
        *,
        min_std: float = 0.0,
        output_scale: float = 1.0,
        key: jax.Array,
    ):
        mlp = MLP(obs_size, width, 2 * action_size, layers, norm, key)
        self.mlp = eqx.tree_at(lambda m: m.output.weight, mlp, output_scale * mlp.output.weight)
        self.min_std = min_std

    def __call__(self, obs: jax.Array) -> TanhGaussian:
        mean, log_std = jnp.split(self.mlp(obs), 2, axis=-1)
        if self.min_std > 0:
            log_std = jnp.logaddexp(log_std, jnp.log(self.min_std))  # log(exp(log_std) + min_std)
        return TanhGaussian(mean, log_std)


class Critic(eqx.Module):
    """``Q(x, a)`` as a categorical distribution over ``K`` bins, with the auxiliary predictor beside its head.

    The encoder's output is the embedding of ``(x, a)``. It is linear; head and predictor begin with a SiLU.
    With ``num_bins = 1`` the head is a plain scalar, for the ablation without HL-Gauss.
    """

    obs_linear: Linear
    action_weight: jax.Array
    norm: Norm
    encoder: MLP
    head: MLP
    predictor: MLP
    v_min: float = eqx.field(static=True)
    v_max: float = eqx.field(static=True)

    def __init__(
        self,
        obs_size: int,
        action_size: int,
        width: int,
        norm: NormKind,
        num_bins: int,
        v_min: float,
        v_max: float,
        *,
        encoder_layers: int = 2,
        head_layers: int = 2,
        predictor_layers: int = 2,
        key: jax.Array,
    ):
        k_first, k_encoder, k_head, k_predictor = jax.random.split(key, 4)
        first = Linear(obs_size + action_size, width, k_first)
        # One matrix, stored as its two blocks: the observation's share of the first layer is then computed once
        # per state, however many actions are evaluated there.
        self.obs_linear = eqx.tree_at(lambda linear: linear.weight, first, first.weight[:obs_size])
        self.action_weight = first.weight[obs_size:]
        self.norm = Norm(width, norm)
        self.encoder = MLP(width, width, width, encoder_layers - 1, norm, k_encoder)
        self.head = MLP(width, width, num_bins, head_layers, norm, k_head)
        self.predictor = MLP(width, width, width + 1, predictor_layers, norm, k_predictor)
        self.v_min, self.v_max = v_min, v_max

    @property
    def num_bins(self) -> int:
        return self.head.output.bias.shape[0]

    def embed(self, obs: jax.Array, action: jax.Array) -> jax.Array:
        """Embedding of ``(x, a)``, ``[..., H]``; the leading axes of ``obs`` and ``action`` broadcast."""
        first = self.obs_linear(obs) + action @ self.action_weight
        return self.encoder(jax.nn.silu(self.norm(first)))

    def logits(self, embedding: jax.Array) -> jax.Array:
        """Value logits ``[..., K]`` of an embedding."""
        logits = self.head(jax.nn.silu(embedding))
        if self.num_bins == 1:
            return logits
        return logits + ZERO_VALUE_LOGITS * hl_gauss.encode(jnp.zeros(()), self.v_min, self.v_max, self.num_bins)

    def value_of_logits(self, logits: jax.Array) -> jax.Array:
        """The value ``[...]``: the mean of the categorical distribution."""
        if self.num_bins == 1:
            return logits[..., 0]
        return hl_gauss.decode(jax.nn.softmax(logits), self.v_min, self.v_max)

    def predict(self, embedding: jax.Array) -> tuple[jax.Array, jax.Array]:
        """From the embedding of ``(x, a)``: the embedding of ``(x', a')``, ``[..., H]``, and the reward, ``[...]``."""
        prediction = self.predictor(jax.nn.silu(embedding))
        return prediction[..., :-1], prediction[..., -1]

    def __call__(self, obs: jax.Array, action: jax.Array) -> jax.Array:
        """``Q(x, a)``, ``[...]``."""
        return self.value_of_logits(self.logits(self.embed(obs, action)))
