"""The algorithm's page, stage by stage: targets, losses, minibatch step, update.

The environment here is made of numbers alone: three that both networks see, and two that only the critic does. Where
samples of the policy would hide the arithmetic, their noise is replaced by numbers of this file's choice.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import TINY, Array, as_gaussian, assert_identical, differ, leaves, log_prob_reference
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from test_returns import scalar_reference

from reppo import distributions, estimators, hl_gauss, normalizer
from reppo.config import Config
from reppo.distributions import TanhGaussian
from reppo.duals import Duals
from reppo.envs.spec import EnvSpec
from reppo.metrics import Series
from reppo.optim import apply_gradients, count_skipped
from reppo.reppo import (
    ActorAverage,
    Batch,
    TrainState,
    actor_loss,
    averaged,
    critic_loss,
    deployed,
    init,
    minibatch_step,
    optimisers,
    policy_kl,
    shuffled_rows,
    summarise,
    targets,
    update,
)
from reppo.types import Rollout

T, N, A, S = 6, 4, 2, 3
B = T * N
CRITIC_KEYS = ("privileged_state", "state")
SIZES = {"privileged_state": 2, "state": 3}
SPEC = EnvSpec(
    name="numbers",
    observation={key: jax.ShapeDtypeStruct((size,), np.float32) for key, size in SIZES.items()},
    action_size=A,
    action_low=-np.ones(A, np.float32),
    action_high=np.ones(A, np.float32),
    episode_length=10,
    value_range=(-5.0, 5.0),
    actor_keys=("state",),
    critic_keys=CRITIC_KEYS,
)
CONFIG = dataclasses.replace(TINY, num_steps=T, num_envs=N, num_minibatches=3, num_epochs=2, target_samples=S, gamma=0.9)
KEY = jax.random.key(7)


# ------------------------------------------------------------------------------------------- a learner and its data


@functools.cache
def start() -> TrainState:
    """A learner that has been somewhere: every parameter moved, values all over the support, statistics of its own."""

    @jax.jit
    def moved(key: jax.Array) -> TrainState:
        state = init(key, CONFIG, SPEC)
        networks = state.critic, state.policy.actor, state.policy.normalizer.mean
        leaves, structure = jax.tree.flatten(networks)
        keys = jax.random.split(key, len(leaves))
        noisy = [x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
        critic, actor, mean = jax.tree.unflatten(structure, noisy)
        critic = eqx.tree_at(lambda c: c.head.output.weight, critic, 30.0 * critic.head.output.weight)
        var = jax.tree.map(lambda x: jnp.exp(x), mean)
        return eqx.tree_at(
            lambda s: (s.critic, s.policy.actor, s.policy.normalizer, s.duals),
            state,
            (critic, actor, normalizer.Normalizer(mean, var, jnp.array(50.0)), Duals(jnp.log(0.3), jnp.log(0.2))),
        )

    return moved(KEY)


def make_rollout(seed: int, terminated: Array, truncated: Array, valid: Array, garbage: float = 0.0) -> Rollout:
    """Random numbers, and ``garbage`` in the rows that are no transitions."""
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> Array:
        numbers = rng.normal(size=(T, N, *shape)).astype(np.float32)
        return np.where(valid.reshape(T, N, *[1] * len(shape)), numbers, np.float32(garbage))

    obs, next_obs = ({key: draw(size) for key, size in SIZES.items()} for _ in range(2))
    flags = terminated & valid, truncated & ~terminated & valid, valid
    return Rollout(*jax.tree.map(jnp.asarray, (obs, draw(A), next_obs, draw(), *flags)))


def pattern(rows: str) -> Array:
    """``[T, N]`` from a string with one word for each step; ``x`` is true."""
    return np.array([[letter == "x" for letter in row] for row in rows.split()])


#: Every way in which a row can end, at the rollout's first and last step and between; rows that are no transitions too.
TERMINATED = pattern("..x. .... x... ..x. .... ..x.")
TRUNCATED = pattern(".... .x.. ...x .... x..x ...x")
INVALID = pattern("...x .... .x.. .x.. .... .x..")
ROLLOUT_FLAGS = TERMINATED, TRUNCATED, ~INVALID
ROLLOUT = make_rollout(0, *ROLLOUT_FLAGS)


def noise(num_samples: int) -> Array:
    return np.linspace(-1.0, 1.5, num_samples, dtype=np.float32) if num_samples > 1 else np.array([0.5], np.float32)


def chosen_sample(self: TanhGaussian, key: jax.Array, shape: tuple[int, ...] = ()) -> jax.Array:
    """In the place of `TanhGaussian.sample`: noise of this file's choice, the same in every row."""
    del key
    z = jnp.asarray(noise(*shape) if shape else 0.5).reshape(*shape, *[1] * self.mean.ndim)
    return self.mean + jnp.exp(self.log_std) * z


