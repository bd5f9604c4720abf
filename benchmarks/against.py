"""REPPO beside what a user of Gymnasium would pick instead, in the same time on the same machine.

    python benchmarks/against.py                       # all tasks; results/against.csv
    python benchmarks/against.py --tasks Pendulum-v1 --algorithms reppo --cores 0 1
    python benchmarks/against.py --tasks Ant-v5 --algorithms reppo --stop --options="--num-epochs 8" --out epochs.csv

Every run is a command of ``reppo``, with its default settings on a CPU, in a process of its own that is kept to one core:
seconds count from the start of the process, imports and compilation included, without a compilation cache. REPPO trains to
the end of its ``cpu`` preset, and what it had at the task's time is compared; ``--stop`` stops it then. The others are
stopped then, if RL Zoo's number of steps does not end them before. The table holds every evaluation of every seed. Runs that
are there already are kept, so an interrupted benchmark goes on: every row says on which processor and at which revision it
was made.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import csv
import json
import os
import queue
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from reppo import provenance

RESULTS = Path(__file__).parent.parent / "results"
SEEDS = range(10, 15)  #: never used for tuning


class Task(NamedTuple):
    env: str  #: of REPPO
    seconds: float  #: to compare at, from the start of a process
    evaluations: Mapping[str, int]  #: of each other's whole run: about six in that time
    others: str = ""  #: the id that they take; unset, the task's name


MUJOCO = {"sb3-ppo": 150, "sb3-sac": 800, "sbx-ppo": 100, "sbx-sac": 200}

#: REPPO steps EnvPool's copy of a task where there is one, as on a CPU a user should; Stable-Baselines3 and SBX make
#: their own vectors of Gymnasium's. DeepMind Control's tasks come to Gymnasium by ``pip install "shimmy[dm-control]"``.
TASKS = {
    "Pendulum-v1": Task("envpool:Pendulum-v1", 60, {"sb3-ppo": 20, "sb3-sac": 20, "sbx-ppo": 20, "sbx-sac": 20}),
    "CartPole-v1": Task("gymnasium:CartPole-v1", 60, {"sb3-ppo": 20, "sbx-ppo": 20}),
    "HalfCheetah-v5": Task("envpool:HalfCheetah-v5", 120, MUJOCO),
    "Ant-v5": Task("envpool:Ant-v5", 120, MUJOCO),
    "CheetahRun-v1": Task("envpool:CheetahRun-v1", 120, MUJOCO, "shimmy:dm_control/cheetah-run-v0"),
    "WalkerWalk-v1": Task("envpool:WalkerWalk-v1", 120, MUJOCO, "shimmy:dm_control/walker-walk-v0"),
    "Breakout-MinAtar": Task("gymnax:Breakout-MinAtar", 480, {}),
}
REPPO = "reppo"
ALGORITHMS = (REPPO, "sb3-ppo", "sb3-sac", "sbx-ppo", "sbx-sac")
COLUMNS: Sequence[str] = (
    "task", "algorithm", "seed", "compared_at", "finished", "seconds", "env_steps", "return", "return_std", "episodes",
    "command", "cpu", "revision",
)  # fmt: skip
EPISODES = 10  #: of an evaluation


def command(name: str, algorithm: str, seed: int, options: Sequence[str] = ()) -> list[str]:
    """The words after ``reppo``, but for ``--out``; ``options`` are more of REPPO's."""
    task = TASKS[name]
    common = ["--preset", "cpu", "--seed", str(seed), "--eval-episodes", str(EPISODES)]
    if algorithm == REPPO:
        return ["train", task.env, *common, *options]
    num_evals = ["--num-evals", str(task.evaluations[algorithm])]
    return ["baseline", algorithm, f"gymnasium:{task.others or name}", *common, *num_evals]


def shown(name: str, algorithm: str, seed: int, options: Sequence[str] = ()) -> str:
    """A run's command as the table has it, and knows the run by."""
    return " ".join(["reppo", *command(name, algorithm, seed, options)])


