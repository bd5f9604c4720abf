"""Images: convolutions against XLA's own, which encoder reads which image, and a run that learns from pixels alone."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from helpers import TINY, Array, assert_identical

import reppo
from reppo import envs, export, normalizer
from reppo.config import Config
from reppo.envs.spaces import Observations, WrongObservation
from reppo.envs.spec import EnvSpec, check_observation, resolve
from reppo.errors import ConfigError
from reppo.evaluate import evaluate_policy
from reppo.host_collector import HostCollector
from reppo.images import IMAGE_ENCODERS, Convolution, ImageEncoder, automatic, pixel_values, smallest_side, windows
from reppo.reppo import image_layers, make_learner
from reppo.run import Run

KEY = jax.random.key(0)

# ------------------------------------------------------------------------------------------- the encoder


def test_a_convolution_by_hand() -> None:
    # A kernel of ones over each window of 2 x 2 of 0, 255, 255, 255 / 255, 0, 0, 0, as bytes: 2, 2, 2 of them are lit.
    image = np.array([[0, 255, 255, 255], [255, 0, 0, 0]], np.uint8)[..., None]
    encoder = ImageEncoder(image.shape, (Convolution(1, 2, 1),), False, KEY)
    ones = eqx.tree_at(lambda e: (e.kernels, e.biases), encoder, ((jnp.ones((2, 2, 1, 1)),), (jnp.array([-1.0]),)))
    silu_of_one = 1 / (1 + np.exp(-1.0))
    np.testing.assert_allclose(ones(jnp.asarray(image)), [silu_of_one] * 3, rtol=1e-6)


def test_windows_are_in_the_order_of_a_kernel() -> None:
    image = np.arange(2 * 5 * 7 * 3.0).reshape(2, 5, 7, 3)
    seen = windows(image, 3, 2)
    assert seen.shape == (2, 2, 3, 27)
    np.testing.assert_array_equal(seen[1, 1, 2], image[1, 2:5, 4:7].ravel())


def test_an_encoder_equals_convolutions_by_xla() -> None:
    layers, shape = (Convolution(5, 4, 2), Convolution(6, 3, 1)), (10, 13, 3)

    @jax.jit
    def both(image: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        encoder = ImageEncoder(shape, layers, False, KEY)
        first = ImageEncoder((3, 10, 13), layers, True, KEY)
        x = pixel_values(image)
        for kernel, layer in zip(encoder.kernels, layers, strict=True):
            names, strides = ("NHWC", "HWIO", "NHWC"), (layer.stride, layer.stride)
            x = jax.nn.silu(jax.lax.conv_general_dilated(x, kernel, strides, "VALID", dimension_numbers=names))
        return encoder(image), first(jnp.moveaxis(image, -1, 1)), x.reshape(2, -1)

    image = np.random.default_rng(0).integers(0, 256, (2, *shape), np.uint8)
    last, first, expected = both(image)
    np.testing.assert_allclose(last, expected, atol=1e-5)
    np.testing.assert_allclose(first, expected, atol=1e-5)
    assert last.std() > 0.01


def test_the_papers_encoders() -> None:
    def features(kind: str, shape: tuple[int, ...], first: bool) -> tuple[Any, Any]:
        image = jax.ShapeDtypeStruct((2, 7, *shape), np.uint8)
        encoder = jax.eval_shape(lambda: ImageEncoder(shape, IMAGE_ENCODERS[kind], first, KEY))
        return encoder, jax.eval_shape(lambda e, x: e(x), encoder, image).shape

    nature, shape = features("nature", (4, 84, 84), True)
    assert shape == (2, 7, 7 * 7 * 64)
    assert [kernel.shape for kernel in nature.kernels] == [(8, 8, 4, 32), (4, 4, 32, 64), (3, 3, 64, 64)]
    minatar, shape = features("minatar", (10, 10, 6), False)
    assert shape == (2, 7, 8 * 8 * 16)
    assert [kernel.shape for kernel in minatar.kernels] == [(3, 3, 6, 16)]


def test_bytes_are_scaled_and_other_numbers_are_not() -> None:
    assert pixel_values(jnp.array([0, 51, 255], jnp.uint8)).tolist() == pytest.approx([0, 0.2, 1])
    assert pixel_values(jnp.array([False, True])).tolist() == [0, 1]
    assert pixel_values(jnp.array([-3.0, 300.0])).tolist() == [-3, 300]


def test_the_encoder_is_chosen_by_the_sides() -> None:
    # The smallest image of three layers: 1 -> 3 of the last, (3 - 1) 2 + 4 = 8, (8 - 1) 4 + 8 = 36.
    assert [smallest_side(kind) for kind in ("nature", "minatar", "flat")] == [36, 3, 1]
    assert [automatic(sides) for sides in ((84, 84), (36, 36), (210, 35), (10, 10), (2, 9))] == [
        "nature", "nature", "minatar", "minatar", "flat",
    ]  # fmt: skip


def image_spec(shape: tuple[int, ...], dtype: Any = np.uint8, *, channels_first: bool = False) -> EnvSpec:
    observation, bounds = jax.ShapeDtypeStruct(shape, dtype), np.ones(2, np.float32)
    return EnvSpec("here", observation, 2, -bounds, bounds, 100, (0.0, 1.0), channels_first=channels_first)


def test_an_option_names_the_encoder() -> None:
    chosen = Config(image_encoder="nature")
    assert image_layers(chosen, image_spec((4, 84, 84), channels_first=True)) == IMAGE_ENCODERS["nature"]
    assert image_layers(Config(image_encoder="flat"), image_spec((84, 84, 4))) == ()
    with pytest.raises(ConfigError, match="10 x 10 are too small for image_encoder nature, which takes 36 pixels a side"):
        make_learner(chosen, image_spec((10, 10, 4)))
    vectors = image_spec((3,), np.float32)
    make_learner(Config(image_encoder="flat"), vectors)
    with pytest.raises(ConfigError, match="image_encoder nature reads images, and the observations of here are none"):
        make_learner(chosen, vectors)
    with pytest.raises(ConfigError, match="image_encoder cannot be 'big'; it is one of auto, nature"):
        Config(image_encoder="big").validate()  # pyright: ignore[reportArgumentType]


def test_continuous_actions_at_images() -> None:
    spec = image_spec((5, 6, 3))
    learner = make_learner(dataclasses.replace(TINY, image_encoder="minatar"), spec)

    def look(image: jax.Array) -> tuple[jax.Array, jax.Array]:
        state = learner.init(KEY)
        action, _ = learner.act(state.policy, image, KEY, True)
        return action, state.critic(image, jnp.stack([action, -action]))

    action, value = jax.eval_shape(look, jax.ShapeDtypeStruct((7, 5, 6, 3), np.uint8))
    assert action.shape == (7, 2)
    assert value.shape == (2, 7)


def test_pixels_are_not_normalised() -> None:
    image = jnp.full((3, 5, 5, 1), 7, jnp.uint8)
    state = normalizer.update(normalizer.init(jax.ShapeDtypeStruct((5, 5, 1), np.uint8)), image)
    assert jax.tree.leaves((state.mean, state.var)) == []
    assert normalizer.normalize(state, image) is image


# ------------------------------------------------------------------------------------------- spaces


@pytest.mark.parametrize(
    ("space", "dtype", "first"),
    [
        (spaces.Box(0, 255, (4, 84, 84), np.uint8), np.uint8, True),
        (spaces.Box(0, 255, (210, 160, 3), np.uint8), np.uint8, False),
        (spaces.Box(0, 1, (10, 10, 4), np.bool_), np.bool_, False),  # pyright: ignore[reportArgumentType]
        (spaces.Box(0, 1, (3, 8, 8), np.float64), np.float32, True),
    ],
)
def test_a_box_of_three_axes_is_an_image(space: spaces.Box, dtype: Any, first: bool) -> None:
    read = Observations("test", space)
    assert (read.spec.shape, read.spec.dtype, read.channels_first) == (space.shape, dtype, first)
    batch = np.stack([space.sample(), space.sample()])
    found, out = read.read(batch, 2), read.empty(2)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, batch.astype(dtype))
    assert not np.shares_memory(found, batch)
    read.write(batch[1], out, 1)
    np.testing.assert_array_equal(out[1], found[1])
    with pytest.raises(WrongObservation, match=r"has shape \[2, 2\]"):
        read.read(np.zeros((2, 2)), 2)


@pytest.mark.parametrize(
    ("dtype", "image", "message"),
    [
        (np.uint8, np.float32(0.5), "is float32, its space says uint8: return uint8, 0 to 255, or declare a Box of floats"),
        (np.uint8, np.int64(300), "has the number 300, not in 0 to 255: return uint8"),
        (np.uint8, np.int32(-1), "has the number -1, not in 0 to 255"),
        (np.bool_, np.float64(0.5), "is float64, its space says bool: return bool, 0 to 1"),
        (np.bool_, np.uint8(2), "has the number 2, not in 0 to 1: return bool"),
    ],
)
def test_an_image_of_other_numbers_than_its_space_says_is_refused(dtype: Any, image: Any, message: str) -> None:
    """NumPy would make a black image of floats from 0 to 1, and 44 of 300."""
    box: Any = spaces.Box
    read = Observations("test", box(0, 1 if dtype is np.bool_ else 255, (3, 4, 5), dtype))
    out = read.empty(3)
    with pytest.raises(WrongObservation, match=f"observation {message}") as error:
        read.write(np.full((3, 4, 5), image), out, 2)
    assert error.value.index == 2
    with pytest.raises(WrongObservation, match=f"observation {message}"):
        read.read(np.full((3, 3, 4, 5), image), 3)


def test_an_image_may_have_its_numbers_in_another_dtype() -> None:
    box: Any = spaces.Box
    for dtype, image in ((np.uint8, np.int64(200)), (np.uint8, np.bool_(True)), (np.bool_, np.int64(1))):
        read = Observations("test", box(0, 1 if dtype is np.bool_ else 255, (3, 4, 5), dtype))
        out = read.empty(1)
        read.write(np.full((3, 4, 5), image), out, 0)
        assert out.dtype == dtype
        assert (out == image).all()


def test_images_that_are_not_the_whole_observation_are_refused() -> None:
    image = spaces.Box(0, 255, (84, 84, 3), np.uint8)
    for space in (spaces.Box(0, 255, (84, 84), np.uint8), spaces.Dict({"camera": image}), spaces.Tuple([image])):
        with pytest.raises(ConfigError, match="the networks read an image with three axes, where it is the whole"):
            Observations("test", space)
    struct = jax.ShapeDtypeStruct((84, 84, 3), np.uint8)
    for observation in ({"camera": struct}, jax.ShapeDtypeStruct((84, 84), np.uint8), jax.ShapeDtypeStruct((3,), np.int32)):
        with pytest.raises(ConfigError, match="it must be a float vector, or the whole observation one image"):
            check_observation("test", observation)


# ------------------------------------------------------------------------------------------- a learner


class Lit(reppo.Env):
    """One pixel of 4 x 3 is lit. In the left half of the image the first action is right, in the other one the second."""

    action_size, discrete = 2, True
    channels_first = True
    value_range = (-1.0, 2.0)

    def reset(self, key: jax.Array) -> tuple[Any, jax.Array]:
        place = jax.random.randint(key, (), 0, 12)
        return place, self.observe(place)

    def observe(self, place: jax.Array) -> jax.Array:
        return jnp.where(jnp.arange(12) == place, 255, 0).astype(jnp.uint8).reshape(1, 3, 4)

    def step(self, state: Any, action: jax.Array, key: jax.Array) -> tuple[Any, reppo.Transition]:
        place = (state + 5) % 12
        right = action == (state % 4 >= 2)
        return place, reppo.Transition(self.observe(place), right.astype(jnp.float32), jnp.array(True))


LIT = dataclasses.replace(
    TINY,
    total_steps=25 * 64 * 8,
    num_envs=64,
    gamma=0.9,
    initial_alpha=0.01,
    learn_alpha=False,
    learning_rate=3e-3,
    num_minibatches=4,
)
ALL = np.stack([np.where(np.arange(12) == place, 255, 0).astype(np.uint8).reshape(1, 3, 4) for place in range(12)])


@pytest.fixture(scope="module")
def lit(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run on `Lit`, from this file by its name, so that it can be resumed."""
    return reppo.train(f"{__file__}:Lit", LIT, out=tmp_path_factory.mktemp("lit") / "run")


