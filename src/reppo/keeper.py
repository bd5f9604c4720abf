"""When a run is saved."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence

from reppo import checkpoint, run_directory
from reppo.errors import ConfigError
from reppo.run import Clock, Run
from reppo.sinks import CsvSink, TensorBoardSink


class Keeper:
    """Decides when a run is saved: now and then by the clock, after every evaluation, and when it is told to."""

    def __init__(self, run: Run, files: Sequence[CsvSink | TensorBoardSink], clock: Clock):
        self.run, self.files, self.clock = run, files, clock
        self.saved_at = time.perf_counter()
        self.saved = self._moment if run.state is not None else None  # a run that was restored is on the disk
        self.saver: checkpoint.Saver | None = None
        if run.directory is not None:
            self.saver = checkpoint.Saver(run.directory / "checkpoints", run.config.keep_checkpoints, run.config.keep_best)

    @property
    def _moment(self) -> tuple[int, bool]:
        return self.run.iteration, self.run.evaluated

    @property
    def due(self) -> bool:
        return time.perf_counter() - self.saved_at > 60 * self.run.config.checkpoint_minutes

    def save(self) -> None:
        """Start a checkpoint of this moment, unless there is one; the run goes on while it is written.

        Raises:
            ConfigError: where the one before it could not be written.
        """
        run = self.run
        if self.saver is None or run.directory is None or self.saved == self._moment:
            return
        for file in self.files:
            file.flush()
        progress = checkpoint.Progress(
            iteration=run.iteration,
            env_steps=run.env_steps,
            seconds=self.clock.seconds,
            evaluated=run.evaluated,
            returns=run.returns.tolist(),
            positions=run_directory.positions(run.directory),
        )
        with self._explained():
            self.saver.save({"learner": run.state, "env": run.env_state}, progress, run.description)
        self.saved, self.saved_at = self._moment, time.perf_counter()

    def wait(self) -> None:
        """Until the checkpoint that was started last is on disk; raises `ConfigError` where it could not be written."""
        with self._explained():
            if self.saver is not None:
                self.saver.wait()

    def settle(self) -> None:
        """Let a checkpoint in progress end, whatever went wrong."""
        if self.saver is not None:
            self.saver.settle()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            directory = self.run.directory
            last = checkpoint.listing(directory / "checkpoints")[-1:] if directory else []
            sound = f"the newest is at {checkpoint.steps(last[0]):,} steps" if last else "there is none yet"
            raise ConfigError(
                f"cannot write a checkpoint: {error.strerror or error}; {sound}; mend it, then `reppo resume {directory}`"
            ) from error
