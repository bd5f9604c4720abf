"""Where an iteration's time goes: environment steps per second of rollout, targets and update, compile time, memory.

    python benchmarks/throughput.py --out results/throughput.csv

Each configuration runs in a process of its own, so that its peak memory is its own. ``update`` is the whole update, the
targets included; ``iteration`` is rollout and update together. Times are medians over the repetitions. Rows are added to the
table, with the day, the hour and the processor: a shared machine is worth measuring more than once.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from reppo import compiling, envs, preset, provenance
from reppo import reppo as algorithm
from reppo.collector import JaxCollector
from reppo.config import Config
from reppo.run import Run

#: The official code's configuration of comparison: 256 environments, 32 steps, 8 minibatches, 4 epochs, width 512.
EQUAL = dataclasses.replace(
    preset("paper-small"), num_envs=256, num_steps=32, num_minibatches=8, num_epochs=4, total_steps=1_000_000
)

CONFIGS: dict[str, tuple[str, Config]] = {
    "width512-S64": ("playground:CartpoleBalance", dataclasses.replace(EQUAL, target_samples=64)),
    "width512-S8": ("playground:CartpoleBalance", dataclasses.replace(EQUAL, target_samples=8)),
    "width512-S1": ("playground:CartpoleBalance", dataclasses.replace(EQUAL, target_samples=1)),
    "width128-S8": (
        "playground:CartpoleBalance",
        dataclasses.replace(EQUAL, target_samples=8, actor_width=128, critic_width=128),
    ),
    "width64-S4": (
        "playground:CartpoleBalance",
        dataclasses.replace(EQUAL, target_samples=4, actor_width=64, critic_width=64),
    ),
    "cpu": ("playground:CartpoleSwingup", preset("cpu")),
    "cpu-cheetah": ("playground:CheetahRun", preset("cpu")),
    "paper-large": ("playground:CartpoleBalance", preset("paper-large")),
}


def seconds(function: Callable[[], Any], repetitions: int) -> float:
    """Median wall-clock seconds of a call, its result waited for."""
    laps = []
    for _ in range(repetitions):
        start = time.perf_counter()
        jax.block_until_ready(function())
        laps.append(time.perf_counter() - start)
    return statistics.median(laps)


def measure(name: str, repetitions: int) -> dict[str, Any]:
    """One configuration's row."""
    env_name, config = CONFIGS[name]
    with jax.default_matmul_precision(config.precision):
        run = Run(envs.make(env_name), config, [0], None)
        collector = run.collector
        assert isinstance(collector, JaxCollector)
        start = time.perf_counter()
        run.start()
        jax.block_until_ready(run.state)
        compile_first = time.perf_counter() - start

        def roll() -> Any:
            # The environment state's buffers are donated: start from a copy, and time the copy with it.
            state = jax.tree.map(jnp.copy, collector.env_state)
            return collector.programs.rollout(run.state, state, run.key(0), False)

        _, rows, _, _ = roll()
        jax.block_until_ready(rows)
        compile_rollout = time.perf_counter() - start - compile_first

        # Compiled as a run compiles its update.
        update = compiling.compiled(lambda state, rows, key: run.learner.update(state, rows, key), compiling.NETWORKS)
        targets = compiling.compiled(
            lambda state, rows, key: algorithm.targets(state, rows, config, run.spec, key), compiling.NETWORKS
        )
        state, rows, key = jax.tree.map(lambda x: x[0], (run.state, rows, run.key(1)))
        start = time.perf_counter()
        jax.block_until_ready(update(state, rows, key))
        compile_update = time.perf_counter() - start
        jax.block_until_ready(targets(state, rows, key))

        time_rollout = seconds(roll, repetitions)
        time_targets = seconds(lambda: targets(state, rows, key), repetitions)
        time_update = seconds(lambda: update(state, rows, key), repetitions)
    batch = config.batch_size
    return {
        "measured": time.strftime("%Y-%m-%d %H:%M"),
        "config": name,
        "env": env_name,
        "num_envs": config.num_envs,
        "num_steps": config.num_steps,
        "minibatches": config.num_minibatches,
        "epochs": config.num_epochs,
        "width": config.critic_width,
        "samples": config.target_samples,
        "rollout_steps_per_s": round(batch / time_rollout),
        "targets_steps_per_s": round(batch / time_targets),
        "update_steps_per_s": round(batch / time_update),
        "iteration_steps_per_s": round(batch / (time_rollout + time_update)),
        "targets_share": round(time_targets / (time_rollout + time_update), 3),
        "rollout_share": round(time_rollout / (time_rollout + time_update), 3),
        "compile_first_s": round(compile_first, 1),
        "compile_rollout_s": round(compile_rollout, 1),
        "compile_update_s": round(compile_update, 1),
        "peak_host_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "device": processor(),
        "jax": jax.__version__,
    }


def processor() -> str:
    """The accelerator's name, or the processor's: a table may have rows of several."""
    kind = jax.devices()[0].device_kind
    return provenance.provenance()["hardware"]["cpu"] if kind == "cpu" else kind


def append(path: Path, row: dict[str, Any]) -> None:
    """Add a row to a table, with a header where it is new, and say beside it what it was measured on."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        table = csv.DictWriter(file, list(row))
        if new:
            table.writeheader()
        table.writerow(row)
    path.with_suffix(".json").write_text(json.dumps(provenance.provenance(), indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", choices=CONFIGS, nargs="*", default=list(CONFIGS))
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", choices=CONFIGS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one, args.repetitions)))
        return
    for name in args.config:
        command = [sys.executable, __file__, "--one", name, "--repetitions", str(args.repetitions)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        row = json.loads(output.splitlines()[-1])
        print(row, flush=True)
        if args.out:
            append(args.out, row)


if __name__ == "__main__":
    main()
