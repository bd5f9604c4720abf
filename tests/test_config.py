"""The configuration: the paper's presets to the number, what is refused, and the way to JSON and back."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reppo
from reppo.baselines.brax_config import PPOConfig
from reppo.checkpoint import CheckpointError
from reppo.config import LATER_OPTIONS, PRESETS, Config
from reppo.envs.host import SimulatorError
from reppo.errors import ConfigError

FIELDS = [field.name for field in dataclasses.fields(Config)]

#: What the paper and the code behind its numbers used on the DeepMind Control suite.
PAPER = {
    "total_steps": 50_000_000,
    "num_envs": 1024,
    "num_steps": 128,
    "num_minibatches": 64,
    "num_epochs": 8,
    "gamma": 0.99,
    "lambda_": 0.95,
    "estimator": "pathwise",
    "kl_mode": "gate",
    "kl_bound": 0.1,
    "kl_estimator": "closed_form",
    "kl_direction": "forward",
    "initial_alpha": 0.01,
    "initial_beta": 0.01,
    "learn_alpha": True,
    "learn_beta": True,
    "target_entropy_per_action": -0.5,
    "hl_gauss": True,
    "num_bins": 151,
    "aux_weight": 1.0,
    "actor_width": 512,
    "critic_width": 512,
    "actor_layers": 3,
    "critic_layers": 2,
    "norm": "rms",
    "normalize_observations": True,
    "learning_rate": 3e-4,
    "max_grad_norm": 0.5,
    "num_evals": 20,
}


@pytest.mark.parametrize(
    ("name", "num_steps", "num_minibatches"), [("paper-large", 128, 64), ("paper-medium", 64, 32), ("paper-small", 32, 16)]
)
def test_the_papers_presets(name: str, num_steps: int, num_minibatches: int) -> None:
    preset = dataclasses.asdict(reppo.preset(name))
    expected = {**PAPER, "num_steps": num_steps, "num_minibatches": num_minibatches}
    assert {key: preset[key] for key in expected} == expected
    assert preset["num_envs"] * num_steps // num_minibatches == 2048
    # They differ in their batches alone.
    large = dataclasses.asdict(reppo.preset("paper-large"))
    assert {key for key in FIELDS if preset[key] != large[key]} <= {"num_steps", "num_minibatches"}


@pytest.mark.parametrize(
    ("name", "differing"),
    [
        ("paper-humanoid", {"gamma": 0.97, "critic_width": 1024, "v_min": -10.0, "v_max": 10.0}),
        ("paper-maniskill", {"total_steps": 100_000_000, "v_min": -15.0, "v_max": 15.0}),
    ],
)
def test_the_papers_presets_of_robots(name: str, differing: dict[str, float]) -> None:
    assert dataclasses.asdict(reppo.preset(name)) == {**dataclasses.asdict(reppo.preset("paper-large")), **differing}


def test_the_defaults_are_the_papers() -> None:
    assert Config() == reppo.preset("paper-large")


@pytest.mark.parametrize("name", list(PRESETS))
def test_every_preset_can_be_trained_with(name: str) -> None:
    reppo.preset(name).validate()


def test_a_preset_that_does_not_exist() -> None:
    with pytest.raises(ConfigError, match="no preset 'paper-larg'; did you mean paper-large"):
        reppo.preset("paper-larg")


def test_a_run_has_as_many_iterations_as_reach_its_steps() -> None:
    def iterations(total_steps: int) -> int:
        return Config(total_steps=total_steps, num_envs=8, num_steps=8, num_minibatches=1).num_iterations

    assert [iterations(n) for n in (1, 64, 65, 640)] == [1, 1, 2, 10]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_minibatches": 60}, r"num_minibatches (60) must divide num_envs * num_steps (1024 * 128 = 131072)"),
        ({"num_envs": 0}, "num_envs must be positive, got 0"),
        ({"num_epochs": -1}, "num_epochs must be positive, got -1"),
        ({"learning_rate": 0.0}, "learning_rate must be positive, got 0.0"),
        ({"learning_rate": float("nan")}, "learning_rate cannot be nan"),
        ({"v_max": float("inf")}, "v_max cannot be inf"),
        ({"learning_rate": "fast"}, "learning_rate cannot be 'fast'"),
        ({"learning_rate": 10**400}, "learning_rate cannot be 1000"),
        ({"num_envs": 8.5}, "num_envs must be a whole number, got 8.5"),
        ({"num_envs": "8"}, "num_envs must be a whole number, got '8'"),
        ({"num_envs": None}, "num_envs must be a whole number, got None"),
        ({"num_envs": True}, "num_envs must be a whole number, got True"),
        ({"episode_length": float("inf")}, "episode_length must be a whole number or None, got inf"),
        ({"hl_gauss": 1}, "hl_gauss cannot be 1"),
        ({"kl_mode": "gat"}, "kl_mode cannot be 'gat'; it is one of gate, penalty, none"),
        ({"actor_obs": "state"}, "actor_obs cannot be 'state'"),
        ({"gamma": 1.1}, "gamma must be between 0 and 1, got 1.1"),
        ({"lambda_": -0.1}, "lambda_ must be between 0 and 1, got -0.1"),
        ({"aux_weight": -1.0}, "aux_weight must not be negative"),
        ({"min_std": -0.1}, "min_std must not be negative"),
        ({"episode_length": 0}, "episode_length must be positive, got 0"),
        ({"min_beta": 0.02}, "initial_beta (0.01) must not be below min_beta (0.02)"),
        ({"initial_alpha": 1e-9}, "initial_alpha must be between 1e-06 and 1e+06, got 1e-09"),
        ({"min_beta": 1e7, "initial_beta": 1e7}, "initial_beta must be between 1e-06 and 1e+06, got 1e+07"),
        ({"actor_average": 1.0}, "actor_average must be at least 0 and below 1, got 1.0"),
        ({"actor_average": -0.1}, "actor_average must be at least 0 and below 1, got -0.1"),
        ({"critic_layers": 1}, "critic_layers must be at least 2, got 1"),
        ({"critic_layers": 10**9}, "critic_layers must be at most 100, got 1,000,000,000"),
        ({"target_samples": 2**31 - 1}, "target_samples must be at most 10,000, got 2,147,483,647"),
        ({"num_envs": 10**12}, "num_envs must be at most 2,147,483,647, got 1,000,000,000,000"),
        ({"episode_length": 2**31}, "episode_length must be at most 2,147,483,647, got 2,147,483,648"),
        ({"num_epochs": 10**400}, "num_epochs must be at most 2,147,483,647, got about 10**400"),
        ({"num_envs": 10**6, "num_steps": 10**6}, "num_envs * num_steps must be at most 2,147,483,647, got 1,000,000 *"),
        ({"total_steps": 10**30}, "iterations of num_envs * num_steps = 131,072, got about 10**30"),
        ({"num_bins": 1}, "num_bins must be at least 2, got 1 (for a scalar critic set hl_gauss to false)"),
        ({"estimator": "score_q", "estimator_samples": 1}, "score_q needs estimator_samples >= 2"),
        ({"v_min": 1.0, "v_max": 1.0}, "v_min must be below v_max, got [1.0, 1.0]"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_values_that_cannot_be_trained_with(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        dataclasses.replace(Config(), **changes).validate()
    assert says in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_numbers_of_numpy_and_whole_floats_are_taken() -> None:
    values = {"num_envs": np.int64(8), "num_steps": 8.0, "total_steps": 1e3, "gamma": np.float32(0.5), "v_max": np.int32(3)}
    others = {"num_minibatches": np.float64(2), "episode_length": 20.0, "keep_best": np.bool_(False)}
    config = Config(**values, **others)  # pyright: ignore[reportArgumentType]
    config.validate()
    assert config == Config(
        num_envs=8, num_steps=8, total_steps=1000, gamma=0.5, v_max=3, num_minibatches=2, episode_length=20, keep_best=False
    )
    whole = [getattr(config, name) for name in ("num_envs", "num_steps", "total_steps", "num_minibatches", "episode_length")]
    assert {type(value) for value in whole} == {int}
    assert Config.from_json(json.loads(json.dumps(dataclasses.asdict(config))), "here") == config


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"config": "cpu"}, "config must be a reppo.Config, such as reppo.preset('cpu'), got 'cpu'"),
        ({"config": "paper-small"}, "config must be a reppo.Config, such as reppo.preset('paper-small'), got 'paper-small'"),
        ({"config": PPOConfig()}, "a PPOConfig is of an algorithm with a loop of its own: `reppo baseline` runs it"),
        ({"config": {"num_envs": 8}}, "config must be a reppo.Config, such as reppo.preset('cpu'), got {'num_envs': 8}"),
        ({"config": Config}, "config must be a reppo.Config, such as reppo.preset('cpu'), got <class"),
        ({"num_seeds": "3"}, "num_seeds must be a whole number, got '3'"),
        ({"num_seeds": [1, 2]}, "num_seeds must be a whole number, got [1, 2]"),
        ({"num_seeds": 1.5}, "num_seeds must be a whole number, got 1.5"),
        ({"seed": None}, "seed must be a whole number, got None"),
        ({"seed": True}, "seed must be a whole number, got True"),
    ],
)
def test_arguments_of_train_that_cannot_be(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        reppo.train("probe:TargetReach", **arguments)
    assert str(refusal.value).startswith(says)


def values_of(hint: Any) -> st.SearchStrategy[Any]:
    """Values of an option's type."""
    if get_origin(hint) is Literal:
        return st.sampled_from(get_args(hint))
    if get_origin(hint) is tuple:
        return st.lists(st.text(max_size=5), max_size=3).map(tuple)
    kinds = {int: st.integers(1, 10**9), float: st.floats(allow_nan=False, allow_infinity=False), bool: st.booleans()}
    return st.one_of([st.none() if kind is type(None) else kinds[kind] for kind in get_args(hint) or (hint,)])


