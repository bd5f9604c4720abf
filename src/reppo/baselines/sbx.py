"""SBX, Stable-Baselines3's PPO and SAC written in JAX by its authors: its models in the runs of `reppo.baselines.sb3`.

Neither has gSDE, exploration that depends on the state; SBX accepts its settings and does something else.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from reppo.baselines import sb3
from reppo.baselines.foreign import Params
from reppo.errors import ConfigError

PACKAGES = (*sb3.SB3Config.packages, "sbx")


#: Where Stable-Baselines3's settings of a task have gSDE.
WITHOUT_SDE = {"use_sde": False, "sde_sample_freq": -1}


def refuse_sde(config: sb3.SB3Config) -> None:
    if config.use_sde:
        raise ConfigError(f"use_sde must be false: {config.name} has no gSDE")


@dataclasses.dataclass(frozen=True)
class PPOConfig(sb3.PPOConfig):
    """PPO."""

    name = "sbx-ppo"
    packages = PACKAGES
    extra = "sbx"

    def validate(self) -> None:
        """Raise `ConfigError` at the first value that cannot be trained with."""
        super().validate()
        refuse_sde(self)


@dataclasses.dataclass(frozen=True)
class SACConfig(sb3.SACConfig):
    """SAC."""

    name = "sbx-sac"
    packages = PACKAGES
    extra = "sbx"

    def validate(self) -> None:
        """Raise `ConfigError` at the first value that cannot be trained with."""
        super().validate()
        refuse_sde(self)


def presets(env: str, algorithm: str) -> dict[str, Any]:
    """Those of Stable-Baselines3's algorithm, without gSDE."""
    kind = {"sbx-ppo": PPOConfig, "sbx-sac": SACConfig}[algorithm]
    found = sb3.presets(env, algorithm.replace("sbx", "sb3"))
    return {name: kind(**{**dataclasses.asdict(config), **WITHOUT_SDE}) for name, config in found.items()}


class Agent(sb3.Agent):
    """A model of SBX on an environment, and its greedy episodes on another copy of it."""

    def make_model(self, seed: int) -> Any:
        import flax.linen  # pyright: ignore[reportMissingImports]
        import sbx  # pyright: ignore[reportMissingImports]

        activations = {"tanh": flax.linen.tanh, "relu": flax.linen.relu}
        return sb3.model(sbx, activations, self.vector, self.config, seed)

    def arrays(self) -> list[Any]:
        """Parameters, targets and moments of Adam."""
        import jax

        policy = self.model.policy
        states = (policy.actor_state, policy.vf_state if isinstance(self.config, PPOConfig) else policy.qf_state)
        return [leaf for leaf in jax.tree.leaves(states) if isinstance(leaf, jax.Array) and leaf.ndim > 0]

    def parameter_bytes(self) -> int:
        return sum(array.nbytes for array in self.arrays())

    def sound(self, params: Params) -> bool:
        del params  # there is one policy, which learns in place
        import jax.numpy as jnp

        return all(bool(jnp.isfinite(array).all()) for array in self.arrays())
