r"""Relative Entropy Pathwise Policy Optimization (ICLR 2026, arXiv 2507.11019), one iteration, in order.

1. roll out                          -> `reppo.rollout`
2. `targets`, once, with the frozen policy and critic
3. `update`: epochs of shuffled minibatches, each a step on `critic_loss`, on `actor_loss`, on the duals
4. discard the batch
"""

from __future__ import annotations

import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from reppo import distributions, duals, hl_gauss, images, normalizer, returns
from reppo.config import Config
from reppo.distributions import ActionDistribution
from reppo.duals import Duals
from reppo.envs.spec import EnvSpec
from reppo.errors import ConfigError
from reppo.estimators import ESTIMATORS, Behaviour
from reppo.metrics import Series, masked_mean, masked_means, over_epochs, target_metrics
from reppo.nets import Actor, ContinuousCritic, Critic, DiscreteCritic, select
from reppo.normalizer import Normalizer
from reppo.optim import apply_gradients, count_skipped
from reppo.types import Learner, Metrics, PyTree, Rollout


class Policy(eqx.Module):
    """What acting needs, and nothing else: the normaliser and the actor."""

    normalizer: Normalizer
    actor: Actor
    obs_keys: tuple[str, ...] = eqx.field(static=True)

    def __call__(self, obs: PyTree) -> ActionDistribution:
        return self.actor(select(normalizer.normalize(self.normalizer, obs), self.obs_keys))


class ActorAverage(eqx.Module):
    """Running mean of the actor's weights, to evaluate and to deploy; learning never sees it."""

    actor: Actor
    iterations: jax.Array  #: in it so far


class TrainState(eqx.Module):
    """Everything that learning carries from one iteration to the next."""

    # networks
    policy: Policy
    critic: Critic
    duals: Duals
    average: ActorAverage | None  #: where ``config.actor_average`` asks for it
    # optimisers
    actor_opt: optax.OptState
    critic_opt: optax.OptState
    duals_opt: optax.OptState


class Batch(NamedTuple):
    """A rollout with its targets, flattened to rows ``[B, ...]``. Everything here is a constant to the losses."""

    actor_obs: jax.Array  #: ``[B, D]``, normalised; or images as they are
    critic_obs: jax.Array  #: ``[B, D']``, normalised; or images as they are
    sample: jax.Array  #: what the rollout's policy drew: before the tanh, ``[B, A]``, or a discrete action's index, ``[B]``
    reward: jax.Array  #: ``[B]``
    target: jax.Array  #: soft lambda return ``G``, ``[B]``
    advantage: jax.Array  #: its soft advantage, ``[B]``; zeros unless the estimator asks for it
    next_embedding: jax.Array  #: frozen embedding of ``(x', a')``, ``[B, H]``
    continues: jax.Array  #: ``1 - terminated``, ``[B]``
    valid: jax.Array  #: 1 for a real transition, else 0, ``[B]``
    old_policy: ActionDistribution  #: the rollout policy at ``x``


# --------------------------------------------------------------------------------------------- 2. targets


class SoftValue(NamedTuple):
    value: jax.Array  #: ``V``, ``[...]``
    entropy: jax.Array  #: ``H``, ``[...]``
    embedding: jax.Array  #: of the state and its first sampled action, ``[..., H]``


def soft_value(
    policy: ActionDistribution, critic: Critic, critic_obs: jax.Array, key: jax.Array, num_samples: int
) -> SoftValue:
    r"""Value and entropy at a state: over ``S`` samples of the policy, or exactly, over all of its discrete actions.

    $$ V = E_{a \sim \pi} Q(x, a), \qquad \mathcal H = -E_{a \sim \pi} \log \pi(a | x) $$
    """
    nodes = policy.quadrature(key, num_samples)
    critic_output = critic.evaluate(critic_obs, policy.action(nodes.sample))
    value, entropy = nodes.expectation(critic_output.value), -nodes.expectation(nodes.log_prob)
    return SoftValue(value, entropy, critic_output.embedding[0])