@pytest.fixture
def chosen_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs traced under this fixture sample `noise`."""
    monkeypatch.setattr(TanhGaussian, "sample", chosen_sample)


# ------------------------------------------------------------------------------------------- targets


@pytest.fixture(scope="module")
def chosen_targets() -> dict[str, Callable[..., Batch]]:
    """`targets` with `noise`, compiled, for two estimators."""

    def compiled(estimator: Any) -> Callable[..., Batch]:
        config = dataclasses.replace(CONFIG, estimator=estimator)
        program = jax.jit(lambda state, rollout: targets(state, rollout, config, SPEC, KEY))
        return program.lower(start(), ROLLOUT).compile()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TanhGaussian, "sample", chosen_sample)
        return {estimator: compiled(estimator) for estimator in ("pathwise", "score_gae")}


@jax.jit
def networks(state: Any, actor_obs: jax.Array, critic_obs: jax.Array, z: jax.Array) -> tuple[jax.Array, ...]:
    """What the networks say at normalised observations, for the noise ``z``, ``[S]``."""
    policy = state.policy.actor(actor_obs)
    u = policy.mean + jnp.exp(policy.log_std) * z.reshape(-1, 1, 1, 1)
    action = jnp.tanh(u)
    return policy.mean, policy.log_std, state.critic(critic_obs, action), state.critic.embed(critic_obs, action[0])


class SoftValues:
    """Value, entropy and policy at the observations of a rollout, worked out row by row in float64."""

    def __init__(self, state: TrainState, obs: Any):
        stats = leaves(state.policy.normalizer)
        x = {
            key: (np.asarray(obs[key]) - stats[f".mean['{key}']"]) / np.sqrt(stats[f".var['{key}']"] + 1e-5) for key in SIZES
        }
        self.critic_obs = np.concatenate([x["privileged_state"], x["state"]], -1)
        self.actor_obs = x["state"]
        mean, log_std, q, self.embedding = networks(state, *map(jnp.asarray, (self.actor_obs, self.critic_obs, noise(S))))
        self.mean, self.log_std = np.asarray(mean, np.float64), np.asarray(log_std, np.float64)
        self.value = np.asarray(q, np.float64).mean(0)
        self.entropy = np.zeros((T, N))
        for t, n in np.ndindex(T, N):
            samples = [self.log_prob(t, n, self.mean[t, n] + np.exp(self.log_std[t, n]) * z) for z in noise(S)]
            self.entropy[t, n] = -np.mean(samples)

    def log_prob(self, t: int, n: int, u: Array) -> float:
        return float(log_prob_reference(np.asarray(u, np.float64), self.mean[t, n], np.exp(self.log_std[t, n])).sum())


def reference_targets(rollout: Rollout) -> tuple[Array, SoftValues]:
    following = SoftValues(start(), rollout.next_obs)
    terminated, truncated, valid = (np.asarray(x) for x in (rollout.terminated, rollout.truncated, rollout.valid))
    bonus = float(start().duals.alpha) * following.entropy
    expected = scalar_reference(
        np.asarray(rollout.reward), bonus, following.value, terminated, truncated, valid, CONFIG.gamma, CONFIG.lambda_
    )
    return expected, following


flags = arrays(bool, (T, N), elements=st.booleans())


@given(flags, flags, arrays(bool, (T, N), elements=st.sampled_from([True, True, True, False])), st.integers(0, 100))
def test_targets_equal_a_loop_over_scalars(
    chosen_targets: dict[str, Callable[..., Batch]], terminated: Array, truncated: Array, valid: Array, seed: int
) -> None:
    rollout = make_rollout(seed, terminated, truncated, valid, garbage=1e3)
    expected, _ = reference_targets(rollout)
    found = np.asarray(chosen_targets["pathwise"](start(), rollout).target).reshape(T, N)
    np.testing.assert_allclose(found[valid], expected[valid], atol=2e-4)


def test_the_targets_of_these_tests_tell_something() -> None:
    # Values, entropies and rewards are of one size, so that none is lost in the tolerance.
    expected, following = reference_targets(ROLLOUT)
    assert following.value.std() > 0.3
    assert (0.3 * following.entropy).std() > 0.05
    assert np.abs(expected).max() < 20


def test_a_batch_holds_the_rollouts_rows_in_order(chosen_targets: dict[str, Callable[..., Batch]]) -> None:
    batch = chosen_targets["pathwise"](start(), ROLLOUT)
    here, following = SoftValues(start(), ROLLOUT.obs), SoftValues(start(), ROLLOUT.next_obs)
    rows = np.asarray(ROLLOUT.valid).reshape(B)

    def check(found: Any, expected: Any) -> None:
        expected = np.asarray(expected)
        np.testing.assert_allclose(np.asarray(found)[rows], expected.reshape(B, *expected.shape[2:])[rows], atol=2e-5)

    check(batch.actor_obs, here.actor_obs)
    check(batch.critic_obs, here.critic_obs)
    check(batch.sample, ROLLOUT.sample)
    check(batch.reward, ROLLOUT.reward)
    check(batch.continues, ~ROLLOUT.terminated)
    check(as_gaussian(batch.old_policy).mean, here.mean)
    check(as_gaussian(batch.old_policy).log_std, here.log_std)
    check(batch.next_embedding, following.embedding)
    np.testing.assert_array_equal(batch.valid, np.asarray(ROLLOUT.valid, np.float32).reshape(B))
    assert not batch.advantage.any()


def test_soft_advantages_by_the_reference(chosen_targets: dict[str, Callable[..., Batch]]) -> None:
    # A = G - alpha log pi(a) - (V + alpha H), then normalised over the rows that are transitions.
    expected, _ = reference_targets(ROLLOUT)
    here, alpha = SoftValues(start(), ROLLOUT.obs), float(start().duals.alpha)
    for t, n in np.ndindex(T, N):
        bonus = -alpha * here.log_prob(t, n, np.asarray(ROLLOUT.sample)[t, n])
        expected[t, n] += bonus - here.value[t, n] - alpha * here.entropy[t, n]
    valid = np.asarray(ROLLOUT.valid)
    expected = (expected[valid] - expected[valid].mean()) / expected[valid].std()
    found = np.asarray(chosen_targets["score_gae"](start(), ROLLOUT).advantage).reshape(T, N)
    np.testing.assert_allclose(found[valid], expected, atol=2e-4)


def test_every_step_and_every_sample_has_its_own_noise() -> None:
    # With the real sampler: a constant rollout has targets that differ from step to step, and between environments.
    constant = jax.tree.map(lambda x: jnp.broadcast_to(x[:1, :1], x.shape), make_rollout(0, *ROLLOUT_FLAGS))
    off, on = jnp.zeros((T, N), bool), jnp.ones((T, N), bool)
    batch = compiled_targets()(start(), constant._replace(terminated=off, truncated=on, valid=on), KEY)
    assert len(np.unique(batch.target)) == B


@pytest.mark.parametrize("estimator", ["pathwise", "score_gae"])
def test_more_samples_of_an_action_take_the_memory_of_one_step_of_them(estimator: Any) -> None:
    def temporary(samples: int) -> int:
        config = dataclasses.replace(CONFIG, num_steps=64, num_envs=32, target_samples=samples, estimator=estimator)
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct((64, 32, *x.shape[2:]), x.dtype), ROLLOUT)
        compiled = jax.jit(lambda state, rollout: targets(state, rollout, config, SPEC, KEY)).lower(start(), like).compile()
        analysis = compiled.memory_analysis()
        assert analysis is not None
        return analysis.temp_size_in_bytes

    width = max(CONFIG.critic_width, CONFIG.num_bins)
    assert temporary(64) - temporary(2) < 64 * 32 * 64 * width  # bytes: a 64th of all samples' activations, and some of them


@functools.cache
def compiled_targets() -> Callable[..., Batch]:
    return jax.jit(lambda state, rollout, key: targets(state, rollout, CONFIG, SPEC, key))


# ------------------------------------------------------------------------------------------- the critic's loss


def hand_batch(seed: int = 0) -> Batch:
    """Six rows: two terminated, two no transitions."""
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=(6, *shape)), jnp.float32)

    return Batch(
        actor_obs=draw(3),
        critic_obs=draw(5),
        sample=draw(A),
        reward=draw(),
        target=2.0 * draw(),
        advantage=draw(),
        next_embedding=draw(CONFIG.critic_width),
        continues=jnp.array([1.0, 0.0, 1.0, 1.0, 0.0, 1.0]),
        valid=jnp.array([1.0, 1.0, 0.0, 1.0, 0.0, 1.0]),
        old_policy=TanhGaussian(draw(A), -1.0 + 0.1 * draw(A)),
    )


def rows_of(batch: Batch, rows: Any) -> Batch:
    return jax.tree.map(lambda x: x[rows], batch)


def with_garbage(batch: Batch) -> Batch:
    """Other numbers in the rows that are no transitions."""
    other = hand_batch(99)._replace(valid=batch.valid)

    def choose(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.where(batch.valid.reshape(-1, *[1] * (x.ndim - 1)) > 0, x, y)

    return jax.tree.map(choose, batch, other)


AUX_WEIGHT = 0.7


@jax.jit
def critic_gradient(critic: Any, batch: Batch, aux_weight: Any = AUX_WEIGHT) -> Any:
    return jax.value_and_grad(critic_loss, has_aux=True)(critic, batch, aux_weight)


@pytest.mark.parametrize("hl", [True, False], ids=["hl_gauss", "squared_error"])
def test_critic_loss_by_hand(hl: bool) -> None:
    batch = hand_batch()
    critic = start().critic if hl else scalar_critic()
    embedding, logits, value, (next_embedding, reward) = jax.device_get(critic_outputs(critic, batch))
    value_losses, aux_losses = [], []
    for i in np.flatnonzero(batch.valid):
        if hl:
            log_probs = logits[i] - np.log(np.sum(np.exp(logits[i] - logits[i].max()))) - logits[i].max()
            value_losses.append(-np.sum(np.asarray(hl_gauss.encode(batch.target[i], -5.0, 5.0, 21)) * log_probs))
        else:
            value_losses.append((value[i] - batch.target[i]) ** 2)
        squares = [*(next_embedding[i] - np.asarray(batch.next_embedding[i])) ** 2, (reward[i] - batch.reward[i]) ** 2]
        aux_losses.append(np.mean(squares) if batch.continues[i] else 0.0)
    (loss, metrics), _ = critic_gradient(critic, batch)
    np.testing.assert_allclose(loss, np.mean(value_losses) + AUX_WEIGHT * np.mean(aux_losses), rtol=1e-4)
    np.testing.assert_allclose(metrics["critic/loss"], np.mean(value_losses), rtol=1e-4)
    np.testing.assert_allclose(metrics["critic/aux_loss"], np.mean(aux_losses), rtol=1e-4)
    real = np.flatnonzero(batch.valid)
    np.testing.assert_allclose(metrics["critic/value"], value[real].mean(), rtol=1e-4)
    errors = value[real] - np.asarray(batch.target)[real]
    np.testing.assert_allclose(metrics["critic/error"], np.sqrt((errors**2).mean()), rtol=1e-4)
    assert embedding.shape == (6, CONFIG.critic_width)


@functools.cache
def scalar_critic() -> Any:
    return jax.jit(lambda: init(KEY, dataclasses.replace(CONFIG, hl_gauss=False), SPEC).critic)()


@jax.jit
def critic_outputs(critic: Any, batch: Batch) -> Any:
    embedding, logits, value, *prediction = critic.evaluate(batch.critic_obs, jnp.tanh(batch.sample))
    return embedding, logits, value, prediction


def test_rows_that_are_no_transitions_do_not_move_the_critic() -> None:
    batch = hand_batch()
    assert_identical(critic_gradient(start().critic, batch), critic_gradient(start().critic, with_garbage(batch)))
    # Nor do they count: the mean is that of the batch without them.
    (loss, _), grads = critic_gradient(start().critic, batch)
    (alone, _), grads_alone = critic_gradient(start().critic, rows_of(batch, np.flatnonzero(batch.valid)))
    np.testing.assert_allclose(loss, alone, rtol=1e-5)
    for name, value in leaves(grads).items():
        np.testing.assert_allclose(value, leaves(grads_alone)[name], atol=1e-5, err_msg=name)


def test_what_follows_a_terminal_state_is_not_predicted() -> None:
    # The prediction of the next embedding and of the reward is asked for where the episode goes on, and nowhere else.
    batch = hand_batch()
    other = batch._replace(
        next_embedding=jnp.where(batch.continues[:, None] > 0, batch.next_embedding, 9.0),
    )
    assert_identical(critic_gradient(start().critic, batch), critic_gradient(start().critic, other))
    ended = batch._replace(continues=jnp.zeros(6))
    _, grads = critic_gradient(start().critic, ended)
    assert all(not g.any() for g in leaves(grads.predictor).values())


def test_the_weight_of_the_auxiliary_task() -> None:
    batch = hand_batch()
    (without, metrics), grads = critic_gradient(start().critic, batch, 0.0)
    np.testing.assert_allclose(without, metrics["critic/loss"], rtol=1e-6)
    assert all(not g.any() for g in leaves(grads.predictor).values())


# ------------------------------------------------------------------------------------------- the actor's loss


class Table(eqx.Module):
    """An actor with parameters of its own for every row, so that a gradient shows what each row asks for."""

    mean: jax.Array
    log_std: jax.Array

    def __call__(self, obs: jax.Array) -> TanhGaussian:
        del obs
        return TanhGaussian(self.mean, self.log_std)


def parabola(obs: jax.Array, action: jax.Array) -> jax.Array:
    """In the place of a critic: Q = 3 a - a^2 + x, of slope 3 - 2 a."""
    return jnp.sum(3 * action - action**2, -1) + obs[:, 0]


ALPHA, BETA, BOUND = 0.3, 0.2, 0.1
OLD_STD, SHIFT = 0.5, [0.1, 0.5, 0.1, 0.5]  # KL = shift^2 / (2 std^2) = 0.02 and 0.5
MEAN = 0.4


def actor_batch() -> Batch:
    """Rows inside and outside the bound, and one of each that is no transition."""
    return rows_of(hand_batch(), np.arange(4))._replace(
        valid=jnp.array([1.0, 1.0, 0.0, 0.0]),
        old_policy=TanhGaussian(MEAN - jnp.array(SHIFT)[:, None], jnp.full((4, 1), np.log(OLD_STD))),
        sample=jnp.array([[0.2], [-0.3], [0.1], [0.7]]),
    )


@functools.cache
def actor_gradient(config: Config) -> Callable[..., Any]:
    """Value, metrics and gradients of the actor's loss in (actor, duals), with `noise`."""

    @jax.jit
    def gradient(actor: Any, multipliers: Duals, batch: Batch) -> Any:
        def loss(both: tuple[Any, Duals]) -> tuple[jax.Array, Any]:
            return actor_loss(both[0], parabola, both[1], batch, config, KEY)  # pyright: ignore[reportArgumentType]

        return jax.value_and_grad(loss, has_aux=True)((actor, multipliers))

    return gradient


