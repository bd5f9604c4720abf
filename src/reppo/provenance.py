"""What a run's numbers depend on: versions, hardware, source revision; and how much memory there is for it."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
from collections.abc import Mapping
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


def computer(hardware: Mapping[str, Any]) -> str:
    """What a run computed on, in a few words: ``4 x NVIDIA H100``, or a processor and how many of its cores."""
    devices = [device for device in hardware.get("devices") or [] if device != "cpu"]
    if devices:
        return f"{len(devices)} x {devices[0]}" if len(devices) > 1 else devices[0]
    cores = hardware.get("cpu_cores", "?")
    return f"{hardware.get('cpu', 'unknown')}, {cores} core{'' if cores == 1 else 's'}"


#: Where Linux tells a container how much memory it may have, in version 2 and in version 1 of its control groups.
CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def memory() -> int | None:
    """Bytes of the device that JAX computes on, on a CPU those that this process may have; None where it does not say."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return (device.memory_stats() or {}).get("bytes_limit")
    sizes = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for path in CGROUP_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # there is none, or it is the word max
            sizes.append(int(Path(path).read_text()))
    return min(sizes)
