"""What an average of the actor's weights is worth: the same runs evaluated with it and without.

    python benchmarks/averaging.py                                              # all tasks; results/averaging.csv
    python benchmarks/averaging.py --tasks playground:CartpoleSwingup --seed 10 --seeds 1

The average changes nothing of what is learned, so that one run, of the ``cpu`` preset, says it of every decay. At each
evaluation all of them play the same episodes, but for EnvPool, which draws new ones. The table has every evaluation of
every seed; seeds that are in it already are kept.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import functools
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from reppo import envs, preset, provenance
from reppo.reppo import ActorAverage, averaged
from reppo.run import Clock, Run, evaluation_due

RESULTS = Path(__file__).parent.parent / "results"
#: Evaluations and episodes; fewer where environments are on the host, which train one seed after another.
EVALUATED = {"num_evals": 40, "eval_episodes": 32}
EVALUATED_ON_HOST = {"num_evals": 20, "eval_episodes": 10}
DECAYS = (0.0, 0.8, 0.9, 0.95)
TASKS = (
    "playground:CartpoleSwingup",
    "playground:ReacherEasy",
    "envpool:HalfCheetah-v5",
    "envpool:CheetahRun-v1",
    "envpool:WalkerWalk-v1",
)
COLUMNS: Sequence[str] = ("env", "seed", "env_steps", "actor_average", "return", "cpu", "revision")


def measure(env: str, seed: int, num_seeds: int) -> list[dict[str, Any]]:
    """A row for every seed, evaluation and decay."""
    made = envs.make(env)
    evaluated = EVALUATED_ON_HOST if isinstance(made, envs.HostEnv) else EVALUATED
    config = dataclasses.replace(preset("cpu"), actor_average=0.0, **evaluated)
    here = provenance.provenance()
    run = Run(made, config, range(seed, seed + num_seeds), None)
    run.start()
    clock, rows = Clock(time.perf_counter()), []
    update = {decay: jax.jit(jax.vmap(functools.partial(averaged, decay=decay))) for decay in DECAYS}
    fresh = ActorAverage(run.state.policy.actor, jnp.zeros(num_seeds, jnp.int32))
    averages = dict.fromkeys(DECAYS, fresh)
    while run.iteration < config.num_iterations:
        run.iterate(clock)
        actor = run.state.policy.actor
        averages = {decay: update[decay](average, actor) for decay, average in averages.items()}
        if not evaluation_due(config, run.iteration):
            continue
        for decay, average in averages.items():
            state = eqx.tree_at(lambda state: state.policy.actor, run.state, average.actor)
            result = run.collector.evaluate(state, config.eval_episodes, 0, None)
            assert result is not None
            rows += [
                {
                    "env": env,
                    "seed": seed + k,
                    "env_steps": run.env_steps,
                    "actor_average": decay,
                    "return": round(float(returns.mean()), 1),
                    "cpu": here["hardware"]["cpu"],
                    "revision": here["git"],
                }
                for k, returns in enumerate(np.asarray(result.returns))
            ]
    run.collector.close()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="*", default=list(TASKS))
    parser.add_argument("--seed", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS / "averaging.csv")
    args = parser.parse_args()
    done = set()
    if args.out.exists():
        with args.out.open(newline="") as file:
            done = {(row["env"], int(row["seed"])) for row in csv.DictReader(file)}
    else:
        with args.out.open("w", newline="") as file:
            csv.DictWriter(file, COLUMNS).writeheader()
        args.out.with_suffix(".json").write_text(json.dumps(provenance.provenance(), indent=2) + "\n")
    for env in args.tasks:
        together = 1 if isinstance(envs.make(env), envs.HostEnv) else args.seeds
        for seed in range(args.seed, args.seed + args.seeds, together):
            there = [(env, seed + k) in done for k in range(together)]
            if all(there):
                continue
            if any(there):
                raise SystemExit(f"{args.out} has some of these seeds of {env}, which are trained at once: name others")
            with jax.default_matmul_precision(preset("cpu").precision):
                rows = measure(env, seed, together)
            with args.out.open("a", newline="") as file:
                csv.DictWriter(file, COLUMNS).writerows(rows)
            last = [row for row in rows if row["env_steps"] == rows[-1]["env_steps"]]
            print(env, seed, [(row["actor_average"], row["return"]) for row in last], flush=True)


if __name__ == "__main__":
    main()
