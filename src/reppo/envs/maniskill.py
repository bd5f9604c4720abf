"""ManiSkill (``maniskill:PickCube-v1``): robot manipulation in SAPIEN, with observations of the simulator's state.

With a GPU, one simulation holds all environments; on a CPU, ManiSkill's backend holds one, and we step many of those one
after another. Nothing is drawn, so it takes no rendering device.

Its rewards are positive and go on after the task is solved. An episode that solves it is therefore cut, not terminated, as
if by a time limit: its value goes on, as in the paper and in ManiSkill's own training scripts. Otherwise the policy that
never quite solves the task would be the best. Failing the task terminates. An evaluation has full episodes, which neither
solving nor failing ends; see docs/decisions/0012-torch-simulators.md.
"""

from __future__ import annotations

import contextlib
import copy
import difflib
import functools
import io
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from reppo.envs import value_ranges
from reppo.envs.host import HostEnv, Simulator
from reppo.envs.spaces import Observations, read_actions
from reppo.envs.torch_env import Tensor, TensorEnv, TensorSimulator, TensorStep, stays_on_device, torch_tensors
from reppo.errors import ConfigError

Array = npt.NDArray[Any]

NO_RENDERING = (
    "ManiSkill: no rendering device here, so materials and visual shapes are switched off; physics, rewards and "
    "observations of the state are not affected"
)


class Batch(TensorEnv):
    """One of ManiSkill's own environments, without any of its wrappers; ``full`` episodes end at their time limit alone."""

    def __init__(self, env: Any, full: bool):
        self.num_envs = env.num_envs
        self._env, self._full = env, full

    def reset(self, seeds: Sequence[int]) -> Any:
        return self._env.reset(seed=list(seeds))[0]

    def reset_rows(self, rows: Array, seeds: Sequence[int]) -> Any:
        # With seeds, because without them it draws from torch's global generator.
        options = {} if rows.all() else {"env_idx": torch_tensors(self._env.device)(np.flatnonzero(rows))}
        return self._env.reset(seed=list(seeds), options=options)[0]

    def step(self, action: Tensor) -> TensorStep:
        obs, reward, terminated, truncated, info = self._env.step(action)
        success, fail = info.get("success"), info.get("fail")
        none = terminated & ~terminated
        if self._full:
            return TensorStep(obs, reward, none, none, success)
        ended = none if fail is None else fail
        return TensorStep(obs, reward, ended, truncated if success is None else truncated | success, success)

    def close(self) -> None:
        self._env.close()


class ManiSkillEnv(HostEnv):
    """A task of ManiSkill."""

    def __init__(self, task: str):
        self.name, self.task = f"maniskill:{task}", task
        self.notes = () if _can_render() else (NO_RENDERING,)
        self._full_episodes = False
        spec = _registry()[task]
        _check_assets(self.name, spec)
        probe = self._made(1)
        try:
            self.observations = Observations(self.name, probe.single_observation_space)
            self.actions = read_actions(self.name, probe.single_action_space)
        finally:
            probe.close()
        self.episode_length = spec.max_episode_steps
        self.value_range = value_ranges.MANISKILL

    def for_evaluation(self) -> ManiSkillEnv:
        other = copy.copy(self)
        other._full_episodes = True
        return other

    def simulator(self, num_envs: int, episode_length: int) -> Simulator:
        del episode_length  # its limit is kept by a wrapper that is not used
        sizes = [num_envs] if _cuda() else [1] * num_envs
        batches: list[Batch] = []
        try:
            for size in sizes:
                batches.append(Batch(self._made(size), self._full_episodes))
        except BaseException:
            for batch in batches:
                batch.close()
            raise
        device = "cuda" if _cuda() else "cpu"
        return TensorSimulator(
            batches, self.observations, self.actions, torch_tensors(device), on_device=stays_on_device(device)
        )

    def _made(self, num_envs: int) -> Any:
        backend = "physx_cuda" if _cuda() else "physx_cpu"
        said = io.StringIO()
        try:
            with _quiet(), contextlib.redirect_stdout(said), _nobody_answers():
                return _registry()[self.task].make(
                    num_envs=num_envs, obs_mode="state", sim_backend=backend, render_backend="none"
                )
        except EOFError:
            raise ConfigError(
                f"{self.name} needs assets ({said.getvalue().strip().partition(chr(10))[0]}): "
                f"python -m mani_skill.utils.download_asset --help"
            ) from None
        except Exception as error:  # a task that needs what is not here
            text = " ".join(str(error).split())
            raise ConfigError(f"{self.name} cannot be made: {type(error).__name__}: {text}") from error


@contextlib.contextmanager
def _nobody_answers() -> Iterator[None]:
    """ManiSkill asks at the terminal whether to download the assets of a robot: an `EOFError` answers."""
    stdin, sys.stdin = sys.stdin, io.StringIO()
    try:
        yield
    finally:
        sys.stdin = stdin


