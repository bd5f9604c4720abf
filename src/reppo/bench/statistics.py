r"""Aggregates over runs that say how sure they are, after Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of
the Statistical Precipice" (arXiv 2108.13264), sections 4.1 to 4.3.

*Scores* are the normalised returns of one algorithm: one array per task, whose last axis holds the runs, ``[..., N_m]`` of
task ``m`` of ``M``; leading axes (steps of a curve, resamples of a bootstrap) are carried through. Tasks may have unequal
numbers of runs. Every statistic weighs the tasks alike, run ``n`` of task ``m`` with

$$ w_{mn} = \frac{1}{M N_m} $$

which is what rliable computes where all ``N_m`` are equal, and its only meaning there. Nothing here leaves a run out: a
score that is not finite is refused, because what a failed run counts as has to be decided where it is known why it failed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Scores = Sequence[Array]  #: of one algorithm: an array ``[..., N_m]`` per task
Statistic = Callable[[Scores], Array]

RESAMPLES = 2000  #: of a bootstrap, where a caller does not say
CONFIDENCE = 0.95
Z95 = 1.959964  #: standard deviations of a normal variable between which 95 % of it lies


class Interval(NamedTuple):
    """A statistic of the runs, and the ends of its confidence interval; arrays of one shape."""

    estimate: Array
    low: Array
    high: Array


# ------------------------------------------------------------------------------------------------ normalisers

PER_1000 = "/1000"
REF_BEST = "ref_best"


def per_1000(returns: Array) -> Array:
    r"""Normaliser ``/1000``: ``R / 1000``, the share of what a DeepMind Control task of 1000 steps can give at most."""
    return np.asarray(returns, float) / 1000.0


def per_reference(returns: Array, reference: float) -> Array:
    r"""Normaliser ``ref_best``: ``R / R_ref``, with the best mean final return that any method has published for the task.

    Raises:
        ValueError: where the reference is not a positive number, which would turn the order of the runs around.
    """
    if not (np.isfinite(reference) and reference > 0):
        raise ValueError(f"a reference return must be positive, got {reference}")
    return np.asarray(returns, float) / reference


# ------------------------------------------------------------------------------------------------ aggregates


def check(scores: Scores) -> list[Array]:
    """The scores as float64 arrays; raises `ValueError` where there are none, or where one is not finite."""
    arrays = [np.asarray(task, float) for task in scores]
    if not arrays or any(task.ndim == 0 or task.shape[-1] == 0 for task in arrays):
        raise ValueError("every task needs at least one run")
    if not all(np.isfinite(task).all() for task in arrays):
        raise ValueError("a score is not finite")
    return arrays


def weights(scores: Scores) -> Array:
    """Weight of every run, in the order of `pooled`: ``1 / (M N_m)``; they add up to one."""
    return np.concatenate([np.full(task.shape[-1], 1.0 / (len(scores) * task.shape[-1])) for task in scores])


def pooled(scores: Scores) -> Array:
    """All runs of all tasks on one axis, ``[..., N_1 + ... + N_M]``."""
    return np.concatenate(check(scores), axis=-1)


def mean(scores: Scores) -> Array:
    r"""Mean over tasks of the mean over runs, ``[...]``: $\frac1M \sum_m \frac1{N_m} \sum_n x_{mn}$."""
    return np.mean([task.mean(axis=-1) for task in check(scores)], axis=0)


def median(scores: Scores) -> Array:
    r"""Median over tasks of the mean over runs, ``[...]``, as in the Atari literature: $\mathrm{med}_m \bar x_m$."""
    return np.median([task.mean(axis=-1) for task in check(scores)], axis=0)


def iqm(scores: Scores) -> Array:
    r"""Interquartile mean over all runs of all tasks, ``[...]``: the mean of the middle half of all weight,

    $$ \mathrm{IQM} = 2 \int_{1/4}^{3/4} F^{-1}(p)\, dp $$

    with the weighted quantiles $F^{-1}$. Where tasks have equal numbers of runs, a run that a quartile divides counts whole:
    ``floor(K / 4)`` of the ``K`` runs are left out at either end, as by ``scipy.stats.trim_mean(x, 0.25)`` in rliable. Where
    they have not, such a run counts with its weight inside: one with much weight would otherwise drag the mean to itself.
    """
    arrays = check(scores)
    runs = pooled(arrays)
    weight = np.broadcast_to(weights(arrays), runs.shape)
    order = np.argsort(runs, axis=-1, kind="stable")
    runs, weight = (np.take_along_axis(x, order, axis=-1) for x in (runs, weight))
    after = np.cumsum(weight, axis=-1)
    inside = np.minimum(after, 0.75) - np.maximum(after - weight, 0.25)
    inside = np.where(inside > 1e-9, inside, 0.0)  # a run that ends at a quartile, but for rounding, is outside
    kept = np.where(inside > 0, weight, 0.0) if len({task.shape[-1] for task in arrays}) == 1 else inside
    return np.sum(kept * runs, axis=-1) / np.sum(kept, axis=-1)


def optimality_gap(scores: Scores, target: float = 1.0) -> Array:
    r"""How far runs fall short of a target, ``[...]``: mean over tasks and runs of $\max(\text{target} - x_{mn}, 0)$."""
    return mean([np.maximum(target - task, 0.0) for task in check(scores)])


AGGREGATES: Mapping[str, Statistic] = {"IQM": iqm, "median": median, "mean": mean}


# ------------------------------------------------------------------------------------------------ bootstrap


def resampled(scores: Scores, resamples: int, seed: int) -> list[Array]:
    """Every task's runs drawn again with replacement, ``[resamples, ..., N_m]``; whole runs, so that a curve stays one."""
    rng = np.random.default_rng(seed)
    drawn = []
    for task in check(scores):
        count = task.shape[-1]
        indices = rng.integers(count, size=(resamples, count))
        drawn.append(np.moveaxis(task[..., indices], -2, 0))
    return drawn


