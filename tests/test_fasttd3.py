"""FastTD3: its replay memory and its targets by hand, and what it learns on environments whose values are known."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_identical

import reppo
from reppo import baselines, cli, normalizer
from reppo.baselines import fasttd3, replay
from reppo.baselines.fasttd3 import Actor, Batch, Critics, FastTD3Config, TaperedMLP, TrainState
from reppo.baselines.replay import Transitions
from reppo.config import Config
from reppo.envs.autoreset import AutoReset
from reppo.envs.base import Env
from reppo.envs.probes import ActionReward, ConstantReward, Terminating, Truncating
from reppo.envs.spec import resolve
from reppo.errors import ConfigError
from reppo.options import options_of
from reppo.rollout import rollout as collect
from reppo.types import Learner, Rollout

SPEC = ConstantReward().spec()
GAMMA = 0.5


def rollout(steps: list[dict[str, Any]]) -> Rollout:
    """Steps of one environment: observation ``x``, successor ``y``, and what is not as usual."""

    def column(name: str, default: float, kind: Any) -> jax.Array:
        return jnp.array([[step.get(name, default)] for step in steps], kind)

    flags = (column(name, usual, bool) for name, usual in (("terminated", False), ("truncated", False), ("valid", True)))
    x, y = (column(name, 0.0, float)[..., None] for name in "xy")
    return Rollout(x, x / 10, y, column("reward", 0.0, float), *flags)


def transitions(rows: Rollout, num_steps: int, capacity: int = 8) -> dict[float, tuple[float, ...]]:
    """Of every first observation: reward, discount, successor, and whether it is valid."""
    memory = replay.init(SPEC, capacity, 1)
    for t in range(rows.reward.shape[0]):  # one step at a time, as the published rollouts are
        memory = replay.insert(memory, jax.tree.map(lambda x, t=t: x[t : t + 1], rows))
    found = replay.sample(memory, jax.random.key(0), 200, num_steps, GAMMA)
    numbers = (found.obs[:, 0], found.reward, found.discount, found.next_obs[:, 0], found.valid)
    return {float(x): tuple(map(float, rest)) for x, *rest in zip(*map(np.asarray, numbers), strict=True)}


CHAIN = [{"x": i, "y": i + 1, "reward": 10.0**i} for i in range(5)]


def test_a_transition_of_n_steps_sums_discounted_rewards() -> None:
    # 1 + 10/2 + 100/4, and so on; the value after three steps counts 1/8. The last two steps begin no transition.
    found = transitions(rollout(CHAIN), 3)
    assert found == {0: (31.0, 0.125, 3.0, 1.0), 1: (310.0, 0.125, 4.0, 1.0), 2: (3100.0, 0.125, 5.0, 1.0)}


def test_a_termination_ends_a_transition_and_nothing_follows() -> None:
    steps = [*CHAIN[:2], {"x": 7.0, "y": 8.0}, {"x": 8.0, "y": 9.0}]
    steps[1] = {**steps[1], "terminated": True}
    found = transitions(rollout(steps), 3)
    assert found[0] == (1.0 + 10.0 / 2, 0.0, 2.0, 1.0)
    assert found[1] == (10.0, 0.0, 2.0, 1.0)


def test_a_truncation_ends_a_transition_and_the_value_of_its_true_successor_follows() -> None:
    steps = [*CHAIN[:2], {"x": 7.0, "y": 8.0}, {"x": 8.0, "y": 9.0}]
    steps[1] = {**steps[1], "truncated": True}
    found = transitions(rollout(steps), 3)
    assert found[0] == (1.0 + 10.0 / 2, 0.25, 2.0, 1.0)  # after two steps, in 2: not in 7, after the reset
    assert found[1] == (10.0, 0.5, 2.0, 1.0)


def test_a_transition_does_not_cross_into_an_episode_that_began_without_an_end() -> None:
    # As after a resumed run on a simulator of the host: no flag, but the successor is not the next observation.
    found = transitions(rollout([*CHAIN[:2], {"x": 7.0, "y": 8.0}, {"x": 8.0, "y": 9.0}]), 3)
    assert found[0] == (6.0, 0.25, 2.0, 1.0)


def test_a_row_that_is_no_transition_is_not_in_one() -> None:
    steps = [*CHAIN[:2], {**CHAIN[2], "valid": False}, *CHAIN[3:]]
    found = transitions(rollout(steps), 3)
    assert found[0] == (6.0, 0.25, 2.0, 1.0)
    assert found[2][3] == 0.0


def test_the_oldest_steps_are_overwritten_and_no_transition_reaches_around() -> None:
    found = transitions(rollout(CHAIN), 2, capacity=3)
    assert found == {2: (100.0 + 1000.0 / 2, 0.25, 4.0, 1.0), 3: (1000.0 + 10_000.0 / 2, 0.25, 5.0, 1.0)}


def test_a_rollout_of_several_steps_is_the_same_as_its_steps() -> None:
    whole = replay.insert(replay.init(SPEC, 10, 1), rollout(CHAIN))
    single = replay.init(SPEC, 10, 1)
    for step in CHAIN:
        single = replay.insert(single, rollout([step]))
    assert_identical(whole, single)


# ------------------------------------------------------------------------------------------- targets


def test_a_projection_shares_mass_between_neighbours_and_keeps_the_mean() -> None:
    # Atoms 0, 1, 2, 3. Mass at 0.25 goes to 0 and 1; at 2 it stays; at -1 and 9 it goes to the ends.
    probs = jnp.array([[0.5, 0.5, 0.0, 0.0], [0.3, 0.7, 0.0, 0.0]])
    atoms = jnp.array([[0.25, 2.0, 0.0, 0.0], [-1.0, 9.0, 0.0, 0.0]])
    found = fasttd3.project(probs, atoms, 0.0, 3.0)
    np.testing.assert_allclose(found, [[0.375, 0.125, 0.5, 0.0], [0.3, 0.0, 0.0, 0.7]], atol=1e-6)
    np.testing.assert_allclose(found[0] @ jnp.arange(4.0), 0.5 * 0.25 + 0.5 * 2.0, rtol=1e-6)


class Known(Critics):
    """Two atoms, 0 and 1: the logit of the second is each critic's own and the action."""

    logits: jax.Array  #: of the two critics, ``[2]``

    def __call__(self, obs: jax.Array, action: jax.Array) -> jax.Array:
        second = self.logits[:, None] + action[:, 0]
        return jnp.stack([jnp.zeros_like(second), second], -1)


