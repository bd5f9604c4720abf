"""Isaac Lab (``isaaclab:Isaac-Ant-v0``): robots in Isaac Sim, see `reppo.envs.manager_based`.

There is one simulation in a process. So training and evaluation share it.
"""

from __future__ import annotations

import functools
from typing import Any

from reppo.envs.manager_based import SEED, ManagerBased, SelfResettingBatch, seconds


class IsaacLabEnv(ManagerBased):
    """A manager-based task of Isaac Lab."""

    batch = SelfResettingBatch
    one_only = True

    def _made(self, num_envs: int, episode_length: int | None) -> Any:
        _launch()
        import gymnasium
        from isaaclab_tasks.utils import parse_env_cfg  # pyright: ignore[reportMissingImports]

        cfg: Any = parse_env_cfg(self.task, num_envs=num_envs)
        cfg.seed = SEED
        if episode_length is not None:
            cfg.episode_length_s = seconds(episode_length, cfg.sim.dt * cfg.decimation)
        return gymnasium.make(self.task, cfg=cfg).unwrapped


@functools.cache
def _launch() -> Any:
    """The simulator's application, which must run before anything else of it is imported."""
    from isaaclab.app import AppLauncher  # pyright: ignore[reportMissingImports]

    launcher = AppLauncher(headless=True)
    import isaaclab_tasks  # noqa: F401  # pyright: ignore[reportMissingImports]

    return launcher.app


def names() -> list[str]:
    """None: to list them takes the simulator's start; `make` takes any id."""
    return []


def make(name: str) -> IsaacLabEnv:
    """A task of Isaac Lab by its id."""
    return IsaacLabEnv("isaaclab", name)
