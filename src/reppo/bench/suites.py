"""What is compared: algorithms by name, and suites of tasks x algorithms x seeds. Data, and how it becomes a `Config`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from reppo import algorithms
from reppo.bench.records import SUCCESS
from reppo.bench.statistics import PER_1000, REF_BEST
from reppo.config import Config, nearest, preset
from reppo.errors import ConfigError

#: The DeepMind Control tasks of MuJoCo Playground, and the normaliser ``ref_best``: the best mean final return that any
#: method has published for the task (50 million steps). `results/published/dmc_norm_reference.csv` is where it comes from.
DMC23: Mapping[str, float] = {
    "AcrobotSwingup": 402.2,
    "AcrobotSwingupSparse": 75.7,
    "BallInCup": 974.8,
    "CartpoleBalance": 999.8,
    "CartpoleBalanceSparse": 1000.0,
    "CartpoleSwingup": 875.4,
    "CartpoleSwingupSparse": 780.8,
    "CheetahRun": 933.1,
    "FingerSpin": 936.2,
    "FingerTurnEasy": 975.4,
    "FingerTurnHard": 958.1,
    "FishSwim": 677.3,
    "HopperHop": 221.7,
    "HopperStand": 739.2,
    "PendulumSwingup": 627.2,
    "ReacherEasy": 980.5,
    "ReacherHard": 976.3,
    "WalkerRun": 900.6,
    "WalkerWalk": 982.9,
    "WalkerStand": 992.4,
    "HumanoidStand": 981.6,
    "HumanoidWalk": 991.3,
    "HumanoidRun": 748.2,
}

#: The humanoids of MuJoCo Playground, and the same normaliser, of `results/published/dmc_final.csv`.
HUMANOID: Mapping[str, float] = {
    "G1JoystickFlatTerrain": 33.9,
    "G1JoystickRoughTerrain": 28.6,
    "T1JoystickFlatTerrain": 34.8,
    "T1JoystickRoughTerrain": 29.2,
}

MANISKILL8 = (
    "LiftPegUpright-v1", "PegInsertionSide-v1", "PickSingleYCB-v1", "PokeCube-v1", "PullCube-v1", "RollBall-v1",
    "UnitreeG1PlaceAppleInBowl-v1", "UnitreeG1TransportBox-v1",
)  # fmt: skip


def dmc_task(env: str) -> str | None:
    """``CheetahRun`` of ``playground:CheetahRun``; None for an environment that is none of `DMC23`."""
    suite, _, task = env.partition(":")
    return task if suite == "playground" and task in DMC23 else None


def normalisers(env: str) -> tuple[str, ...]:
    """What makes a task's runs comparable with those of other tasks, best first; empty where nothing does.

    Success is a share of episodes, and so its own normaliser.
    """
    suite, _, task = env.partition(":")
    if suite == "maniskill" and task in MANISKILL8:
        return SUCCESS
    if suite == "playground" and task in HUMANOID:
        return (REF_BEST,)
    if suite == "envpool" and task.removesuffix("-v1") in DMC23:
        return (PER_1000,)  # the same task in another simulation, of which nothing is published
    return (REF_BEST, PER_1000) if dmc_task(env) else ()


# ------------------------------------------------------------------------------------------------ algorithms


@dataclasses.dataclass(frozen=True)
class Variant:
    """One line of a comparison: REPPO, and how its configuration differs from the suite's, or a baseline."""

    about: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)  #: of `Config`, in place of the suite's
    data_divisor: int = 1  #: of the steps per update; the size of a minibatch stays
    baseline: str = ""  #: one of `reppo.algorithms.BASELINES`; empty: REPPO
    presets: Mapping[str, str] = dataclasses.field(default_factory=dict)  #: of the baseline, by the suite's preset
    several_seeds: bool = True  #: whether one process can train several
    resumes: bool = True  #: whether a run that was stopped can go on; otherwise it is begun anew
    takes: Literal["any", "jax", "gymnasium"] = "any"  #: environments: any, those that are written in JAX, `gymnasium:` ones

    def configured(self, base: Config) -> Config:
        """The suite's configuration with this algorithm's differences; raises `ConfigError` where they do not fit."""
        if base.num_steps % self.data_divisor or base.num_minibatches % self.data_divisor:
            raise ConfigError(
                f"num_steps ({base.num_steps}) and num_minibatches ({base.num_minibatches}) must be multiples of "
                f"{self.data_divisor} for a {self.data_divisor}th of the data"
            )
        config = dataclasses.replace(
            base,
            **self.options,
            num_steps=base.num_steps // self.data_divisor,
            num_minibatches=base.num_minibatches // self.data_divisor,
        )
        config.validate()
        return config


REPPO = algorithms.REPPO

