"""The results of one run on the disk: a small table of its evaluations, and a JSON file that says what it was.

    results/bench/SUITE/ALGORITHM/SUITE-TASK-seed7.csv    env_steps, seconds, return, return_std, episodes; and
                                                          success_once, success_at_end, where the environment says them
    results/bench/SUITE/ALGORITHM/SUITE-TASK-seed7.json   written last: what has one is whole

The JSON file holds the table's SHA-256, so that a table which was cut off, edited or put beside another's description is
found out, named, and left out. A run that failed has a JSON file, too, and the evaluations that it had made: it is launched
again, and counts until then.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from reppo import algorithms
from reppo.config import LATER_OPTIONS
from reppo.errors import ConfigError
from reppo.files import replacing, set_aside, write_json
from reppo.provenance import computer

FORMAT = "reppo-run-1"
COLUMNS = ("env_steps", "seconds", "return", "return_std", "episodes")
SUCCESS = ("success_once", "success_at_end")  #: more columns, where the environment says whether its task is solved

Status = Literal["complete", "diverged", "failed"]


class Key(NamedTuple):
    """Which run of which suite."""

    suite: str
    algorithm: str
    env: str
    seed: int

    def path(self, results: Path) -> Path:
        """Its JSON file."""
        task = re.sub(r"[^A-Za-z0-9_.-]+", "-", self.env)
        return results / "bench" / self.suite / self.algorithm / f"{task}-seed{self.seed}.json"

    def __str__(self) -> str:
        return f"{self.algorithm} on {self.env}, seed {self.seed}"


@dataclasses.dataclass(frozen=True)
class Record:
    """One run: its evaluations, and what it was. One that failed has those before, and none if it failed at once."""

    key: Key
    status: Status
    command: str  #: that would make it again
    description: dict[str, Any]  #: the contents of its ``config.json``
    seconds: float  #: from the start of its process to its end, compilation included; of all seeds in it together
    seeds_together: int
    peak_memory_bytes: int | None
    curve: NDArray[np.float64]  #: ``[T, 5]``, see `COLUMNS`; ``[T, 7]`` with `SUCCESS`
    problem: str = ""  #: what went wrong
    computed_memory_bytes: Mapping[str, int] | None = None  #: of its process: parameters, batch, replay; None: unknown

    @property
    def steps(self) -> NDArray[np.float64]:
        return self.curve[:, 0]

    @property
    def returns(self) -> NDArray[np.float64]:
        """Mean greedy return of every evaluation."""
        return self.measured("return")

    @property
    def has_success(self) -> bool:
        return self.curve.shape[1] > len(COLUMNS)

    def measured(self, column: str) -> NDArray[np.float64]:
        """A column of the table, ``[T]``. A value that is not finite counts as the one before it."""
        values = self.curve[:, (*COLUMNS, *SUCCESS).index(column)].copy()
        for i in range(1, len(values)):
            if not math.isfinite(values[i]):
                values[i] = values[i - 1]
        return values

    @property
    def config(self) -> dict[str, Any]:
        return self.description.get("config") or {}

    @property
    def hardware(self) -> str:
        return computer(self.description.get("hardware") or {})


# ------------------------------------------------------------------------------------------------ writing


def table(curve: NDArray[np.float64]) -> bytes:
    """The CSV file of a curve."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((*COLUMNS, *SUCCESS)[: curve.shape[1]])
    writer.writerows([f"{value:.9g}" if math.isfinite(value) else "" for value in row] for row in curve)
    return text.getvalue().encode()


def write(record: Record, results: Path) -> Path:
    """Both files of a run, the JSON file last; returns the latter's path.

    Files in their place that cannot be read get another name: perhaps somebody can mend them.
    """
    path = record.key.path(results)
    data = table(record.curve)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        set_aside_damaged(path)
        with replacing(path.with_suffix(".csv")) as file:
            file.write(data)
        values = {
            "format": FORMAT,
            **record.key._asdict(),
            "status": record.status,
            "problem": record.problem,
            "command": record.command,
            "seconds": round(record.seconds, 2),
            "seeds_together": record.seeds_together,
            "peak_memory_bytes": record.peak_memory_bytes,
            "computed_memory_bytes": record.computed_memory_bytes,
            "table_sha256": hashlib.sha256(data).hexdigest(),
            "description": record.description,
        }
        write_json(path, values)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error
    return path


