"""Stable-Baselines3's PPO and SAC on environments of Gymnasium, with the settings of RL Baselines3 Zoo; see
`reppo.baselines.foreign`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from reppo import envs
from reppo.baselines import uninstalled
from reppo.baselines.foreign import FLOAT, Evaluate, Params, num_parallel
from reppo.config import check_counts, check_positive, check_types
from reppo.envs.spec import EnvSpec, check_observation
from reppo.errors import ConfigError
from reppo.evaluate import Evaluation, first_episodes
from reppo.types import PyTree

SUITE = "gymnasium:"

# ------------------------------------------------------------------------------------------------ settings


@dataclasses.dataclass(frozen=True)
class SB3Config:
    """What both algorithms have; names and defaults are Stable-Baselines3's."""

    # ---- budget and data
    total_steps: int = 1_000_000
    """Environment steps of the whole run, at least."""
    num_envs: int = 1
    """Environments, stepped one after another."""
    episode_length: int | None = None
    """Time limit in steps; unset: the environment's own."""

    # ---- evaluation
    num_evals: int = 20
    """Evaluations after the first, evenly over the run; the last one is at its end."""
    eval_episodes: int = 64
    """Fresh greedy episodes per evaluation."""

    # ---- learning
    learning_rate: float = 3e-4
    """Adam's learning rate."""
    anneal_learning_rate: bool = False
    """Decay it linearly to zero over the run."""
    gamma: float = 0.99
    """Discount per environment step."""
    batch_size: int = 64
    """Transitions of a minibatch."""
    normalize: bool = False
    """VecNormalize: running mean and variance of observations, and the scale of rewards."""
    use_sde: bool = False
    """Exploration that depends on the state (gSDE), in place of independent noise."""
    sde_sample_freq: int = -1
    """Steps after which gSDE draws new noise; -1: at the start of a rollout only."""
    net_arch: tuple[int, ...] = (64, 64)
    """Hidden widths, of actor and of critic."""
    activation: str = "tanh"
    """Of the hidden layers: tanh or relu."""
    log_std_init: float = 0.0
    """Log of the policy's standard deviation at the start."""

    name = ""  # of the algorithm
    packages = ("torch", "stable_baselines3")
    extra = "sb3"  # of our package, which installs them
    positive = "total_steps num_envs episode_length num_evals eval_episodes learning_rate batch_size"

    def validate(self) -> None:
        """Raise `ConfigError` at the first value that cannot be trained with."""
        check_types(self)
        check_counts(self)
        check_positive(self, self.positive)
        if not 0 <= self.gamma <= 1:
            raise ConfigError(f"gamma must be between 0 and 1, got {self.gamma}")
        if self.activation not in ("tanh", "relu"):
            raise ConfigError(f"activation must be tanh or relu, got {self.activation!r}")
        if not (self.net_arch and all(width > 0 for width in self.net_arch)):
            raise ConfigError(f"net_arch must be positive widths, got {','.join(map(str, self.net_arch)) or 'none'}")


@dataclasses.dataclass(frozen=True)
class PPOConfig(SB3Config):
    """PPO."""

    n_steps: int = 2048
    """Steps of each environment between two updates."""
    n_epochs: int = 10
    """Passes over them."""
    gae_lambda: float = 0.95
    """Lambda of the generalised advantage estimation."""
    ent_coef: float = 0.0
    """Weight of the entropy bonus."""
    clip_range: float = 0.2
    """The ratio of probabilities is clipped to 1 plus or minus this."""
    anneal_clip_range: bool = False
    """Decay it linearly to zero over the run."""
    vf_coef: float = 0.5
    """Weight of the value function's loss."""
    max_grad_norm: float = 0.5
    """Gradients are clipped to this global norm."""
    ortho_init: bool = True
    """Orthogonal first weights."""

    name = "sb3-ppo"
    positive = f"{SB3Config.positive} n_steps n_epochs clip_range max_grad_norm"


@dataclasses.dataclass(frozen=True)
class SACConfig(SB3Config):
    """SAC."""

    batch_size: int = 256
    net_arch: tuple[int, ...] = (256, 256)
    activation: str = "relu"
    log_std_init: float = -3.0
    buffer_size: int = 1_000_000
    """Transitions that the replay memory holds."""
    learning_starts: int = 100
    """Environment steps before the first step of an optimiser."""
    tau: float = 0.005
    """Share of the critics that goes into their targets at every step."""
    train_freq: int = 1
    """Environment steps between updates."""
    gradient_steps: int = 1
    """Minibatches of an update."""

    name = "sb3-sac"
    positive = f"{SB3Config.positive} buffer_size train_freq gradient_steps"


