"""An asymmetric critic: in training the critic sees what the robot's sensors never will.

    python examples/asymmetric_critic.py

A cart of unknown mass must stop at a target. The actor sees positions and the velocity; the critic also sees the mass.
An entry of a dict observation whose name starts with `privileged` goes to the critic alone. `--actor-obs` and
`--critic-obs` override that, for example to compare with a critic that is as blind as the actor:

    reppo train examples/asymmetric_critic.py:UnknownMass --critic-obs state
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp

import reppo


class UnknownMass(reppo.Env):
    """Push a cart, whose mass is drawn anew in every episode, to a target on a line, and hold it there."""

    action_size = 1
    episode_length = 100
    value_range = (0.0, 120.0)

    def reset(self, key):
        key_position, key_target, key_mass = jax.random.split(key, 3)
        state = {
            "position": jax.random.uniform(key_position, minval=-1.0, maxval=1.0),
            "velocity": jnp.zeros(()),
            "target": jax.random.uniform(key_target, minval=-1.0, maxval=1.0),
            "mass": jax.random.uniform(key_mass, minval=0.5, maxval=3.0),
        }
        return state, self.observe(state)

    def step(self, state, action, key):
        velocity = state["velocity"] + 0.1 * action[0] / state["mass"]
        state = {**state, "position": state["position"] + 0.1 * velocity, "velocity": velocity}
        reward = jnp.exp(-10.0 * (state["position"] - state["target"]) ** 2)
        return state, reppo.Transition(self.observe(state), reward, terminated=jnp.array(False))

    def observe(self, state):
        return {
            "state": jnp.stack([state["position"], state["velocity"], state["target"]]),
            "privileged_state": jnp.stack([state["mass"]]),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--total-steps", type=int, default=150_000)
    parser.add_argument("--out", type=Path, default=Path("runs/asymmetric_critic"))
    args = parser.parse_args()

    config = dataclasses.replace(reppo.preset("cpu"), total_steps=args.total_steps)
    run = reppo.train(UnknownMass, config, seed=0, out=args.out)
    print(f"the actor saw {run.spec.actor_keys}, the critic {run.spec.critic_keys}")
    print(f"greedy return {run.returns.mean():.1f} of at most {UnknownMass.episode_length}")

    policy = reppo.load_policy(args.out)
    print(f"the saved policy needs {policy.obs_keys}: {policy.obs_size} numbers in, {policy.action_size} out")


if __name__ == "__main__":
    main()
