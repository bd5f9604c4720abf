"""What a run's numbers say of its health: what the user is told of, and what ends it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from reppo.run import Run
from reppo.sinks import Event

CLIPPED_WARNING = 0.05  #: share of targets outside the value support above which the user is told, once
INVALID_LIMIT = 0.1  #: share of non-finite environment steps in one iteration above which a run stops
SKIPPED_LIMIT = 0.25  #: share of skipped optimiser steps (critic, actor, duals) in one iteration above which a run stops
SETTLED = 5  #: iterations after which that share means something: the untrained entropy bonus alone can leave the support


def left_out(run: Run) -> Iterator[Event]:
    """At the end of a run, how much of it was not finite; nothing where all was well."""
    rows = sum(row["train/invalid_rows"] for row in run.history)
    updates = sum(row["train/skipped_updates"] for row in run.history)
    if rows or updates:
        total_rows = len(run.history) * run.config.batch_size
        total_updates = len(run.history) * run.learner.optimiser_steps
        yield Event.warning(
            f"not finite, and therefore left out: {rows:,.0f} of {total_rows:,} environment steps, "
            f"{updates:,.0f} of {total_updates:,} optimiser steps"
        )


class RangeWarning:
    """Tells the user, once each, that the critic's value support is too narrow for the returns, or far too wide."""

    def __init__(self, run: Run):
        self.run, self.told_narrow, self.told_wide = run, False, False

    def check(self, rows: list[dict[str, float]]) -> Iterator[Event]:
        """Warnings, or nothing."""
        if not getattr(self.run.config, "hl_gauss", True):  # a scalar critic has no support
            return
        low, high = self.run.spec.value_range or (np.nan, np.nan)
        worst = max(rows, key=lambda row: row["critic/target_clipped"])
        settled = self.run.iteration > SETTLED or self.run.iteration >= self.run.config.num_iterations
        if settled and not self.told_narrow and worst["critic/target_clipped"] > CLIPPED_WARNING:
            self.told_narrow = True
            yield Event.warning(
                f"{worst['critic/target_clipped']:.0%} of the value targets leave the support [{low:g}, {high:g}]: they are "
                f"between {worst['critic/target_min']:.4g} and {worst['critic/target_max']:.4g}; set --v-min and --v-max to "
                f"hold them, and the values of the policy that you hope for"
            )
        if settled and not self.told_wide and (coarse := [row for row in rows if self._coarse(row, high - low)]):
            self.told_wide = True
            yield Event.warning(
                f"the value targets are between {coarse[0]['critic/target_min']:.4g} and "
                f"{coarse[0]['critic/target_max']:.4g}, and one of the critic's {self.run.config.num_bins} bins on "
                f"[{low:g}, {high:g}] is {self._bin(high - low):.3g} wide: it can hardly tell good from bad. Set --v-min, "
                f"--v-max closer, with room for the values of the policy that you hope for"
            )

    def _bin(self, support: float) -> float:
        return support / (self.run.config.num_bins - 1)

    def _coarse(self, row: dict[str, float], support: float) -> bool:
        """Whether all targets lie within two bins and the critic's error is of their size, a quarter of the run into it:
        before, that may be so by right. A range that the environment suggests is trusted."""
        config = self.run.config
        if (config.v_min is None and config.v_max is None) or 4 * self.run.iteration < config.num_iterations:
            return False
        span = row["critic/target_max"] - row["critic/target_min"]
        return span < 2 * self._bin(support) and row.get("critic/error", 0.0) > span / 4


def diverged(run: Run, rows: list[dict[str, float]]) -> str | None:
    """Why a run must stop, or None: see `INVALID_LIMIT` and `SKIPPED_LIMIT`."""
    config = run.config
    for row in rows:
        invalid = row["train/invalid_rows"] / config.batch_size
        skipped = row["train/skipped_updates"] / run.learner.optimiser_steps
        if invalid > INVALID_LIMIT:
            kind, what = "fault", f"{invalid:.0%} of the environment's steps returned numbers that are not finite"
        elif skipped > SKIPPED_LIMIT:
            kind, what = "gradient", f"{skipped:.0%} of the optimiser steps had gradients that are not finite"
        else:
            continue
        seed = int(row["seed"])
        files = sorted(run.directory.glob(f"{kind}-*-seed{seed}.npz")) if run.directory else []
        hint = f"; `reppo repro {files[0]}` makes the first one again" if files else ""
        return f"seed {seed} stopped at {run.env_steps:,} steps: {what}{hint}"
    return None
