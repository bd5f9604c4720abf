"""Environments by name: ``suite:Task``, or ``path/to/file.py:MyEnv`` or ``module:MyEnv`` for one of your own."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from reppo.envs import blame
from reppo.envs.base import Env, Transition
from reppo.envs.blame import FAILURES
from reppo.envs.host import HostEnv
from reppo.envs.spec import EnvSpec
from reppo.errors import ConfigError

__all__ = ["SUITES", "AnyEnv", "Env", "EnvSpec", "HostEnv", "Suite", "Transition", "leave_gpu_memory", "make", "missing"]

AnyEnv = Env | HostEnv


@dataclasses.dataclass(frozen=True)
class Suite:
    """A family of environments: which package it needs, what it offers, how one is built."""

    package: str | None  #: importable package, None for our own
    extra: str | None  #: the extra of ``pip install 'reppo[extra]'``, None where pip alone does not install it
    module: str  #: our adapter, with ``names()`` and ``make(name)``
    about: str
    lists_all: bool = True  #: whether ``names()`` has every task; otherwise ``make`` judges a name itself
    in_jax: bool = True  #: whether its environments are written in JAX; otherwise they step on the host
    by_torch: bool = False  #: whether torch simulates them, on a GPU where there is one
    physics: tuple[str, ...] = ()  #: engines to choose from, ``suite:Task@engine``; ``make`` takes one as ``physics``

    @property
    def install(self) -> str:
        """How to get its package."""
        return f"pip install 'reppo[{self.extra}]'" if self.extra else "see docs/environments.md"

    def adapter(self) -> Any:
        return importlib.import_module(self.module)


SUITES: dict[str, Suite] = {
    "playground": Suite(
        "mujoco_playground",
        "playground",
        "reppo.envs.playground",
        "MuJoCo Playground: dm_control tasks and robots",
        physics=("jax", "warp"),
    ),
    "brax": Suite(
        "brax",
        "brax",
        "reppo.envs.brax",
        "Brax: ant, halfcheetah, humanoid, ...",
        physics=("generalized", "mjx", "positional", "spring"),
    ),
    "gymnax": Suite("gymnax", "gymnax", "reppo.envs.gymnax", "gymnax: classic control, MinAtar"),
    "gymnasium": Suite(
        "gymnasium",
        "gymnasium",
        "reppo.envs.gymnasium",
        "Gymnasium: MuJoCo, classic control, any registered id",
        False,
        False,
    ),
    "envpool": Suite(
        "envpool", "envpool", "reppo.envs.envpool", "EnvPool: MuJoCo, dm_control, robots, in fast C++ threads", False, False
    ),
    "maniskill": Suite(
        "mani_skill",
        "maniskill",
        "reppo.envs.maniskill",
        "ManiSkill: robot manipulation in SAPIEN, by torch",
        False,
        False,
        True,
    ),
    "mjlab": Suite("mjlab", "mjlab", "reppo.envs.mjlab", "mjlab: robots in MuJoCo Warp, by torch", False, False, True),
    "isaaclab": Suite(
        "isaaclab", None, "reppo.envs.isaaclab", "Isaac Lab: manager-based tasks, by their ids, by torch", False, False, True
    ),
    "probe": Suite(None, None, "reppo.envs.probes", "tiny environments with known values, for testing"),
}


def split_name(env: str) -> tuple[str, str]:
    """The suite, module or file of an environment's name, and what it is called there. A path may hold colons, too."""
    source, _, name = env.partition(":")
    if source not in SUITES and (env.endswith(".py") or ".py:" in env):
        path, _, name = (env if not env.endswith(".py") else f"{env}:").rpartition(".py:")
        return os.path.expanduser(f"{path}.py"), name
    return source, name


def missing(suite: Suite) -> bool:
    """Whether the suite's package is not installed."""
    return suite.package is not None and importlib.util.find_spec(suite.package) is None


def leave_gpu_memory(env: str) -> None:
    """Let JAX take memory of a GPU as it needs it, where torch simulates ``env`` on the same one.

    Otherwise JAX takes three quarters at its start, and the simulator fails. What the user has set stands. Without effect
    once JAX has started.
    """
    suite = SUITES.get(split_name(env)[0])
    if suite is not None and suite.by_torch:
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


