"""Saved policies: what NumPy reads is what JAX trained, and whatever else lies in a file is refused."""

from __future__ import annotations

import functools
import io
import json
import pickle
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import Array, as_gaussian
from hypothesis import given
from hypothesis import strategies as st

import reppo
from reppo.distributions import TanhGaussian
from reppo.envs.spec import EnvSpec, suggest_keys
from reppo.errors import ConfigError
from reppo.export import SavedPolicy, load_policy, save_policy
from reppo.nets import Actor, NormKind
from reppo.normalizer import Normalizer
from reppo.reppo import Policy

A = 2
LOW, HIGH = np.array([-2.0, 0.0], np.float32), np.array([2.0, 10.0], np.float32)
ARRAY = jax.ShapeDtypeStruct((3,), np.float32)
DICT = {"b": ARRAY, "a": jax.ShapeDtypeStruct((2,), np.float32), "privileged_state": ARRAY}


def spec_of(observation: Any) -> EnvSpec:
    return EnvSpec("here", observation, A, LOW, HIGH, 100, (0.0, 1.0), *suggest_keys(observation))


def make_policy(observation: Any = ARRAY, norm: NormKind = "rms", layers: int = 3, min_std: float = 0.0) -> Policy:
    """A policy with random numbers everywhere; only its shapes come from `Actor`, which spares a compilation."""
    spec, rng = spec_of(observation), np.random.default_rng(0)

    def shapes(key: jax.Array) -> Policy:
        actor = Actor(spec.obs_size(spec.actor_keys), A, 16, layers, norm, min_std=min_std, key=key)
        statistics = jax.tree.map(lambda x: jnp.zeros(x.shape), observation)
        return Policy(Normalizer(statistics, statistics, jnp.zeros(())), actor, spec.actor_keys)

    policy = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape) / max(1, x.size // 16) ** 0.5, jnp.float32),
        jax.eval_shape(shapes, jax.random.key(0)),
    )
    return eqx.tree_at(lambda p: p.normalizer.var, policy, jax.tree.map(lambda x: x**2 + 0.1, policy.normalizer.var))


def saved(path: Path, policy: Policy, observation: Any = ARRAY) -> SavedPolicy:
    save_policy(path / "policy.npz", jax.device_get(policy), spec_of(observation))
    return load_policy(path / "policy.npz")


def observations(observation: Any, *leading: int) -> Any:
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(size=(*leading, *x.shape)).astype(np.float32), observation)


@jax.jit
def jax_distribution(policy: Policy, obs: Any) -> TanhGaussian:
    return as_gaussian(policy(obs))


@pytest.mark.parametrize("norm", ["rms", "layer", "none"])
@pytest.mark.parametrize("observation", [ARRAY, DICT], ids=["array", "dict"])
def test_numpy_says_what_jax_says(tmp_path: Path, norm: NormKind, observation: Any) -> None:
    policy = make_policy(observation, norm)
    read = saved(tmp_path, policy, observation)
    obs = observations(observation, 50)
    expected = jax_distribution(policy, obs)
    mean, std = read.gaussian(obs)
    np.testing.assert_allclose(mean, expected.mean, atol=1e-5)
    np.testing.assert_allclose(std, np.exp(expected.log_std), rtol=1e-4)
    action = read(obs)
    assert action.dtype == np.float32
    np.testing.assert_allclose(action, LOW + (np.tanh(expected.mean) + 1) / 2 * (HIGH - LOW), atol=1e-4)


@pytest.mark.parametrize(("layers", "min_std"), [(1, 0.0), (4, 0.2)])
def test_any_depth_and_any_floor(tmp_path: Path, layers: int, min_std: float) -> None:
    policy = make_policy(layers=layers, min_std=min_std)
    obs = observations(ARRAY, 20)
    mean, std = saved(tmp_path, policy).gaussian(obs)
    expected = jax_distribution(policy, obs)
    np.testing.assert_allclose(mean, expected.mean, atol=1e-5)
    np.testing.assert_allclose(std, np.exp(expected.log_std), rtol=1e-4)
    assert (std > min_std).all()


def test_any_leading_axes_and_plain_lists(tmp_path: Path) -> None:
    read = saved(tmp_path, make_policy())
    obs = observations(ARRAY, 4, 5)
    assert read(obs).shape == (4, 5, A)
    np.testing.assert_allclose(read(obs)[2, 3], read(obs[2, 3]), atol=1e-5)
    np.testing.assert_allclose(read(obs[0, 0].tolist()), read(obs[0, 0]), atol=1e-6)


def test_saturated_actions_are_the_bounds(tmp_path: Path) -> None:
    policy = make_policy()
    policy = eqx.tree_at(lambda p: p.actor.mlp.output.bias, policy, jnp.array([50.0, -50.0, 0.0, 0.0]))
    np.testing.assert_array_equal(saved(tmp_path, policy)(np.zeros(3)), [HIGH[0], LOW[1]])


