"""What the differences from the paper and the official code are worth: each taken back in turn.

    python benchmarks/differences.py                                           # results/differences.csv
    python benchmarks/differences.py --tasks gymnax:Pendulum-v1 --variants ours lost-successor

The `cpu` preset on small tasks, all seeds of a variant at once. A variant is an option, or a function of the package
replaced by another for the length of a run, mostly by what the official code does; ``docs/results.md`` has the words. The
table has every evaluation of every seed. Runs that are in it already are kept.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp

import reppo
from reppo import distributions, envs, normalizer, provenance, returns
from reppo import reppo as algorithm
from reppo.envs.autoreset import AutoReset
from reppo.types import Rollout

RESULTS = Path(__file__).parent.parent / "results"
SEEDS = range(740, 750)  #: not those that the preset was chosen on

#: Time limits that come seldom, and often; falls that end an episode; and discrete actions, where the entropy is positive.
TASKS = ("playground:CartpoleSwingup", "gymnax:Pendulum-v1", "brax:inverted_double_pendulum", "gymnax:CartPole-v1")
COLUMNS: Sequence[str] = ("env", "variant", "seed", "env_steps", "return", "cpu", "revision")

# --------------------------------------------------------------------------------------------- what others do


def with_rollout(change: Callable[[Rollout], Rollout]) -> Callable[..., algorithm.Batch]:
    """`targets` of a changed rollout."""
    original = algorithm.targets

    def targets(state: Any, rollout: Rollout, config: Any, spec: Any, key: jax.Array) -> algorithm.Batch:
        return original(state, change(rollout), config, spec, key)

    return targets


def lose_successor(rollout: Rollout) -> Rollout:
    """The successor at an episode's end is the next episode's first observation, as stock wrappers return it."""

    def lose(next_obs: jax.Array, obs: jax.Array) -> jax.Array:
        first = jnp.concatenate([obs[1:], next_obs[-1:]])  # the last row's successor is not in the batch
        return jnp.where(jnp.expand_dims(rollout.truncated, tuple(range(2, obs.ndim))), first, next_obs)

    return rollout._replace(next_obs=jax.tree.map(lose, rollout.next_obs, rollout.obs))


def end_at_truncation(rollout: Rollout) -> Rollout:
    """A time limit is an end like any other: ``done``."""
    return rollout._replace(terminated=rollout.terminated | rollout.truncated, truncated=jnp.zeros_like(rollout.truncated))


def bonus_at_every_end(
    reward: jax.Array, discount: jax.Array, entropy_bonus: jax.Array, next_value: jax.Array, lambda_: jax.Array
) -> jax.Array:
    """The successor's entropy is part of the reward, also where nothing follows."""
    gamma = jnp.max(discount)  # some row goes on
    return soft_lambda_returns(reward + gamma * entropy_bonus, discount, jnp.zeros_like(reward), next_value, lambda_)


soft_lambda_returns = returns.soft_lambda_returns


def mask_truncated_rows() -> Iterator[None]:
    """Truncated rows do not train the critic."""
    targets, critic_loss = algorithm.targets, algorithm.critic_loss

    def marked(state: Any, rollout: Rollout, config: Any, spec: Any, key: jax.Array) -> algorithm.Batch:
        # The pathwise objective reads no advantage: its place carries the mark.
        batch = targets(state, rollout, config, spec, key)
        return batch._replace(advantage=rollout.truncated.reshape(-1).astype(jnp.float32))

    def masked(critic: Any, batch: algorithm.Batch, aux_weight: float) -> Any:
        return critic_loss(critic, batch._replace(valid=batch.valid * (1 - batch.advantage)), aux_weight)

    with mock.patch.object(algorithm, "targets", marked), mock.patch.object(algorithm, "critic_loss", masked):
        yield


log_prob = distributions.TanhGaussian.log_prob


def clipped_log_prob(self: distributions.TanhGaussian, sample: jax.Array) -> jax.Array:
    """The density at the sample that a clipped action inverts to."""
    return log_prob(self, jnp.arctanh(jnp.clip(jnp.tanh(sample), -0.999, 0.999)))


minibatches = algorithm.minibatches


def one_key_an_epoch(state: Any, rollout: Rollout, key: jax.Array, config: Any, spec: Any) -> Any:
    """All minibatches of an epoch draw the same noise."""
    batch, rows, keys = minibatches(state, rollout, key, config, spec)
    first = keys.reshape(config.num_epochs, config.num_minibatches)[:, :1]
    return batch, rows, jnp.broadcast_to(first, (config.num_epochs, config.num_minibatches)).reshape(-1)


merge = normalizer.update


