"""What all tests share: one compilation cache, one way of drawing examples, and the runs that several files look at."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import helpers
import jax
import pytest
from hypothesis import settings

import reppo
from reppo.run import Run

# On a machine with an accelerator, too: several tests compare bits, which only a CPU promises.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
jax.config.update("jax_platforms", os.environ["JAX_PLATFORMS"])

# A shell starts its background jobs with SIGINT ignored, and the processes that tests start would inherit it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# No deadline, because the first example of a shape compiles; the same examples every time, so that failures can be repeated.
settings.register_profile("reppo", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("reppo")


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One compilation cache, kept in pytest's own (`pytest --cache-clear` empties it); processes that tests start find it
    where the program looks. Most of a first session's time is compilation."""
    kept = getattr(pytestconfig, "cache", None)  # none with `-p no:cacheprovider`
    cache = kept.mkdir("compiled") if kept is not None else tmp_path_factory.mktemp("compiled")
    directory = cache / "reppo" / "jax"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(directory))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
        patch.setenv("MPLBACKEND", "Agg")
        jax.config.update("jax_compilation_cache_dir", str(directory))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
        yield directory


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A short run on `probe:TargetReach` with all its files; `Run.directory` says where. Do not change it."""
    return reppo.train("probe:TargetReach", helpers.TINY, seed=3, out=tmp_path_factory.mktemp("trained") / "run")


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return Path(__file__).parent.parent
