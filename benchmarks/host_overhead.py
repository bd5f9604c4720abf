"""What acting and bookkeeping cost beside EnvPool's own stepping.

    python benchmarks/host_overhead.py --out results/host_overhead.csv

Both figures come from the same rollouts, those of training: the time inside of EnvPool's step function, and all
the rest of a rollout, which is the compiled policy, the adapter, and the buffers. Times are medians over rollouts, in
microseconds for one step of all environments.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import jax

from reppo import envs, preset, provenance
from reppo.host_collector import HostCollector
from reppo.loop import Run

TASKS = ("envpool:CheetahRun-v1", "envpool:HalfCheetah-v5", "envpool:WalkerWalk-v1", "envpool:Pendulum-v1")


class Timed:
    """A function that adds up the seconds that its calls take."""

    def __init__(self, function: Callable[..., Any]):
        self.function, self.seconds = function, 0.0

    def __call__(self, *args: Any) -> Any:
        start = time.perf_counter()
        result = self.function(*args)
        self.seconds += time.perf_counter() - start
        return result

    def lap(self) -> float:
        seconds, self.seconds = self.seconds, 0.0
        return seconds


def measure(task: str, num_envs: int, rollouts: int) -> dict[str, Any]:
    """One task's row."""
    config = dataclasses.replace(preset("cpu"), num_envs=num_envs, num_minibatches=8, v_min=0.0, v_max=1.0)
    run = Run(envs.make(task), config, [0], None)
    run.start()
    collector = run.collector
    assert isinstance(collector, HostCollector)
    compiled, pool = collector._act, cast(Any, collector._training[0].simulator)._pool
    act, step = Timed(lambda *args: jax.block_until_ready(compiled(*args))), Timed(pool.step)
    collector._act, pool.step = cast(Any, act), step
    laps: list[list[float]] = []
    for i in range(rollouts + 2):
        start = time.perf_counter()
        jax.block_until_ready(collector.collect(run.state, i).rows)
        total = time.perf_counter() - start
        laps.append([1e6 * seconds / config.num_steps for seconds in (step.lap(), act.lap(), total)])
    collector.close()
    simulation, acting, total = (statistics.median(column) for column in zip(*laps[2:], strict=True))
    return {
        "env": task,
        "num_envs": num_envs,
        "simulation_us": round(simulation),
        "acting_us": round(acting),
        "bookkeeping_us": round(total - simulation - acting),
        "overhead": round((total - simulation) / simulation, 3),
        "simulation_steps_per_s": round(1e6 * num_envs / simulation),
        "rollout_steps_per_s": round(1e6 * num_envs / total),
        "cores": os.cpu_count(),
        "device": jax.devices()[0].device_kind,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", nargs="*", default=list(TASKS))
    parser.add_argument("--num-envs", type=int, nargs="*", default=[64])
    parser.add_argument("--rollouts", type=int, default=40)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows = []
    for task in args.env:
        for num_envs in args.num_envs:
            rows.append(measure(task, num_envs, args.rollouts))
            print(rows[-1], flush=True)
    if args.out:
        with open(args.out, "w", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            table.writerows(rows)
        args.out.with_suffix(".json").write_text(json.dumps(provenance.provenance(), indent=2) + "\n")


if __name__ == "__main__":
    main()
