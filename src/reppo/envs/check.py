"""Does an environment keep the contract that training relies on? What ``reppo check-env`` checks, for every kind of them.

The environment is seen as training sees it, through `reppo.envs.autoreset.AutoReset` or `reppo.envs.host.HostVectorEnv`.
So a check covers the adapter as well.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from reppo import compiling
from reppo.config import Config
from reppo.envs.autoreset import AutoReset, AutoResetState
from reppo.envs.base import Env
from reppo.envs.host import HostEnv, HostVectorEnv
from reppo.envs.spaces import Observations
from reppo.envs.spec import EnvSpec, action_struct, check_observation, shape_of
from reppo.errors import ConfigError
from reppo.types import PyTree, TimeStep

Array = npt.NDArray[Any]

SHORT = 4  #: steps of the time limit that the checks of time limits use, unless the environment's own is shorter
MANY = 10  #: ends that have to be alike before something is suspected that may have another reason
ENOUGH = 3  #: ends that have to be alike before something is concluded from it
LONG = 10  #: steps after which ends that all come at the same one are a clock's; a short task may have a fixed length


class Finding(NamedTuple):
    """One check: whether it passed, what was seen, and, where it failed, what to do. ``passed`` is None for a check that
    this environment does not allow, or that only tells."""

    check: str
    passed: bool | None
    seen: str
    advice: str = ""


class Stepper(Protocol):
    """``N`` environments with the contract of `TimeStep`, in NumPy."""

    def reset(self, seed: int) -> PyTree: ...

    def step(self, action: Array) -> TimeStep: ...


class JaxStepper:
    """An environment in JAX as a `Stepper`. The time limit is traced, because to compile a step twice takes long."""

    def __init__(self, env: Env, spec: EnvSpec, num_envs: int):
        def limited(limit: Any) -> AutoReset:
            return AutoReset(env, num_envs, limit, (spec.action_low, spec.action_high))

        self.limit = spec.time_limit
        self._begin = compiling.compiled(lambda key: limited(0).begin(limited(0).first(key)), compiling.RESET)
        self._step = compiling.compiled(
            lambda state, action, key, limit: limited(limit).step(state, action, key), compiling.SIMULATOR
        )
        self._state: AutoResetState | None = None
        self._key = jax.random.key(0)

    def reset(self, seed: int) -> PyTree:
        key_first, self._key = jax.random.split(jax.random.key(seed))
        self._state = self._begin(key_first)
        assert self._state is not None
        return jax.device_get(self._state.obs)

    def step(self, action: Array) -> TimeStep:
        self._key, key = jax.random.split(self._key)
        self._state, step = self._step(self._state, jnp.asarray(action), key, self.limit)
        return jax.device_get(step)


class Subject:
    """The environment that is checked, started as often as needed."""

    def __init__(self, env: Env | HostEnv, spec: EnvSpec, num_envs: int):
        self.env, self.num_envs = env, num_envs
        self._in_jax = JaxStepper(env, spec, num_envs) if isinstance(env, Env) else None

    @contextlib.contextmanager
    def started(self, spec: EnvSpec) -> Iterator[Stepper]:
        """``N`` environments that nobody has stepped yet; those in JAX remember nothing."""
        if self._in_jax is not None:
            self._in_jax.limit = spec.time_limit
            yield self._in_jax
            return
        assert isinstance(self.env, HostEnv)
        with contextlib.closing(self.env.start(spec, self.num_envs)) as stepper:
            stepper.strict = False  # `_resets` says more of it
            yield stepper


# --------------------------------------------------------------------------------------------- what it says of itself


def _described(spec: EnvSpec) -> Iterator[Finding]:
    shapes = spec.observation if isinstance(spec.observation, dict) else {"array": spec.observation}
    if spec.image:
        image, order = shapes["array"], "first" if spec.channels_first else "last"
        seen = f"image {list(image.shape)}, {image.dtype}, channels {order}"
    else:
        seen = ", ".join(f"{name} {list(leaf.shape)}" for name, leaf in sorted(shapes.items()))
    yield Finding("observation", True, seen)
    if isinstance(spec.observation, dict):
        seen = f"actor: {', '.join(spec.actor_keys) or 'nothing'}; critic: {', '.join(spec.critic_keys)}"
        advice = "entries that begin with `privileged` are the critic's alone: the actor needs another"
        yield Finding("dict entries", bool(spec.actor_keys), seen, advice)
    low, high = spec.action_low, spec.action_high
    bounds = f"{spec.action_size} actions, {np.min(low):g} to {np.max(high):g}"
    if spec.discrete:
        advice = "a choice among fewer than two is none"
        yield Finding("discrete actions", spec.action_size > 1, f"{spec.action_size}: {low[0]:g} to {high[0]:g}", advice)
    elif not np.isfinite([low, high]).all():
        yield Finding(
            "action bounds", None, f"{bounds}: --action-low and --action-high must be given; checked with -1 and 1"
        )
    else:
        yield Finding("action bounds", bool((low < high).all()), bounds, "every lower bound must be below its upper bound")
    if spec.episode_length is None:
        yield Finding("time limit", None, "none: --episode-length must be given; checked with 1000")
    else:
        yield Finding("time limit", spec.episode_length > 0, f"{spec.episode_length:,} steps", "it must be positive")
    if spec.value_range is not None:
        low, high = spec.value_range
        yield Finding("value range", low < high, f"{low:g} to {high:g}", "the lower end must be below the upper end")


def _completed(spec: EnvSpec) -> EnvSpec:
    """The spec with something in it where a run's configuration would have to decide."""
    low, high = (
        np.where(np.isfinite(x), x, y).astype(np.float32) for x, y in ((spec.action_low, -1), (spec.action_high, 1))
    )
    return dataclasses.replace(spec, action_low=low, action_high=high, episode_length=spec.episode_length or 1000)


