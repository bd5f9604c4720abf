"""The proof that nothing is lost: kills, signals, broken numbers, damaged files. Its tables are in docs/reliability.md.

    python benchmarks/reliability.py kills           # kill -9 at 200 random moments of a run, then resume
    python benchmarks/reliability.py saves           # kill -9 at 50 moments inside a save, then resume
    python benchmarks/reliability.py signals         # SIGTERM at 50 random moments, half of them with nothing compiled
    python benchmarks/reliability.py all             # everything

Each writes ``results/reliability_WHAT.csv``, a row when a trial ends; rows that are there already are kept, so that an
interrupted campaign goes on. ``results/reliability.json`` names versions and hardware.

The processes that are killed or signalled are ``python -m reppo train ...``, started afresh and not altered in any way.
The processes that resume run the same entry point, but are forked from one that has imported the libraries and not yet
initialised JAX, which saves the seconds of importing.
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from reppo import checkpoint, provenance
from reppo.files import PARTIAL
from reppo.interrupt import KILLED, STOPPED

RESULTS = Path(__file__).parent.parent / "results"
ENV = "probe:TargetReach"
#: A run of seconds: 16 iterations of 64 steps, evaluations after 0, 8 and 16 of them, a checkpoint every 30 ms at most.
OPTIONS = shlex.split(
    "--preset cpu --total-steps 1024 --num-envs 8 --num-steps 8 --num-minibatches 2 --num-epochs 2 --target-samples 2 "
    "--actor-width 16 --critic-width 16 --num-bins 21 --episode-length 20 --num-evals 2 --eval-episodes 8 "
    "--checkpoint-minutes 0.0005"
)
PATIENCE = 300.0  #: seconds after which a process is said to hang

Row = dict[str, Any]


# ------------------------------------------------------------------------------------------- tables


def rows_of(path: Path) -> list[dict[str, str]]:
    """The rows of a table; none where it is not there."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def append(path: Path, row: Row) -> None:
    """Add a row to a table, with a header where it is new."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        table = csv.DictWriter(file, list(row))
        if new:
            table.writeheader()
        table.writerow(row)
    print(*(f"{name}={value}" for name, value in row.items()), flush=True)


def missing_trials(path: Path, trials: int) -> list[int]:
    done = {int(row["trial"]) for row in rows_of(path)}
    return [trial for trial in range(trials) if trial not in done]


# ------------------------------------------------------------------------------------------- processes


def start(argv: list[str], cache: Path, log: Path) -> subprocess.Popen[bytes]:
    """The program, afresh, with its compilation cache below ``cache``."""
    with log.open("wb") as file:
        command = [sys.executable, "-m", "reppo", *argv]
        return subprocess.Popen(command, stdout=file, stderr=file, env={**os.environ, "XDG_CACHE_HOME": str(cache)})


def _forked(argv: list[str], cache: str, log: str) -> None:
    from reppo.__main__ import main

    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ["XDG_CACHE_HOME"] = cache
    sys.argv = ["reppo", *argv]
    sys.exit(main())


FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["reppo.cli", "orbax.checkpoint", "matplotlib.figure", "matplotlib.backends.backend_agg"])


def run_forked(argv: list[str], cache: Path, log: Path) -> int:
    """The program in a process that finds its libraries imported; waits for it and returns its exit code."""
    process = FORKS.Process(target=_forked, args=(argv, str(cache), str(log)))
    process.start()
    process.join(PATIENCE)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise TimeoutError(f"{argv} did not end")
    return process.exitcode


# ------------------------------------------------------------------------------------------- what a run has come to


class Outcome(NamedTuple):
    """All that a finished run has computed."""

    arrays: dict[str, bytes]  #: of its last checkpoint: learner, optimisers, normaliser, environments
    rows: list[list[tuple[str, str]]]  #: of both tables, without their clocks

    @classmethod
    def of(cls, directory: Path) -> Outcome | None:
        """None where the last checkpoint is not that of a finished run."""
        found, damaged = checkpoint.newest(directory / "checkpoints")
        if found is None or damaged or not (directory / "summary.json").exists():
            return None
        arrays = {name: str((a.dtype, a.shape)).encode() + a.tobytes() for name, a in found.arrays.items()}
        rows = [row for table in ("metrics", "evaluations") for row in rows_of(directory / f"{table}.csv")]
        return cls(arrays, [[(k, v) for k, v in row.items() if not k.startswith("time/")] for row in rows])


class Uninterrupted(NamedTuple):
    """What every other run is compared with."""

    outcome: Outcome
    seconds: float  #: of a run that finds everything compiled
    cold_seconds: float  #: of one that compiles everything
    save_seconds: float  #: of the longest save


def train_argv(out: Path) -> list[str]:
    return ["train", ENV, *OPTIONS, "--out", str(out)]


def uninterrupted(work: Path) -> Uninterrupted:
    """Three runs, the first of which fills the compilation cache; raises where they are not the same."""
    seconds, saves, outcomes = [], [0.0], []
    for i in range(3):
        out, began = work / f"reference{i}", time.perf_counter()
        process = start(train_argv(out), work / "cache", work / "log")
        for _, appeared in appearing_saves(out, process):
            while (out / "checkpoints").exists() and saving(out):
                time.sleep(0.0005)
            saves.append(time.perf_counter() - appeared)
        if process.wait() != 0:
            raise RuntimeError((work / "log").read_text())
        seconds.append(time.perf_counter() - began)
        outcomes.append(Outcome.of(out))
    if outcomes[0] is None or outcomes != outcomes[:1] * 3:
        raise RuntimeError("runs that were left alone are not the same")
    return Uninterrupted(outcomes[0], max(seconds[1:]), seconds[0], float(np.median(saves)))


def saving(out: Path) -> list[str]:
    """Names of what is being written, or deleted, among the checkpoints."""
    directory = out / "checkpoints"
    names = os.listdir(directory) if directory.exists() else []
    return [name for name in names if name.endswith((PARTIAL, checkpoint.REMOVED))]


def appearing_saves(out: Path, process: subprocess.Popen[bytes]) -> Iterator[tuple[str, float]]:
    """The name of every save as it begins, and when that was seen, until the process ends."""
    seen: set[str] = set()
    while process.poll() is None:
        for name in saving(out):
            if name.endswith(PARTIAL) and name not in seen:
                seen.add(name)
                yield name, time.perf_counter()
        time.sleep(0.001)


def phase(out: Path) -> str:
    """How far a process had come that is no more."""
    if not (out / "config.json").exists():
        return "before its directory"
    if not checkpoint.listing(out / "checkpoints"):
        return "before its first checkpoint"
    if (out / "summary.json").exists():
        return "after its end"
    return "training" if rows_of(out / "metrics.csv") else "before its first iteration"


def resumed(out: Path, work: Path, reference: Outcome) -> Row:
    """Resume a run to its end, or begin it again where it has no directory; and compare."""
    began, log = time.perf_counter(), work / "log"
    code = run_forked(["resume", str(out)], work / "cache", log)
    if not (out / "config.json").exists():
        said = log.read_text()
        if code != 2 or said.count("\n") != 1 or "is not a run directory" not in said:
            return {"resume": f"exit code {code}", "identical": False, "rows_identical": False}
        code = run_forked(train_argv(out), work / "cache", log)
    outcome = Outcome.of(out) if code == 0 else None
    litter = saving(out)
    return {
        "resume": "done" if code == 0 and not litter else f"exit code {code}, left {litter}",
        "identical": outcome is not None and outcome.arrays == reference.arrays,
        "rows_identical": outcome is not None and outcome.rows == reference.rows,
        "resume_seconds": round(time.perf_counter() - began, 2),
    }


def keep_failure(row: Row, out: Path, log: Path) -> None:
    """A run that did not end as it should is kept, to be looked at."""
    if row["identical"] and row["rows_identical"] and row.get("right", True):
        shutil.rmtree(out, ignore_errors=True)
        return
    kept = Path(tempfile.mkdtemp(prefix=f"reliability-{row['trial']}-"))
    shutil.copy(log, kept)
    if out.exists():
        shutil.move(out, kept)
    print(f"FAILED, see {kept}", flush=True)


# ------------------------------------------------------------------------------------------- kill -9


def killed_at(moment: float, out: Path, work: Path) -> bool:
    """Start a run and kill it after ``moment`` seconds; False where it had ended by then."""
    began = time.perf_counter()
    process = start(train_argv(out), work / "cache", work / "log")
    time.sleep(max(0.0, moment - (time.perf_counter() - began)))
    process.kill()
    return process.wait() == -signal.SIGKILL


def kills(table: Path, trials: int, work: Path) -> None:
    """At moments that are uniform over the seconds of a whole run, its imports included."""
    reference = uninterrupted(work)
    for trial in missing_trials(table, trials):
        draw, out = random.Random(f"kill {trial}"), work / f"run{trial}"
        while not killed_at(moment := draw.uniform(0.0, reference.seconds), out, work):
            shutil.rmtree(out)
        row = {"trial": trial, "second": round(moment, 3), "of": round(reference.seconds, 2), **found_after(out)}
        row |= resumed(out, work, reference.outcome)
        append(table, row)
        keep_failure(row, out, work / "log")


def found_after(out: Path) -> Row:
    """What a killed process has left behind."""
    found, damaged = checkpoint.newest(out / "checkpoints")
    row = {"killed": phase(out), "steps": found.progress.env_steps if found else 0, "damaged": len(damaged)}
    return {**row, "in_save": stage(out)}


def stage(out: Path) -> str:
    """How far a save was; empty where there was none under way."""
    for name in saving(out):
        path = out / "checkpoints" / name
        if name.endswith(checkpoint.REMOVED):
            return "removing an old one"
        if (path / "manifest.json").exists():
            return "syncing"
        written = [p for p in path.rglob("*") if p.is_file()]
        return "arrays written" if any(p.name == "_METADATA" for p in written) else "writing arrays"
    return ""


def killed_in_save(which: int, delay: float, out: Path, work: Path) -> bool:
    """Start a run and kill it ``delay`` after its save number ``which`` has begun; False where that was too late."""
    process = start(train_argv(out), work / "cache", work / "log")
    for number, (_, appeared) in enumerate(appearing_saves(out, process)):
        if number == which:
            time.sleep(max(0.0, delay - (time.perf_counter() - appeared)))
            process.kill()
    return process.wait() == -signal.SIGKILL and bool(saving(out))


def saves(table: Path, trials: int, work: Path) -> None:
    """At moments uniform over the duration of a save, in one of the first eight saves of a run.

    A save is under way while ``checkpoints/`` holds a name that ends in ``.partial`` or ``.removed``. This process watches
    for that name to appear; a kill counts where the killed process has left such a name behind, and is repeated
    otherwise.
    """
    reference = uninterrupted(work)
    for trial in missing_trials(table, trials):
        draw, out, attempts = random.Random(f"save {trial}"), work / f"run{trial}", 1
        while not killed_in_save(which := draw.randrange(8), delay := draw.uniform(0, reference.save_seconds), out, work):
            shutil.rmtree(out)
            attempts += 1
        row: Row = {"trial": trial, "save": which, "milliseconds": round(1000 * delay), "attempts": attempts}
        row |= found_after(out)
        row |= resumed(out, work, reference.outcome)
        append(table, row)
        keep_failure(row, out, work / "log")


# ------------------------------------------------------------------------------------------- signals


def signals(table: Path, trials: int, work: Path) -> None:
    """SIGTERM at moments uniform over the seconds of a whole run; every other run has an empty compilation cache."""
    reference = uninterrupted(work)
    for trial in missing_trials(table, trials):
        cold, draw, out = trial % 2 == 1, random.Random(f"signal {trial}"), work / f"run{trial}"
        while (row := signalled(draw, cold, reference, out, work)) is None:
            shutil.rmtree(out)
        row = {"trial": trial, **row, **resumed(out, work, reference.outcome)}
        append(table, row)
        keep_failure(row, out, work / "log")


def signalled(draw: random.Random, cold: bool, reference: Uninterrupted, out: Path, work: Path) -> Row | None:
    """One run that is asked to stop, and what it did; None where it had ended by then."""
    whole = reference.cold_seconds if cold else reference.seconds
    moment, began = draw.uniform(0.0, whole), time.perf_counter()
    with tempfile.TemporaryDirectory() as empty:
        log = work / "log"
        process = start(train_argv(out), Path(empty) if cold else work / "cache", log)
        time.sleep(max(0.0, moment - (time.perf_counter() - began)))
        if process.poll() is not None:
            return None
        process.send_signal(signal.SIGTERM)
        sent = time.perf_counter()
        code = process.wait(PATIENCE)
        seconds = time.perf_counter() - sent
    said = log.read_text().strip().rpartition("\n")[2]
    row = {"cold": cold, "second": round(moment, 3), "of": round(whole, 2), "exit_code": code}
    row |= {"exit_seconds": round(seconds, 3), **found_after(out)}
    computed = len(rows_of(out / "metrics.csv"))
    steps = row["steps"] * 16 // 1024  # iterations of the newest checkpoint
    if row["killed"] == "before its directory":  # the code of a process that the signal has ended
        right = code in (-signal.SIGTERM, KILLED + signal.SIGTERM)
    elif row["killed"] == "after its end":
        right = code in (0, -signal.SIGTERM)
    else:
        right = code == STOPPED and "reppo resume" in said
    return {**row, "lost_iterations": computed - steps, "right": right and computed == steps and not row["damaged"]}


# ------------------------------------------------------------------------------------------- the command

CAMPAIGNS: dict[str, tuple[Callable[[Path, int, Path], None], int]] = {
    "kills": (kills, 200),
    "saves": (saves, 50),
    "signals": (signals, 50),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[*CAMPAIGNS, "all"])
    parser.add_argument("--trials", type=int, help="unset, as many as docs/reliability.md has")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the folder of the tables")
    args = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "reliability.json").write_text(json.dumps(provenance.provenance(), indent=2) + "\n")
    for name in CAMPAIGNS if args.what == "all" else [args.what]:
        campaign, trials = CAMPAIGNS[name]
        with tempfile.TemporaryDirectory() as work:
            campaign(args.out / f"reliability_{name}.csv", args.trials or trials, Path(work))


if __name__ == "__main__":
    main()