MUJOCO = {
    "normalize": True, "n_steps": 512, "activation": "relu", "net_arch": (256, 256), "log_std_init": -2.0,
    "ortho_init": False,
}  # fmt: skip
HALF_CHEETAH = {
    **MUJOCO, "gamma": 0.98, "learning_rate": 2.0633e-5, "ent_coef": 0.000401762, "clip_range": 0.1, "n_epochs": 20,
    "gae_lambda": 0.92, "max_grad_norm": 0.8, "vf_coef": 0.58096,
}  # fmt: skip
WALKER_2D = {  # with the library's own network: the Zoo gives no policy_kwargs here
    "normalize": True, "n_steps": 512, "batch_size": 32, "gamma": 0.99, "learning_rate": 5.05041e-5, "ent_coef": 0.000585045,
    "clip_range": 0.1, "n_epochs": 20, "gae_lambda": 0.95, "max_grad_norm": 1.0, "vf_coef": 0.871923,
}  # fmt: skip
CHEETAH_RUN, WALKER_WALK = (f"shimmy:dm_control/{task}-v0" for task in ("cheetah-run", "walker-walk"))
DM_CONTROL = {"episode_length": 1000}
MUJOCO_SAC = {"learning_starts": 10_000}

#: RL Baselines3 Zoo's settings, ``hyperparams/ppo.yml`` and ``sac.yml``. It has MuJoCo's tasks as -v3; their settings are
#: used for -v5. It has none for DeepMind Control's tasks, which Shimmy brings to Gymnasium: they have those of the robot
#: that is most like theirs. They end of themselves after 1,000 steps, which their registration does not say.
ZOO: Mapping[tuple[str, str], dict[str, Any]] = {
    ("Pendulum-v1", "sb3-ppo"): {
        "total_steps": 100_000, "num_envs": 4, "n_steps": 1024, "gae_lambda": 0.95, "gamma": 0.9, "n_epochs": 10,
        "learning_rate": 1e-3, "clip_range": 0.2, "use_sde": True, "sde_sample_freq": 4,
    },
    ("CartPole-v1", "sb3-ppo"): {
        "total_steps": 100_000, "num_envs": 8, "n_steps": 32, "batch_size": 256, "gae_lambda": 0.8, "gamma": 0.98,
        "n_epochs": 20, "learning_rate": 1e-3, "anneal_learning_rate": True, "clip_range": 0.2,
        "anneal_clip_range": True,
    },
    ("HalfCheetah-v5", "sb3-ppo"): HALF_CHEETAH,
    ("Hopper-v5", "sb3-ppo"): {
        **MUJOCO, "batch_size": 32, "gamma": 0.999, "learning_rate": 9.80828e-5, "ent_coef": 0.00229519,
        "clip_range": 0.2, "n_epochs": 5, "gae_lambda": 0.99, "max_grad_norm": 0.7, "vf_coef": 0.835671,
    },
    ("Walker2d-v5", "sb3-ppo"): WALKER_2D,
    ("Ant-v5", "sb3-ppo"): {"normalize": True},
    ("Pendulum-v1", "sb3-sac"): {"total_steps": 20_000, "learning_rate": 1e-3},
    **{(f"{task}-v5", "sb3-sac"): MUJOCO_SAC for task in ("HalfCheetah", "Ant", "Hopper", "Walker2d")},
    (CHEETAH_RUN, "sb3-ppo"): {**HALF_CHEETAH, **DM_CONTROL},
    (WALKER_WALK, "sb3-ppo"): {**WALKER_2D, **DM_CONTROL},
    **{(task, "sb3-sac"): {**MUJOCO_SAC, **DM_CONTROL} for task in (CHEETAH_RUN, WALKER_WALK)},
}  # fmt: skip


def presets(env: str, algorithm: str) -> dict[str, Any]:
    """``published``: the Zoo's settings of a task, or the library's defaults; ``cpu`` is the same, as it is for a CPU."""
    default = {"sb3-ppo": PPOConfig, "sb3-sac": SACConfig}[algorithm]()
    config = dataclasses.replace(default, **ZOO.get((env.removeprefix(SUITE), algorithm), {}))
    return {"published": config, "cpu": config}


