"""Libraries are imported without the parts that are not used here."""

import os
import subprocess
import sys
import threading
from importlib.machinery import ModuleSpec

import jax
import pytest

from reppo import envs
from reppo.errors import ConfigError
from reppo.imports import of_physics, warp_is_useful, without


@pytest.fixture
def heavy(tmp_path, monkeypatch):
    """A package that can be imported, and is not yet."""
    (tmp_path / "heavy_stand_in.py").write_text("weight = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "heavy_stand_in"
    sys.modules.pop("heavy_stand_in", None)


def test_a_package_is_missing_within_and_there_afterwards(heavy):
    with without(heavy), pytest.raises(ImportError):
        __import__(heavy)
    assert __import__(heavy).weight == 1


def test_a_package_that_is_loaded_stays(heavy):
    loaded = __import__(heavy)
    with without(heavy):
        assert __import__(heavy) is loaded
    assert sys.modules[heavy] is loaded


def test_it_is_there_again_after_an_error(heavy):
    with pytest.raises(RuntimeError), without(heavy):
        raise RuntimeError
    assert __import__(heavy).weight == 1


def test_a_run_loads_neither_torch_nor_warp(tmp_path):
    pytest.importorskip("mujoco_playground")
    pytest.importorskip("brax")
    for package in ("torch", "warp"):  # in place of those that are installed, if any
        (tmp_path / f"{package}.py").write_text("")
    script = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import reppo, reppo.loop, reppo.sinks\n"
        "from reppo import envs\n"
        "envs.make('playground:CartpoleBalance'), envs.make('brax:fast')\n"
        "print(sorted({'torch', 'warp'} & set(sys.modules)))\n"
        "import torch, warp\n"
        "print(warp.__file__)"
    )
    environ = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environ)
    assert done.stdout.splitlines() == ["[]", str(tmp_path / "warp.py")], done.stderr


def test_listing_what_can_be_trained_starts_no_device():
    script = (
        "from reppo import envs\n"
        "from reppo.bench import runner\n"
        "from jax._src import xla_bridge\n"
        "runner.unavailable('playground:CartpoleBalance'), runner.unavailable('brax:fast')\n"
        "print(xla_bridge.backends_are_initialized())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["False"], done.stderr


@pytest.mark.parametrize(
    ("platforms", "plugins", "useful"),
    [
        ("cpu", ["jax_cuda12_plugin"], False),
        ("cuda,cpu", [], True),
        ("", [], False),
        ("", ["jax_cuda13_plugin"], True),
        ("tpu", ["jax_cuda13_plugin"], False),
    ],
)
def test_warp_is_loaded_where_jax_may_use_cuda(monkeypatch, platforms, plugins, useful):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: ModuleSpec(name, None) if name in plugins else None)
    before = jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue]
    jax.config.update("jax_platforms", platforms)
    try:
        assert warp_is_useful() == useful
        monkeypatch.delitem(sys.modules, "warp", raising=False)
        with of_physics():
            assert ("warp" in sys.modules) == (not useful)
    finally:
        jax.config.update("jax_platforms", before)


def test_threads_give_standard_output_back(monkeypatch):
    monkeypatch.delitem(sys.modules, "mujoco.mjx", raising=False)  # as in a process that has not loaded it yet
    before = sys.stdout
    first_within, first_left, second_within = (threading.Event() for _ in range(3))

    def first():
        with of_physics():
            first_within.set()
            second_within.wait(0.2)  # in vain: the other one waits for this one
        first_left.set()

    def second():
        first_within.wait()
        with of_physics():
            second_within.set()
            first_left.wait(1)

    threads = [threading.Thread(target=target) for target in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sys.stdout is before


def test_warp_on_a_cpu_is_refused():
    pytest.importorskip("mujoco_playground")
    with pytest.raises(ConfigError, match=r"^playground:CartpoleBalance@warp is for GPUs"):
        envs.make("playground:CartpoleBalance@warp")