#: The paper's ablations, each one difference from `REPPO`.
ABLATIONS: dict[str, Variant] = {
    REPPO: Variant(algorithms.ALGORITHMS[REPPO].about),
    "reppo-score_q": Variant("score-function gradient with the learned Q", {"estimator": "score_q"}),
    "reppo-score_gae": Variant("score-function gradient with advantages: PPO inside", {"estimator": "score_gae"}),
    "reppo-mse": Variant("scalar critic and squared error in place of HL-Gauss", {"hl_gauss": False}),
    "reppo-no_norm": Variant("no normalisation layers", {"norm": "none"}),
    "reppo-layer_norm": Variant("LayerNorm in place of RMSNorm", {"norm": "layer"}),
    "reppo-no_aux": Variant("no auxiliary task", {"aux_weight": 0.0}),
    "reppo-penalty": Variant("KL as a penalty in place of the gate", {"kl_mode": "penalty"}),
    "reppo-no_kl": Variant("no KL constraint", {"kl_mode": "none"}),
    "reppo-fixed_alpha": Variant("the temperature stays as it starts", {"learn_alpha": False}),
    "reppo-fixed_beta": Variant("the KL multiplier stays as it starts", {"learn_beta": False}),
    "reppo-fixed": Variant("both multipliers stay as they start", {"learn_alpha": False, "learn_beta": False}),
    "reppo-reverse_kl": Variant("KL(new || old) in place of KL(old || new)", {"kl_direction": "reverse"}),
    "reppo-sampled_kl": Variant("KL from 16 samples in place of the closed form", {"kl_estimator": "sampled"}),
    "reppo-medium": Variant("half of the data per update", data_divisor=2),
    "reppo-small": Variant("a quarter of the data per update", data_divisor=4),
}

#: A baseline's presets, by the suite's.
PUBLISHED = {"cpu": "cpu", "paper-large": "published", "paper-maniskill": "published"}

#: REPPO as its preset `cpu` deploys it, in suites that otherwise have `NEWEST`.
AVERAGED = "reppo-averaged"

#: Every algorithm that can be named.
ALGORITHMS: dict[str, Variant] = {
    **ABLATIONS,
    **{
        name: Variant(
            baseline.about,
            baseline=name,
            presets=PUBLISHED | ({"paper-humanoid": "published-robots"} if name == "fasttd3" else {}),
            several_seeds=False,
            resumes=not baseline.library,
            takes=baseline.takes,
        )
        for name, baseline in algorithms.BASELINES.items()
    },
    AVERAGED: Variant(
        "with the average of the actor's weights that the preset cpu deploys",
        {"actor_average": preset("cpu").actor_average},
    ),
}

#: Those of suites, in the order of the report.
BASELINES = ("ppo", "sac", "fasttd3")


# ------------------------------------------------------------------------------------------------ suites


@dataclasses.dataclass(frozen=True)
class Suite:
    """Tasks x algorithms x seeds."""

    about: str
    tasks: tuple[str, ...]  #: ``suite:Task``, as for `reppo train`
    algorithms: tuple[str, ...]
    num_seeds: int
    preset: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)  #: of `Config`, in place of the preset's
    first_seed: int = 0  #: not 0 where the preset was tuned on the first seeds of the task
    steps: Mapping[str, int] = dataclasses.field(default_factory=dict)  #: of single algorithms, in place of the suite's
    settings: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)  #: ``--set`` of single baselines
    together: int = 1  #: seeds that share a process, vectorised on one device

    @property
    def seeds(self) -> range:
        return range(self.first_seed, self.first_seed + self.num_seeds)

    def configured(self, algorithm: str) -> Config:
        """The configuration of an algorithm; raises `ConfigError` where it does not fit."""
        base = dataclasses.replace(preset(self.preset), **self.options)
        steps = self.steps.get(algorithm, base.total_steps)
        return ALGORITHMS[algorithm].configured(dataclasses.replace(base, total_steps=steps))


#: The gradient estimators, in the paper's order, best first.
ESTIMATORS = (REPPO, "reppo-score_q", "reppo-score_gae")

#: The parts that matter most in the published ablations, taken out: the KL constraint, and of the others HL-Gauss.
NO_KL, NO_HL_GAUSS = "reppo-no_kl", "reppo-mse"

COMPARED = (*ESTIMATORS, *BASELINES)

#: Algorithms are compared by what they have learned, as in the paper: without the average that the preset `cpu` deploys.
NEWEST = {"actor_average": 0.0}

#: What the preset `cpu` had when the results of these suites were measured (docs/decisions/0010-cpu-preset.md).
BEFORE_EPOCHS = {"num_epochs": 4, "kl_bound": 0.03, "cut_probability": 0.0}
BEFORE_ENTROPY = {**BEFORE_EPOCHS, "target_entropy_per_action": -0.5}

