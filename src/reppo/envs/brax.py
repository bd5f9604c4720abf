"""Brax (``brax:ant``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from reppo import imports
from reppo.envs.brax_style import BraxStyle

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


def make(name: str, backend: str | None = None) -> Brax:
    """Build a task; ``backend`` is one of Brax's physics back ends, unset the task's own."""
    options: dict[str, Any] = {} if backend is None else {"backend": backend}
    return Brax(
        _envs().get_environment(name, **options), name=f"brax:{name}", episode_length=EPISODE_LENGTH, value_range=None
    )
