"""REPPO: Relative Entropy Pathwise Policy Optimization, a trainer for continuous control."""

from reppo import distributions, hl_gauss, normalizer, returns
from reppo.config import PRESETS, Config, ConfigError, preset
from reppo.envs.base import Env, Transition
from reppo.export import load_policy
from reppo.loop import resume, train

__version__ = "0.1.0"
__all__ = [
    "PRESETS", "Config", "ConfigError", "Env", "Transition", "distributions", "hl_gauss", "load_policy", "normalizer",
    "preset", "resume", "returns", "train",
]  # fmt: skip
