"""Brax's PPO and SAC: they learn here, are evaluated as all others, leave a run's files, and are never half a result."""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
import json
import os
import re
import shlex
import signal
import threading
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brax.envs.wrappers import training
from brax.training import replay_buffers, types
from brax.training.acme import running_statistics, specs

import reppo
from reppo import cli, envs
from reppo.baselines import brax_agents, brax_config, configured
from reppo.baselines.brax_config import BraxConfig, PPOConfig, SACConfig, ppo_presets, sac_presets
from reppo.bench.runner import Job, collected
from reppo.bench.suites import DMC23
from reppo.config import preset
from reppo.envs.brax_training import AsBrax
from reppo.envs.probes import Terminating, Truncating
from reppo.errors import ConfigError
from reppo.evaluate import evaluate_policy
from reppo.export import load_policy, save_policy
from reppo.interrupt import KILLED
from reppo.options import options_of

SHORT = {
    "ppo": "num_envs=8 batch_size=8 num_minibatches=4 unroll_length=20 num_updates_per_batch=4 learning_rate=3e-3 "
    "discounting=0.9 policy_hidden_layer_sizes=16,16 value_hidden_layer_sizes=16,16",
    "sac": "num_envs=8 batch_size=64 min_replay_size=64 max_replay_size=4096 grad_updates_per_step=2 "
    "discounting=0.9 hidden_layer_sizes=32,32",
}
STEPS = {"ppo": 16_000, "sac": 6_000}
EVALS, EPISODES = 2, 20


def words(algorithm: str, out: Path, *more: str, env: str = "probe:TargetReach") -> list[str]:
    return ["baseline", algorithm, env, "--preset", "cpu", "--out", str(out), *more]


