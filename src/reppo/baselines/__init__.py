"""What REPPO is compared with: FastTD3, on our loop."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, get_type_hints

from reppo.config import ConfigError, nearest


def configured(preset: str, settings: Sequence[str], options: Mapping[str, Any]) -> Any:
    """FastTD3's configuration: a preset, with ``NAME=VALUE`` settings, and with those ``options`` that are not None.

    Raises:
        ConfigError: for a preset or a name that is none, and for a value that cannot be.
    """
    from reppo.baselines.fasttd3 import PRESETS, FastTD3Config

    if preset not in PRESETS:
        raise ConfigError(f"no preset {preset!r}{nearest(preset, PRESETS)}; there are {', '.join(PRESETS)}")
    hints = get_type_hints(FastTD3Config)
    changes = {name: value for name, value in options.items() if value is not None}
    for word in settings:
        name, equals, value = word.partition("=")
        if not equals:
            raise ConfigError(f"--set takes NAME=VALUE, got {word!r}")
        if name not in hints:
            raise ConfigError(f"--set: no setting {name!r}{nearest(name, hints)}; docs/baselines.md lists them")
        if name in changes:
            raise ConfigError(f"--set: {name} is given twice")
        changes[name] = read(name, value, hints[name])
    config = dataclasses.replace(PRESETS[preset], **changes)
    config.validate()
    return config


def read(name: str, word: str, hint: Any) -> Any:
    """A setting's value from its word; raises `ConfigError` where it is none."""
    if word == "none" and hint in (int | None, float | None):
        return None
    switches = {"true": True, "false": False}
    if hint is bool and word in switches:
        return switches[word]
    if hint == tuple[str, ...]:
        return tuple(part for part in word.split(",") if part)
    try:
        number = float(word.replace(",", ""))
        if hint in (float, float | None):
            return number
        if hint in (int, int | None) and number == int(number):
            return int(number)
    except (ValueError, OverflowError):
        pass
    if hint in (bool, int, float, int | None, float | None):
        kinds = {bool: "true or false", int: "a whole number", int | None: "a whole number or none"}
        raise ConfigError(f"--set: {name} must be {kinds.get(hint, 'a number')}, got {word!r}")
    return word
