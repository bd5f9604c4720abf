"""Returns and seconds of `reppo train`, as a user runs it.

    python benchmarks/learning.py quickstart     # the default task, each seed from a cold start; results/quickstart.csv
    python benchmarks/learning.py tasks          # the `cpu` preset, untouched, on several tasks; results/tasks*.csv
    python benchmarks/learning.py samples        # S, action samples of the targets; results/samples*.csv

Every seed that is started is in the table. Rows that are there already are kept, so an interrupted benchmark goes on.
Seconds are those of the whole process, from its start to its end: imports, compilation, evaluations and files included.
`cpu_seconds` is the processor time of all its threads; where other programs use the machine, it is the steadier figure.
`quickstart` starts one process per seed; `tasks` and `samples` train all seeds at once in one process (`--seeds`), and
their seconds are those of all of them together.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from reppo import provenance

RESULTS = Path(__file__).parent.parent / "results"
SEEDS = range(10, 15)  # never used for tuning, which was done on seeds 100 and above, and looked at 0 to 9
TASKS = (
    "playground:CartpoleBalance",
    "playground:PendulumSwingup",
    "playground:ReacherEasy",
    "playground:BallInCup",
    "gymnax:Pendulum-v1",
)
SAMPLES_TASK = "playground:CartpoleSwingup"


def train(
    env: str | None, options: list[str], seed: int, cache: Path, start: str
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """One process of ``reppo train``: a row per seed, and the learning curves."""
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "run"
        shown = ["reppo", "train", *([env] if env else []), "--seed", str(seed), *options]
        command = [sys.executable, "-m", "reppo", *shown[1:], "--out", str(out)]
        began, used = time.perf_counter(), children_cpu_seconds()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "XDG_CACHE_HOME": str(cache)})
        seconds, cpu_seconds = time.perf_counter() - began, children_cpu_seconds() - used
        outcome = json.loads((out / "summary.json").read_text())
        with (out / "evaluations.csv").open(newline="") as file:
            curve = [{"env": outcome["env"], **row} for row in csv.DictReader(file)]
    rows = [
        {
            "env": outcome["env"],
            "seed": final["seed"],
            "start": start,
            "total_steps": outcome["env_steps"],
            "seconds": round(seconds, 1),
            "cpu_seconds": round(cpu_seconds, 1),
            "return_mean": round(final["return_mean"], 1),
            "return_std": round(final["return_std"], 1),
            "episodes": final["episodes"],
            "peak_memory_mb": outcome["peak_memory_bytes"] // 2**20,
            "command": " ".join(shown),
        }
        for final in outcome["seeds"]
    ]
    return rows, curve


def children_cpu_seconds() -> float:
    """Processor time of the child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def append(path: Path, rows: list[dict[str, Any]]) -> None:
    """Add rows to a table, with a header where it is new."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        if new:
            table.writeheader()
        table.writerows(rows)


def done(path: Path) -> set[tuple[str, str, str]]:
    """(env, seed, start) of the rows that a table has."""
    if not path.exists():
        return set()
    with path.open(newline="") as file:
        return {(row["env"], row["seed"], row["start"]) for row in csv.DictReader(file)}


def quickstart(table: Path) -> None:
    """Cold start of every seed, each with an empty compilation cache, then the first seed again with the cache."""
    finished = {row[1] for row in done(table)}
    # Seed 0 is what a user's first run has, so it is listed; it was looked at while the preset was chosen.
    for seed in [seed for seed in (*SEEDS, 0) if str(seed) not in finished]:
        with tempfile.TemporaryDirectory() as cache:
            for start in ("cold", "cached") if seed == SEEDS[0] else ("cold",):
                rows, _ = train(None, [], seed, Path(cache), start)
                append(table, rows)
                print(rows, flush=True)


def tasks(table: Path, names: list[str]) -> None:
    for name in names:
        if (name, str(SEEDS[0]), "cold") not in done(table):
            all_seeds(table, name, "cold", [])


def samples(table: Path) -> None:
    for count in (1, 2, 4, 16, 64):
        if (SAMPLES_TASK, str(SEEDS[0]), f"S={count}") not in done(table):
            all_seeds(table, SAMPLES_TASK, f"S={count}", ["--target-samples", str(count)])


def all_seeds(table: Path, name: str, start: str, options: list[str]) -> None:
    """Train every seed at once, from a cold start, and write its rows and curves."""
    with tempfile.TemporaryDirectory() as cache:
        command = ["--preset", "cpu", "--seeds", str(len(SEEDS)), *options]
        rows, curve = train(name, command, SEEDS[0], Path(cache), start)
    append(table.with_name(table.stem + "_curves.csv"), [{"start": start, **row} for row in curve])
    append(table, rows)
    print(rows, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["quickstart", "tasks", "samples"])
    parser.add_argument("--tasks", nargs="*", choices=TASKS, default=list(TASKS))
    parser.add_argument("--out", type=Path, help="the table; unset, results/WHAT.csv")
    args = parser.parse_args()
    table = args.out or RESULTS / f"{args.what}.csv"
    table.parent.mkdir(parents=True, exist_ok=True)
    table.with_suffix(".json").write_text(json.dumps(provenance.provenance(), indent=2) + "\n")
    if args.what == "quickstart":
        quickstart(table)
    elif args.what == "samples":
        samples(table)
    else:
        tasks(table, args.tasks)


if __name__ == "__main__":
    main()