def hand_gradient(**changes: Any) -> Any:
    config = dataclasses.replace(CONFIG, kl_bound=BOUND, **changes)
    actor = Table(jnp.full((4, 1), MEAN), jnp.full((4, 1), np.log(OLD_STD)))
    multipliers = Duals(jnp.log(ALPHA), jnp.log(BETA))
    return actor_gradient(config)(actor, multipliers, actor_batch())


def test_the_sampled_kl_has_noise_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    # Else the gate would be opened and closed by the very noise whose gradient it lets through.
    keys = {}

    def sampled_kl(first: Any, second: Any, key: jax.Array, num_samples: int) -> jax.Array:
        keys["kl"] = key
        return first.kl(second)

    def objective(policy: Any, q: Any, alpha: Any, behaviour: Any, key: jax.Array, num_samples: int) -> jax.Array:
        keys["objective"] = key
        return alpha * policy.mean[:, 0]

    monkeypatch.setattr(distributions, "sampled_kl", sampled_kl)
    monkeypatch.setitem(estimators.ESTIMATORS, "pathwise", objective)
    config = dataclasses.replace(CONFIG, kl_estimator="sampled")
    actor = Table(jnp.full((4, 1), MEAN), jnp.full((4, 1), np.log(OLD_STD)))
    actor_loss(actor, parabola, Duals(jnp.log(ALPHA), jnp.log(BETA)), actor_batch(), config, KEY)  # pyright: ignore
    assert differ(jax.random.key_data(keys["kl"]), jax.random.key_data(keys["objective"]))