def test_no_rounding_leaves_the_bounds() -> None:
    read = SavedPolicy.__new__(SavedPolicy)
    rng = np.random.default_rng(0)
    low = rng.uniform(-3, 3, 1000).astype(np.float32)
    high = (low + rng.uniform(0.1, 3, 1000)).astype(np.float32)
    read.discrete, read.arrays = False, {"action_low": low, "action_high": high}
    for saturated in (-1.0, 1.0):
        action = read._to_environment(np.full(1000, saturated, np.float32))
        assert ((action >= low) & (action <= high)).all()


def test_samples_have_the_policys_distribution(tmp_path: Path) -> None:
    policy = make_policy()
    policy = eqx.tree_at(lambda p: p.actor.mlp.output.bias, policy, jnp.array([0.3, -0.4, -1.5, -2.0]))
    policy = eqx.tree_at(lambda p: p.actor.mlp.output.weight, policy, 0.1 * policy.actor.mlp.output.weight)
    read = saved(tmp_path, policy)
    obs = observations(ARRAY)
    mean, std = read.gaussian(obs)
    actions = read.sample(np.broadcast_to(obs, (20_000, 3)), np.random.default_rng(0))
    assert ((actions >= LOW) & (actions <= HIGH)).all()
    u = np.arctanh((actions - LOW) / (HIGH - LOW) * 2 - 1)
    np.testing.assert_allclose(u.mean(0), mean, atol=4 * std.max() / 20_000**0.5)
    np.testing.assert_allclose(u.std(0), std, rtol=4 / (2 * 20_000) ** 0.5)


def test_what_a_policy_says_of_itself(tmp_path: Path) -> None:
    read = saved(tmp_path, make_policy(DICT), DICT)
    assert (read.env, read.obs_keys, read.obs_size, read.action_size) == ("here", ("a", "b"), 5, A)
    # Entries that it does not read may be there or not.
    obs = observations(DICT)
    del obs["privileged_state"]
    assert read({**obs, "more": np.zeros(7)}).shape == (A,)


@pytest.mark.parametrize(
    ("observation", "obs", "says"),
    [
        (ARRAY, np.zeros(4), r"reads observations \[..., 3\], got \[4\]"),
        (ARRAY, 1.0, r"got \[\]"),
        (DICT, np.zeros(5), "reads a dict observation with the entries a, b"),
        (DICT, {"a": np.zeros(2)}, "reads a dict observation with the entries a, b"),
        (DICT, {"a": np.zeros(3), "b": np.zeros(3)}, r"reads 2 numbers in a, got \[3\]"),
    ],
)
def test_observations_that_it_cannot_read(tmp_path: Path, observation: Any, obs: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        saved(tmp_path, make_policy(observation), observation)(obs)


# ------------------------------------------------------------------------------------------- files


@functools.cache
def sound_bytes() -> bytes:
    """The small policy's file."""
    buffer = io.BytesIO()
    np.savez(buffer, **small_arrays())  # pyright: ignore[reportArgumentType]
    return buffer.getvalue()


def small_arrays() -> dict[str, Array]:
    """Two layers: 3 observations, 4 hidden units, 2 actions."""
    meta = {"format": "reppo-policy-1", "env": "here", "obs_keys": [], "obs_sizes": [3], "layers": 2, "min_std": 0.0}
    shapes = {
        "mean": (3,), "var": (3,), "weight0": (3, 4), "bias0": (4,), "gain0": (4,), "weight1": (4, 4), "bias1": (4,),
        "action_low": (2,), "action_high": (2,),
    }  # fmt: skip
    arrays: dict[str, Array] = {name: np.full(shape, 0.5, np.float32) for name, shape in shapes.items()}
    return {**arrays, "meta": np.frombuffer(json.dumps(meta).encode(), np.uint8)}


def changed(arrays: dict[str, Array] | None = None, drop: str = "", **meta: Any) -> bytes:
    """The small policy's file with other arrays, one less, or another description."""
    whole = small_arrays()
    described = {**json.loads(whole["meta"].tobytes()), **meta}
    whole["meta"] = np.frombuffer(json.dumps(described).encode(), np.uint8)
    whole |= arrays or {}
    whole.pop(drop, None)
    buffer = io.BytesIO()
    np.savez(buffer, **whole)  # pyright: ignore[reportArgumentType]
    return buffer.getvalue()


def refuses(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    with pytest.raises(ConfigError) as refusal:
        load_policy(path)
    message = str(refusal.value)
    assert message.startswith(f"{path} is not a policy of this program")
    assert "\n" not in message
    return message


def test_the_small_policy_is_sound(tmp_path: Path) -> None:
    (tmp_path / "p.npz").write_bytes(sound_bytes())
    assert load_policy(tmp_path / "p.npz")(np.zeros(3)).shape == (2,)
    assert changed() == sound_bytes()


@pytest.mark.parametrize("name", sorted(small_arrays().keys() - {"gain0"}))
def test_a_policy_without_one_of_its_arrays(tmp_path: Path, name: str) -> None:
    refuses(tmp_path / "p.npz", changed(drop=name))


@pytest.mark.parametrize("name", sorted(small_arrays().keys() - {"meta"}))
def test_a_policy_with_an_array_of_another_shape_or_type(tmp_path: Path, name: str) -> None:
    for array in (np.zeros((5, 5), np.float32), np.float32(0.0), np.full(small_arrays()[name].shape, 0.5, np.float64)):
        refuses(tmp_path / "p.npz", changed({name: np.asarray(array)}))


@pytest.mark.parametrize(
    "meta",
    [
        {"format": "reppo-policy-2"},
        {"format": None},
        {"layers": 3},
        {"layers": -1},
        {"layers": "two"},
        {"obs_sizes": [4]},
        {"obs_sizes": "3"},
        {"obs_sizes": None},
        {"obs_keys": None},
    ],
)
def test_a_policy_that_describes_itself_wrongly(tmp_path: Path, meta: dict[str, Any]) -> None:
    message = refuses(tmp_path / "p.npz", changed(**meta))
    if "format" in meta:
        assert f"its format is {meta['format']!r}, not 'reppo-policy-1'" in message


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "[" * 100_000, "\xff"])
def test_a_description_that_is_none(tmp_path: Path, text: str) -> None:
    refuses(tmp_path / "p.npz", changed({"meta": np.frombuffer(text.encode("latin-1"), np.uint8)}))


