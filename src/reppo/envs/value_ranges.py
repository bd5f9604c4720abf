"""Value ranges of well-known tasks, wherever they are simulated: what discounted returns can be at gamma 0.99.

The critic's values go on beyond the time limit, so a steady reward ``r`` is worth ``100 r``. Each range spans from the
worst steady reward of an untrained policy to that of the best published policies, with room for entropy above.
"""

from __future__ import annotations

ValueRange = tuple[float, float]

DM_CONTROL: ValueRange = (0.0, 150.0)  #: rewards are in [0, 1], so returns are below 100; the rest is for entropy

PLAYGROUND_ROBOTS: ValueRange = (-10.0, 10.0)  #: rewards of a step are scaled by the time step, 0.02 s

#: Playground's manipulation tasks begin like this. Some pay a hundred times as much as others, so none has a range.
PLAYGROUND_HANDS = ("Aero", "Aloha", "Leap", "Panda")

MANISKILL: ValueRange = DM_CONTROL  #: its normalised rewards are at most 1, and go on after success

#: Rewards are -1, 0 and 1, a game's points come one in several steps, and returns of 50 would take one in every two.
ATARI_CLIPPED: ValueRange = (-10.0, 50.0)


def of_playground(task: str) -> ValueRange | None:
    """The range of a robot's task of MuJoCo Playground, where it is known."""
    return None if task.startswith(PLAYGROUND_HANDS) else PLAYGROUND_ROBOTS


#: Gymnasium's tasks, by their names without the version.
GYMNASIUM: dict[str, ValueRange] = {
    # Rewards of a step are in [-16.3, 0]; even the worst episode has better ones.
    "Pendulum": (-1700.0, 100.0),
    # One reward of 100, less the cost of the actions, at most 0.1 a step.
    "MountainCarContinuous": (-20.0, 120.0),
    # 1 a step while the pole stands.
    "CartPole": (-20.0, 150.0),
    # -1 a step until the end.
    "Acrobot": (-120.0, 20.0),
    "MountainCar": (-120.0, 20.0),
    # Published policies earn 10,000 to 16,000 in 1000 steps.
    "HalfCheetah": (-150.0, 1800.0),
    # 1 a step for health and the speed, 5,000 to 7,000 in all; a fall ends it.
    "Ant": (-150.0, 900.0),
    # 1 a step for health and the speed, 3,500 in all.
    "Hopper": (-50.0, 500.0),
    # As the hopper, 4,500 to 6,500 in all.
    "Walker2d": (-50.0, 850.0),
    # 5 a step for health and the speed, 5,000 to 9,000 in all.
    "Humanoid": (-50.0, 1200.0),
    # 100 to 350 in all.
    "Swimmer": (-20.0, 60.0),
    # The distance to the target, at most 0.5, and the cost of the actions, at most 2; good policies lose 4 in 50 steps.
    "Reacher": (-250.0, 20.0),
    # 1 a step while the pole stands.
    "InvertedPendulum": (-20.0, 150.0),
    # 10 a step, less a little.
    "InvertedDoublePendulum": (-50.0, 1300.0),
}


def of_gymnasium(task: str) -> ValueRange | None:
    """The range of ``HalfCheetah-v5`` and the like, if it is known."""
    return GYMNASIUM.get(task.rpartition("-v")[0])