def blank_invalid(rollout: Rollout, statistics: Normalizer) -> Rollout:
    """The rollout with zeros in every row that is no transition, and with mean observations, which are zero to the networks.

    A mask alone would not do: NaN times zero is NaN, and so is what a network makes of an observation that is far off.
    """

    def blank(x: jax.Array, filling: jax.Array | float = 0) -> jax.Array:
        return jnp.where(jnp.expand_dims(rollout.valid, tuple(range(2, x.ndim))), x, jnp.asarray(filling, x.dtype))

    blanked = jax.tree.map(blank, rollout)
    if statistics.mean is None:
        return blanked
    obs, next_obs = (jax.tree.map(blank, tree, statistics.mean) for tree in (rollout.obs, rollout.next_obs))
    return blanked._replace(obs=obs, next_obs=next_obs)


def targets(state: TrainState, rollout: Rollout, config: Config, spec: EnvSpec, key: jax.Array) -> Batch:
    """Everything that the update needs to know about a rollout, computed once with the frozen networks.

    The samples of the next actions are evaluated one time step after another: memory is that of ``S N`` rows, not of
    ``S N T``.
    """
    policy, critic = state.policy, state.critic
    rollout = blank_invalid(rollout, policy.normalizer)
    step_keys = jax.random.split(key, config.num_steps)

    def critic_view(obs: PyTree) -> jax.Array:
        return select(normalizer.normalize(policy.normalizer, obs), spec.critic_keys)

    def next_state(args: tuple[PyTree, jax.Array]) -> SoftValue:
        next_obs, step_key = args
        return soft_value(policy(next_obs), critic, critic_view(next_obs), step_key, config.target_samples)

    following = jax.lax.map(next_state, (rollout.next_obs, step_keys))
    continues = 1.0 - rollout.terminated.astype(jnp.float32)
    target = returns.soft_lambda_returns(
        rollout.reward,
        config.gamma * continues,
        state.duals.alpha * following.entropy,
        following.value,
        returns.lambda_schedule(config.lambda_, rollout.truncated, rollout.valid),
    )
    # Of images, the first convolution's output is many times as large as the rollout itself.
    old_policy = jax.lax.map(policy, rollout.obs) if spec.image else policy(rollout.obs)
    valid = rollout.valid.astype(jnp.float32)

    advantage = jnp.zeros_like(target)
    if config.estimator == "score_gae":
        # `split` has taken the keys that are folded with less.
        keys_here = jax.random.split(jax.random.fold_in(key, config.num_steps), config.num_steps)

        def this_state(args: tuple[ActionDistribution, PyTree, jax.Array]) -> SoftValue:
            step_policy, obs, step_key = args
            return soft_value(step_policy, critic, critic_view(obs), step_key, config.target_samples)

        here = jax.lax.map(this_state, (old_policy, rollout.obs, keys_here))
        advantage = soft_advantage(target, here, old_policy.log_prob(rollout.sample), state.duals.alpha, valid)

    batch = Batch(
        actor_obs=select(normalizer.normalize(policy.normalizer, rollout.obs), policy.obs_keys),
        critic_obs=critic_view(rollout.obs),
        sample=rollout.sample,
        reward=rollout.reward,
        target=target,
        advantage=advantage,
        next_embedding=following.embedding,
        continues=continues,
        valid=valid,
        old_policy=old_policy,
    )
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)


def soft_advantage(target: jax.Array, here: SoftValue, log_prob: jax.Array, alpha: jax.Array, valid: jax.Array) -> jax.Array:
    r"""What an action turned out to be worth beside the policy's others, centred and scaled over the batch; all ``[T, N]``.

    $$ A = (G - \alpha \log \pi(a | x)) - (V(x) + \alpha \mathcal H(x)) $$
    """
    advantage = (target - alpha * log_prob) - (here.value + alpha * here.entropy)
    centred = advantage - masked_mean(advantage, valid)
    return centred * jax.lax.rsqrt(masked_mean(centred**2, valid) + 1e-8)


