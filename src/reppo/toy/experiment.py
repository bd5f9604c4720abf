r"""Five estimates of one policy gradient on a known surface, by the trainer's own `reppo.estimators`.

The policy is a Gaussian over the plane with a mean that is learned and a fixed standard deviation, and the objective is
the surface as the policy sees it, $J(\mu) = E_{a \sim N(\mu, \sigma^2)} f(a)$. There is one state, no entropy bonus, and
nothing else to learn: what differs between the five is the estimator, and what it knows of $f$.

    score       `score_q` on the values of f at fresh samples
    reused      `score_gae`: samples of an earlier policy, reweighted by PPO's clipped importance ratio
    pathwise    `pathwise` with f itself
    strong      `pathwise` with a network that has fitted f well
    weak        `pathwise` with a network that has fitted f badly
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from reppo.distributions import LOG_2PI, ActionDistribution, Quadrature
from reppo.estimators import Behaviour, pathwise, score_gae, score_q
from reppo.nets import MLP

Function = Callable[[jax.Array], jax.Array]  #: points of the plane ``[..., 2]`` to values ``[...]``; a pytree

START = (-1.9, 2.4)  #: the mean at the beginning: on the far end of the ridge
LOW, HIGH = (-2.6, -1.6), (2.2, 3.1)  #: corners of the part of the plane that is looked at, and that networks fit
NAMES = ("score", "reused", "pathwise", "strong", "weak")


class Surface(eqx.Module):
    r"""A curved ridge that rises to the right, ``[..., 2]`` to ``[...]``; its top is at (1, -0.5), where it is 0.

    $$ f(x, y) = -\tfrac14 (x - 1)^2 - (y - \tfrac12 x^2 + 1)^2 $$
    """

    def __call__(self, point: jax.Array) -> jax.Array:
        x, y = point[..., 0], point[..., 1]
        return -0.25 * (x - 1) ** 2 - (y - 0.5 * x**2 + 1) ** 2


surface = Surface()


class Gaussian(ActionDistribution):
    """``a ~ N(mean, exp(log_std)^2)``, not squashed: the action is the sample. Parameters are ``[..., A]``."""

    mean: jax.Array
    log_std: jax.Array

    def sample(self, key: jax.Array, shape: tuple[int, ...] = ()) -> jax.Array:
        noise = jax.random.normal(key, shape + self.mean.shape, self.mean.dtype)
        return self.mean + jnp.exp(self.log_std) * noise

    def greedy(self) -> jax.Array:
        return self.mean

    def action(self, sample: jax.Array) -> jax.Array:
        return sample

    def log_prob(self, sample: jax.Array) -> jax.Array:
        z = (sample - self.mean) * jnp.exp(-self.log_std)
        return jnp.sum(-0.5 * (z**2 + LOG_2PI) - self.log_std, axis=-1)

    def kl(self, other: Gaussian) -> jax.Array:
        log_ratio = other.log_std - self.log_std
        z = (self.mean - other.mean) * jnp.exp(-other.log_std)
        return jnp.sum(log_ratio + 0.5 * (jnp.exp(-2 * log_ratio) + z**2 - 1), axis=-1)

    def quadrature(self, key: jax.Array, num_samples: int) -> Quadrature:
        sample = self.sample(key, (num_samples,))
        return Quadrature(sample, self.log_prob(sample), None)

    def diagnostics(self) -> dict[str, jax.Array]:
        return {"std": jnp.mean(jnp.exp(self.log_std), -1)}


def expectation(function: Function, mean: jax.Array, std: float, points: int = 12) -> jax.Array:
    """``E f(a)`` over the policy, by Gauss-Hermite quadrature; exact for polynomials of a degree below ``2 points``."""
    nodes, weights = (jnp.asarray(x) for x in np.polynomial.hermite_e.hermegauss(points))
    weights = weights / jnp.sum(weights)
    grid = jnp.stack(jnp.meshgrid(nodes, nodes, indexing="ij"), -1)
    return jnp.sum(function(mean + std * grid) * weights[:, None] * weights)


# --------------------------------------------------------------------------------------------- the five estimates


def behaviour_at(mean: jax.Array, std: float, function: Function, key: jax.Array, num_samples: int) -> Behaviour:
    """``S`` samples of a policy, what they turned out to be worth beside each other, and their densities."""
    policy = rows(mean, std, num_samples)
    sample = policy.sample(key)
    value = function(sample)
    # Against the mean of the others, as the baseline of `score_q`.
    advantage = (value - jnp.mean(value)) * num_samples / (num_samples - 1)
    return Behaviour(sample, policy.log_prob(sample), advantage)


def rows(mean: jax.Array, std: float, num_samples: int) -> Gaussian:
    """The policy at ``S`` states that are all the same, so that an estimator's average over states is one over samples."""
    return Gaussian(jnp.broadcast_to(mean, (num_samples, 2)), jnp.full((num_samples, 2), jnp.log(std)))


