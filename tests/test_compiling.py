"""Options of the compiler: which of them reach it, and that they change no result but in its last digits."""

from __future__ import annotations

import dataclasses
from typing import Any
from unittest import mock

import jax
import numpy as np
import pytest

from reppo import compiling, envs
from reppo.config import PRESETS
from reppo.keys import Stream
from reppo.run import Run


def test_an_option_that_this_compiler_does_not_have_is_left_out() -> None:
    options = {"xla_backend_optimization_level": 0, "xla_cpu_there_is_no_such_option": True}
    assert compiling.known(options) == {"xla_backend_optimization_level": 0}
    assert compiling.compiled(lambda x: x + 1, options)(1.0) == 2.0


def test_other_devices_keep_the_defaults_of_the_compiler() -> None:
    with mock.patch.object(jax, "default_backend", return_value="gpu"):
        assert compiling.known(compiling.SELDOM) == {}


def test_the_users_flags_are_heeded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=true --xla_dump_to=")
    assert compiling.known(compiling.SELDOM) == {"xla_backend_optimization_level": 0}


#: JAX 0.11 has but the newer emitter.
GONE = set() if jax.__version_info__ < (0, 11) else {"xla_cpu_use_fusion_emitters"}


@pytest.mark.parametrize("options", [compiling.NETWORKS, compiling.SIMULATOR, compiling.RESET, compiling.SELDOM])
def test_the_compiler_of_this_version_has_every_option(options: compiling.Options) -> None:
    assert compiling.known(options) == {name: value for name, value in options.items() if name not in GONE}


def test_an_iteration_is_the_same_with_and_without_them() -> None:
    config = dataclasses.replace(PRESETS["cpu"], num_epochs=1, num_minibatches=2)

    def one_iteration() -> dict[str, Any]:
        run = Run(envs.make("gymnax:Pendulum-v1"), config, [3], None)
        run.start()
        rows = run.collector.collect(run.state, 0).rows
        _, metrics = run.update(run.state, rows, run.key(Stream.ITERATION, 0, 1))
        names = ("critic/loss", "critic/grad_norm", "actor/loss", "actor/grad_norm", "critic/target")
        return {"obs": rows.obs, "reward": rows.reward, "next_obs": rows.next_obs, **{name: metrics[name] for name in names}}

    ours = one_iteration()
    with mock.patch.object(compiling, "known", return_value={}):
        defaults = one_iteration()
    assert np.ptp(ours["reward"]) > 1
    for name, values in ours.items():
        np.testing.assert_allclose(values, defaults[name], rtol=1e-4, atol=1e-4, err_msg=name)
