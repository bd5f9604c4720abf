"""The official code's speed beside ours, in turns on one machine: environment steps per second of whole iterations.

    git clone https://github.com/cvoelcker/reppo official && git -C official checkout a7ab85b
    pip install distrax flax hydra-core
    python benchmarks/official.py --checkout official                  # results/official.csv

CartpoleBalance, 256 environments, 32 steps, 8 minibatches, 4 epochs, width 512, with 64, 8 and 4 action samples in a target.
Theirs is ``src/reppo_mj_playground.py``, unchanged. Its actor and its critic's encoder have a layer more than those of the
paper: ours is measured with these sizes, ``equal``, and with the paper's, ``paper``. Three things around it are replaced, so
that it runs with today's packages: Playground's physics is ``jax``, as ours is; a wrapper in place of the fork of Playground
that it expects puts the successor's observation where it looks for it; and a mean takes its mask as numbers, as JAX once
did. Its evaluations are one step long, which leaves a reset and that step in an iteration. Every turn is a process of its
own; seconds are those of an iteration, without compilation.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import dataclasses
import importlib.util
import itertools
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import jax

from reppo import envs, preset, provenance
from reppo import reppo as algorithm
from reppo.nets import ContinuousCritic
from reppo.run import Clock, Run

RESULTS = Path(__file__).parent.parent / "results"
TASK = "CartpoleBalance"
SIZES = {"num_envs": 256, "num_steps": 32, "num_epochs": 4}
MINIBATCHES, ITERATIONS = 8, 4  #: the first iteration does not count
CODES = ("official", "equal", "paper")
ROWS = SIZES["num_envs"] * SIZES["num_steps"]


def deeper_critic(*args: Any, **options: Any) -> ContinuousCritic:
    """A critic with the official code's encoder."""
    return ContinuousCritic(*args, **{**options, "encoder_layers": 3})


def ours(samples: int, equal: bool) -> list[float]:
    """Seconds of each iteration: rollout, update, and what the loop does with its metrics."""
    config = dataclasses.replace(
        preset("paper-small"), **SIZES, num_minibatches=MINIBATCHES, target_samples=samples, total_steps=ITERATIONS * ROWS
    )
    sizes: Any = contextlib.nullcontext()
    if equal:
        config = dataclasses.replace(config, actor_layers=4)
        sizes = mock.patch.object(algorithm, "ContinuousCritic", deeper_critic)
    laps = []
    with jax.default_matmul_precision(config.precision), sizes:
        run = Run(envs.make(f"playground:{TASK}"), config, [0], None)
        run.start()
        clock = Clock(time.perf_counter())
        for _ in range(ITERATIONS):
            start = time.perf_counter()
            run.iterate(clock)
            jax.block_until_ready(run.state)
            laps.append(time.perf_counter() - start)
    return laps[1:]


def official(samples: int, checkout: Path) -> list[float]:
    """Seconds from one of its reports to the next, of which there is one for each iteration."""
    from mujoco_playground import registry
    from mujoco_playground._src import wrapper

    marks = []
    util: Any = ModuleType("util")
    util.prefix_dict = lambda prefix, metrics: {f"{prefix}/{name}": value for name, value in metrics.items()}
    util.log_callback = lambda *_: marks.append(time.perf_counter())
    sys.modules["util"] = util
    sys.path.insert(0, str(checkout))
    spec = importlib.util.spec_from_file_location("official", checkout / "src" / "reppo_mj_playground.py")
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def load(name: str) -> Any:
        config = registry.get_default_config(name)
        config.impl = "jax"
        return registry.load(name, config=config)

    class KeepsSuccessor(wrapper.Wrapper):
        """Where the code looks for it; after a reset it is the next episode's observation, which costs the same."""

        def reset(self, rng: jax.Array) -> Any:
            state = self.env.reset(rng)
            return state.replace(info={**state.info, "raw_obs": state.obs})

        def step(self, state: Any, action: jax.Array) -> Any:
            state = self.env.step(state, action)
            return state.replace(info={**state.info, "raw_obs": state.obs})

    class Numpy(ModuleType):
        """``jax.numpy`` with that mean."""

        def __getattr__(self, name: str) -> Any:
            return getattr(jax.numpy, name)

        def mean(self, x: jax.Array, *args: Any, where: jax.Array | None = None, **kwargs: Any) -> jax.Array:
            return jax.numpy.mean(x, *args, where=None if where is None else where.astype(bool), **kwargs)

    module.jnp = Numpy("jnp")
    wrapped = module.wrap_for_brax_training
    module.registry = SimpleNamespace(load=load)
    module.wrap_for_brax_training = lambda env: KeepsSuccessor(wrapped(env))
    settings = SimpleNamespace(
        **SIZES,
        env=SimpleNamespace(name=TASK, episode_length=1),
        seed=0,
        num_seeds=1,
        num_eval=ITERATIONS,
        total_time_steps=ITERATIONS * ROWS,
        num_mini_batches=MINIBATCHES,
        learning_rate=3e-4,
        anneal_lr=False,
        max_grad_norm=0.5,
        gamma=0.99,
        lmbda=0.95,
        kl_start=0.01,
        kl_bound=0.1,
        ent_start=0.001,
        ent_target_mult=0.5,
        num_bins=151,
        vmin=0.0,
        vmax=150.0,
        aux_loss_coeff=0.0,
        num_action_samples=samples,
        jit=True,
    )
    jax.block_until_ready(module.make_train_fn(settings)(jax.random.PRNGKey(settings.seed)))
    jax.effects_barrier()
    return [after - before for before, after in itertools.pairwise(marks)]


def revision_of(checkout: Path) -> str:
    """The commit that is checked out, marked where it has changes."""
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty=+changes", "--abbrev=40"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def turn(code: str, samples: int, checkout: Path) -> dict[str, Any]:
    """One process's row."""
    command = [sys.executable, __file__, "--checkout", str(checkout), "--one", code, "--samples", str(samples)]
    answer = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
    seconds = statistics.median(answer["seconds"])
    here = provenance.provenance()
    return {
        "measured": time.strftime("%Y-%m-%d %H:%M"),
        "code": code,
        "samples": samples,
        "steps_per_s": round(ROWS / seconds),
        "seconds": round(seconds, 3),
        "peak_host_mb": answer["peak_host_mb"],
        "cpu": here["hardware"]["cpu"],
        "cores": here["hardware"]["cpu_cores"],
        "revision": here["git"],
        "official_revision": revision_of(checkout),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkout", type=Path, required=True, help="of the official code")
    parser.add_argument("--samples", nargs="*", type=int, default=[64, 8, 4])
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS / "official.csv")
    parser.add_argument("--one", choices=CODES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        (samples,) = args.samples
        seconds = (
            ours(samples, args.one == "equal") if args.one != "official" else official(samples, args.checkout.resolve())
        )
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        print(json.dumps({"seconds": seconds, "peak_host_mb": peak}))
        return
    for samples in args.samples:
        for turn_number in range(args.turns):
            for code in CODES[::-1] if turn_number % 2 else CODES:
                row = turn(code, samples, args.checkout)
                print(row, flush=True)
                new = not args.out.exists()
                with args.out.open("a", newline="") as file:
                    table = csv.DictWriter(file, list(row))
                    if new:
                        table.writeheader()
                    table.writerow(row)
    args.out.with_suffix(".json").write_text(json.dumps(provenance.provenance(), indent=2) + "\n")


if __name__ == "__main__":
    main()
