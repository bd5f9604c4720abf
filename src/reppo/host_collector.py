"""Rollouts from environments outside of JAX: a loop of Python around a compiled `act`, into NumPy buffers, or on the device
of a simulator whose observations are there.

Seeds take turns: each has its own environments, and is stepped as if it were alone, so that what a seed does never
depends on the others.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from reppo.collector import Collected, mesh_of_seeds, num_devices
from reppo.config import RunConfig
from reppo.envs.host import HostEnv, HostVectorEnv
from reppo.envs.spec import EnvSpec
from reppo.errors import ConfigError
from reppo.evaluate import Evaluation, first_episodes
from reppo.interrupt import Interrupt
from reppo.keys import Keys, Stream, fold_in
from reppo.types import Learner, PyTree, Rollout


class HostCollector:
    """Environments outside of JAX. A simulator's state cannot be saved, so a checkpoint holds nothing of them."""

    preparation = "starting the simulator"

    def __init__(self, env: HostEnv, spec: EnvSpec, learner: Learner, config: RunConfig, keys: Keys):
        self.env, self.spec, self.config, self.keys = env, spec, config, keys
        self.num_seeds = len(keys.roots)
        if env.one_only and self.num_seeds > 1:
            raise ConfigError(f"{spec.name} is one vector environment: train one seed, or give a function that makes one")
        self.env_state: PyTree = {}
        self._training: list[HostVectorEnv] = []  #: one for each seed; empty while none runs
        self._begun = False  #: whether they are in episodes that go on
        self._evaluation: HostVectorEnv | None = None

        def act(leaves: list[jax.Array], obs: PyTree, key: jax.Array, step: Any, greedy: bool) -> Any:
            policy = jax.tree.unflatten(self._structure, leaves)
            return learner.act(policy, obs, jax.random.fold_in(key, step), greedy)

        # A flat list: what a call costs beside its work is the flattening of its arguments, in Python for our modules.
        self._structure = jax.tree.structure(jax.eval_shape(lambda key: learner.policy(learner.init(key)), keys.roots[0]))
        self._act = jax.jit(act, static_argnums=4)

        def own(state: PyTree, roots: jax.Array, k: Any, iteration: Any) -> tuple[list[jax.Array], jax.Array]:
            policy = learner.policy(jax.tree.map(lambda x: x[k], state))
            return jax.tree.leaves(policy), fold_in(roots[k], Stream.ITERATION, iteration, 0)

        # The key of its rollout comes along, because each step towards it would cost as much as a step of the policy.
        self._policy_and_key = jax.jit(own)

    # ------------------------------------------------------------------------------------- the life of the environments

    def start(self) -> str | None:
        self._begin(0)
        asked = {
            "cut": self.config.cut_probability > 0,
            "staggered": self.config.stagger_episodes,
            "ended after episode_length": self.env.spec().episode_length is None,
        }
        if any(asked.values()) and not self._training[0].simulator.resets_rows:
            what = " nor ".join(name for name, wanted in asked.items() if wanted)
            return f"{self.spec.name}: its environments cannot be reset one by one, so episodes are not {what}"
        return None

    def like(self) -> PyTree:
        return {}

    def restore(self, env_state: PyTree, iteration: int) -> str | None:
        del env_state, iteration  # `collect` begins where it is called
        return f"{self.spec.name}: a simulator on the host cannot be saved, so its episodes begin anew"

    def _begin(self, iteration: int) -> None:
        """New episodes everywhere, with random numbers that belong to this iteration."""
        first, stagger = (_seeds(self.keys(stream, iteration)) for stream in (Stream.FIRST, Stream.STAGGER))
        for k in range(self.num_seeds):
            if len(self._training) == k:
                self._training.append(self.env.start(self.spec, self.config.num_envs))
            rng = np.random.default_rng(stagger[k]) if self.config.stagger_episodes else None
            self._training[k].reset(first[k], rng, self.config.cut_probability)
        self._begun = True

    def close(self) -> None:
        for env in (*self._training, *filter(None, [self._evaluation])):
            env.close()
        self._training, self._evaluation, self._begun = [], None, False

    # ------------------------------------------------------------------------------------- rollouts

    def collect(self, state: PyTree, iteration: int) -> Collected:
        if not self._begun:
            self._begin(iteration)
        shape = (self.num_seeds, self.config.num_steps, self.config.num_envs)
        rows = _place(self._training[0])(self.spec, shape)
        kinds = {"episode_return": float, "episode_length": int, "episode_done": bool, "reset": bool}
        episodes = {name: np.empty(shape, kind) for name, kind in kinds.items()}
        for k, env in enumerate(self._training):
            policy, key = rows.beside(env.obs, self._policy_and_key(state, self.keys.roots, k, iteration))
            for t in range(self.config.num_steps):
                obs = env.obs
                action, sample = self._act(policy, obs, key, t, False)
                step = env.step(rows.taken(action))
                row = Rollout(obs, sample, step.next_obs, step.reward, step.terminated, step.truncated, step.valid)
                rows.write(k, t, row)
                for name, buffer in episodes.items():
                    buffer[k, t] = step.info[name]
        return Collected(rows.finished(), episodes, None, np.zeros(self.num_seeds, int))

    # ------------------------------------------------------------------------------------- evaluation

    def evaluate(self, state: PyTree, episodes: int, seed: int, interrupt: Interrupt | None) -> Evaluation | None:
        """See `reppo.collector.Collector`. Seeds take turns in one set of environments, which is kept for the next time.

        Where there is one vector environment only, its training episodes are lost, and begin anew after it.
        """
        env = self._evaluation_env(episodes)
        number, place = -(-episodes // env.num_envs), _place(env)
        results = []
        for k in range(self.num_seeds):
            mine = (self._policy_and_key(state, self.keys.roots, k, 0)[0], self.keys.roots[k])

            def act(obs: PyTree, mine: Any = mine) -> Any:
                policy, key = place.beside(obs, mine)
                return place.taken(self._act(policy, obs, key, 0, True)[0])

            for batch in range(number):
                first = _seeds(self.keys(Stream.EVALUATION, seed, batch, 0))[k]
                result = first_episodes(env, act, first, interrupt)
                if result is None:
                    return None
                results.append(result)
        whole = (np.concatenate(parts).reshape(self.num_seeds, -1) for parts in zip(*results, strict=True))
        return Evaluation(*(part[:, :episodes] for part in whole))

    def _evaluation_env(self, episodes: int) -> HostVectorEnv:
        if self.env.one_only:
            if not self._training:
                self._training.append(self.env.start(self.spec, self.config.num_envs))
            self._begun = False
            return self._training[0]
        num_envs = self.env.fixed_num_envs or min(episodes, self.config.num_envs)
        if self._evaluation is not None and self._evaluation.num_envs != num_envs:
            self._evaluation.close()
            self._evaluation = None
        if self._evaluation is None:
            self._evaluation = self.env.for_evaluation().start(self.spec, num_envs)
        return self._evaluation


class OnHost:
    """A rollout in NumPy, ``[R, T, N, ...]``, which goes to the device once it is whole."""

    def __init__(self, spec: EnvSpec, shape: tuple[int, int, int]):
        # New buffers each time, because what is put on a CPU device may be the buffer itself.
        self._rows = _empty(np, spec, shape)

    @staticmethod
    def beside(obs: PyTree, values: PyTree) -> PyTree:
        """What `act` is given with these observations."""
        del obs
        return values

    @staticmethod
    def taken(action: jax.Array) -> Any:
        """What the environments are given of an action."""
        return np.asarray(action)

    def write(self, k: int, t: int, row: Rollout) -> None:
        """One step of a seed, leaves ``[N, ...]``."""
        for buffer, values in zip(self._rows, row, strict=True):
            if isinstance(buffer, dict):  # `jax.tree` would take longer than the copy
                for name, entry in buffer.items():
                    entry[k, t] = values[name]
            else:
                buffer[k, t] = values

    def finished(self) -> Rollout:
        """The rollout of all seeds, for the update."""
        return jax.device_put(self._rows)


class OnDevice:
    """The same in arrays of JAX, beside a simulator whose observations are on its device: none of them is copied to the
    host."""

    def __init__(self, spec: EnvSpec, shape: tuple[int, int, int]):
        self._rows, self._num_seeds = _empty(jnp, spec, shape), shape[0]

    @staticmethod
    def beside(obs: PyTree, values: PyTree) -> PyTree:
        # Where several devices share the seeds, a seed's policy may be on another one than its environments.
        return jax.device_put(values, jax.tree.leaves(obs)[0].sharding)

    @staticmethod
    def taken(action: jax.Array) -> Any:
        return action

    def write(self, k: int, t: int, row: Rollout) -> None:
        self._rows = _write_row(self._rows, np.int32(k), np.int32(t), row)

    def finished(self) -> Rollout:
        if num_devices(self._num_seeds) == 1:
            return self._rows
        return jax.device_put(self._rows, NamedSharding(mesh_of_seeds(self._num_seeds), PartitionSpec("seed")))


@functools.partial(jax.jit, donate_argnums=0)
def _write_row(rows: Rollout, k: jax.Array, t: jax.Array, row: Rollout) -> Rollout:
    """In place, because ``rows`` is given away."""
    return jax.tree.map(lambda buffer, values: buffer.at[k, t].set(values), rows, row)


def _place(env: HostVectorEnv) -> type[OnHost | OnDevice]:
    return OnDevice if env.simulator.on_device else OnHost


def _empty(xp: Any, spec: EnvSpec, shape: tuple[int, int, int]) -> Rollout:
    """Room for a rollout of every seed, leaves ``[R, T, N, ...]``, in NumPy or in JAX."""

    def observations() -> PyTree:
        return jax.tree.map(lambda x: xp.empty((*shape, *x.shape), x.dtype), spec.observation)

    sample, reward = xp.empty((*shape, *spec.action.shape), spec.action.dtype), xp.empty(shape, np.float32)
    return Rollout(observations(), sample, observations(), reward, *(xp.empty(shape, bool) for _ in range(3)))


def _seeds(keys: jax.Array) -> list[int]:
    """A seed for a simulator, 0 to 2**31 - 1, from each key."""
    return [int(bits) >> 1 for bits in jax.vmap(jax.random.bits)(keys)]