# ------------------------------------------------------------------------------------------------ training


class Agent:
    """A model of Stable-Baselines3 on an environment, and its greedy episodes on another copy of it."""

    hint = "a smaller buffer_size or n_steps"

    def __init__(self, env: envs.AnyEnv, config: SB3Config, seed: int):
        self.spec = suited(env, config)
        self.config = config
        assert isinstance(env, envs.HostEnv)
        self.vector = vector_env(env.name.removeprefix(SUITE), config, self.spec, seed)
        self.model = self.make_model(seed)
        self.evaluation = env.for_evaluation().start(self.spec, num_parallel(config))

    def make_model(self, seed: int) -> Any:
        """The library's model with these settings."""
        import stable_baselines3  # pyright: ignore[reportMissingImports]
        import torch  # pyright: ignore[reportMissingImports]

        activations = {"tanh": torch.nn.Tanh, "relu": torch.nn.ReLU}
        return model(stable_baselines3, activations, self.vector, self.config, seed)

    def parameter_bytes(self) -> int:
        """Of the networks and their optimisers."""
        policy = self.model.policy
        owners = [policy] if isinstance(self.config, PPOConfig) else [policy.actor, policy.critic]
        learned = sum(p.numel() for owner in owners for group in owner.optimizer.param_groups for p in group["params"])
        every = sum(p.numel() for p in policy.parameters())
        # Adam has two of every parameter that it moves; targets have none.
        return FLOAT * (2 * learned + every)

    def memory_parts(self) -> dict[str, int]:
        """Bytes that a run has to hold at least, see `reppo.run.Run.memory_parts`."""
        obs = FLOAT * self.spec.obs_size(self.spec.actor_keys)
        action = FLOAT * (1 if self.spec.discrete else self.spec.action_size)
        parts = {"parameters": self.parameter_bytes()}
        if isinstance(self.config, PPOConfig):
            # Reward, value, log probability, advantage, return, and whether an episode begins.
            return {**parts, "batch": (obs + action + 6 * FLOAT) * self.config.n_steps * self.config.num_envs, "replay": 0}
        assert isinstance(self.config, SACConfig)
        transition = 2 * obs + action + 3 * FLOAT  # reward, end, time limit
        return {**parts, "batch": transition * self.config.batch_size, "replay": transition * self.config.buffer_size}

    def train(self, seed: int, evaluate: Evaluate) -> None:
        from stable_baselines3.common.callbacks import BaseCallback  # pyright: ignore[reportMissingImports]

        del seed  # the model has it
        config = self.config
        points = [round(i * config.total_steps / config.num_evals) for i in range(config.num_evals)]

        class Evaluations(BaseCallback):
            done = 1  #: evaluations so far

            def _on_step(self) -> bool:
                # The last one is for after the last update.
                while self.done < config.num_evals and self.num_timesteps >= points[self.done]:
                    evaluate(self.done, config.num_evals, self.num_timesteps, None)
                    self.done += 1
                return True

        evaluate(0, config.num_evals, 0, None)
        self.model.learn(config.total_steps, callback=Evaluations())
        evaluate(config.num_evals, config.num_evals, self.model.num_timesteps, None)

    def sound(self, params: Params) -> bool:
        del params  # there is one policy, which learns in place
        return all(bool(parameter.isfinite().all()) for parameter in self.model.policy.parameters())

    def act(self, obs: PyTree) -> np.ndarray:
        """Greedy actions in [-1, 1], or discrete ones, of observations ``[N, D]``, or a dict of such."""
        obs = one_vector(obs, self.spec)
        if self.config.normalize:
            obs = self.vector.normalize_obs(obs)
        action, _ = self.model.predict(obs, deterministic=True)
        if self.spec.discrete:
            return action
        low, high = np.asarray(self.spec.action_low), np.asarray(self.spec.action_high)
        return (2 * (action - low) / (high - low) - 1).astype(np.float32)

    def episodes(self, params: Params, number: int, seed: int) -> list[Evaluation]:
        del params
        seeds = np.random.SeedSequence(seed).generate_state(number)
        results = [first_episodes(self.evaluation, self.act, int(word >> 1), None) for word in seeds]
        return [result for result in results if result is not None]

    def save(self, params: Params, path: Path) -> None:
        """Not at all: PPO's actions are clipped rather than squashed, which our files cannot say; theirs are pickles."""

    def close(self) -> None:
        self.vector.close()
        self.evaluation.close()


