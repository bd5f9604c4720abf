"""Brax's PPO and SAC (`brax.training.agents`), trained by Brax itself, evaluated and recorded by us.

Brax owns the loop: there are no checkpoints, and a run that was stopped cannot go on. What we add is between its
stretches of training: the greedy evaluation that every algorithm here has, the tables, and the policy as a file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import json
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from reppo import envs, export, run_directory
from reppo.baselines.brax_config import BraxConfig, PPOConfig, SACConfig
from reppo.config import ConfigError
from reppo.envs.spec import EnvSpec, check_observation
from reppo.evaluate import MAX_PARALLEL, Evaluation, GreedyEpisodes
from reppo.files import write_json
from reppo.loop import Clock, Diverged, due, memory, size_of
from reppo.normalizer import EPSILON
from reppo.plot import plot_run
from reppo.provenance import provenance
from reppo.sinks import CsvSink, Event, Sink, best_evaluation
from reppo.types import PyTree

FLOAT = 4  #: bytes
Params = Any  #: of Brax: statistics of the observations, the policy's parameters, and perhaps others


class Agent(Protocol):
    """One of Brax's algorithms, as we need it."""

    policy_keys: tuple[str, ...]  #: the entry of a dict observation that the policy sees, if it is one
    activation: str  #: of the policy

    def act(self, params: Params, obs: PyTree) -> jax.Array:
        """Greedy actions in [-1, 1]."""
        ...

    def memory_parts(self) -> dict[str, int]:
        """Bytes that a run has to hold at least, see `reppo.loop.Run.memory_parts`."""
        ...

    def train(self, seed: int, evaluate: Callable[[int, int, int, Params], None]) -> None:
        """Train to the end; calls ``evaluate(stretch, of how many, env_steps, params)`` before and after each stretch."""
        ...


def train(
    env: str,
    config: BraxConfig,
    *,
    seed: int,
    out: Path,
    command: str,
    sinks: Sequence[Sink] = (),
    started: float | None = None,
) -> None:
    """Train one seed, and leave the files of a run in a new directory.

    Args:
        env: as for `reppo.loop.train`; it must be written in JAX.
        config: what to train, and how.
        seed: of Brax; our evaluations have their own.
        out: a new directory.
        command: what makes this run again, for ``config.json``.
        sinks: further receivers of evaluations.
        started: when the clock began (`time.perf_counter`); unset, now.

    Raises:
        ConfigError: for anything that the caller can mend.
        Diverged: where parameters are not finite.
    """
    clock = Clock(time.perf_counter() if started is None else started)
    config.validate()
    run_directory.check_free(out)
    if not 0 <= seed < 2**32:
        raise ConfigError(f"seeds must be between 0 and 2**32 - 1, got {seed}")
    if importlib.util.find_spec("brax") is None:
        raise ConfigError(f"{config.name} is Brax's, which is not installed: pip install 'reppo[brax]'")
    made, spec = usable(envs.make(env), config)
    agent = AGENTS[type(config)](made, spec, config)
    check_memory(agent)
    description = describe(spec, config, seed, command)
    run_directory.create(out, description)
    with (
        run_directory.locked(out),
        run_directory.dropped_unless_begun(out, "evaluations.csv"),
        run_directory.explained_disk_errors(out),
        contextlib.ExitStack() as stack,
    ):
        record = Record(made, spec, config, agent, seed, out, [CsvSink(out), *sinks], clock)
        for sink in record.sinks:
            stack.callback(sink.close)
            sink.begin(json.loads(json.dumps(description)))
            sink.write(Event.status("compiling the simulator"))
        with jax_of_brax():
            agent.train(seed, record)
        plot_run(out)
        write_json(out / "summary.json", record.summary())


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


def check_memory(agent: Agent) -> None:
    """Refuse a run that cannot fit, see `reppo.loop.Run.check_memory`."""
    needed, there = sum(agent.memory_parts().values()), memory()
    if there is not None and needed > there:
        raise ConfigError(
            f"this run needs at least {needed / 2**30:,.1f} GiB of memory, and there are {there / 2**30:,.1f}: set fewer "
            f"num_envs, a smaller batch_size or max_replay_size"
        )


def describe(spec: EnvSpec, config: BraxConfig, seed: int, command: str) -> dict[str, Any]:
    """The contents of ``config.json``."""
    return {
        "algorithm": config.name,
        "env": spec.name,
        "seeds": [seed],
        "config": dataclasses.asdict(config),
        "command": command,
        "spec": {
            "action_size": spec.action_size,
            "discrete": spec.discrete,
            "episode_length": spec.episode_length,
            "value_range": None,
            "max_return": spec.max_return,
            "actor_keys": spec.actor_keys,
            "critic_keys": spec.critic_keys,
        },
        **provenance(),
    }


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


# ------------------------------------------------------------------------------------------------ what is recorded