configurations = st.fixed_dictionaries({name: values_of(hint) for name, hint in get_type_hints(Config).items()})


def refusal(config: Config) -> str | None:
    """Why a configuration cannot be trained with."""
    try:
        config.validate()
    except ConfigError as error:
        return str(error)
    return None


@given(configurations)
def test_json_and_back_is_the_same_or_refused_as_it_would_be_anyway(values: dict[str, Any]) -> None:
    config = Config(**values)
    read = json.loads(json.dumps(dataclasses.asdict(config)))
    if (reason := refusal(config)) is None:
        assert Config.from_json(read, "here") == config
    else:
        with pytest.raises(ConfigError, match="^" + re.escape(f"here: {reason}") + "$"):
            Config.from_json(read, "here")


@pytest.mark.parametrize("name", list(PRESETS))
def test_presets_survive_json(name: str) -> None:
    text = json.dumps(dataclasses.asdict(PRESETS[name]))
    assert Config.from_json(json.loads(text), "here") == PRESETS[name]


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(FIELDS), junk)
def test_junk_in_a_file_is_refused_or_was_a_value(name: str, value: Any) -> None:
    values = {**dataclasses.asdict(Config()), name: value}
    candidate = dataclasses.replace(Config(), **{name: tuple(value) if isinstance(value, list) else value})
    if refusal(candidate) is None:
        assert Config.from_json(values, "config.json") == candidate
    else:
        with pytest.raises(ConfigError, match=f"^config.json: {name}"):
            Config.from_json(values, "config.json")


def test_an_option_that_came_later_may_be_missing() -> None:
    older = dataclasses.replace(Config(), actor_average=0.0)
    values = dataclasses.asdict(older)
    for name in LATER_OPTIONS:
        del values[name]
    assert Config.from_json(values, "config.json") == older
    assert LATER_OPTIONS.keys() <= {field.name for field in dataclasses.fields(Config)}


def test_unknown_and_missing_options_are_named() -> None:
    values = dataclasses.asdict(Config())
    with pytest.raises(ConfigError, match=r"config.json: unknown option: num_env$"):
        Config.from_json({**values, "num_env": 3}, "config.json")
    del values["gamma"]
    with pytest.raises(ConfigError, match=r"config.json: option missing: gamma$"):
        Config.from_json(values, "config.json")


def test_what_reppo_raises_has_one_root() -> None:
    raised = (reppo.ConfigError, reppo.Diverged, reppo.Stopped, SimulatorError, CheckpointError)
    assert all(issubclass(error, reppo.ReppoError) for error in raised)
    assert issubclass(reppo.ConfigError, ValueError)  # as Python's users expect of a wrong argument
    assert not issubclass(reppo.Stopped, ValueError)