def set_aside_damaged(path: Path) -> None:
    """Rename both files of a run where it cannot be read: neither is used then, nor written over."""
    if not path.exists():  # a table alone is of a process that was killed in between; its run directory has it
        return
    try:
        read(path)
    except ConfigError:
        for file in (path, path.with_suffix(".csv")):
            if file.exists():
                set_aside(file)


# ------------------------------------------------------------------------------------------------ reading


def read(path: Path) -> Record:
    """One run; raises `ConfigError`, with one line that names the file, where it is damaged or of something else."""
    try:
        values = json.loads(path.read_text())
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise ConfigError(f"{path} is not a result of `reppo bench`")
        key = Key(*(values[name] for name in Key._fields))
        data = path.with_suffix(".csv").read_bytes()
        if hashlib.sha256(data).hexdigest() != values["table_sha256"]:
            raise ConfigError(
                f"{path.with_suffix('.csv')} is damaged: it is not the table that {path.name} was written with"
            )
        memory, parts = values["peak_memory_bytes"], values.get("computed_memory_bytes")
        record = Record(
            key=key,
            status=values["status"],
            command=str(values["command"]),
            description=dict(values["description"]),
            seconds=float(values["seconds"]),
            seeds_together=int(values["seeds_together"]),
            peak_memory_bytes=None if memory is None else int(memory),
            curve=curve(data),
            problem=str(values["problem"]),
            computed_memory_bytes=None if parts is None else {str(name): int(size) for name, size in parts.items()},
        )
        check(record, path)
    except ConfigError:
        raise
    except FileNotFoundError as error:
        raise ConfigError(f"{path} is damaged: there is no {Path(error.filename).name}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{path} is damaged ({type(error).__name__}: {str(error) or 'unreadable'})") from None
    return record


def curve(data: bytes) -> NDArray[np.float64]:
    """The rows of a table, ``[T, 5]``, or ``[T, 7]`` with `SUCCESS`."""
    rows = list(csv.reader(io.StringIO(data.decode(), newline="")))
    if not rows or tuple(rows[0]) not in (COLUMNS, (*COLUMNS, *SUCCESS)):
        raise ValueError(f"its columns are not {', '.join(COLUMNS)}")
    return np.array([[float(cell or "nan") for cell in row] for row in rows[1:]], float).reshape(-1, len(rows[0]))


def check(record: Record, path: Path) -> None:
    """Refuse what `reppo bench` would not have written; raises `ConfigError`."""
    key, steps = record.key, record.steps
    texts = isinstance(key.suite, str) and isinstance(key.algorithm, str) and isinstance(key.env, str)
    if not texts or type(key.seed) is not int or record.status not in get_args(Status):
        raise ConfigError(f"{path} is damaged: it does not say which run it is")
    check_description(record, path)
    sizes = [record.peak_memory_bytes or 0, *(record.computed_memory_bytes or {}).values()]
    if not 0 <= record.seconds < math.inf or min(sizes) < 0:
        raise ConfigError(f"{path} is damaged: seconds and bytes must be finite and not negative")
    if record.status == "failed" and len(steps) == 0:
        return
    read = len(steps) > 0 and np.isfinite(record.curve[:, :2]).all() and math.isfinite(record.returns[0])
    read = read and bool(np.all(np.diff(record.curve[:, 1], prepend=0.0) >= 0))  # seconds
    success = record.curve[:, len(COLUMNS) :]
    if not read or np.any(np.diff(steps) <= 0) or not np.all((success >= 0) & (success <= 1)):
        raise ConfigError(f"{path.with_suffix('.csv')} is damaged: it is no learning curve")
    total = record.config.get("total_steps")
    if record.status == "complete" and isinstance(total, int) and steps[-1] < total:
        raise ConfigError(f"{path} is of a run that has not ended: {steps[-1]:,.0f} of {total:,} steps")


