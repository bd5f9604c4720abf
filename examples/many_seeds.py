"""Several seeds at once, on one device, and their curves in one picture.

    python examples/many_seeds.py --seeds 3

One seed proves little in reinforcement learning. `num_seeds` trains seed, seed + 1, ... in one vectorised program.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from own_env import Pendulum  # the file beside this one

import reppo


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--total-steps", type=int, default=100_000, help="per seed")
    parser.add_argument("--plot", type=Path, default=Path("many_seeds.png"))
    args = parser.parse_args()

    config = dataclasses.replace(reppo.preset("cpu"), total_steps=args.total_steps)
    run = reppo.train(Pendulum, config, seed=0, num_seeds=args.seeds)

    # One row per seed and evaluation; rows of one evaluation stand together, in the order of the seeds.
    steps = np.array([row["env_steps"] for row in run.evaluations]).reshape(-1, args.seeds)[:, 0]
    returns = np.array([row["eval/return"] for row in run.evaluations]).reshape(-1, args.seeds)

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    axes.plot(steps, returns, color="0.75", linewidth=1)
    axes.plot(steps, np.median(returns, axis=1), color="C0", linewidth=2, label=f"median of {args.seeds} seeds")
    axes.set(title="Pendulum", xlabel="environment steps", ylabel="greedy return")
    axes.legend(frameon=False)
    figure.savefig(args.plot, dpi=150)

    for seed, final in zip(run.seeds, run.returns, strict=True):
        print(f"seed {seed}: greedy return {final.mean():.1f} ± {final.std():.1f} over {len(final)} episodes")
    print(f"curves: {args.plot}")


if __name__ == "__main__":
    main()
