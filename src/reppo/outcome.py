"""What is written of a run, whichever loop trains it: its description, its evaluations, its summary."""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from reppo.envs.spec import EnvSpec
from reppo.errors import ConfigError
from reppo.evaluate import Evaluation
from reppo.provenance import memory, provenance
from reppo.sinks import best_evaluation
from reppo.types import PyTree


def size_of(tree: PyTree) -> int:
    """Bytes of all arrays, or shapes, of a pytree."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def due(i: int, n: int, k: int) -> bool:
    """Whether ``i`` of ``0, ..., n`` is 0 or among the ``k`` that divide them evenly."""
    before = i * k // n
    return any(round(j * n / k) == i for j in (before, before + 1))


def peak_memory() -> dict[str, int | None]:
    """The most that this process has held so far, of the host's memory and of a device's own; None where it has none."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    return {
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        "peak_device_memory_bytes": max((s["peak_bytes_in_use"] for s in stats if s), default=None),
    }


def check_fits(parts: Mapping[str, int], hint: str, devices: int = 1) -> None:
    """Refuse a run that cannot fit, before an operating system that promises more than it has ends the process.

    Args:
        parts: bytes that it has to hold at least, by what they are for.
        hint: what to do about it.
        devices: that share them, each with a memory of its own.

    Raises:
        ConfigError: where there is less memory.
    """
    needed, there = sum(parts.values()) // devices, memory()
    if there is not None and needed > there:
        raise ConfigError(
            f"this run needs at least {needed / 2**30:,.1f} GiB of memory, and there are {there / 2**30:,.1f}: {hint}"
        )


def describe(
    algorithm: str, spec: EnvSpec, seeds: Sequence[int], config: dict[str, Any], facts: Mapping[str, Any], **more: Any
) -> dict[str, Any]:
    """Everything that says what a run is, as JSON values: the contents of ``config.json``.

    Args:
        facts: what the algorithm derives from the environment.
        more: what else there is to say.
    """
    return {
        "algorithm": algorithm,
        "env": spec.name,
        "seeds": list(seeds),
        "config": config,
        **more,
        "spec": {
            "action_size": spec.action_size,
            "discrete": spec.discrete,
            **facts,
            "episode_length": spec.episode_length,
            "value_range": spec.value_range,
            "max_return": spec.max_return,
            "actor_keys": spec.actor_keys,
            "critic_keys": spec.critic_keys,
        },
        **provenance(),
    }


def evaluation_row(seed: int, iteration: int, env_steps: int, episodes: Evaluation, seconds: float) -> dict[str, float]:
    """One seed's evaluation as a row of ``evaluations.csv``; ``episodes`` has one axis."""
    returns = episodes.returns
    row = {"seed": float(seed), "iteration": float(iteration), "env_steps": float(env_steps)}
    row |= {"eval/return": float(returns.mean()), "eval/return_std": float(returns.std())}
    row |= {"eval/return_min": float(returns.min()), "eval/return_max": float(returns.max())}
    row |= {"eval/length": float(episodes.lengths.mean()), "eval/episodes": float(len(returns))}
    if not np.isnan(episodes.success_once).all():
        row["eval/success_once"] = float(episodes.success_once.mean())
        row["eval/success_at_end"] = float(episodes.success_at_end.mean())
    return row | {"eval/broken_episodes": float(episodes.broken.sum()), "time/seconds": seconds}


def summary(
    description: Mapping[str, Any],
    evaluations: Sequence[dict[str, float]],
    returns: np.ndarray,
    parts: Mapping[str, int],
    seconds: float,
) -> dict[str, Any]:
    """The contents of ``summary.json``: what came out, per seed.

    Args:
        description: as of `describe`.
        evaluations: all of them, a row for each seed.
        returns: of the last one, ``[seeds, episodes]``.
        parts: bytes that the run had to hold at least, by what they are for.
        seconds: of the whole run.
    """
    best = [best_evaluation(evaluations, seed) for seed in description["seeds"]]
    return {
        "algorithm": description["algorithm"],
        "env": description["env"],
        "env_steps": int(evaluations[-1]["env_steps"]),
        "seconds": round(seconds, 2),
        **peak_memory(),
        "computed_memory_bytes": dict(parts),
        "seeds": [
            {
                "seed": seed,
                "return_mean": float(r.mean()),
                "return_std": float(r.std()),
                "episodes": len(r),
                "best_return_mean": top["eval/return"],
                "best_env_steps": int(top["env_steps"]),
            }
            for seed, r, top in zip(description["seeds"], returns, best, strict=True)
        ],
    }
