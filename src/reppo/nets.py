"""The actor and the critic (paper, section 3.3 and its table of architectures).

Every module works on arrays with any leading axes, ``[..., D]``, so that a batch is one matrix product. Where the
observation is an image, a `reppo.images.ImageEncoder` makes a vector of it first.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from reppo import hl_gauss
from reppo.distributions import ActionDistribution, Categorical, TanhGaussian, pick
from reppo.images import ImageEncoder
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
    activation: ClassVar[str] = "silu"

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
    """Observations ``[..., D]`` to a tanh-Gaussian over ``A`` numbers, or a categorical over ``A`` discrete actions.

    With an image encoder observations are images, and ``obs_size`` is the number of its features.
    """

    mlp: MLP
    image: ImageEncoder | None
    discrete: bool = eqx.field(static=True)
    min_std: float = eqx.field(static=True)

    def __init__(
        self,
        obs_size: int,
        action_size: int,
        width: int,
        layers: int,
        norm: NormKind,
        *,
        discrete: bool = False,
        min_std: float = 0.0,
        output_scale: float = 1.0,
        image: ImageEncoder | None = None,
        key: jax.Array,
    ):
        mlp = MLP(obs_size, width, action_size if discrete else 2 * action_size, layers, norm, key)
        self.mlp = eqx.tree_at(lambda m: m.output.weight, mlp, output_scale * mlp.output.weight)
        self.image = image
        self.discrete = discrete
        self.min_std = min_std

    def __call__(self, obs: jax.Array) -> ActionDistribution:
        output = self.mlp(obs if self.image is None else self.image(obs))
        if self.discrete:
            return Categorical(output)
        mean, log_std = jnp.split(output, 2, axis=-1)
        if self.min_std > 0:
            log_std = jnp.logaddexp(log_std, jnp.log(self.min_std))  # log(exp(log_std) + min_std)
        return TanhGaussian(mean, log_std)


class CriticOutput(NamedTuple):
    """What a critic knows of state and action, leaves ``[..., ]`` over both; a compiled program computes what it uses."""

    embedding: jax.Array  #: of ``(x, a)``, or of ``x`` where actions are discrete, ``[..., H]``
    logits: jax.Array  #: of the value's distribution, ``[..., K]``
    value: jax.Array  #: ``Q(x, a)``, its mean, ``[...]``
    next_embedding: jax.Array  #: prediction of the successor's embedding, ``[..., H]``
    reward: jax.Array  #: prediction of the reward, ``[...]``


class Critic(eqx.Module):
    """``Q(x, a)`` as a categorical distribution over ``K`` bins, with the auxiliary predictor beside its head.

    The encoder's output, the embedding, is linear; head and predictor begin with a SiLU. With ``num_bins = 1`` the value
    is a plain scalar, for the ablation without HL-Gauss. Where observations are images, an image encoder precedes all.
    """

    image: eqx.AbstractVar[ImageEncoder | None]
    num_bins: eqx.AbstractVar[int]
    v_min: eqx.AbstractVar[float]
    v_max: eqx.AbstractVar[float]

    @abc.abstractmethod
    def evaluate(self, obs: jax.Array, action: jax.Array) -> CriticOutput:
        """What it knows of ``(x, a)``; the leading axes of ``obs``, ``[..., D]``, and ``action`` broadcast."""

    def __call__(self, obs: jax.Array, action: jax.Array) -> jax.Array:
        """``Q(x, a)``, ``[...]``."""
        return self.evaluate(obs, action).value

    def features(self, obs: jax.Array) -> jax.Array:
        """The observation as a vector ``[..., D]``."""
        return obs if self.image is None else self.image(obs)

    def initially_zero(self, logits: jax.Array) -> jax.Array:
        """Logits ``[..., K]`` with a constant added, so that the values of a fresh head are near zero."""
        if self.num_bins == 1:
            return logits
        return logits + ZERO_VALUE_LOGITS * hl_gauss.encode(jnp.zeros(()), self.v_min, self.v_max, self.num_bins)

    def value_of_logits(self, logits: jax.Array) -> jax.Array:
        """The value ``[...]``: the mean of the categorical distribution."""
        if self.num_bins == 1:
            return logits[..., 0]
        return hl_gauss.decode(jax.nn.softmax(logits), self.v_min, self.v_max)


class ContinuousCritic(Critic):
    """A critic of actions ``[..., A]``, which are inputs of its encoder beside the observation."""

    obs_linear: Linear
    action_weight: jax.Array
    norm: Norm
    encoder: MLP
    head: MLP
    predictor: MLP
    image: ImageEncoder | None
    num_bins: int = eqx.field(static=True)
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
        image: ImageEncoder | None = None,
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
        self.image = image
        self.num_bins, self.v_min, self.v_max = num_bins, v_min, v_max

    def embed(self, obs: jax.Array, action: jax.Array) -> jax.Array:
        """Embedding of ``(x, a)``, ``[..., H]``; the leading axes of ``obs`` and ``action`` broadcast."""
        first = self.obs_linear(self.features(obs)) + action @ self.action_weight
        return self.encoder(jax.nn.silu(self.norm(first)))

    def evaluate(self, obs: jax.Array, action: jax.Array) -> CriticOutput:
        embedding = self.embed(obs, action)
        features = jax.nn.silu(embedding)
        logits = self.initially_zero(self.head(features))
        prediction = self.predictor(features)
        return CriticOutput(embedding, logits, self.value_of_logits(logits), prediction[..., :-1], prediction[..., -1])


class DiscreteCritic(Critic):
    """A critic of ``A`` discrete actions: its encoder sees the state alone, and its head has a distribution for each.

    However many actions are evaluated at a state, the networks run once there.
    """

    encoder: MLP
    head: MLP
    predictor: MLP
    image: ImageEncoder | None
    num_actions: int = eqx.field(static=True)
    num_bins: int = eqx.field(static=True)
    v_min: float = eqx.field(static=True)
    v_max: float = eqx.field(static=True)

    def __init__(
        self,
        obs_size: int,
        num_actions: int,
        width: int,
        norm: NormKind,
        num_bins: int,
        v_min: float,
        v_max: float,
        *,
        encoder_layers: int = 2,
        head_layers: int = 2,
        predictor_layers: int = 2,
        image: ImageEncoder | None = None,
        key: jax.Array,
    ):
        k_encoder, k_head, k_predictor = jax.random.split(key, 3)
        self.encoder = MLP(obs_size, width, width, encoder_layers, norm, k_encoder)
        self.head = MLP(width, width, num_actions * num_bins, head_layers, norm, k_head)
        self.predictor = MLP(width + num_actions, width, width + 1, predictor_layers, norm, k_predictor)
        self.image = image
        self.num_actions, self.num_bins, self.v_min, self.v_max = num_actions, num_bins, v_min, v_max

    def evaluate(self, obs: jax.Array, action: jax.Array) -> CriticOutput:
        embedding = self.encoder(self.features(obs))
        features = jax.nn.silu(embedding)
        every = self.head(features)
        every = self.initially_zero(every.reshape(*every.shape[:-1], self.num_actions, self.num_bins))
        # From here on there may be several actions for each state.
        action = jnp.broadcast_to(action, jnp.broadcast_shapes(action.shape, embedding.shape[:-1]))
        embedding, features = (jnp.broadcast_to(x, (*action.shape, x.shape[-1])) for x in (embedding, features))
        logits = pick(jnp.swapaxes(every, -1, -2), action[..., None])
        value = pick(self.value_of_logits(every), action)
        one_hot = jax.nn.one_hot(action, self.num_actions)
        prediction = self.predictor(jnp.concatenate([features, one_hot], -1))
        return CriticOutput(embedding, logits, value, prediction[..., :-1], prediction[..., -1])
