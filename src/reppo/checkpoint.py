"""Checkpoints: all that a run needs to go on as if it had never stopped.

A checkpoint is a directory, ``RUN/checkpoints/000000204800`` (its environment steps), with two things in it:

    state/           the arrays, written by Orbax: a flat map from a leaf's path in the state to its array
    manifest.json    the run (as in ``config.json``), what it had done by then, the SHA-256 of every file and of itself

It is written beside its final name and renamed into place, and it is renamed before it is deleted, so that it is either
whole or not there. Nothing is read from ``state/`` before every checksum agrees. There is no pickle anywhere.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
import shutil
import threading
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from reppo.errors import ConfigError
from reppo.files import PARTIAL, sync
from reppo.types import PyTree

FORMAT = "reppo-checkpoint-1"
REMOVED = ".removed"  #: suffix of one that is being deleted
EVALUATED = "-evaluated"  #: suffix of a checkpoint taken after the evaluation at its step
NAME = re.compile(rf"(\d{{12,}})({EVALUATED})?")


class CheckpointError(ConfigError):
    """A checkpoint that cannot be used: one line that says which and why."""


class Damaged(CheckpointError):
    """A checkpoint of this program that is not what was written; an older one can be used instead."""


class Progress(NamedTuple):
    """What a run had done when its checkpoint was taken."""

    iteration: int
    env_steps: int  #: per seed
    seconds: float  #: wall-clock so far, over all of the run's processes
    evaluated: bool  #: whether the evaluation that is due after this iteration is in the tables
    returns: list[list[float]]  #: the newest evaluation, seed by episode
    positions: dict[str, int]  #: bytes of each of the run's growing files

    @property
    def name(self) -> str:
        """Name of its checkpoint. An evaluation makes another, so that no checkpoint is ever written over."""
        return f"{self.env_steps:012d}{EVALUATED if self.evaluated else ''}"

    @property
    def score(self) -> float:
        """Mean return of the evaluation of this very moment; negative infinity where there was none."""
        score = float(np.mean(self.returns)) if self.evaluated and self.returns else -math.inf
        return score if math.isfinite(score) else -math.inf


class Checkpoint(NamedTuple):
    """A checkpoint that has been read."""

    arrays: dict[str, np.ndarray]  #: by leaf path
    progress: Progress
    run: dict[str, Any]  #: the contents of ``config.json`` when it was written, with the versions that wrote it


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
    impl = jax.random.key_impl(jnp.empty(0, like.dtype))  # of an array, because ``like`` may be a mere shape
    return jax.random.wrap_key_data(jnp.asarray(array), impl=str(impl))


# --------------------------------------------------------------------------------------------- writing


def write(directory: Path, arrays: dict[str, np.ndarray], progress: Progress, run: dict[str, Any]) -> Path:
    """Write one checkpoint into ``directory``, atomically; returns its path."""
    final = directory / progress.name
    partial = final.with_name(final.name + PARTIAL)
    if not directory.is_dir():
        directory.mkdir(parents=True)
        sync(directory.parent)
    _delete(partial)
    partial.mkdir()
    try:
        _fill(partial, arrays, progress, run)
    except BaseException:
        _delete(partial)  # on a full disk this is what it is full of
        raise
    if final.exists():  # only where a copy was put there by hand
        remove(final)
    partial.rename(final)
    sync(directory)
    return final


def _fill(partial: Path, arrays: dict[str, np.ndarray], progress: Progress, run: dict[str, Any]) -> None:
    # Orbax refuses arrays of size zero, which simulators have where nothing touches; the manifest describes them.
    _checkpointer().save((partial / "state").absolute(), {name: a for name, a in arrays.items() if a.size})
    files = {str(p.relative_to(partial)): _digest(p.read_bytes()) for p in sorted(partial.rglob("*")) if p.is_file()}
    manifest = {
        "format": FORMAT,
        "progress": progress._asdict(),
        "run": run,
        "leaves": {name: [str(a.dtype), list(a.shape)] for name, a in arrays.items()},
        "files": files,
    }
    manifest["digest"] = _digest(_canonical(manifest))
    (partial / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    for path in [*partial.rglob("*"), partial]:
        sync(path)


def remove(path: Path) -> None:
    """Delete a checkpoint. It first gets another name: a half of one must not look like a damaged one."""
    removed = path.with_name(path.name + REMOVED)
    _delete(removed)
    path.rename(removed)
    _delete(removed)


def sweep(directory: Path) -> None:
    """Delete what killed processes were writing or deleting."""
    for path in directory.glob("*") if directory.is_dir() else ():
        if path.name.endswith((PARTIAL, REMOVED)):
            _delete(path)


def _delete(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _checkpointer() -> Any:
    import orbax.checkpoint as ocp  # half a second of imports that a run needs only when it first saves

    return ocp.PyTreeCheckpointer(use_ocdbt=True)


def _canonical(manifest: dict[str, Any]) -> bytes:
    return json.dumps(manifest, sort_keys=True).encode()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Saver:
    """Writes checkpoints in the background, one at a time, and keeps the last few and the best."""

    def __init__(self, directory: Path, keep: int, keep_best: bool):
        self.directory, self.keep, self.keep_best = directory, keep, keep_best
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def save(self, tree: PyTree, progress: Progress, run: dict[str, Any]) -> None:
        """Copy the state to the host and write it in the background; waits for the save before it.

        Where that one failed, this one is waited for as well: a disk that was full may have room again.

        Raises:
            OSError: where this one failed, too.
        """
        failed = None
        try:
            self.wait()
        except OSError as error:
            failed = error
        arrays = to_host(tree)
        # Not a daemon: an interpreter that exits in good order waits until the checkpoint is whole.
        self._thread = threading.Thread(target=self._write, args=(arrays, progress, run), name="checkpoint")
        self._thread.start()
        if failed is not None:
            self.wait()

    def settle(self) -> None:
        """Block until nothing is being written. What went wrong is for the next `save` or `wait` to say."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def wait(self) -> None:
        """Block until nothing is being written; raises what went wrong since the last call, once."""
        self.settle()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _write(self, arrays: dict[str, np.ndarray], progress: Progress, run: dict[str, Any]) -> None:
        try:
            write(self.directory, arrays, progress, run)
            for path in superfluous(self.directory, self.keep, self.keep_best):
                remove(path)
        except Exception as error:  # the thread that asked must hear of it, whatever it is
            # Orbax reports a full disk as a ValueError of several lines.
            lines = str(error).splitlines() or [type(error).__name__]
            self._error = error if isinstance(error, OSError) and error.strerror else OSError(lines[0])


