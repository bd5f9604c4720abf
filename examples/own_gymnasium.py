"""A `gymnasium.Env` of your own, in one file: a quadrotor in the plane that has to hover at a point.

    reppo check-env examples/own_gymnasium.py:make
    reppo train examples/own_gymnasium.py:make --v-min -330 --v-max 30

A step costs at most 2 and a crash 100, once: values are between -2 * 100 - 100 and 0, and a tenth of that is room.
"""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit

STEP = 0.03  # seconds
GRAVITY, THRUST, TORQUE = 9.8, 10.0, 15.0  # m/s^2 that a motor gives at most, rad/s^2 of one alone
ARENA = 3.0  # metres from the point, where it crashes


class Quadrotor(gymnasium.Env):
    observation_space = spaces.Box(-np.inf, np.inf, (6,), np.float32)  # place, angle, and how fast they change
    action_space = spaces.Box(0.0, 1.0, (2,), np.float32)  # both motors
    metadata = {"render_modes": ["rgb_array"], "render_fps": round(1 / STEP)}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None):
        self.render_mode = render_mode  # `reppo video` asks for it

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)  # makes `self.np_random`, the one source of random numbers
        self.state = self.np_random.uniform([-1, -1, -0.3, -0.5, -0.5, -0.5], [1, 1, 0.3, 0.5, 0.5, 0.5])
        return self.state.astype(np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        left, right = action
        x, z, angle, *velocity = self.state
        force = THRUST * (left + right)
        acceleration = [-force * np.sin(angle), force * np.cos(angle) - GRAVITY, TORQUE * (right - left)]
        velocity = np.array(velocity) + STEP * np.array(acceleration)
        self.state = np.concatenate([[x, z, angle] + STEP * velocity, velocity])
        x, z, angle = self.state[:3]
        crashed = bool(max(abs(x), abs(z)) > ARENA or abs(angle) > np.pi / 2)
        cost = 0.2 * (x**2 + z**2) + 0.1 * angle**2 + 0.01 * float(velocity @ velocity)
        reward = -min(float(cost), 2.0) - 100.0 * crashed
        return self.state.astype(np.float32), reward, crashed, False, {}  # the time limit is the wrapper's

    def render(self) -> np.ndarray:
        """Its body and the point, from the side."""
        picture = np.full((240, 240, 3), 255, np.uint8)

        def dot(x: float, z: float, radius: int, colour: tuple[int, int, int]) -> None:
            row, column = (int(120 - 120 * z / ARENA), int(120 + 120 * x / ARENA))
            picture[max(row - radius, 0) : row + radius, max(column - radius, 0) : column + radius] = colour

        dot(0.0, 0.0, 3, (220, 60, 60))
        x, z, angle = self.state[:3]
        for along in np.linspace(-0.3, 0.3, 25):
            dot(x + along * np.cos(angle), z + along * np.sin(angle), 2, (40, 80, 160))
        return picture


def make(render_mode: str | None = None) -> gymnasium.Env:
    """What `reppo train` calls for every environment; an episode is cut after 9 seconds."""
    return TimeLimit(Quadrotor(render_mode), 300)
