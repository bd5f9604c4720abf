"""Stable-Baselines3's and SBX's PPO and SAC: their settings, their greedy actions in our episodes, a run's files."""

from __future__ import annotations

import csv
import dataclasses
import importlib
import importlib.util
import json
from pathlib import Path
from typing import Any

import gymnasium
import jax
import numpy as np
import pytest

from reppo import algorithms, baselines, cli, envs
from reppo.baselines import sb3, sbx
from reppo.baselines.foreign import FLOAT
from reppo.baselines.sb3 import PPOConfig, SACConfig
from reppo.errors import ConfigError
from reppo.options import options_of

needs_sb3 = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("torch", "stable_baselines3")), reason="needs reppo[sb3]"
)
needs_sbx = pytest.mark.skipif(not all(importlib.util.find_spec(name) for name in sbx.PACKAGES), reason="needs reppo[sbx]")
SHORT: dict[str, Any] = {"total_steps": 128, "num_evals": 2, "eval_episodes": 2}
PPO = PPOConfig(num_envs=2, n_steps=16, batch_size=16, n_epochs=1, net_arch=(8,), **SHORT)
SAC = SACConfig(learning_starts=8, buffer_size=100, batch_size=8, net_arch=(8,), **SHORT)
SBX_PPO = sbx.PPOConfig(**dataclasses.asdict(PPO))
SBX_SAC = sbx.SACConfig(**dataclasses.asdict(SAC))
BOTH_LIBRARIES = [
    *(pytest.param(sb3.Agent, config, id=config.name, marks=needs_sb3) for config in (PPO, SAC)),
    *(pytest.param(sbx.Agent, config, id=config.name, marks=needs_sbx) for config in (SBX_PPO, SBX_SAC)),
]


def test_settings_are_the_zoos_for_the_task_and_the_librarys_elsewhere() -> None:
    found = sb3.presets("gymnasium:CartPole-v1", "sb3-ppo")["published"]
    assert (found.num_envs, found.n_steps, found.gae_lambda, found.anneal_clip_range) == (8, 32, 0.8, True)
    assert sb3.presets("gymnasium:Acrobot-v1", "sb3-ppo")["cpu"] == PPOConfig()
    assert sb3.presets("gymnasium:Ant-v5", "sb3-sac")["published"].learning_starts == 10_000
    # Nothing of a network: the Zoo has none for this robot.
    assert sb3.presets("gymnasium:Walker2d-v5", "sb3-ppo")["published"] == PPOConfig(
        normalize=True, batch_size=32, n_steps=512, gamma=0.99, learning_rate=5.05041e-5, ent_coef=0.000585045,
        clip_range=0.1, n_epochs=20, gae_lambda=0.95, max_grad_norm=1.0, vf_coef=0.871923,
    )  # fmt: skip
    for (task, algorithm), changes in sb3.ZOO.items():
        config = sb3.presets(f"gymnasium:{task}", algorithm)["published"]
        config.validate()
        assert {name: getattr(config, name) for name in changes} == changes


def test_sbx_has_the_same_settings_but_for_gsde() -> None:
    for task, algorithm in sb3.ZOO:
        of_sb3 = sb3.presets(f"gymnasium:{task}", algorithm)["published"]
        found = sbx.presets(f"gymnasium:{task}", algorithm.replace("sb3", "sbx"))["published"]
        found.validate()
        assert dataclasses.asdict(found) == {**dataclasses.asdict(of_sb3), **sbx.WITHOUT_SDE}
        assert found.name == of_sb3.name.replace("sb3", "sbx")


def test_commands_of_the_comparison_can_be_typed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(root / "benchmarks")
    against = importlib.import_module("against")
    for name, task in against.TASKS.items():
        command, *words = against.command(name, against.REPPO, 10)
        args = cli.arguments(command, words)
        assert (args.env, args.seed) == (task.env, 10)
        for algorithm in task.evaluations:
            assert (task.others or name, algorithm.replace("sbx", "sb3")) in sb3.ZOO, (
                "else what is compared with are defaults"
            )
            cli.arguments("baseline", against.command(name, algorithm, 10)[1:])


def test_every_setting_is_documented(root: Path) -> None:
    page = (root / "docs" / "baselines.md").read_text()
    ppo, sac = PPOConfig(), SACConfig()
    for name, cls, configs in (
        ("SB3Config,", sb3.SB3Config, (ppo, sac)),
        ("PPOConfig of", PPOConfig, (ppo,)),
        ("SACConfig of", SACConfig, (sac,)),
    ):
        section = page.partition(f"<!-- settings: the rows of {name}")[2].partition("\n\n|")[2].partition("\n\n")[0]
        rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| `")]
        assert [(row[0].strip("`"), row[-1]) for row in rows] == [(o.name, o.meaning) for o in options_of(cls)]
        for option, *cells, _ in rows:
            values = [getattr(config, option.strip("`")) for config in configs]
            assert cells == [str(v).strip("()").lower() if v is not None else "unset" for v in values], option


