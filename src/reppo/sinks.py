"""Where a run's numbers go: CSV files, TensorBoard, Weights & Biases. The terminal is one more: `reppo.display`."""

from __future__ import annotations

import csv
import math
import os
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TextIO

from reppo.errors import ConfigError
from reppo.imports import without

with without("torch"):
    # Its SummaryWriter queues events to a thread, so that nobody knows how much of them is in the file.
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event as EventRecord  # pyright: ignore[reportAttributeAccessIssue]
    from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

Rows = Sequence[dict[str, float]]


class Event(NamedTuple):
    """Something that happened in a run: rows of a table (one per seed), or a word to the user."""

    kind: Literal["metrics", "evaluations", "status", "warning"]
    rows: Rows = ()
    text: str = ""

    @classmethod
    def status(cls, text: str) -> Event:
        """What the run is doing now."""
        return cls("status", text=text)

    @classmethod
    def warning(cls, text: str) -> Event:
        """Something the user should act on."""
        return cls("warning", text=text)


class Sink(Protocol):
    def begin(self, description: dict[str, Any]) -> None:
        """The run starts; ``description`` is the contents of its ``config.json``."""

    def write(self, event: Event) -> None: ...

    def close(self) -> None:
        """The run is over, however it ended."""


class PythonWarnings:
    """What the user should act on, as Python's warnings: for a run that shows its events to nobody else."""

    def begin(self, description: dict[str, Any]) -> None:
        del description

    def write(self, event: Event) -> None:
        if event.kind == "warning":
            warnings.warn(event.text, RuntimeWarning, stacklevel=2)

    def close(self) -> None:
        """Nothing is open."""


class CsvSink:
    """``metrics.csv`` and ``evaluations.csv``: a row per seed and iteration. Files that exist are continued."""

    def __init__(self, directory: Path):
        self._directory = directory
        self._tables: dict[str, tuple[TextIO, csv.DictWriter]] = {}

    def begin(self, description: dict[str, Any]) -> None:
        del description

    def write(self, event: Event) -> None:
        if not event.rows:
            return
        if event.kind not in self._tables:
            self._tables[event.kind] = self._open(event.kind, list(event.rows[0]))
        file, table = self._tables[event.kind]
        table.writerows({name: as_written(value) for name, value in row.items()} for row in event.rows)
        file.flush()

    def _open(self, kind: str, columns: list[str]) -> tuple[TextIO, csv.DictWriter]:
        path = self._directory / f"{kind}.csv"
        file = path.open("a+", newline="")
        table = csv.DictWriter(file, columns)
        file.seek(0)
        header = next(csv.reader(file), None)
        file.seek(0, os.SEEK_END)
        if header is None:
            table.writeheader()
        elif header != columns:
            file.close()
            different = [name[:40] for name in sorted(set(header) ^ set(columns))]
            listed = ", ".join([*different[:4], *["..."] * (len(different) > 4)]) or "their order"
            raise ConfigError(f"{path} has other columns than this version writes: {listed}")
        return file, table

    def flush(self) -> None:
        """Nothing waits: rows are flushed as they are written."""

    def close(self) -> None:
        for file, _ in self._tables.values():
            file.close()


def as_written(value: float) -> str:
    """Shortest text that reads back as the same float32; whole numbers without a point; nothing for NaN."""
    if math.isnan(value):
        return ""
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else f"{value:.9g}"


def best_evaluation(evaluations: Sequence[dict[str, float]], seed: int) -> dict[str, float]:
    """The row of a seed's best evaluation, the first of several; that of its untrained policy counts for nothing.

    Returns count with the digits of the table, which are all that a resumed run knows of its past.
    """
    rows = [row for row in evaluations if row["seed"] == seed and row["iteration"] > 0]
    best = max(rows, key=lambda row: float(as_written(row["eval/return"])))
    return {**best, "eval/return": float(as_written(best["eval/return"]))}


class TensorBoardSink:
    """TensorBoard event files, one TensorBoard run per seed; each process of a run adds a file."""

    def __init__(self, directory: Path, seeds: Sequence[int]):
        self._directories = {s: directory / f"seed{s}" if len(seeds) > 1 else directory for s in seeds}
        self._writers: dict[int, EventsWriter] = {}

    def begin(self, description: dict[str, Any]) -> None:
        del description
        for seed, directory in self._directories.items():
            directory.mkdir(parents=True, exist_ok=True)
            # A number in the name, because the library's own name is only the second in which it starts.
            self._writers[seed] = EventsWriter(str(directory / "events"), f".{len(list(directory.iterdir()))}")

    def write(self, event: Event) -> None:
        for row in event.rows:
            values = [
                Summary.Value(tag=name, simple_value=value)
                for name, value in row.items()
                if "/" in name and not math.isnan(value)
            ]
            record = EventRecord(wall_time=time.time(), step=int(row["env_steps"]), summary=Summary(value=values))
            self._writers[int(row["seed"])].write_event(record)
        if event.kind == "evaluations":
            self.flush()

    def flush(self) -> None:
        """Everything written so far reaches the disk."""
        for writer in self._writers.values():
            writer.flush()

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()


class WandbSink:
    """Weights & Biases, one W&B run per seed, grouped. Only when asked for: it uses the network."""

    def __init__(self, project: str):
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise ConfigError("--wandb needs wandb: pip install 'reppo[wandb]'") from None
        self._wandb, self._project = wandb, project
        self._runs: dict[int, Any] = {}

    def begin(self, description: dict[str, Any]) -> None:
        group = f"{description['env']}-{self._wandb.util.generate_id()}"
        for seed in description["seeds"]:
            self._runs[seed] = self._wandb.init(
                project=self._project,
                group=group,
                name=f"{description['env']}-{seed}",
                config=description,
                reinit="create_new",
            )

    def write(self, event: Event) -> None:
        for row in event.rows:
            values = {name: value for name, value in row.items() if "/" in name and not math.isnan(value)}
            self._runs[int(row["seed"])].log({**values, "env_steps": row["env_steps"]})

    def close(self) -> None:
        for run in self._runs.values():
            run.finish()