def test_a_run_learns_from_pixels(lit: Run) -> None:
    np.testing.assert_array_equal(lit.returns, np.ones((1, 8)))
    critic = jax.tree.map(lambda x: x[0], lit.state).critic
    values = np.asarray(eqx.filter_jit(critic)(jnp.asarray(ALL), jnp.array([[0], [1]])))
    left = np.arange(12) % 4 < 2  # every episode has one step, whose reward is the value
    np.testing.assert_allclose(values, [left, ~left], atol=0.25)  # wrong actions are rare


def test_a_rollout_holds_bytes(lit: Run) -> None:
    assert isinstance(lit.spec.observation, jax.ShapeDtypeStruct)
    rows = lit.collector.collect(lit.state, 99).rows
    assert (rows.obs.dtype, rows.next_obs.dtype) == (jnp.uint8, jnp.uint8)
    # 2 images of 12 bytes, an index and a reward of 4 bytes each, and the order of the rows in 2 epochs.
    assert lit.memory_parts()["batch"] == 64 * 8 * (2 * 12 + 4 + 4 + 2 * 4)


def test_a_checkpoint_brings_the_learner_back(lit: Run) -> None:
    assert lit.directory is not None
    assert_identical(reppo.resume(lit.directory).state, lit.state)


def test_the_exported_policy_is_the_policy(lit: Run) -> None:
    assert lit.directory is not None
    saved = reppo.load_policy(lit.directory)
    assert saved.image == ((1, 3, 4), "uint8", True, (1,))
    expected = lit.policy()(jnp.asarray(ALL))
    np.testing.assert_allclose(saved.logits(ALL), expected.logits, atol=1e-5)
    np.testing.assert_array_equal(saved(ALL), np.arange(12) % 4 >= 2)
    assert saved(ALL[3]) == 1
    np.testing.assert_array_equal(evaluate_policy(saved, Lit(), episodes=3, seed=0)["returns"], np.ones(3))
    for wrong in (ALL[0, 0], ALL.astype(np.float32)):
        with pytest.raises(ValueError, match=r"this policy reads uint8 images \[..., 1, 3, 4\], got"):
            saved(wrong)


