"""The directory of a run: what is in it, who may write it, and how it is wound back to a checkpoint.

config.json       what the run is: environment, seeds, configuration, versions, hardware, git revision
metrics.csv       a row per seed and iteration
evaluations.csv   a row per seed and evaluation
tensorboard/      the same, for TensorBoard
checkpoints/      see `reppo.checkpoint`
policy.npz        the newest evaluated policy, see `reppo.export`; policy_seed7.npz where there are several seeds
best.npz          the one with the best evaluation of the run; best_seed7.npz
curve.png         the learning curve
summary.json      the outcome; written last, so that it marks a finished run
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from reppo.errors import ConfigError
from reppo.files import sync, write_json


def new_run_name(env: str) -> str:
    """``CheetahRun-20260131-142500``: a directory name for a run of an environment that starts now."""
    task = re.sub(r"[^A-Za-z0-9_.-]+", "-", env.rpartition(":")[2]).strip("-") or "run"
    return f"{task}-{time.strftime('%Y%m%d-%H%M%S')}"


@contextlib.contextmanager
def claimed(given: Path | None, env: str, folder: Path = Path("runs")) -> Iterator[Path]:
    """The directory that was asked for, or else an empty one with a name of its own, which no other process gets.

    It is removed at the end where it is still empty.
    """
    if given is not None:
        yield given
        return
    path = _claim(folder, new_run_name(env))
    try:
        yield path
    finally:
        with contextlib.suppress(OSError):  # it holds something
            path.rmdir()
            folder.rmdir()


def _claim(folder: Path, name: str) -> Path:
    """A new directory ``name``, or ``name-2`` and so on where runs start in the same second."""
    for number in itertools.count(1):
        path = folder / (name if number == 1 else f"{name}-{number}")
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            if not folder.is_dir():
                raise ConfigError(f"cannot create {path}: {folder} is no directory") from None
        except OSError as error:
            raise ConfigError(f"cannot create {path}: {error.strerror}") from error
    raise AssertionError("unreachable")


def check_free(path: Path) -> None:
    """Refuse a path that holds anything: an existing run is never touched."""
    if os.path.lexists(path) and not (path.is_dir() and not any(path.iterdir())):
        or_resume = f", or `reppo resume {path}`" if (path / "config.json").is_file() else ""
        raise ConfigError(f"{path} exists already and is never overwritten; choose another --out{or_resume}")


def check_new(path: Path) -> None:
    """Refuse a file that exists, or that has no directory to be in."""
    if os.path.lexists(path):
        raise ConfigError(f"{path} exists already and is never overwritten; --out names another file")
    if not path.parent.is_dir():
        raise ConfigError(f"{path} has no place: there is no directory {path.parent}")


def create(path: Path, description: dict[str, Any]) -> Path:
    """Make the directory, with its ``config.json`` in it from the first moment, so that it can always be resumed."""
    check_free(path)
    path = path.absolute()  # `.` has no name
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        write_json(partial / "config.json", description)
        partial.rename(path)
        sync(path.parent)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise ConfigError(f"cannot create {path}: {error.strerror}") from error
    return path


def _lock(file: IO[str], attempts: int = 10) -> None:
    """Lock a file; raises `BlockingIOError` where another process has held it for half a second."""
    for _ in range(attempts - 1):
        with contextlib.suppress(BlockingIOError):
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        time.sleep(0.05)
    return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the directory against other processes; the kernel lets go of it however this process ends.

    Who asks whether it is held, see `holder`, holds it for a moment: that is waited for.
    """
    try:
        file = (path / "lock").open("a+")
    except OSError as error:
        raise ConfigError(f"cannot write in {path}: {error.strerror}") from error
    with file:
        try:
            _lock(file)
        except BlockingIOError:
            file.seek(0)
            raise ConfigError(f"{path} is in use by process {file.read().strip() or 'unknown'}") from None
        except OSError as error:
            raise ConfigError(f"{path} is on a file system that cannot lock files: {error.strerror}") from error
        try:
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
        except OSError as error:
            raise ConfigError(f"cannot write in {path}: {error.strerror}") from error
        yield


