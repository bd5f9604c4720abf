"""mjlab (``mjlab:Mjlab-Cartpole-Balance``): robots in MuJoCo Warp, see `reppo.envs.manager_based`."""

from __future__ import annotations

import difflib
from typing import Any

from reppo.config import ConfigError
from reppo.envs.manager_based import ManagerBased, seconds


class MjlabEnv(ManagerBased):
    """A task of mjlab's registry."""

    def _made(self, num_envs: int, episode_length: int | None) -> Any:
        import torch  # pyright: ignore[reportMissingImports]
        from mjlab.envs import ManagerBasedRlEnv  # pyright: ignore[reportMissingImports]
        from mjlab.tasks.registry import load_env_cfg  # pyright: ignore[reportMissingImports]

        cfg = load_env_cfg(self.task)
        cfg.scene.num_envs, cfg.auto_reset = num_envs, False
        if episode_length is not None:
            cfg.episode_length_s = seconds(episode_length, cfg.sim.mujoco.timestep * cfg.decimation)
        return ManagerBasedRlEnv(cfg, device="cuda:0" if torch.cuda.is_available() else "cpu")


def names() -> list[str]:
    """All tasks that are registered."""
    import mjlab.tasks  # noqa: F401  # pyright: ignore[reportMissingImports]
    from mjlab.tasks.registry import list_tasks  # pyright: ignore[reportMissingImports]

    return sorted(list_tasks())


def make(name: str) -> MjlabEnv:
    """A task of mjlab by its id."""
    if name not in (known := names()):
        close = difflib.get_close_matches(name, known, n=3)
        raise ConfigError(f"mjlab has no task {name!r}{f'; did you mean {close[0]}?' if close else ''}")
    return MjlabEnv("mjlab", name)
