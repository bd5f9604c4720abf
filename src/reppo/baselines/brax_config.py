"""Settings of Brax's PPO and SAC, by Brax's own names, and what is published for each task."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from reppo import envs
from reppo.config import check_counts, check_positive, check_types
from reppo.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class BraxConfig:
    """What both algorithms have."""

    # ---- budget and data
    total_steps: int = 60_000_000
    """Environment steps of the whole run, at least: Brax's num_timesteps."""
    num_envs: int = 2048
    """Environments stepped in parallel."""
    episode_length: int | None = None
    """Time limit in steps; unset: the environment's own."""

    # ---- evaluation
    num_evals: int = 20
    """Evaluations after the first, evenly over the run; the last one is at its end."""
    eval_episodes: int = 128
    """Fresh greedy episodes per evaluation."""

    # ---- learning
    learning_rate: float = 1e-3
    """Adam's learning rate."""
    discounting: float = 0.995
    """Discount per environment step."""
    reward_scaling: float = 10.0
    """Rewards are multiplied by it while learning."""
    normalize_observations: bool = True
    """Running mean and standard deviation per observation dimension."""
    batch_size: int = 1024
    """Of a minibatch: of PPO segments of unroll_length steps, of SAC transitions."""

    name = ""  # of the algorithm
    positive = "total_steps num_envs episode_length num_evals eval_episodes learning_rate batch_size"

    def validate(self) -> None:
        """Raise `ConfigError` at the first value that cannot be trained with."""
        check_types(self)
        check_counts(self)
        check_positive(self, self.positive)
        if not 0 <= self.discounting <= 1:
            raise ConfigError(f"discounting must be between 0 and 1, got {self.discounting}")


AnyBrax = TypeVar("AnyBrax", bound=BraxConfig)


