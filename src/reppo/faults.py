"""Reproduction files: one step of an environment that returned numbers which are not finite, to be made again.

A run writes ``fault-STEPS-seedK.npz`` at its first such step. It holds the environment's state before the step, the
action and the key as plain arrays, and the run's configuration as JSON; ``reppo repro FILE`` replays it.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from reppo import envs
from reppo.checkpoint import CheckpointError, from_host, to_host
from reppo.config import ConfigError
from reppo.envs.autoreset import LARGEST, AutoReset, is_floating
from reppo.rollout import Fault
from reppo.types import PyTree

FORMAT = "reppo-fault-1"


def save(path: Path, fault: Fault, description: dict[str, Any]) -> None:
    """Write a fault, leaves without a seed axis, and the contents of the run's ``config.json``."""
    arrays = to_host({"state": fault.state, "action": fault.action, "key": fault.key, "index": fault.index})
    meta = json.dumps({"format": FORMAT, "num_envs": description["config"]["num_envs"], **description})
    with path.open("xb") as file:
        np.savez(file, **{"meta": np.frombuffer(meta.encode(), np.uint8), **arrays})  # pyright: ignore[reportArgumentType]


def replay(path: Path, env: envs.Env | None = None) -> str:
    """Make the step again; says what the environment returned.

    Raises:
        ConfigError: where the file is damaged, foreign, or of another environment.
    """
    arrays, meta = _load(path)
    env = env or envs.make(meta["env"])
    vector_env = AutoReset(env, meta["num_envs"], env.episode_length)
    state, _ = jax.eval_shape(env.reset, jax.random.key(0))
    like = {
        "state": state,
        "action": jax.ShapeDtypeStruct((env.action_size,), np.float32),
        "key": jax.eval_shape(lambda: jax.random.key(0)),
        "index": jax.ShapeDtypeStruct((), np.int32),
    }
    try:
        fault = from_host(arrays, like)
    except CheckpointError as error:
        raise ConfigError(f"{path} is not of {meta['env']}: {error}") from None
    after, transition = jax.jit(vector_env.step_alone)(fault["state"], fault["action"], fault["key"], fault["index"])
    returned = {"state": after, "obs": transition.obs, "reward": transition.reward}
    wrong = [*_wrong(returned["obs"], "obs"), *_wrong(returned["reward"], "reward"), *_wrong(after, "state", state=True)]
    place = f"{meta['env']}, environment {int(fault['index'])}, action {np.asarray(fault['action']).tolist()}"
    if not wrong:
        return f"{place}: every number is finite here: the fault is not reproduced on this machine and these versions"
    return f"{place}:\n" + "\n".join(wrong)


def _wrong(tree: PyTree, name: str, state: bool = False) -> list[str]:
    """A line for each leaf with numbers that `AutoReset` refuses; infinities in a state may be there on purpose."""
    lines = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not is_floating(leaf):
            continue
        array = np.asarray(leaf)
        bad = np.argwhere(np.isnan(array) if state else ~(np.abs(array) <= LARGEST))
        if len(bad):
            where = [int(i) for i in bad[0]] if array.ndim else ""
            entry = f"{name}{jax.tree_util.keystr(path)}{where}"
            lines.append(f"  {entry} is {array[tuple(bad[0])]} ({len(bad)} of {array.size})")
    return lines


def _load(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    if not path.is_file():
        raise ConfigError(f"no file {path}")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        meta = json.loads(arrays.pop("meta").tobytes())
        if meta["format"] != FORMAT or not isinstance(meta["env"], str) or not 0 < int(meta["num_envs"]) < 2**31:
            raise ValueError
        return arrays, meta
    except (ValueError, KeyError, TypeError, OSError, EOFError, AttributeError, zipfile.BadZipFile, NotImplementedError):
        raise ConfigError(f"{path} is not a reproduction file of this program, or is damaged") from None
