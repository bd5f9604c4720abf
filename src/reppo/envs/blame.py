"""What an environment's own code raises, and the line of it that an exception comes from."""

from __future__ import annotations

import os
import re
import sysconfig
from typing import Any

#: What an environment's code may raise. ``sys.exit`` in it is a mistake like any other, and must not end a run in silence.
FAILURES = (Exception, SystemExit)

CALLBACK = os.path.join("jax", "_src", "callback.py")  #: where JAX calls a callback
PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
LIBRARIES = tuple({os.path.abspath(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib")})


def one_line(error: BaseException) -> str:
    """An exception's type and the first line of its text."""
    if raised := _in_callback(error):
        return raised[1]
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def counted(returned: Any) -> str:
    """How many values a function has returned, in words."""
    if isinstance(returned, tuple | list):
        return f"{len(returned)} value{'s' * (len(returned) != 1)}"
    return "nothing" if returned is None else "one value"


def place(error: BaseException, package: str = "") -> str | None:
    """The innermost line that an exception has passed through outside of this program, of Python's library and of installed
    packages: ``mine.py:8, in step``. Of these, ``package`` counts nevertheless, as an environment may be in it."""
    if raised := _in_callback(error):
        return raised[0]
    found, traceback = None, error.__traceback__
    while traceback is not None:
        code, module = traceback.tb_frame.f_code, str(traceback.tb_frame.f_globals.get("__name__"))
        if _is_own(code.co_filename) or (package and module.partition(".")[0] == package):
            found = f"{_shown(code.co_filename)}:{traceback.tb_lineno}, in {code.co_name}"
        traceback = traceback.tb_next
    return found


def explained(error: BaseException, package: str = "") -> str:
    """An exception on one line, with its `place` where there is one."""
    where = place(error, package)
    return f"{one_line(error)}{f' ({where})' if where else ''}"


def _in_callback(error: BaseException) -> tuple[str | None, str] | None:
    """The place and the line of what a callback that a compiled program makes has raised: JAX has them as text alone."""
    _, found, text = str(error).partition("error calling callback: Traceback")
    if not found:
        return None
    places, line = [], ""
    for line in text.splitlines()[1:]:
        frame = re.match(r'\s*File "(.+)", line (\d+), in (.+)', line)
        if frame and frame[1].endswith(CALLBACK):
            places.clear()  # those before are of who has called the program
        elif frame and _is_own(frame[1]):
            places.append(f"{_shown(frame[1])}:{frame[2]}, in {frame[3]}")
        elif not line.startswith(" "):
            break
    return places[-1] if places else None, line


def _is_own(file: str) -> bool:
    """Whether a source file is neither ours nor a library's; what was generated has none."""
    path = os.path.abspath(file)
    if not os.path.isfile(path) or not {"site-packages", "dist-packages"}.isdisjoint(path.split(os.sep)):
        return False
    return not any(path.startswith(folder + os.sep) for folder in (PACKAGE, *LIBRARIES))


def _shown(file: str) -> str:
    """Relative where it is below the current directory."""
    path = os.path.abspath(file)
    return os.path.relpath(path) if path.startswith(os.getcwd() + os.sep) else path