def known(*values: float) -> Known:
    """Critics that give these values to the action 0."""
    shares = jnp.array(values)
    return Known(TaperedMLP(2, 4, 2, jax.random.key(0)), 0.0, 1.0, jnp.log(shares / (1 - shares)))


IDLE = Actor(1, 1, 4, 0.0, jax.random.key(0))  #: its action is 0 everywhere


def batch(size: int, reward: float, discount: float) -> Batch:
    """Transitions that differ in nothing."""
    obs, ones = jnp.zeros((size, 1)), jnp.ones(size)
    return Batch(obs, obs, obs, obs, Transitions(obs, obs, reward * ones, discount * ones, obs, ones))


@pytest.mark.parametrize("values", [(0.25, 0.75), (0.75, 0.25)])
def test_both_critics_learn_from_the_smaller_one_or_each_from_its_own(values: tuple[float, float]) -> None:
    # The atoms 0 and 1 go to 1/2 and 1: half of the mass that was on 0 is on either of them, and 1 keeps its own.
    of_value = {0.25: [0.375, 0.625], 0.75: [0.125, 0.875]}
    config = FastTD3Config(num_bins=2, target_noise=0.0)
    for clipped, expected, returns in [(True, (0.25, 0.25), 0.5 + 0.25 / 2), (False, values, 0.5 + 0.5 / 2)]:
        config = dataclasses.replace(config, clipped_double_q=clipped)
        target, found = fasttd3.critic_target(known(*values), IDLE, batch(3, 0.5, 0.5), config, jax.random.key(0))
        np.testing.assert_allclose(target, [[of_value[value]] * 3 for value in expected], rtol=1e-6)
        np.testing.assert_allclose(found, [returns] * 3, rtol=1e-6)


@pytest.mark.parametrize("values", [(0.25, 0.75), (0.75, 0.25)])
@pytest.mark.parametrize(("clipped", "expected"), [(True, 0.25), (False, 0.5)])
def test_the_actor_raises_the_smaller_value_or_the_mean(values: tuple[float, float], clipped: bool, expected: float) -> None:
    config = FastTD3Config(num_bins=2, clipped_double_q=clipped)
    assert float(fasttd3.actor_loss(IDLE, known(*values), batch(3, 0.0, 1.0), config)) == pytest.approx(-expected)


@pytest.mark.parametrize(("clip", "largest"), [(0.1, 0.1), (5.0, 1.0)])
def test_the_noise_on_a_targets_action_is_clipped_and_so_is_the_action(clip: float, largest: float) -> None:
    config = FastTD3Config(num_bins=2, target_noise=1000.0, target_noise_clip=clip)
    _, returns = fasttd3.critic_target(known(0.5, 0.5), IDLE, batch(64, 0.0, 1.0), config, jax.random.key(0))
    action = np.log(returns / (1 - returns))  # whose sigmoid is the value
    np.testing.assert_allclose(np.abs(action), largest, rtol=1e-4)
    assert {-1.0, 1.0} == set(np.sign(action))


