"""What trains: ``reppo train``, ``reppo resume`` and ``reppo baseline``."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
from tyro.conf import Positional

from reppo import algorithms, baselines, envs, loop, options, same_run
from reppo.cli import startup
from reppo.cli.exits import explained_errors
from reppo.config import PRESETS, Config, preset, shown_count
from reppo.display import make_display, shown
from reppo.errors import ConfigError
from reppo.interrupt import NOTHING_YET, Interrupt
from reppo.options import INLINE, unset
from reppo.run_directory import claimed, read_description
from reppo.sinks import Sink, WandbSink

DEFAULT_ENV = "playground:CartpoleSwingup"


@dataclasses.dataclass(frozen=True)
class TrainArgs:
    """Train REPPO on an environment.

    Examples:
      reppo train
      reppo train playground:CheetahRun --seeds 5 --total-steps 2e6
      reppo train path/to/file.py:MyEnv --v-min 0 --v-max 100
    """

    env: Positional[str] = DEFAULT_ENV
    """suite:Task (`reppo envs` lists them), or path/to/file.py:MyEnv for one of your own."""
    preset: Annotated[str, unset("{" + ",".join(PRESETS) + "}")] = ""
    """A complete configuration; the options below change single values of it. Unset: cpu, or paper-large on a GPU."""
    seed: int = 0
    """The first seed."""
    seeds: int = 1
    """How many seeds to train at once: seed, seed + 1, ... Several devices share them, where each gets as many."""
    out: Annotated[Path | None, unset("PATH")] = None
    """A new directory for the run's files. Unset: runs/TASK-DATE-TIME."""
    wandb: Annotated[str | None, unset("PROJECT")] = None
    """Also log to this Weights & Biases project; uses the network."""
    config: Annotated[Config, INLINE] = dataclasses.field(default_factory=Config)


def train_arguments(argv: Sequence[str]) -> TrainArgs:
    """The defaults of a `Config` depend on the preset, which is an argument itself."""
    asked = options.parse(TrainArgs, [word for word in argv if word not in options.HELP], "train")
    envs.leave_gpu_memory(asked.env)  # to know of a GPU is to start JAX
    name = asked.preset or loop.default_preset()
    return options.parse(TrainArgs, argv, "train", TrainArgs(preset=name, config=preset(name)))


def train(args: TrainArgs) -> None:
    check_number_of_seeds(args.seeds)
    with claimed(args.out, args.env) as out, reported_run(out, args.env, args.wandb) as how:
        loop.train(args.env, args.config, seed=args.seed, num_seeds=args.seeds, out=out, **how)


@dataclasses.dataclass(frozen=True)
class ResumeArgs:
    """Go on with a run that was stopped or killed, as if it had never stopped.

    Examples:
      reppo resume runs/CartpoleSwingup-20260131-142500
      reppo resume runs/CartpoleSwingup-20260131-142500 --total-steps 2e6
    """

    run: Positional[Path]
    """The directory of the run."""
    wandb: Annotated[str | None, unset("PROJECT")] = None
    """Also log to this Weights & Biases project; uses the network."""
    config: Annotated[Config, INLINE] = dataclasses.field(default_factory=Config)


def resume_arguments(argv: Sequence[str]) -> ResumeArgs:
    """The defaults of a `Config` are those of the run that is resumed, which is an argument itself."""
    if not options.HELP.isdisjoint(argv):
        return options.parse(ResumeArgs, argv, "resume", shown=same_run.RESUMABLE)
    run = options.parse(ResumeArgs, argv, "resume").run
    config = algorithms.read_config(read_description(run), str(run / "config.json"))
    if isinstance(config, Config):
        return options.parse(ResumeArgs, argv, "resume", ResumeArgs(run, config=config))
    # Of a baseline only what may change: its other options are none of ours.
    same = {name: getattr(config, name) for name in same_run.RESUMABLE}
    args = options.parse(ResumeArgs, argv, "resume", ResumeArgs(run, config=dataclasses.replace(Config(), **same)))
    changes = {name: getattr(args.config, name) for name in same_run.RESUMABLE}
    return dataclasses.replace(args, config=dataclasses.replace(config, **changes))


def resume(args: ResumeArgs) -> None:
    with reported_run(args.run, read_description(args.run)["env"], args.wandb) as how:
        loop.resume(args.run, args.config, **how)


