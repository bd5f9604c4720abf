"""Imports of libraries that load much more than is used of them here."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from typing import Any

import jax


@contextlib.contextmanager
def without(*packages: str) -> Iterator[None]:
    """Within, importing one of ``packages`` fails as if it were not installed, so that a library does without that option.

    PyTorch takes seconds and 200 MB, Warp with MuJoCo's kernels for it as long. A package that is already there stays, and
    afterwards all of them can be imported.
    """
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
    """Whether MuJoCo's kernels for Warp can run here at a speed that anyone would want."""
    return jax.default_backend() != "cpu"


@contextlib.contextmanager
def of_physics() -> Iterator[None]:
    """For MuJoCo's and Brax's packages, which load PyTorch for wrappers, and Warp, also where that is of no use."""
    if warp_is_useful():
        with without("torch"):
            yield
    else:
        with without("torch", "warp"), contextlib.redirect_stdout(io.StringIO()):  # MuJoCo prints that it found no Warp
            yield
