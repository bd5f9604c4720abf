"""What the compiler's options of `reppo.compiling` are worth: seconds to compile, and milliseconds to run, on a CPU.

    python benchmarks/compiling.py                      # results/compiling.csv
    python benchmarks/compiling.py --tasks playground:CheetahRun --out cheetah.csv

Both sets of options are in one process, and their programs run in turns: `xla` is the compiler's default, `reppo` what a
run uses. Compiling is given in processor seconds, running as the median of the wall times.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import jax

from reppo import compiling, envs, provenance
from reppo.collector import JaxCollector, Stream
from reppo.config import PRESETS
from reppo.run import Run

RESULTS = Path(__file__).parent.parent / "results"
TASKS = ("playground:CartpoleSwingup", "playground:HopperStand", "playground:WalkerWalk", "playground:CheetahRun")
REPEATS = 10
COLUMNS: Sequence[str] = ("env", "program", "options", "compile_cpu_seconds", "run_ms")


class Compiled:
    """The programs of a run with the ``cpu`` preset, compiled one by one."""

    def __init__(self, name: str):
        self.run = Run(envs.make(name), PRESETS["cpu"], [0], None)
        assert isinstance(self.run.collector, JaxCollector)
        programs, key = self.run.collector.programs, self.run.key
        self.seconds: dict[str, float] = {}
        self.milliseconds: dict[str, list[float]] = {}
        self.keys = {"first": key(Stream.FIRST, 0), "act": key(Stream.ITERATION, 0, 0), "learn": key(Stream.ITERATION, 0, 1)}
        init = self._compile("init", self.run.init, key(Stream.INIT))
        self.state = init(key(Stream.INIT))
        self.first = self._compile("first", programs.first, self.keys["first"])
        first = self.first(self.keys["first"])
        self.env_state = self._compile("begin", programs.begin, first, key(Stream.STAGGER))(first, key(Stream.STAGGER))
        self.rollout = self._compile("rollout", programs.rollout, self.state, self.env_state, self.keys["act"], False)
        rows = self._roll_out()
        self.update = self._compile("update", self.run.update, self.state, rows, self.keys["learn"])

    def _compile(self, program: str, function: Any, *args: Any) -> Any:
        lowered = function.lower(*args)
        began = time.process_time()
        compiled = lowered.compile()
        self.seconds[program] = time.process_time() - began
        return compiled

    def _roll_out(self) -> Any:
        self.env_state, rows, _, _ = self.rollout(self.state, self.env_state, self.keys["act"], False)
        return rows

    def turn(self) -> None:
        """Run the programs that run more than once."""
        self._time("first", lambda: self.first(self.keys["first"]))
        rows = self._time("rollout", self._roll_out)
        self._time("update", lambda: self.update(self.state, rows, self.keys["learn"]))

    def median(self, program: str) -> float | None:
        """Milliseconds of a run; None where it runs once."""
        times = self.milliseconds.get(program)
        return round(statistics.median(times), 2) if times else None

    def _time(self, program: str, call: Any) -> Any:
        began = time.perf_counter()
        result = jax.block_until_ready(call())
        self.milliseconds.setdefault(program, []).append(1e3 * (time.perf_counter() - began))
        return result


def measure(name: str) -> list[dict[str, Any]]:
    with jax.default_matmul_precision(PRESETS["cpu"].precision):
        with mock.patch.object(compiling, "known", return_value={}):
            both = {"xla": Compiled(name)}
        both["reppo"] = Compiled(name)
        for _ in range(REPEATS):
            for compiled in both.values():
                compiled.turn()
    return [
        {
            "env": name,
            "program": program,
            "options": options,
            "compile_cpu_seconds": round(seconds, 2),
            "run_ms": compiled.median(program),
        }
        for options, compiled in both.items()
        for program, seconds in compiled.seconds.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="*", default=list(TASKS))
    parser.add_argument("--out", type=Path, help="the table, written anew; unset, results/compiling.csv")
    args = parser.parse_args()
    if args.out is None and args.tasks != list(TASKS):
        parser.error("--tasks needs --out: results/compiling.csv has all tasks")
    args.out = args.out or RESULTS / "compiling.csv"
    args.out.with_suffix(".json").write_text(json.dumps(provenance.provenance(), indent=2) + "\n")
    with args.out.open("w", newline="") as file:
        table = csv.DictWriter(file, COLUMNS)
        table.writeheader()
        for name in args.tasks:
            rows = measure(name)
            table.writerows(rows)
            file.flush()
            for row in rows:
                print(*row.values(), flush=True)


if __name__ == "__main__":
    main()
