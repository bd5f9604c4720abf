"""What is done with a saved policy: ``reppo eval``, ``reppo video`` and ``reppo export``."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from tyro.conf import FlagCreatePairsOff, Positional

from reppo import envs, export, imports, onnx_export
from reppo.cli.exits import check_seed, explained_errors
from reppo.cli.terminal import make_console, working
from reppo.display import glyphs_for, number, shown
from reppo.errors import ConfigError
from reppo.evaluate import evaluate_policy
from reppo.options import unset
from reppo.run_directory import check_new


@dataclasses.dataclass(frozen=True)
class EvalArgs:
    """Evaluate a saved policy, greedily, on fresh episodes.

    Examples:
      reppo eval runs/CartpoleSwingup-20260131-142500
    """

    run: Positional[Path]
    """A run directory, all of whose seeds are evaluated, or one policy file."""
    env: Annotated[str | None, unset("ENV")] = None
    """Another environment with the same observations and actions. Unset: the one it was trained on."""
    episodes: int = 128
    """Episodes per policy."""
    seed: int = 0
    """Seed of the episodes."""
    best: FlagCreatePairsOff[bool] = False
    """Of a run directory, the policies with the best evaluations instead of the newest."""
    json: FlagCreatePairsOff[bool] = False
    """Print one JSON object instead of a sentence."""


def evaluate(args: EvalArgs) -> None:
    if args.episodes < 1:
        raise ConfigError(f"--episodes must be at least 1, got {args.episodes}")
    check_seed(args.seed)
    policies = {path.name: export.load_policy(path) for path in policy_files(args.run, args.best)}
    env = args.env or trained_on(next(iter(policies.values())))
    results: dict[str, dict[str, np.ndarray]] = {}
    with explained_errors(env), working("compiling, then evaluating"):
        environment = envs.make(env)
        for note in getattr(environment, "notes", ()):
            print(f"reppo: {note}", file=sys.stderr)
        for name, policy in policies.items():
            results[name] = evaluate_policy(policy, environment, episodes=args.episodes, seed=args.seed)
    if args.json:
        print(json.dumps(evaluation_json(env, args.seed, results)))
    else:
        print_evaluation(env, args.seed, results)


SUCCESS = {"success_once": "solved it at some step", "success_at_end": "at their last"}


def return_statistics(returns: np.ndarray, lengths: np.ndarray, **success: np.ndarray) -> dict[str, float]:
    """``success`` is ``success_once`` and ``success_at_end``, where the environment says them."""
    numbers = {"mean": returns.mean(), "std": returns.std(), "min": returns.min(), "max": returns.max()}
    statistics = {f"return_{name}": float(value) for name, value in numbers.items()}
    rates = {name: float(values.mean()) for name, values in success.items()}
    return statistics | {"length_mean": float(lengths.mean())} | rates


def evaluation_json(env: str, seed: int, results: dict[str, dict[str, np.ndarray]]) -> dict[str, Any]:
    """All episodes together, and each policy's own; ``returns`` are in the order of the policies."""
    # What only some policies have, broken episodes, the others had none of.
    columns = {name: values.dtype for result in results.values() for name, values in result.items()}
    together = {
        name: np.concatenate([result.get(name, np.zeros(len(result["returns"]), kind)) for result in results.values()])
        for name, kind in columns.items()
    }
    each = [
        {"policy": name, **return_statistics(**result), "returns": result["returns"].tolist()}
        for name, result in results.items()
    ]
    returns = together["returns"].tolist()
    whole = {"env": env, "episodes": len(returns), "seed": seed, **return_statistics(**together)}
    return {**whole, "returns": returns, "policies": each}


def print_evaluation(env: str, seed: int, results: dict[str, dict[str, np.ndarray]]) -> None:
    console = make_console()
    lines, plus_minus = [], glyphs_for(console).plus_minus
    for name, result in results.items():
        s = return_statistics(**result)
        mean = s["return_mean"]
        spread, low, high = (number(s[f"return_{key}"], mean) for key in ("std", "min", "max"))
        lengths = result["lengths"]
        steps = f"{lengths[0]} steps"
        if len(set(lengths)) > 1:
            steps = f"{lengths.min()} to {lengths.max()} steps, {lengths.mean():.0f} in the mean"
        episodes = f"{len(lengths)} greedy episodes of {steps}, seed {seed}"
        rates = [f"{s[key]:.0%} {words}" for key, words in SUCCESS.items() if key in s]
        if "broken" in result:
            rates.append(f"{result['broken'].sum()} ended early, in numbers that are not finite")
        line = f"return {number(mean)} {plus_minus} {spread} (min {low}, max {high}) over {episodes}"
        lines.append((name, mean, "; ".join([line, *rates])))
    if len(lines) == 1:
        console.print(f"{env}: {lines[0][2]}", soft_wrap=True)
        return
    console.print(env)
    width = max(len(name) for name, _, _ in lines)
    for name, _, sentence in lines:
        console.print(f"  {name:{width}}  {sentence}", soft_wrap=True)
    means = np.array([mean for _, mean, _ in lines])
    low, high = (number(bound, means.mean()) for bound in (means.min(), means.max()))
    console.print(f"  {'all':{width}}  return {number(means.mean())} (from {low} to {high}) over {len(means)} policies")


