"""The algorithms that share the training loop, by name: a configuration, and the `Learner` that it makes."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

from reppo.config import Config, ConfigError, RunConfig, nearest
from reppo.envs.spec import EnvSpec
from reppo.types import Learner


class Algorithm(NamedTuple):
    config: type[Any]  #: its configuration
    make_learner: Callable[[Any, EnvSpec], Learner]  #: ``spec`` must be resolved: see `reppo.envs.spec.resolve`
    facts: Callable[[Any, EnvSpec], dict[str, Any]]  #: what it derives from the environment, for ``config.json``


def _reppo() -> Algorithm:
    module = importlib.import_module("reppo.reppo")
    return Algorithm(
        Config, module.make_learner, lambda config, spec: {"target_entropy": module.target_entropy(config, spec)}
    )


def _fasttd3() -> Algorithm:
    module = importlib.import_module("reppo.baselines.fasttd3")
    return Algorithm(module.FastTD3Config, module.make_learner, lambda config, spec: {})


ALGORITHMS: dict[str, Callable[[], Algorithm]] = {"reppo": _reppo, "fasttd3": _fasttd3}

#: Algorithms that a library trains with a loop of its own, see `reppo.baselines.foreign`, and whose they are.
FOREIGN = {
    "ppo": "Brax",
    "sac": "Brax",
    "sb3-ppo": "Stable-Baselines3",
    "sb3-sac": "Stable-Baselines3",
    "sbx-ppo": "SBX",
    "sbx-sac": "SBX",
}


def named(name: Any) -> Algorithm:
    """The algorithm of this name; raises `ConfigError` where there is none."""
    if not isinstance(name, str) or name not in ALGORITHMS:
        raise ConfigError(f"no algorithm {name!r}{nearest(str(name), ALGORITHMS)}; there are {', '.join(ALGORITHMS)}")
    return ALGORITHMS[name]()


def name_of(config: RunConfig) -> str:
    """The name of the algorithm that a configuration is of; raises `ConfigError` where this loop does not train it."""
    for name, make in ALGORITHMS.items():
        if type(config) is make().config:
            return name
    raise ConfigError(f"a {type(config).__name__} is of an algorithm with a loop of its own: `reppo baseline` runs it")


def make_learner(config: RunConfig, spec: EnvSpec) -> Learner:
    """The learner of a configuration, whichever algorithm it is of."""
    return named(name_of(config)).make_learner(config, spec)


def read_config(description: dict[str, Any], source: str) -> RunConfig:
    """The configuration of a run's ``config.json``; one without an algorithm is REPPO's.

    Raises:
        ConfigError: where it is damaged, or of an algorithm that is none or has another loop; ``source`` names the file.
    """
    name = description.get("algorithm", "reppo")
    if isinstance(name, str) and name in FOREIGN:
        again = f"; `{description['command']}` starts it again" if "command" in description else ""
        raise ConfigError(f"{source}: a run of {FOREIGN[name]}'s {name} cannot be continued{again}")
    try:
        algorithm = named(name)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None
    return algorithm.config.from_json(description["config"], source)
