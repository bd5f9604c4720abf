"""Policies as ONNX graphs: another evaluator says of a graph what NumPy says of the policy."""

from __future__ import annotations

import builtins
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from reppo import onnx_export
from reppo.errors import ConfigError
from reppo.export import FORMAT, SavedPolicy

A = 3
RNG = np.random.default_rng(0)


def random(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def make_policy(
    sizes: dict[str, int] | None = None,
    norm: str = "rms",
    layers: int = 3,
    *,
    discrete: bool = False,
    activation: str = "silu",
    image: dict[str, Any] | None = None,
    kernels: dict[str, np.ndarray] | None = None,
) -> SavedPolicy:
    """A policy of random numbers; ``sizes`` are those of a dict observation's entries, or how many features an image has."""
    inputs = sum((sizes or {"": 5}).values())
    widths = [inputs, *[8] * (layers - 1), A if discrete else 2 * A]
    low, high = (np.array([2.0]), np.array([1.0 + A])) if discrete else (np.array([-2.0, 0, 1]), np.array([2.0, 10, 1.5]))
    arrays = {"action_low": np.float32(low), "action_high": np.float32(high), **(kernels or {})}
    if image is None:
        arrays |= {"mean": random(inputs), "var": random(inputs) ** 2 + np.float32(0.1)}
    for i, (inside, outside) in enumerate(itertools.pairwise(widths)):
        arrays |= {f"weight{i}": random(inside, outside) / np.float32(inside**0.5), f"bias{i}": random(outside)}
        if i < layers - 1 and norm != "none":
            arrays |= {f"gain{i}": random(outside)} | ({f"shift{i}": random(outside)} if norm == "layer" else {})
    meta = {
        "format": FORMAT,
        "env": "here:Task",
        "obs_keys": list(sizes or ()) if image is None else [],
        "obs_sizes": list((sizes or {"": inputs}).values()),
        "image": image,
        "layers": layers,
        "activation": activation,
        "discrete": discrete,
        "min_std": 0.0,
    }
    return SavedPolicy({**arrays, "meta": np.frombuffer(json.dumps(meta).encode(), np.uint8)})


def evaluated(policy: SavedPolicy, inputs: dict[str, np.ndarray]) -> np.ndarray:
    (action,) = ReferenceEvaluator(onnx_export.build(policy)).run(None, inputs)
    return np.asarray(action)


@pytest.mark.parametrize("norm", ["rms", "layer", "none"])
@pytest.mark.parametrize("activation", ["silu", "relu"])
@pytest.mark.parametrize("layers", [1, 3])
def test_a_vector_policy(norm: str, activation: str, layers: int) -> None:
    policy = make_policy(norm=norm, activation=activation, layers=layers)
    obs = 3 * random(20, 5)
    action = evaluated(policy, {"obs": obs})
    assert action.dtype == np.float32
    np.testing.assert_allclose(action, policy(obs), atol=1e-5)


def test_a_dict_policy_reads_its_entries_by_name() -> None:
    policy = make_policy({"velocity": 2, "angle": 3})
    obs = {"angle": random(20, 3), "velocity": random(20, 2)}
    np.testing.assert_allclose(evaluated(policy, obs), policy(obs), atol=1e-5)
    assert [str(tensor) for tensor in onnx_export.inputs(policy)] == [
        "velocity  float32 [batch, 2]",
        "angle  float32 [batch, 3]",
    ]


@pytest.mark.parametrize("discrete", [False, True])
def test_entries_may_have_any_name(discrete: bool) -> None:
    policy = make_policy({"action": 2, "constant0": 3, "sub0": 1}, discrete=discrete)
    obs = {"action": random(20, 2), "constant0": random(20, 3), "sub0": random(20, 1)}
    assert onnx_export.output(policy).name == "next_action"
    np.testing.assert_allclose(evaluated(policy, obs), policy(obs), atol=1e-5)


def test_a_deterministic_policy() -> None:
    policy = make_policy()
    policy.arrays["bias2"][A:] = -np.inf  # of a baseline: no width
    policy.arrays["weight2"][:, A:] = 0
    obs = random(20, 5)
    np.testing.assert_allclose(evaluated(policy, {"obs": obs}), policy(obs), atol=1e-5)


def test_a_discrete_policy_gives_the_environments_integers() -> None:
    policy = make_policy(discrete=True, norm="none")
    obs = 10 * random(50, 5)
    action = evaluated(policy, {"obs": obs})
    assert action.dtype == np.int64
    assert len(set(action)) > 1
    assert set(action) <= {2, 3, 4}
    np.testing.assert_array_equal(action, policy(obs))


@pytest.mark.parametrize("channels_first", [False, True])
@pytest.mark.parametrize("strides", [(), (1,), (2, 1)])
@pytest.mark.parametrize("dtype", ["uint8", "float32", "bool"])
def test_an_image_policy(channels_first: bool, strides: tuple[int, ...], dtype: str) -> None:
    height, width, channels = 7, 6, 2
    kernels, sides, depth = {}, [height, width], channels
    for i, stride in enumerate(strides):
        kernels |= {f"image_kernel{i}": random(2, 2, depth, 3), f"image_bias{i}": random(3)}
        sides, depth = [(side - 2) // stride + 1 for side in sides], 3
    shape = (channels, height, width) if channels_first else (height, width, channels)
    image = {"shape": list(shape), "dtype": dtype, "channels_first": channels_first, "strides": list(strides)}
    policy = make_policy({"features": sides[0] * sides[1] * depth}, image=image, kernels=kernels)
    pixels = RNG.integers(0, 2 if dtype == "bool" else 256, (10, *shape)).astype(dtype)
    np.testing.assert_allclose(evaluated(policy, {"obs": pixels}), policy(pixels), atol=1e-4)


def test_saturated_actions_are_the_bounds() -> None:
    policy = make_policy(layers=1)
    policy.arrays["bias0"][:A] = [50.0, -50.0, 50.0]
    np.testing.assert_array_equal(evaluated(policy, {"obs": np.zeros((1, 5), np.float32)}), [[2.0, 0.0, 1.5]])


def test_no_rounding_leaves_the_bounds() -> None:
    policy = make_policy(layers=1)
    low, high = np.array([-1.2, 0.7, -1.9], np.float32), np.array([0.1, 1.9, 1.0], np.float32)  # of which it would
    policy.arrays.update(action_low=low, action_high=high)
    for sign in (-50.0, 50.0):
        policy.arrays["bias0"][:A] = sign
        action = evaluated(policy, {"obs": np.zeros((1, 5), np.float32)})
        assert ((action >= low) & (action <= high)).all()


def test_the_file_says_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "policy.onnx"
    size = onnx_export.save(path, make_policy())
    assert size == path.stat().st_size
    model = onnx.load(path)
    assert {entry.key: entry.value for entry in model.metadata_props} == {
        "env": "here:Task",
        "action_low": "[-2.0, 0.0, 1.0]",
        "action_high": "[2.0, 10.0, 1.5]",
    }
    assert model.opset_import[0].version == 17


def test_a_file_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "policy.onnx"
    path.write_text("mine")
    with pytest.raises(ConfigError, match="exists already and is never overwritten; --out names another file"):
        onnx_export.save(path, make_policy())
    assert path.read_text() == "mine"
    with pytest.raises(ConfigError, match="there is no directory"):
        onnx_export.save(tmp_path / "nowhere" / "policy.onnx", make_policy())


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    found = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "onnx":
            raise ModuleNotFoundError(name)
        return found(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"pip install 'reppo\[onnx\]'"):
        onnx_export.build(make_policy())