# --------------------------------------------------------------------------------------------- reading


def steps(path: Path) -> int:
    """Environment steps of a checkpoint, from its name."""
    match = NAME.fullmatch(path.name)
    assert match is not None
    return int(match[1])


def listing(directory: Path) -> list[Path]:
    """Checkpoints, oldest first, sound or not."""
    if not directory.is_dir():
        return []
    found = (path for path in directory.iterdir() if NAME.fullmatch(path.name))
    return sorted(found, key=lambda path: (steps(path), path.name))


def best(directory: Path) -> Path | None:
    """The checkpoint with the best evaluation, the oldest of several; None where none has been evaluated."""
    scores: dict[Path, float] = {}
    for path in listing(directory):
        with contextlib.suppress(CheckpointError):
            scores[path] = _progress(_read_manifest(path), path).score
    found = max(scores, key=lambda path: scores[path], default=None)
    return found if found is not None and scores[found] > -math.inf else None


def superfluous(directory: Path, keep: int, keep_best: bool) -> list[Path]:
    """What the policy does not keep: all but the last of every step, all but the last steps, and not the best."""
    last_of_step = {steps(path): path for path in listing(directory)}
    kept = {*list(last_of_step.values())[-keep:], *([best(directory)] if keep_best else [])}
    return [path for path in listing(directory) if path not in kept]


