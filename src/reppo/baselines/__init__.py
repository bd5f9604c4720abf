"""What REPPO is compared with: FastTD3 on our loop; PPO and SAC of Brax, Stable-Baselines3 and SBX on their own."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_type_hints

from reppo.config import ConfigError, nearest
from reppo.options import read_value


def _fasttd3(env: str) -> Mapping[str, Any]:
    from reppo.baselines.fasttd3 import PRESETS

    del env  # the same for all
    return PRESETS


def _ppo(env: str) -> Mapping[str, Any]:
    from reppo.baselines.brax_config import ppo_presets

    return ppo_presets(env)


def _sac(env: str) -> Mapping[str, Any]:
    from reppo.baselines.brax_config import sac_presets

    return sac_presets(env)


def _sb3(algorithm: str) -> Callable[[str], Mapping[str, Any]]:
    def presets(env: str) -> Mapping[str, Any]:
        from reppo.baselines import sb3, sbx

        return (sbx if algorithm.startswith("sbx") else sb3).presets(env, algorithm)

    return presets


#: Of every baseline its presets for an environment: complete configurations by name.
PRESETS: dict[str, Callable[[str], Mapping[str, Any]]] = {
    "fasttd3": _fasttd3,
    "ppo": _ppo,
    "sac": _sac,
    "sb3-ppo": _sb3("sb3-ppo"),
    "sb3-sac": _sb3("sb3-sac"),
    "sbx-ppo": _sb3("sbx-ppo"),
    "sbx-sac": _sb3("sbx-sac"),
}


def foreign_agent(algorithm: str) -> Callable[[Any, Any, int], Any]:
    """What makes the agent of an algorithm that trains with its library's loop, see `reppo.baselines.foreign`."""
    if algorithm in ("ppo", "sac"):
        from reppo.baselines.brax_agents import make

        return make
    from reppo.baselines import sb3, sbx

    return sbx.Agent if algorithm.startswith("sbx") else sb3.Agent


def uninstalled(algorithm: str, env: str) -> str:
    """What to say where a package that an algorithm needs is not installed; empty where nothing is missing."""
    config = next(iter(PRESETS[algorithm](env).values()))
    for package in getattr(config, "packages", ()):
        if importlib.util.find_spec(package) is None:
            return f"{config.name} needs {package}: pip install 'reppo[{config.extra}]'"
    return ""


def configured(algorithm: str, env: str, preset: str, settings: Sequence[str], options: Mapping[str, Any]) -> Any:
    """A baseline's configuration: a preset, with ``NAME=VALUE`` settings, and with those ``options`` that are not None.

    Raises:
        ConfigError: for an algorithm, a preset or a name that is none, and for a value that cannot be.
    """
    if algorithm not in PRESETS:
        raise ConfigError(f"no baseline {algorithm!r}{nearest(algorithm, PRESETS)}; there are {', '.join(PRESETS)}")
    presets = PRESETS[algorithm](env)
    if preset not in presets:
        raise ConfigError(f"no preset {preset!r}{nearest(preset, presets)}; there are {', '.join(presets)}")
    hints = get_type_hints(type(presets[preset]))
    names = [field.name for field in dataclasses.fields(presets[preset])]
    changes = {name: value for name, value in options.items() if value is not None}
    for word in settings:
        name, equals, value = word.partition("=")
        if not equals:
            raise ConfigError(f"--set takes NAME=VALUE, got {word!r}")
        if name not in names:
            raise ConfigError(f"--set: no setting {name!r}{nearest(name, names)}; docs/baselines.md lists them")
        if name in changes:
            raise ConfigError(f"--set: {name} is given twice")
        try:
            changes[name] = read_value(value, hints[name])
        except ValueError as error:
            raise ConfigError(f"--set: {name} {error}") from None
    config = dataclasses.replace(presets[preset], **changes)
    config.validate()
    return config