# ------------------------------------------------------------------------------------------- learning

PROBE = FastTD3Config(
    total_steps=60 * 32 * 8,
    num_envs=32,
    num_steps=8,
    replay_steps=64,
    minibatch_size=128,
    gamma=0.9,
    n_step=2,
    updates_per_step=1,
    v_min=-2.0,
    v_max=2.0,
    num_bins=41,
    actor_width=16,
    critic_width=64,
    critic_learning_rate=3e-3,
    actor_learning_rate=3e-3,
    weight_decay=0.0,
    num_evals=1,
    eval_episodes=8,
)


@functools.cache
def compiled() -> tuple[Learner, Any]:
    """One learner for all probes, which have the same shapes, and its update."""
    learner = fasttd3.make_learner(PROBE, resolve(SPEC, PROBE))
    return learner, jax.jit(learner.update)


def learned(env_class: type[Env]) -> TrainState:
    """What there is after 60 iterations on a probe."""
    learner, update = compiled()
    env = AutoReset(env_class(), PROBE.num_envs, env_class.episode_length)
    act = jax.jit(lambda state, env_state, key: collect(env, learner, state.policy, env_state, key, PROBE.num_steps)[:2])
    key = jax.random.key(0)
    state, env_state = jax.jit(learner.init)(key), jax.jit(lambda key: env.begin(env.first(key)))(key)
    for i in range(60):
        env_state, rows = act(state, env_state, jax.random.fold_in(key, 2 * i))
        state, _ = update(state, rows, jax.random.fold_in(key, 2 * i + 1))
    return state


def value(state: TrainState, x: float) -> np.ndarray:
    obs = normalizer.normalize(state.policy.normalizer, jnp.full((1, 1), x))
    return np.asarray(state.critics.values(jax.nn.softmax(state.critics(obs, jnp.zeros((1, 1))))))


def test_the_critics_know_that_a_truncation_is_no_termination() -> None:
    # Reward 0.1 for ever: 1. The same cut by a termination after two steps: 0.1 + 0.09, and 0.1.
    going_on, ending = learned(Truncating), learned(Terminating)
    for x in (0.0, 1.0):
        np.testing.assert_allclose(value(going_on, x), 1.0, atol=0.06)
        np.testing.assert_allclose(value(ending, x), 0.1 if x else 0.19, atol=0.03)


def test_the_actor_finds_the_best_action() -> None:
    state = learned(ActionReward)
    np.testing.assert_allclose(state.policy(jnp.zeros((1, 1))), 0.5, atol=0.1)


def test_the_actor_learns_at_every_second_step_of_the_critics() -> None:
    config = dataclasses.replace(PROBE, num_envs=1, replay_steps=8, minibatch_size=4, policy_delay=2)
    spec = resolve(SPEC, config)
    state = fasttd3.init(jax.random.key(0), config, spec)
    state = dataclasses.replace(state, replay=replay.insert(state.replay, rollout(CHAIN[:4])))
    step = jax.jit(lambda state, key: fasttd3.learning_step(state, key, config, spec))
    for due in (0.0, 1.0, 0.0, 1.0):
        after, metrics = step(state, jax.random.key(1))
        assert metrics["actor/updates"] == due
        assert bool((after.policy.actor.mlp.output.bias != state.policy.actor.mlp.output.bias).any()) == bool(due)
        assert (after.critics.mlp.output.bias != state.critics.mlp.output.bias).any()
        state = after


def test_noise_is_drawn_anew_where_an_episode_has_ended_and_nowhere_else() -> None:
    config = dataclasses.replace(PROBE, num_envs=3)
    rows = jax.tree.map(lambda x: jnp.concatenate([x, x, x], 1), rollout([{"x": 0, "y": 0}, {"x": 0, "y": 0}]))
    truncated = jnp.array([[False, True, False], [False, False, False]])
    terminated = jnp.array([[False, False, False], [False, False, True]])
    rows = rows._replace(truncated=truncated, terminated=terminated)
    noise = fasttd3.next_noise(jnp.full(3, 9.0), rows, jax.random.key(1), config)
    assert noise[0] == 9.0
    assert ((noise[1:] >= config.min_noise) & (noise[1:] <= config.max_noise)).all()


# ------------------------------------------------------------------------------------------- as a run