@pytest.fixture(scope="module", params=["ppo", "sac"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a short run that learns. Do not change it."""
    algorithm, out = request.param, tmp_path_factory.mktemp("baseline") / "run"
    budget = ["--total-steps", STEPS[algorithm], "--num-evals", EVALS, "--eval-episodes", EPISODES]
    more = [*map(str, budget), "--seed", "3", "--set", *SHORT[algorithm].split()]
    assert cli.main(words(algorithm, out, *more)) == 0
    return out


def evaluations(directory: Path) -> list[dict[str, float]]:
    with (directory / "evaluations.csv").open(newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def test_it_learns(run: Path) -> None:
    first, *_, last = evaluations(run)
    assert first["eval/return"] < 35.0
    assert last["eval/return"] > 42.0  # of 50; to stand still earns half


def test_it_leaves_what_the_bench_and_the_report_read(run: Path) -> None:
    description, summary = (json.loads((run / f"{name}.json").read_text()) for name in ("config", "summary"))
    algorithm = description["algorithm"]
    rows = evaluations(run)
    assert [row["env_steps"] for row in rows[:1]] == [0]
    assert len(rows) == EVALS + 1
    assert STEPS[algorithm] <= rows[-1]["env_steps"] == summary["env_steps"] < 1.1 * STEPS[algorithm]
    assert {row["eval/episodes"] for row in rows} == {EPISODES}
    assert {row["eval/length"] for row in rows} == {50}
    given = dict(word.split("=") for word in SHORT[algorithm].split())
    assert {name: description["config"][name] for name in ("num_envs", "batch_size")} == {
        name: int(given[name]) for name in ("num_envs", "batch_size")
    }
    assert description["versions"]["brax"]
    assert summary["seeds"][0]["return_mean"] == pytest.approx(rows[-1]["eval/return"])
    assert summary["computed_memory_bytes"].keys() == {"parameters", "batch", "replay"}
    assert {path.name for path in run.iterdir()} >= {"curve.png", "policy.npz", "best.npz"}
    base = dataclasses.replace(preset("cpu"), total_steps=STEPS[algorithm])
    job = Job("s", algorithm, "probe:TargetReach", (3,), base, "cpu")
    (record,) = collected(job, run, "complete", "", 1.0)
    assert record.returns[-1] == pytest.approx(rows[-1]["eval/return"])
    assert record.peak_memory_bytes == summary["peak_memory_bytes"] > 0


def test_the_saved_policy_has_the_return_that_was_recorded(run: Path) -> None:
    # The same episodes: what Brax computed in JAX, and what the file says to NumPy's rules.
    found = evaluate_policy(load_policy(run), envs.make("probe:TargetReach"), episodes=EPISODES, seed=3)
    assert found["returns"].mean() == pytest.approx(evaluations(run)[-1]["eval/return"], rel=1e-3)


def test_it_cannot_be_resumed_and_says_what_starts_it_again(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    assert cli.main(["resume", str(run)]) == cli.USER_ERROR
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    found = re.search(r"cannot be continued; `reppo (baseline [^`]*)` starts it again", line)
    assert found
    again = cli.arguments("baseline", shlex.split(found[1])[1:])
    given = {name: getattr(again, name) for name in ("total_steps", "num_evals", "eval_episodes")}
    config = configured(again.algorithm, again.env, again.preset, again.set, given)
    written = json.loads((run / "config.json").read_text())["config"]
    assert json.loads(json.dumps(dataclasses.asdict(config))) == written
    assert before == {path.name: path.read_bytes() for path in run.iterdir()}


def test_the_missing_function_is_lent_to_jax_and_taken_back() -> None:
    had = hasattr(jax, "device_put_replicated")
    with brax_agents.jax_of_brax():
        array = jax.device_put_replicated(jnp.arange(3.0), jax.devices()[:1])  # pyright: ignore
        np.testing.assert_array_equal(array, [[0.0, 1.0, 2.0]])
    assert hasattr(jax, "device_put_replicated") == had


# ------------------------------------------------------------------------------------------- environments


def test_an_environment_of_ours_by_braxs_protocol() -> None:
    def rewards(env: Any, length: int) -> list[tuple[float, float, float]]:
        wrapped = training.wrap(AsBrax(env), episode_length=length)
        state = jax.jit(wrapped.reset)(jax.random.split(jax.random.PRNGKey(0), 2))
        seen = []
        for _ in range(3):
            state = jax.jit(wrapped.step)(state, jnp.zeros((2, 1)))
            seen.append(tuple(float(x[0]) for x in (state.done, state.info["truncation"], state.obs[:, 0])))
        return seen

    # Both go 0, 1, 0: one ends there, the other is cut. Then both are in their first state again.
    assert rewards(Terminating(), 9) == [(0.0, 0.0, 1.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)]
    assert rewards(Truncating(), 2) == [(0.0, 0.0, 1.0), (1.0, 1.0, 0.0), (0.0, 0.0, 1.0)]


class Noisy(reppo.Env):
    """Bounds that are not those of the policy; randomness in every step."""

    action_size = 2
    action_low, action_high = np.array([0.0, -4.0]), np.array([10.0, 4.0])
    episode_length = 5

    def reset(self, key: jax.Array) -> tuple[Any, jax.Array]:
        obs = jax.random.normal(key, (1,))
        return obs, obs

    def step(self, state: Any, action: jax.Array, key: jax.Array) -> tuple[Any, reppo.Transition]:
        obs = jax.random.normal(key, (1,))
        return obs, reppo.Transition(obs, action[0] + action[1], jnp.array(False))


def test_actions_are_mapped_to_the_bounds_and_every_step_has_a_key_of_its_own() -> None:
    env: Any = AsBrax(Noisy())
    state = env.reset(jax.random.PRNGKey(0))
    after = env.step(state, jnp.array([-1.0, 1.0]))
    again = env.step(after, jnp.array([0.5, 0.0]))
    assert (float(after.reward), float(again.reward)) == (0.0 + 4.0, 7.5 + 0.0)
    assert len({float(s.obs[0]) for s in (state, after, again)}) == 3


# ------------------------------------------------------------------------------------------- policies and memory


class Dict(Noisy):
    def reset(self, key: jax.Array) -> tuple[Any, Any]:
        obs = {"state": jax.random.normal(key, (2,)), "privileged_state": jax.random.normal(key, (3,))}
        return obs, obs

    def step(self, state: Any, action: jax.Array, key: jax.Array) -> tuple[Any, reppo.Transition]:
        return state, reppo.Transition(state, action[0], jnp.array(False))


@pytest.mark.parametrize(
    ("env", "config"),
    [
        (Noisy(), PPOConfig()),
        (Noisy(), PPOConfig(normalize_observations=False)),
        (Noisy(), SACConfig()),
        (Dict(), PPOConfig(value_obs_key="privileged_state")),
    ],
)
def test_a_saved_policy_is_braxs(env: reppo.Env, config: BraxConfig, tmp_path: Path) -> None:
    spec = env.spec()
    agent: Any = brax_agents.AGENTS[type(config)](env, spec, config)
    fresh: Any = running_statistics.init_state(jax.tree.map(lambda x: specs.Array(x.shape, x.dtype), spec.observation))
    statistics = fresh.replace(
        mean=jax.tree.map(lambda x: jnp.full(x.shape, 0.3), spec.observation),
        # Down to the smallest that there is in Brax: a constant observation's.
        std=jax.tree.map(lambda x: jnp.geomspace(2.0, 1e-6, x.shape[0]), spec.observation),
    )
    params = (statistics, agent.networks.policy_network.init(jax.random.key(1)))
    obs: Any = jax.vmap(env.reset)(jax.random.split(jax.random.key(0), 7))[1]
    normalize = config.normalize_observations
    policy = brax_agents.exported(jax.device_get(params), agent.policy_keys, normalize, agent.activation)
    save_policy(tmp_path / "policy.npz", policy, dataclasses.replace(spec, actor_keys=agent.policy_keys))
    action = load_policy(tmp_path / "policy.npz")(jax.device_get(obs))
    expected = env.action_low + (np.asarray(agent.act(params, obs)) + 1) / 2 * (env.action_high - env.action_low)
    np.testing.assert_allclose(action, expected, rtol=1e-4, atol=1e-4)


def test_the_replay_memory_is_as_large_as_braxs_own() -> None:
    config = SACConfig(max_replay_size=10_000)
    agent = brax_agents.SAC(Noisy(), Noisy().spec(), config)
    obs, action, zero = jnp.zeros(1), jnp.zeros(2), 0.0
    extras = {"state_extras": {"truncation": zero}, "policy_extras": {}}
    row = types.Transition(obs, action, zero, zero, obs, extras)  # pyright: ignore[reportArgumentType]
    queue = replay_buffers.UniformSamplingQueue(config.max_replay_size, row, config.batch_size)
    data = jax.eval_shape(queue.init, jax.random.PRNGKey(0)).data
    assert agent.memory_parts()["replay"] == data.size * 4 == 10_000 * (2 * 1 + 2 + 3) * 4


# ------------------------------------------------------------------------------------------- settings


def test_published_settings_are_those_of_the_library() -> None:
    # CartpoleBalance has the settings that most tasks have: those of the defaults.
    assert ppo_presets("playground:CartpoleBalance")["published"] == PPOConfig()
    assert sac_presets("playground:CartpoleBalance")["published"] == SACConfig()
    # 60 million steps are 62 iterations, fewer than 9 x 10 stretches: a reset after each. 100 million are 102.
    assert ppo_presets("playground:AcrobotSwingup")["published"] == PPOConfig(total_steps=100_000_000, reset_every=2)
    assert ppo_presets("playground:BallInCup")["published"] == PPOConfig(discounting=0.95)
    # The library looks for this task under another spelling, and so has no settings of its own for it.
    assert ppo_presets("playground:PendulumSwingup")["published"] == PPOConfig()
    robot = ppo_presets("playground:G1JoystickFlatTerrain")["published"]
    assert (robot.value_obs_key, robot.policy_hidden_layer_sizes) == ("privileged_state", (512, 256, 128))
    # 200 million steps are 1221 iterations in 19 stretches.
    assert (robot.num_envs, robot.clipping_epsilon, robot.max_grad_norm, robot.reset_every) == (8192, 0.2, 1.0, 65)
    assert ppo_presets("brax:ant")["published"].num_envs == 4096
    assert sac_presets("brax:hopper")["published"].grad_updates_per_step == 64
    with pytest.raises(ConfigError, match="repeat every action"):
        ppo_presets("playground:PandaRobotiqPushCube")


@pytest.mark.parametrize("presets", [ppo_presets, sac_presets])
def test_the_cpu_preset_differs_in_what_is_documented_alone(presets: Any) -> None:
    budget = {"total_steps", "num_evals", "eval_episodes"}
    own = {"num_envs", "batch_size"} | ({"max_replay_size"} if presets is sac_presets else set())
    tasks = [f"playground:{task}" for task in DMC23]
    tasks += [f"brax:{task}" for task, _ in brax_config.BRAX] + ["playground:G1JoystickFlatTerrain", "gymnax:Pendulum-v1"]
    for env in tasks:
        published, cpu = (presets(env)[name] for name in ("published", "cpu"))
        published.validate()
        cpu.validate()
        changed = {f.name for f in dataclasses.fields(cpu) if getattr(cpu, f.name) != getattr(published, f.name)}
        assert changed <= budget | own
        if presets is ppo_presets and env.startswith("playground:C"):  # the same steps of each environment
            assert cpu.iteration_steps / cpu.num_envs == published.iteration_steps / published.num_envs == 480
        elif presets is sac_presets and env.startswith("playground:"):  # how often a step is learned from
            learned = [c.batch_size * c.grad_updates_per_step / c.num_envs for c in (cpu, published)]
            assert learned == [32, 32]


def test_every_setting_is_documented(root: Path) -> None:
    page = (root / "docs" / "baselines.md").read_text()
    ppo, sac = (list(presets("playground:CartpoleBalance").values()) for presets in (ppo_presets, sac_presets))
    for cls, configs in ((BraxConfig, [*ppo, *sac]), (PPOConfig, ppo), (SACConfig, sac)):
        section = re.split(r"\n(?:#|\w|<!--)", page.partition(f"<!-- settings: the rows of {cls.__name__}")[2])[0]
        rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| `")]
        assert [(name.strip("`"), meaning) for name, *_, meaning in rows] == [(o.name, o.meaning) for o in options_of(cls)]
        for name, *cells, _ in rows:
            values = [getattr(config, name.strip("`")) for config in configs]
            assert [cell.replace(" ", "") for cell in cells] == [shown(value) for value in values], name


def shown(value: Any) -> str:
    """A setting's value as the tables have it, without spaces."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return "unset" if value is None else str(value).lower()


@pytest.mark.parametrize(
    "config",
    [
        PPOConfig(num_envs=1000),
        PPOConfig(reset_every=-1),
        PPOConfig(gae_lambda=1.5),
        PPOConfig(discounting=2.0),
        PPOConfig(value_hidden_layer_sizes=()),
        PPOConfig(policy_hidden_layer_sizes=(16, 0)),
        SACConfig(total_steps=8192),
        SACConfig(max_replay_size=100),
        SACConfig(tau=2.0),
        SACConfig(grad_updates_per_step=0),
    ],
)
def test_values_that_cannot_be_trained_with_are_refused(config: BraxConfig) -> None:
    with pytest.raises(ConfigError):
        config.validate()


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        ("ppo probe:TargetReach --seeds 2", "Brax's ppo trains one seed at a time; leave out --seeds"),
        ("ppo probe:Choice", "probe:Choice has discrete actions"),
        ("ppo gymnasium:Pendulum-v1", "steps on the host; Brax's PPO takes environments that are written in JAX"),
        ("ppo probe:TargetReach --preset gpu", "no preset 'gpu'; did you mean cpu"),
        ("ppo probe:TargetReach --set gamma=0.9", "no setting 'gamma'"),
        ("ppo probe:TargetReach --set value_hidden_layer_sizes=16,wide", "must be a whole number, got 'wide'"),
        ("sac probe:TargetReach --total-steps 5000", "must go beyond min_replay_size"),
        ("sac probe:TargetReach --set max_replay_size=2000000000 hidden_layer_sizes=9", "GiB of memory"),
    ],
)
def test_mistakes_are_one_line(command: str, complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    algorithm, env, *more = command.split()
    assert cli.main(words(algorithm, tmp_path / "run", *more, env=env)) == cli.USER_ERROR
    line = capsys.readouterr().err
    assert complaint in line
    assert line.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_missing_brax_names_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert cli.main(words("sac", tmp_path / "run")) == cli.USER_ERROR
    assert "Brax's, which is not installed: pip install 'reppo[brax]'" in capsys.readouterr().err


def test_dict_observations_are_refused_where_brax_does_not_take_them() -> None:
    with pytest.raises(ConfigError, match="dict observations"):
        brax_agents.SAC(Dict(), Dict().spec(), SACConfig())
    with pytest.raises(ConfigError, match="no observation entry 'pixels'; it has"):
        brax_agents.PPO(Dict(), Dict().spec(), PPOConfig(policy_obs_key="pixels"))


def test_networks_that_are_not_finite_end_a_run_which_then_does_not_look_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(self: Any, seed: int, evaluate: Any) -> None:
        statistics = running_statistics.init_state(specs.Array((2,), jnp.float32))
        network = self.networks.policy_network.init(jax.random.key(seed))
        evaluate(0, 2, 0, (statistics, network))
        evaluate(1, 2, 800, (statistics, jax.tree.map(lambda x: x.at[0].set(jnp.nan), network)))

    monkeypatch.setattr(brax_agents.PPO, "train", train)
    out = tmp_path / "run"
    more = ["--seed", "7", "--num-evals", "2", "--eval-episodes", "4", "--set", *SHORT["ppo"].split()]
    assert cli.main(words("ppo", out, *more)) == cli.DIVERGED
    assert "seed 7 stopped at 800 steps: its networks are not finite any more" in capsys.readouterr().err
    assert [row["env_steps"] for row in evaluations(out)] == [0]
    assert not (out / "summary.json").exists()
    base = preset("cpu")
    (record,) = collected(Job("s", "ppo", "probe:TargetReach", (7,), base, "cpu"), out, "diverged", "why", 1.0)
    assert record.status == "diverged"


def test_a_signal_ends_it_with_one_line_and_leaves_nothing_that_looks_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    codes: list[int] = []
    ended = threading.Event()

    def leave(code: int) -> None:
        codes.append(code)
        ended.set()

    def train(self: Any, seed: int, evaluate: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        assert ended.wait(10)
        raise KeyboardInterrupt  # as dead as this process can be

    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(brax_agents.PPO, "train", train)
    cli.main(words("ppo", tmp_path / "run"))
    assert codes == [KILLED + signal.SIGTERM]
    assert "reppo: stopped; a run of Brax's ppo cannot be continued\n" in capfd.readouterr().err
    assert not (tmp_path / "run" / "summary.json").exists()
