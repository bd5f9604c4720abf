"""A small version of the campaign of docs/reliability.md: processes that are killed arrive all the same."""

from __future__ import annotations

import csv
import dataclasses
import functools
import importlib
from pathlib import Path

import helpers
import pytest

from reppo.config import Config
from reppo.options import flag

ROOT = Path(__file__).parent.parent


def test_runs_that_are_killed_arrive_all_the_same(
    tmp_path: Path, compilation_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")  # the processes that it forks import it, too
    reliability = importlib.import_module("reliability")
    # The programs of the other tests, which are compiled already.
    config = dataclasses.replace(helpers.TINY, total_steps=1024, num_evals=2, checkpoint_minutes=0.0005)
    changed = [f.name for f in dataclasses.fields(Config) if getattr(config, f.name) != getattr(Config(), f.name)]
    options = [word for name in changed for word in (flag(name), str(getattr(config, name)))]
    monkeypatch.setattr(reliability, "OPTIONS", ["--preset", "paper-large", *options])
    monkeypatch.setattr(reliability, "REFERENCES", 1)
    monkeypatch.setattr(reliability, "uninterrupted", functools.cache(reliability.uninterrupted))
    (tmp_path / "cache").symlink_to(compilation_cache.parents[1])
    for campaign, trials in (("kills", 1), ("saves", 1)):
        table = tmp_path / f"{campaign}.csv"
        getattr(reliability, campaign)(table, trials, tmp_path)
        with table.open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["trial"] for row in rows] == [str(trial) for trial in range(trials)]
        for row in rows:
            assert (row["resume"], row["identical"], row["rows_identical"], row["damaged"]) == ("done", "True", "True", "0")
            assert campaign == "kills" or row["in_save"]