def holder(path: Path) -> str | None:
    """The number of the process that has `locked` the directory, "unknown" where it does not say; None where none has."""
    try:
        with (path / "lock").open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read().strip() or "unknown"
    except OSError:  # nobody has ever locked it, or nobody can
        pass
    return None


@contextlib.contextmanager
def dropped_unless_begun(path: Path, sign: str = "checkpoints") -> Iterator[None]:
    """Remove a directory that `create` has made, if the run fails before it has anything that is of use: ``sign``."""
    try:
        yield
    except (Exception, SystemExit):
        if not (path / sign).exists():
            shutil.rmtree(path, ignore_errors=True)
        raise


DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


@contextlib.contextmanager
def explained_disk_errors(path: Path | None) -> Iterator[None]:
    """Turn what a disk refuses into one line; what was written before stays as it is."""
    try:
        yield
    except OSError as error:
        if path is None or error.errno not in DISK_ERRORS:
            raise
        raise ConfigError(f"cannot write in {path}: {error.strerror}; mend it, then `reppo resume {path}`") from error


def read_description(path: Path) -> dict[str, Any]:
    """The contents of ``config.json``; raises `ConfigError` where this is no run directory or the file is damaged."""
    file = path / "config.json"
    if not file.is_file():
        advice = "a run that was killed before it wrote one has nothing to resume: start it again"
        raise ConfigError(f"{path} is not a run directory: it has no config.json; {advice}")
    try:
        description = json.loads(file.read_text())
        env, seeds, config = description["env"], description["seeds"], description["config"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"{file} is damaged or of another program ({type(error).__name__})") from None
    whole = isinstance(env, str) and isinstance(config, dict) and isinstance(seeds, list) and seeds
    if not whole or not all(type(seed) is int and 0 <= seed < 2**32 for seed in seeds):
        raise ConfigError(f"{file} is damaged or of another program (env, seeds or config)")
    return description


def check_nothing_earned(path: Path) -> None:
    """Refuse to begin anew where results are and the checkpoints are gone: they would be overwritten."""
    results = [*path.glob("policy*.npz"), *path.glob("best*.npz"), *path.glob("summary.json")]
    if results:
        raise ConfigError(
            f"{path} has {min(result.name for result in results)} and no checkpoint to go on from; its results stay as they "
            f"are: start a new run with `reppo train`"
        )


def is_finished(path: Path, total_steps: int) -> bool:
    """Whether ``summary.json`` says that the run has done this many steps."""
    try:
        return json.loads((path / "summary.json").read_text())["env_steps"] >= total_steps
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _growing(path: Path) -> list[Path]:
    files = [path / "metrics.csv", path / "evaluations.csv", *sorted((path / "tensorboard").rglob("events.out.tfevents.*"))]
    return [file for file in files if file.is_file()]


def positions(path: Path) -> dict[str, int]:
    """Sizes of the files that rows are appended to, on disk by now."""
    files = _growing(path)
    for place in {*files, *(file.parent for file in files)}:
        sync(place)
    return {str(file.relative_to(path)): file.stat().st_size for file in files}


def check_rows(path: Path, at: dict[str, int]) -> None:
    """Refuse tables and event files that are shorter than they were at a checkpoint."""
    for name, size in at.items():
        found = (path / name).stat().st_size if (path / name).is_file() else 0
        if found < size:
            raise ConfigError(f"rows are lost: {path / name} has {found} bytes, the checkpoint recorded {size}")


def rewind(path: Path, at: dict[str, int]) -> None:
    """Cut these files back to where they were at a checkpoint: the rows after it will be computed again, the same."""
    check_rows(path, at)
    for file in _growing(path):
        if (name := str(file.relative_to(path))) in at:
            os.truncate(file, at[name])
        else:
            file.unlink()
