"""Files that are whole or not there."""

from __future__ import annotations

import errno
import json
import os
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from reppo import files


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "summary.json"
    files.write_json(path, {"old": 1})

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, full)
            with pytest.raises(OSError, match="No space"):
                files.write_json(path, {"new": 2})
        assert json.loads(path.read_text()) == {"old": 1}
        assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]
    files.write_json(path, {"new": 2})
    assert json.loads(path.read_text()) == {"new": 2}


# ------------------------------------------------------------------------------------------- the compilation cache


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A compilation cache of its own, which takes every program."""
    options = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    old = {name: getattr(jax.config, name) for name in options}
    for name, value in zip(options, (str(tmp_path), 0.0), strict=True):
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield tmp_path
    for name, value in old.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def compiled() -> float:
    """A program that is compiled anew, as in another process, or is read from the cache."""
    jax.clear_caches()
    return float(jax.jit(lambda x: jnp.sin(x) * 3.0 + 41.0)(0.0))


def test_a_compiled_program_that_a_kill_has_cut_off_is_not_kept(cache: Path) -> None:
    assert compiled() == 41.0
    (entry,) = [path for path in cache.glob("*-cache") if "lambda" in path.name]
    whole = entry.read_bytes()
    entry.write_bytes(whole[: len(whole) // 2])
    with pytest.warns(UserWarning, match="Error reading persistent compilation cache entry"):
        assert compiled() == 41.0
    assert entry.read_bytes() != whole, "JAX mends its entries: `drop_truncated` is not needed any more"
    files.drop_truncated(cache)
    assert not entry.exists()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compiled()
        assert entry.exists()
        files.drop_truncated(cache)
        assert entry.exists()
        compiled()


def test_entries_are_looked_at_once(tmp_path: Path) -> None:
    files.drop_truncated(tmp_path / "none")
    assert not (tmp_path / "none").exists()
    old, new, whole, other = (tmp_path / f"{name}-cache" for name in ("old", "new", "whole", "other"))
    files.drop_truncated(tmp_path)
    for path in (old, new):
        path.write_bytes(zlib.compress(b"program")[:-1])
    whole.write_bytes(zlib.compress(b"program"))
    other.write_bytes(b"anything")
    began = (tmp_path / "looked-at").stat().st_mtime
    os.utime(old, (began - 1, began - 1))  # it was looked at when it was whole
    files.drop_truncated(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"old-cache", "whole-cache", "looked-at"}