def measure(name: str, algorithm: str, seed: int, core: int, stop: bool, options: Sequence[str]) -> list[dict[str, Any]]:
    """The evaluations of one run, as far as it came in its time; REPPO's to its end, unless ``stop``."""
    task, here = TASKS[name], provenance.provenance()
    words = command(name, algorithm, seed, options)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        process = subprocess.Popen(
            ["taskset", "--cpu-list", str(core), sys.executable, "-m", "reppo", *words, "--out", str(out)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, "XDG_CACHE_HOME": folder, "JAX_PLATFORMS": "cpu"},
        )
        began, finished = time.perf_counter(), True
        try:
            _, said = process.communicate(timeout=task.seconds if stop or algorithm != REPPO else None)
            if process.returncode:
                raise SystemExit(f"{' '.join(words)}: {said.decode().strip()}")
        except subprocess.TimeoutExpired:
            finished = False
            process.terminate()
            process.wait()
        seconds = time.perf_counter() - began
        with (out / "evaluations.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
    found = [
        {
            "task": name,
            "algorithm": algorithm,
            "seed": seed,
            "compared_at": task.seconds,
            "finished": finished,
            "seconds": round(float(row["time/seconds"]), 1),
            "env_steps": int(float(row["env_steps"])),
            "return": round(float(row["eval/return"]), 1),
            "return_std": round(float(row["eval/return_std"]), 1),
            "episodes": EPISODES,
            "command": shown(name, algorithm, seed, options),
            "cpu": here["hardware"]["cpu"],
            "revision": here["git"],
        }
        for row in rows
    ]
    print(f"{name} {algorithm} seed {seed}: {found[-1]['return']} at {found[-1]['seconds']} s ({seconds:.0f} s)", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="*", choices=TASKS, default=list(TASKS))
    parser.add_argument("--algorithms", nargs="*", choices=ALGORITHMS, default=ALGORITHMS)
    parser.add_argument("--cores", nargs="*", type=int, default=[0], help="a run at a time on each; unset, on the first")
    parser.add_argument("--stop", action="store_true", help="stop REPPO at the task's time, too")
    parser.add_argument("--options", type=shlex.split, default=[], help="of REPPO, in place of its preset's")
    parser.add_argument("--seeds", nargs="*", type=int, default=list(SEEDS), help="unset, those never used for tuning")
    parser.add_argument("--out", type=Path, help="unset, results/against.csv, which has no options of its own")
    args = parser.parse_args()
    if args.out is None and (args.options or args.seeds != list(SEEDS)):
        parser.error("--options and --seeds need --out: results/against.csv has the default ones")
    args.out = args.out or RESULTS / "against.csv"
    done = set()
    if args.out.exists():
        with args.out.open(newline="") as file:
            done = {row["command"] for row in csv.DictReader(file)}
    else:
        with args.out.open("w", newline="") as file:
            csv.DictWriter(file, COLUMNS).writeheader()
        args.out.with_suffix(".json").write_text(json.dumps(provenance.provenance(), indent=2) + "\n")
    cores: queue.Queue[int] = queue.Queue()
    for core in args.cores:
        cores.put(core)

    def job(run: tuple[str, str, int]) -> list[dict[str, Any]]:
        core = cores.get()
        try:
            return measure(*run, core, args.stop, args.options)
        finally:
            cores.put(core)

    # Seed by seed, so that what there is of an interrupted benchmark compares like with like.
    runs = [
        (name, algorithm, seed)
        for seed in args.seeds
        for name in args.tasks
        for algorithm in (REPPO, *TASKS[name].evaluations)
        if algorithm in args.algorithms
    ]
    with concurrent.futures.ThreadPoolExecutor(len(args.cores)) as pool:
        for rows in pool.map(job, [run for run in runs if shown(*run, args.options) not in done]):
            with args.out.open("a", newline="") as file:
                csv.DictWriter(file, COLUMNS).writerows(rows)


if __name__ == "__main__":
    main()
