"""Simulators that step a batch of environments with torch tensors: what their adapters share.

An adapter is a `TensorEnv`, as thin as its package allows. `TensorSimulator` makes a `Simulator` of one or several of
them: tensors become arrays through DLPack, and episodes that have ended are begun anew by it, so that nothing depends on a
package's own automatic resets. Where torch and JAX use the same GPU, observations and actions stay on it. Torch itself is
needed only to make tensors of actions.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import numpy.typing as npt

from reppo.envs.host import RawStep, Simulator, as_numbers, where_rows
from reppo.envs.spaces import Actions, Observations, namespace
from reppo.types import PyTree

Array = npt.NDArray[Any]
Tensor = Any  #: anything with ``__dlpack__``: torch's tensors, and NumPy's arrays in tests


class TensorStep(NamedTuple):
    """One step of a `TensorEnv`; tensors ``[n, ...]``."""

    #: the true successor of the action, also where the episode ended; where ``obs`` is given, there alone
    next_obs: Any
    reward: Tensor  #: float ``[n]``
    terminated: Tensor  #: bool ``[n]``
    truncated: Tensor  #: bool ``[n]``
    success: Tensor | None = None  #: bool ``[n]``: whether the task is solved; None where the environment does not say
    obs: Any = None  #: what is acted on next, of an environment that resets itself; None of one that does not


class TensorEnv(abc.ABC):
    """``num_envs`` environments that their package steps together."""

    num_envs: int

    @abc.abstractmethod
    def reset(self, seeds: Sequence[int]) -> Any:
        """Begin an episode everywhere; returns observations, tensors ``[n, ...]``. There are ``n`` seeds."""

    @abc.abstractmethod
    def reset_rows(self, rows: Array, seeds: Sequence[int]) -> Any:
        """Begin an episode where ``rows``, bool ``[n]``, and leave the others where they are; returns observations
        ``[n, ...]``, of which the others' mean nothing. The ``n`` seeds are new at each call."""

    @abc.abstractmethod
    def step(self, action: Tensor) -> TensorStep:
        """Step with actions ``[n, A]`` within the bounds."""

    @abc.abstractmethod
    def close(self) -> None:
        """End everything that it has started; it may be called twice."""


def to_array(tensor: Tensor) -> Array:
    """A tensor as an array: on a CPU a view of its memory, which its simulator may write to later; of a GPU a copy."""
    if getattr(tensor, "is_cuda", False):
        tensor = tensor.cpu()
    return np.from_dlpack(tensor)


def torch_tensors(device: Any) -> Callable[[Any], Tensor]:
    """What makes torch's tensors on a device of arrays, NumPy's or JAX's: in the same memory where that is on the device."""
    import torch  # pyright: ignore[reportMissingImports]

    return lambda array: torch.from_dlpack(array).to(device)


def to_jax(tensor: Tensor) -> jax.Array:
    """A tensor as an array of JAX on the same device: a view of its memory, which its simulator may write to later."""
    return jax.dlpack.from_dlpack(tensor.contiguous() if hasattr(tensor, "contiguous") else tensor)


def stays_on_device(device: Any) -> bool:
    """Whether what a simulator computes on this device of torch's is where JAX computes, too."""
    return "cuda" in str(device) and jax.default_backend() == "gpu"


class TensorSimulator(Simulator):
    """The environments of several `TensorEnv`, one after another.

    A package that steps all ``N`` together, on a GPU, is one of them; one whose CPU backend has one environment is ``N``.
    Every random number comes from the seed of `reset`: environment ``i`` draws the seeds of its episodes from ``seed + i``.

    With ``on_device``, observations and actions stay where torch has them, as arrays of JAX; rewards and flags, a number
    each, come to the host, which decides about resets.
    """

    def __init__(
        self,
        batches: Sequence[TensorEnv],
        observations: Observations,
        actions: Actions,
        as_tensor: Callable[[Any], Tensor],
        on_device: bool = False,
    ):
        self.on_device = on_device
        self.num_envs = sum(batch.num_envs for batch in batches)
        self._batches, self._observations, self._actions, self._as_tensor = batches, observations, actions, as_tensor
        ends = np.cumsum([batch.num_envs for batch in batches])
        self._slices = [slice(end - batch.num_envs, end) for batch, end in zip(batches, ends, strict=True)]
        self._episodes: list[np.random.Generator] = []

    def reset(self, seed: int) -> PyTree:
        self._episodes = [np.random.default_rng(seed + i) for i in range(self.num_envs)]
        return self._joined([batch.reset(self._seeds(part)) for batch, part in self._parts()])

    def _parts(self) -> list[tuple[TensorEnv, slice]]:
        return list(zip(self._batches, self._slices, strict=True))

    def _seeds(self, part: slice) -> list[int]:
        """A new seed for each environment of a batch."""
        return [int(rng.integers(2**31)) for rng in self._episodes[part]]

    def _joined(self, observations: Sequence[Any]) -> PyTree:
        """Observations of all batches, tensors ``[n, ...]``, as arrays ``[N, D]`` of our own."""
        return _concatenated([self._read(obs, batch) for obs, batch in zip(observations, self._batches, strict=True)])

    def _read(self, obs: Any, batch: TensorEnv) -> PyTree:
        """Observations of a batch, tensors ``[n, ...]``, as arrays ``[n, D]`` of our own."""
        arrays = self._observations.read(jax.tree.map(to_jax if self.on_device else to_array, obs), batch.num_envs)
        # JAX copies while Python goes on, and the simulator may write into the memory that is being copied.
        return jax.block_until_ready(arrays) if self.on_device else arrays

    def step(self, action: Any) -> RawStep:
        tensors = self._as_tensor(self._actions.as_taken(action))
        steps = [batch.step(tensors[part]) for batch, part in self._parts()]
        next_obs = self._joined([step.next_obs for step in steps])
        reward = self._column("reward", [step.reward for step in steps])
        terminated = self._column("terminated", [step.terminated for step in steps])
        truncated = self._column("truncated", [step.truncated for step in steps])
        success = None if steps[0].success is None else self._column("success", [step.success for step in steps])
        over = terminated | truncated
        obs = next_obs
        if steps[0].obs is not None:
            obs = self._joined([step.obs for step in steps])
            next_obs = where_rows(over, next_obs, obs)
        elif over.any():
            obs = where_rows(over, self.reset_rows(over), next_obs)
        return RawStep(obs, next_obs, reward, terminated, truncated, success=success)

    def _column(self, name: str, tensors: Sequence[Tensor]) -> Array:
        """One number of every environment, ``[N]``, in memory of our own."""
        return as_numbers(name, np.concatenate([to_array(tensor) for tensor in tensors]), (self.num_envs,))

    def reset_rows(self, rows: Array) -> PyTree:
        return _concatenated(
            [
                self._read(batch.reset_rows(rows[part], self._seeds(part)), batch)
                if rows[part].any()
                else self._observations.empty(batch.num_envs)
                for batch, part in self._parts()
            ]
        )

    def close(self) -> None:
        for batch in self._batches:
            batch.close()
        self._batches, self._slices = [], []


def _concatenated(parts: Sequence[PyTree]) -> PyTree:
    """Arrays ``[n, D]`` of all batches, one after another."""
    return parts[0] if len(parts) == 1 else jax.tree.map(lambda *x: namespace(*x).concatenate(x), *parts)