def ascent(
    name: str,
    mean: jax.Array,
    std: float,
    function: Function,
    behaviour: Behaviour,
    key: jax.Array,
    num_samples: int,
) -> jax.Array:
    """An estimate of the gradient of ``J`` in the mean, ``[2]``, from ``S`` samples.

    The trainer's estimators return surrogates of a cost, so that this is minus the gradient of their mean.
    """
    zero = jnp.zeros(())

    def cost(mean: jax.Array) -> jax.Array:
        if name == "score":
            policy = Gaussian(mean, jnp.full(2, jnp.log(std)))
            return score_q(policy, function, zero, behaviour, key, num_samples)
        policy = rows(mean, std, num_samples)
        if name == "reused":
            return jnp.mean(score_gae(policy, function, zero, behaviour, key, num_samples))
        return jnp.mean(pathwise(policy, function, zero, behaviour, key, 1))

    return -jax.grad(cost)(mean)


# --------------------------------------------------------------------------------------------- learned surrogates


class Surrogate(eqx.Module):
    """A network in the place of the surface."""

    mlp: MLP

    def __call__(self, point: jax.Array) -> jax.Array:
        low, high = jnp.asarray(LOW), jnp.asarray(HIGH)
        return self.mlp((2 * point - low - high) / (high - low))[..., 0]


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def fit(key: jax.Array, num_points: int, width: int, steps: int) -> Surrogate:
    """A network fitted to the surface at points drawn uniformly from the part of the plane that is looked at."""
    key_points, key_network = jax.random.split(key)
    points = jax.random.uniform(key_points, (num_points, 2), minval=jnp.asarray(LOW), maxval=jnp.asarray(HIGH))
    network = Surrogate(MLP(2, width, 1, 3, "none", key_network))
    optimiser = optax.adam(optax.cosine_decay_schedule(1e-2, steps))

    def loss(network: Surrogate) -> jax.Array:
        return jnp.mean((network(points) - surface(points)) ** 2)

    def step(carry: tuple[Surrogate, Any], _: None) -> tuple[tuple[Surrogate, Any], None]:
        network, state = carry
        updates, state = optimiser.update(jax.grad(loss)(network), state)
        return (eqx.apply_updates(network, updates), state), None

    (network, _), _ = jax.lax.scan(step, (network, optimiser.init(network)), None, steps)  # pyright: ignore
    return network


