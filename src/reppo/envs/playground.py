"""MuJoCo Playground (``playground:CheetahRun``): its dm_control_suite, and its robots where their assets are at hand."""

from __future__ import annotations

from typing import cast

from reppo.envs.brax_style import BraxStyle

DMC_VALUE_RANGE = (0.0, 150.0)  #: rewards are in [0, 1], so returns are below 100 at gamma 0.99; the rest is for entropy


def names() -> list[str]:
    from mujoco_playground import registry

    return sorted(registry.ALL_ENVS)


def make(name: str, physics: str | None = None) -> BraxStyle:
    """Build a task. ``physics`` is ``jax`` or ``warp``; unset, ``jax``: Playground's own default, warp, crawls on a CPU."""
    from mujoco_playground import registry

    dmc = name in registry.dm_control_suite.ALL_ENVS
    config = registry.get_default_config(name)
    if "impl" in config:
        config.impl = physics or "jax"
    env = registry.load(name, config=config)
    length = int(cast(int, config.episode_length))
    return BraxStyle(
        env,
        name=f"playground:{name}",
        episode_length=length,
        value_range=DMC_VALUE_RANGE if dmc else (-10.0, 10.0),
        max_return=float(length) if dmc else None,
    )