# --------------------------------------------------------------------------------------------- 3. losses


def critic_loss(critic: Critic, batch: Batch, aux_weight: float) -> tuple[jax.Array, Metrics]:
    r"""Cross-entropy to the HL-Gauss encoding of the target, plus the auxiliary prediction (paper, section 3.3).

    $$ -\sum_k p_k(G) \log q_k(x, a)
       + w\,(1 - \text{terminated}) \operatorname{mean}\big[ (\hat z - z')^2, (\hat r - r)^2 \big] $$
    """
    _, logits, value, next_embedding, reward = critic.evaluate(batch.critic_obs, batch.old_policy.action(batch.sample))
    if critic.num_bins == 1:
        value_loss = (value - batch.target) ** 2
    else:
        target = hl_gauss.encode(batch.target, critic.v_min, critic.v_max, critic.num_bins)
        value_loss = -jnp.sum(target * jax.nn.log_softmax(logits), axis=-1)

    squared = jnp.sum((next_embedding - batch.next_embedding) ** 2, -1) + (reward - batch.reward) ** 2
    aux_loss = batch.continues * squared / (batch.next_embedding.shape[-1] + 1)

    loss = masked_mean(value_loss + aux_weight * aux_loss, batch.valid)
    per_row = {
        "critic/loss": value_loss,
        "critic/aux_loss": aux_loss,
        "critic/value": value,
        "critic/error": (value - batch.target) ** 2,
    }
    metrics = masked_means(per_row, batch.valid)
    return loss, {**metrics, "critic/error": jnp.sqrt(metrics["critic/error"])}


def actor_loss(
    actor: Actor, critic: Critic, duals: Duals, batch: Batch, config: Config, key: jax.Array
) -> tuple[jax.Array, Metrics]:
    r"""Pathwise policy improvement, gated per state by the KL to the rollout policy (paper, section 3.2).

    $$ \ell(x) = \begin{cases}
         \alpha \log \pi_\theta(a|x) - Q(x, a), \; a \sim \pi_\theta & \text{if } \mathrm{KL}(x) < \text{bound} \\
         \beta \, \mathrm{KL}(\pi_\text{old} \| \pi_\theta)(x) & \text{otherwise}
       \end{cases} $$
    """
    alpha, beta = jax.lax.stop_gradient((duals.alpha, duals.beta))
    policy = actor(batch.actor_obs)

    # The pathwise objective and the entropy have one key, and so one sample. What is gated by the KL must not choose it: a
    # sampled KL has noise of its own.
    key_kl = jax.random.fold_in(key, 1)
    behaviour = Behaviour(batch.sample, batch.old_policy.log_prob(batch.sample), batch.advantage)
    objective = ESTIMATORS[config.estimator](
        policy,
        lambda action: critic(batch.critic_obs, action),
        alpha,
        behaviour,
        key,
        config.estimator_samples,
    )
    kl = policy_kl(batch.old_policy, policy, config, key_kl)
    inside = kl < config.kl_bound
    loss = {
        "gate": jnp.where(inside, objective, beta * kl),
        "penalty": objective + beta * kl,
        "none": objective,
    }[config.kl_mode]

    per_state = {
        "loss": loss,
        "entropy": policy.entropy(key),
        "kl": kl,
        "kl_outside": 1.0 - inside,
        **policy.diagnostics(),
    }
    means = masked_means(per_state, batch.valid)
    return masked_mean(loss, batch.valid), {f"actor/{name}": mean for name, mean in means.items()}


