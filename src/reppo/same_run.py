"""Whether what is about to go on is the run that was begun: its options, its environment, its machine."""

from __future__ import annotations

import dataclasses
from typing import Any

from reppo import algorithms
from reppo.config import RunConfig, with_later_options
from reppo.errors import ConfigError

#: Options that may change when a run is resumed: they do not change what it computes until then.
RESUMABLE = frozenset(["total_steps", "num_evals", "eval_episodes", "checkpoint_minutes", "keep_checkpoints", "keep_best"])


def check_changes(saved: RunConfig, config: RunConfig) -> None:
    """Refuse changes that would make it another run."""
    if type(saved) is not type(config):
        raise ConfigError(f"the run is of {algorithms.name_of(saved)}, not of {algorithms.name_of(config)}")
    changed = [f.name for f in dataclasses.fields(saved) if getattr(saved, f.name) != getattr(config, f.name)]
    refused = [name for name in changed if name not in RESUMABLE]
    if getattr(saved, "anneal_learning_rate", False) and "total_steps" in changed:
        refused.append("total_steps")  # the schedule of the learning rate depends on it
    if refused:
        listed = ", ".join(f"{name} {getattr(saved, name)} -> {getattr(config, name)}" for name in refused)
        raise ConfigError(f"these options would make it another run: {listed}; start a new one with `reppo train`")


def check_spec(description: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse an environment that has changed since the run began: its values would mean something else."""
    written, spec = description.get("spec"), now["spec"]
    written = written if isinstance(written, dict) else {}
    changed = [f"{name} {written[name]} -> {spec[name]}" for name in spec if name in written and written[name] != spec[name]]
    if changed:
        raise ConfigError(f"{now['env']} has changed since this run began: {', '.join(changed)}; start a new one")


def other_run(written: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Differences between two descriptions of a run that make them two runs: ``name this -> that``."""
    pairs = [(name, written.get(name), now[name]) for name in ("env", "seeds")]
    pairs.append(("algorithm", written.get("algorithm", "reppo"), now["algorithm"]))
    options, own = written.get("config"), now["config"]
    options = with_later_options(options if isinstance(options, dict) else {}, own)
    names = sorted((options.keys() | own.keys()) - RESUMABLE)
    pairs += [(name, options.get(name), own.get(name)) for name in names]
    return [f"{name} {was!r} -> {this!r}" for name, was, this in pairs if was != this]


def changed_provenance(written: dict[str, Any], now: dict[str, Any]) -> str:
    """Versions, source revision and hardware that differ between two descriptions, in words."""

    def flat(description: dict[str, Any]) -> dict[str, Any]:
        parts = (description.get(name) for name in ("hardware", "versions"))
        hardware, versions = (part if isinstance(part, dict) else {} for part in parts)
        return {**versions, "git": description.get("git"), "cpu": hardware.get("cpu"), "devices": hardware.get("devices")}

    was, this = flat(written), flat(now)
    changed = [f"{name} {was.get(name)} -> {this.get(name)}" for name in this if was.get(name) != this[name]]
    return ", ".join(changed)
