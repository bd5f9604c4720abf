"""Imports of libraries that load much more than is used of them here."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import jax

_LOCK = threading.RLock()  #: two threads within would give back each other's modules and standard output


@contextlib.contextmanager
def without(*packages: str) -> Iterator[None]:
    """Within, importing one of ``packages`` fails as if it were not installed, so that a library does without that option.

    PyTorch takes seconds and 200 MB, Warp with MuJoCo's kernels for it as long. A package that is already there stays, and
    afterwards all of them can be imported; but a library that was imported within has found none of them, and will not look
    again in this process.
    """
    with _LOCK:
        modules: dict[str, Any] = sys.modules  # None is Python's own mark for a name that cannot be imported
        blocked = [package for package in packages if package not in modules]
        modules.update(dict.fromkeys(blocked))
        try:
            yield
        finally:
            for package in blocked:
                if package in modules and modules[package] is None:
                    del modules[package]


def warp_is_useful() -> bool:
    """Whether JAX may use CUDA here, which MuJoCo's kernels for Warp are for; asks no device, and so starts none."""
    asked = jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue]  # JAX_PLATFORMS, too
    if asked:
        return not {"cuda", "gpu"}.isdisjoint(asked.split(","))
    return any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13))


PROBE = "import mujoco; mujoco.GLContext(8, 8).make_current()"


def for_drawing() -> None:
    """Where there is no screen, have MuJoCo draw without one: on a GPU by EGL, or on the CPU by OSMesa, if either works.

    MuJoCo asks when it is imported, and can change its mind no more: each is tried in a process of its own.
    """
    if sys.platform != "linux" or {"MUJOCO_GL", "DISPLAY"} & os.environ.keys() or "mujoco" in sys.modules:
        return
    for backend in ("egl", "osmesa"):
        env = {**os.environ, "MUJOCO_GL": backend}
        with contextlib.suppress(subprocess.TimeoutExpired):  # a broken driver may hang
            probe = subprocess.run([sys.executable, "-c", PROBE], env=env, capture_output=True, timeout=20)
            if probe.returncode == 0:
                os.environ["MUJOCO_GL"] = backend
                return


@contextlib.contextmanager
def of_physics() -> Iterator[None]:
    """For MuJoCo's and Brax's packages, which load PyTorch for wrappers, and Warp, also where that is of no use."""
    with _LOCK, contextlib.ExitStack() as stack:
        if warp_is_useful():
            stack.enter_context(without("torch"))
        else:
            stack.enter_context(without("torch", "warp"))
            if "mujoco.mjx" not in sys.modules:  # it prints that it found no Warp
                stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        yield