def _same_structure(env: Env) -> Finding:
    """A state must not change its structure, shapes or dtypes: it is carried through compiled loops."""
    key = jax.random.key(0)
    state, obs = jax.eval_shape(env.reset, key)
    after, transition = jax.eval_shape(env.step, state, action_struct(env.action_size, env.discrete), key)
    advice = "return the same pytree from `reset` and `step`; jnp.asarray(x, jnp.float32) fixes a dtype"
    for name, first, second in (("state", state, after), ("observation", obs, transition.obs)):
        first, second = shape_of(first), shape_of(second)
        if jax.tree.structure(first) != jax.tree.structure(second):
            return Finding("pytrees", False, f"the {name} of `step` has another structure than that of `reset`", advice)
        for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(first), jax.tree.leaves(second), strict=True):
            if (a.shape, a.dtype) != (b.shape, b.dtype):
                where = f"{name}{jax.tree_util.keystr(path)}"
                seen = f"{where} is {a.dtype}{list(a.shape)} after `reset`, {b.dtype}{list(b.shape)} after `step`"
                return Finding("pytrees", False, seen, advice)
    if jax.tree.leaves(transition.reward)[0].shape != ():
        return Finding("pytrees", False, f"the reward has shape {list(transition.reward.shape)}", "return a scalar")
    return Finding("pytrees", True, "`reset` and `step` return the same structure, shapes and dtypes")


# --------------------------------------------------------------------------------------------- what it does


class Rows(NamedTuple):
    """What was seen, leaves ``[T, N, ...]``; ``first`` is ``[N, ...]``."""

    first: PyTree
    steps: TimeStep
    reward: Array  #: ``[T, N]``, as the simulator returned it, also where that is no step
    ended: Array  #: bool ``[T, N]``: the simulator's flags, also where that is no step

    @property
    def spent(self) -> Array:
        """Rows that were spent on a reset, bool ``[T, N]``."""
        return self.steps.info.get("reset", np.zeros(self.ended.shape, bool))


def _roll(stepper: Stepper, actions: Array, seed: int) -> Rows:
    first = jax.tree.map(np.copy, stepper.reset(seed))
    seen = []
    for action in actions:
        step = stepper.step(action)
        own = stepper.raw if isinstance(stepper, HostVectorEnv) and stepper.raw is not None else step
        seen.append(jax.tree.map(np.copy, (step, own.reward, own.terminated | own.truncated)))
    return Rows(first, *jax.tree.map(lambda *x: np.stack(x), *seen))


