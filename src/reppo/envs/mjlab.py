"""mjlab (``mjlab:Mjlab-Cartpole-Balance``): robots in MuJoCo Warp, see `reppo.envs.manager_based`."""

from __future__ import annotations

import contextlib
import difflib
import io
from typing import Any

from reppo.envs.manager_based import SEED, ManagerBased, seconds
from reppo.errors import ConfigError

COMPILES = (
    "mjlab: on {}. Warp compiles its kernels at the first steps, which takes minutes the first time on a machine; it keeps "
    "them in its cache"
)


class MjlabEnv(ManagerBased):
    """A task of mjlab's registry."""

    def __init__(self, task: str):
        super().__init__("mjlab", task)
        self.notes = (*self.notes, COMPILES.format(_device()))

    def _made(self, num_envs: int, episode_length: int | None) -> Any:
        import warp  # pyright: ignore[reportMissingImports]
        from mjlab.envs import ManagerBasedRlEnv  # pyright: ignore[reportMissingImports]
        from mjlab.tasks.registry import load_env_cfg  # pyright: ignore[reportMissingImports]
        from mjlab.utils.random import seed_rng  # pyright: ignore[reportMissingImports]

        warp.config.log_level = warp.LOG_WARNING  # it names every kernel that it compiles, on stdout
        cfg = load_env_cfg(self.task)
        if getattr(cfg.commands.get("motion"), "motion_file", None) == "":
            raise ConfigError(
                f"{self.name} follows a motion, and its configuration names no file: register a task of your own whose "
                f"configuration does"
            )
        cfg.scene.num_envs, cfg.auto_reset, cfg.seed = num_envs, False, SEED
        if episode_length is not None:
            cfg.episode_length_s = seconds(episode_length, cfg.sim.mujoco.timestep * cfg.decimation)
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # it describes all its managers there
                env = ManagerBasedRlEnv(cfg, device=_device())
        except Exception as error:  # a task that needs what is not here
            text = " ".join(str(error).split())
            raise ConfigError(f"{self.name} cannot be made: {type(error).__name__}: {text}") from error
        env.seed = seed_rng  # which is what its own does, beside a line on stdout at every reset
        return env


def _device() -> str:
    import torch  # pyright: ignore[reportMissingImports]

    return "cuda:0" if torch.cuda.is_available() else "cpu"


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
    return MjlabEnv(name)
