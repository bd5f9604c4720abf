"""Brax's PPO and SAC (`brax.training.agents`), see `reppo.baselines.foreign`."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from reppo import envs, export
from reppo.baselines.brax_config import BraxConfig, PPOConfig, SACConfig
from reppo.baselines.foreign import FLOAT, Evaluate, Params, num_parallel
from reppo.envs.spec import EnvSpec, check_observation
from reppo.errors import ConfigError
from reppo.evaluate import Evaluation, GreedyEpisodes
from reppo.normalizer import EPSILON
from reppo.outcome import size_of
from reppo.types import PyTree


def make(env: envs.AnyEnv, config: BraxConfig, seed: int) -> BraxAgent:
    """Brax's algorithm on an environment; raises `ConfigError` where it cannot be."""
    del seed
    if importlib.util.find_spec("brax") is None:
        raise ConfigError(f"{config.name} is Brax's, which is not installed: pip install 'reppo[brax]'")
    made, spec = usable(env, config)
    return AGENTS[type(config)](made, spec, config)


def usable(env: envs.AnyEnv, config: BraxConfig) -> tuple[envs.Env, EnvSpec]:
    """The environment, and its spec with the time limit; raises `ConfigError` where Brax cannot train on it."""
    what = config.name.upper()
    if not isinstance(env, envs.Env):
        raise ConfigError(f"{env.name} steps on the host; Brax's {what} takes environments that are written in JAX")
    spec = env.spec()
    check_observation(spec.name, spec.observation)
    if spec.discrete:
        raise ConfigError(f"{spec.name} has discrete actions; Brax's {what} is for continuous ones")
    if spec.image:
        raise ConfigError(f"{spec.name} has images as observations; this baseline reads vectors")
    if not np.isfinite([spec.action_low, spec.action_high]).all():
        raise ConfigError(f"{spec.name} has actions without bounds; Brax's {what} needs them")
    if config.episode_length is None and spec.episode_length is None:
        raise ConfigError(f"{spec.name} has no time limit: set episode_length")
    return env, dataclasses.replace(spec, episode_length=config.episode_length or spec.episode_length)


@contextlib.contextmanager
def jax_of_brax() -> Iterator[None]:
    """JAX with a function that Brax 0.14.2 calls and JAX 0.10 has no more: a pytree with a leading axis of devices."""
    if hasattr(jax, "device_put_replicated"):
        yield
        return

    def device_put_replicated(tree: PyTree, devices: Sequence[Any]) -> PyTree:
        (device,) = devices  # we ask Brax for one
        return jax.tree.map(lambda x: jax.device_put(jnp.asarray(x)[None], device), tree)

    with replaced(jax, "device_put_replicated", device_put_replicated):
        yield


@contextlib.contextmanager
def replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    """A module with another value of this name, or one that it does not have."""
    before = vars(module).get(name)
    setattr(module, name, value)
    try:
        yield
    finally:
        if before is None:
            delattr(module, name)
        else:
            setattr(module, name, before)


# ------------------------------------------------------------------------------------------------ the policy


def exported(params: Params, keys: tuple[str, ...], normalize: bool, activation: str) -> Any:
    """Brax's policy, as `reppo.export.save_policy` takes one: the greedy half of its network."""
    statistics, network = params[0], params[1]["params"]
    mean, std = (np.asarray(x[keys[0]] if keys else x) for x in (statistics.mean, statistics.std))
    if not normalize:
        mean, std = np.zeros_like(mean), np.ones_like(std)
    layers = [network[f"hidden_{i}"] for i in range(len(network))]
    linear = [SimpleNamespace(weight=np.asarray(x["kernel"]), bias=np.asarray(x["bias"])) for x in layers]
    # Dividing by the standard deviation goes into the first weights: in a file, a variance has another epsilon.
    linear[0].weight = linear[0].weight / std[:, None]
    half = linear[-1].bias.size // 2
    linear[-1].weight, linear[-1].bias = linear[-1].weight[:, :half], linear[-1].bias[:half]
    mlp = SimpleNamespace(hidden=linear[:-1], output=linear[-1], activation=activation)
    var = np.full_like(mean, 1.0 - EPSILON)
    normalizer = SimpleNamespace(mean={keys[0]: mean}, var={keys[0]: var}) if keys else SimpleNamespace(mean=mean, var=var)
    return SimpleNamespace(normalizer=normalizer, actor=SimpleNamespace(mlp=mlp))


