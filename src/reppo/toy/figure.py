"""What the experiment leaves on the disk: two tables, the settings, and one picture of both."""

from __future__ import annotations

import csv
import dataclasses
import io
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from reppo import run_directory
from reppo.files import replacing
from reppo.provenance import provenance
from reppo.sinks import as_written
from reppo.toy.experiment import HIGH, LOW, NAMES, START, Function, Outcome, Settings, expectation, surface

TITLES = {
    "score": "score function",
    "reused": "PPO's clipped ratio, reused samples",
    "pathwise": "pathwise, true function",
    "strong": "pathwise, strong surrogate",
    "weak": "pathwise, weak surrogate",
}
COLOURS: dict[str, str] = dict(zip(NAMES, ("#D55E00", "#E69F00", "#0072B2", "#009E73", "#CC79A7"), strict=True))
LINES = {"strong": (0, (4, 2))}  #: where the surrogate is good it hides the true function's line otherwise
INK, FAINT = "0.15", "0.55"


def save(directory: Path, settings: Settings, outcome: Outcome) -> None:
    """Write ``toy.png``, ``paths.csv``, ``gradients.csv`` and ``config.json`` into a new directory."""
    run_directory.create(directory, {"toy": dataclasses.asdict(settings), **provenance()})
    write_rows(directory / "paths.csv", path_rows(outcome, settings))
    write_rows(directory / "gradients.csv", gradient_rows(outcome))
    figure = draw(outcome, settings)
    with replacing(directory / "toy.png") as file:
        figure.savefig(file, format="png", metadata={"Software": None})


def path_rows(outcome: Outcome, settings: Settings) -> list[dict[str, Any]]:
    """A row for every estimator, path and step. ``evaluations``: of the true function, which fitted networks do without."""
    return [
        {
            "estimator": name,
            "path": k,
            "step": step,
            "x": x,
            "y": y,
            "objective": paths.objective[k, step],
            "evaluations": evaluations(name, step, settings),
        }
        for name, paths in outcome.paths.items()
        for k in range(settings.paths)
        for step, (x, y) in enumerate(paths.mean[k])
        if step % settings.record_every == 0
    ]