def _actions(spec: EnvSpec, num_envs: int, num_steps: int, seed: int) -> Array:
    """Random actions in [-1, 1], ``[T, N, A]``, or indices, ``[T, N]``, after both extremes."""
    rng, shape, dtype = np.random.default_rng(seed), (num_steps, num_envs, *spec.action.shape), spec.action.dtype
    if spec.discrete:
        actions = rng.integers(0, spec.action_size, shape).astype(dtype)
        actions[0], actions[1] = 0, spec.action_size - 1
    else:
        actions = rng.uniform(-1, 1, shape).astype(dtype)
        actions[0], actions[1] = -1.0, 1.0
    return actions


def _same(x: PyTree, y: PyTree) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True))


def _stepped(subject: Subject, spec: EnvSpec, num_steps: int, seed: int) -> Iterator[Finding]:
    actions = _actions(spec, subject.num_envs, num_steps, seed)
    with subject.started(spec) as stepper:
        rows = _roll(stepper, actions, seed)
    steps = rows.steps
    yield _shapes(spec, rows, subject.num_envs)
    yield _finite(steps)
    steady, last = (steps.reward[steps.valid & (steps.terminated == ended)] for ended in (False, True))
    seen = [f"{r.min():.4g} to {r.max():.4g}{what}" for r, what in ((steady, " a step"), (last, " at the end")) if r.size]
    yield Finding("rewards", None, f"{', '.join(seen) or 'none'}, under random actions")
    if spec.value_range is None:
        yield _proposed_range(steady, last)
    yield from _ends(rows, spec)

    with subject.started(spec) as stepper:
        again = _roll(stepper, actions[: num_steps // 3], seed)
    differing = next((t for t in range(num_steps // 3) if not _same(_at(steps, t), _at(again.steps, t))), None)
    same_first = _same(rows.first, again.first)
    seen = "the same seed gives the same first observations and, with the same actions, the same steps"
    if not same_first or differing is not None:
        seen = f"the same seed gives other {'first observations' if not same_first else f'numbers at step {differing}'}"
    advice = (
        "draw every random number from the seed or key that `reset` is given, never from a global generator or the clock"
    )
    deterministic = same_first and differing is None
    yield Finding("determinism", deterministic, seen, advice)
    if isinstance(subject.env, HostEnv):
        yield from (Finding("kinds of numbers", None, remark) for remark in subject.env.observations.remarks())
        yield from _outside(subject.env.observations, rows)
    with subject.started(spec) as stepper:
        other = stepper.reset(seed + 1)
    if _same(rows.first, other):
        yield Finding("first states", None, "every episode begins in the same state, whatever the seed")
    yield _resets(subject, spec, rows, actions, seed, deterministic)


def _proposed_range(steady: Array, last: Array) -> Finding:
    """A range of discounted returns: of the rewards ``steady`` that a step brings, paid for good, and of one of ``last``, at
    the end of an episode; with a tenth of it for the entropy at either end."""
    gamma = Config.gamma
    low = float(steady.min(initial=0.0)) / (1 - gamma) + float(last.min(initial=0.0))
    high = float(steady.max(initial=0.0)) / (1 - gamma) + float(last.max(initial=0.0))
    if low == high:
        seen = "none, and these rewards propose none: give --v-min and --v-max, see docs/environments.md#the-value-range"
        return Finding("value range", None, seen)
    room = 0.1 * (high - low)
    return Finding(
        "value range",
        None,
        f"none; these rewards propose --v-min {_outward(low - room):g} --v-max {_outward(high + room):g} (gamma {gamma:g}); "
        f"wider, where a good policy's lie outside of a random one's",
    )


def _outward(x: float) -> float:
    """``x`` with two digits, further from zero."""
    scale = 10.0 ** (math.floor(math.log10(abs(x))) - 1)
    return math.copysign(math.ceil(round(abs(x) / scale, 6)) * scale, x)


def _at(steps: TimeStep, t: int) -> PyTree:
    return jax.tree.map(lambda x: x[t], (steps.obs, steps.next_obs, steps.reward, steps.terminated, steps.truncated))


def _shapes(spec: EnvSpec, rows: Rows, num_envs: int) -> Finding:
    expected = jax.tree.map(lambda x: ((num_envs, *x.shape), np.dtype(x.dtype)), spec.observation)
    for name, obs in (
        ("first observation", rows.first),
        ("observation", jax.tree.map(lambda x: x[0], rows.steps.obs)),
        ("successor", jax.tree.map(lambda x: x[0], rows.steps.next_obs)),
    ):
        found = jax.tree.map(lambda x: (x.shape, x.dtype), obs)
        if found != expected:
            return Finding("shapes", False, f"the {name} is {found}, not {expected}", "return what the spec says")
    steps = rows.steps
    for name, leaf, kind in (
        ("reward", steps.reward, "f"),
        ("terminated", steps.terminated, "b"),
        ("truncated", steps.truncated, "b"),
        ("valid", steps.valid, "b"),
    ):
        if leaf.shape[1:] != (num_envs,) or leaf.dtype.kind != kind:
            return Finding("shapes", False, f"{name} is {leaf.dtype}{list(leaf.shape[1:])}", f"return one {name} a step")
    return Finding("shapes", True, f"of observations, successors, rewards and flags, over {len(steps.reward)} steps")


def _finite(steps: TimeStep) -> Finding:
    bad = ~steps.valid if "reset" not in steps.info else ~steps.valid & ~steps.info["reset"]
    if not bad.any():
        return Finding("finite numbers", True, "every observation and reward is finite, at the bounds of the actions, too")
    t, n = (int(i) for i in np.argwhere(bad)[0])
    seen = f"{int(bad.sum())} of {bad.size} steps had numbers that are not finite, first environment {n} at step {t + 1}"
    advice = "shorten the simulation's time step, or end the episode before it diverges; training leaves such steps out"
    return Finding("finite numbers", False, seen, advice)


def _outside(observations: Observations, rows: Rows) -> Iterator[Finding]:
    """Observations outside of the bounds that their space declares, which training does not read. Only told, as a space that
    is too narrow changes nothing; but it may be another quantity, or another unit, than was meant."""
    low, high = observations.bounds
    seen = jax.tree.map(lambda first, after: np.concatenate([first[None], after]), rows.first, rows.steps.next_obs)
    valid = np.concatenate([np.ones_like(rows.steps.valid[:1]), rows.steps.valid])
    leaves = zip(jax.tree_util.tree_leaves_with_path(seen), jax.tree.leaves(low), jax.tree.leaves(high), strict=True)
    for (path, leaf), lowest, highest in leaves:
        beyond = ((leaf < lowest) | (leaf > highest)) & valid.reshape(*valid.shape, *[1] * (leaf.ndim - 2))
        if beyond.any():
            t, n, *index = (int(i) for i in np.argwhere(beyond)[0])
            number, bounds = leaf[t, n, *index], f"{lowest[*index]:g} to {highest[*index]:g}"
            share = beyond.reshape(*valid.shape, -1).any(axis=-1).sum() / valid.sum()
            yield Finding(
                "observation bounds",
                None,
                f"{share:.1%} of observations are outside of their Box: observation{jax.tree_util.keystr(path)}{index} of "
                f"environment {n} is {number:g} {f'at step {t}' if t else 'at its reset'}, not {bounds}; "
                f"nothing is clipped; env.observation_space.contains(obs) sees it, too",
            )
    for image in (seen,) if isinstance(seen, np.ndarray) and seen.ndim == 5 and seen.dtype == np.uint8 else ():
        if image.max() <= 1:
            yield Finding(
                "image", None, f"no pixel is above {image.max()} of 255, where the networks read uint8 divided by 255"
            )


def _ends(rows: Rows, spec: EnvSpec) -> Iterator[Finding]:
    """How episodes end."""
    steps = rows.steps
    lengths = [int(x) for x in steps.info["episode_length"][steps.terminated]]
    seen = f"{int(steps.terminated.sum())} episodes terminated, {int(steps.truncated.sum())} were truncated"
    clock = False
    if len(lengths) >= ENOUGH and len(set(lengths)) == 1 and lengths[0] > 1:
        # Real ends come at various times. One length for all of them is a clock, unless the task itself is that long.
        clock = lengths[0] == spec.time_limit or lengths[0] >= LONG
        seen += f"; every termination came after exactly {lengths[0]} steps"
    advice = "a time limit is a truncation: return terminated=False there, and truncated=True where the interface has it"
    yield Finding("terminated or truncated", not clock, seen, advice)
    longest = int(steps.info["episode_length"].max())
    seen = f"none is longer than {spec.time_limit:,} steps" if longest <= spec.time_limit else f"one lasted for {longest:,}"
    yield Finding("episodes end", longest <= spec.time_limit, seen, f"the time limit is {spec.time_limit:,}: apply it")
    yield from _successors(rows)


def _differ(x: PyTree, y: PyTree) -> Array:
    """Rows in which two pytrees with leaves ``[T, N, ...]`` are not the same, bool ``[T, N]``."""
    pairs = zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True)
    return np.any([(a != b).reshape(*a.shape[:2], -1).any(axis=-1) for a, b in pairs], axis=0)


def _successors(rows: Rows) -> Iterator[Finding]:
    """The successor at an end must not be the next episode's first observation, which is all that a simulator has left once
    it has reset. That may be so by right where episodes begin alike; but what is random is not known before the reset."""
    steps = rows.steps
    before = jax.tree.map(lambda first, obs: np.concatenate([first[None], obs[:-1]]), rows.first, steps.obs)
    # Without those of which it says nothing: steps that change nothing, and the last one, whose reset may be yet to come.
    ends = (steps.terminated | steps.truncated) & _differ(steps.next_obs, before)
    t, n = np.nonzero(ends[:-1])
    on_host = "reset" in steps.info
    if len(t) < ENOUGH:
        if on_host:  # in JAX it is `AutoReset` that resets
            yield Finding("successor at an end", None, f"{len(t)} ends are too few to tell; --num-steps makes more")
        return
    reset = t + rows.spent[t + 1, n]  # the step that returned the first observation
    successor, first = (jax.tree.map(lambda x, i=i: x[i, n], tree) for tree, i in ((steps.next_obs, t), (steps.obs, reset)))
    same, random = _same(successor, first), any((leaf != leaf[:1]).any() for leaf in jax.tree.leaves(first))
    # In JAX an episode begins where the one before it did, and a task may end when it is back there.
    passed = not same or (False if random and on_host else None)
    seen = f"the observations at {len(t)} ends are {'' if same else 'not '}those that the next episodes begin with"
    last = jax.tree.map(lambda x: x[t, n], before)
    if passed and on_host and len(t) >= MANY and _jumps_back(first, last, successor):
        passed = None
        seen += ", but all lie where episodes begin, and those before them do not: if it resets itself, they are lost"
    advice = (
        "return the observation after the last step; in SAME_STEP it belongs in info['final_obs'], and the next reset must "
        "not write to it: return a copy of the observation"
    )
    yield Finding("successor at an end", passed, seen, advice)


def _jumps_back(first: PyTree, last: PyTree, successor: PyTree) -> bool:
    """Whether all successors, leaves ``[M, ...]``, lie where episodes begin, and no observation before them does: within
    three times the range of first observations, which is nothing in numbers that are not random there."""
    begin, *others = (
        np.concatenate([leaf.reshape(len(leaf), -1).astype(float) for leaf in jax.tree.leaves(tree)], axis=1)
        for tree in (first, last, successor)
    )
    low, high = begin.min(axis=0), begin.max(axis=0)
    near_last, near_successor = ((abs(x - (low + high) / 2) <= 1.5 * (high - low)).all(axis=1) for x in others)
    return bool(near_successor.all() and not near_last.any())


def _resets(subject: Subject, spec: EnvSpec, rows: Rows, actions: Array, seed: int, deterministic: bool) -> Finding:
    """In a row that is spent on a reset nothing ends, and the action changes nothing. Otherwise it is a step of an episode
    that had begun in the row before, and neither that step nor the true successor of the row before is ever trained on."""
    spent = rows.spent
    if not (rows.steps.terminated | rows.steps.truncated).any():
        return Finding("resets", None, f"no episode ended in {len(actions)} steps, so none was seen; --num-steps makes more")
    if not spent.any():
        return Finding("resets", True, "no row is spent on a reset")
    seen = f"{int(spent.sum())} rows were spent on resets"
    if paid := int((spent & (rows.reward != 0)).sum()):
        seen += f", {paid} of them with a reward, which trains nothing"
    advice = "declare AutoresetMode.SAME_STEP where the step that ends an episode resets it, and give info['final_obs']"
    if (again := spent & rows.ended).any():
        t, n = (int(i) for i in np.argwhere(again)[0])
        return Finding("resets", False, f"{seen}; environment {n} ended in such a row, at step {t + 1}", advice)
    if not deterministic:
        return Finding("resets", None, f"{seen}; whether their actions change anything was not checked")
    others = (actions + 1) % spec.action_size if spec.discrete else np.where(actions < 0, 1, -1)
    others = np.where(spent.reshape(*spent.shape, *[1] * (actions.ndim - 2)), others, actions).astype(actions.dtype)
    with subject.started(spec) as stepper:
        steps = _roll(stepper, others, seed).steps
    if (changed := _differ(rows.steps, steps)).any():
        t, n = (int(i) for i in np.argwhere(changed)[0])
        seen += f"; another action in them changed what happened, first in environment {n} at step {t + 1}"
        return Finding("resets", False, seen, advice)
    return Finding("resets", True, f"{seen}; their actions change nothing")


def _time_limited(subject: Subject, spec: EnvSpec, seed: int) -> Iterator[Finding]:
    """Cut episodes short, and compare with the same ones left alone: a cut must not change what was there."""
    limit = min(SHORT, spec.time_limit)
    actions = _actions(spec, subject.num_envs, limit + 1, seed)
    rows: list[Rows] = []
    for length in (limit, max(spec.time_limit, 2 * limit)):
        try:
            with subject.started(dataclasses.replace(spec, episode_length=length)) as stepper:
                if isinstance(stepper, HostVectorEnv) and not stepper.simulator.resets_rows:
                    yield Finding(
                        "time limit holds", None, "this vector environment keeps its own, and none other can be set"
                    )
                    return
                rows.append(_roll(stepper, actions, seed))
        except ConfigError as error:
            yield Finding("time limit holds", None, str(error))
            return
    cut, whole = rows[0].steps, rows[1].steps
    end = limit - 1  # the step at which the limit is reached
    goes_on = ~(whole.terminated | whole.truncated)[:end].any(axis=0) & whole.valid.all(axis=0) & ~whole.terminated[end]
    if not goes_on.any():
        yield Finding("time limit holds", None, f"no episode lasted for {limit} steps")
        return
    truncated = cut.truncated[end, goes_on]
    seen = f"{int(truncated.sum())} of {len(truncated)} episodes were truncated at a limit of {limit} steps"
    advice = "count steps from the reset, and truncate when the count reaches the limit"
    yield Finding("time limit holds", bool(truncated.all()), seen, advice)

    def at(tree: PyTree, t: int) -> PyTree:
        return jax.tree.map(lambda x: x[t, goes_on], tree)

    true = _same(at(cut.next_obs, end), at(whole.next_obs, end))
    seen = f"the observation at a cut is {'' if true else 'not '}that of the same episode left alone"
    advice = (
        "return the observation after the last step, and reset only then; see the reset conventions in the documentation"
    )
    yield Finding("true successor", true, seen, advice)
    spent = cut.info["reset"][limit, goes_on].any() if "reset" in cut.info else False
    if limit < spec.time_limit and _same(at(cut.obs, limit if spent else end), at(cut.next_obs, end)):
        yield Finding("new episodes", None, "the observation after a cut is the one before it: does `reset` do anything?")


# --------------------------------------------------------------------------------------------- all of it


def check(env: Env | HostEnv, *, num_envs: int = 4, num_steps: int = 300, seed: int = 0) -> Iterator[Finding]:
    """Check an environment under random actions; yields what was found, in an order that explains later failures.

    Args:
        env: the environment, from `reppo.envs.make`.
        num_envs: how many to step at once; a vector environment that was made elsewhere has its own number.
        num_steps: steps of each.
        seed: of the environments and of the actions.
    """
    spec = env.spec()
    check_observation(spec.name, spec.observation)
    yield from _described(spec)
    yield from (Finding("this machine", None, note) for note in (env.notes if isinstance(env, HostEnv) else ()))
    spec = _completed(spec)
    if isinstance(env, Env):
        structure = _same_structure(env)
        yield structure
        if not structure.passed:
            return  # it cannot be stepped in a compiled loop
    if isinstance(env, HostEnv) and env.fixed_num_envs is not None:
        num_envs = env.fixed_num_envs
    subject = Subject(env, spec, num_envs)
    try:
        deterministic = True
        for finding in _stepped(subject, spec, num_steps, seed):
            deterministic &= (finding.check, finding.passed) != ("determinism", False)
            yield finding
        if deterministic:
            yield from _time_limited(subject, spec, seed)
        else:
            yield Finding("time limit holds", None, "not checked: that takes the same episode twice")
    except ConfigError as error:
        yield Finding("runs", False, str(error).removeprefix(f"{spec.name}: "), "mend this first; the other checks need it")
