r"""FastTD3 (Seo et al. 2025, arXiv 2505.22642): TD3 for thousands of environments, as a `Learner` on our loop.

One iteration puts a rollout into a large replay memory, and then takes a few steps on minibatches out of it: a step of
two distributional critics, every second time one of the actor, and one of the critics' targets. The actor explores with
noise of another size in every environment, drawn anew when its episode ends.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from reppo import hl_gauss, normalizer
from reppo.baselines import replay as memory
from reppo.baselines.replay import Replay, Transitions
from reppo.config import Precision, check_limits, check_positive, check_ranges, check_types, config_from_json, take_numbers
from reppo.envs.spec import EnvSpec
from reppo.errors import ConfigError
from reppo.metrics import masked_mean, target_metrics
from reppo.nets import Linear, select
from reppo.normalizer import Normalizer
from reppo.optim import apply_gradients, count_skipped
from reppo.reppo import blank_invalid
from reppo.types import Learner, Metrics, PyTree, Rollout


@dataclasses.dataclass(frozen=True)
class FastTD3Config:
    """A complete FastTD3 configuration. The defaults are the published ones for DeepMind Control (``published``)."""

    name = "fasttd3"  # of the algorithm

    # ---- budget and data
    total_steps: int = 50_000_000
    """Environment steps of the whole run."""
    num_envs: int = 1024
    """N: environments stepped in parallel."""
    num_steps: int = 1
    """T: steps of each environment per iteration; the learning steps of all of them follow."""
    replay_steps: int = 10_240
    """C: the newest steps of each environment that the replay memory holds."""
    learning_starts: int = 10
    """Steps of each environment before the first learning step."""
    updates_per_step: int = 2
    """Learning steps per step of the environments."""
    minibatch_size: int = 32_768
    """B: transitions per learning step."""

    # ---- returns
    gamma: float = 0.97
    """Discount per environment step."""
    n_step: int = 3
    """Steps of a transition's return before it bootstraps."""

    # ---- policy
    policy_delay: int = 2
    """Learning steps of the critics per step of the actor."""
    min_noise: float = 0.1
    """Smallest standard deviation of the exploration noise of an environment."""
    max_noise: float = 0.4
    """Largest one."""
    target_noise: float = 0.1
    """Standard deviation of the noise on the targets' actions."""
    target_noise_clip: float = 0.5
    """That noise is clipped to this size."""

    # ---- critic
    clipped_double_q: bool = True
    """Both critics learn from the smaller of their values; otherwise each from its own."""
    num_bins: int = 101
    """K: atoms of the categorical critics."""
    v_min: float | None = -500.0
    """Lower end of the value support; unset: the environment's suggestion."""
    v_max: float | None = 500.0
    """Upper end of the value support; unset: the environment's suggestion."""
    target_rate: float = 0.1
    """Share of the critics that goes into their targets at every learning step."""

    # ---- networks
    actor_width: int = 512
    """Width of the actor's first hidden layer; the second has half of it, the third a quarter."""
    critic_width: int = 1024
    """The same of each critic."""
    actor_output_scale: float = 0.01
    """Standard deviation of the actor's last weights at the start."""
    actor_obs: tuple[str, ...] = ()
    """Keys of a dict observation that the actor sees; unset: the environment's suggestion."""
    critic_obs: tuple[str, ...] = ()
    """Keys of a dict observation that the critics see; unset: the environment's suggestion."""

    # ---- optimiser
    actor_learning_rate: float = 3e-4
    """AdamW's learning rate of the actor."""
    critic_learning_rate: float = 3e-4
    """AdamW's learning rate of the critics."""
    weight_decay: float = 0.1
    """AdamW's weight decay."""

    # ---- environment
    episode_length: int | None = None
    """Time limit in steps; unset: the environment's own."""
    cut_probability: float = 0.0
    """Chance, at every step of the training, that an episode is cut there, as a truncation; 0: the time limit alone cuts."""
    action_low: float | None = None
    """Lower bound of actions, for an environment that does not bound them itself."""
    action_high: float | None = None
    """Upper bound of such actions."""
    stagger_episodes: bool = True
    """Start the environments at random points of their time limit, so that episodes do not end in step."""

    # ---- evaluation
    num_evals: int = 20
    """Evaluations, evenly over the run; the last one is at its end."""
    eval_episodes: int = 128
    """Fresh greedy episodes per evaluation."""

    # ---- checkpoints
    checkpoint_minutes: float = 5.0
    """Minutes between checkpoints; there is one after every evaluation, too."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints are kept."""
    keep_best: bool = True
    """Also keep the checkpoint with the best evaluation."""

    # ---- numerics
    precision: Precision = "highest"
    """Matrix products: highest is float32; default lets a GPU use TF32."""

    def __post_init__(self) -> None:
        take_numbers(self)

    @property
    def batch_size(self) -> int:
        """Environment steps per iteration, ``N T``."""
        return self.num_envs * self.num_steps

    @property
    def num_epochs(self) -> int:
        """Passes over a rollout: none, it goes into the replay memory."""
        return 0

    @property
    def num_updates(self) -> int:
        """Learning steps per iteration."""
        return self.num_steps * self.updates_per_step

    @property
    def num_iterations(self) -> int:
        """Iterations of the run: enough to reach ``total_steps``."""
        return -(-self.total_steps // self.batch_size)

    @classmethod
    def from_json(cls, values: dict[str, Any], source: str) -> FastTD3Config:
        """See `reppo.config.config_from_json`."""
        return config_from_json(cls, values, source)

    def validate(self) -> None:
        """Raise `ConfigError` at the first value that cannot be trained with."""
        check_types(self)
        positive = (
            "total_steps num_envs num_steps replay_steps updates_per_step minibatch_size n_step policy_delay "
            "target_noise_clip actor_learning_rate critic_learning_rate episode_length num_evals eval_episodes "
            "checkpoint_minutes keep_checkpoints"
        )
        check_positive(self, positive)
        check_limits(self)
        for name in ["learning_starts", "min_noise", "target_noise", "actor_output_scale", "weight_decay"]:
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must not be negative, got {getattr(self, name)}")
        if not 0 <= self.cut_probability < 1:
            raise ConfigError(f"cut_probability must be at least 0 and below 1, got {self.cut_probability}")
        if not self.learning_starts * self.num_envs < self.total_steps:
            raise ConfigError(
                f"learning_starts ({self.learning_starts}) of {self.num_envs} environments must be fewer than total_steps "
                f"({self.total_steps}): nothing would be learned"
            )
        for name in ("gamma", "target_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must be between 0 and 1, got {getattr(self, name)}")
        for name in ("actor_width", "critic_width"):
            if getattr(self, name) < 4:
                raise ConfigError(f"{name} must be at least 4, got {getattr(self, name)}")
        if self.num_bins < 2:
            raise ConfigError(f"num_bins must be at least 2, got {self.num_bins}")
        if self.max_noise < self.min_noise:
            raise ConfigError(f"max_noise ({self.max_noise:g}) must not be below min_noise ({self.min_noise:g})")
        if self.replay_steps % self.num_steps:
            raise ConfigError(f"num_steps ({self.num_steps}) must divide replay_steps ({self.replay_steps})")
        if self.replay_steps < self.n_step:
            raise ConfigError(f"replay_steps ({self.replay_steps}) must hold a transition of n_step ({self.n_step})")
        check_ranges(self)


PRESETS: dict[str, FastTD3Config] = {
    "published": FastTD3Config(),
    # Playground's robots: the other published configuration.
    "published-robots": FastTD3Config(n_step=1, v_min=-10.0, v_max=10.0, min_noise=0.001, target_noise=0.001),
    "cpu": FastTD3Config(
        total_steps=800_000,
        num_envs=64,
        num_steps=4,
        replay_steps=8192,
        minibatch_size=2048,  # every step is replayed 64 times, as with the published numbers
        num_bins=51,
        v_min=None,
        v_max=None,
        actor_width=128,
        critic_width=256,
        num_evals=10,
        eval_episodes=64,
    ),
}


def presets(env: str, algorithm: str) -> Mapping[str, FastTD3Config]:
    """All of them, see `reppo.algorithms`; the same for every environment."""
    del env, algorithm
    return PRESETS


# --------------------------------------------------------------------------------------------- networks


class TaperedMLP(eqx.Module):
    """Three hidden layers, each half as wide as the one before, with ReLU, and a linear output."""

    hidden: tuple[Linear, ...]
    output: Linear
    activation: ClassVar[str] = "relu"

    def __init__(self, in_size: int, width: int, out_size: int, key: jax.Array):
        sizes = [in_size, width, width // 2, width // 4, out_size]
        layers = [uniform_linear(a, b, k) for a, b, k in zip(sizes, sizes[1:], jax.random.split(key, 4), strict=False)]
        self.hidden, self.output = tuple(layers[:-1]), layers[-1]

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.hidden:
            x = jax.nn.relu(layer(x))
        return self.output(x)


def uniform_linear(in_size: int, out_size: int, key: jax.Array) -> Linear:
    """A linear map that starts as PyTorch's do: weights and biases uniform within ``1 / sqrt(in_size)``."""
    key_weight, key_bias = jax.random.split(key)
    bound = in_size**-0.5
    weight = jax.random.uniform(key_weight, (in_size, out_size), minval=-bound, maxval=bound)
    bias = jax.random.uniform(key_bias, (out_size,), minval=-bound, maxval=bound)
    return eqx.tree_at(lambda linear: (linear.weight, linear.bias), Linear(in_size, out_size, key), (weight, bias))


class Actor(eqx.Module):
    """Observations ``[..., D]`` to actions ``[..., A]`` in [-1, 1]."""

    mlp: TaperedMLP

    def __init__(self, obs_size: int, action_size: int, width: int, output_scale: float, key: jax.Array):
        key_mlp, key_output = jax.random.split(key)
        mlp = TaperedMLP(obs_size, width, action_size, key_mlp)
        weight = output_scale * jax.random.normal(key_output, mlp.output.weight.shape)
        output = (weight, jnp.zeros(action_size))
        self.mlp = eqx.tree_at(lambda mlp: (mlp.output.weight, mlp.output.bias), mlp, output)

    def __call__(self, obs: jax.Array) -> jax.Array:
        return jnp.tanh(self.mlp(obs))


class Critics(eqx.Module):
    """Two categorical critics ``Q_i(x, a)`` in one: leaves have a leading axis of two."""

    mlp: TaperedMLP
    v_min: float = eqx.field(static=True)
    v_max: float = eqx.field(static=True)

    def __call__(self, obs: jax.Array, action: jax.Array) -> jax.Array:
        """Logits over the ``K`` atoms, ``[2, ..., K]``."""
        x = jnp.concatenate([obs, action], -1)
        return jax.vmap(lambda mlp: mlp(x))(self.mlp)

    def values(self, probs: jax.Array) -> jax.Array:
        """Means ``[...]`` of distributions over the atoms, ``[..., K]``."""
        return hl_gauss.decode(probs, self.v_min, self.v_max)


class Policy(eqx.Module):
    """What acting needs: the normaliser, the actor, and the size of every environment's exploration noise."""

    normalizer: Normalizer
    actor: Actor
    noise: jax.Array  #: standard deviation, ``[N]``
    obs_keys: tuple[str, ...] = eqx.field(static=True)

    def __call__(self, obs: PyTree) -> jax.Array:
        return self.actor(select(normalizer.normalize(self.normalizer, obs), self.obs_keys))


class TrainState(eqx.Module):
    """Everything that learning carries from one iteration to the next."""

    policy: Policy
    critics: Critics
    target_critics: Critics
    actor_opt: optax.OptState
    critic_opt: optax.OptState
    updates: jax.Array  #: learning steps so far, int32
    replay: Replay


# --------------------------------------------------------------------------------------------- losses


class Batch(NamedTuple):
    """A minibatch with normalised observations; constants to the losses."""

    actor_obs: jax.Array
    critic_obs: jax.Array
    next_actor_obs: jax.Array
    next_critic_obs: jax.Array
    transitions: Transitions


def project(probs: jax.Array, atoms: jax.Array, v_min: float, v_max: float) -> jax.Array:
    """Masses ``[B, K]`` at any ``atoms`` ``[B, K]``, moved to the fixed ones ``[B, K]`` (Bellemare et al. 2017).

    Each mass goes to its two neighbours, in proportion to how near they are; beyond the ends, to the end. In between, the
    mean is kept.
    """
    num_bins = probs.shape[-1]
    position = (jnp.clip(atoms, v_min, v_max) - v_min) * ((num_bins - 1) / (v_max - v_min))
    below = jnp.clip(jnp.floor(position), 0, num_bins - 2).astype(jnp.int32)
    upper = position - below
    row = jnp.arange(probs.shape[0])[:, None]
    projected = jnp.zeros_like(probs).at[row, below].add(probs * (1 - upper))
    return projected.at[row, below + 1].add(probs * upper)


def critic_target(
    target_critics: Critics, actor: Actor, batch: Batch, config: FastTD3Config, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    r"""Distributions that the two critics are to learn, ``[2, B, K]``, and their returns before they are clipped, ``[B]``.

    $$ R + \text{discount} \cdot Z_{i^*}(x', a'), \qquad i^* = \operatorname{argmin}_i E Z_i, \qquad
       a' = \operatorname{clip}(\mu(x') + \operatorname{clip}(\epsilon, -c, c), -1, 1) $$
    """
    rows = batch.transitions
    noise = config.target_noise * jax.random.normal(key, rows.action.shape)
    noise = jnp.clip(noise, -config.target_noise_clip, config.target_noise_clip)
    action = jnp.clip(actor(batch.next_actor_obs) + noise, -1.0, 1.0)
    probs = jax.nn.softmax(target_critics(batch.next_critic_obs, action))
    values = target_critics.values(probs)
    if config.clipped_double_q:
        smaller = jnp.where((values[0] < values[1])[:, None], probs[0], probs[1])
        probs, values = jnp.stack([smaller, smaller]), jnp.broadcast_to(jnp.min(values, 0), values.shape)
    v_min, v_max = target_critics.v_min, target_critics.v_max
    atoms = rows.reward[:, None] + rows.discount[:, None] * hl_gauss.centres(v_min, v_max, config.num_bins)
    projected = jax.vmap(lambda probs: project(probs, atoms, v_min, v_max))(probs)
    return projected, rows.reward + rows.discount * jnp.mean(values, 0)


def critic_loss(critics: Critics, batch: Batch, target: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy to the target distributions, summed over the two critics; and the values, ``[2, B]``."""
    logits = critics(batch.critic_obs, batch.transitions.action)
    loss = -jnp.sum(target * jax.nn.log_softmax(logits), axis=(0, -1))
    return masked_mean(loss, batch.transitions.valid), critics.values(jax.nn.softmax(logits))


def actor_loss(actor: Actor, critics: Critics, batch: Batch, config: FastTD3Config) -> jax.Array:
    """Minus the value of the actor's action: the smaller of the two, or their mean."""
    values = critics.values(jax.nn.softmax(critics(batch.critic_obs, actor(batch.actor_obs))))
    value = jnp.min(values, 0) if config.clipped_double_q else jnp.mean(values, 0)
    return -masked_mean(value, batch.transitions.valid)


# --------------------------------------------------------------------------------------------- update


def optimisers(config: FastTD3Config) -> tuple[optax.GradientTransformation, optax.GradientTransformation]:
    """AdamW for the actor and for the critics."""
    rates = (config.actor_learning_rate, config.critic_learning_rate)
    actor, critic = (optax.flatten(optax.adamw(rate, weight_decay=config.weight_decay)) for rate in rates)
    return actor, critic


def learning_step(state: TrainState, key: jax.Array, config: FastTD3Config, spec: EnvSpec) -> tuple[TrainState, Metrics]:
    """A minibatch: a step of the critics, every `policy_delay`-th time one of the actor, and one of the targets."""
    key_batch, key_target = jax.random.split(key)
    actor_optimiser, critic_optimiser = optimisers(config)
    rows = memory.sample(state.replay, key_batch, config.minibatch_size, config.n_step, config.gamma)
    obs, next_obs = (normalizer.normalize(state.policy.normalizer, x) for x in (rows.obs, rows.next_obs))
    actor_keys, critic_keys = state.policy.obs_keys, spec.critic_keys
    batch = Batch(
        actor_obs=select(obs, actor_keys),
        critic_obs=select(obs, critic_keys),
        next_actor_obs=select(next_obs, actor_keys),
        next_critic_obs=select(next_obs, critic_keys),
        transitions=rows,
    )

    target, returns = critic_target(state.target_critics, state.policy.actor, batch, config, key_target)
    (loss, values), grads = jax.value_and_grad(critic_loss, has_aux=True)(state.critics, batch, target)
    critics, critic_opt, critic_norm = apply_gradients(state.critics, grads, state.critic_opt, critic_optimiser)

    def improve(_: None) -> tuple[Actor, optax.OptState, Metrics]:
        loss, grads = jax.value_and_grad(actor_loss)(state.policy.actor, critics, batch, config)
        actor, opt, norm = apply_gradients(state.policy.actor, grads, state.actor_opt, actor_optimiser)
        return actor, opt, {"loss": loss, "grad_norm": norm}

    def wait(_: None) -> tuple[Actor, optax.OptState, Metrics]:
        return state.policy.actor, state.actor_opt, dict.fromkeys(("loss", "grad_norm"), jnp.zeros(()))

    due = state.updates % config.policy_delay == config.policy_delay - 1
    actor, actor_opt, actor_metrics = jax.lax.cond(due, improve, wait, None)

    def blend(old: jax.Array, new: jax.Array) -> jax.Array:
        return old + config.target_rate * (new - old)

    metrics = {
        "critic/loss": loss,
        "critic/value": masked_mean(jnp.mean(values, 0), rows.valid),
        "critic/grad_norm": critic_norm,
        **target_metrics(returns, rows.valid, (critics.v_min, critics.v_max)),
        "actor/loss": actor_metrics["loss"],
        "actor/grad_norm": actor_metrics["grad_norm"],
        "actor/updates": due.astype(jnp.float32),
        "train/skipped_updates": count_skipped(critic_norm, actor_metrics["grad_norm"]),
    }
    return TrainState(
        policy=eqx.tree_at(lambda policy: policy.actor, state.policy, actor),
        critics=critics,
        target_critics=jax.tree.map(blend, state.target_critics, critics),
        actor_opt=actor_opt,
        critic_opt=critic_opt,
        updates=state.updates + 1,
        replay=state.replay,
    ), metrics


def learn(state: TrainState, key: jax.Array, config: FastTD3Config, spec: EnvSpec) -> tuple[TrainState, Metrics]:
    """An iteration's learning steps, and what they were like: means, or extremes, or sums."""
    replay = state.replay

    # The memory is the same in all steps: beside the carry of the scan, so that no step copies it.
    def step(state: TrainState, key: jax.Array) -> tuple[TrainState, Metrics]:
        whole = dataclasses.replace(state, replay=replay)
        after, metrics = learning_step(whole, key, config, spec)
        return dataclasses.replace(after, replay=None), metrics  # pyright: ignore[reportArgumentType]

    light = dataclasses.replace(state, replay=None)  # pyright: ignore[reportArgumentType]
    light, history = jax.lax.scan(step, light, jax.random.split(key, config.num_updates))
    state = dataclasses.replace(light, replay=replay)
    actor_steps = jnp.maximum(jnp.sum(history["actor/updates"]), 1.0)
    metrics = {name: jnp.mean(values) for name, values in history.items() if name != "actor/updates"}
    metrics |= {name: jnp.sum(history[name]) / actor_steps for name in ("actor/loss", "actor/grad_norm")}
    metrics["train/skipped_updates"] = jnp.sum(history["train/skipped_updates"])
    metrics["critic/target_min"] = jnp.min(history["critic/target_min"])
    metrics["critic/target_max"] = jnp.max(history["critic/target_max"])
    return state, metrics


def update(
    state: TrainState, rollout: Rollout, key: jax.Array, config: FastTD3Config, spec: EnvSpec
) -> tuple[TrainState, Metrics]:
    """One iteration: remember the rollout, learn, and draw new noise where an episode has ended."""
    key_learn, key_noise = jax.random.split(key)
    merged = normalizer.update(state.policy.normalizer, rollout.obs, rollout.valid)
    rollout = blank_invalid(rollout, merged)
    state = eqx.tree_at(lambda s: s.policy.normalizer, state, merged)
    state = dataclasses.replace(state, replay=memory.insert(state.replay, rollout))

    replay = state.replay
    light = dataclasses.replace(state, replay=None)  # pyright: ignore[reportArgumentType]

    def begin(light: TrainState) -> tuple[TrainState, Metrics]:
        after, metrics = learn(dataclasses.replace(light, replay=replay), key_learn, config, spec)
        return dataclasses.replace(after, replay=None), metrics  # pyright: ignore[reportArgumentType]

    def wait(light: TrainState) -> tuple[TrainState, Metrics]:
        _, metrics = jax.eval_shape(begin, light)
        return light, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), metrics)

    ready = replay.written > max(config.learning_starts, config.n_step - 1)
    light, metrics = jax.lax.cond(ready, begin, wait, light)
    state = dataclasses.replace(light, replay=replay)

    noise = next_noise(state.policy.noise, rollout, key_noise, config)
    state = eqx.tree_at(lambda s: s.policy.noise, state, noise)
    valid = rollout.valid.astype(jnp.float32)
    return state, {
        **metrics,
        "actor/noise": jnp.mean(noise),
        "train/reward": masked_mean(rollout.reward, valid),
        "train/invalid_rows": jnp.sum(1.0 - valid),
        "train/replay_steps": (replay.filled * config.num_envs).astype(jnp.float32),
    }


def next_noise(noise: jax.Array, rollout: Rollout, key: jax.Array, config: FastTD3Config) -> jax.Array:
    """The noise of the next iteration, ``[N]``: drawn anew where an episode has ended."""
    ended = jnp.any(rollout.terminated | rollout.truncated, axis=0)
    return jnp.where(ended, draw_noise(key, config), noise)


def draw_noise(key: jax.Array, config: FastTD3Config) -> jax.Array:
    """Standard deviations of the exploration noise, ``[N]``."""
    return jax.random.uniform(key, (config.num_envs,), minval=config.min_noise, maxval=config.max_noise)


# --------------------------------------------------------------------------------------------- the learner


def init(key: jax.Array, config: FastTD3Config, spec: EnvSpec) -> TrainState:
    """Fresh networks, optimiser states, and an empty memory."""
    key_actor, key_critic, key_noise = jax.random.split(key, 3)
    assert spec.value_range is not None, "an unresolved spec"
    actor = Actor(spec.obs_size(spec.actor_keys), spec.action_size, config.actor_width, config.actor_output_scale, key_actor)
    in_size = spec.obs_size(spec.critic_keys) + spec.action_size
    mlp = jax.vmap(lambda key: TaperedMLP(in_size, config.critic_width, config.num_bins, key))
    critics = Critics(mlp(jax.random.split(key_critic)), *spec.value_range)
    actor_optimiser, critic_optimiser = optimisers(config)
    return TrainState(
        policy=Policy(normalizer.init(spec.observation), actor, draw_noise(key_noise, config), spec.actor_keys),
        critics=critics,
        target_critics=critics,
        actor_opt=actor_optimiser.init(eqx.filter(actor, eqx.is_array)),
        critic_opt=critic_optimiser.init(eqx.filter(critics, eqx.is_array)),
        updates=jnp.zeros((), jnp.int32),
        replay=memory.init(spec, config.replay_steps, config.num_envs),
    )


def act(policy: Policy, obs: PyTree, key: jax.Array, greedy: bool | jax.Array) -> tuple[jax.Array, jax.Array]:
    """Actions in [-1, 1], ``[N, A]``, with each environment's own noise unless ``greedy``; twice, as a rollout has them."""
    action = policy(obs)
    # An evaluation has fewer environments, perhaps, and no use for their noise.
    noise = policy.noise[: action.shape[0], None] * jax.random.normal(key, action.shape)
    action = jnp.where(greedy, action, jnp.clip(action + noise, -1.0, 1.0))
    return action, action


def make_learner(config: FastTD3Config, spec: EnvSpec) -> Learner:
    """FastTD3 as a `Learner`. ``spec`` must be resolved: see `reppo.envs.spec.resolve`."""
    if spec.discrete:
        raise ConfigError(f"{spec.name} has discrete actions; FastTD3 is for continuous ones")
    if spec.image:
        raise ConfigError(f"{spec.name} has images as observations; FastTD3 reads vectors")
    return Learner(
        init=lambda key: init(key, config, spec),
        policy=lambda state: state.policy,
        act=act,
        update=lambda state, rollout, key: update(state, rollout, key, config, spec),
        optimiser_steps=config.num_updates + config.num_updates // config.policy_delay,
        replay=lambda state: state.replay,
    )
