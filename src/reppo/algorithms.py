"""The algorithms, by name: where their configurations are, who trains them, and on what.

What they need is named here, and imported where one of them is used: most want packages of their own.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from typing import Any, Literal

from reppo.config import RunConfig, nearest
from reppo.envs.spec import EnvSpec
from reppo.errors import ConfigError
from reppo.types import Learner

#: Makes the agent of an environment, a configuration and a seed, see `reppo.baselines.foreign`.
MakeAgent = Callable[[Any, Any, int], Any]


@dataclasses.dataclass(frozen=True)
class Algorithm:
    """One line of `ALGORITHMS`. What it names is ``module:attribute``."""

    title: str  #: as people write it
    about: str  #: in a few words
    presets: str  #: of an environment's name and the algorithm's: its complete configurations, by name
    training: str  #: makes a `Learner` of a configuration and a spec; or, where a `library` trains it, see `MakeAgent`
    library: str = ""  #: that trains it with a loop of its own; empty: the loop is ours
    takes: Literal["any", "jax", "gymnasium"] = "any"  #: environments: any, those that are written in JAX, `gymnasium:` ones


def _stable_baselines(module: str, library: str, kind: str) -> Algorithm:
    module = f"reppo.baselines.{module}"
    about = f"{library}'s {kind} with RL Zoo's settings for the task"
    return Algorithm(f"{library} {kind}", about, f"{module}:presets", f"{module}:Agent", library, "gymnasium")


#: Every algorithm that can be trained. One more is one more line, and what it names.
ALGORITHMS: dict[str, Algorithm] = {
    "reppo": Algorithm(
        "REPPO",
        "as published: pathwise gradient, HL-Gauss, auxiliary task, KL gate, learned multipliers",
        "reppo.config:presets",
        "reppo.reppo:make_learner",
    ),
    "fasttd3": Algorithm(
        "FastTD3",
        "FastTD3 with its published settings: twin distributional critics, replay memory",
        "reppo.baselines.fasttd3:presets",
        "reppo.baselines.fasttd3:make_learner",
    ),
    "ppo": Algorithm(
        "Brax PPO",
        "Brax's PPO with the settings published for the task",
        "reppo.baselines.brax_config:presets",
        "reppo.baselines.brax_agents:make",
        library="Brax",
        takes="jax",
    ),
    "sac": Algorithm(
        "Brax SAC",
        "Brax's SAC with the settings published for the task: twin critics, replay memory",
        "reppo.baselines.brax_config:presets",
        "reppo.baselines.brax_agents:make",
        library="Brax",
        takes="jax",
    ),
    "sb3-ppo": _stable_baselines("sb3", "Stable-Baselines3", "PPO"),
    "sb3-sac": _stable_baselines("sb3", "Stable-Baselines3", "SAC"),
    "sbx-ppo": _stable_baselines("sbx", "SBX", "PPO"),
    "sbx-sac": _stable_baselines("sbx", "SBX", "SAC"),
}

REPPO = "reppo"

#: What REPPO is compared with.
BASELINES = {name: algorithm for name, algorithm in ALGORITHMS.items() if name != REPPO}


def load(where: str) -> Any:
    """What is at ``module:attribute``."""
    module, _, attribute = where.partition(":")
    return getattr(importlib.import_module(module), attribute)


def presets(name: str, env: str) -> Mapping[str, Any]:
    """An algorithm's complete configurations for an environment, by name."""
    return load(ALGORITHMS[name].presets)(env, name)


def config_class(name: str) -> type[Any]:
    """The dataclass of an algorithm's configurations; its defaults are one of them."""
    return type(next(iter(presets(name, "").values())))


def name_of(config: RunConfig) -> str:
    """The name of the algorithm that a configuration is of; raises `ConfigError` where our loop does not train it."""
    if ALGORITHMS[config.name].library:
        raise ConfigError(f"a {type(config).__name__} is of an algorithm with a loop of its own: `reppo baseline` runs it")
    return config.name


def make_learner(config: RunConfig, spec: EnvSpec) -> Learner:
    """The learner of a configuration, whichever algorithm it is of; ``spec`` must be resolved, see `reppo.envs.spec`."""
    return load(ALGORITHMS[name_of(config)].training)(config, spec)


def make_agent(name: str) -> MakeAgent:
    """What makes the agent of an algorithm that a library trains."""
    return load(ALGORITHMS[name].training)


def read_config(description: dict[str, Any], source: str) -> RunConfig:
    """The configuration of a run's ``config.json``; one without an algorithm is REPPO's.

    Raises:
        ConfigError: where it is damaged, or of an algorithm that is none or has another loop; ``source`` names the file.
    """
    name = description.get("algorithm", REPPO)
    if not isinstance(name, str) or name not in ALGORITHMS:
        ours = [name for name, algorithm in ALGORITHMS.items() if not algorithm.library]
        raise ConfigError(f"{source}: no algorithm {name!r}{nearest(str(name), ours)}; there are {', '.join(ours)}")
    if library := ALGORITHMS[name].library:
        again = f"; `{description['command']}` starts it again" if "command" in description else ""
        raise ConfigError(f"{source}: a run of {library}'s {name} cannot be continued{again}")
    return config_class(name).from_json(description["config"], source)