# ------------------------------------------------------------------------------------------------ the algorithms


class BraxAgent:
    """What both algorithms have: greedy episodes of a policy, and its file."""

    hint = "fewer num_envs, a smaller batch_size or max_replay_size"
    activation: str  #: of the policy
    policy_keys: tuple[str, ...]  #: the entry of a dict observation that the policy sees, if it is one

    def __init__(self, env: envs.Env, spec: EnvSpec, config: Any):
        self.env, self.spec, self.config = env, spec, config

    def act(self, params: Params, obs: PyTree) -> jax.Array:
        """Greedy actions in [-1, 1]."""
        raise NotImplementedError

    def memory_parts(self) -> dict[str, int]:
        raise NotImplementedError

    def train(self, seed: int, evaluate: Evaluate) -> None:
        raise NotImplementedError

    def sound(self, params: Params) -> bool:
        return all(np.isfinite(x).all() for x in jax.tree.leaves(jax.device_get(params)))

    @functools.cached_property
    def _episodes(self) -> GreedyEpisodes:
        return GreedyEpisodes(self.env, self.spec, num_parallel(self.config), self.act)

    def episodes(self, params: Params, number: int, seed: int) -> list[Evaluation]:
        return self._episodes(params, number, seed)

    def save(self, params: Params, path: Path) -> None:
        policy = exported(jax.device_get(params), self.policy_keys, self.config.normalize_observations, self.activation)
        export.save_policy(path, policy, dataclasses.replace(self.spec, actor_keys=self.policy_keys))

    def close(self) -> None:
        """Nothing is held."""


class PPO(BraxAgent):
    """`brax.training.agents.ppo`."""

    activation = "silu"

    def __init__(self, env: envs.Env, spec: EnvSpec, config: PPOConfig):
        from brax.training.acme import running_statistics
        from brax.training.agents.ppo import networks

        super().__init__(env, spec, config)
        shape = jax.tree.map(lambda x: x.shape, spec.observation)
        self.policy_keys = ()
        if isinstance(spec.observation, dict):
            for key in (config.policy_obs_key, config.value_obs_key):
                if key not in spec.observation:
                    raise ConfigError(f"{spec.name} has no observation entry {key!r}; it has {', '.join(spec.observation)}")
            self.policy_keys = (config.policy_obs_key,)
        self.network_factory: Any = functools.partial(
            networks.make_ppo_networks,
            policy_hidden_layer_sizes=config.policy_hidden_layer_sizes,
            value_hidden_layer_sizes=config.value_hidden_layer_sizes,
            policy_obs_key=config.policy_obs_key,
            value_obs_key=config.value_obs_key,
        )
        normalize: Any = running_statistics.normalize if config.normalize_observations else lambda x, _: x
        self.networks = self.network_factory(shape, spec.action_size, preprocess_observations_fn=normalize)
        self.make_policy = networks.make_inference_fn(self.networks)

    def act(self, params: Params, obs: PyTree) -> jax.Array:
        return self.make_policy(params, deterministic=True)(obs, jax.random.key(0))[0]

    def memory_parts(self) -> dict[str, int]:
        key, spec = jax.random.key(0), self.spec
        networks = [jax.eval_shape(n.init, key) for n in (self.networks.policy_network, self.networks.value_network)]
        # Adam has two of every parameter; a step has two observations, the action twice, and six numbers: its log
        # probability, reward, discount, truncation, value target and advantage.
        obs = size_of(spec.observation)
        step = 2 * obs + FLOAT * (2 * spec.action_size + 6)
        parameters = 3 * size_of(networks) + 3 * obs
        return {"parameters": parameters, "batch": step * self.config.iteration_steps, "replay": 0}

    def train(self, seed: int, evaluate: Evaluate) -> None:
        from brax.training.agents.ppo import train as ppo

        from reppo.envs.brax_training import prepared

        config, calls = self.config, iter(range(self.config.num_epochs + 1))
        environment, wrap_env_fn = prepared(self.env)
        with jax_of_brax():
            ppo.train(
                environment,
                wrap_env_fn=wrap_env_fn,
                max_devices_per_host=1,
                seed=seed,
                num_timesteps=config.total_steps,
                num_evals=config.num_epochs + 1,
                num_resets_per_eval=1 if config.reset_every else 0,
                episode_length=self.spec.time_limit,
                run_evals=False,
                policy_params_fn=lambda steps, _, params: evaluate(next(calls), config.num_epochs, steps, params),
                network_factory=self.network_factory,
                **passed_on(config),
            )


