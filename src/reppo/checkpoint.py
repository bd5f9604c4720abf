"""Checkpoints: all that a run needs to go on as if it had never stopped.

A checkpoint is a directory, ``RUN/checkpoints/000000204800`` (its environment steps), with two things in it:

    state/           the arrays, written by Orbax: a flat map from a leaf's path in the state to its array
    manifest.json    what the run had done by then, and the SHA-256 of every file of ``state/`` and of itself

It is written beside its final name and renamed into place, so that it is either whole or not there. Nothing is read
from ``state/`` before every checksum agrees. There is no pickle anywhere.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from reppo.config import ConfigError
from reppo.types import PyTree

FORMAT = "reppo-checkpoint-1"
PARTIAL = ".partial"


class CheckpointError(ConfigError):
    """A checkpoint that cannot be used: one line that says which and why."""


class Progress(NamedTuple):
    """What a run had done when its checkpoint was taken."""

    iteration: int
    env_steps: int  #: per seed
    seconds: float  #: wall-clock so far, over all of the run's processes
    evaluated: bool  #: whether the evaluation that is due after this iteration is in the tables
    best: float | None  #: best mean evaluation return so far
    positions: dict[str, int]  #: bytes of each of the run's growing files


# --------------------------------------------------------------------------------------------- arrays and paths


def to_host(tree: PyTree) -> dict[str, np.ndarray]:
    """A copy of every leaf, by its path. A copy, because the loop donates these buffers while the copy is written."""
    return {name: np.array(_raw(leaf), copy=True) for name, leaf in _leaves(tree)}


def from_host(arrays: dict[str, np.ndarray], like: PyTree) -> PyTree:
    """The tree of ``like`` (arrays or ``ShapeDtypeStruct``) with the leaves of ``arrays``.

    Raises:
        CheckpointError: where names, shapes or dtypes differ.
    """
    expected = dict(_leaves(like))
    for name in sorted(arrays.keys() | expected.keys()):
        if name not in arrays:
            raise CheckpointError(f"it has no {name}")
        if name not in expected:
            raise CheckpointError(f"it has a {name}, which this run does not")
        found, leaf = arrays[name], jax.eval_shape(_raw, expected[name])
        if (found.shape, found.dtype) != (leaf.shape, leaf.dtype):
            raise CheckpointError(f"{name} is {found.dtype}{list(found.shape)}, not {leaf.dtype}{list(leaf.shape)}")
    leaves = [_unraw(arrays[name], leaf) for name, leaf in expected.items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _leaves(tree: PyTree) -> list[tuple[str, Any]]:
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _raw(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _unraw(array: np.ndarray, like: Any) -> jax.Array:
    if not _is_key(like):
        return jnp.asarray(array)
    return jax.random.wrap_key_data(jnp.asarray(array), impl=str(jax.random.key_impl(like)))


# --------------------------------------------------------------------------------------------- writing


def write(directory: Path, arrays: dict[str, np.ndarray], progress: Progress) -> Path:
    """Write one checkpoint into ``directory``, atomically; returns its path."""
    final = directory / f"{progress.env_steps:012d}"
    partial = final.with_name(final.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    # Orbax refuses arrays of size zero, which simulators have where nothing touches; the manifest describes them.
    _checkpointer().save((partial / "state").absolute(), {name: a for name, a in arrays.items() if a.size})
    files = {str(p.relative_to(partial)): _digest(p.read_bytes()) for p in sorted(partial.rglob("*")) if p.is_file()}
    manifest = {
        "format": FORMAT,
        **progress._asdict(),
        "leaves": {name: [str(a.dtype), list(a.shape)] for name, a in arrays.items()},
        "files": files,
    }
    manifest["digest"] = _digest(_canonical(manifest))
    (partial / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    for path in [*partial.rglob("*"), partial]:
        _sync(path)
    if final.exists():  # the same step, saved again: before its evaluation and after it
        _remove(final)
    partial.rename(final)
    _sync(directory)
    return final


def _remove(path: Path) -> None:
    """Delete a checkpoint. Its manifest goes first: a directory without one is no checkpoint, rather than a damaged one."""
    (path / "manifest.json").unlink()
    shutil.rmtree(path)


def _checkpointer() -> Any:
    import orbax.checkpoint as ocp  # a second of imports that a run needs only when it first saves

    return ocp.PyTreeCheckpointer(use_ocdbt=True)


def _canonical(manifest: dict[str, Any]) -> bytes:
    return json.dumps(manifest, sort_keys=True).encode()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Saver:
    """Writes checkpoints in the background, one at a time, and keeps the last few and the best."""

    def __init__(self, directory: Path, keep: int, keep_best: bool):
        self.directory, self.keep, self.keep_best = directory, keep, keep_best
        self.best: Path | None = None
        self.last: Path | None = None
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def save(self, tree: PyTree, progress: Progress, is_best: bool = False) -> None:
        """Copy the state to the host and write it in the background; waits for the save before it.

        Raises:
            OSError: where that one failed.
        """
        self.wait()
        arrays = to_host(tree)
        # Not a daemon: an interpreter that exits in good order waits until the checkpoint is whole.
        self._thread = threading.Thread(target=self._write, args=(arrays, progress, is_best), name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Block until nothing is being written; raises what went wrong since the last call, once."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _write(self, arrays: dict[str, np.ndarray], progress: Progress, is_best: bool) -> None:
        try:
            self.last = write(self.directory, arrays, progress)
            if is_best and self.keep_best:
                self.best = self.last
                temporary = self.directory / ("best" + PARTIAL)
                temporary.write_text(self.last.name + "\n")
                os.replace(temporary, self.directory / "best")
            self._prune()
        except Exception as error:  # the thread that asked must hear of it, whatever it is
            self._error = error if isinstance(error, OSError) else OSError(f"checkpoint not written: {error}")

    def _prune(self) -> None:
        """Delete what the policy does not keep."""
        kept = {path.name for path in listing(self.directory)[-self.keep :]}
        if self.keep_best:
            kept.add(best_name(self.directory) or "")
        for path in listing(self.directory):
            if path.name not in kept:
                _remove(path)


# --------------------------------------------------------------------------------------------- reading


def listing(directory: Path) -> list[Path]:
    """Committed checkpoints, oldest first."""
    if not directory.is_dir():
        return []
    return sorted(p for p in directory.iterdir() if p.name.isdigit() and (p / "manifest.json").is_file())


def best_name(directory: Path) -> str | None:
    """Name of the checkpoint with the best evaluation, or None."""
    try:
        return (directory / "best").read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None


def read(path: Path) -> tuple[dict[str, np.ndarray], Progress]:
    """The arrays of a checkpoint, by leaf path, and its progress.

    Raises:
        CheckpointError: where a file is missing, truncated, altered or foreign.
    """
    manifest = _read_manifest(path)
    files: dict[str, str] = manifest["files"]
    for name, digest in files.items():
        try:
            data = (path / name).read_bytes()
        except OSError as error:
            raise CheckpointError(f"checkpoint {path} is damaged: {name}: {error.strerror}") from None
        if _digest(data) != digest:
            raise CheckpointError(f"checkpoint {path} is damaged: {name} is not what was written")
    extra = {str(p.relative_to(path)) for p in path.rglob("*") if p.is_file()} - files.keys() - {"manifest.json"}
    if extra:
        raise CheckpointError(f"checkpoint {path} holds a file that is not its own: {min(extra)}")
    arrays = {name: np.asarray(value) for name, value in _checkpointer().restore((path / "state").absolute()).items()}
    for name, (dtype, shape) in manifest["leaves"].items():
        if 0 in shape:
            arrays[name] = np.zeros(shape, dtype)
    described = {name: [str(a.dtype), list(a.shape)] for name, a in arrays.items()}
    if described != manifest["leaves"]:
        raise CheckpointError(f"checkpoint {path} is damaged: its arrays are not those of its manifest")
    return arrays, Progress(*(manifest[field] for field in Progress._fields))


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((path / "manifest.json").read_text())
    except OSError as error:
        raise CheckpointError(f"{path} is not a checkpoint: manifest.json: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise CheckpointError(f"checkpoint {path} is damaged: manifest.json is not JSON") from None
    if not isinstance(manifest, dict) or "format" not in manifest:
        raise CheckpointError(f"{path} is not a checkpoint of this program")
    if manifest["format"] != FORMAT:
        raise CheckpointError(f"checkpoint {path} has format {manifest['format']!r}; this version reads {FORMAT!r}")
    digest = manifest.pop("digest", None)
    if digest != _digest(_canonical(manifest)):
        raise CheckpointError(f"checkpoint {path} is damaged: manifest.json is not what was written")
    return manifest


def newest(directory: Path) -> tuple[dict[str, np.ndarray], Progress, list[str]] | None:
    """The newest sound checkpoint and what was wrong with newer ones; None where there has been none yet.

    Raises:
        CheckpointError: where there are checkpoints and none is sound.
    """
    problems: list[str] = []
    for path in reversed(listing(directory)):
        try:
            return *read(path), problems
        except CheckpointError as error:
            problems.append(str(error))
    if problems:
        raise CheckpointError(problems[0])
    return None
