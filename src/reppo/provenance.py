"""What a run's numbers depend on: versions, hardware, source revision."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

PACKAGES = (
    "reppo", "jax", "jaxlib", "equinox", "optax", "numpy",
    "mujoco", "mujoco-mjx", "playground", "brax", "gymnax", "gymnasium", "envpool", "torch", "stable_baselines3",
    "sbx-rl", "flax",
)  # fmt: skip


def provenance() -> dict[str, Any]:
    """Versions, hardware and git revision, as plain JSON values."""
    return {
        "versions": {"python": platform.python_version(), **{p: v for p in PACKAGES if (v := _version(p)) is not None}},
        "hardware": {
            "cpu": _cpu_model(),
            "cpu_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "devices": [device.device_kind for device in jax.devices()],
            "platform": f"{platform.system()} {platform.machine()}",
        },
        "git": _git_revision(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())


def _git_revision() -> str | None:
    """The revision of this package's checkout, with ``+changes`` where it is not clean; None where it is installed."""
    git = ["git", "-C", str(Path(__file__).parent)]
    known = [*git, "ls-files", "--error-unmatch", Path(__file__).name]  # it may lie in the repository of its user
    describe = [*git, "describe", "--always", "--dirty=+changes", "--abbrev=40"]
    try:
        subprocess.run(known, capture_output=True, timeout=5, check=True)
        return subprocess.run(describe, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