def test_a_policy_of_images_goes_where_its_images_are(lit: Run) -> None:
    assert lit.directory is not None

    class Flat(Lit):
        def observe(self, place: jax.Array) -> jax.Array:
            return super().observe(place).reshape(12).astype(jnp.float32)

    class Last(Lit):
        def observe(self, place: jax.Array) -> jax.Array:
            return jnp.moveaxis(super().observe(place), 0, -1)

    saved = reppo.load_policy(lit.directory)
    for env, says in ((Flat(), r"the observations of Flat are vectors"), (Last(), r"Last are images \[3, 4, 1\]")):
        with pytest.raises(ConfigError, match=rf"the policy reads images \[1, 3, 4\], but .*{says}"):
            evaluate_policy(saved, env, episodes=1, seed=0)


@pytest.mark.parametrize("change", [{"strides": [0]}, {"strides": [1, 1]}, {"shape": [3, 4]}, {"shape": [1, 2, 4]}])
def test_a_damaged_description_of_images_is_refused(lit: Run, tmp_path: Path, change: dict[str, Any]) -> None:
    assert lit.directory is not None
    with np.load(lit.directory / "policy.npz", allow_pickle=False) as file:
        arrays = dict(file)
    meta = json.loads(arrays["meta"].tobytes())
    meta["image"] |= change
    np.savez(tmp_path / "policy.npz", **{**arrays, "meta": np.frombuffer(json.dumps(meta).encode(), np.uint8)})
    with pytest.raises(ConfigError, match="is not a policy of this program"):
        reppo.load_policy(tmp_path)


