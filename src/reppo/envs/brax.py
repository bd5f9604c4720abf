"""Brax (``brax:ant``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from reppo import imports
from reppo.envs.brax_style import BraxStyle
from reppo.errors import ConfigError

EPISODE_LENGTH = 1000  #: the time limit that Brax's own training uses for all of its tasks


def _envs() -> Any:
    with imports.of_physics():
        from brax import envs
    return envs


def names() -> list[str]:
    return sorted(_envs()._envs)


class Brax(BraxStyle):
    """A task of Brax; its pictures are those of the physics alone."""

    def drawable(self, states: Sequence[Any]) -> list[Any]:
        return [state.pipeline_state for state in states]


def make(name: str, physics: str | None = None) -> Brax:
    """Build a task; ``physics`` is one of Brax's back ends, unset the task's own."""
    options: dict[str, Any] = {} if physics is None else {"backend": physics}
    try:
        env = _envs().get_environment(name, **options)
    except (AssertionError, KeyError, ValueError) as error:  # a task without that back end
        raise ConfigError(f"brax:{name} cannot be made: {type(error).__name__}: {error}") from error
    made = f"brax:{name}{'' if physics is None else f'@{physics}'}"
    return Brax(env, name=made, episode_length=EPISODE_LENGTH, value_range=None)
