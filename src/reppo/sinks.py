"""Where a run's numbers go: CSV files, TensorBoard, Weights & Biases. The terminal is one more: `reppo.display`."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TextIO

from reppo.config import ConfigError

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


class CsvSink:
    """``metrics.csv`` and ``evaluations.csv``: a row per seed and iteration, flushed as it is written."""

    def __init__(self, directory: Path):
        self._directory = directory
        self._tables: dict[str, tuple[TextIO, csv.DictWriter]] = {}

    def begin(self, description: dict[str, Any]) -> None:
        del description

    def write(self, event: Event) -> None:
        if not event.rows:
            return
        if event.kind not in self._tables:
            file = (self._directory / f"{event.kind}.csv").open("x", newline="")
            table = csv.DictWriter(file, list(event.rows[0]))
            table.writeheader()
            self._tables[event.kind] = file, table
        file, table = self._tables[event.kind]
        table.writerows({name: _number(value) for name, value in row.items()} for row in event.rows)
        file.flush()

    def close(self) -> None:
        for file, _ in self._tables.values():
            file.close()


def _number(value: float) -> str:
    """Shortest text that reads back as the same float32; whole numbers without a point; nothing for NaN."""
    if math.isnan(value):
        return ""
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else f"{value:.9g}"


class TensorBoardSink:
    """TensorBoard event files, one run per seed."""

    def __init__(self, directory: Path, seeds: Sequence[int]):
        from tensorboardX import SummaryWriter

        many = len(seeds) > 1
        self._writers = {s: SummaryWriter(str(directory / f"seed{s}" if many else directory)) for s in seeds}

    def begin(self, description: dict[str, Any]) -> None:
        del description

    def write(self, event: Event) -> None:
        for row in event.rows:
            writer = self._writers[int(row["seed"])]
            for name, value in row.items():
                if "/" in name and not math.isnan(value):
                    writer.add_scalar(name, value, int(row["env_steps"]))

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
