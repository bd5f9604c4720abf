"""MuJoCo Playground (``playground:CheetahRun``): its dm_control_suite, and its robots where their assets are at hand."""

from __future__ import annotations

import os
import subprocess
from typing import Any, cast

import jax

from reppo import imports
from reppo.envs import value_ranges
from reppo.envs.brax_style import BraxStyle
from reppo.errors import ConfigError

DOWNLOAD = "REPPO_ALLOW_DOWNLOAD"  #: environment variable without which nothing is fetched from the network


def _registry() -> Any:
    with imports.of_physics():
        from mujoco_playground import registry
    return registry


def names() -> list[str]:
    return sorted(_registry().ALL_ENVS)


def make(name: str, physics: str | None = None) -> BraxStyle:
    """Build a task. ``physics`` is ``jax`` or ``warp``; unset, ``jax``: Playground's own default, warp, crawls on a CPU."""
    if physics == "warp" and jax.default_backend() != "gpu":
        raise ConfigError(f"playground:{name}@warp is for GPUs, and is not loaded without one; leave out @warp")
    registry = _registry()
    import mujoco

    dmc = name in registry.dm_control_suite.ALL_ENVS
    # Playground 0.2.0's reacher calls MjSpec.find_body, which MuJoCo renamed.
    spec_class: Any = mujoco.MjSpec  # pyright: ignore[reportAttributeAccessIssue]
    if not hasattr(spec_class, "find_body"):
        spec_class.find_body = spec_class.body
    config = registry.get_default_config(name)
    if "impl" in config:
        config.impl = physics or "jax"
    if problem := unavailable(name):
        raise ConfigError(problem)
    try:
        env = registry.load(name, config=config)
    except subprocess.CalledProcessError as error:
        raise ConfigError(f"playground:{name}: Playground could not download its robot models: {error}") from error
    length = int(cast(int, config.episode_length))
    return BraxStyle(
        env,
        name=f"playground:{name}{'' if physics is None else f'@{physics}'}",
        episode_length=length,
        value_range=value_ranges.DM_CONTROL if dmc else value_ranges.of_playground(name),
        max_return=float(length) if dmc else None,
        action_repeat=1 if dmc else action_repeat(name),
    )


def action_repeat(name: str) -> int:
    """How often a task takes each action; Playground has it among its settings for Brax's PPO."""
    return int((training_config(name, "ppo") or {}).get("action_repeat", 1))


def unavailable(name: str) -> str:
    """Why a task cannot be made here, as far as that is known without making it; empty where nothing is in the way."""
    from mujoco_playground._src import mjx_env

    if name in _registry().dm_control_suite.ALL_ENVS or mjx_env.MENAGERIE_PATH.exists() or os.environ.get(DOWNLOAD):
        return ""
    return (
        f"playground:{name} needs robot models that are not here; allow Playground to download them (MuJoCo Menagerie, "
        f"by git) with {DOWNLOAD}=1"
    )


def training_config(name: str, algorithm: str) -> dict[str, Any] | None:
    """Playground's own settings of a task for Brax's ``ppo`` or ``sac``; None where it has none."""
    registry = _registry()
    from mujoco_playground.config import dm_control_suite_params, locomotion_params, manipulation_params

    families = [
        (registry.dm_control_suite, dm_control_suite_params),
        (registry.locomotion, locomotion_params),
        (registry.manipulation, manipulation_params),
    ]
    for family, params in families:
        settings = getattr(params, f"brax_{algorithm}_config", None)
        if name in family.ALL_ENVS and settings is not None:
            return settings(name).to_dict()
    return None
