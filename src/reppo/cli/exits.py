"""How a command ends: the exit codes, what is refused, and what becomes of errors, one line each for the user."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import subprocess
from collections.abc import Iterator

from reppo import envs
from reppo.display import PlainDisplay
from reppo.envs import blame
from reppo.envs.blame import FAILURES
from reppo.errors import ConfigError, ReppoError
from reppo.interrupt import KILLED, STOPPED

CHECK_FAILED = 1  #: exit code of `reppo check-env` where a check has failed
USER_ERROR = 2  #: exit code of everything that the user can mend
DIVERGED = 3  #: exit code of a run that its numbers have ended, see `reppo.errors.Diverged`
INTERRUPTED = KILLED + signal.SIGINT
EXIT_CODES = {
    0: "done",
    CHECK_FAILED: "the environment that was checked does not keep the contract",
    USER_ERROR: "something to mend in what was asked for; one line says what",
    DIVERGED: "the run has ended early, because too many of its numbers are not finite",
    STOPPED: "stopped, by Ctrl-C, another signal or a closed output; `reppo resume RUN`, or the same `reppo bench`, goes on",
    INTERRUPTED: "Ctrl-C, and there is nothing to resume",
    KILLED + signal.SIGTERM: "SIGTERM, and there is nothing to resume",
}

#: What takes less memory, by command.
SMALLER = {
    "check-env": "try fewer --num-envs or --num-steps",
    "eval": "try fewer --episodes",
    "video": "try fewer --seconds",
}


def check_seed(seed: int) -> None:
    """Refuse what is no seed of JAX's random numbers."""
    if not 0 <= seed < 2**32:
        raise ConfigError(f"--seed must be between 0 and 2**32 - 1, got {seed}")


def out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


def explain(error: BaseException, command: str = "train") -> str | None:
    """What a user can do about an error that is not ours; None where it is nobody's fault but the program's."""
    text = str(error)
    if out_of_memory(error):
        size = re.search(r"allocat\w+ (\d+) bytes", text)
        asked = f" (it asked for {int(size[1]) / 2**30:,.1f} GiB more)" if size else ""
        advice = SMALLER.get(command, "try fewer --num-envs, --num-steps or --seeds, or smaller networks")
        return f"out of memory{asked}: {advice}"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM):
        return f"{error.strerror}{f': {error.filename}' if error.filename else ''}"
    if isinstance(error, subprocess.CalledProcessError) and "git" in error.cmd:
        return "this task downloads its robot with git at first use, and that failed: is there a network?"
    return None


@contextlib.contextmanager
def explained_errors(env: str, display: PlainDisplay | None = None) -> Iterator[None]:
    """Turn errors that an environment's own code has made into one line that names the place in it.

    Where our code stumbles over what such an environment returns, there is no such place: the line then holds the error
    itself. Once training is under way, such an error is more likely ours, and is left alone.
    """
    try:
        yield
    except FAILURES as error:
        said = isinstance(error, ReppoError)
        if said or out_of_memory(error) or os.environ.get("REPPO_TRACEBACK"):
            raise
        source, name = envs.split_name(env)
        of_suite = not name or source in envs.SUITES
        place = blame.place(error, "" if of_suite else source.partition(".")[0])
        under_way = display is not None and bool(display.telemetry.metrics)
        stumbled = isinstance(error, TypeError | ValueError | LookupError | AttributeError | ArithmeticError)
        ours = of_suite or under_way or not stumbled
        if place is None and ours and not isinstance(error, SystemExit):
            raise
        raise ConfigError(f"{place or env}: {blame.one_line(error)} (REPPO_TRACEBACK=1 shows more)") from error