@pytest.mark.parametrize(
    ("config", "line"),
    [
        (dataclasses.replace(PPO, n_steps=0), "n_steps must be positive, got 0"),
        (dataclasses.replace(SAC, activation="gelu"), "activation must be tanh or relu, got 'gelu'"),
        (dataclasses.replace(SAC, net_arch=()), "net_arch must be positive widths, got none"),
        (dataclasses.replace(SAC, gamma=1.5), "gamma must be between 0 and 1, got 1.5"),
        (dataclasses.replace(SBX_PPO, use_sde=True), "use_sde must be false: sbx-ppo has no gSDE"),
        (dataclasses.replace(SBX_SAC, use_sde=True), "use_sde must be false: sbx-sac has no gSDE"),
    ],
)
def test_settings_that_cannot_be_are_one_line(config: Any, line: str) -> None:
    with pytest.raises(ConfigError, match=f"^{line}$"):
        config.validate()


def test_a_package_that_is_missing_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    env = envs.make("gymnasium:Pendulum-v1")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"^sb3-ppo needs torch: pip install 'reppo\[sb3\]'$"):
        sb3.suited(env, PPO)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "sbx" else name)
    with pytest.raises(ConfigError, match=r"^sbx-ppo needs sbx: pip install 'reppo\[sbx\]'$"):
        sb3.suited(env, SBX_PPO)