def make(env: str | AnyEnv | Callable[[], Any] | Any, **options: Any) -> AnyEnv:
    """An environment from its name, its class, a function that makes it, or itself.

    Raises:
        ConfigError: for a name that does not exist (with the nearest ones), or a package that is not installed.
    """
    if isinstance(env, AnyEnv):
        return env
    if not isinstance(env, str):
        name = getattr(env, "__name__", type(env).__name__)
        return _checked(env, name, None) if not callable(env) else _checked(env(), name, env)
    suite_name, task = split_name(env)
    if suite_name.endswith(".py"):
        return _from_file(Path(suite_name), task)
    if suite_name not in SUITES and task and (module := _find_module(suite_name)):
        try:
            return _from_module(module, task, env)
        except ConfigError:
            raise
        except FAILURES as error:
            package = suite_name.partition(".")[0]
            raise ConfigError(f"{env} could not be made: {blame.explained(error, package)}") from error
    if not task or suite_name not in SUITES:
        raise ConfigError(_unknown(env))
    suite = SUITES[suite_name]
    leave_gpu_memory(env)
    if missing(suite):
        raise ConfigError(f"{env} needs {suite.package}: {suite.install}")
    if suite.physics and "@" in task:
        task, _, physics = task.partition("@")
        if physics not in suite.physics:
            raise ConfigError(f"{env}: {suite_name} has no physics {physics!r}; it has {', '.join(suite.physics)}")
        options["physics"] = physics
    with _importable(suite_name):
        names = suite.adapter().names() if suite.lists_all else [task]
        if task not in names:
            raise ConfigError(f"{suite_name} has no task {task!r}{_nearest(task, names)}")
        return suite.adapter().make(task, **options)


@contextlib.contextmanager
def _importable(suite_name: str) -> Iterator[None]:
    """One line where a package is there, and something that it needs is not."""
    try:
        yield
    except ImportError as error:
        raise ConfigError(
            f"{suite_name} is installed, but it cannot be imported ({blame.one_line(error)}): {SUITES[suite_name].install}"
        ) from error


def _names_here() -> Iterator[str]:
    """Whole names of all tasks whose simulators can be used here."""
    for name, suite in SUITES.items():
        if not missing(suite):
            with contextlib.suppress(ConfigError), _importable(name):
                yield from (f"{name}:{task}" for task in suite.adapter().names())


def _nearest(word: str, names: list[str]) -> str:
    by_lower = {name.lower(): name for name in names}
    close = [by_lower[n] for n in difflib.get_close_matches(word.lower(), by_lower, n=3, cutoff=0.5)]
    return f"; did you mean {' or '.join(close)}?" if close else "; `reppo envs` lists them"


def _unknown(env: str) -> str:
    """Why a name is no environment; a bare task name is looked for in the installed suites."""
    suite_name, colon, _ = env.partition(":")
    if suite_name in SUITES:
        return f"{env!r} names no task of {suite_name}, as in {suite_name}:Task; `reppo envs {suite_name}` lists them"
    if colon:
        return f"no suite {suite_name!r}{_nearest(suite_name, list(SUITES))}"
    candidates = list(_names_here())
    exact = [c for c in candidates if c.partition(":")[2].lower() == env.lower()]
    if exact:
        return f"an environment is named suite:Task; did you mean {' or '.join(exact)}?"
    by_task = {c.partition(":")[2]: c for c in candidates}
    close = [by_task[t] for t in difflib.get_close_matches(env, by_task, n=3, cutoff=0.5)]
    hint = f"did you mean {' or '.join(close)}?" if close else "`reppo envs` lists them"
    return f"an environment is named suite:Task, got {env!r}; {hint}"


def _from_file(path: Path, name: str) -> AnyEnv:
    """``path/to/file.py:MyEnv``: import the file and call the name."""
    if not path.is_file():
        raise ConfigError(f"no file {path}")
    module_spec = importlib.util.spec_from_file_location(f"reppo_user_{path.stem}", path)
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module_spec.name] = module
    try:
        with _searched(path.resolve().parent), _own_words(path.name):
            module_spec.loader.exec_module(module)
    except FAILURES as error:
        raise ConfigError(f"{path} could not be imported: {blame.explained(error)}") from error
    _send_by_value(module)
    if not name:
        defined = [k for k, v in vars(module).items() if isinstance(v, type) and issubclass(v, Env) and v is not Env]
        raise ConfigError(f"name the environment: {path}:{defined[0] if defined else 'MyEnv'}")
    return _from_module(module, name, str(path), f"{path.resolve()}:{name}")


