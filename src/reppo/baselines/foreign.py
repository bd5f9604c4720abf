"""Algorithms that another library trains, with a loop of its own; evaluated and recorded by us.

There are no checkpoints, and a run that was stopped cannot go on. What we add is between the stretches of training: the
greedy evaluation that every algorithm here has, the tables, and the policy as a file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from reppo import compiling, envs, run_directory
from reppo.envs.spec import EnvSpec
from reppo.errors import ConfigError, Diverged
from reppo.evaluate import MAX_PARALLEL, Evaluation
from reppo.files import write_json
from reppo.outcome import check_fits, describe, due, evaluation_row, summary
from reppo.plot import plot_run
from reppo.run import Clock
from reppo.sinks import CsvSink, Event, Sink, best_evaluation

FLOAT = 4  #: bytes
Params = Any  #: a policy, as its library has it

#: Receives stretch, of how many, environment steps, and the policy, before the first stretch and after each.
Evaluate = Callable[[int, int, int, Params], None]


class ForeignConfig(Protocol):
    """What we read of any such algorithm's configuration, a frozen dataclass."""

    name: str  #: of the algorithm

    @property
    def num_evals(self) -> int: ...
    @property
    def eval_episodes(self) -> int: ...
    def validate(self) -> None: ...


class Agent(Protocol):
    """An algorithm on an environment, as we need it."""

    spec: EnvSpec  #: with the time limit
    hint: str  #: what to set where a run does not fit into memory

    def memory_parts(self) -> dict[str, int]:
        """Bytes that a run has to hold at least, see `reppo.run.Run.memory_parts`."""
        ...

    def train(self, seed: int, evaluate: Evaluate) -> None:
        """Train to the end."""
        ...

    def sound(self, params: Params) -> bool:
        """Whether all of a policy's numbers are finite."""
        ...

    def episodes(self, params: Params, number: int, seed: int) -> list[Evaluation]:
        """``number`` batches of `num_parallel` fresh greedy episodes; the same first states for the same seed."""
        ...

    def save(self, params: Params, path: Path) -> None:
        """Write a policy that `reppo.load_policy` reads, where it can be one."""

    def close(self) -> None:
        """Give back what environments hold."""


def num_parallel(config: ForeignConfig) -> int:
    """Environments of an evaluation."""
    return min(config.eval_episodes, MAX_PARALLEL)


def train(
    env: str,
    config: ForeignConfig,
    make_agent: Callable[[envs.AnyEnv, Any, int], Agent],
    *,
    seed: int,
    out: Path,
    command: str,
    sinks: Sequence[Sink] = (),
    started: float | None = None,
) -> None:
    """Train one seed, and leave the files of a run in a new directory.

    Args:
        env: as for `reppo.loop.train`.
        config: what to train, and how.
        make_agent: makes the agent of an environment, a configuration and a seed.
        seed: of the library; our evaluations have their own.
        out: a new directory.
        command: what makes this run again, for ``config.json``.
        sinks: further receivers of evaluations.
        started: when the clock began (`time.perf_counter`); unset, now.

    Raises:
        ConfigError: for anything that the caller can mend.
        Diverged: where parameters are not finite.
    """
    clock = Clock(time.perf_counter() if started is None else started)
    config.validate()
    run_directory.check_free(out)
    if not 0 <= seed < 2**32:
        raise ConfigError(f"seeds must be between 0 and 2**32 - 1, got {seed}")
    with compiling.full_precision(), contextlib.closing(make_agent(envs.make(env), config, seed)) as agent:
        check_fits(agent.memory_parts(), f"set {agent.hint}")
        options = dataclasses.asdict(config)  # pyright: ignore[reportArgumentType]
        spec = dataclasses.replace(agent.spec, value_range=None)  # which is of REPPO's critic
        description = json.loads(json.dumps(describe(config.name, spec, [seed], options, {}, command=command)))
        run_directory.create(out, description)
        with (
            run_directory.locked(out),
            run_directory.dropped_unless_begun(out, "evaluations.csv"),
            run_directory.explained_disk_errors(out),
            contextlib.ExitStack() as stack,
        ):
            record = Record(agent, config, seed, out, [CsvSink(out), *sinks], clock)
            for sink in record.sinks:
                stack.callback(sink.close)
                sink.begin(description)
                sink.write(Event.status("compiling the simulator"))
            agent.train(seed, record)
            plot_run(out)
            found = summary(description, record.evaluations, record.returns[None], agent.memory_parts(), clock.seconds)
            write_json(out / "summary.json", found)


# ------------------------------------------------------------------------------------------------ what is recorded


class Record:
    """What is done between two stretches of training: the policy is evaluated where that is due, and saved."""

    def __init__(self, agent: Agent, config: ForeignConfig, seed: int, directory: Path, sinks: Sequence[Sink], clock: Clock):
        self.agent, self.config, self.seed = agent, config, seed
        self.directory, self.sinks, self.clock = directory, sinks, clock
        self.evaluations: list[dict[str, float]] = []
        self.returns = np.zeros(0)

    def __call__(self, stretch: int, stretches: int, env_steps: int, params: Params) -> None:
        if not self.agent.sound(params):
            raise Diverged(f"seed {self.seed} stopped at {env_steps:,} steps: its networks are not finite any more")
        if due(stretch, stretches, self.config.num_evals):
            self.evaluate(stretch, env_steps, params)

    def evaluate(self, stretch: int, env_steps: int, params: Params) -> None:
        """Fresh greedy episodes, the same first states every time; then the policy's file."""
        wanted = self.config.eval_episodes
        batches = self.agent.episodes(params, -(-wanted // num_parallel(self.config)), self.seed)
        result = Evaluation(*(np.concatenate(parts)[:wanted] for parts in zip(*batches, strict=True)))
        self.returns = result.returns
        row = evaluation_row(self.seed, stretch, env_steps, result, self.clock.seconds)
        self.evaluations.append(row)
        for sink in self.sinks:
            sink.write(Event("evaluations", [row]))
            if stretch == 0:
                sink.write(Event.status("compiling, then training"))
        if stretch > 0:
            best = best_evaluation(self.evaluations, self.seed)["iteration"] == stretch
            for name in ["policy.npz", *["best.npz"] * best]:
                self.agent.save(params, self.directory / name)