def _check_assets(name: str, spec: Any) -> None:
    """Refuse a task whose assets are not here: ManiSkill would ask at the terminal whether to download them."""
    from mani_skill.utils import assets  # pyright: ignore[reportMissingImports]

    for asset in spec.asset_download_ids or ():
        known = asset in assets.DATA_GROUPS
        for source in assets.expand_data_group_into_individual_data_source_ids(asset) if known else [asset]:
            if not assets.is_data_source_downloaded(source):
                raise ConfigError(f"{name} needs assets: python -m mani_skill.utils.download_asset {spec.uid}")


# --------------------------------------------------------------------------------------------- without a rendering device


class NoMaterial:
    """Stands for SAPIEN's materials, which cannot even be described without a device to draw them on."""

    def __init__(self, *args: Any, **properties: Any):
        del args
        vars(self).update(properties)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("set_"):
            return lambda *args, **options: None
        raise AttributeError(name)


def _draws_nothing(builder: Any, *args: Any, **options: Any) -> Any:
    del args, options
    return builder


@functools.cache
def _can_render() -> bool:
    """Whether SAPIEN has a device to draw on; where it has none, what would need one is replaced, once."""
    with _quiet():
        import sapien  # pyright: ignore[reportMissingImports]
        import sapien.render  # pyright: ignore[reportMissingImports]

        try:
            sapien.render.RenderMaterial()
            return True
        except RuntimeError:
            pass
        original = sapien.render.RenderMaterial
        sapien.render.RenderMaterial = NoMaterial
        import mani_skill.envs  # noqa: F401  # pyright: ignore[reportMissingImports]
        from mani_skill.utils.building.actor_builder import ActorBuilder  # pyright: ignore[reportMissingImports]
        from sapien.wrapper.actor_builder import ActorBuilder as BaseBuilder  # pyright: ignore[reportMissingImports]
    for module in list(sys.modules.values()):  # those that have imported it by name
        if getattr(module, "__name__", "").startswith(("sapien.", "mani_skill.")):
            for name, value in list(vars(module).items()):
                if value is original:
                    setattr(module, name, NoMaterial)
    for builder in (BaseBuilder, ActorBuilder):
        for name in dir(builder):
            if name.startswith("add_") and "visual" in name:
                setattr(builder, name, _draws_nothing)
    return False


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what ManiSkill, SAPIEN and Gymnasium say to the authors of tasks."""
    logger = logging.getLogger("mani_skill ")  # with the space, as it is named
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _registry() -> dict[str, Any]:
    with _quiet():
        import mani_skill.envs  # noqa: F401  # pyright: ignore[reportMissingImports]
        from mani_skill.utils.registration import REGISTERED_ENVS  # pyright: ignore[reportMissingImports]
    return REGISTERED_ENVS


def _cuda() -> bool:
    import torch  # pyright: ignore[reportMissingImports]

    return torch.cuda.is_available()


#: Tasks that were built and stepped on a CPU, without assets to download; `make` takes any id. A list, because to import
#: the package takes seconds.
KNOWN = (
    "DrawTriangle-v1",
    "FMBAssembly1Easy-v1",
    "LiftPegUpright-v1",
    "MS-AntRun-v1",
    "MS-AntWalk-v1",
    "MS-CartpoleBalance-v1",
    "MS-CartpoleSwingUp-v1",
    "MS-HopperHop-v1",
    "MS-HopperStand-v1",
    "MS-HumanoidRun-v1",
    "MS-HumanoidStand-v1",
    "MS-HumanoidWalk-v1",
    "PegInsertionSide-v1",
    "PickCube-v1",
    "PickCubeSO100-v1",
    "PlaceSphere-v1",
    "PlugCharger-v1",
    "PokeCube-v1",
    "PullCube-v1",
    "PullCubeTool-v1",
    "PushCube-v1",
    "RollBall-v1",
    "RotateSingleObjectInHandLevel0-v1",
    "RotateSingleObjectInHandLevel1-v1",
    "RotateValveLevel0-v1",
    "RotateValveLevel1-v1",
    "RotateValveLevel2-v1",
    "RotateValveLevel3-v1",
    "RotateValveLevel4-v1",
    "SO100GraspCube-v1",
    "StackCube-v1",
    "StackPyramid-v1",
    "TriFingerRotateCubeLevel0-v1",
    "TriFingerRotateCubeLevel1-v1",
    "TriFingerRotateCubeLevel2-v1",
    "TriFingerRotateCubeLevel3-v1",
    "TriFingerRotateCubeLevel4-v1",
    "UnitreeG1PlaceAppleInBowl-v1",
    "UnitreeG1Stand-v1",
    "UnitreeG1TransportBox-v1",
)


def names() -> list[str]:
    """The tasks that are known to work; `make` takes any id of ManiSkill."""
    return sorted(KNOWN)


def make(name: str) -> ManiSkillEnv:
    """A task of ManiSkill by its id."""
    _can_render()  # before anything of it is imported
    known = _registry()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise ConfigError(f"ManiSkill has no task {name!r}{hint}")
    return ManiSkillEnv(name)