def read(path: Path) -> Checkpoint:
    """A checkpoint's contents.

    Raises:
        Damaged: where a file is missing, truncated or altered.
        CheckpointError: where it is of another program or version.
    """
    manifest = _read_manifest(path)
    progress = _progress(manifest, path)
    run, leaves, files = (manifest.get(field) for field in ("run", "leaves", "files"))
    if not (isinstance(run, dict) and isinstance(leaves, dict) and isinstance(files, dict)):
        raise CheckpointError(f"{path} is not a checkpoint of this program: its manifest.json is incomplete")
    for name, digest in files.items():
        if _digest(_bytes(path / name, f"checkpoint {path} is damaged: {name}")) != digest:
            raise Damaged(f"checkpoint {path} is damaged: {name} is not what was written")
    extra = {str(p.relative_to(path)) for p in path.rglob("*") if not p.is_dir()} - files.keys() - {"manifest.json"}
    if extra:
        raise Damaged(f"checkpoint {path} holds a file that is not its own: {min(extra)}")
    try:
        restored = _checkpointer().restore((path / "state").absolute())
        arrays = {name: np.asarray(value) for name, value in restored.items()}
        arrays |= {name: np.zeros(shape, dtype) for name, (dtype, shape) in leaves.items() if 0 in shape}
    except Exception as error:  # the sums agree, so that this is what some other program has put there
        raise CheckpointError(f"checkpoint {path} is not of this program ({type(error).__name__})") from error
    if {name: [str(a.dtype), list(a.shape)] for name, a in arrays.items()} != leaves:
        raise CheckpointError(f"checkpoint {path} is not of this program: its arrays are not those of its manifest")
    return Checkpoint(arrays, progress, run)


def _bytes(path: Path, what: str) -> bytes:
    """A file's contents; anything but a plain file, such as a pipe that would never end, is an error."""
    try:
        if not path.is_file():
            raise Damaged(f"{what} is missing")
        return path.read_bytes()
    except OSError as error:
        raise Damaged(f"{what} cannot be read: {error.strerror}") from None


def _read_manifest(path: Path) -> dict[str, Any]:
    data = _bytes(path / "manifest.json", f"checkpoint {path} is damaged: manifest.json")
    try:
        manifest = json.loads(data)
    except (ValueError, RecursionError):
        raise Damaged(f"checkpoint {path} is damaged: manifest.json is not JSON") from None
    if not isinstance(manifest, dict) or "format" not in manifest:
        raise CheckpointError(f"{path} is not a checkpoint of this program")
    digest = manifest.pop("digest", None)
    if digest != _digest(_canonical(manifest)):
        raise Damaged(f"checkpoint {path} is damaged: manifest.json is not what was written")
    if manifest["format"] != FORMAT:
        raise CheckpointError(f"checkpoint {path} has format {manifest['format']!r}; this version reads {FORMAT!r}")
    return manifest


def _progress(manifest: dict[str, Any], path: Path) -> Progress:
    values = manifest.get("progress")
    kinds = (int, int, float, bool, list, dict)
    if not isinstance(values, dict) or [type(values.get(name)) for name in Progress._fields] != list(kinds):
        raise CheckpointError(f"{path} is not a checkpoint of this program: its manifest.json is incomplete")
    progress = Progress(*(values[name] for name in Progress._fields))
    numbers = [number for episodes in progress.returns for number in (episodes if isinstance(episodes, list) else [None])]
    counts = [progress.iteration, progress.env_steps, *progress.positions.values()]
    if not all(type(n) is float for n in numbers) or not all(type(n) is int and n >= 0 for n in counts):
        raise CheckpointError(f"{path} is not a checkpoint of this program: its manifest.json is incomplete")
    if progress.name != path.name:
        raise Damaged(f"checkpoint {path} is damaged: it was written as {progress.name}")
    return progress


def newest(directory: Path) -> tuple[Checkpoint | None, dict[Path, str]]:
    """The newest sound checkpoint, None where there is none at all, and what is wrong with newer ones.

    Raises:
        CheckpointError: where there are checkpoints and none is sound, or the newest is not of this program.
    """
    damaged: dict[Path, str] = {}
    for path in reversed(listing(directory)):
        try:
            return read(path), damaged
        except Damaged as error:
            damaged[path] = str(error)
    if damaged:
        raise CheckpointError(f"{next(iter(damaged.values()))}; there is no sound one to go on from")
    return None, {}
