"""What `reppo` raises of itself: one root, and one line of text each, which the command line prints as it is."""

from __future__ import annotations


class ReppoError(Exception):
    """Whatever is not a defect of ours: a mistake, a run that its numbers have ended, a run that was asked to stop."""


class ConfigError(ReppoError, ValueError):
    """A user's mistake, and what to do about it. The command line exits with code 2."""


class Diverged(ReppoError, RuntimeError):
    """Too much of a run's data or of its gradients is not finite for it to go on. The command line exits with code 3."""


class Stopped(ReppoError):
    """A run was asked to stop, and has left a checkpoint; its text says how to resume. The command line exits with 75."""