Z = 0.5
U = MEAN + OLD_STD * Z
TANH = np.tanh(U)
#: d/d(mean, log std) of alpha log pi(a) - Q(a) at a = tanh(mean + std z): log pi is -z^2/2 - log std - log(1 - tanh^2),
#: and the slope of -log(1 - tanh(u)^2) is 2 tanh(u); that of Q(tanh(u)) is (3 - 2 tanh(u)) (1 - tanh(u)^2).
SLOPE = ALPHA * 2 * TANH - (3 - 2 * TANH) * (1 - TANH**2)
OBJECTIVE = np.array([SLOPE, SLOPE * OLD_STD * Z - ALPHA])


def kl_slope(shift: float) -> Array:
    """d/d(mean, log std) of KL(old || new) where both have one std: shift / std^2, and -shift^2 / std^2."""
    return np.array([shift / OLD_STD**2, -(shift**2) / OLD_STD**2])


@pytest.mark.parametrize(
    ("kl_mode", "inside", "outside"),
    [
        ("gate", OBJECTIVE, BETA * kl_slope(0.5)),
        ("penalty", OBJECTIVE + BETA * kl_slope(0.1), OBJECTIVE + BETA * kl_slope(0.5)),
        ("none", OBJECTIVE, OBJECTIVE),
    ],
)
def test_what_every_state_asks_for(chosen_noise: None, kl_mode: str, inside: Array, outside: Array) -> None:
    (loss, _), (actor, _) = hand_gradient(kl_mode=kl_mode)
    found = np.concatenate([actor.mean, actor.log_std], 1)
    # The mean is over the two transitions, and the other two rows ask for nothing.
    np.testing.assert_allclose(found, np.array([inside, outside, [0, 0], [0, 0]]) / 2, rtol=1e-4, atol=1e-6)

    x = np.asarray(actor_batch().critic_obs[:, 0])
    log_prob = float(log_prob_reference(np.array(U), np.array(MEAN), np.array(OLD_STD)))
    objectives = [ALPHA * log_prob - (3 * TANH - TANH**2 + x[i]) for i in range(2)]
    kls = [0.02, 0.5]
    expected = {
        "gate": objectives[0] + BETA * kls[1],
        "penalty": sum(objectives) + BETA * sum(kls),
        "none": sum(objectives),
    }[kl_mode]
    np.testing.assert_allclose(loss, expected / 2, rtol=1e-4)