def policy_kl(old: ActionDistribution, new: ActionDistribution, config: Config, key: jax.Array) -> jax.Array:
    """KL between rollout policy and new policy at every state, ``[B]``, as configured."""
    first, second = (old, new) if config.kl_direction == "forward" else (new, old)
    # Draws of the new policy carry a gradient where they are reparameterised; a categorical's are not, and would teach
    # nothing.
    drawn = config.kl_direction == "forward" or not isinstance(new, distributions.Categorical)
    if config.kl_estimator == "closed_form" or not drawn:
        return first.kl(second)
    return distributions.sampled_kl(first, second, key, config.kl_samples)


# --------------------------------------------------------------------------------------------- 3. update


class Optimisers(NamedTuple):
    network: optax.GradientTransformation
    duals: optax.GradientTransformation


def optimisers(config: Config) -> Optimisers:
    """Adam with global-norm clipping for the networks, plain Adam for the duals."""

    def rate(initial: float) -> float | optax.Schedule:
        steps = config.num_iterations * config.num_updates
        return optax.linear_schedule(initial, 0.0, steps) if config.anneal_learning_rate else initial

    network = optax.chain(optax.clip_by_global_norm(config.max_grad_norm), optax.adam(rate(config.learning_rate)))
    # One vector instead of one small kernel for each of forty arrays: faster to run on a CPU, and to compile.
    return Optimisers(optax.flatten(network), optax.adam(rate(config.dual_learning_rate)))


def target_entropy(config: Config, spec: EnvSpec) -> float:
    """What the policy's entropy is held to: ``-0.5 A``, or ``0.5 log A`` of discrete actions, with the paper's factors."""
    if spec.discrete:
        return config.target_entropy_discrete * math.log(spec.action_size)
    return config.target_entropy_per_action * spec.action_size


STEPS_PER_MINIBATCH = 3  #: optimiser steps that `minibatch_step` takes: critic, actor, duals


def minibatch_step(
    state: TrainState, batch: Batch, key: jax.Array, config: Config, spec: EnvSpec
) -> tuple[TrainState, Metrics]:
    """A critic step, an actor step against the new critic, a step of the duals."""
    network, dual = optimisers(config)

    critic_grads, critic_metrics = jax.grad(critic_loss, has_aux=True)(state.critic, batch, config.aux_weight)
    critic, critic_opt, critic_norm = apply_gradients(state.critic, critic_grads, state.critic_opt, network)

    actor_grads, actor_metrics = jax.grad(actor_loss, has_aux=True)(
        state.policy.actor, critic, state.duals, batch, config, key
    )
    actor, actor_opt, actor_norm = apply_gradients(state.policy.actor, actor_grads, state.actor_opt, network)

    dual_grads = jax.grad(duals.loss)(
        state.duals,
        actor_metrics["actor/entropy"],
        target_entropy(config, spec),
        actor_metrics["actor/kl"],
        config.kl_bound,
    )
    # Where nothing holds the KL, beta would rise until it overflows; and of no rows, nothing is to be learned.
    some = jnp.any(batch.valid > 0)
    learned = Duals(config.learn_alpha & some, (config.learn_beta and config.kl_mode != "none") & some)
    dual_grads = jax.tree.map(lambda grad, learns: jnp.where(learns, grad, 0), dual_grads, learned)
    new_duals, duals_opt, duals_norm = apply_gradients(state.duals, dual_grads, state.duals_opt, dual)
    new_duals = jax.tree.map(jnp.where, learned, duals.bounded(new_duals, config.min_beta), state.duals)

    policy = eqx.tree_at(lambda policy: policy.actor, state.policy, actor)
    metrics = {
        **critic_metrics,
        **actor_metrics,
        "critic/grad_norm": critic_norm,
        "actor/grad_norm": actor_norm,
        "train/skipped_updates": count_skipped(critic_norm, actor_norm, duals_norm),
    }
    return TrainState(policy, critic, new_duals, state.average, actor_opt, critic_opt, duals_opt), metrics


