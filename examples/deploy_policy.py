"""Use a trained policy outside the trainer: a control loop in NumPy.

    reppo train examples/own_env.py:Pendulum --out runs/pendulum
    python examples/deploy_policy.py runs/pendulum

`reppo.load_policy` returns a function from a NumPy observation to the action in the environment's own units. It holds
the observation statistics, so it takes raw observations, as the sensors give them.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

import reppo


class Robot:
    """Stands for the hardware: the pendulum of `own_env.py` with sensors and a motor, hanging down at the start."""

    def __init__(self) -> None:
        self.angle, self.velocity = np.pi, 0.0

    def read_sensors(self) -> np.ndarray:
        return np.array([np.cos(self.angle), np.sin(self.angle), self.velocity], np.float32)

    def apply(self, torque: float) -> None:
        self.velocity += 0.05 * (10.0 * np.sin(self.angle) + 4.0 * torque)
        self.angle += 0.05 * self.velocity


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run directory, or a policy file")
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args()

    policy = reppo.load_policy(args.run)
    robot, heights, seconds = Robot(), [], []
    for _ in range(args.steps):
        observation = robot.read_sensors()
        start = time.perf_counter()
        action = policy(observation)
        seconds.append(time.perf_counter() - start)
        robot.apply(float(action[0]))
        heights.append(np.cos(robot.angle))

    for i in range(0, args.steps, max(1, args.steps // 20)):
        print(f"step {i:4d}  height {heights[i]:+.2f}  " + " " * round(20 * (heights[i] + 1)) + "o")
    print(f"{args.steps} actions, {1e6 * np.median(seconds):.0f} microseconds each (median)")


if __name__ == "__main__":
    main()