SUITES: dict[str, Suite] = {
    "dmc23": Suite(
        "the paper's main benchmark: 23 DeepMind Control tasks, 50 million steps",
        tuple(f"playground:{task}" for task in DMC23),
        (REPPO, "reppo-medium", "reppo-small", *BASELINES),
        num_seeds=20,
        preset="paper-large",
        steps={"sac": 5_000_000},  # as published
    ),
    "humanoid": Suite(
        "G1 and T1 humanoids that follow a joystick, on flat and on rough ground",
        tuple(f"playground:{task}" for task in HUMANOID),
        (REPPO, "reppo-small", "reppo-penalty", "reppo-no_kl", "fasttd3"),
        num_seeds=20,
        preset="paper-humanoid",
    ),
    "maniskill8": Suite(
        "manipulation in ManiSkill: 8 tasks, 100 million steps",
        tuple(f"maniskill:{task}" for task in MANISKILL8),
        (REPPO, "ppo"),
        num_seeds=20,
        preset="paper-maniskill",
    ),
    "ablations": Suite(
        "every part of REPPO taken out in turn, on the tasks of dmc23",
        tuple(f"playground:{task}" for task in DMC23),
        tuple(ABLATIONS),
        num_seeds=10,
        preset="paper-large",
    ),
    "laptop": Suite(
        "REPPO, its score-function ablations and the baselines on a CPU, with 200,000 steps each",
        ("playground:CartpoleSwingup",),
        (REPPO, AVERAGED, *COMPARED[1:]),
        num_seeds=10,
        preset="cpu",
        options={"total_steps": 200_000, **NEWEST},
        first_seed=10,
    ),
    "balance": Suite(
        "the same on a task that all of them solve, REPPO with 800,000 steps and the baselines with 200,000",
        ("playground:CartpoleBalance",),
        COMPARED,
        num_seeds=10,
        preset="cpu",
        options={"total_steps": 800_000, **NEWEST, **BEFORE_ENTROPY},
        steps=dict.fromkeys(BASELINES, 200_000),
        settings={"fasttd3": ("minibatch_size=512",)},  # as its preset was then
    ),
    "gymnasium": Suite(
        "REPPO beside Stable-Baselines3 on Gymnasium's tasks, with 400,000 steps each",
        ("gymnasium:Pendulum-v1", "gymnasium:HalfCheetah-v5"),
        (REPPO, "sb3-ppo", "sb3-sac"),
        num_seeds=10,
        preset="cpu",
        options={"total_steps": 400_000},
        first_seed=10,
    ),
    "zoo": Suite(
        "Stable-Baselines3 with the steps that RL Zoo's own benchmark has, to compare with its figures",
        ("gymnasium:Pendulum-v1",),
        ("sb3-ppo", "sb3-sac"),
        num_seeds=5,
        preset="cpu",
        steps={"sb3-ppo": 100_000, "sb3-sac": 20_000},
        first_seed=10,
    ),
    "zoo-mujoco": Suite(
        "the same of PPO on HalfCheetah, with the million steps that it has there",
        ("gymnasium:HalfCheetah-v5",),
        ("sb3-ppo",),
        num_seeds=3,
        preset="cpu",
        options={"total_steps": 1_000_000, "num_evals": 5, "eval_episodes": 16, **NEWEST},
        first_seed=10,
    ),
    "estimators": Suite(
        "the three gradient estimators on a CPU, on two tasks, with 400,000 steps",
        ("playground:CartpoleBalance", "playground:CartpoleSwingup"),
        ESTIMATORS,
        num_seeds=10,
        preset="cpu",
        options={"total_steps": 400_000, **NEWEST},
        first_seed=10,
        together=10,
    ),
    "locomotion": Suite(
        "the same on two tasks of six actions, which EnvPool simulates",
        ("envpool:CheetahRun-v1", "envpool:WalkerWalk-v1"),
        ESTIMATORS,
        num_seeds=5,
        preset="cpu",
        options={"total_steps": 400_000, "eval_episodes": 16, **NEWEST},
        first_seed=10,
        together=5,
    ),
    "parts": Suite(
        "every part of REPPO taken out in turn, on a CPU, with 400,000 steps",
        ("playground:CartpoleSwingup",),
        tuple(ABLATIONS),
        num_seeds=10,
        preset="cpu",
        options={"total_steps": 400_000, **NEWEST, **BEFORE_EPOCHS},
        together=10,
    ),
    "smoke": Suite(
        "minutes, to see everything work; it says nothing about the algorithms",
        ("probe:TargetReach", "gymnax:Pendulum-v1", "playground:CartpoleBalance"),
        (REPPO, "reppo-score_gae"),
        num_seeds=3,
        preset="cpu",
        options={"total_steps": 20_480, "num_evals": 5, "eval_episodes": 16, **NEWEST, **BEFORE_ENTROPY},
        together=3,
    ),
}


def suite(name: str) -> Suite:
    """A suite by its name."""
    if name not in SUITES:
        raise ConfigError(f"no suite {name!r}{nearest(name, SUITES)}; there are {', '.join(SUITES)}")
    return SUITES[name]