def test_the_actors_metrics_by_hand(chosen_noise: None) -> None:
    (loss, metrics), _ = hand_gradient()
    expected = {
        "actor/loss": float(loss),
        "actor/entropy": -float(log_prob_reference(np.array(U), np.array(MEAN), np.array(OLD_STD))),
        "actor/kl": (0.02 + 0.5) / 2,
        "actor/kl_outside": 0.5,
        "actor/std": OLD_STD,
    }
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, err_msg=name)


def test_the_multipliers_are_constants_to_the_actor(chosen_noise: None) -> None:
    for kl_mode in ("gate", "penalty"):
        _, (_, multipliers) = hand_gradient(kl_mode=kl_mode)
        assert (multipliers.log_alpha, multipliers.log_beta) == (0, 0)


def test_the_bound_decides_which_states_are_inside(chosen_noise: None) -> None:
    # KLs of 0.02 and 0.5 against bounds of 0.1, 0.01 and 1.
    for bound, outside in ((0.1, 0.5), (0.01, 1.0), (1.0, 0.0)):
        config = dataclasses.replace(CONFIG, kl_bound=bound)
        actor = Table(jnp.full((4, 1), MEAN), jnp.full((4, 1), np.log(OLD_STD)))
        (_, metrics), _ = actor_gradient(config)(actor, Duals(jnp.log(ALPHA), jnp.log(BETA)), actor_batch())
        assert metrics["actor/kl_outside"] == outside


def test_rows_that_are_no_transitions_do_not_move_the_actor() -> None:
    @jax.jit
    def gradient(actor: Any, batch: Batch) -> Any:
        return jax.value_and_grad(actor_loss, has_aux=True)(actor, start().critic, start().duals, batch, CONFIG, KEY)

    batch = hand_batch()
    assert_identical(gradient(start().policy.actor, batch), gradient(start().policy.actor, with_garbage(batch)))


OLD, NEW = TanhGaussian(jnp.zeros((8, 1)), jnp.zeros((8, 1))), TanhGaussian(jnp.ones((8, 1)), jnp.full((8, 1), np.log(2.0)))


@pytest.mark.parametrize(("kl_direction", "expected"), [("forward", 0.44315), ("reverse", 1.30685)])
def test_kl_direction_and_estimator(kl_direction: Any, expected: float) -> None:
    # The two numbers are worked out in test_distributions.py.
    exact = policy_kl(OLD, NEW, dataclasses.replace(CONFIG, kl_direction=kl_direction), KEY)
    np.testing.assert_allclose(exact, np.full(8, expected), rtol=1e-4)
    few, many = (
        policy_kl(
            OLD, NEW, dataclasses.replace(CONFIG, kl_direction=kl_direction, kl_estimator="sampled", kl_samples=s), KEY
        )
        for s in (2, 20_000)
    )
    assert len(np.unique(few)) == 8, "every state has its own samples"
    np.testing.assert_allclose(many, exact, atol=0.1)
    assert np.abs(few - exact).max() > np.abs(many - exact).max()


# ------------------------------------------------------------------------------------------- one minibatch


@functools.cache
def compiled_step() -> Callable[..., Any]:
    return jax.jit(lambda state, batch, key: minibatch_step(state, batch, key, CONFIG, SPEC))


@functools.cache
def first_step() -> tuple[TrainState, dict[str, jax.Array], Batch]:
    """The state after one minibatch of all rows, its metrics, and the batch."""
    batch = compiled_targets()(start(), ROLLOUT, KEY)
    return *compiled_step()(start(), batch, KEY), batch


def test_the_update_starts_where_the_rollout_policy_is() -> None:
    _, metrics, _ = first_step()
    assert abs(float(metrics["actor/kl"])) < 1e-6
    assert metrics["actor/kl_outside"] == 0


