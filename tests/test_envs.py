"""Environments by name and from files, what is refused, and the adapters against their simulators' own steps."""

from __future__ import annotations

import dataclasses
import functools
import types
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import TINY, Array

import reppo
from reppo import envs
from reppo.config import Config
from reppo.envs import probes, value_ranges
from reppo.envs.autoreset import AutoReset
from reppo.envs.base import Env, Transition
from reppo.envs.brax_style import BraxStyle, longest_scan
from reppo.envs.spec import EnvSpec, resolve, suggest_keys
from reppo.errors import ConfigError

# ------------------------------------------------------------------------------------------- adapters

N = 2


def jax_env(name: str) -> Env:
    env = envs.make(name)
    assert isinstance(env, Env)
    return env


class Steps(NamedTuple):
    """What an adapter and what its simulator said in ``T`` steps from the same states; leaves ``[T, N, ...]``."""

    obs: Array  #: before the step
    next_obs: Array
    after: Array  #: what the policy sees next
    reward: Array
    terminated: Array
    truncated: Array
    own_obs: Array  #: the simulator's own successor
    own_reward: Array
    own_done: Array
    first_obs: Array  #: ``[N, D]``


def compare(env: Env, own_step: Any, episode_length: int, actions: Array) -> Steps:
    """Step an adapter with resets and, from the same states, its simulator by hand, in one program."""
    vector_env = AutoReset(env, N, episode_length)

    @jax.jit
    def run(key: jax.Array, actions: jax.Array) -> Any:
        def step(state: Any, inputs: Any) -> Any:
            key, action = inputs
            keys = jax.random.split(jax.random.split(key)[0], N)  # as `AutoReset.step_alone` documents
            own = jax.vmap(own_step)(state.env, vector_env.scale(action), keys)
            after, row = vector_env.step(state, action, key)
            ends = row.reward, row.terminated, row.truncated
            return after, (state.obs, row.next_obs, row.obs, *ends, *own)

        start = vector_env.begin(vector_env.first(key))
        return *jax.lax.scan(step, start, (jax.random.split(key, len(actions)), actions))[1], start.obs

    return Steps(*jax.device_get(run(jax.random.key(0), jnp.asarray(actions, jnp.float32))))