def bootstrap(
    scores: Scores, statistic: Statistic, *, resamples: int = RESAMPLES, seed: int = 0, confidence: float = CONFIDENCE
) -> Interval:
    """A statistic with its stratified bootstrap interval: the percentile interval over `resampled` runs, task by task.

    Runs are the only thing that is drawn: the interval says what other seeds on the same tasks could have given, and
    nothing about other tasks. A task with a single run adds no spread, so its interval is too narrow: show the counts.
    """
    estimate = statistic(check(scores))
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    low, high = np.quantile(statistic(resampled(scores, resamples, seed)), tails, axis=0)
    return Interval(estimate, low, high)


def wilson(count: int, total: int) -> Interval:
    r"""A share of independent runs with Wilson's 95 % interval, which has a width where all of them agree. With
    $p = \text{count} / n$ and $z = 1.96$:

    $$ \frac{p + \frac{z^2}{2n} \pm z \sqrt{\frac{p (1 - p)}{n} + \frac{z^2}{4 n^2}}}{1 + \frac{z^2}{n}} $$

    Raises:
        ValueError: where there are no runs, or fewer than are counted.
    """
    if not 0 <= count <= total or total == 0:
        raise ValueError(f"no share: {count} of {total}")
    share, square = count / total, Z95**2 / total
    middle = (share + square / 2) / (1 + square)
    half = np.sqrt(share * (1 - share) * square + square**2 / 4) / (1 + square)
    low, high = np.clip([middle - half, middle + half], 0.0, 1.0)
    return Interval(np.asarray(share), low, high)


# ------------------------------------------------------------------------------------------------ comparisons


def performance_profile(scores: Scores, thresholds: Array) -> Array:
    r"""Share of runs above each of ``T`` thresholds, ``[..., T]`` (the paper's run-score distribution):

    $$ F(\tau) = \frac1M \sum_m \frac1{N_m} \sum_n 1[x_{mn} > \tau] $$
    """
    thresholds = np.asarray(thresholds, float)
    return np.mean([(task[..., None, :] > thresholds[:, None]).mean(axis=-1) for task in check(scores)], axis=0)


