"""What a run loads before it compiles anything, with and without the packages that `reppo.imports` leaves out.

    python benchmarks/startup.py                        # results/startup.csv

Every row is a process of its own, the two kinds in turns: `all` imports what the libraries ask for, `reppo` what a run does.
It imports the program and makes the default task, on a CPU. Seconds are counted from the start of the process; the memory is
the most that it held.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reppo import provenance

RESULTS = Path(__file__).parent.parent / "results"
KINDS = {
    "all": "import contextlib, reppo.imports as i; i.without = lambda *packages: contextlib.nullcontext()",
    "reppo": "",
}
START = """
{kind}
import resource, sys
from reppo import cli, envs, loop
envs.make({env!r})
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(peak, *(name in sys.modules for name in ("torch", "warp")))
"""
COLUMNS: Sequence[str] = ("torch_installed", "kind", "run", "seconds", "peak_mb", "loads_torch", "loads_warp")


def measure(kind: str, env: str) -> dict[str, Any]:
    began = time.perf_counter()
    words = [sys.executable, "-c", START.format(kind=KINDS[kind], env=env)]
    done = subprocess.run(words, env={**os.environ, "JAX_PLATFORMS": "cpu"}, capture_output=True, text=True)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(done.stderr)
    peak, torch, warp = done.stdout.splitlines()[-1].split()
    return {"seconds": round(seconds, 2), "peak_mb": round(float(peak)), "loads_torch": torch, "loads_warp": warp}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="playground:CartpoleSwingup")
    parser.add_argument("--runs", type=int, default=5, help="of each kind, after one that is not counted")
    parser.add_argument("--out", type=Path, default=RESULTS / "startup.csv", help="the table; rows are added to it")
    args = parser.parse_args()
    torch = importlib.util.find_spec("torch") is not None
    args.out.with_suffix(".json").write_text(json.dumps(provenance.provenance(), indent=2) + "\n")
    new = not args.out.exists()
    with args.out.open("a", newline="") as file:
        table = csv.DictWriter(file, COLUMNS)
        if new:
            table.writeheader()
        for run in range(args.runs + 1):
            for kind in KINDS:
                row = {"torch_installed": torch, "kind": kind, "run": run, **measure(kind, args.env)}
                print(*row.values(), flush=True)
                if run:
                    table.writerow(row)
                    file.flush()


if __name__ == "__main__":
    main()
