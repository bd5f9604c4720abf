"""Where a line may live: the rules of CONTRIBUTING.md and of the decisions, read from the source's syntax trees."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import reppo

PACKAGE = Path(reppo.__file__).parent
MODULES = {str(path.relative_to(PACKAGE).with_suffix("")): path for path in sorted(PACKAGE.rglob("*.py"))}

MATHS = {"types", "nets", "images", "distributions", "hl_gauss", "returns", "estimators", "duals", "normalizer"}
MATHS |= {"metrics", "optim"}
MATHS_LIBRARIES = {"jax", "equinox", "optax", "numpy"}

SIMULATORS = {"mujoco_playground", "mujoco", "brax", "gymnax", "gymnasium", "envpool", "mani_skill", "mjlab"}
SIMULATORS |= {"torch", "warp"}

#: Baselines that a library trains are its own training, not a simulator.
TRAINING = {
    "baselines/brax_agents": ("brax.training",),
    "baselines/sb3": ("torch", "stable_baselines3"),
    "baselines/sbx": ("flax", "sbx"),
}

#: Modules that may open files. What they write is a run's, or the user asked for it.
DISK = {"checkpoint", "sinks", "export", "files", "run_directory", "plot", "faults", "provenance", "bench", "toy"}

#: Calls that read or change what is on a disk, by name of function or method.
OPENING = {
    "open", "read_text", "read_bytes", "write_text", "write_bytes", "touch", "unlink", "rename", "truncate", "fsync",
    "mkdir", "makedirs", "rmdir", "rmtree", "copytree", "mkstemp", "mkdtemp", "savez", "savez_compressed", "savefig",
}  # fmt: skip

#: The command line asks Linux when its process began, and opens /dev/null where the reader of its output is gone; so does
#: the display.
OPENING_ELSEWHERE = {("cli/startup", "read_text"), ("cli/__init__", "open"), ("display", "open")}

#: Modules that may know what a terminal is: a plot is also drawn in one, and a signal is answered there.
TERMINAL = {"cli", "__main__", "options", "display", "plot", "interrupt"}

UNSAFE = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}

#: Gymnasium sends a user's environment to its own worker processes by it; nothing is read from a file.
TO_WORKERS = {("envs/__init__", "cloudpickle")}


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Every module that is imported, with its line; ``from reppo import returns`` is ``reppo.returns``."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            assert node.module is not None
            if node.module == "reppo" or (PACKAGE / node.module.replace("reppo.", "").replace(".", "/")).is_dir():
                yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)
            else:
                yield node.module, node.lineno
        elif isinstance(node, ast.Call) and called(node) in ("import_module", "__import__"):
            argument = node.args[0]
            if isinstance(argument, ast.Constant):
                yield str(argument.value), node.lineno


def called(node: ast.Call) -> str:
    """The last name of what is called: ``open`` of ``open(...)`` and of ``path.open(...)``."""
    function = node.func
    return function.attr if isinstance(function, ast.Attribute) else function.id if isinstance(function, ast.Name) else ""


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Call):
            yield called(node), node


def root(module: str) -> str:
    return module.partition(".")[0]


def own(module: str) -> str:
    """``returns`` of ``reppo.returns`` and of ``reppo.returns.name``; else nothing."""
    parts = module.split(".")
    return parts[1] if parts[0] == "reppo" and len(parts) > 1 else ""


def test_the_lists_of_this_file_name_modules_that_exist() -> None:
    assert MODULES.keys() >= MATHS
    assert len(MODULES) > 25
    assert {"checkpoint", "sinks", "export", "run_directory", "plot", "faults"} <= MODULES.keys()


@pytest.mark.parametrize("name", sorted(MATHS))
def test_maths_imports_maths_alone(name: str) -> None:
    for module, line in imports(MODULES[name]):
        allowed = (
            root(module) in MATHS_LIBRARIES
            or own(module) in MATHS
            or (root(module) in sys.stdlib_module_names and root(module) not in {"os", "pathlib", "io", "sys", "time"})
        )
        assert allowed, f"{name}.py:{line} imports {module}"


def test_the_statistics_are_numpy_alone() -> None:
    for module, line in imports(MODULES["bench/statistics"]):
        allowed = root(module) == "numpy" or root(module) in {"__future__", "collections", "typing"}
        assert allowed, f"bench/statistics.py:{line} imports {module}"


@pytest.mark.parametrize("name", sorted(MODULES))
def test_simulators_are_imported_in_envs_alone(name: str) -> None:
    if name.startswith("envs/"):
        return
    for module, line in imports(MODULES[name]):
        own_training = module.startswith(TRAINING.get(name, "-"))
        assert own_training or root(module) not in SIMULATORS, f"{name}.py:{line} imports {module}"


@pytest.mark.parametrize("name", sorted(MODULES))
def test_every_library_is_asked_for_when_the_package_is_installed(name: str) -> None:
    if name.startswith("envs/"):  # of the extras
        return
    project = tomllib.loads((PACKAGE.parents[1] / "pyproject.toml").read_text())["project"]
    asked = {re.split(r"[^A-Za-z0-9_-]", dependency)[0].partition("-")[0] for dependency in project["dependencies"]}
    for module, line in imports(MODULES[name]):
        # The first three are optional: --wandb and `reppo export` ask for one each, and JAX compresses with the third if it
        # is there. Pillow's module has another name.
        known = root(module) in {"wandb", "onnx", "zstandard", "PIL", "reppo", *asked, *sys.stdlib_module_names}
        known |= module.startswith(TRAINING.get(name, "-"))
        assert known, f"{name}.py:{line} imports {module}, which is no dependency"


@pytest.mark.parametrize("name", sorted(MODULES))
def test_nothing_pickles(name: str) -> None:
    path = MODULES[name]
    for module, line in imports(path):
        assert root(module) not in UNSAFE or (name, module) in TO_WORKERS, f"{name}.py:{line} imports {module}"
    for function, node in calls(path):
        place = f"{name}.py:{node.lineno}"
        assert not any(
            keyword.arg == "allow_pickle" and not (isinstance(keyword.value, ast.Constant) and keyword.value.value is False)
            for keyword in node.keywords
        ), f"{place} allows pickle"
        is_numpy = (
            isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name) and node.func.value.id == "np"
        )
        if is_numpy and function == "load":
            assert any(keyword.arg == "allow_pickle" for keyword in node.keywords), f"{place}: np.load without allow_pickle"


@pytest.mark.parametrize("name", sorted(MODULES))
def test_files_are_opened_by_the_modules_for_it(name: str) -> None:
    if name.partition("/")[0] in DISK:
        return
    for function, node in calls(MODULES[name]):
        assert function not in OPENING or (name, function) in OPENING_ELSEWHERE, f"{name}.py:{node.lineno} calls {function}"


@pytest.mark.parametrize("name", sorted(MODULES))
def test_the_loop_and_all_below_it_know_no_terminal(name: str) -> None:
    # What a run shows is a sink's business; the command line alone chooses one.
    if name.partition("/")[0] in TERMINAL:
        return
    for module, line in imports(MODULES[name]):
        assert root(module) not in {"rich", "tyro", "argparse"}, f"{name}.py:{line} imports {module}"
        assert own(module) not in {"cli", "display"}, f"{name}.py:{line} imports {module}"
    for function, node in calls(MODULES[name]):
        assert function != "print", f"{name}.py:{node.lineno} prints"


@pytest.mark.parametrize("name", sorted(name for name in MODULES if name.startswith("cli/")))
def test_the_commands_do_not_know_one_another(name: str) -> None:
    if name == "cli/__init__":
        return
    below = {"reppo.cli.exits", "reppo.cli.startup", "reppo.cli.terminal"}
    allowed = set() if f"reppo.{name.replace('/', '.')}" in below else below
    for module, line in imports(MODULES[name]):
        known = own(module) != "cli" or ".".join(module.split(".")[:3]) in allowed
        assert known, f"{name}.py:{line} imports {module}"


@pytest.mark.parametrize("name", sorted(MODULES))
def test_the_algorithm_and_the_environments_do_not_know_the_loop(name: str) -> None:
    if not (name.startswith("envs/") or name in {"reppo", "rollout", *MATHS}):
        return
    above = {"loop", "run", "keeper", "health", "outcome", "same_run", "collector", "evaluate", "checkpoint", "sinks"}
    above |= {"run_directory", "cli", "display", "export", "plot"}
    for module, line in imports(MODULES[name]):
        assert own(module) not in above, f"{name}.py:{line} imports {module}"


@pytest.mark.parametrize("name", sorted(MATHS | {"reppo"}))
def test_every_public_function_of_the_maths_says_what_it_does(name: str) -> None:
    for node in tree_of(MODULES[name]).body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{name}.py:{node.lineno}: {node.name} has no docstring"