def check(steps: Steps, episode_length: int) -> None:
    """What holds for every adapter."""
    np.testing.assert_allclose(steps.next_obs, steps.own_obs, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(steps.reward, steps.own_reward, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(steps.terminated, steps.own_done.astype(bool))
    assert not (steps.terminated & steps.truncated).any()
    done = steps.terminated | steps.truncated
    for n in range(N):
        elapsed = 0
        for t in range(len(done)):
            elapsed += 1
            assert steps.truncated[t, n] == (elapsed == episode_length and not steps.terminated[t, n])
            follows = steps.first_obs[n] if done[t, n] else steps.next_obs[t, n]
            np.testing.assert_array_equal(steps.after[t, n], follows)
            if t + 1 < len(done):
                np.testing.assert_array_equal(steps.obs[t + 1, n], follows)
            elapsed = 0 if done[t, n] else elapsed
    # The claim is worth something only where the two differ.
    assert (np.abs(steps.next_obs - steps.after)[done].max(-1) > 1e-4).all()


def own_brax_step(env: Env) -> Any:
    assert isinstance(env, BraxStyle)
    inner = env.inner

    def step(state: Any, action: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        del key
        state = inner.step(state, action)
        return state.obs, state.reward, state.done

    return step


def test_playground_keeps_the_true_successor() -> None:
    env = jax_env("playground:CartpoleBalance")
    actions = np.tile(np.array([[[0.8], [-0.5]]]), (5, 1, 1))
    steps = compare(env, own_brax_step(env), 2, actions)
    check(steps, 2)
    assert steps.truncated.sum() == 2 * N
    assert env.episode_length == 1000
    assert env.spec().value_range == (0.0, 150.0)
    assert env.spec().obs_size(()) == 5


@pytest.mark.parametrize(
    ("name", "cheap"), [("playground:CheetahRun", False), ("playground:ReacherEasy", True), ("brax:inverted_pendulum", True)]
)
def test_a_reset_that_simulates_is_not_cheap(name: str, cheap: bool) -> None:
    assert jax_env(name).cheap_reset == cheap


def test_the_longest_scan_is_found_within_others() -> None:
    def steps(x: jax.Array, number: int) -> jax.Array:
        return jax.lax.scan(lambda carry, _: (carry + 1, None), x, length=number)[0]

    def nested(x: jax.Array) -> jax.Array:
        inner = jax.jit(lambda x: jax.lax.cond(x > 0, lambda x: steps(x, 4), lambda x: x, x))
        return jax.lax.scan(lambda carry, _: (inner(carry), None), steps(x, 5), length=3)[0]

    assert longest_scan(jax.make_jaxpr(nested)(0.0)) == 12
    assert longest_scan(jax.make_jaxpr(lambda x: steps(x, 5))(0.0)) == 5
    assert longest_scan(jax.make_jaxpr(jnp.sin)(0.0)) == 1


def test_brax_terminates_and_truncates() -> None:
    # Pushed with all its might the pole falls; with nothing it stays up beyond the limit.
    env = jax_env("brax:inverted_pendulum")
    actions = np.tile(np.array([[[1.0], [0.0]]]), (30, 1, 1))
    steps = compare(env, own_brax_step(env), 12, actions)
    check(steps, 12)
    assert steps.terminated[:, 0].any()
    assert steps.truncated[:, 1].sum() == 2
    assert not steps.terminated[:, 1].any()


def test_gymnax_equals_the_pendulum_by_hand() -> None:
    env = jax_env("gymnax:Pendulum-v1")
    assert (env.spec().action_low, env.spec().action_high, env.episode_length) == (-2.0, 2.0, 200)

    def own_step(state: Any, action: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        # Gymnasium's Pendulum-v1: g = 10, m = l = 1, dt = 0.05; the cost is that of the state before the step.
        angle, velocity, torque = state.theta, state.theta_dot, action[0]
        wrapped = (angle + jnp.pi) % (2 * jnp.pi) - jnp.pi
        cost = wrapped**2 + 0.1 * velocity**2 + 0.001 * torque**2
        velocity = jnp.clip(velocity + (15.0 * jnp.sin(angle) + 3.0 * torque) * 0.05, -8.0, 8.0)
        angle = angle + velocity * 0.05
        return jnp.stack([jnp.cos(angle), jnp.sin(angle), velocity]), -cost, jnp.array(False)

    actions = np.linspace(-1, 1, 8 * N).reshape(8, N, 1)
    steps = compare(env, own_step, 3, actions)
    check(steps, 3)
    assert steps.truncated.sum() == 2 * N


def test_every_gymnax_task_has_what_training_needs() -> None:
    for name in envs.SUITES["gymnax"].adapter().names():
        spec = resolve(envs.make(f"gymnax:{name}").spec(), Config())
        assert spec.value_range is not None
        assert (spec.action_low < spec.action_high).all()


@dataclasses.dataclass
class FakeState:
    info: Any

    def replace(self, info: Any) -> FakeState:
        return FakeState(info)


def test_a_key_inside_a_brax_state_is_replaced() -> None:
    env = BraxStyle(Named("inner"), "fake", 10, None)
    key = jax.random.key(3)
    for rng in (jax.random.key(0), jax.random.PRNGKey(0)):
        after = env.reseed(FakeState({"rng": rng, "steps": 1}), key).info
        assert after["steps"] == 1
        assert after["rng"].dtype == rng.dtype
        assert after["rng"].shape == rng.shape
        data = jax.random.key_data(after["rng"]) if rng.ndim == 0 else after["rng"]
        np.testing.assert_array_equal(data, jax.random.key_data(key))
    for without in (FakeState({"steps": 1}), FakeState(None)):
        assert env.reseed(without, key) is without


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class CountState:
    obs: jax.Array
    reward: jax.Array
    done: jax.Array

    def replace(self, **changes: Any) -> CountState:
        return dataclasses.replace(self, **changes)


class Count:
    """It counts its steps, pays the count, and is over at three."""

    action_size, dt = 1, 0.5

    def reset(self, key: jax.Array) -> CountState:
        return CountState(jnp.zeros(1), jnp.array(0.0), jnp.array(0.0))

    def step(self, state: CountState, action: jax.Array) -> CountState:
        count = state.obs + action
        return CountState(count, count[0], (count[0] == 3).astype(float))


def test_an_action_is_repeated_until_the_episode_ends() -> None:
    env, key, action = BraxStyle(Count(), "fake", 10, None, action_repeat=2), jax.random.key(0), jnp.ones(1)
    assert (env.episode_length, env.step_seconds) == (5, 1.0)
    state, obs = env.reset(key)
    state, first = env.step(state, action, key)
    state, second = env.step(state, action, key)
    found = [(float(t.obs[0]), float(t.reward), bool(t.terminated)) for t in (first, second)]
    assert found == [(2.0, 1.0 + 2.0, False), (3.0, 3.0, True)], "nothing comes after the end"
    # A stored first state may carry the flag of the episode before.
    _, third = env.step(state.replace(obs=obs), action, key)
    assert (float(third.reward), bool(third.terminated)) == (3.0, False)


def test_robots_whose_hands_are_paid_otherwise_have_no_value_range() -> None:
    ranges = {
        name: envs.make(f"envpool:MuJoCoPlayground/{name}-v1").spec().value_range for name in ("PandaPickCube", "Go1Getup")
    }
    assert ranges == {"PandaPickCube": None, "Go1Getup": (-10.0, 10.0)}
    registry = envs.SUITES["playground"].adapter()._registry()  # pyright: ignore
    assert all(value_ranges.of_playground(name) is None for name in registry.manipulation.ALL_ENVS)
    assert all(value_ranges.of_playground(name) == (-10.0, 10.0) for name in registry.locomotion.ALL_ENVS)


class Named:
    """As much of a Brax environment as the adapter looks at."""

    action_size = 2
    observation_size = 3

    def __init__(self, name: str = ""):
        self.name = name

    def reset(self, key: jax.Array) -> Any: ...

    def step(self, state: Any, action: jax.Array) -> Any: ...


# ------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize("name", probes.names())
def test_probes_are_made_by_name(name: str) -> None:
    env = envs.make(f"probe:{name}")
    assert env.name == f"probe:{name}"
    assert isinstance(env, probes.PROBES[name])


@pytest.mark.parametrize("how", [probes.TargetReach, probes.TargetReach(), lambda: probes.TargetReach()])
def test_an_environment_from_python(how: Any) -> None:
    env = envs.make(how)
    assert isinstance(env, probes.TargetReach)
    assert env.name == "TargetReach"


@pytest.mark.parametrize("name", ["brax:inverted_pendulum@spring", "playground:CartpoleBalance@jax"])
def test_physics_is_chosen_in_the_name_which_makes_it_again(name: str) -> None:
    env = jax_env(name)
    assert env.spec().name == name
    assert isinstance(env, BraxStyle)
    if name.startswith("brax"):
        assert "spring" in env.inner._pipeline.__name__


def test_suites_know_their_tasks() -> None:
    names = {suite: envs.SUITES[suite].adapter().names() for suite, about in envs.SUITES.items() if not envs.missing(about)}
    assert {"CartpoleBalance", "CheetahRun", "HumanoidWalk", "PendulumSwingup"} <= set(names["playground"])
    assert {"ant", "halfcheetah"} <= set(names["brax"])
    assert "Pendulum-v1" in names["gymnax"]
    assert all(list_ == sorted(list_) for list_ in names.values())


def test_a_package_that_lacks_another_one_is_named_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Any:
        raise ModuleNotFoundError("No module named 'six'")

    adapter = types.SimpleNamespace(names=broken, make=lambda task: broken())
    monkeypatch.setattr(envs.Suite, "adapter", lambda suite: adapter)
    for lists_all in (True, False):
        suite = dataclasses.replace(envs.SUITES["probe"], lists_all=lists_all)
        monkeypatch.setitem(envs.SUITES, "probe", suite)
        with pytest.raises(ConfigError) as raised:
            envs.make("probe:TargetReach")
        says = "probe is installed, but it cannot be imported (ModuleNotFoundError: No module named 'six'): "
        assert str(raised.value) == says + suite.install
    with pytest.raises(ConfigError, match=r"^an environment is named suite:Task, got 'Pendulum'"):
        envs.make("Pendulum")  # looked for in all suites, of which none can be imported


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("playground:CheetahRum", "playground has no task 'CheetahRum'; did you mean CheetahRun"),
        ("playground:CheetahRum@jax", "playground has no task 'CheetahRum'; did you mean CheetahRun"),
        ("brax:ant@springs", "brax has no physics 'springs'; it has generalized, mjx, positional, spring"),
        ("probe:targetreach", "did you mean TargetReach?"),
        ("probe:zzzzzz", "probe has no task 'zzzzzz'; `reppo envs` lists them"),
        ("playgroud:CheetahRun", "no suite 'playgroud'; did you mean playground?"),
        ("zzz:CheetahRun", "no suite 'zzz'; `reppo envs` lists them"),
        ("cheetahrun", "an environment is named suite:Task; did you mean playground:CheetahRun?"),
        ("CheetahRum", "an environment is named suite:Task, got 'CheetahRum'; did you mean playground:CheetahRun"),
        ("probe:", "'probe:' names no task of probe, as in probe:Task; `reppo envs probe` lists them"),
        ("brax", "'brax' names no task of brax"),
        ("", "an environment is named suite:Task, got ''; `reppo envs` lists them"),
    ],
)
def test_names_that_do_not_exist_are_answered_with_the_nearest(name: str, says: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        envs.make(name)
    assert says in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_suite_that_is_not_installed_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = dataclasses.replace(envs.SUITES["brax"], package="no_such_package")
    monkeypatch.setitem(envs.SUITES, "brax", absent)
    with pytest.raises(ConfigError, match=r"brax:ant needs no_such_package: pip install 'reppo\[brax\]'"):
        envs.make("brax:ant")


# ------------------------------------------------------------------------------------------- files

OWN = """
import jax.numpy as jnp
import reppo

class Mine(reppo.Env):
    action_size = 1
    value_range = (0.0, 1.0)

    def reset(self, key):
        return jnp.zeros(2), jnp.zeros(2)

    def step(self, state, action, key):
        return state, reppo.Transition(state, action[0], False)

def short():
    env = Mine()
    env.episode_length = 7
    return env

nothing = lambda: 42
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "own.py"
    path.write_text(OWN)
    return path


def test_a_file_that_makes_a_suites_environment_is_what_makes_it_again(tmp_path: Path) -> None:
    text = "from reppo import envs\n\ndef make():\n    env = envs.make('{}')\n    env.episode_length = 7\n    return env\n"
    for name in ("playground:CartpoleBalance", "gymnax:Pendulum-v1", "gymnasium:Pendulum-v1"):
        file = tmp_path / f"{name.partition(':')[0]}_task.py"
        file.write_text(text.format(name))
        spec = envs.make(f"{file}:make").spec()
        assert (spec.name, spec.episode_length) == (f"{file}:make", 7)
        assert envs.make(spec.name).spec().name == spec.name


def test_an_environment_from_a_file(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(own.parent)
    env = envs.make("own.py:Mine")
    assert env.name == f"{own}:Mine", "a name that makes it again, from anywhere"
    assert type(envs.make(env.name)).__name__ == "Mine"
    assert jax_env("own.py:short").episode_length == 7


def test_paths_with_colons_and_of_the_home_directory(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(own.parent))
    assert envs.make("~/own.py:Mine").name == f"{own}:Mine"
    folder = own.parent / "a:b.py:c"
    folder.mkdir()
    (folder / "own.py").write_text(own.read_text())
    made = envs.make(f"{folder / 'own.py'}:Mine")
    assert (type(made).__name__, made.name) == ("Mine", f"{folder / 'own.py'}:Mine")
    with pytest.raises(ConfigError, match=r"name the environment: .*a:b\.py:c/own\.py:Mine"):
        envs.make(f"{folder / 'own.py'}")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("absent.py:Mine", "no file absent.py"),
        ("own.py:Mime", "own.py defines no 'Mime'; did you mean Mine?"),
        ("own.py", "name the environment: own.py:Mine"),
        ("own.py:nothing", "own.py:nothing made a int, which is neither a reppo.Env nor an environment of"),
        ("own.py:OWN", "own.py defines no 'OWN'"),
        ("broken.py:Mine", "broken.py could not be imported: SyntaxError"),
        ("raises.py:Mine", "raises.py could not be imported: ZeroDivisionError: division by zero"),
    ],
)
def test_files_that_cannot_be_used(own: Path, monkeypatch: pytest.MonkeyPatch, name: str, says: str) -> None:
    monkeypatch.chdir(own.parent)
    Path("broken.py").write_text("class Mine(:")
    Path("raises.py").write_text("1 / 0")
    with pytest.raises(ConfigError) as refusal:
        envs.make(name)
    assert says in str(refusal.value)


# ------------------------------------------------------------------------------------------- specs


def spec_of(observation: Any, value_range: tuple[float, float] | None = (0.0, 1.0)) -> EnvSpec:
    actor_keys, critic_keys = suggest_keys(observation)
    low = -np.ones(2, np.float32)
    return EnvSpec("here", observation, 2, low, -low, 100, value_range, actor_keys, critic_keys)


def vector(size: int, dtype: Any = np.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((size,), dtype)


DICT = {"state": vector(3), "privileged_state": vector(5), "command": vector(2)}


def test_the_critic_sees_everything_and_the_actor_what_is_not_privileged() -> None:
    spec = resolve(spec_of(DICT), Config())
    assert spec.actor_keys == ("command", "state")
    assert spec.critic_keys == ("command", "privileged_state", "state")
    assert (spec.obs_size(spec.actor_keys), spec.obs_size(spec.critic_keys)) == (5, 10)
    chosen = resolve(spec_of(DICT), Config(actor_obs=("state",), critic_obs=("state", "command")))
    assert (chosen.actor_keys, chosen.critic_keys) == (("state",), ("state", "command"))


class Keyed(reppo.Env):
    """Says itself which entries each network sees."""

    action_size = 1
    value_range = (0.0, 1.0)
    actor_obs = ("joints",)

    def reset(self, key: jax.Array) -> tuple[Any, Any]:
        return (), {"joints": jnp.zeros(2), "masses": jnp.zeros(3), "privileged_state": jnp.zeros(4)}

    def step(self, state: Any, action: jax.Array, key: jax.Array) -> tuple[Any, reppo.Transition]:
        return state, reppo.Transition(self.reset(key)[1], jnp.zeros(()), jnp.array(False))


def test_an_environment_can_say_what_each_network_sees() -> None:
    spec = Keyed().spec()
    assert (spec.actor_keys, spec.critic_keys) == (("joints",), ("joints", "masses", "privileged_state"))
    env = Keyed()
    env.critic_obs = ("masses",)
    assert env.spec().critic_keys == ("masses",)
    assert resolve(env.spec(), Config(critic_obs=("joints",))).critic_keys == ("joints",)  # an option decides
    for chosen, says in (("joints", "must be a tuple of names"), (("joint",), "has joints, masses, privileged_state")):
        env.critic_obs = chosen  # pyright: ignore[reportAttributeAccessIssue]
        with pytest.raises(ConfigError, match=f"^Keyed: critic_obs .*{says}"):
            env.spec()


def test_the_configuration_completes_the_spec() -> None:
    spec = resolve(spec_of(vector(3)), Config())
    assert (spec.value_range, spec.episode_length) == ((0.0, 1.0), 100)
    spec = resolve(spec_of(vector(3)), Config(v_min=-2.0, episode_length=7))
    assert (spec.value_range, spec.episode_length) == ((-2.0, 1.0), 7)
    assert resolve(spec_of(vector(3), None), Config(v_min=0.0, v_max=3.0)).value_range == (0.0, 3.0)


@pytest.mark.parametrize(
    ("spec", "config", "says"),
    [
        (spec_of(jax.ShapeDtypeStruct((3, 2), np.float32)), Config(), "entry 'observation' is float32[3, 2]"),
        (spec_of(vector(3, np.int32)), Config(), "is int32[3]; it must be a float vector"),
        (spec_of(jax.ShapeDtypeStruct((), np.float32)), Config(), "is float32[]"),
        (spec_of({"a": {"b": vector(3)}}), Config(), "entry 'a' is a dict; use arrays, or one flat dict of arrays"),
        (spec_of(DICT), Config(actor_obs=("stat",)), "has no observation entry 'stat'; it has command, privileged_state"),
        (spec_of(vector(3)), Config(critic_obs=("state",)), "this one is an array"),
        (spec_of({"privileged_state": vector(3)}), Config(), "choose the actor's with --actor-obs"),
        (spec_of(vector(3), None), Config(), "set --v-min and --v-max"),
        (spec_of(vector(3), None), Config(v_min=0.0), "set --v-min and --v-max"),
        (spec_of(vector(3)), Config(v_min=2.0), "v_min must be below v_max, got [2.0, 1.0]"),
    ],
)
def test_specs_that_cannot_be_trained(spec: EnvSpec, config: Config, says: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        resolve(spec, config)
    assert says in str(refusal.value)
    assert str(refusal.value).startswith("here")


# ------------------------------------------------------------------------------------------- steps that no loop can take


class Sound(Env):
    action_size = 1
    value_range = (0.0, 1.0)

    def reset(self, key: jax.Array) -> tuple[Any, Any]:
        return {"x": jnp.zeros(2), "count": 0}, jnp.zeros(3)

    def step(self, state: Any, action: jax.Array, key: jax.Array) -> tuple[Any, Transition]:
        return {**state, "count": state["count"] + 1}, Transition(jnp.zeros(3), jnp.zeros(()), jnp.array(False))


def returning(name: str, state: Any = None, **changes: Any) -> Env:
    def step(self: Env, before: Any, action: jax.Array, key: jax.Array) -> tuple[Any, Transition]:
        after, transition = Sound.step(self, before, action, key)  # pyright: ignore[reportArgumentType]
        return (after if state is None else {**after, **state}), transition._replace(**changes)

    return type(name, (Sound,), {"step": step})()


@pytest.mark.parametrize(
    ("attributes", "says"),
    [
        ({"action_size": 1.0}, "action_size must be a positive whole number, got 1.0"),
        ({"action_size": 0}, "action_size must be a positive whole number, got 0"),
        ({"action_size": -1}, "action_size must be a positive whole number, got -1"),
        ({"action_size": "1"}, "action_size must be a positive whole number, got '1'"),
        ({"action_size": (1,)}, "action_size must be a positive whole number, got (1,)"),
        ({"action_size": True}, "action_size must be a positive whole number, got True"),
        ({"action_size": None}, "action_size must be a positive whole number, got None"),
        ({"action_size": 2.0, "discrete": True}, "action_size must be a positive whole number, got 2.0"),
        ({"action_low": np.zeros(3)}, "action_low must be a number, or 1 of them, as action_size says, got array("),
        ({"action_high": "high"}, "action_high must be a number, or 1 of them, as action_size says, got 'high'"),
        ({"action_high": [[1.0], [2.0, 3.0]]}, "action_high must be a number, or 1 of them, as action_size says, got [["),
        ({"action_low": np.nan}, "action_low must be a number, or 1 of them, as action_size says, got nan"),
        ({"action_low": 1.0}, "action 0 is bounded by [1, 1]; each action_low must be below its action_high"),
        ({"action_low": np.inf, "action_high": np.inf}, "action 0 is bounded by [inf, inf]; each action_low must be below"),
        ({"episode_length": 0}, "episode_length must be a positive whole number of at most 2,147,483,647, got 0"),
        ({"episode_length": -5}, "episode_length must be a positive whole number of at most 2,147,483,647, got -5"),
        ({"episode_length": 20.5}, "episode_length must be a positive whole number of at most 2,147,483,647, got 20.5"),
        ({"episode_length": "20"}, "episode_length must be a positive whole number of at most 2,147,483,647, got '20'"),
        ({"episode_length": 10**12}, "episode_length must be a positive whole number of at most 2,147,483,647, got 10"),
        ({"value_range": (1.0, 1.0)}, "value_range must be two finite numbers, the smaller first, or None, got (1.0, 1.0)"),
        (
            {"value_range": (0.0, np.inf)},
            "value_range must be two finite numbers, the smaller first, or None, got (0.0, inf)",
        ),
        ({"value_range": 5}, "value_range must be two finite numbers, the smaller first, or None, got 5"),
        ({"value_range": (0, 1, 2)}, "value_range must be two finite numbers, the smaller first, or None, got (0, 1, 2)"),
        ({"value_range": "wide"}, "value_range must be two finite numbers, the smaller first, or None, got 'wide'"),
        ({"max_return": "much"}, "max_return must be a finite number, or None, got 'much'"),
        ({"max_return": np.nan}, "max_return must be a finite number, or None, got nan"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_attributes_that_no_environment_has_are_named(attributes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        type("Odd", (Sound,), attributes)().spec()
    assert str(refusal.value).startswith(f"Odd: {says}")
    assert "\n" not in str(refusal.value)


def test_numbers_of_numpy_are_as_good_as_pythons() -> None:
    numbers: dict[str, Any] = {"action_size": np.int64(2), "episode_length": np.int32(7), "max_return": np.float32(3)}
    bounds: dict[str, Any] = {"action_low": [-1, -2], "action_high": jnp.ones(1), "value_range": np.array([0, 1])}
    spec = type("Numbers", (Sound,), numbers | bounds)().spec()
    assert (spec.action_size, spec.episode_length, spec.max_return, spec.value_range) == (2, 7, 3.0, (0.0, 1.0))
    assert {type(spec.action_size), type(spec.episode_length)} == {int}, "JSON knows no others"
    assert (spec.action_low.tolist(), spec.action_high.tolist()) == ([-1, -2], [1, 1])


@functools.cache
def traced(env: Env) -> None:
    vector_env = AutoReset(env, N, 10)

    def two_steps(key: jax.Array) -> Any:
        state = vector_env.begin(vector_env.first(key))
        return jax.lax.scan(lambda s, _: (vector_env.step(s, jnp.zeros((N, 1)), key)[0], None), state, length=2)

    jax.eval_shape(two_steps, jax.random.key(0))


@pytest.mark.parametrize(
    ("env", "says"),
    [
        (returning("Shape", obs=jnp.zeros(2)), "Shape: step returns obs as float32[2], reset as float32[3]"),
        (returning("Kind", obs=jnp.zeros(3, int)), "Kind: step returns obs as int32[3], reset as float32[3]"),
        (returning("Tree", obs={"a": jnp.zeros(3)}), "Tree: step returns obs of another structure than reset"),
        (returning("Pay", reward=jnp.zeros(1)), "Pay: step returns reward with shape [1]; it must be a scalar"),
        (returning("End", terminated=jnp.zeros(2, bool)), "End: step returns terminated with shape [2]"),
        (returning("State", {"x": jnp.zeros(2, int)}), "State: step returns state['x'] as int32[2], reset as float32[2]"),
        (returning("More", {"y": 1.0}), "More: step returns state of another structure than reset"),
    ],
    ids=lambda value: value.name if isinstance(value, Env) else "",
)
def test_a_step_of_another_shape_than_the_reset_is_refused(env: Env, says: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        traced(env)
    assert str(refusal.value).startswith(says)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "env",
    [Sound(), returning("Numbers", reward=1, terminated=False), returning("Flags", terminated=jnp.array(0.0))],
    ids=lambda env: env.name,
)
def test_plain_numbers_are_welcome(env: Env) -> None:
    traced(env)


def test_a_first_observation_that_is_not_finite_is_refused_before_training() -> None:
    from reppo.loop import train

    class Bad(Sound):
        def reset(self, key: jax.Array) -> tuple[Any, Any]:
            state, obs = super().reset(key)
            return state, obs.at[1].set(jnp.nan)

    with pytest.raises(ConfigError, match=r"Bad: obs\[1\] of environment 0 is nan right after reset"):
        train(Bad(), TINY)