class Record:
    """What is done between two stretches of training: the policy is evaluated where that is due, and saved."""

    def __init__(
        self,
        env: envs.Env,
        spec: EnvSpec,
        config: BraxConfig,
        agent: Agent,
        seed: int,
        directory: Path,
        sinks: Sequence[Sink],
        clock: Clock,
    ):
        self.spec, self.config, self.agent, self.seed = spec, config, agent, seed
        self.directory, self.sinks, self.clock = directory, sinks, clock
        num_envs = min(config.eval_episodes, MAX_PARALLEL)
        self.episodes = GreedyEpisodes(env, spec, num_envs, agent.act)
        self.evaluations: list[dict[str, float]] = []
        self.returns = np.zeros(0)

    def __call__(self, stretch: int, stretches: int, env_steps: int, params: Params) -> None:
        if not all(np.isfinite(x).all() for x in jax.tree.leaves(jax.device_get(params))):
            raise Diverged(f"seed {self.seed} stopped at {env_steps:,} steps: its networks are not finite any more")
        if due(stretch, stretches, self.config.num_evals):
            self.evaluate(stretch, env_steps, params)

    def evaluate(self, stretch: int, env_steps: int, params: Params) -> None:
        """Fresh greedy episodes, the same first states every time; then the policy's file."""
        wanted = self.config.eval_episodes
        batches = self.episodes(params, -(-wanted // self.episodes.num_envs), self.seed)
        result = Evaluation(*(np.concatenate(parts)[:wanted] for parts in zip(*batches, strict=True)))
        self.returns = result.returns
        row = {
            "seed": float(self.seed),
            "iteration": float(stretch),
            "env_steps": float(env_steps),
            "eval/return": float(result.returns.mean()),
            "eval/return_std": float(result.returns.std()),
            "eval/return_min": float(result.returns.min()),
            "eval/return_max": float(result.returns.max()),
            "eval/length": float(result.lengths.mean()),
            "eval/episodes": float(wanted),
            "eval/broken_episodes": float(result.broken.sum()),
            "time/seconds": self.clock.seconds,
        }
        self.evaluations.append(row)
        for sink in self.sinks:
            sink.write(Event("evaluations", [row]))
            if stretch == 0:
                sink.write(Event.status("compiling, then training"))
        if stretch > 0:
            self.save(params, best=best_evaluation(self.evaluations, self.seed)["iteration"] == stretch)

    def save(self, params: Params, best: bool) -> None:
        keys = self.agent.policy_keys
        policy = exported(jax.device_get(params), keys, self.config.normalize_observations, self.agent.activation)
        spec = dataclasses.replace(self.spec, actor_keys=keys)
        for name in ["policy.npz", *["best.npz"] * best]:
            export.save_policy(self.directory / name, policy, spec)

    def summary(self) -> dict[str, Any]:
        """The contents of ``summary.json``."""
        top = best_evaluation(self.evaluations, self.seed)
        return {
            "algorithm": self.config.name,
            "env": self.spec.name,
            "env_steps": int(self.evaluations[-1]["env_steps"]),
            "seconds": round(self.clock.seconds, 2),
            "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "computed_memory_bytes": self.agent.memory_parts(),
            "seeds": [
                {
                    "seed": self.seed,
                    "return_mean": float(self.returns.mean()),
                    "return_std": float(self.returns.std()),
                    "episodes": len(self.returns),
                    "best_return_mean": top["eval/return"],
                    "best_env_steps": int(top["env_steps"]),
                }
            ],
        }


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


class PPO:
    """`brax.training.agents.ppo`."""

    activation = "silu"

    def __init__(self, env: envs.Env, spec: EnvSpec, config: PPOConfig):
        from brax.training.acme import running_statistics
        from brax.training.agents.ppo import networks

        self.env, self.spec, self.config = env, spec, config
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

    def train(self, seed: int, evaluate: Callable[[int, int, int, Params], None]) -> None:
        from brax.training.agents.ppo import train as ppo

        from reppo.envs.brax_training import prepared

        config, calls = self.config, iter(range(self.config.num_epochs + 1))
        environment, wrap_env_fn = prepared(self.env)
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


class SAC:
    """`brax.training.agents.sac`."""

    activation = "relu"

    def __init__(self, env: envs.Env, spec: EnvSpec, config: SACConfig):
        from brax.training.acme import running_statistics
        from brax.training.agents.sac import networks

        self.env, self.spec, self.config = env, spec, config
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

    def train(self, seed: int, evaluate: Callable[[int, int, int, Params], None]) -> None:
        from brax.training.agents.sac import train as sac

        from reppo.envs.brax_training import prepared

        config, calls = self.config, iter(range(self.config.num_evals + 1))
        environment, wrap_env_fn = prepared(self.env)
        # Brax's SAC hands its policy to nobody but its own evaluation.
        with replaced(sac.acting, "Evaluator", PassedThrough):
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


AGENTS: dict[type[Any], Callable[[Any, Any, Any], Agent]] = {PPOConfig: PPO, SACConfig: SAC}