def update(state: TrainState, rollout: Rollout, key: jax.Array, config: Config, spec: EnvSpec) -> tuple[TrainState, Metrics]:
    """One iteration's learning from one rollout."""
    batch, rows, keys = minibatches(state, rollout, key, config, spec)

    def step(state: TrainState, inputs: tuple[jax.Array, jax.Array]) -> tuple[TrainState, Series]:
        indices, step_key = inputs
        minibatch = jax.tree.map(lambda x: x[indices], batch)
        state, metrics = minibatch_step(state, minibatch, step_key, config, spec)
        return state, Series.of(metrics)

    state, history = jax.lax.scan(step, state, (rows, keys))

    if config.normalize_observations:
        merged = normalizer.update(state.policy.normalizer, rollout.obs, rollout.valid)
        state = eqx.tree_at(lambda s: s.policy.normalizer, state, merged)
    if state.average is not None:
        state = eqx.tree_at(lambda s: s.average, state, averaged(state.average, state.policy.actor, config.actor_average))
    return state, summarise(state, batch, history, config)


def minibatches(
    state: TrainState, rollout: Rollout, key: jax.Array, config: Config, spec: EnvSpec
) -> tuple[Batch, jax.Array, jax.Array]:
    """What `update` steps through: the batch, the rows of every minibatch ``[E * M, B]``, and a key for each."""
    key_targets, key_shuffle, key_actor = jax.random.split(key, 3)
    batch = targets(state, rollout, config, spec, key_targets)
    rows = shuffled_rows(key_shuffle, config)
    return batch, rows, jax.random.split(key_actor, rows.shape[0])


def shuffled_rows(key: jax.Array, config: Config) -> jax.Array:
    """Row indices of every minibatch of every epoch, ``[E * M, B]``; each epoch visits each row once."""
    # One sort. Of 131,072 random words about two are alike, and keep their order; `jax.random.permutation` sorts again.
    order = jax.random.bits(key, (config.num_epochs, config.batch_size))
    return jnp.argsort(order, axis=1).reshape(config.num_updates, -1)


def averaged(average: ActorAverage, actor: Actor, decay: float) -> ActorAverage:
    r"""The mean with one more iteration's actor: of all so far at first, exponential with ``decay`` then.

    $$ \bar\theta \leftarrow \bar\theta + \max(1 - d, 1 / i) \, (\theta - \bar\theta) $$
    """
    iterations = average.iterations + 1
    weight = jnp.maximum(1.0 - decay, 1.0 / iterations)
    mean = jax.tree.map(lambda mean, new: mean + weight * (new - mean), average.actor, actor)
    return ActorAverage(mean, iterations)


def deployed(state: TrainState) -> TrainState:
    """The state with the policy that is evaluated and saved: that of the averaged weights, where they are averaged."""
    if state.average is None:
        return state
    return eqx.tree_at(lambda s: s.policy.actor, state, state.average.actor)


def summarise(state: TrainState, batch: Batch, history: Series, config: Config) -> Metrics:
    """One number per metric and iteration; ``docs/metrics.md`` defines each."""
    # A scalar critic has no support that a target could leave.
    support = (state.critic.v_min, state.critic.v_max) if config.hl_gauss else (-jnp.inf, jnp.inf)
    return {
        **over_epochs(history, config.num_epochs),
        "actor/alpha": state.duals.alpha,
        "actor/beta": state.duals.beta,
        **target_metrics(batch.target, batch.valid, support),
        "train/reward": masked_mean(batch.reward, batch.valid),
        "train/invalid_rows": jnp.sum(1.0 - batch.valid),
    }


# --------------------------------------------------------------------------------------------- the learner


