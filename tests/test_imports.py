"""Libraries are imported without the parts that are not used here."""

import os
import subprocess
import sys

import pytest

from reppo import envs
from reppo.config import ConfigError
from reppo.imports import without


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


def test_warp_on_a_cpu_is_refused():
    pytest.importorskip("mujoco_playground")
    with pytest.raises(ConfigError, match="'warp' is for GPUs"):
        envs.make("playground:CartpoleBalance", physics="warp")