@dataclasses.dataclass(frozen=True)
class PPOConfig(BraxConfig):
    """PPO; the defaults are those that Playground publishes for its DeepMind Control tasks."""

    unroll_length: int = 30
    """Steps of a segment, which ends in the value function's estimate."""
    num_minibatches: int = 32
    """Minibatches per pass over an iteration's segments."""
    num_updates_per_batch: int = 16
    """Passes over an iteration's segments."""
    entropy_cost: float = 1e-2
    """Weight of the entropy bonus."""
    clipping_epsilon: float = 0.3
    """The ratio of probabilities is clipped to 1 plus or minus this."""
    gae_lambda: float = 0.95
    """Lambda of the generalised advantage estimation."""
    max_grad_norm: float | None = None
    """Gradients are clipped to this global norm; unset: they are not."""
    reset_every: int = 1
    """Iterations after which all environments are reset, by num_evals and num_resets_per_eval of the source; 0: never."""
    policy_hidden_layer_sizes: tuple[int, ...] = (32, 32, 32, 32)
    """Hidden widths of the policy."""
    value_hidden_layer_sizes: tuple[int, ...] = (256, 256, 256, 256, 256)
    """Hidden widths of the value function."""
    policy_obs_key: str = "state"
    """Entry of a dict observation that the policy sees."""
    value_obs_key: str = "state"
    """Entry of a dict observation that the value function sees."""

    name = "ppo"
    positive = f"{BraxConfig.positive} unroll_length num_minibatches num_updates_per_batch clipping_epsilon max_grad_norm"

    @property
    def iteration_steps(self) -> int:
        """Environment steps between two updates."""
        return self.batch_size * self.unroll_length * self.num_minibatches

    @property
    def num_epochs(self) -> int:
        """Stretches of training between which the policy can be evaluated, each of `reset_every` iterations."""
        return -(-self.total_steps // (self.iteration_steps * max(self.reset_every, 1)))

    def validate(self) -> None:
        super().validate()
        if self.reset_every < 0 or self.entropy_cost < 0:
            raise ConfigError("reset_every and entropy_cost must not be negative")
        if not 0 <= self.gae_lambda <= 1:
            raise ConfigError(f"gae_lambda must be between 0 and 1, got {self.gae_lambda}")
        if self.batch_size * self.num_minibatches % self.num_envs:
            raise ConfigError(
                f"num_envs ({self.num_envs}) must divide batch_size * num_minibatches ({self.batch_size} * "
                f"{self.num_minibatches} = {self.batch_size * self.num_minibatches})"
            )
        check_widths(self)


@dataclasses.dataclass(frozen=True)
class SACConfig(BraxConfig):
    """SAC; the defaults are those that Playground publishes for its DeepMind Control tasks."""

    total_steps: int = 5_000_000
    num_envs: int = 128
    discounting: float = 0.99
    reward_scaling: float = 1.0
    batch_size: int = 512
    grad_updates_per_step: int = 8
    """Minibatches, each a step of every optimiser, per step of all environments."""
    tau: float = 0.005
    """Share of the critics that goes into their targets at every step of the optimiser."""
    min_replay_size: int = 8192
    """Environment steps before the first step of an optimiser."""
    max_replay_size: int = 4 * 2**20
    """Transitions that the replay memory holds."""
    hidden_layer_sizes: tuple[int, ...] = (256, 256)
    """Hidden widths of the policy and of both critics."""
    q_network_layer_norm: bool = True
    """LayerNorm in the critics."""

    name = "sac"
    positive = f"{BraxConfig.positive} grad_updates_per_step max_replay_size"

    def validate(self) -> None:
        super().validate()
        if not 0 <= self.tau <= 1:
            raise ConfigError(f"tau must be between 0 and 1, got {self.tau}")
        filled = -(-max(self.min_replay_size, 1) // self.num_envs) * self.num_envs
        if not 0 <= filled <= self.max_replay_size:
            raise ConfigError(f"max_replay_size ({self.max_replay_size}) must hold min_replay_size ({self.min_replay_size})")
        if not filled < self.total_steps:
            raise ConfigError(f"total_steps ({self.total_steps}) must go beyond min_replay_size ({self.min_replay_size})")
        check_widths(self)


def check_widths(config: BraxConfig) -> None:
    """Raise `ConfigError` where a hidden layer has no width."""
    for field in dataclasses.fields(config):
        widths = getattr(config, field.name)
        if field.name.endswith("layer_sizes") and not (widths and all(width > 0 for width in widths)):
            raise ConfigError(f"{field.name} must be positive widths, got {','.join(map(str, widths)) or 'none'}")


# ------------------------------------------------------------------------------------------------ published settings

#: Brax's own, of notebooks/training.ipynb in its repository, by task and algorithm; its environments are not reset
#: between evaluations. Reacher's repeat every action four times, which is left out here, so it has none.
BRAX: Mapping[tuple[str, str], dict[str, Any]] = {
    ("inverted_pendulum", "ppo"): {
        "total_steps": 2_000_000, "reward_scaling": 10.0, "unroll_length": 5, "num_updates_per_batch": 4,
        "discounting": 0.97, "learning_rate": 3e-4, "entropy_cost": 1e-2, "num_envs": 2048, "batch_size": 1024,
    },
    ("inverted_double_pendulum", "ppo"): {
        "total_steps": 20_000_000, "reward_scaling": 10.0, "unroll_length": 5, "num_updates_per_batch": 4,
        "discounting": 0.97, "learning_rate": 3e-4, "entropy_cost": 1e-2, "num_envs": 2048, "batch_size": 1024,
    },
    ("ant", "ppo"): {
        "total_steps": 50_000_000, "reward_scaling": 10.0, "unroll_length": 5, "num_updates_per_batch": 4,
        "discounting": 0.97, "learning_rate": 3e-4, "entropy_cost": 1e-2, "num_envs": 4096, "batch_size": 2048,
    },
    ("humanoid", "ppo"): {
        "total_steps": 50_000_000, "reward_scaling": 0.1, "unroll_length": 10, "num_updates_per_batch": 8,
        "discounting": 0.97, "learning_rate": 3e-4, "entropy_cost": 1e-3, "num_envs": 2048, "batch_size": 1024,
    },
    ("humanoidstandup", "ppo"): {
        "total_steps": 100_000_000, "reward_scaling": 0.1, "unroll_length": 15, "num_updates_per_batch": 8,
        "discounting": 0.97, "learning_rate": 6e-4, "entropy_cost": 1e-2, "num_envs": 2048, "batch_size": 1024,
    },
    ("halfcheetah", "ppo"): {
        "total_steps": 50_000_000, "reward_scaling": 1.0, "unroll_length": 20, "num_updates_per_batch": 8,
        "discounting": 0.95, "learning_rate": 3e-4, "entropy_cost": 1e-3, "num_envs": 2048, "batch_size": 512,
    },
    ("pusher", "ppo"): {
        "total_steps": 50_000_000, "reward_scaling": 5.0, "unroll_length": 30, "num_updates_per_batch": 8,
        "num_minibatches": 16, "discounting": 0.95, "learning_rate": 3e-4, "entropy_cost": 1e-2, "num_envs": 2048,
        "batch_size": 512,
    },
    ("hopper", "sac"): {
        "total_steps": 6_553_600, "reward_scaling": 30.0, "discounting": 0.997, "learning_rate": 6e-4, "num_envs": 128,
        "batch_size": 512, "grad_updates_per_step": 64, "max_replay_size": 2**20, "min_replay_size": 8192,
        "q_network_layer_norm": False,
    },
    ("walker2d", "sac"): {
        "total_steps": 7_864_320, "reward_scaling": 5.0, "discounting": 0.997, "learning_rate": 6e-4, "num_envs": 128,
        "batch_size": 128, "grad_updates_per_step": 32, "max_replay_size": 2**20, "min_replay_size": 8192,
        "q_network_layer_norm": False,
    },
}  # fmt: skip

CPU = {"total_steps": 800_000, "num_evals": 10, "eval_episodes": 64}
PPO_ENVS = 16  #: of the cpu preset: with Playground's settings, 7680 steps an iteration
SAC_ENVS = 32  #: of the cpu preset: an update every four steps


def presets(env: str, algorithm: str) -> Mapping[str, Any]:
    """An algorithm's presets for an environment, see `reppo.algorithms`."""
    return {"ppo": ppo_presets, "sac": sac_presets}[algorithm](env)


def ppo_presets(env: str) -> dict[str, PPOConfig]:
    """PPO's presets for an environment. One that has no published settings gets those of the DeepMind Control tasks."""
    published = dataclasses.replace(PPOConfig(), **published_settings(env, "ppo"))
    return {"published": published, "cpu": smaller(published, PPO_ENVS)}


def sac_presets(env: str) -> dict[str, SACConfig]:
    """The same of SAC."""
    published = dataclasses.replace(SACConfig(), **published_settings(env, "sac"))
    return {"published": published, "cpu": dataclasses.replace(smaller(published, SAC_ENVS), max_replay_size=2**20)}


def smaller(published: AnyBrax, num_envs: int) -> AnyBrax:
    """A run with fewer environments, and as many fewer rows in a minibatch.

    A short run then has about as many updates as the published one; the steps of every environment between two of PPO's
    updates, and how often SAC learns from a step, stay.
    """
    batch_size = max(1, round(published.batch_size * num_envs / published.num_envs))
    return dataclasses.replace(published, **CPU, num_envs=num_envs, batch_size=batch_size)


def published_settings(env: str, algorithm: str) -> dict[str, Any]:
    """Published settings of an environment, as fields of the algorithm's configuration; none where there are none."""
    suite, _, task = env.partition("@")[0].partition(":")
    if suite == "brax" and (task, algorithm) in BRAX:
        return {**BRAX[task, algorithm], **({"reset_every": 0} if algorithm == "ppo" else {})}
    if suite == "playground" and not envs.missing(envs.SUITES[suite]):
        found = envs.SUITES[suite].adapter().training_config(task, algorithm)
        return {} if found is None else from_playground(found, env, algorithm)
    return {}


def from_playground(source: Mapping[str, Any], env: str, algorithm: str) -> dict[str, Any]:
    """Playground's settings as fields of ours.

    Raises:
        ConfigError: where they repeat actions.
    """
    if source.get("action_repeat", 1) != 1:
        raise ConfigError(f"{env} has published settings that repeat every action, which these baselines do not")
    names = {"num_timesteps": "total_steps"}
    # How often to evaluate is the caller's choice, and with it goes, in the source, how often to reset.
    others = {"num_evals", "num_eval_envs", "num_resets_per_eval", "episode_length", "action_repeat", "network_factory"}
    settings = {names.get(name, name): value for name, value in source.items() if name not in others}
    settings |= source.get("network_factory", {})
    settings = {name: tuple(value) if isinstance(value, list | tuple) else value for name, value in settings.items()}
    if algorithm == "ppo":
        stretches = (source["num_evals"] - 1) * source["num_resets_per_eval"]
        iteration = source["batch_size"] * source["unroll_length"] * source["num_minibatches"]
        settings["reset_every"] = -(-source["num_timesteps"] // (stretches * iteration)) if stretches else 0
    return settings