@dataclasses.dataclass(frozen=True)
class VideoArgs:
    """Draw what a saved policy does, as an animated GIF or WebP.

    Examples:
      reppo video runs/CartpoleSwingup-20260131-142500
      reppo video runs/HalfCheetah-20260131-142500 --env gymnasium:HalfCheetah-v5 --out cheetah.webp
    """

    run: Positional[Path]
    """A run directory, whose first seed is drawn, or one policy file."""
    env: Annotated[str | None, unset("ENV")] = None
    """Another environment with the same observations and actions. Unset: the one it was trained on."""
    seconds: float = 10.0
    """How much of the episode is drawn, in the environment's time."""
    seed: int = 0
    """Seed of the episode."""
    camera: Annotated[str | None, unset("NAME")] = None
    """A camera of a MuJoCo model. Unset: the environment's own choice."""
    best: FlagCreatePairsOff[bool] = False
    """Of a run directory, the policy with the best evaluation instead of the newest."""
    out: Annotated[Path | None, unset("PATH")] = None
    """A new file, .gif or .webp. Unset: beside the policy, under its name with the suffix .gif."""


def draw_video(args: VideoArgs) -> None:
    from reppo import video

    check_seed(args.seed)
    if not 0 < args.seconds < float("inf"):
        raise ConfigError(f"--seconds must be positive, got {args.seconds:g}")
    file = policy_files(args.run, args.best)[0]
    policy = export.load_policy(file)
    out = args.out or file.with_suffix(".gif")
    video.check_file(out)
    name = args.env or trained_on(policy)
    imports.for_drawing()
    with explained_errors(name), working("compiling, then drawing"):
        episode = video.record(policy, envs.make(name), seed=args.seed, seconds=args.seconds, camera=args.camera)
    size = video.save(out, episode)
    part = "a whole episode" if episode.over else "the beginning of an episode"
    print(f"{shown(out)}, {number(size / 1024)} KiB: {part} of {name}")
    ended = ", ended by numbers that are not finite" if episode.broken else ""
    print(f"  reward  {number(episode.total_reward)} in {episode.length:,} steps{ended}")


@dataclasses.dataclass(frozen=True)
class ExportArgs:
    """Write a saved policy as an ONNX file, for a robot's runtime.

    Examples:
      reppo export runs/CartpoleSwingup-20260131-142500
      reppo export runs/CartpoleSwingup-20260131-142500/best.npz --out balance.onnx
    """

    run: Positional[Path]
    """A run directory, all of whose seeds are exported, or one policy file."""
    out: Annotated[Path | None, unset("PATH")] = None
    """A new file, for one policy. Unset: beside each policy, under its name with the suffix .onnx."""
    best: FlagCreatePairsOff[bool] = False
    """Of a run directory, the policies with the best evaluations instead of the newest."""


def export_onnx(args: ExportArgs) -> None:
    files = policy_files(args.run, args.best)
    if args.out is not None and len(files) > 1:
        raise ConfigError(f"--out names one file, and {args.run} holds {len(files)} policies: name one of them")
    if args.out is not None and args.out.suffix.lower() != ".onnx":
        raise ConfigError(f"{args.out} names no format that this writes: .onnx")
    policies = [export.load_policy(path) for path in files]
    written = [args.out or path.with_suffix(".onnx") for path in files]
    for path in written:
        check_new(path)
    for path, policy in zip(written, policies, strict=True):
        size = onnx_export.save(path, policy)
        print(f"{shown(path)}, {number(size / 1024)} KiB: {policy.env}")
        for what, tensors in (("reads", onnx_export.inputs(policy)), ("gives", [onnx_export.output(policy)])):
            for tensor in tensors:
                print(f"  {what}  {tensor}")


def policy_files(run: Path, best: bool) -> list[Path]:
    """The policies of a run directory, in the order of their seeds, or the one file; `export.load_policy` judges them."""
    found = run.glob("best*.npz" if best else "policy*.npz") if run.is_dir() else []
    files = sorted(found, key=lambda path: (len(path.name), path.name))
    if best and not files:
        raise ConfigError(f"--best looks for best.npz or best_seed*.npz in a run directory; there is none at {run}")
    return files or [run]


def trained_on(policy: export.SavedPolicy) -> str:
    """The environment that a policy was trained on, as a name; raises `ConfigError` where it was made in Python."""
    if ":" not in policy.env:
        again = f"name it with --env, as path/to/file.py:{policy.env}"
        raise ConfigError(f"this policy's environment, {policy.env}, was made in Python: {again}")
    return policy.env