def init(key: jax.Array, config: Config, spec: EnvSpec) -> TrainState:
    """Fresh networks, duals and optimiser states for an environment."""
    key_actor, key_critic = jax.random.split(key)
    assert spec.value_range is not None, "an unresolved spec"
    v_min, v_max = spec.value_range
    actor_size, critic_size = spec.obs_size(spec.actor_keys), spec.obs_size(spec.critic_keys)
    actor_image = critic_image = None
    if spec.image:
        key_actor, key_actor_image = jax.random.split(key_actor)
        key_critic, key_critic_image = jax.random.split(key_critic)
        actor_image, critic_image = (
            image_encoder(config, spec, key_actor_image),
            image_encoder(config, spec, key_critic_image),
        )
        actor_size, critic_size = actor_image.size, critic_image.size
    actor = Actor(
        actor_size,
        spec.action_size,
        config.actor_width,
        config.actor_layers,
        config.norm,
        discrete=spec.discrete,
        min_std=config.min_std,
        output_scale=config.actor_output_scale,
        image=actor_image,
        key=key_actor,
    )
    critic = (DiscreteCritic if spec.discrete else ContinuousCritic)(
        critic_size,
        spec.action_size,
        config.critic_width,
        config.norm,
        config.num_bins if config.hl_gauss else 1,
        v_min,
        v_max,
        encoder_layers=config.critic_layers,
        head_layers=config.critic_layers,
        predictor_layers=config.critic_layers,
        image=critic_image,
        key=key_critic,
    )
    multipliers = duals.init(config.initial_alpha, config.initial_beta)
    network, dual = optimisers(config)
    return TrainState(
        policy=Policy(normalizer.init(spec.observation), actor, spec.actor_keys),
        critic=critic,
        duals=multipliers,
        average=ActorAverage(actor, jnp.zeros((), jnp.int32)) if config.actor_average else None,
        actor_opt=network.init(eqx.filter(actor, eqx.is_array)),
        critic_opt=network.init(eqx.filter(critic, eqx.is_array)),
        duals_opt=dual.init(eqx.filter(multipliers, eqx.is_array)),
    )


def image_layers(config: Config, spec: EnvSpec) -> tuple[images.Convolution, ...]:
    """The convolutions that read this environment's images.

    Raises:
        ConfigError: where the images are too small for those that were chosen.
    """
    kind = config.image_encoder if config.image_encoder != "auto" else images.automatic(spec.image_sides)
    if not images.fits(kind, spec.image_sides):
        height, width = spec.image_sides
        raise ConfigError(
            f"{spec.name}: its images of {height} x {width} are too small for image_encoder {kind}, which takes "
            f"{images.smallest_side(kind)} pixels a side"
        )
    return images.IMAGE_ENCODERS[kind]


def image_encoder(config: Config, spec: EnvSpec, key: jax.Array) -> images.ImageEncoder:
    """A fresh image encoder; actor and critic have one each."""
    return images.ImageEncoder(spec.observation.shape, image_layers(config, spec), spec.channels_first, key)


def act(policy: Policy, obs: PyTree, key: jax.Array, greedy: bool | jax.Array) -> tuple[jax.Array, jax.Array]:
    """Action and the sample behind it: ``[N, A]`` each, in [-1, 1] and before the tanh; or twice a discrete action's index
    ``[N]``. A draw from the policy, or its mode where ``greedy``."""
    distribution = policy(obs)
    sample = jnp.where(greedy, distribution.greedy(), distribution.sample(key))
    return distribution.action(sample), sample


def make_learner(config: Config, spec: EnvSpec) -> Learner:
    """REPPO as a `Learner`. ``spec`` must be resolved: see `reppo.envs.spec.resolve`.

    Raises:
        ConfigError: where images are too small for ``config.image_encoder``, or there are none.
    """
    if spec.image:
        image_layers(config, spec)
    elif config.image_encoder not in ("auto", "flat"):
        raise ConfigError(f"image_encoder {config.image_encoder} reads images, and the observations of {spec.name} are none")
    return Learner(
        init=lambda key: init(key, config, spec),
        policy=lambda state: state.policy,
        act=act,
        update=lambda state, rollout, key: update(state, rollout, key, config, spec),
        optimiser_steps=STEPS_PER_MINIBATCH * config.num_updates,
        deployed=deployed,
        facts={"target_entropy": target_entropy(config, spec)},
    )
