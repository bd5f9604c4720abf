"""Networks: normalisations by hand, the critic's split first layer, shapes, and values near zero at the start."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reppo.nets import MLP, NORM_EPSILON, Actor, ContinuousCritic, Linear, Norm, NormKind, select

KEY = jax.random.key(0)
NORMS: list[NormKind] = ["rms", "layer", "none"]


# Compiled, because one small program after another takes seconds.


@functools.cache
@eqx.filter_jit
def critic(norm: NormKind = "rms", support: tuple[float, float, int] = (0.0, 150.0, 151)) -> ContinuousCritic:
    v_min, v_max, num_bins = support
    return ContinuousCritic(3, 2, 64, norm, num_bins, v_min, v_max, key=KEY)


@functools.cache
@eqx.filter_jit
def actor(min_std: float = 0.0, output_scale: float = 1.0) -> Actor:
    return Actor(3, 2, 16, 3, "rms", min_std=min_std, output_scale=output_scale, key=KEY)


@eqx.filter_jit
def call(module: Callable[..., Any], *arguments: Any) -> Any:
    return module(*arguments)


def test_norms_by_hand() -> None:
    x = jnp.array([[1.0, 3.0]])
    # rms = sqrt((1 + 9) / 2) = 2.23607; LayerNorm: mean 2, standard deviation 1.
    np.testing.assert_allclose(Norm(2, "rms")(x), [[1 / 2.23607, 3 / 2.23607]], rtol=1e-5)
    np.testing.assert_allclose(Norm(2, "layer")(x), [[-1.0, 1.0]], rtol=1e-5)
    np.testing.assert_array_equal(Norm(2, "none")(x), x)


def test_norms_have_gain_and_shift() -> None:
    rms = eqx.tree_at(lambda n: n.gain, Norm(2, "rms"), jnp.array([2.0, 0.0]))
    np.testing.assert_allclose(rms(jnp.array([3.0, -3.0])), [2.0, 0.0], rtol=1e-5)
    layer = eqx.tree_at(lambda n: (n.gain, n.shift), Norm(2, "layer"), (jnp.array([2.0, 1.0]), jnp.array([5.0, 0.0])))
    np.testing.assert_allclose(layer(jnp.array([3.0, 1.0])), [7.0, -1.0], rtol=1e-5)
    assert Norm(2, "rms")(jnp.zeros(2)).tolist() == [0.0, 0.0]


def test_linear_starts_with_lecun_weights_and_zero_bias() -> None:
    linear = Linear(400, 300, KEY)
    np.testing.assert_allclose(linear.weight.std(), 400**-0.5, rtol=0.02)
    assert not linear.bias.any()
    x = jnp.arange(800.0).reshape(2, 400)
    np.testing.assert_allclose(linear(x), x @ linear.weight, rtol=1e-6)


def test_an_mlp_has_as_many_linear_maps_as_it_says() -> None:
    # Three: two hidden ones with normalisation and SiLU, one plain output.
    mlp = eqx.filter_jit(lambda: MLP(4, 8, 5, 3, "rms", KEY))()
    assert [h.linear.weight.shape for h in mlp.hidden] == [(4, 8), (8, 8)]
    assert mlp.output.weight.shape == (8, 5)
    x = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    h = x
    for layer in mlp.hidden:
        z = h @ np.asarray(layer.linear.weight)
        z = z / np.sqrt((z**2).mean(-1, keepdims=True) + NORM_EPSILON)
        h = z / (1 + np.exp(-z))
    np.testing.assert_allclose(call(mlp, x), h @ np.asarray(mlp.output.weight), atol=1e-5)


OBS, ACTION = (np.random.default_rng(0).normal(size=(100, size)).astype(np.float32) for size in (3, 2))


@pytest.mark.parametrize("norm", NORMS)
def test_the_critics_split_first_layer_is_one_matrix_on_the_joined_input(norm: NormKind) -> None:
    @eqx.filter_jit
    def joined(c: ContinuousCritic, obs: jax.Array, action: jax.Array) -> jax.Array:
        weight = jnp.concatenate([c.obs_linear.weight, c.action_weight])
        first = jnp.concatenate([obs, action], -1) @ weight + c.obs_linear.bias
        return c.encoder(jax.nn.silu(c.norm(first)))

    c = critic(norm)
    np.testing.assert_allclose(call(c.embed, OBS, ACTION), call(joined, c, OBS, ACTION), atol=1e-5)


def test_the_critics_first_layer_starts_as_one_layer_of_both_inputs() -> None:
    # LeCun: variance 1 / 5 in both blocks, not 1 / 3 and 1 / 2. 128 entries know it to about 6 %.
    c = critic()
    for block in (c.obs_linear.weight, c.action_weight):
        np.testing.assert_allclose(np.std(block), 5**-0.5, rtol=0.15)


def test_many_actions_at_each_state() -> None:
    # obs [B, D] against actions [S, B, A]: every sample as if it were alone.
    actions = np.stack([ACTION, -ACTION, 0 * ACTION])
    values = call(critic(), OBS, actions)
    assert values.shape == (3, 100)
    for s in range(3):
        np.testing.assert_allclose(values[s], call(critic(), OBS, actions[s]), atol=1e-5)


@pytest.mark.parametrize(
    ("norm", "support"),
    [
        ("rms", (0.0, 150.0, 151)),
        ("layer", (0.0, 150.0, 151)),
        ("none", (0.0, 150.0, 151)),
        ("rms", (-10.0, 10.0, 151)),
        ("rms", (-1700.0, 100.0, 151)),
    ],
)
def test_first_values_are_near_zero(norm: NormKind, support: tuple[float, float, int]) -> None:
    values = call(critic(norm, support), OBS, np.tanh(ACTION))
    bin_width = (support[1] - support[0]) / (support[2] - 1)
    assert np.abs(values).max() < 0.5 * bin_width


def test_values_lie_in_the_support_and_gradients_reach_the_action() -> None:
    @eqx.filter_jit
    def value_and_slope(c: ContinuousCritic, obs: jax.Array, action: jax.Array) -> tuple[jax.Array, jax.Array]:
        return c(obs, action), jax.grad(lambda a: jnp.sum(c(obs, a)))(action)

    value, slope = map(np.asarray, call(value_and_slope, critic("rms", (-10.0, 10.0, 151)), 100.0 * OBS, ACTION))
    assert ((value >= -10.0) & (value <= 10.0)).all()
    assert np.isfinite(slope).all()
    assert (slope != 0).all()


def test_a_scalar_critic_is_its_own_output() -> None:
    c = critic("rms", (-10.0, 10.0, 1))
    logits = call(lambda c, o, a: c.evaluate(o, a).logits, c, OBS, ACTION)
    assert logits.shape == (100, 1)
    np.testing.assert_allclose(call(c, OBS, ACTION), logits[:, 0], rtol=1e-5, atol=1e-6)


def test_the_predictor_gives_an_embedding_and_a_reward() -> None:
    _, _, _, embedding, reward = call(lambda c, o, a: c.evaluate(o, a), critic(), OBS, ACTION)
    assert embedding.shape == (100, 64)
    assert reward.shape == (100,)


def test_layers_of_the_papers_architecture() -> None:
    # Encoder 2, head 2 and predictor 2 linear maps (the encoder's first is obs_linear); actor 3, output 2 A.
    c = critic()
    assert (1 + len(c.encoder.hidden) + 1, len(c.head.hidden) + 1, len(c.predictor.hidden) + 1) == (2, 2, 2)
    assert c.num_bins == 151
    assert len(actor().mlp.hidden) + 1 == 3
    assert actor().mlp.output.bias.shape == (4,)


def test_the_actor_gives_a_policy_for_every_state() -> None:
    policy = call(actor(), OBS.reshape(5, 20, 3))
    assert policy.mean.shape == policy.log_std.shape == (5, 20, 2)
    output = call(actor().mlp, OBS).reshape(5, 20, 4)
    np.testing.assert_allclose(policy.mean, output[..., :2], atol=1e-6)
    np.testing.assert_allclose(policy.log_std, output[..., 2:], atol=1e-6)


def test_min_std_is_added() -> None:
    plain, floored = call(actor(), OBS), call(actor(min_std=0.05), OBS)
    np.testing.assert_allclose(np.exp(floored.log_std), np.exp(plain.log_std) + 0.05, rtol=1e-5)
    np.testing.assert_allclose(floored.mean, plain.mean, atol=1e-6)


def test_output_scale_makes_the_first_policy_the_same_everywhere() -> None:
    policy = call(actor(output_scale=0.0), OBS)
    assert not policy.mean.any()
    assert not policy.log_std.any()
    np.testing.assert_allclose(call(actor(output_scale=0.5), OBS).mean, 0.5 * call(actor(), OBS).mean, atol=1e-6)


def test_select_joins_entries_in_the_given_order() -> None:
    obs = {"a": jnp.ones((2, 1)), "b": 2 * jnp.ones((2, 2)), "privileged": 3 * jnp.ones((2, 1))}
    np.testing.assert_array_equal(select(obs, ("b", "a")), [[2, 2, 1], [2, 2, 1]])
    np.testing.assert_array_equal(select(jnp.ones((2, 3)), ()), jnp.ones((2, 3)))