def evaluations(name: str, step: int, settings: Settings) -> int:
    """How often the true function, or its gradient, has been asked for before a step."""
    if name in ("strong", "weak"):
        return getattr(settings, name)[0]
    period = settings.reuse if name == "reused" else 1
    return -(-step // period) * period * settings.samples


def gradient_rows(outcome: Outcome) -> list[dict[str, Any]]:
    """A row for every estimator and sample count."""
    return [
        {"estimator": name, "samples": samples, **found._asdict()}
        for name, by_samples in outcome.gradients.items()
        for samples, found in by_samples.items()
    ]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows({k: v if isinstance(v, str) else as_written(v) for k, v in row.items()} for row in rows)
    with replacing(path) as file:
        file.write(text.getvalue().encode())


# --------------------------------------------------------------------------------------------- the picture


def draw(outcome: Outcome, settings: Settings) -> Figure:
    """Paths on contours above; variance, bias and the objective below."""
    figure = Figure(figsize=(12.6, 6.3), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    parts: Any = figure.subfigures(2, 1, height_ratios=(1.0, 1.12))
    above, below = parts
    for axes, name in zip(above.subplots(1, len(NAMES), sharex=True, sharey=True), NAMES, strict=True):
        draw_paths(axes, name, outcome.paths[name].mean, outcome.believed[name], settings.std)
    variance, bias, objective = below.subplots(1, 3)
    draw_variance(variance, outcome)
    draw_bias(bias, outcome)
    draw_objective(objective, outcome, settings)
    handles, labels = variance.get_legend_handles_labels()
    below.legend(handles, labels, loc="outside lower center", ncols=len(NAMES), frameon=False, fontsize=9)
    return figure


def on_grid(function: Function, points: int = 121) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x, y = (np.linspace(LOW[i], HIGH[i], points) for i in range(2))
    grid = jnp.stack(jnp.meshgrid(jnp.asarray(x), jnp.asarray(y)), -1)
    return x, y, np.asarray(function(grid))


def best_mean(std: float) -> tuple[np.ndarray, float]:
    """The mean that maximises ``J``, the surface as the policy sees it, and that maximum; on a grid of steps of 0.01."""
    grid = jnp.stack(jnp.meshgrid(jnp.arange(0.0, 1.5, 0.01), jnp.arange(-1.2, 0.0, 0.01)), -1).reshape(-1, 2)
    values = np.asarray(jax.jit(jax.vmap(lambda mean: expectation(surface, mean, std)))(grid))
    return np.asarray(grid[np.argmax(values)]), float(values.max())


def draw_paths(
    axes: Axes, name: str, means: np.ndarray, believed: Function, std: float, *, ink: str = INK, points: int = 121
) -> None:
    """What an estimator believes the surface to be, and where it leads: ``means`` of ``[paths, steps, 2]``."""
    x, y, values = on_grid(believed, points)
    # Levels at equal distances in the square root of the depth: the ridge shows, and its steep sides do not crowd.
    levels = -(np.linspace(0, 3.4, 18)[::-1] ** 2)
    axes.contourf(x, y, np.clip(values, levels[0], 0), levels=levels, cmap="Greys_r", alpha=0.55)
    axes.contour(x, y, values, levels=levels, colors="0.45", linewidths=0.35, linestyles="solid")
    for path in means[1:]:
        axes.plot(*path.T, color=COLOURS[name], linewidth=0.8, alpha=0.5)
    axes.plot(*means[0].T, color=COLOURS[name], linewidth=2.0)
    axes.plot(*means[:, -1].T, linestyle="none", marker="o", markersize=3.2, color=COLOURS[name], markeredgecolor="white")
    axes.plot(*START, marker="s", markersize=5, color=INK, markeredgecolor="white")
    axes.plot(*best_mean(std)[0], marker="*", markersize=11, color="gold", markeredgecolor=INK, markeredgewidth=0.7)
    axes.set_title(TITLES[name], fontsize=9.5, color=ink)
    axes.set_xlim(LOW[0], HIGH[0])
    axes.set_ylim(LOW[1], HIGH[1])
    axes.set_aspect("equal")
    axes.tick_params(labelsize=7.5, colors=ink)


def frame(axes: Axes, title: str, xlabel: str) -> None:
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    axes.set_xlabel(xlabel, fontsize=9, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(labelsize=8, colors=INK)
    axes.grid(alpha=0.2, linewidth=0.6)
    axes.set_axisbelow(True)


def powers_of_two(axes: Axes, outcome: Outcome) -> None:
    samples = list(next(iter(outcome.gradients.values())))
    axes.set_xscale("log", base=2)
    axes.set_xticks(samples, [str(s) for s in samples])


def draw_variance(axes: Axes, outcome: Outcome) -> None:
    for name, found in outcome.gradients.items():
        samples = list(found)
        axes.loglog(
            samples,
            [found[s].variance for s in samples],
            color=COLOURS[name],
            linestyle=LINES.get(name, "-"),
            marker="o",
            markersize=3.5,
            label=TITLES[name],
        )
    frame(axes, "variance of the gradient", "samples per gradient")
    powers_of_two(axes, outcome)


def draw_bias(axes: Axes, outcome: Outcome) -> None:
    """Filled where it is more than two standard errors from zero; hollow where it may be zero."""
    for name, found in outcome.gradients.items():
        samples = np.array(list(found))
        bias, error = (np.array([getattr(found[s], field) for s in samples]) for field in ("bias", "standard_error"))
        axes.plot(samples, bias, color=COLOURS[name], linestyle=LINES.get(name, "-"), linewidth=1.2, zorder=2)
        for shown, face in ((bias > 2 * error, COLOURS[name]), (bias <= 2 * error, "white")):
            axes.plot(samples[shown], bias[shown], "o", markersize=4, color=COLOURS[name], markerfacecolor=face, zorder=3)
    frame(axes, "bias of the gradient (hollow: none is measured)", "samples per gradient")
    powers_of_two(axes, outcome)
    axes.set_yscale("log")


def draw_objective(axes: Axes, outcome: Outcome, settings: Settings) -> None:
    """How far below its maximum the true objective is along the paths: the median, and the range of the middle half."""
    best = best_mean(settings.std)[1]
    for name, paths in outcome.paths.items():
        steps = np.arange(settings.steps + 1)
        regret = np.maximum(best - paths.objective, 1e-4)
        axes.plot(steps, np.median(regret, 0), color=COLOURS[name], linestyle=LINES.get(name, "-"), linewidth=1.6)
        low, high = np.quantile(regret, [0.25, 0.75], axis=0)
        axes.fill_between(steps, low, high, color=COLOURS[name], alpha=0.15, linewidth=0)
    axes.set_yscale("log")
    frame(axes, "true objective, distance to its maximum", "gradient steps")