def _find_module(name: str) -> ModuleType | None:
    """A module by its dotted name, also one in the current directory; None where there is none.

    Raises:
        ConfigError: where its import fails.
    """
    if not all(part.isidentifier() for part in name.split(".")):
        return None
    try:
        # A command of the shell does not look there by itself, `python -m` does.
        with _searched(Path.cwd()), _own_words(name):
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            return None
        raise ConfigError(f"{name} could not be imported: {error}") from error
    except FAILURES as error:
        raise ConfigError(f"{name} could not be imported: {blame.explained(error, name.partition('.')[0])}") from error


@contextlib.contextmanager
def _searched(directory: Path) -> Iterator[None]:
    """Let imports look in a directory, too: for good, or only within where that raises.

    For good, because an environment may import its neighbours as late as in `reset`, and in worker processes, which get a
    copy of the search path. It comes last, so that nothing is hidden by what happens to lie beside an environment.
    """
    place = str(directory)
    added = place not in sys.path
    if added:
        sys.path.append(place)
    try:
        yield
    except BaseException:
        if added and place in sys.path:
            sys.path.remove(place)
        raise


@contextlib.contextmanager
def _own_words(program: str) -> Iterator[None]:
    """Without arguments, as ``program``: a user's code that parses the command line would refuse, or take, those of ours,
    and its usage would read as if it were ours."""
    before = sys.argv
    sys.argv = [program]
    try:
        yield
    finally:
        sys.argv = before


def _send_by_value(module: ModuleType) -> None:
    """Let worker processes have what a file defines: its module has a name of ours, which they could not import."""
    with contextlib.suppress(ImportError):  # it comes with Gymnasium, whose worker processes they are
        import cloudpickle

        cloudpickle.register_pickle_by_value(module)


def _from_module(module: ModuleType, name: str, source: str, made_from: str | None = None) -> AnyEnv:
    """Call a class or function of a module; the environment is named ``made_from``, or ``source:name``."""
    source = source.removesuffix(f":{name}")
    if not hasattr(module, name):
        makers = [k for k, v in vars(module).items() if not k.startswith("_") and _may_make(v, module)]
        close = difflib.get_close_matches(name.lower(), [k.lower() for k in makers], n=3, cutoff=0.5)
        meant = [k for word in close for k in makers if k.lower() == word]
        hint = f"; did you mean {' or '.join(meant)}?" if meant else f"; there are {', '.join(makers)}" if makers else ""
        raise ConfigError(f"{source} defines no {name!r}{hint}")
    maker = getattr(module, name)
    if not callable(maker):
        raise ConfigError(f"{source}:{name} is a {type(maker).__name__}; name a class, or a function that makes one")
    with _own_words(Path(source).name):
        made = _checked(maker(), f"{source}:{name}", maker)
    made.made_from = made_from or f"{source}:{name}"
    return made


def _may_make(value: Any, module: ModuleType) -> bool:
    """Whether a name of a module looks as if it made an environment: its own classes and functions, and other classes that
    can be reset and stepped."""
    if isinstance(value, type) and value is not Env:
        return value.__module__ == module.__name__ or (hasattr(value, "reset") and hasattr(value, "step"))
    return inspect.isfunction(value) and value.__module__ == module.__name__


def _checked(env: Any, name: str, maker: Callable[[], Any] | None) -> AnyEnv:
    """What ``maker`` has made, or an object that was given, as one of ours; raises `ConfigError` where it is neither."""
    if isinstance(env, AnyEnv):
        return env
    if all(hasattr(env, attribute) for attribute in ("reset", "step", "action_size", "observation_size")):
        from reppo.envs.brax_style import BraxStyle

        return BraxStyle(env, name, episode_length=1000, value_range=None)
    if "gymnasium" in sys.modules:  # who has made an environment of Gymnasium's has imported it
        from reppo.envs import gymnasium

        if (host_env := gymnasium.from_object(env, name, maker)) is not None:
            return host_env
    raise ConfigError(
        f"{name} made a {type(env).__name__}, which is neither a reppo.Env nor an environment of Gymnasium or Brax"
    )