def test_a_step_moves_everything_that_learns() -> None:
    state, metrics, _ = first_step()
    for part in ("critic", "duals", "actor_opt", "critic_opt", "duals_opt"):
        assert differ(getattr(state, part), getattr(start(), part)), part
    assert differ(state.policy.actor, start().policy.actor)
    assert_identical(state.policy.normalizer, start().policy.normalizer)
    assert metrics["train/skipped_updates"] == 0


def test_the_actor_sees_the_new_critic_and_the_old_multipliers() -> None:
    state, metrics, batch = first_step()

    @jax.jit
    def loss(critic: Any, multipliers: Duals) -> jax.Array:
        return actor_loss(start().policy.actor, critic, multipliers, batch, CONFIG, KEY)[0]

    np.testing.assert_allclose(metrics["actor/loss"], loss(state.critic, start().duals), rtol=1e-5)
    assert abs(loss(state.critic, start().duals) - loss(start().critic, start().duals)) > 1e-3
    # The critic's step looks at nothing of the actor.
    _, grads = critic_gradient(start().critic, batch, CONFIG.aux_weight)
    np.testing.assert_allclose(metrics["critic/grad_norm"], global_norm(grads), rtol=1e-4)


def global_norm(grads: Any) -> float:
    return float(np.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in leaves(grads).values())))


def test_the_multipliers_move_against_their_gaps() -> None:
    # Adam's first step is the learning rate, whatever the size of the gradient. KL is below its bound: beta falls.
    state, metrics, _ = first_step()
    rate = CONFIG.dual_learning_rate
    np.testing.assert_allclose(state.duals.log_beta - start().duals.log_beta, -rate, rtol=1e-2)
    below = metrics["actor/entropy"] < CONFIG.target_entropy_per_action * A
    np.testing.assert_allclose(state.duals.log_alpha - start().duals.log_alpha, rate if below else -rate, rtol=1e-2)


def test_beta_does_not_fall_below_its_floor() -> None:
    batch = compiled_targets()(start(), ROLLOUT, KEY)
    config = dataclasses.replace(CONFIG, min_beta=0.25)  # above the 0.2 that it starts from
    state, _ = jax.jit(lambda state, batch, key: minibatch_step(state, batch, key, config, SPEC))(start(), batch, KEY)
    np.testing.assert_allclose(state.duals.beta, 0.25, rtol=1e-6)
    assert_identical(state.duals.log_alpha, first_step()[0].duals.log_alpha)


def test_a_multiplier_that_does_not_learn_does_not_keep_the_other_from_it() -> None:
    """Without a KL constraint the KL has no bound, and may overflow."""
    batch = compiled_targets()(start(), ROLLOUT, KEY)
    far = batch._replace(old_policy=jax.tree.map(lambda x: jnp.full_like(x, 1e20), batch.old_policy))
    config = dataclasses.replace(CONFIG, kl_mode="none")
    state, metrics = jax.jit(lambda state, batch, key: minibatch_step(state, batch, key, config, SPEC))(start(), far, KEY)
    assert not np.isfinite(metrics["actor/kl"])
    assert state.duals.log_alpha != start().duals.log_alpha
    assert_identical(state.duals.log_beta, start().duals.log_beta)


def test_nothing_is_learned_of_no_rows() -> None:
    batch = compiled_targets()(start(), ROLLOUT, KEY)
    state, metrics = compiled_step()(start(), batch._replace(valid=jnp.zeros_like(batch.valid)), KEY)
    assert_identical(state.duals, start().duals)
    assert metrics["train/skipped_updates"] == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite_moves_nothing_and_is_counted(bad: float) -> None:
    network = optimisers(CONFIG).network
    module = {"a": jnp.ones(3), "b": jnp.zeros(2)}
    grads = {"a": jnp.array([1.0, bad, 1.0]), "b": jnp.ones(2)}
    opt_state = network.init(module)
    after, opt_after, norm = apply_gradients(module, grads, opt_state, network)
    assert_identical((after, opt_after), (module, opt_state))
    assert count_skipped(norm, jnp.ones(())) == 1
    after, opt_after, norm = apply_gradients(module, {**grads, "a": jnp.ones(3)}, opt_state, network)
    assert differ(after, module)
    assert differ(opt_after, opt_state)
    np.testing.assert_allclose(norm, np.sqrt(5.0), rtol=1e-6)
    assert count_skipped(norm, jnp.ones(())) == 0


def test_gradients_are_clipped_to_their_norm_over_all_parameters() -> None:
    # Adam divides by the size of the gradient, so the clipping shows in its moments: mu = 0.1 g after one step.
    network = optimisers(CONFIG).network
    module = {"a": jnp.zeros(2), "b": jnp.zeros(2)}
    for scale in (1.0, 100.0):
        grads = {"a": jnp.array([3.0, 0.0]) * scale, "b": jnp.array([0.0, 4.0]) * scale}  # of norm 5
        _, opt_state, _ = apply_gradients(module, grads, network.init(module), network)
        mu = next(v for name, v in leaves(opt_state).items() if name.endswith(".mu"))
        np.testing.assert_allclose(mu, 0.1 * CONFIG.max_grad_norm * np.array([0.6, 0.0, 0.0, 0.8]), rtol=1e-5)