# --------------------------------------------------------------------------------------------- the experiment


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that the figures depend on."""

    seed: int = 0
    std: float = 0.3
    learning_rate: float = 0.02
    steps: int = 400  #: of gradient ascent along a path
    samples: int = 2  #: of each gradient along a path
    reuse: int = 8  #: gradients from one batch of `reused`, which is that much larger: all draw equally many samples
    paths: int = 12
    record_every: int = 10  #: steps between two rows of a path in the table
    drift: float = 0.2  #: how far the samples' policy is from the current one, in standard deviations, for `reused`
    sample_counts: tuple[int, ...] = (2, 16, 128)
    replicates: int = 2048  #: independent estimates behind a variance and a bias
    strong: tuple[int, int, int] = (512, 64, 500)  #: points, width and steps of a fit
    weak: tuple[int, int, int] = (24, 64, 40)


class Paths(NamedTuple):
    """Ascents by one estimator."""

    mean: np.ndarray  #: ``[paths, steps + 1, 2]``
    objective: np.ndarray  #: ``J`` there, ``[paths, steps + 1]``


class Gradients(NamedTuple):
    """How good an estimator is at one sample count."""

    variance: float  #: trace of the covariance
    bias: float  #: length of the mean error
    standard_error: float  #: of that mean error, its root mean square length over draws


class Outcome(NamedTuple):
    """What the experiment has found, by estimator."""

    paths: dict[str, Paths]
    gradients: dict[str, dict[int, Gradients]]
    believed: dict[str, Function]  #: the surface, or the network in its place


def functions(settings: Settings) -> dict[str, Function]:
    """What each of the five believes the surface to be."""
    keys = jax.random.split(jax.random.key(settings.seed))
    surrogates = {"strong": fit(keys[0], *settings.strong), "weak": fit(keys[1], *settings.weak)}
    return {name: surrogates.get(name, surface) for name in NAMES}


def kind(name: str) -> str:
    """Which estimate it is: the three of `pathwise` differ in the function alone, and share a compiled program."""
    return name if name in ("score", "reused") else "pathwise"


@functools.partial(jax.jit, static_argnums=(0, 2))
def climb(kind: str, function: Function, settings: Settings, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Gradient ascents from `START`, one for each key: means ``[paths, steps + 1, 2]``, objectives ``[paths, steps + 1]``.

    A batch of `reused` serves several steps; every other step draws its own.
    """
    std, period = settings.std, settings.reuse if kind == "reused" else 1
    num_samples = settings.samples * period

    def batch(mean: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        key_behaviour, key_steps = jax.random.split(key)
        behaviour = behaviour_at(mean, std, surface, key_behaviour, num_samples)

        def step(mean: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
            gradient = ascent(kind, mean, std, function, behaviour, key, num_samples)
            mean = mean + settings.learning_rate * gradient
            return mean, mean

        return jax.lax.scan(step, mean, jax.random.split(key_steps, period))

    def path(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        start = jnp.asarray(START)
        _, means = jax.lax.scan(batch, start, jax.random.split(key, settings.steps // period))
        means = jnp.concatenate([start[None], means.reshape(-1, 2)])
        return means, jax.vmap(lambda mean: expectation(surface, mean, std))(means)

    return jax.vmap(path)(keys)


@functools.partial(jax.jit, static_argnums=(0, 2, 3))
def errors(kind: str, function: Function, settings: Settings, num_samples: int, keys: jax.Array) -> jax.Array:
    """Estimates at `START` minus the exact gradient there, one for each key, ``[replicates, 2]``."""
    std, mean = settings.std, jnp.asarray(START)
    exact = jax.grad(lambda mean: expectation(surface, mean, std))(mean)
    # Where the samples of `reused` came from: behind the current policy, on its way up.
    behind = mean - settings.drift * std * exact / jnp.linalg.norm(exact)

    def error(key: jax.Array) -> jax.Array:
        key_behaviour, key = jax.random.split(key)
        behaviour = behaviour_at(behind, std, surface, key_behaviour, num_samples)
        return ascent(kind, mean, std, function, behaviour, key, num_samples) - exact

    return jax.vmap(error)(keys)


def quality(errors: np.ndarray) -> Gradients:
    """Variance and bias of independent estimates with these errors, ``[replicates, 2]``."""
    variance = float(np.sum(np.var(errors, axis=0, ddof=1)))
    return Gradients(variance, float(np.linalg.norm(errors.mean(0))), (variance / len(errors)) ** 0.5)


def run(settings: Settings) -> Outcome:
    """The whole experiment. Same settings, same numbers, to the last bit on one machine's CPU."""
    believed = functions(settings)
    key_paths, key_gradients = jax.random.split(jax.random.fold_in(jax.random.key(settings.seed), 1))
    keys = jax.random.split(key_paths, settings.paths)
    paths = {
        name: Paths(*(np.asarray(x, np.float64) for x in climb(kind(name), function, settings, keys)))
        for name, function in believed.items()
    }
    keys = jax.random.split(key_gradients, settings.replicates)
    gradients = {
        name: {
            num: quality(np.asarray(errors(kind(name), function, settings, num, keys), np.float64))
            for num in settings.sample_counts
        }
        for name, function in believed.items()
    }
    return Outcome(paths, gradients, believed)
