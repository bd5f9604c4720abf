"""What acting and bookkeeping cost beside EnvPool's own stepping.

    python benchmarks/host_overhead.py --out results/host_overhead.csv

Both figures come from the same rollouts, those of training: the time inside of EnvPool's step function, and all
the rest of a rollout, which is the compiled policy, the adapter, and the buffers. Times are medians over rollouts, in
microseconds for one step of all environments. The columns with ``cpu`` are processor time of the main thread alone, which
other programs on the machine disturb less.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
import numpy.typing as npt

from reppo import envs, preset, provenance
from reppo.host_collector import HostCollector
from reppo.run import Run

TASKS = ("envpool:CheetahRun-v1", "envpool:HalfCheetah-v5", "envpool:WalkerWalk-v1", "envpool:Pendulum-v1")


def now() -> npt.NDArray[np.float64]:
    """Seconds on the clock, and seconds that this thread has computed."""
    return np.array([time.perf_counter(), time.thread_time()])


class Timed:
    """A function that adds up what its calls take, as `now` counts it."""

    def __init__(self, function: Callable[..., Any]):
        self.function, self.seconds = function, np.zeros(2)

    def __call__(self, *args: Any) -> Any:
        start = now()
        result = self.function(*args)
        self.seconds += now() - start
        return result

    def lap(self) -> npt.NDArray[np.float64]:
        seconds, self.seconds = self.seconds, np.zeros(2)
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
    laps: list[list[npt.NDArray[np.float64]]] = []
    for i in range(rollouts + 2):
        start = now()
        jax.block_until_ready(collector.collect(run.state, i).rows)
        total = now() - start
        laps.append([step.lap(), act.lap(), total])
    collector.close()
    (simulation, _), (acting, acting_cpu), (total, _) = medians = 1e6 * np.median(laps[2:], axis=0) / config.num_steps
    return {
        "env": task,
        "num_envs": num_envs,
        "simulation_us": round(simulation),
        "acting_us": round(acting),
        "bookkeeping_us": round(total - simulation - acting),
        "acting_cpu_us": round(acting_cpu),
        "bookkeeping_cpu_us": round(medians[2, 1] - medians[0, 1] - acting_cpu),
        "overhead": round(float((total - simulation) / simulation), 3),
        "simulation_steps_per_s": round(1e6 * num_envs / simulation),
        "rollout_steps_per_s": round(1e6 * num_envs / total),
        "cores": len(os.sched_getaffinity(0)),
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