@pytest.mark.parametrize("anneal", [True, False])
def test_annealing_brings_both_learning_rates_to_zero_at_the_end(anneal: bool) -> None:
    # Three iterations of 2 epochs of 3 minibatches: 18 steps. A constant gradient makes Adam's step the learning rate.
    config = dataclasses.replace(
        CONFIG, total_steps=3 * B, anneal_learning_rate=anneal, learning_rate=0.01, dual_learning_rate=0.02
    )
    for optimiser, rate in zip(optimisers(config), (0.01, 0.02), strict=True):
        step = jax.jit(optimiser.update)
        parameters = jnp.zeros(1)
        opt_state = optimiser.init(parameters)
        for i in range(19):
            change, opt_state = step(jnp.ones(1), opt_state)
            expected = rate * (1 - i / 18) if anneal else rate
            np.testing.assert_allclose(change, [-expected], rtol=1e-3, atol=1e-9)


# ------------------------------------------------------------------------------------------- the update


@functools.cache
def compiled_update() -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    return jax.jit(lambda state, rollout, key: update(state, rollout, key, CONFIG, SPEC))


@functools.cache
def updated() -> tuple[TrainState, dict[str, jax.Array]]:
    return compiled_update()(start(), ROLLOUT, KEY)


@pytest.mark.parametrize("garbage", [np.nan, np.inf, 1e30, -3.0])
def test_nothing_in_a_row_that_is_no_transition_reaches_the_update(garbage: float) -> None:
    other = make_rollout(0, *ROLLOUT_FLAGS, garbage=garbage)
    assert_identical(compiled_update()(start(), other, KEY), updated())


def test_a_row_that_is_no_transition_is_harmless_to_networks_without_norms() -> None:
    """Raw zeros are far off where an observation hardly varies, and a network that nothing normalises overflows there."""
    config = dataclasses.replace(CONFIG, norm="none")
    state = init(KEY, config, SPEC)
    far = ROLLOUT._replace(obs=jax.tree.map(lambda x: x * 1e-3 + 1e3, ROLLOUT.obs))
    far = far._replace(next_obs=far.obs)
    statistics = normalizer.update(state.policy.normalizer, far.obs, far.valid)
    state = eqx.tree_at(lambda s: s.policy.normalizer, state, statistics)
    after, metrics = jax.jit(functools.partial(update, config=config, spec=SPEC))(state, far, KEY)
    assert metrics["train/skipped_updates"] == 0
    assert all(np.isfinite(x).all() for x in leaves((after, metrics)).values())


@pytest.mark.parametrize(("kl_mode", "moves"), [("gate", True), ("penalty", True), ("none", False)])
def test_beta_moves_where_it_holds_something(kl_mode: str, moves: bool) -> None:
    """Without a constraint it would rise until it overflowed, and with it the norm that decides about alpha's steps."""
    config = dataclasses.replace(CONFIG, kl_mode=kl_mode)
    after, _ = jax.jit(functools.partial(update, config=config, spec=SPEC))(start(), ROLLOUT, KEY)
    assert (after.duals.log_beta != start().duals.log_beta) == moves
    assert after.duals.log_alpha != start().duals.log_alpha


def test_parameters_and_metrics_are_finite() -> None:
    assert all(np.isfinite(x).all() for x in leaves(updated()).values())


def test_statistics_are_merged_once_after_the_update() -> None:
    expected = normalizer.update(start().policy.normalizer, ROLLOUT.obs, ROLLOUT.valid)
    for name, value in leaves(updated()[0].policy.normalizer).items():
        np.testing.assert_allclose(value, leaves(expected)[name], rtol=1e-5, err_msg=name)


# ------------------------------------------------------------------------------------------- the average


def test_the_average_is_a_mean_first_and_exponential_then() -> None:
    actor = start().policy.actor
    average = ActorAverage(jax.tree.map(lambda x: jnp.full_like(x, 99.0), actor), jnp.zeros((), jnp.int32))
    found = []
    for number in (4.0, 8.0, 12.0, 0.0):
        average = averaged(average, jax.tree.map(functools.partial(jnp.full_like, fill_value=number), actor), 0.6)
        assert len({float(x) for leaf in jax.tree.leaves(average.actor) for x in leaf.ravel()}) == 1
        found.append(float(jax.tree.leaves(average.actor)[0].ravel()[0]))
    # Weights 1, 1/2, then 0.4 where the mean of all would have 1/3 and 1/4.
    np.testing.assert_allclose(found, [4, 6, 0.6 * 6 + 0.4 * 12, 0.6 * 8.4], rtol=1e-6)


def test_learning_does_not_see_the_average_and_deployment_sees_nothing_else() -> None:
    config = dataclasses.replace(CONFIG, actor_average=0.9)
    fresh = ActorAverage(start().policy.actor, jnp.zeros((), jnp.int32))
    state = dataclasses.replace(start(), average=fresh)
    step = jax.jit(lambda state, key: update(state, ROLLOUT, key, config, SPEC)[0])
    first = step(state, KEY)
    second = step(first, jax.random.key(8))
    # Another program: its last bits may differ.
    expected = leaves(updated()[0])
    for name, value in leaves(dataclasses.replace(first, average=None)).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=1e-5, err_msg=name)
    # An iteration counts once, however many optimiser steps it takes.
    middle = jax.tree.map(lambda a, b: (a + b) / 2, first.policy.actor, second.policy.actor)
    for name, value in leaves(deployed(second).policy.actor).items():
        np.testing.assert_allclose(value, leaves(middle)[name], rtol=1e-5, atol=1e-6, err_msg=name)
    assert_identical(dataclasses.replace(deployed(second), policy=second.policy), second)
    assert_identical(deployed(second).policy.normalizer, second.policy.normalizer)


def test_without_an_average_the_newest_actor_is_deployed() -> None:
    assert init(KEY, CONFIG, SPEC).average is None
    assert deployed(start()) is start()


