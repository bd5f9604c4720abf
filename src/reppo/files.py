"""Files that are whole or not there, however the process or the machine stops."""

from __future__ import annotations

import contextlib
import json
import os
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

PARTIAL = ".partial"  #: suffix of what is being written
DAMAGED = ".damaged"  #: suffix of what cannot be read, and has been passed over


def sync(path: Path) -> None:
    """Have a file, or the names in a directory, on the disk before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes the place of ``path`` once it is whole; after an error nothing has changed."""
    partial = path.with_name(path.name + PARTIAL)
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, atomically."""
    with replacing(path) as file:
        file.write((json.dumps(value, indent=2) + "\n").encode())


ZSTANDARD = b"\x28\xb5\x2f\xfd"  #: how such a file begins


def drop_truncated(cache: Path) -> None:
    """Remove what a killed process has left of an entry in JAX's compilation cache.

    JAX writes an entry in place. It notices one that was cut off, and compiles again, but never writes over it: that
    program would be compiled at every start from then on. Each call looks at what was written since the last one began.
    """
    looked, now = cache / "looked-at", time.time()
    since = looked.stat().st_mtime if looked.exists() else 0.0
    for entry in cache.glob("*-cache") if cache.is_dir() else ():
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            if entry.stat().st_mtime >= since and not _decompresses(entry.read_bytes()):
                entry.unlink()
    if cache.is_dir():
        looked.touch()
        os.utime(looked, (now, now))


def _decompresses(data: bytes) -> bool:
    """Whether compressed data is whole; what nothing here can read counts as such."""
    if data.startswith(ZSTANDARD):
        try:
            import zstandard  # pyright: ignore[reportMissingImports]  # JAX takes it where it is installed
        except ImportError:
            return True
        with contextlib.suppress(zstandard.ZstdError):
            return bool(zstandard.ZstdDecompressor().decompress(data))
        return False
    stream = zlib.decompressobj()
    with contextlib.suppress(zlib.error):
        stream.decompress(data)
    return stream.eof


def set_aside(path: Path, suffix: str = DAMAGED) -> Path:
    """Give something damaged a name under which it is neither used nor counted nor deleted."""
    names = (path.with_name(path.name + suffix + (f"{i}" if i else "")) for i in range(1000))
    aside = next(name for name in names if not name.exists())
    path.rename(aside)
    return aside
