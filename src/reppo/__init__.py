"""REPPO: Relative Entropy Pathwise Policy Optimization, a trainer for continuous control.

The names below are imported when they are first used, because JAX takes seconds and `reppo.__main__` comes before that.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reppo import distributions, hl_gauss, normalizer, returns
    from reppo.config import PRESETS, Config, preset
    from reppo.envs.base import Env, Transition
    from reppo.errors import ConfigError, Diverged, ReppoError, Stopped
    from reppo.export import load_policy
    from reppo.loop import resume, train

__version__ = "0.1.0"
__all__ = [
    "PRESETS", "Config", "ConfigError", "Diverged", "Env", "ReppoError", "Stopped", "Transition", "distributions",
    "hl_gauss", "load_policy", "normalizer", "preset", "resume", "returns", "train",
]  # fmt: skip

_MODULES = {
    "reppo.config": ("PRESETS", "Config", "preset"),
    "reppo.errors": ("ConfigError", "Diverged", "ReppoError", "Stopped"),
    "reppo.envs.base": ("Env", "Transition"),
    "reppo.export": ("load_policy",),
    "reppo.loop": ("resume", "train"),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    if name in __all__:
        return importlib.import_module(f"reppo.{name}")
    raise AttributeError(f"module 'reppo' has no attribute {name!r}")