# ------------------------------------------------------------------------------------------- suites


def test_minatar_is_planes_of_booleans() -> None:
    env = envs.make("gymnax:Breakout-MinAtar")
    assert isinstance(env, reppo.Env)
    spec = env.spec()
    assert (spec.image, spec.image_sides, spec.observation.dtype) == (True, (10, 10), np.bool_)
    _, obs = jax.jit(env.reset)(KEY)
    # Planes of the paddle, the ball, its trail, and three rows of bricks.
    assert obs.sum((0, 1)).tolist() == [1, 1, 1, 30]


def test_atari_is_set_up_as_machado_et_al_say() -> None:
    envpool = pytest.importorskip("envpool")
    defaults = envpool.make_spec("Breakout-v5").config
    asked = ("stack_num", "frame_skip", "repeat_action_probability", "episodic_life", "reward_clip", "max_episode_steps")
    # What EnvPool does by itself: no sticky actions. Half an hour of 60 frames a second is 108,000, in steps of 4.
    assert [getattr(defaults, name) for name in asked] == [4, 4, 0.0, False, False, 27_000]
    assert (defaults.noop_max, defaults.use_fire_reset, defaults.full_action_space) == (30, True, False)
    env = envs.make("envpool:Breakout-v5")
    assert isinstance(env, envs.HostEnv)
    spec = env.spec()
    assert (spec.image, spec.channels_first, spec.image_sides, spec.episode_length) == (True, True, (84, 84), 27_000)
    for made, clipped in ((env, True), (env.for_evaluation(), False)):
        pool = made.simulator(1, 50)
        pool.reset(0)
        config = pool._pool.spec.config  # pyright: ignore[reportAttributeAccessIssue]
        pool.close()
        assert [getattr(config, name) for name in asked] == [4, 4, 0.25, False, clipped, 50]