def test_foreign_files(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, weights=np.zeros(3))
    single = io.BytesIO()
    np.save(single, np.zeros(3))
    for data in (b"", b"PK", b"hello", b"\x93NUMPY", buffer.getvalue(), single.getvalue(), pickle.dumps(Bomb())):
        refuses(tmp_path / "p.npz", data)
    assert not exploded


class Bomb:
    """Pickled, it calls a function when it is read."""

    def __reduce__(self) -> Any:
        return exploded.append, (1,)


exploded: list[int] = []


def test_nothing_in_a_file_is_executed(tmp_path: Path) -> None:
    bomb = np.empty(1, object)
    bomb[0] = Bomb()
    for name in ("meta", "weight0", "extra"):
        buffer = io.BytesIO()
        np.savez(buffer, **{**small_arrays(), name: bomb})  # pyright: ignore[reportArgumentType]
        refuses(tmp_path / "p.npz", buffer.getvalue())
    assert not exploded


@given(st.integers(0, len(sound_bytes()) - 1), st.integers(1, 255))
def test_a_flipped_byte_is_refused_or_harmless(tmp_path_factory: pytest.TempPathFactory, position: int, flip: int) -> None:
    data = bytearray(sound_bytes())
    data[position] ^= flip
    path = tmp_path_factory.getbasetemp() / "flipped.npz"
    path.write_bytes(data)
    try:
        policy = load_policy(path)
    except ConfigError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:  # a time stamp, say
        np.testing.assert_array_equal(policy(np.ones(3)), SavedPolicy(small_arrays())(np.ones(3)))


def test_a_single_number_of_a_dict_may_come_without_an_axis(tmp_path: Path) -> None:
    observation = {"a": jax.ShapeDtypeStruct((1,), np.float32), "b": jax.ShapeDtypeStruct((2,), np.float32)}
    policy = saved(tmp_path, make_policy(observation), observation)
    b = np.ones(2)
    expected = policy({"a": np.array([0.5]), "b": b})
    np.testing.assert_array_equal(policy({"a": np.array(0.5), "b": b}), expected)
    batch = policy({"a": np.full(3, 0.5), "b": np.tile(b, (3, 1))})
    np.testing.assert_allclose(batch, np.tile(expected, (3, 1)), rtol=1e-6)


@given(st.integers(0, len(sound_bytes()) - 1))
def test_a_truncated_file_is_refused(tmp_path_factory: pytest.TempPathFactory, length: int) -> None:
    refuses(tmp_path_factory.getbasetemp() / "truncated.npz", sound_bytes()[:length])


def test_where_policies_are_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no policy at .*absent"):
        load_policy(tmp_path / "absent.npz")
    with pytest.raises(ConfigError, match=r"holds no policy \(policy.npz\); has the run reached its first evaluation\?"):
        load_policy(tmp_path)
    (tmp_path / "policy_seed3.npz").write_bytes(changed(env="third"))
    assert load_policy(tmp_path).env == "third"
    (tmp_path / "policy_seed10.npz").write_bytes(changed(env="tenth"))
    with pytest.raises(ConfigError, match=r"holds 2 policies, policy_seed3.npz, policy_seed10.npz: name one of them$"):
        load_policy(tmp_path)
    (tmp_path / "policy.npz").write_bytes(changed(env="only"))
    assert load_policy(str(tmp_path)).env == "only"


def test_a_save_replaces_the_file_whole(tmp_path: Path) -> None:
    saved(tmp_path, make_policy(min_std=0.1))
    saved(tmp_path, make_policy(min_std=0.3))
    assert [path.name for path in tmp_path.iterdir()] == ["policy.npz"]
    assert reppo.load_policy(tmp_path).min_std == 0.3
