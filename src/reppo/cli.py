"""The command line: ``reppo train``, ``reppo eval``, ``reppo envs``."""

from __future__ import annotations

import time

STARTED = time.perf_counter()  # before the heavy imports, so that a run's seconds are those that its user waited

import contextlib  # noqa: E402
import dataclasses  # noqa: E402
import difflib  # noqa: E402
import io  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import re  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Annotated, Any, TypeVar  # noqa: E402

import jax  # noqa: E402
import tyro  # noqa: E402

from reppo import envs, export, loop  # noqa: E402
from reppo.config import PRESETS, Config, ConfigError, preset  # noqa: E402
from reppo.display import make_display  # noqa: E402
from reppo.evaluate import evaluate_policy  # noqa: E402
from reppo.sinks import Sink, WandbSink  # noqa: E402

DEFAULT_ENV = "playground:CartpoleSwingup"
USER_ERROR = 2  #: exit code of everything that the user can mend

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class TrainArgs:
    """Train REPPO on an environment."""

    env: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ENV")] = DEFAULT_ENV
    """suite:Task (`reppo envs` lists them), or path/to/file.py:MyEnv for one of your own."""
    preset: Annotated[str, tyro.conf.arg(metavar="{" + ",".join(PRESETS) + "}")] = "cpu"
    """A complete configuration; the options below change single values of it. Unset: cpu, or paper-large on a GPU."""
    seed: int = 0
    """The first seed."""
    seeds: int = 1
    """How many seeds to train at once on this device: seed, seed + 1, ..."""
    out: Path | None = None
    """A new directory for the run's files. Unset: runs/TASK-DATE-TIME."""
    wandb: str | None = None
    """Also log to this Weights & Biases project; uses the network."""
    config: tyro.conf.OmitArgPrefixes[Config] = dataclasses.field(default_factory=Config)


