"""Rollouts from environments on the host: a loop of Python around a compiled `act`, into NumPy buffers.

Seeds take turns: each has its own environments, and is stepped as if it were alone, so that what a seed does never
depends on the others.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import numpy.typing as npt

from reppo.collector import Collected, Keys, Stream, fold_in
from reppo.config import ConfigError, RunConfig
from reppo.envs.host import HostEnv, HostVectorEnv
from reppo.envs.spec import EnvSpec
from reppo.evaluate import Evaluation, first_episodes
from reppo.interrupt import Interrupt
from reppo.types import Learner, PyTree, Rollout

Array = npt.NDArray[Any]


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
        asked = {"cut": self.config.cut_probability > 0, "staggered": self.config.stagger_episodes}
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
        rows, episodes = self._buffers()
        for k, env in enumerate(self._training):
            policy, key = self._policy_and_key(state, self.keys.roots, k, iteration)
            self._fill(env, policy, key, *jax.tree.map(lambda x, k=k: x[k], (rows, episodes)))
        # New buffers each time, because what is put on a CPU device may be the buffer itself.
        return Collected(jax.device_put(rows), episodes, None, np.zeros(self.num_seeds, int))

    def _buffers(self) -> tuple[Rollout, dict[str, Array]]:
        """Room for a rollout of every seed, leaves ``[K, T, N, ...]``, and for its episode statistics."""
        shape = (self.num_seeds, self.config.num_steps, self.config.num_envs)

        def observations() -> PyTree:
            return jax.tree.map(lambda x: np.empty((*shape, *x.shape), x.dtype), self.spec.observation)

        flags = [np.empty(shape, bool) for _ in range(3)]
        action = self.spec.action
        sample, reward = np.empty((*shape, *action.shape), action.dtype), np.empty(shape, np.float32)
        rows: Any = Rollout(observations(), sample, observations(), reward, *flags)  # pyright: ignore[reportArgumentType]
        kinds = {"episode_return": float, "episode_length": int, "episode_done": bool, "reset": bool}
        return rows, {name: np.empty(shape, kind) for name, kind in kinds.items()}

    def _fill(
        self, env: HostVectorEnv, policy: list[jax.Array], key: jax.Array, rows: Rollout, episodes: dict[str, Array]
    ) -> None:
        """Roll out one seed's policy for ``T`` steps, into buffers ``[T, N, ...]``."""
        for t in range(self.config.num_steps):
            obs = env.obs
            action, sample = self._act(policy, obs, key, t, False)
            step = env.step(np.asarray(action))
            row = Rollout(obs, sample, step.next_obs, step.reward, step.terminated, step.truncated, step.valid)
            for buffer, values in zip(rows, row, strict=True):
                _write(buffer, t, values)
            for name, buffer in episodes.items():
                buffer[t] = step.info[name]

    # ------------------------------------------------------------------------------------- evaluation

    def evaluate(self, state: PyTree, episodes: int, seed: int, interrupt: Interrupt | None) -> Evaluation | None:
        """See `reppo.collector.Collector`. Seeds take turns in one set of environments, which is kept for the next time.

        Where there is one vector environment only, its training episodes are lost, and begin anew after it.
        """
        env = self._evaluation_env(episodes)
        number = -(-episodes // env.num_envs)
        results = []
        for k in range(self.num_seeds):
            (policy, _), key = self._policy_and_key(state, self.keys.roots, k, 0), self.keys.roots[k]

            def act(obs: PyTree, policy: Any = policy, key: Any = key) -> Array:
                return np.asarray(self._act(policy, obs, key, 0, True)[0])

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


def _write(buffer: PyTree, index: int, values: PyTree) -> None:
    """Into row ``index`` of an array, or of the arrays of a flat dict: `jax.tree` would take longer than the copy."""
    if isinstance(buffer, dict):
        for name, entry in buffer.items():
            entry[index] = values[name]
    else:
        buffer[index] = values


def _seeds(keys: jax.Array) -> list[int]:
    """A seed for a simulator, 0 to 2**31 - 1, from each key."""
    return [int(bits) >> 1 for bits in jax.vmap(jax.random.bits)(keys)]
