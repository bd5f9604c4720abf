"""What a command sets up once in its process: the clock of a run, and silence from other packages."""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

imported = time.perf_counter()
started = imported  #: when the clock of a run begins; `start_clock` sets it


def process_start() -> float:
    """When this process began, on the clock of `time.perf_counter`: a run's seconds are those that its user waited."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return time.perf_counter() - (time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError, AttributeError):  # not Linux
        return imported


def start_clock(with_process: bool) -> None:
    """Begin the clock of a run: where the command has the process to itself, at the start of that."""
    global started
    started = process_start() if with_process else time.perf_counter()


def unraisable(what: Any) -> None:
    """Python's own `sys.unraisablehook`, but for what Orbax's threads say, each, where one array cannot be read."""
    if not (what.exc_type is RuntimeError and str(what.exc_value) == "Event loop is closed"):
        sys.__unraisablehook__(what)


def quieten() -> None:
    """Silence what other packages say to their developers; ``-W`` and ``PYTHONWARNINGS`` bring the warnings back."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = os.environ.get("REPPO_XLA_LOG_LEVEL", "3")
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # it, too, tells of arrays that cannot be read
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = unraisable
    if not sys.warnoptions:
        for package in (
            "brax",
            "envpool",
            "flax",
            "gymnasium",
            "gymnax",
            "jax",
            "mani_skill",
            "mujoco",
            "mujoco_playground",
            "orbax",
            "sapien",
            "tensorboardX",
        ):
            warnings.filterwarnings("ignore", module=rf"{package}(\.|$)")