@dataclasses.dataclass(frozen=True)
class EvalArgs:
    """Evaluate a saved policy, greedily, on fresh episodes."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """A run directory, or a policy file."""
    env: str | None = None
    """Another environment with the same observations and actions. Unset: the one it was trained on."""
    episodes: int = 128
    """Episodes."""
    seed: int = 0
    """Seed of the episodes."""
    json: bool = False
    """Print one JSON object instead of a sentence."""


@dataclasses.dataclass(frozen=True)
class EnvsArgs:
    """List what can be trained here, and what to install for the rest."""

    json: bool = False
    """Print one JSON object instead of a table."""


def train(args: TrainArgs) -> None:
    out = args.out or Path("runs") / loop.new_run_name(args.env)
    sinks: list[Sink] = [make_display(out)]
    if args.wandb is not None:
        sinks.append(WandbSink(args.wandb))
    loop.train(args.env, args.config, seed=args.seed, num_seeds=args.seeds, out=out, sinks=sinks, started=STARTED)


def evaluate(args: EvalArgs) -> None:
    policy = export.load_policy(args.run)
    if args.episodes < 1:
        raise ConfigError(f"episodes must be at least 1, got {args.episodes}")
    result = evaluate_policy(policy, envs.make(args.env or policy.env), episodes=args.episodes, seed=args.seed)
    returns, lengths = result["returns"], result["lengths"]
    if args.json:
        numbers = {"mean": returns.mean(), "std": returns.std(), "min": returns.min(), "max": returns.max()}
        numbers = {f"return_{name}": float(value) for name, value in numbers.items()}
        print(json.dumps({"env": args.env or policy.env, "episodes": args.episodes, "seed": args.seed, **numbers,
                          "length_mean": float(lengths.mean()), "returns": returns.tolist()}))  # fmt: skip
        return
    print(
        f"{args.env or policy.env}: return {returns.mean():.1f} ± {returns.std():.1f} (min {returns.min():.1f}, "
        f"max {returns.max():.1f}) over {len(returns)} greedy episodes of {lengths.mean():.0f} steps, seed {args.seed}"
    )


def list_envs(args: EnvsArgs) -> None:
    found = {
        name: {"about": suite.about, "install": f"pip install 'reppo[{suite.extra}]'" if suite.extra else None,
               "tasks": None if envs.missing(suite) else suite.adapter().names()}
        for name, suite in envs.SUITES.items()
    }  # fmt: skip
    if args.json:
        print(json.dumps(found))
        return
    for name, entry in found.items():
        print(f"{name}  ({entry['about']})")
        if entry["tasks"] is None:
            print(f"  not installed: {entry['install']}")
        for task in entry["tasks"] or ():
            print(f"  {name}:{task}")
    print("your own  (a file with a reppo.Env)\n  path/to/file.py:MyEnv")


COMMANDS = {"train": (TrainArgs, train), "eval": (EvalArgs, evaluate), "envs": (EnvsArgs, list_envs)}


def parse(args_type: type[T], argv: list[str], command: str, default: T | None = None) -> T:
    """The typed arguments of a command; a mistake becomes one line."""
    stderr = io.StringIO()
    options: dict[str, Any] = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(stderr):
            args, unknown = tyro.cli(
                args_type,
                args=argv,
                prog=f"reppo {command}",
                description=args_type.__doc__,
                return_unknown_args=True,
                **options,
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise ConfigError(_one_line(stderr.getvalue(), command)) from None
    if unknown:
        raise ConfigError(
            f"unknown option {unknown[0]}{_nearest_option(args_type, unknown[0])}; `reppo {command} --help` lists them"
        )
    return args


def _one_line(box: str, command: str) -> str:
    """The sentence inside the frame that the argument parser draws."""
    lines = [re.sub(r"^[│|\s]+|[│|\s]+$", "", line) for line in box.splitlines()]
    words = [line for line in lines if line and not re.match(r"^[╭╰─├+]", line) and "--help" not in line]
    return " ".join(words) or f"bad arguments; see `reppo {command} --help`"


def _nearest_option(args_type: type, word: str) -> str:
    names = [f.name for f in dataclasses.fields(args_type)] + [f.name for f in dataclasses.fields(Config)]
    flags = ["--" + name.strip("_").replace("_", "-") for name in names]
    close = difflib.get_close_matches(word.partition("=")[0].replace("_", "-"), flags, n=2)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def chosen_preset(argv: list[str]) -> str:
    """The value of ``--preset``, read ahead because it decides every other option's default."""
    for i, word in enumerate(argv):
        if word.startswith("--preset="):
            return word.partition("=")[2]
        if word == "--preset" and i + 1 < len(argv):
            return argv[i + 1]
    return loop.default_preset()


def use_compilation_cache() -> None:
    """Keep compiled programs in the user's cache folder, so that a second start is fast."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "reppo" / "jax"
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def run(argv: list[str]) -> None:
    if not argv or argv[0] in ("-h", "--help"):
        print(__doc__)
        for name, (args_type, _) in COMMANDS.items():
            print(f"  reppo {name:6} {(args_type.__doc__ or '').strip()}")
        print("\n`reppo COMMAND --help` describes a command's options.")
        return
    command, *rest = argv
    if command not in COMMANDS:
        raise ConfigError(f"no command {command!r}; there are {', '.join(COMMANDS)}")
    use_compilation_cache()
    args_type, function = COMMANDS[command]
    default = None
    if command == "train" and not {"-h", "--help"} & set(rest):
        name = chosen_preset(rest)
        default = TrainArgs(preset=name, config=preset(name))
    elif command == "train":
        default = TrainArgs(preset=loop.default_preset(), config=preset(loop.default_preset()))
    function(parse(args_type, rest, command, default))


def main(argv: list[str] | None = None) -> int:
    """Entry point. Exit code 0 for success, 2 for a mistake of the user, 130 for an interrupt."""
    try:
        run(sys.argv[1:] if argv is None else argv)
    except ConfigError as error:
        print(f"reppo: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print("reppo: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
