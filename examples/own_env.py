"""An environment of your own, in one file. Train it with `reppo train examples/own_env.py:Pendulum`."""

import jax
import jax.numpy as jnp

import reppo


class Pendulum(reppo.Env):
    """Swing a rod up with a motor that is too weak to lift it in one go."""

    action_size = 1
    action_low, action_high = -1.0, 1.0  # torque, 0.4 of what would hold the rod level
    episode_length = 200  # then the episode is truncated
    value_range = (0.0, 120.0)  # rewards are in [0, 1], 1 / (1 - gamma) is 100, the rest is room for entropy

    def reset(self, key):
        angle = jax.random.uniform(key, minval=-jnp.pi, maxval=jnp.pi)
        state = jnp.stack([angle, 0.0])
        return state, self.observe(state)

    def step(self, state, action, key):
        angle, velocity = state
        velocity = velocity + 0.05 * (10.0 * jnp.sin(angle) + 4.0 * action[0])
        state = jnp.stack([angle + 0.05 * velocity, velocity])
        reward = (1.0 + jnp.cos(state[0])) / 2.0
        return state, reppo.Transition(self.observe(state), reward, terminated=jnp.array(False))

    def observe(self, state):
        angle, velocity = state
        return jnp.stack([jnp.cos(angle), jnp.sin(angle), velocity])
