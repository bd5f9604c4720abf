"""Several devices share the seeds of a run; on a CPU, XLA can be told that there are several."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest

from reppo import collector

SCRIPT = """
import json, sys
from pathlib import Path

import jax
import numpy as np

import reppo
from helpers import TINY
from reppo.run import Run

folder, env = Path(sys.argv[1]), sys.argv[2]
config = reppo.Config(**{**TINY.__dict__, "v_min": -10.0, "v_max": 50.0, "episode_length": 20})


def policy(path):
    with np.load(path) as file:
        return {name: file[name] for name in file.files if file[name].dtype.kind == "f"}


def apart(a, b):
    assert a.keys() == b.keys()
    return max(float(np.abs(a[name] - b[name]).max()) for name in a)


# What a simulator on the host holds is lost where a run stops, so only the other one is stopped, after two thirds.
first = reppo.Config(**{**config.__dict__, "total_steps": 2 * config.total_steps // 3}) if "probe" in env else config
both = reppo.train(env, first, num_seeds=2, out=folder / "both")
devices = [len(x.sharding.device_set) for x in jax.tree.leaves((both.state, both.env_state))]
reppo.resume(folder / "both", config)
alone = [reppo.train(env, config, seed=seed, out=folder / f"alone{seed}").directory for seed in (0, 1)]
three = Run(reppo.envs.make(env), config, [0, 1, 2], None)
print(json.dumps({
    "devices": devices,
    "apart": [apart(policy(folder / "both" / f"policy_seed{k}.npz"), policy(alone[k] / "policy.npz")) for k in (0, 1)],
    "three": three.notes,
}))
"""


@pytest.mark.parametrize("env", ["probe:TargetReach", "gymnasium:CartPole-v1"])
def test_each_seed_is_trained_as_if_it_were_alone_on_its_device(env: str, tmp_path: Path) -> None:
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    words = [sys.executable, "-c", SCRIPT, str(tmp_path), env]
    done = subprocess.run(
        words, env={**os.environ, **flags}, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    # To the bit on a CPU with JAX 0.10; the compiler of 0.11 does not round the two programs alike.
    assert max(found["apart"]) <= (0.0 if jax.__version_info__ < (0, 11) else 1e-4)
    assert set(found["devices"]) == {2}
    assert found["three"] == ["this run uses 1 of 2 devices: --seeds 2, or a multiple, has work for all"]


@pytest.mark.parametrize(("seeds", "devices", "used"), [(1, 1, 1), (1, 8, 1), (8, 8, 8), (6, 4, 3), (5, 4, 1), (10, 4, 2)])
def test_every_device_has_equally_many_seeds(seeds: int, devices: int, used: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "local_device_count", lambda: devices)
    assert collector.num_devices(seeds) == used