SHORT = ["--set", "total_steps=96", "num_envs=4", "num_steps=4", "replay_steps=16", "minibatch_size=8", "learning_starts=4"]


def test_a_run_has_the_files_of_every_run_and_resumes_to_the_same_bits(tmp_path: Path) -> None:
    for name, steps in (("whole", 192), ("parts", 96)):
        words = [w.replace("=96", f"={steps}") for w in SHORT]
        words = ["baseline", "fasttd3", "probe:TargetReach", "--preset", "cpu", "--out", str(tmp_path / name), *words]
        assert cli.main([*words, "--num-evals", "2", "--eval-episodes", "4"]) == 0
    assert cli.main(["resume", str(tmp_path / "parts"), "--total-steps", "192"]) == 0
    description = json.loads((tmp_path / "whole" / "config.json").read_text())
    assert description["algorithm"] == "fasttd3"
    summary = json.loads((tmp_path / "whole" / "summary.json").read_text())
    # 16 steps of 4 environments: twice 2 observations, 1 action, 1 reward, of 4 bytes, and 4 flags; and a counter.
    assert summary["computed_memory_bytes"]["replay"] == 16 * 4 * (4 * (2 + 2 + 1 + 1) + 4) + 4
    policies = [reppo.load_policy(tmp_path / name) for name in ("whole", "parts")]
    for name, array in policies[0].arrays.items():
        np.testing.assert_array_equal(array, policies[1].arrays[name], err_msg=name)
    obs, rng = np.array([[0.1, -0.3]], np.float32), np.random.default_rng(0)
    np.testing.assert_array_equal(policies[0].sample(obs, rng), policies[0](obs))  # it is deterministic


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["fastd3", "probe:TargetReach"], "no baseline 'fastd3'; did you mean fasttd3"),
        (["fasttd3", "probe:TargetReach", "--preset", "gpu"], "no preset 'gpu'; did you mean cpu"),
        (["fasttd3", "probe:TargetReach", "--set", "gama=0.9"], "no setting 'gama'; did you mean gamma"),
        (["fasttd3", "probe:TargetReach", "--set", "gamma"], "--set takes NAME=VALUE, got 'gamma'"),
        (["fasttd3", "probe:TargetReach", "--set", "gamma=high"], "gamma must be a finite number, got 'high'"),
        (["fasttd3", "probe:TargetReach", "--set", "gamma=1.5"], "gamma must be between 0 and 1, got 1.5"),
        (["fasttd3", "probe:TargetReach", "--set", "v_min=1,5"], "v_min must be a finite number or None, got '1,5'"),
        (["fasttd3", "probe:TargetReach", "--set", "gamma=nan"], "gamma must be a finite number, got 'nan'"),
        (["fasttd3", "probe:TargetReach", "--set", "n_step=1.5"], "n_step must be a whole number, got '1.5'"),
        (["fasttd3", "probe:Choice", "--preset", "cpu"], "FastTD3 is for continuous"),
    ],
)
def test_mistakes_are_one_line(words: list[str], complaint: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["baseline", *words, "--out", str(tmp_path / "run")]) == cli.USER_ERROR
    line = capsys.readouterr().err
    assert complaint in line
    assert line.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_every_setting_is_documented(root: Path) -> None:
    section = (root / "docs" / "baselines.md").read_text().partition("## FastTD3")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \|.*\| ([^|]+) \|$", section, re.MULTILINE)
    assert rows == [(option.name, option.meaning) for option in options_of(FastTD3Config)]


def test_every_preset_is_sound() -> None:
    for config in fasttd3.PRESETS.values():
        config.validate()
    assert (
        baselines.configured("fasttd3", "probe:TargetReach", "cpu", ["v_min=-5", "v_max=none"], {"num_evals": 3}).num_evals
        == 3
    )


@pytest.mark.parametrize(
    "change",
    [
        {"n_step": 0},
        {"num_steps": 7},
        {"replay_steps": 2},
        {"min_noise": 0.5},
        {"num_bins": 1},
        {"gamma": 2.0},
        {"cut_probability": 1.0},
        {"learning_starts": 50_000},
    ],
)
def test_values_that_cannot_be_trained_with_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        dataclasses.replace(FastTD3Config(), **change).validate()


def test_the_options_that_it_shares_with_reppo_have_the_same_types() -> None:
    ours, its = ({option.name: option.hint for option in options_of(cls)} for cls in (Config, FastTD3Config))
    shared = ours.keys() & its.keys()
    assert {"total_steps", "num_envs", "episode_length", "cut_probability", "action_low", "num_evals", "precision"} <= shared
    assert {name: ours[name] for name in shared} == {name: its[name] for name in shared}