def one_scale(state: normalizer.Normalizer, batch: Any, valid: jax.Array | None = None) -> normalizer.Normalizer:
    """One mean and one variance for all dimensions."""
    merged = merge(state, batch, valid)

    def pooled_mean(mean: jax.Array) -> jax.Array:
        return jnp.full_like(mean, jnp.mean(mean))

    def pooled_var(mean: jax.Array, var: jax.Array) -> jax.Array:
        return jnp.full_like(var, jnp.mean(var) + jnp.var(mean))

    return normalizer.Normalizer(
        jax.tree.map(pooled_mean, merged.mean), jax.tree.map(pooled_var, merged.mean, merged.var), merged.count
    )


first_states = AutoReset.__init__


def drawn_once(self: AutoReset, *args: Any, **kwargs: Any) -> None:
    """First states are drawn at the start, and never again."""
    first_states(self, *args, **kwargs)
    self.refresh_every = 10**9


# --------------------------------------------------------------------------------------------- runs

Context = Callable[[], contextlib.AbstractContextManager[Any]]


@dataclasses.dataclass(frozen=True)
class Variant:
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    patched: Context = contextlib.nullcontext
    continuous_only: bool = False


def replaced(owner: Any, name: str, value: Any) -> Context:
    return lambda: mock.patch.object(owner, name, value)


VARIANTS: dict[str, Variant] = {
    "ours": Variant(),
    "end-at-truncation": Variant(patched=replaced(algorithm, "targets", with_rollout(end_at_truncation))),
    "lost-successor": Variant(patched=replaced(algorithm, "targets", with_rollout(lose_successor))),
    "truncated-rows-masked": Variant(patched=contextlib.contextmanager(mask_truncated_rows)),
    "bonus-at-every-end": Variant(patched=replaced(returns, "soft_lambda_returns", bonus_at_every_end)),
    "one-target-sample": Variant({"target_samples": 1}, continuous_only=True),
    "clipped-densities": Variant(
        patched=replaced(distributions.TanhGaussian, "log_prob", clipped_log_prob), continuous_only=True
    ),
    "least-std-0.1": Variant({"min_std": 0.1}, continuous_only=True),
    "one-key-an-epoch": Variant(patched=replaced(algorithm, "minibatches", one_key_an_epoch), continuous_only=True),
    "no-normaliser": Variant({"normalize_observations": False}),
    "one-scale": Variant(patched=replaced(normalizer, "update", one_scale)),
    "epsilon-0.01": Variant(patched=replaced(normalizer, "EPSILON", 1e-2)),
    "first-states-once": Variant(patched=replaced(AutoReset, "__init__", drawn_once)),
}


def measure(env: str, variant: str) -> list[dict[str, Any]]:
    """A row for every evaluation of every seed."""
    here = provenance.provenance()
    config = dataclasses.replace(reppo.preset("cpu"), **VARIANTS[variant].options)
    jax.clear_caches()  # of programs that have another variant's functions in them
    with VARIANTS[variant].patched():
        run = reppo.train(env, config, seed=SEEDS[0], num_seeds=len(SEEDS))
    return [
        {
            "env": env,
            "variant": variant,
            "seed": int(row["seed"]),
            "env_steps": int(row["env_steps"]),
            "return": round(row["eval/return"], 2),
            "cpu": here["hardware"]["cpu"],
            "revision": here["git"],
        }
        for row in run.evaluations
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="*", choices=TASKS, default=list(TASKS))
    parser.add_argument("--variants", nargs="*", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--out", type=Path, default=RESULTS / "differences.csv")
    args = parser.parse_args()
    done = set()
    if args.out.exists():
        with args.out.open(newline="") as file:
            done = {(row["env"], row["variant"]) for row in csv.DictReader(file)}
    else:
        with args.out.open("w", newline="") as file:
            csv.DictWriter(file, COLUMNS).writeheader()
        args.out.with_suffix(".json").write_text(json.dumps(provenance.provenance(), indent=2) + "\n")
    for env in args.tasks:
        continuous = not envs.make(env).spec().discrete
        for variant in args.variants:
            if (env, variant) in done or (VARIANTS[variant].continuous_only and not continuous):
                continue
            rows = measure(env, variant)
            with args.out.open("a", newline="") as file:
                csv.DictWriter(file, COLUMNS).writerows(rows)
            last = [row["return"] for row in rows if row["env_steps"] == rows[-1]["env_steps"]]
            mean = sum(row["return"] for row in rows) / len(rows)
            print(f"{env} {variant}: over the run {mean:.1f}, at the end {sorted(last)}", flush=True)


if __name__ == "__main__":
    main()
