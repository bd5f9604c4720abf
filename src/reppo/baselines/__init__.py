"""What REPPO is compared with: FastTD3 on our loop; PPO and SAC of Brax, Stable-Baselines3 and SBX on their own."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any, get_type_hints

from reppo.algorithms import BASELINES, presets
from reppo.config import nearest
from reppo.errors import ConfigError
from reppo.options import read_value


def uninstalled(algorithm: str, env: str) -> str:
    """What to say where a package that an algorithm needs is not installed; empty where nothing is missing."""
    config = next(iter(presets(algorithm, env).values()))
    for package in getattr(config, "packages", ()):
        if importlib.util.find_spec(package) is None:
            return f"{config.name} needs {package}: pip install 'reppo[{config.extra}]'"
    return ""


def configured(algorithm: str, env: str, preset: str, settings: Sequence[str], options: Mapping[str, Any]) -> Any:
    """A baseline's configuration: a preset, with ``NAME=VALUE`` settings, and with those ``options`` that are not None.

    Raises:
        ConfigError: for an algorithm, a preset or a name that is none, and for a value that cannot be.
    """
    if algorithm not in BASELINES:
        raise ConfigError(f"no baseline {algorithm!r}{nearest(algorithm, BASELINES)}; there are {', '.join(BASELINES)}")
    complete = presets(algorithm, env)
    if preset not in complete:
        raise ConfigError(f"no preset {preset!r}{nearest(preset, complete)}; there are {', '.join(complete)}")
    base = complete[preset]
    hints = get_type_hints(type(base))
    names = [field.name for field in dataclasses.fields(base)]
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
    config = dataclasses.replace(base, **changes)
    config.validate()
    return config