#: One epoch of one minibatch: operation by operation, more would take minutes.
SINGLE = dataclasses.replace(CONFIG, num_epochs=1, num_minibatches=1)


@functools.cache
def interpreted() -> tuple[TrainState, dict[str, jax.Array]]:
    """An update without `jit`, without merging the statistics, and without learning the multipliers."""
    config = dataclasses.replace(SINGLE, normalize_observations=False, learn_alpha=False, learn_beta=False)
    with jax.disable_jit():
        return update(start(), ROLLOUT, KEY, config, SPEC)


def test_what_is_not_learned_stays_as_it_is() -> None:
    state, _ = interpreted()
    assert_identical((state.policy.normalizer, state.duals), (start().policy.normalizer, start().duals))


def test_compiled_equals_interpreted_and_statistics_are_frozen_in_the_update() -> None:
    # Whether the batch is merged afterwards makes no difference to what the networks become.
    state, metrics = jax.jit(lambda s, r, k: update(s, r, k, SINGLE, SPEC))(start(), ROLLOUT, KEY)
    expected_state, expected_metrics = interpreted()
    for name in metrics.keys() - {"actor/alpha", "actor/beta"}:
        np.testing.assert_allclose(metrics[name], expected_metrics[name], rtol=1e-3, atol=1e-5, err_msg=name)
    # Adam's first step is the sign of the gradient, decided by rounding where it is near zero: compare its moments.
    expected = leaves((expected_state.actor_opt, expected_state.critic_opt))
    for name, value in leaves((state.actor_opt, state.critic_opt)).items():
        np.testing.assert_allclose(value, expected[name], atol=1e-5, err_msg=name)


def test_every_epoch_visits_every_row_once_in_another_order() -> None:
    rows = np.asarray(jax.jit(lambda key: shuffled_rows(key, CONFIG))(KEY))
    assert rows.shape == (2 * 3, B // 3)
    first, second = rows[:3].ravel(), rows[3:].ravel()
    for epoch in (first, second):
        assert sorted(epoch) == list(range(B))
    assert (first != second).any()
    assert list(first) != list(range(B))


def test_another_key_is_another_update() -> None:
    assert differ(compiled_update()(start(), ROLLOUT, jax.random.key(8))[0].critic, updated()[0].critic)
    assert_identical(compiled_update()(start(), ROLLOUT, KEY), updated())


# ------------------------------------------------------------------------------------------- metrics


def test_metrics_of_an_iteration_by_hand() -> None:
    # Two epochs of three minibatches. Of the KL, its share outside, entropy and std the last epoch counts; of the rest,
    # the mean over all; of the skipped updates, the sum.
    history = {name: jnp.arange(6.0) for name in ("critic/loss", "actor/kl", "actor/kl_outside", "actor/entropy")}
    history |= {"actor/std": jnp.arange(6.0), "actor/greedy_prob": jnp.arange(6.0)}
    history |= {"train/skipped_updates": jnp.array([0.0, 1.0, 0.0, 2.0, 0.0, 0.0])}
    batch = hand_batch()._replace(
        target=jnp.array([1.0, -2.0, 100.0, 6.0, -100.0, 3.0]), reward=jnp.array([1.0, 2.0, 50.0, 3.0, 50.0, 6.0])
    )
    found = summarise(start(), batch, Series.of(history), CONFIG)
    expected = {
        "critic/loss": 2.5,
        "actor/kl": 4.0,
        "actor/kl_outside": 4.0,
        "actor/entropy": 4.0,
        "actor/std": 4.0,
        "actor/greedy_prob": 4.0,
        "train/skipped_updates": 3.0,
        "actor/alpha": 0.3,
        "actor/beta": 0.2,
        "critic/target": 2.0,
        "critic/target_min": -2.0,
        "critic/target_max": 6.0,
        "critic/target_clipped": 0.25,  # 6 is above 5; the rows that are no transitions do not count
        "train/reward": 3.0,
        "train/invalid_rows": 2.0,
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)
    without_bins = summarise(start(), batch, Series.of(history), dataclasses.replace(CONFIG, hl_gauss=False))
    assert without_bins["critic/target_clipped"] == 0, "a scalar critic has no support"


def test_an_update_reports_every_metric() -> None:
    _, metrics = updated()
    assert all(value.shape == () for value in metrics.values())
    assert {name.partition("/")[0] for name in metrics} == {"actor", "critic", "train"}
    assert metrics["train/invalid_rows"] == (~np.asarray(ROLLOUT.valid)).sum()


# ------------------------------------------------------------------------------------------- who sees what


def test_the_actor_does_not_see_the_privileged_entries() -> None:
    # Not a number of the policy depends on them, not even one that is none.
    blind = {**ROLLOUT.obs, "privileged_state": jnp.full((T, N, 2), jnp.nan)}
    policy = jax.jit(lambda policy, obs: policy(obs))
    assert_identical(policy(start().policy, blind), policy(start().policy, ROLLOUT.obs))


def test_the_critic_sees_the_privileged_entries() -> None:
    seen = compiled_targets()(start(), ROLLOUT, KEY)
    moved = ROLLOUT._replace(next_obs={**ROLLOUT.next_obs, "privileged_state": ROLLOUT.next_obs["privileged_state"] + 1})
    other = compiled_targets()(start(), moved, KEY)
    assert differ(seen.target, other.target)
    assert differ(seen.next_embedding, other.next_embedding)
    assert seen.actor_obs.shape == (B, 3)
    assert seen.critic_obs.shape == (B, 5)
