"""Reproduction files: what went wrong with a number, to be made again.

A run writes two kinds, each at the first such moment of a seed; ``reppo repro FILE`` replays both:

    fault-STEPS-seedK.npz       a step of an environment that returned numbers which are not finite: the environment's
                                state before the step, the action and the key
    gradient-STEPS-seedK.npz    an update in which a gradient was not finite: the learner's state before it, the rollout
                                and the key

Beside these plain arrays they hold the contents of the run's ``config.json``.
"""

from __future__ import annotations

import functools
import json
import zipfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from reppo import algorithms, compiling, envs, reppo
from reppo.checkpoint import CheckpointError, from_host, to_host
from reppo.config import Config, RunConfig
from reppo.envs.autoreset import LARGEST, AutoReset, is_floating
from reppo.envs.spec import EnvSpec, action_struct, resolve
from reppo.errors import ConfigError
from reppo.files import replacing
from reppo.rollout import Fault
from reppo.types import PyTree, Rollout

FORMAT = "reppo-fault-1"


def save_step(path: Path, fault: Fault, run: dict[str, Any]) -> None:
    """Write an environment's step, leaves without a seed axis; ``run`` is the contents of ``config.json``."""
    _save(path, "step", {"state": fault.state, "action": fault.action, "key": fault.key, "index": fault.index}, run)


def save_update(path: Path, state: PyTree, rollout: Rollout, key: jax.Array, run: dict[str, Any]) -> None:
    """Write the arguments of an update, leaves without a seed axis; ``run`` is the contents of ``config.json``."""
    _save(path, "update", {"state": state, "rollout": rollout, "key": key}, run)


def _save(path: Path, kind: str, tree: PyTree, run: dict[str, Any]) -> None:
    meta = json.dumps({"format": FORMAT, "kind": kind, **run})
    with replacing(path) as file:
        np.savez(file, **{"meta": np.frombuffer(meta.encode(), np.uint8), **to_host(tree)})  # pyright: ignore[reportArgumentType]


def replay(path: Path, env: envs.AnyEnv | None = None) -> str:
    """Make it again; says what came out.

    Args:
        path: the file.
        env: the environment, where the run was given an object rather than a name.

    Raises:
        ConfigError: where the file is damaged, foreign, or of another environment.
    """
    arrays, meta = _load(path)
    config = algorithms.read_config(meta, str(path))
    env = env or envs.make(meta["env"])
    if not isinstance(env, envs.Env):
        raise ConfigError(f"{meta['env']} runs on the host, where nothing can be made again")
    spec = resolve(env.spec(), config)

    def saved(like: PyTree) -> PyTree:
        try:
            return from_host(arrays, like)
        except CheckpointError as error:
            raise ConfigError(f"{path} is not of {meta['env']}: {error}") from None

    with jax.default_matmul_precision(config.precision):
        if meta["kind"] == "step":
            return f"{meta['env']}: {_step(saved(_step_like(env)), env, config, spec)}"
        if not isinstance(config, Config):
            raise ConfigError(f"{path}: only an update of REPPO can be made again")
        return f"{meta['env']}: {_update(saved(_update_like(config, spec)), config, spec)}"


NOT_REPRODUCED = "every number is finite here: it is not made again on this machine and with these versions"

# --------------------------------------------------------------------------------------------- a step


def _step_like(env: envs.Env) -> PyTree:
    state, _ = jax.eval_shape(env.reset, jax.random.key(0))
    return {
        "state": state,
        "action": action_struct(env.action_size, env.discrete),
        "key": jax.eval_shape(lambda: jax.random.key(0)),
        "index": jax.ShapeDtypeStruct((), np.int32),
    }


def _step(saved: PyTree, env: envs.Env, config: RunConfig, spec: EnvSpec) -> str:
    vector_env = AutoReset(env, config.num_envs, spec.time_limit, (spec.action_low, spec.action_high))
    step_alone = compiling.compiled(vector_env.step_alone, compiling.SIMULATOR)
    after, transition = step_alone(saved["state"], saved["action"], saved["key"], saved["index"])
    wrong = [*_wrong(transition.obs, "obs"), *_wrong(transition.reward, "reward"), *_wrong(after, "state", state=True)]
    place = f"environment {int(saved['index'])}, action {np.asarray(saved['action']).tolist()}"
    return "\n".join([f"{place}:", *wrong] if wrong else [f"{place}: {NOT_REPRODUCED}"])


def _wrong(tree: PyTree, name: str, state: bool = False) -> list[str]:
    """A line for each leaf with numbers that `AutoReset` refuses; infinities in a state may be there on purpose."""
    lines = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not is_floating(leaf):
            continue
        array = np.asarray(leaf)
        bad = np.argwhere(~np.isfinite(array) if state else ~(np.abs(array) <= LARGEST))
        if len(bad):
            where = [int(i) for i in bad[0]] if array.ndim else ""
            entry = f"{name}{jax.tree_util.keystr(path)}{where}"
            lines.append(f"  {entry} is {array[tuple(bad[0])]} ({len(bad)} of {array.size})")
    return lines