def check_description(record: Record, path: Path) -> None:
    """Refuse a description that is of another run, or that a report cannot read; raises `ConfigError`."""
    about = record.description
    hardware, config, git = about.get("hardware") or {}, about.get("config") or {}, about.get("git") or ""
    read = isinstance(hardware, dict) and isinstance(config, dict) and isinstance(git, str)
    devices = (hardware.get("devices") or []) if read else []
    seeds = about.get("seeds", [record.key.seed])
    if not read or not isinstance(seeds, list) or not isinstance(devices, list) or not all(type(d) is str for d in devices):
        raise ConfigError(f"{path} is damaged: it does not describe a run")
    if about.get("env", record.key.env) != record.key.env or record.key.seed not in seeds:
        raise ConfigError(f"{path} is damaged: it describes another run than it is of")


class Found(NamedTuple):
    """What there is in a directory of results."""

    records: list[Record]  #: in the order of their keys
    problems: list[str]  #: a line for each file that was left out
    copies: frozenset[Key] = frozenset()  #: runs that were left out because they have one table


def read_all(results: Path) -> Found:
    """Every run under ``results/bench``.

    Raises:
        ConfigError: where one run is there in two versions: two files, or seeds of other options than the rest.
    """
    folder = results / "bench"
    records: dict[Key, Record] = {}
    seen: dict[Key, Path] = {}
    problems = []
    for path in sorted(folder.rglob("*")):
        if path.is_dir() or path.name == "README.md":
            continue
        if path.suffix != ".json":
            if path.suffix != ".csv" or not path.with_suffix(".json").exists():
                problems.append(f"{path} is not a result of `reppo bench`, or its run has not ended")
            continue
        try:
            record = read(path)
        except ConfigError as error:
            problems.append(str(error))
            continue
        if record.key in seen:
            raise ConfigError(f"two versions of one run, {record.key}: {seen[record.key]} and {path}; keep one of them")
        seen[record.key] = path
        if path == record.key.path(results):
            records[record.key] = record
        else:
            problems.append(f"{path} is not where {record.key} of {record.key.suite} belongs")
    copies: set[Key] = set()
    for key, other in copied(records.values()):
        problems.append(f"{seen[key]} and {seen[other]} have one table: one of them is a copy; remove it")
        copies |= {key, other}
    found = [records[key] for key in sorted(records.keys() - copies)]
    refuse_mixed(found)
    return Found(found, problems, frozenset(copies))


def copied(found: Iterable[Record]) -> Iterator[tuple[Key, Key]]:
    """Pairs of runs that have one table, to the last digit: nobody can say which of the two had it.

    Seeds that shared a process have its seconds, and may have one return all along, such as none: that is no copy.
    """
    first: dict[bytes, Key] = {}
    for record in found:
        told = record.curve[:, 2:]
        if not np.all(told == told[:1]):
            other = first.setdefault(table(record.curve), record.key)
            if other != record.key:
                yield other, record.key


def refuse_mixed(found: Iterable[Record]) -> None:
    """Refuse seeds of one algorithm on one task that had different options: they are two experiments."""
    first: dict[tuple[str, str, str], Record] = {}
    for record in found:
        if not record.config:
            continue
        other = first.setdefault(record.key[:3], record)
        if changed := differences(algorithm_of(record.description), other.config, record.config):
            raise ConfigError(
                f"two versions of {record.key.algorithm} on {record.key.env}: seed {record.key.seed} differs from seed "
                f"{other.key.seed} in {', '.join(changed)}; keep one of them"
            )


def algorithm_of(description: Mapping[str, Any]) -> str:
    """The name in `reppo.algorithms` of what a run's ``config.json`` describes; one without a name is REPPO's."""
    name = description.get("algorithm")
    return name if isinstance(name, str) and name in algorithms.ALGORITHMS else algorithms.REPPO


#: Options that change nothing of what a run computes.
IMMATERIAL = frozenset(["checkpoint_minutes", "keep_checkpoints", "keep_best"])


def differences(algorithm: str, config: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """``name this -> that`` of the options of an algorithm that differ.

    One that a configuration lacks came later; what was done before it is its default, or in `LATER_OPTIONS`.
    """
    defaults = {**dataclasses.asdict(algorithms.config_class(algorithm)()), **LATER_OPTIONS}
    changed = []
    for name in sorted((config.keys() | other.keys()) - IMMATERIAL):
        was, now = (values.get(name, defaults.get(name)) for values in (config, other))
        if jsonable(was) != jsonable(now):
            changed.append(f"{name} {was} -> {now}")
    return changed


def jsonable(value: Any) -> Any:
    """A value as JSON has it: tuples are lists there."""
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