def suited(env: envs.AnyEnv, config: SB3Config) -> EnvSpec:
    """The environment's spec with the time limit; raises `ConfigError` where Stable-Baselines3 cannot train on it."""
    spec = env.spec()
    if missing := uninstalled(config.name, spec.name):
        raise ConfigError(missing)
    if not (isinstance(env, envs.HostEnv) and env.name.startswith(SUITE)):
        raise ConfigError(f"{config.name} takes Gymnasium's environments, such as gymnasium:HalfCheetah-v5, not {spec.name}")
    check_observation(spec.name, spec.observation)
    if spec.image:
        raise ConfigError(f"{spec.name} has images as observations; this baseline reads vectors")
    if spec.discrete and isinstance(config, SACConfig):
        raise ConfigError(f"{spec.name} has discrete actions; {config.name} is for continuous ones")
    if not spec.discrete and not np.isfinite([spec.action_low, spec.action_high]).all():
        raise ConfigError(f"{spec.name} has actions without bounds; {config.name} needs them")
    length = config.episode_length or spec.episode_length
    if length is None:
        raise ConfigError(f"{spec.name} has no time limit: set episode_length")
    return dataclasses.replace(spec, episode_length=length)


def one_vector(obs: PyTree, spec: EnvSpec) -> np.ndarray:
    """Observations ``[N, D]``; of a dict what the actor sees, as the networks of REPPO read it."""
    if not isinstance(obs, dict):
        return obs
    return np.concatenate([obs[key] for key in spec.actor_keys], axis=-1)


def with_one_vector(env: Any, spec: EnvSpec) -> Any:
    """A Gymnasium environment with dict observations, as one with the vectors that `one_vector` makes of them."""
    from reppo.envs import gymnasium

    size = spec.obs_size(spec.actor_keys)
    return gymnasium.with_vectors(env, spec.name, lambda obs: one_vector(obs, spec), size)


def vector_env(name: str, config: SB3Config, spec: EnvSpec, seed: int) -> Any:
    """The training environments, as Stable-Baselines3 makes them."""
    from stable_baselines3.common.env_util import make_vec_env  # pyright: ignore[reportMissingImports]
    from stable_baselines3.common.vec_env import VecNormalize  # pyright: ignore[reportMissingImports]

    limit = {"max_episode_steps": spec.time_limit}
    wrapper = functools.partial(with_one_vector, spec=spec) if isinstance(spec.observation, dict) else None
    vector = make_vec_env(name, n_envs=config.num_envs, seed=seed, env_kwargs=limit, wrapper_class=wrapper)
    return VecNormalize(vector, gamma=config.gamma) if config.normalize else vector


def model(library: Any, activations: Mapping[str, Any], vector: Any, config: SB3Config, seed: int) -> Any:
    """A library's ``PPO`` or ``SAC`` with these settings; ``activations`` are its functions by our names."""

    def schedule(value: float, anneal: bool) -> Any:
        return (lambda left: left * value) if anneal else value

    widths = list(config.net_arch)
    policy: dict[str, Any] = {"log_std_init": config.log_std_init, "activation_fn": activations[config.activation]}
    common = {
        "seed": seed,
        "learning_rate": schedule(config.learning_rate, config.anneal_learning_rate),
        "device": "auto",
    }
    passed = ("gamma", "batch_size", "use_sde", "sde_sample_freq")
    if isinstance(config, PPOConfig):
        passed += ("n_steps", "n_epochs", "gae_lambda", "ent_coef", "vf_coef", "max_grad_norm")
        common["clip_range"] = schedule(config.clip_range, config.anneal_clip_range)
        policy |= {"net_arch": {"pi": widths, "vf": widths}, "ortho_init": config.ortho_init}
        make: Any = library.PPO
    else:
        passed += ("buffer_size", "learning_starts", "tau", "train_freq", "gradient_steps")
        policy["net_arch"] = widths
        make = library.SAC
    settings = {name: getattr(config, name) for name in passed}
    return make("MlpPolicy", vector, policy_kwargs=policy, **settings, **common)