@dataclasses.dataclass(frozen=True)
class BaselineArgs:
    """Train what REPPO is compared with; the files are those of `reppo train`.

    Examples:
      reppo baseline ppo playground:CheetahRun
      reppo baseline fasttd3 gymnax:Pendulum-v1 --preset cpu --set total_steps=100000 n_step=1
    """

    algorithm: Positional[str]
    """fasttd3, Brax's (ppo, sac), Stable-Baselines3's (sb3-ppo, sb3-sac), or SBX's (sbx-ppo, sbx-sac)."""
    env: Positional[str]
    """suite:Task, or path/to/file.py:MyEnv."""
    preset: Annotated[str, unset("{published,published-robots,cpu}")] = ""
    """A complete configuration. Unset: cpu, or published on a GPU."""
    set: Annotated[tuple[str, ...], unset("NAME=VALUE")] = ()
    """Single values of it, as docs/baselines.md names them."""
    total_steps: Annotated[int | None, unset("N")] = None
    """Environment steps of the whole run. Unset: the preset's."""
    num_evals: Annotated[int | None, unset("N")] = None
    """Evaluations, evenly over the run. Unset: the preset's."""
    eval_episodes: Annotated[int | None, unset("N")] = None
    """Fresh greedy episodes per evaluation. Unset: the preset's."""
    seed: int = 0
    """The first seed."""
    seeds: int = 1
    """How many seeds to train at once: seed, seed + 1, ... Several devices share them, where each gets as many."""
    out: Annotated[Path | None, unset("PATH")] = None
    """A new directory for the run's files. Unset: runs/TASK-ALGORITHM-DATE-TIME."""
    wandb: Annotated[str | None, unset("PROJECT")] = None
    """Also log to this Weights & Biases project; uses the network."""


def baseline(args: BaselineArgs) -> None:
    given = {name: getattr(args, name) for name in ("total_steps", "num_evals", "eval_episodes")}
    preset = args.preset or ("cpu" if jax.default_backend() == "cpu" else "published")
    config = baselines.configured(args.algorithm, args.env, preset, args.set, given)
    check_number_of_seeds(args.seeds)
    name = f"{args.env}-{args.algorithm}"
    library = algorithms.ALGORITHMS[args.algorithm].library
    if not library:
        with claimed(args.out, name) as out, reported_run(out, args.env, args.wandb) as how:
            loop.train(args.env, config, seed=args.seed, num_seeds=args.seeds, out=out, **how)
        return
    whose = f"{library}'s {args.algorithm}"
    if args.seeds > 1:
        raise ConfigError(f"{whose} trains one seed at a time; leave out --seeds")
    from reppo.baselines import foreign

    words = ["reppo", "baseline", args.algorithm, args.env, "--preset", preset, "--seed", str(args.seed)]
    words += [word for name, value in given.items() if value is not None for word in (options.flag(name), str(value))]
    command = shlex.join([*words, *(["--set", *args.set] if args.set else [])])
    make_agent = algorithms.make_agent(args.algorithm)
    lost = f"a run of {whose} cannot be continued"
    with claimed(args.out, name) as out, reported_run(out, args.env, args.wandb, lost) as how:
        del how["interrupt"]  # it may end at any moment
        foreign.train(args.env, config, make_agent, seed=args.seed, out=out, command=command, **how)


def check_number_of_seeds(seeds: int) -> None:
    """Refuse what no run can have; `reppo.train` does, too, by its own argument's name."""
    if seeds < 1:
        raise ConfigError(f"--seeds must be at least 1, got {seeds}")
    if seeds > loop.MOST_SEEDS:
        raise ConfigError(f"--seeds must be at most {loop.MOST_SEEDS:,}, got {shown_count(seeds)}")


@contextlib.contextmanager
def reported_run(directory: Path, env: str, wandb: str | None, lost: str = NOTHING_YET) -> Iterator[dict[str, Any]]:
    """What a run of the command line has beside its configuration: a display, stopping on signals, explained errors.

    ``lost`` says why there is nothing to resume, where that is so; given, that is always so.
    """
    display = make_display(directory, startup.started)
    sinks: list[Sink] = [display] if wandb is None else [display, WandbSink(wandb)]

    def how_to_resume() -> str | None:
        begun = lost == NOTHING_YET and (directory / "config.json").exists()
        return f"`reppo resume {shlex.quote(shown(directory))}` goes on" if begun else None

    with (
        contextlib.closing(display),
        Interrupt(how_to_resume, lost) as interrupt,
        interrupt.expendable(),
        explained_errors(env, display),
    ):
        display.prepare(f"loading {env}")
        yield {"sinks": sinks, "started": startup.started, "interrupt": interrupt}
    display.summarise()