# --------------------------------------------------------------------------------------------- an update


def _update_like(config: Config, spec: EnvSpec) -> PyTree:
    key = jax.eval_shape(lambda: jax.random.key(0))

    def rows(*shape: int, dtype: Any = np.float32) -> Any:
        return jax.ShapeDtypeStruct((config.num_steps, config.num_envs, *shape), dtype)

    obs = jax.tree.map(lambda x: rows(*x.shape, dtype=x.dtype), spec.observation)
    flags = rows(dtype=bool)
    rollout = Rollout(obs, rows(*spec.action.shape, dtype=spec.action.dtype), obs, rows(), flags, flags, flags)
    return {"state": jax.eval_shape(lambda k: reppo.init(k, config, spec), key), "rollout": rollout, "key": key}


def _update(saved: PyTree, config: Config, spec: EnvSpec) -> str:
    """Step through the update; says where the first such gradient is, in which arrays, and what it was made of."""
    prepare = compiling.compiled(functools.partial(reppo.minibatches, config=config, spec=spec), compiling.NETWORKS)
    batch, rows, keys = prepare(saved["state"], saved["rollout"], saved["key"])
    step = compiling.compiled(functools.partial(_step_and_gradients, config=config, spec=spec), compiling.NETWORKS)
    state, skipped, lines = saved["state"], 0, []
    for i in range(len(rows)):
        minibatch = jax.tree.map(lambda x, i=i: x[rows[i]], batch)
        after, here, gradients = step(state, minibatch, keys[i])
        if here and not skipped:
            lines = [f"  the first in minibatch {i + 1} of {len(rows)}", *_gradient_lines(gradients)]
            lines += _minibatch_lines(minibatch, state)
        state, skipped = after, skipped + int(here)
    total = reppo.STEPS_PER_MINIBATCH * len(rows)
    return "\n".join([f"{skipped} of {total} optimiser steps had a gradient that is not finite", *lines])


def _step_and_gradients(
    state: reppo.TrainState, minibatch: reppo.Batch, key: jax.Array, config: Config, spec: EnvSpec
) -> tuple[reppo.TrainState, jax.Array, dict[str, PyTree]]:
    """A minibatch's step, how many of its optimiser steps were skipped, and the gradients of the networks."""
    after, metrics = reppo.minibatch_step(state, minibatch, key, config, spec)

    def actor_loss(actor: PyTree) -> jax.Array:
        return reppo.actor_loss(actor, after.critic, state.duals, minibatch, config, key)[0]

    gradients = {
        "critic": jax.grad(lambda critic: reppo.critic_loss(critic, minibatch, config.aux_weight)[0])(state.critic),
        "actor": jax.grad(actor_loss)(state.policy.actor),
    }
    return after, metrics["train/skipped_updates"], gradients


def _gradient_lines(gradients: dict[str, PyTree]) -> list[str]:
    lines = []
    for name, gradient in gradients.items():
        bad, norm = _wrong(gradient, f"gradient of the {name}, ", state=True), float(optax.tree.norm(gradient))
        lines += [f"  {line}" for line in bad[:3]]
        if len(bad) > 3:
            lines.append(f"    ... and {len(bad) - 3} more arrays of it")
        elif not bad and not np.isfinite(norm):
            lines.append(f"    gradient of the {name}: its numbers are finite, its norm is {norm}")
    return lines or ["    gradient of alpha and beta: the entropy or the KL is not finite"]


def _minibatch_lines(minibatch: reppo.Batch, state: reppo.TrainState) -> list[str]:
    """What the gradients were made of: the range of every quantity over the rows that train."""
    lines, trained = ["  made of:"], np.asarray(minibatch.valid) > 0
    for field in ("reward", "target", "critic_obs", "actor_obs", "sample", "advantage"):
        values = np.asarray(getattr(minibatch, field))[trained]
        if values.size:
            lines.append(f"    {field} from {np.min(values):.4g} to {np.max(values):.4g}")
    return [*lines, f"    alpha {float(state.duals.alpha):.4g}, beta {float(state.duals.beta):.4g}"]


def _load(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    if not path.is_file():
        raise ConfigError(f"no file {path}")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        meta = json.loads(arrays.pop("meta").tobytes())
        if meta["format"] != FORMAT or meta["kind"] not in ("step", "update"):
            raise ValueError
        if not isinstance(meta["env"], str) or not isinstance(meta["config"], dict):
            raise ValueError
        return arrays, meta
    except (ValueError, KeyError, TypeError, OSError, EOFError, AttributeError, zipfile.BadZipFile, NotImplementedError):
        raise ConfigError(f"{path} is not a reproduction file of this program, or is damaged") from None