def probability_of_improvement(
    better: Scores, worse: Scores, *, resamples: int = RESAMPLES, seed: int = 0, confidence: float = CONFIDENCE
) -> Interval:
    r"""Chance that a run of one algorithm beats a run of another on the same task, the mean over tasks; ties count half:

    $$ P(X > Y) = \frac1M \sum_m \frac{1}{N_m K_m} \sum_{n, k}
       \big( 1[x_{mn} > y_{mk}] + \tfrac12 1[x_{mn} = y_{mk}] \big) $$

    Raises:
        ValueError: where the two do not have the same tasks, in the same order.
    """
    if len(better) != len(worse):
        raise ValueError(f"the two must have the same tasks, got {len(better)} and {len(worse)}")

    def probability(x: Scores, y: Scores) -> Array:
        pairs = [(a[..., :, None], b[..., None, :]) for a, b in zip(x, y, strict=True)]
        return np.mean([((a > b) + 0.5 * (a == b)).mean(axis=(-2, -1)) for a, b in pairs], axis=0)

    draws = probability(resampled(better, resamples, seed), resampled(worse, resamples, seed + 1))
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return Interval(probability(check(better), check(worse)), low, high)


def difference(
    first: Scores,
    second: Scores,
    statistic: Statistic = mean,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> Interval:
    """A statistic of one algorithm minus that of another, ``[...]``, with its interval: the runs of each are drawn again.

    Raises:
        ValueError: where the two do not have the same number of tasks.
    """
    if len(first) != len(second):
        raise ValueError(f"the two must have the same tasks, got {len(first)} and {len(second)}")
    draws = statistic(resampled(first, resamples, seed)) - statistic(resampled(second, resamples, seed + 1))
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return Interval(statistic(check(first)) - statistic(check(second)), low, high)


# ------------------------------------------------------------------------------------------------ curves


def on_grid(steps: Array, values: Array, grid: Array) -> Array:
    """A run's evaluations ``[T]`` at other steps ``[G]``: linear in between, the end values beyond (a run that ended early
    keeps the return that it had).

    Raises:
        ValueError: where steps do not increase.
    """
    steps = np.asarray(steps, float)
    if len(steps) == 0 or np.any(np.diff(steps) <= 0):
        raise ValueError("a curve needs steps that increase")
    return np.interp(grid, steps, np.asarray(values, float))


def sample_efficiency(curves: Scores, statistic: Statistic = iqm, **how: float) -> Interval:
    """A statistic at every step, with pointwise intervals, ``[T]``; curves are ``[T, N_m]`` per task."""
    return bootstrap(curves, statistic, **how)  # pyright: ignore[reportArgumentType]


class Reliability(NamedTuple):
    """Shares of runs, each the mean over tasks of the share of the task's runs; see `reliability`."""

    reached: float  #: at or above tau at some evaluation
    final: float  #: at or above tau at the last evaluation
    never_dropped: float  #: at or above tau at some evaluation, and at every one after it
    from_step: Array  #: ``[T]``: at or above tau at this evaluation and at every later one


def kept_from(curve: Array, tau: float) -> Array:
    """Where runs are at or above tau now and at every later step, ``[..., T, N]`` of the same shape."""
    above = np.asarray(curve) >= tau
    return np.flip(np.logical_and.accumulate(np.flip(above, axis=-2), axis=-2), axis=-2)


def reliability(curves: Scores, tau: float = 0.9) -> Reliability:
    r"""How many runs get to a share ``tau`` of the normaliser, and how many stay there; curves are ``[T, N_m]`` per task.

    With $a_t = 1[x_t \ge \tau]$ and the first step $f$ where it holds: reached, $\exists t: a_t$; final, $a_T$; never
    dropped, $\prod_{t \ge f} a_t$, and 0 where there is no such step; from step t, $\prod_{s \ge t} a_s$.
    """
    arrays = check(curves)
    above = [curve >= tau for curve in arrays]
    kept = [kept_from(curve, tau) for curve in arrays]
    first = [np.argmax(a, axis=0) for a in above]
    stayed = [np.take_along_axis(k, f[None], axis=0)[0] for k, f in zip(kept, first, strict=True)]
    return Reliability(
        reached=float(np.mean([a.any(axis=0).mean() for a in above])),
        final=float(np.mean([a[-1].mean() for a in above])),
        never_dropped=float(np.mean([s.mean() for s in stayed])),
        from_step=np.mean([k.mean(axis=-1) for k in kept], axis=0),
    )


def reliable_at_end(scores: Scores, tau: float = 0.9) -> Array:
    """Share of runs at or above tau, ``[...]``, the mean over tasks: `Reliability.final` as a statistic for `bootstrap`."""
    return mean([(task >= tau).astype(float) for task in check(scores)])