@needs_sb3
@pytest.mark.parametrize(
    ("env", "config", "line"),
    [
        ("probe:TargetReach", PPO, "sb3-ppo takes Gymnasium's environments, such as"),
        ("gymnasium:CartPole-v1", SAC, "has discrete actions; sb3-sac is for continuous ones"),
        pytest.param(
            "gymnasium:CartPole-v1", SBX_SAC, "has discrete actions; sbx-sac is for continuous ones", marks=needs_sbx
        ),
    ],
)
def test_environments_that_it_cannot_take(env: str, config: Any, line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        sb3.suited(envs.make(env), config)


class Parts(gymnasium.Env):
    """Observations in a dict: two numbers for the actor, and one that is the critic's alone."""

    observation_space = gymnasium.spaces.Dict(
        {
            "velocity": gymnasium.spaces.Box(-1, 1, ()),
            "position": gymnasium.spaces.Box(-1, 1, (2,)),
            "privileged_state": gymnasium.spaces.Box(-1, 1, (1,)),
        }
    )
    action_space = gymnasium.spaces.Box(-1, 1, (1,))

    def obs(self) -> dict[str, np.ndarray]:
        values = {"velocity": 0.1, "position": [0.2, 0.3], "privileged_state": [0.4]}
        return {key: np.array(value, np.float32) for key, value in values.items()}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return self.obs(), {}

    def step(self, action: Any) -> Any:
        return self.obs(), 0.0, False, False, {}


gymnasium.register("Parts-v0", lambda **_: Parts(), max_episode_steps=5)


def test_a_dict_of_observations_is_one_vector_in_training_and_in_evaluation() -> None:
    env: Any = envs.make("gymnasium:Parts-v0")
    spec = env.spec()
    in_training = sb3.with_one_vector(gymnasium.make("Parts-v0"), spec)
    assert in_training.observation_space.shape == (3,)
    first, _ = in_training.reset(seed=0)
    successor, *_ = in_training.step(np.zeros(1, np.float32))
    simulator = env.simulator(2, 5)
    seen = sb3.one_vector(simulator.reset(0), spec)
    simulator.close()
    for obs in (first, successor, *seen):
        np.testing.assert_allclose(obs, [0.2, 0.3, 0.1])  # in the order of their names
        assert obs.dtype == np.float32


@pytest.mark.parametrize(("kind", "config"), BOTH_LIBRARIES)
@pytest.mark.parametrize("env", ["Pendulum-v1", "CartPole-v1", "Parts-v0"])
def test_the_greedy_action_is_the_models(env: str, kind: Any, config: Any) -> None:
    if env == "CartPole-v1" and isinstance(config, SACConfig):
        pytest.skip("for continuous actions")
    agent = kind(envs.make(f"gymnasium:{env}"), dataclasses.replace(config, normalize=True), seed=0)
    size = agent.spec.obs_size(agent.spec.actor_keys)
    obs = np.random.default_rng(0).normal(size=(5, size)).astype(np.float32)
    agent.vector.obs_rms.mean, agent.vector.obs_rms.var = np.full(size, 0.5), np.full(size, 4.0)
    model_action, _ = agent.model.predict(np.clip((obs - 0.5) / np.sqrt(4 + 1e-8), -10, 10), deterministic=True)
    by_key = {"position": obs[:, :2], "velocity": obs[:, 2:], "privileged_state": 9 * obs[:, :1]}
    action = agent.act(by_key if isinstance(agent.spec.observation, dict) else obs)
    if agent.spec.discrete:
        np.testing.assert_array_equal(action, model_action)
    else:
        np.testing.assert_allclose(agent.spec.action_high * action, model_action, atol=1e-6)
    agent.close()


@pytest.mark.parametrize(("kind", "config"), BOTH_LIBRARIES)
def test_memory_is_counted(kind: Any, config: Any) -> None:
    agent = kind(envs.make("gymnasium:Pendulum-v1"), config, seed=0)
    # Three observations, one action. PPO: two networks 3-8-1, one log standard deviation; six numbers a step.
    ppo = {
        "parameters": 3 * FLOAT * (2 * (4 * 8 + 9) + 1),
        "batch": FLOAT * (3 + 1 + 6) * 16 * 2,
        "replay": 0,
    }
    # SAC: an actor 3-8-2, two critics 4-8-1 and their targets.
    sac = {
        "parameters": FLOAT * (3 * (4 * 8 + 18) + 4 * 2 * (5 * 8 + 9)),
        "batch": FLOAT * (2 * 3 + 1 + 3) * 8,
        "replay": FLOAT * (2 * 3 + 1 + 3) * 100,
    }
    assert agent.memory_parts() == (ppo if isinstance(config, PPOConfig) else sac)
    agent.close()


@pytest.mark.parametrize(("kind", "config"), BOTH_LIBRARIES)
def test_a_policy_with_a_number_that_is_none_is_not_sound(kind: Any, config: Any) -> None:
    agent = kind(envs.make("gymnasium:Pendulum-v1"), config, seed=0)
    assert agent.sound(None)
    if kind is sbx.Agent:
        state = agent.model.policy.actor_state
        leaves, structure = jax.tree.flatten(state.params)
        params = jax.tree.unflatten(structure, [leaves[0].at[0].set(np.nan), *leaves[1:]])
        agent.model.policy.actor_state = state.replace(params=params)
    else:
        next(agent.model.policy.parameters()).data[0] = np.nan
    assert not agent.sound(None)
    agent.close()


@pytest.mark.parametrize(
    "algorithm",
    [
        *(pytest.param(name, marks=needs_sb3) for name in ("sb3-ppo", "sb3-sac")),
        *(pytest.param(name, marks=needs_sbx) for name in ("sbx-ppo", "sbx-sac")),
    ],
)
def test_a_run_leaves_its_files_and_the_same_seed_the_same_numbers(
    algorithm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    of_kind = {"ppo": "num_envs=2 n_steps=16 batch_size=16", "sac": "learning_starts=8 batch_size=8"}
    library, settings = {"sb3": "Stable-Baselines3", "sbx": "SBX"}[algorithm[:3]], of_kind[algorithm[-3:]]
    words = ["baseline", algorithm, "gymnasium:Pendulum-v1", "--seed", "3", "--set", *settings.split()]
    words += [word for name, value in SHORT.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    tables = []
    for name in "ab":
        assert cli.main([*words, "--out", str(tmp_path / name)]) == 0
        with (tmp_path / name / "evaluations.csv").open(newline="") as file:
            tables.append([(row["env_steps"], row["eval/return"]) for row in csv.DictReader(file)])
    assert tables[0] == tables[1]
    assert [steps for steps, _ in tables[0]] == ["0", "64", "128"]
    assert "Next:" not in capsys.readouterr().out  # there is no policy that `reppo eval` could read
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    assert (summary["algorithm"], summary["env_steps"]) == (algorithm, 128)
    assert cli.main(["resume", str(tmp_path / "a")]) == 2
    assert f"a run of {library}'s {algorithm} cannot be continued; `reppo baseline" in capsys.readouterr().err


def test_presets_are_found_by_name() -> None:
    assert set(algorithms.BASELINES) == {"fasttd3", "ppo", "sac", "sb3-ppo", "sb3-sac", "sbx-ppo", "sbx-sac"}
    assert baselines.configured("sb3-sac", "gymnasium:Pendulum-v1", "cpu", ["tau=0.01"], {}).tau == 0.01