def test_an_atari_games_points_are_clipped_in_training_alone() -> None:
    pytest.importorskip("envpool")
    env = envs.make("envpool:Asterix-v5")  # 50 points for each thing that is caught
    assert isinstance(env, envs.HostEnv)
    spec = resolve(env.spec(), Config(episode_length=200))
    rewards = []
    for made in (env, env.for_evaluation()):
        vector = made.start(spec, 8)
        vector.reset(0)
        rng = np.random.default_rng(0)
        rewards.append({float(r) for _ in range(100) for r in vector.step(rng.integers(0, spec.action_size, 8)).reward})
        vector.close()
    assert rewards[0] == {0.0, 1.0}
    assert rewards[1] >= {0.0, 50.0}


def test_atari_episodes_end_with_the_game_or_are_truncated() -> None:
    pytest.importorskip("envpool")
    env = envs.make("envpool:Breakout-v5")
    assert isinstance(env, envs.HostEnv)
    steps = []
    for limit in (20, 500):
        vector = env.start(resolve(env.spec(), Config(episode_length=limit)), 4)
        vector.reset(0)
        rng = np.random.default_rng(0)
        steps.append([vector.step(rng.integers(0, 4, 4)) for _ in range(350)])
        vector.close()
    short, long = steps
    # 20 steps are too few to lose five lives: all four are cut at once, and spend the next row on their reset.
    assert not any(step.terminated.any() for step in short)
    assert [t for t, step in enumerate(short) if step.truncated.all()] == list(range(19, 350, 21))
    assert sum(int(step.truncated.sum()) for step in short) == 4 * len(range(19, 350, 21))
    # The observation at the cut is that of the episode left alone.
    np.testing.assert_array_equal(short[19].next_obs, long[19].next_obs)
    assert sum(int(step.terminated.sum()) for step in long) >= 4
    assert not any(step.truncated.any() for step in long)


def test_atari_goes_the_whole_way_but_learning(tmp_path: Path) -> None:
    """Without convolutions, which take long to compile, and without the update."""
    pytest.importorskip("envpool")
    config = dataclasses.replace(TINY, num_envs=2, num_steps=4, episode_length=12, eval_episodes=2, image_encoder="flat")
    env = envs.make("envpool:Breakout-v5")
    run = Run(env, config, [0], None)
    run.start()
    assert isinstance(run.collector, HostCollector)
    rows = jax.device_get(run.collector.collect(run.state, 0).rows)
    assert (rows.obs.shape, rows.obs.dtype) == ((1, 4, 2, 4, 84, 84), np.uint8)
    # The successor's older frames are the newer ones of the observation.
    np.testing.assert_array_equal(rows.next_obs[..., :3, :, :], rows.obs[..., 1:, :, :])
    run.collector.close()
    export.save_policy(tmp_path / "policy.npz", jax.device_get(run.policy()), run.spec)
    saved = reppo.load_policy(tmp_path)
    obs: Array = rows.obs[0, :, 0]
    expected = jax.jit(lambda policy, obs: policy(obs).logits)(run.policy(), obs)
    np.testing.assert_allclose(saved.logits(obs), expected, atol=1e-5)
    found = evaluate_policy(saved, env, episodes=2, seed=0, episode_length=12)
    assert found["lengths"].tolist() == [12, 12]