class SAC(BraxAgent):
    """`brax.training.agents.sac`."""

    activation = "relu"

    def __init__(self, env: envs.Env, spec: EnvSpec, config: SACConfig):
        from brax.training.acme import running_statistics
        from brax.training.agents.sac import networks

        super().__init__(env, spec, config)
        self.policy_keys = ()
        if isinstance(spec.observation, dict):
            raise ConfigError(f"{spec.name} has dict observations, which Brax's SAC does not take")
        self.network_factory: Any = functools.partial(
            networks.make_sac_networks,
            hidden_layer_sizes=config.hidden_layer_sizes,
            q_network_layer_norm=config.q_network_layer_norm,
        )
        normalize: Any = running_statistics.normalize if config.normalize_observations else lambda x, _: x
        self.networks = self.network_factory(spec.obs_size(()), spec.action_size, preprocess_observations_fn=normalize)
        self.make_policy = networks.make_inference_fn(self.networks)

    def act(self, params: Params, obs: PyTree) -> jax.Array:
        return self.make_policy(params, deterministic=True)(obs, jax.random.key(0))[0]

    def memory_parts(self) -> dict[str, int]:
        key, spec, config = jax.random.key(0), self.spec, self.config
        policy, critics = (
            size_of(jax.eval_shape(n.init, key)) for n in (self.networks.policy_network, self.networks.q_network)
        )
        obs = size_of(spec.observation)
        # Adam has two of every parameter, and the critics have targets; a transition has two observations, an action,
        # and three numbers: reward, discount and truncation.
        transition = 2 * obs + FLOAT * (spec.action_size + 3)
        return {
            "parameters": 3 * policy + 4 * critics + 3 * obs,
            "batch": transition * config.batch_size * config.grad_updates_per_step,
            "replay": transition * config.max_replay_size,
        }

    def train(self, seed: int, evaluate: Evaluate) -> None:
        from brax.training.agents.sac import train as sac

        from reppo.envs.brax_training import prepared

        config, calls = self.config, iter(range(self.config.num_evals + 1))
        environment, wrap_env_fn = prepared(self.env)
        # Brax's SAC hands its policy to nobody but its own evaluation.
        with jax_of_brax(), replaced(sac.acting, "Evaluator", PassedThrough):
            sac.train(
                environment,
                wrap_env_fn=wrap_env_fn,
                max_devices_per_host=1,
                seed=seed,
                num_timesteps=config.total_steps,
                num_evals=config.num_evals + 1,
                episode_length=self.spec.time_limit,
                progress_fn=lambda steps, found: evaluate(next(calls), config.num_evals, steps, found["params"]),
                network_factory=self.network_factory,
                **passed_on(config),
            )


class PassedThrough:
    """In place of `brax.training.acting.Evaluator`: its result is the policy, for ``progress_fn``."""

    def __init__(self, *args: Any, **kwargs: Any):
        del args, kwargs

    def run_evaluation(self, policy_params: Params, training_metrics: Any) -> dict[str, Any]:
        del training_metrics
        return {"params": policy_params}


#: Fields of a configuration that are no arguments of Brax's: they are passed under other names, or are ours.
OURS = {"total_steps", "episode_length", "num_evals", "eval_episodes", "reset_every"}
OF_NETWORKS = {
    "policy_hidden_layer_sizes", "value_hidden_layer_sizes", "policy_obs_key", "value_obs_key", "hidden_layer_sizes",
    "q_network_layer_norm",
}  # fmt: skip


def passed_on(config: BraxConfig) -> dict[str, Any]:
    """The fields of a configuration that are arguments of Brax's training, by the same names."""
    return {name: value for name, value in dataclasses.asdict(config).items() if name not in OURS | OF_NETWORKS}


AGENTS: dict[type[Any], Callable[[Any, Any, Any], BraxAgent]] = {PPOConfig: PPO, SACConfig: SAC}
