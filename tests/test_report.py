"""`reppo report`: every figure and table is in the page, nothing of a damaged file, and always the same bytes."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from helpers import TINY

from reppo import cli
from reppo.bench import beside, contents, records, report
from reppo.bench import published as facts
from reppo.bench.figures import COLOURS as COLOURS_OF_FIGURES
from reppo.bench.figures import CROWDED, FONTS, Bar, Line, bars, inlined, lines, memory, multiples, styles
from reppo.bench.page import Figure, Missing, Note, Section, Table, html, markdown
from reppo.bench.records import Key, Record, Status
from reppo.bench.statistics import PER_1000, REF_BEST
from reppo.bench.suites import HUMANOID, MANISKILL8, SUITES
from reppo.errors import ConfigError
from reppo.toy.figure import COLOURS

TASKS = ("playground:CartpoleBalance", "playground:CartpoleSwingup")
FIRST = SUITES["estimators"].first_seed
DESCRIPTION = {
    "config": {**dataclasses.asdict(TINY), "total_steps": 400_000},
    "hardware": {"cpu": "Test CPU", "cpu_cores": 2, "devices": ["cpu"]},
    "git": "0123456789abcdef",
}


def add(results: Path, algorithm: str, env: str, seed: int, finals: float, status: Status = "complete") -> Path:
    """A run that rises linearly to a return; ``seed`` counts from the first of the suite."""
    steps = np.linspace(0, 400_000, 5)
    seconds = 10 * TASKS.index(env) + seed + steps / 1000  # no two runs take the same
    curve = np.stack([steps, seconds, finals * steps / steps[-1], 0 * steps, 64 + 0 * steps], axis=1)
    key = Key("estimators", algorithm, env, FIRST + seed)
    parts = {"parameters": 3 * 2**20, "batch": 2**19, "replay": 0} if algorithm == "reppo" else None
    run = Record(key, status, "reppo train", DESCRIPTION, 400.0, 1, 2**30, curve, computed_memory_bytes=parts)
    return records.write(run, results)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two algorithms on two tasks, unequal numbers of seeds, a run that failed, a damaged table."""
    results = tmp_path_factory.mktemp("results")
    for env in TASKS:
        for seed in range(4):
            add(results, "reppo", env, seed, 900 + 10 * seed)
        for seed in range(2):
            add(results, "reppo-score_gae", env, seed, 300 + seed)
    key = Key("estimators", "reppo-score_gae", TASKS[0], FIRST + 2)
    empty = np.zeros((0, len(records.COLUMNS)))
    records.write(Record(key, "failed", "reppo train", {}, 1.0, 1, None, empty, "out of <memory>"), results)
    damaged = add(results, "reppo", TASKS[0], 9, 777777.0)
    damaged.with_suffix(".csv").write_text("env_steps\n")
    return results


@pytest.fixture(scope="module")
def sections(results: Path) -> list[Section]:
    return report.page(results)


def blocks(sections: Sequence[Section], kind: type) -> list:
    return [block for section in sections for block in section.blocks if isinstance(block, kind)]


def table(sections: Sequence[Section], name: str) -> Table:
    return next(t for t in blocks(sections, Table) if t.id == name)


def test_every_figure_and_table_is_in_both_pages(sections: list[Section]) -> None:
    page, text = html(sections), markdown(sections)
    found = blocks(sections, Figure)
    assert {figure.id for figure in found} == {
        *(f"estimators-{n}" for n in ("sample-efficiency", "wall-clock", "profile", "reliability", "improvement")),
        *(f"estimators-{env.replace(':', '-')}" for env in TASKS),
    }
    for figure in found:
        assert page.count(f'<figure id="{figure.id}">\n<svg ') == 1
        assert f"](figures/{figure.id}.svg)" in text
        ElementTree.fromstring(figure.standalone)
    assert page.count("<svg") == page.count("</svg>") == len(found)
    for entry in blocks(sections, Table):
        for cell in (cell for row in entry.rows for cell in row):
            assert cell.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;") in page
            assert cell.replace("|", "\\|") in text
    assert not re.search(r'(?:src|href)="(?!#)', page.replace("xlink:href", "")), "it needs something else"
    assert "@media (prefers-color-scheme: dark)" in page
    assert 'name="viewport"' in page


def test_only_its_own_figures_are_deleted(results: Path, tmp_path: Path) -> None:
    (tmp_path / "figures").mkdir()
    own, foreign = tmp_path / "figures" / "an-old-one.svg", tmp_path / "figures" / "of-somebody-else.svg"
    own.touch()
    foreign.touch()
    (tmp_path / "report.md").write_text(f"# {report.TITLE}\n\n![An old one](figures/an-old-one.svg)\n")
    report.write(results, tmp_path)
    assert not own.exists()
    assert foreign.exists()


@pytest.mark.parametrize("name", ["index.html", "report.md"])
def test_a_page_that_is_not_ours_is_not_replaced(results: Path, tmp_path: Path, name: str) -> None:
    text = "My page, with ![mine](figures/mine.svg)\n"
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=f"{name} is no report of this program and is not overwritten"):
        report.write(results, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == text


def test_the_numbers_are_those_of_the_runs(sections: list[Section]) -> None:
    rows = {(row[0], row[1]): row for row in table(sections, "estimators-aggregates").rows}
    # Finals 900, 910, 920, 930 on both tasks; and 300, 301.
    # Of two tasks the median of their means is the mean, and left out.
    assert list(table(sections, "estimators-aggregates").header[2:]) == ["IQM", "mean", "seeds a task"]
    assert all(cell.startswith("0.915 [0.9") for cell in rows["reppo", "/1000"][2:4])
    assert rows["reppo-score_gae", "/1000"][3].startswith(("0.300 ", "0.301 "))
    assert rows["reppo", "ref_best"][3].startswith(f"{(915 / 999.8 + 915 / 875.4) / 2:.3f} ")
    assert [rows[a, "/1000"][4] for a in ("reppo", "reppo-score_gae")] == ["4", "2"]
    reliability = {row[0]: row[1:] for row in table(sections, "estimators-reliability-table").rows}
    assert reliability["reppo"] == ["1.000 [1.000, 1.000]", "1.00", "1.00"]
    assert reliability["reppo-score_gae"] == ["0.000 [0.000, 0.000]", "0.00", "0.00"]


def test_unequal_steps_are_told_of(sections: list[Section]) -> None:
    assert table(sections, "estimators-aggregates").caption == "Over 2 tasks: CartpoleBalance, CartpoleSwingup."

    def group(algorithm: str, steps: float) -> report.Group:
        curve = np.array([[0, 0, 0, 0, 1], [steps, 9, 900, 0, 1.0]])
        key = Key("laptop", algorithm, TASKS[0], 0)
        return report.Group(algorithm, TASKS[0], [Record(key, "complete", "", DESCRIPTION, 1, 1, None, curve)])

    groups = {"reppo": [group("reppo", 800_768)], "ppo": [group("ppo", 207_360)]}
    found: dict[str, Any] = {
        block.id: block for block in report.aggregates("laptop", groups, (REF_BEST,)) if isinstance(block, Figure | Table)
    }
    told = "Not after as many steps: reppo 800,768, ppo 207,360."
    assert found["laptop-aggregates"].caption == f"Over 1 task: CartpoleBalance. {told}"
    assert all(found[f"laptop-{part}"].caption.endswith(told) for part in ("profile", "reliability-table"))
    # One chance against the other would be of a run with four times the steps.
    assert "laptop-improvement" not in found
    notes = [block.text for block in report.aggregates("laptop", groups, (REF_BEST,)) if isinstance(block, Note)]
    assert notes == ["Left out of the probability of improvement, because reppo made other numbers of steps: ppo."]
    # Each has reached tau at its own end, though only the second one at the end of both.
    # The interval is Wilson's of 1 of 1: from 1 / (1 + 1.96^2).
    assert [row[1] for row in found["laptop-reliability-table"].rows] == ["1.000 [0.207, 1.000]"] * 2


def test_reliability_is_seen_at_the_evaluations() -> None:
    """A peak at one evaluation, and the fall after it, are there, though they fall between the points of a drawn curve."""
    shares = [0.0, 0.5, 0.908, 0.639, 0.95]
    steps = [0.0, 230_000, 241_664, 251_000, 400_000]
    curve = np.array([[step, step / 1e4, share * 999.8, 0, 64] for step, share in zip(steps, shares, strict=True)])
    group = report.Group(
        "reppo", TASKS[0], [Record(Key("x", "reppo", TASKS[0], 0), "complete", "", DESCRIPTION, 1, 1, None, curve)]
    )
    blocks = report.aggregates("x", {"reppo": [group]}, (REF_BEST,))
    found = next(block for block in blocks if isinstance(block, Table) and block.id == "x-reliability-table")
    assert found.rows[0][1:] == ["1.000 [0.207, 1.000]", "0.00", "1.00"]


def test_a_run_that_failed_keeps_its_return_until_the_end(tmp_path: Path) -> None:
    for seed in range(4):
        add(tmp_path, "reppo", TASKS[0], seed, 1000.0)
    whole = records.read(add(tmp_path, "reppo", TASKS[0], 4, 1000.0))
    failed = dataclasses.replace(whole, status="failed", problem="killed", curve=whole.curve[:2])  # at 250 of 1000
    records.write(failed, tmp_path)
    sections = report.page(tmp_path)
    rows = {row[1]: row for row in table(sections, "estimators-aggregates").rows}
    assert rows["/1000"][3].startswith("0.850 ")  # (4 * 1000 + 250) / 5
    assert rows["/1000"][4] == "5"
    # The others count at their own end, where they are above tau, and not where the first one ended.
    assert table(sections, "estimators-reliability-table").rows[0][1].startswith("0.800 ")
    assert "killed" in markdown(sections)
    assert [row[-1] for row in table(sections, "estimators-runs").rows] == [*["complete"] * 4, "failed"]


def suite_of(results: Path, suite: str, env: str, seed: int, last: Sequence[float]) -> None:
    """A run of `reppo` with these columns after the episodes of its last evaluation; 0 at its first."""
    curve = np.array([[0, seed, 0, 0, 8, *[0] * len(last[1:])], [400_000, 20, last[0], 0, 8, *last[1:]]], float)
    records.write(Record(Key(suite, "reppo", env, seed), "complete", "reppo train", DESCRIPTION, 9, 1, None, curve), results)


def test_success_is_its_own_normaliser(tmp_path: Path) -> None:
    tasks = ("maniskill:PokeCube-v1", "maniskill:RollBall-v1")
    for seed, (once, at_end) in enumerate([(0.5, 0.25), (1.0, 0.75)]):
        suite_of(tmp_path, "maniskill8", tasks[0], seed, [7.0, once, at_end])
        suite_of(tmp_path, "maniskill8", tasks[1], seed, [9.0, 1.0, 1.0])
    sections = report.page(tmp_path)
    rows = table(sections, "maniskill8-aggregates").rows
    assert [(row[1], row[3][:6]) for row in rows] == [("success_once", "0.875 "), ("success_at_end", "0.750 ")]
    figures = {figure.id: figure for figure in blocks(sections, Figure)}
    assert ">IQM, success_once<" in figures["maniskill8-sample-efficiency"].svg
    assert ">success_once<" in figures["maniskill8-maniskill-PokeCube-v1"].svg
    runs = table(sections, "maniskill8-runs")
    assert list(runs.header[4:7]) == ["return", "success_once", "success_at_end"]
    assert runs.rows[0][4:7] == ["7", "0.500", "0.250"]
    # A result from before success was recorded leaves its task out.
    suite_of(tmp_path, "maniskill8", tasks[0], 2, [8.0])
    sections = report.page(tmp_path)
    assert table(sections, "maniskill8-aggregates").caption == "Over 1 task: RollBall-v1."
    assert table(sections, "maniskill8-runs").rows[2][4:7] == ["8", "-", "-"]
    assert ">return<" in {figure.id: figure for figure in blocks(sections, Figure)}["maniskill8-maniskill-PokeCube-v1"].svg


def test_humanoids_are_compared_with_the_best_published_means(tmp_path: Path) -> None:
    for seed in range(2):
        suite_of(tmp_path, "humanoid", "playground:G1JoystickFlatTerrain", seed, [33.9 / 2])
        suite_of(tmp_path, "humanoid", "playground:T1JoystickRoughTerrain", seed, [29.2])
    (row,) = table(report.page(tmp_path), "humanoid-aggregates").rows
    assert row[1:4] == ["ref_best", *["0.750 [0.750, 0.750]"] * 2]


def test_three_tasks_have_a_median_of_their_means() -> None:
    def group(env: str, last: float) -> report.Group:
        curve = np.array([[0, 0, 0, 0, 1], [8, 9, last, 0, 1.0]])
        return report.Group(
            "reppo", env, [Record(Key("s", "reppo", env, 0), "complete", "", DESCRIPTION, 1, 1, None, curve)]
        )

    groups = [group(env, last) for env, last in zip((*TASKS, "playground:WalkerRun"), (100, 200, 900), strict=True)]
    found = next(b for b in report.aggregates("s", {"reppo": groups}, (PER_1000,)) if isinstance(b, Table))
    assert list(found.header[3:5]) == ["median of task means", "mean"]
    assert found.rows[0][3:5] == ["0.200 [0.200, 0.200]", "0.400 [0.400, 0.400]"]


def test_unequal_seeds_and_failures_are_shown(sections: list[Section]) -> None:
    seeds = table(sections, "estimators-seeds")
    assert seeds.rows == [[TASKS[0], "4", "2 (+1 failed)"], [TASKS[1], "4", "2"]]
    assert "unequal" in seeds.caption
    runs = table(sections, "estimators-runs").rows
    assert len(runs) == 13
    assert [row[-1] for row in runs].count("failed") == 1
    text = markdown(sections)
    assert "out of <memory>" in text
    assert "out of &lt;memory&gt;" in html(sections)
    assert "seed19.csv is damaged" in text
    assert "777777" not in text


def test_what_is_missing_has_a_command(sections: list[Section]) -> None:
    missing = {entry.what: entry for entry in blocks(sections, Missing)}
    assert missing["estimators: reppo"].why == "12 of 20 runs"
    assert missing["estimators: reppo"].command == "reppo bench estimators --algorithms reppo"
    assert {f"{name}: {algorithm}" for name, suite in SUITES.items() for algorithm in suite.algorithms} <= missing.keys()
    for entry in missing.values():
        command, *rest = entry.command.split()[1:] or [""]
        if entry.command.startswith("reppo bench"):
            cli.arguments(command, rest)
    # What its environments do not suit has none.
    refused = missing["maniskill8: ppo"]
    assert refused.why.startswith("cannot be run on 8 of 8 tasks: ppo takes environments that are written in JAX, and")
    assert [entry.what for entry in missing.values() if not entry.command] == ["maniskill8: ppo"]
    assert f"| maniskill8: ppo | {refused.why} | - |" in markdown(sections)
    assert f"<td class=prose>{refused.why}</td><td>-</td>" in html(sections)


def test_the_same_results_give_the_same_bytes(results: Path, tmp_path: Path) -> None:
    first, again = report.write(results, tmp_path / "a"), report.write(results, tmp_path / "b")
    assert [path.relative_to(tmp_path / "a") for path in first] == [path.relative_to(tmp_path / "b") for path in again]
    for path, other in zip(first, again, strict=True):
        assert path.read_bytes() == other.read_bytes(), path.name
    assert len(first) == 2 + 7


def test_published_figures_are_drawn(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(root / "results" / "published", tmp_path / "published")
    monkeypatch.setattr(facts, "DMC23", {"CheetahRun": 933.1})  # the rest is drawn alike
    ids = {figure.id for figure in blocks(report.page(tmp_path), Figure)}
    names = ("dmc-ref-best", "dmc-1000", "reliability", "wall-clock", "ablations", "ablations-64k", "ablations-32k")
    names += ("maniskill", "maniskill-efficiency", "CheetahRun", *HUMANOID, *MANISKILL8)
    assert ids == {f"published-{name}" for name in names}
    curves = {line.name: line for line in facts.Published(tmp_path / "published").task("CheetahRun")}
    assert curves["reppo_large"].y[-1] == pytest.approx(920, abs=40)


def test_published_ablations_say_how_many_runs_they_have(root: Path) -> None:
    *drawn, found = facts.published_ablations(facts.Published(root / "results" / "published"))
    assert [figure.id for figure in drawn if isinstance(figure, Figure)] == [
        f"published-ablations{size}" for size in ("", "-64k", "-32k")
    ]
    for figure, label in zip(drawn, ("16 tasks, 41 runs", "22 tasks, 267 runs", "23 tasks, 254 runs"), strict=True):
        assert isinstance(figure, Figure)
        assert f">no_hlgauss ({label})<" in figure.svg
        assert figure.svg.count('stroke-width: 5"') == 6
    assert isinstance(found, Table)
    assert len(found.rows) == 18
    rows = {(row[0], row[1]): row[2:] for row in found.rows}
    assert rows["128k", "no_hlgauss"] == [
        "0.887 [0.882, 0.892]", "0.994", "0.787 [0.777, 0.798]", "0.944", "16", "41 (from 1, median 2, a task)",
    ]  # fmt: skip


def drawn_lines(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Line]]:
    """What is drawn from now on, by title."""
    drawn: dict[str, list[Line]] = {}

    def lines(curves: Sequence[Line], title: str, **_: object) -> str:
        drawn[title] = list(curves)
        return "<svg></svg>"

    monkeypatch.setattr(facts.figures, "lines", lines)
    return drawn


def test_published_reliability_is_drawn_from_every_step_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = drawn_lines(monkeypatch)
    (tmp_path / "dmc_reliability.csv").write_text(
        "algorithm,norm,ever_reached,reliable_at_end,lo,hi,never_dropped_after_first,"
        "rel_from_10M,rel_from_20M,rel_from_30M,rel_from_40M\n"
        "reppo_large,raw/1000,0.56,0.5,0.4,0.6,0.3,0.1,0.2,0.3,0.4\n"
        "reppo_large,ref_best,0.9,0.8,0.7,0.85,0.6,0.15,0.25,0.35,0.45\n"
        "sac_brax_5M,ref_best,0.7,0.6,0.5,0.65,0.55,,,,\n"
        "another,ref_best,0.9,0.8,0.7,0.85,0.6,0.15,0.25,0.35,0.45\n"
    )
    figure, found = facts.published_reliability(facts.Published(tmp_path))
    assert isinstance(figure, Figure)
    ((line,),) = drawn.values()  # of SAC there is only the end
    assert (line.name, line.x.tolist()) == ("reppo_large", [1e7, 2e7, 3e7, 4e7, 5e7])
    assert line.y.tolist() == [0.15, 0.25, 0.35, 0.45, 0.8]
    assert isinstance(found, Table)
    assert found.rows == [
        ["reppo_large", "ref_best", "0.800 [0.700, 0.850]", "0.60", "0.90"],
        ["sac_brax_5M", "ref_best", "0.600 [0.500, 0.650]", "0.55", "0.70"],
        ["reppo_large", "/1000", "0.500 [0.400, 0.600]", "0.30", "0.56"],
    ]


def test_published_success_is_drawn_of_every_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = drawn_lines(monkeypatch)
    (tmp_path / "maniskill_curves.csv").write_text(
        "task,algorithm,progress,iqm,mean,lo,hi\n"
        + "".join(f"PokeCube-v1,reppo_aux_partial_reset(paper?),{x / 2},{x / 4},0.9,0,1\n" for x in range(3))
        + "".join(f"PokeCube-v1,ppo_maniskill,{x / 2},{x / 8},0.9,0,1\n" for x in range(3))
        + "".join(f"../Another-v1,ppo_maniskill,{x / 2},{x / 8},0.9,0,1\n" for x in range(3))
    )
    (tmp_path / "maniskill_final.csv").write_text(
        "task,algorithm,n_seeds,success_mean\nPokeCube-v1,reppo_aux_partial_reset(paper?),13,0.7326\n"
        "RollBall-v1,ppo_maniskill,3,0.5\nPokeCube-v1,another,3,0.5\n"
    )
    published = facts.Published(tmp_path)
    note, figure = facts.published_curves(published)
    assert isinstance(note, Note)
    assert note.text.endswith("IQM over seeds. blue: reppo_aux_partial_reset, pink: ppo_maniskill.")
    assert isinstance(figure, Figure)
    assert figure.id == "published-PokeCube-v1"
    (curves,) = drawn.values()
    assert [(line.x.tolist(), line.y.tolist()) for line in curves] == [
        ([0, 0.5, 1], [0, 0.25, 0.5]),
        ([0, 0.5, 1], [0, 0.125, 0.25]),
    ]
    assert [colour for colour, _ in styles(curves)] == [COLOURS_OF_FIGURES[0], COLOURS_OF_FIGURES[3]]
    (found,) = facts.published_maniskill(published)
    assert isinstance(found, Table)
    assert found.header == ["task", "reppo_aux_partial_reset", "ppo_maniskill"]
    assert found.rows == [["PokeCube-v1", "0.733 (13)", "-"], ["RollBall-v1", "-", "0.500 (3)"]]


def test_published_times_are_compared_on_the_tasks_that_all_have(root: Path, tmp_path: Path) -> None:
    (tmp_path / "wallclock_aggregates.csv").write_text(
        "algorithm,seconds,n_tasks,mean_norm,mean_norm_20tasks\nreppo_large,60,23,0.4,0.5\nppo_50M,60,20,0.45,0.45\n"
    )
    drawn = {line.name: line.y.tolist() for line in facts.Published(tmp_path).wall_clock()}
    assert drawn == {"reppo_large": [0.5], "ppo_50M": [0.45]}  # over all 23, REPPO would be below PPO
    figure, found = facts.published_wall_clock(facts.Published(root / "results" / "published"))
    assert isinstance(figure, Figure)
    assert isinstance(found, Table)
    rows = {row[0]: row[1:] for row in found.rows}
    assert rows["WalkerRun"] == ["821", "821", "821", "505", "-"]  # SAC was cut at 1200
    assert rows["HumanoidRun"] == ["1137", "1137", "1137", "-", "632"]  # PPO has no times
    assert "the 20 tasks that all have" in figure.title
    assert "FastTD3 has no published times." in figure.caption


ABLATED = {f"published-ablations{size}" for size in ("", "-64k", "-32k")}
TABLES = {  # of which there is no figure, or not alone
    "dmc_final": {"published-humanoid", "published-dmc-tasks"},
    "dmc_aggregates": {"published-dmc-table"},
    "dmc_reliability": {"published-reliability-table"},
    "dmc_ablations": {"published-ablations-table"},
    "maniskill_final": {"published-maniskill-tasks"},
    "wallclock_tasks": {"published-wall-clock-tasks"},
}


@pytest.mark.parametrize(
    ("name", "damage", "gone"),
    [
        ("dmc_aggregates", lambda text: text[: len(text) // 2], {"published-dmc-ref-best", "published-dmc-1000"}),
        ("dmc_aggregates", lambda text: text[:-2], {"published-dmc-ref-best", "published-dmc-1000"}),
        ("dmc_reliability", lambda text: text.replace("reliable_at_end", "reliable"), {"published-reliability"}),
        ("wallclock_aggregates", lambda text: text.replace("60,", "soon,"), {"published-wall-clock"}),
        ("dmc_reliability", lambda text: text.replace(",0.286,", ",soon,"), {"published-reliability"}),
        ("dmc_ablations", lambda text: "a,b\n1,2\n", ABLATED),
        ("dmc_ablations", lambda text: text.replace("data,", "date,", 1), ABLATED),
        ("maniskill_aggregates", lambda text: "", {"published-maniskill", "published-maniskill-efficiency"}),
        ("maniskill_curves", lambda text: text.replace("0.0526", "nan"), {f"published-{task}" for task in MANISKILL8}),
        ("maniskill_final", lambda text: text[:-40], set()),
        ("wallclock_tasks", lambda text: text.replace("run_end", "end"), set()),
        ("dmc_final", lambda text: text.replace("humanoid,G1", "humanoid,,,G1"), set()),
        ("dmc_curves", lambda text: text.replace(",", ";"), {f"published-{task}" for task in ("CheetahRun", *HUMANOID)}),
    ],
)
def test_a_damaged_published_table_is_named_and_left_out(
    name: str, damage: Callable[[str], str], gone: set[str], root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(root / "results" / "published", tmp_path / "published")
    monkeypatch.setattr(facts, "DMC23", {"CheetahRun": 933.1})
    whole = report.page(tmp_path)
    path = tmp_path / "published" / f"{name}.csv"
    path.write_text(damage(path.read_text()))
    sections = report.page(tmp_path)
    for kind, expected in ((Figure, gone), (Table, TABLES.get(name, set()))):
        assert {block.id for block in blocks(whole, kind)} - {block.id for block in blocks(sections, kind)} == expected
    assert f"published/{name}.csv is damaged or of another program; left out." in markdown(sections)


def test_a_curve_is_drawn_beside_the_published_one_where_steps_are_comparable(root: Path) -> None:
    published = facts.Published(root / "results" / "published")
    for steps, algorithms, expected in (
        (50_000_000, 1, True),
        (50_000_000, 3, True),
        (50_000_000, CROWDED, True),
        (1_000_000, 1, False),
    ):
        curve = np.array([[0, 0, 0, 0, 1], [steps, 9, 900, 0, 1.0]])
        keys = [Key("dmc23", f"ours-{i}", "playground:CheetahRun", 0) for i in range(algorithms)]
        runs = [Record(key, "complete", "", DESCRIPTION, 1, 1, None, curve) for key in keys]
        (figure,) = report.task_curves("dmc23", report.groups_of(runs), published)
        assert isinstance(figure, Figure)
        assert ("reppo_large" in figure.svg) == expected
        assert ("933.1" in figure.caption) != expected
        # Published curves do not make a figure crowded; where our own do, the first of them is the one that is dashed.
        assert ("Dashed: ours-0." in figure.caption) == (algorithms == CROWDED)
        assert ("Dashed: published" in figure.caption) == (expected and algorithms < CROWDED)


def test_the_toy_is_drawn_or_said_to_be_damaged(root: Path, tmp_path: Path) -> None:
    for name in ("toy_gradients.csv", "toy_paths.csv"):
        shutil.copy(root / "results" / name, tmp_path)
    (section,) = beside.toy(tmp_path)
    paths, variance, bias = blocks([section], Figure)
    assert [paths.id, variance.id, bias.id] == ["toy-paths", "toy-variance", "toy-bias"]
    assert all("pathwise, weak surrogate" in figure.svg for figure in (paths, variance, bias))
    assert all("PPO's clipped ratio, reused samples" in figure.svg for figure in (paths, variance, bias))
    for figure in (variance, bias):  # ticks at the numbers of samples, and nowhere else
        ticks = re.findall(r"text-anchor: middle[^>]*>([^<]*)<", figure.svg)
        assert ticks[:4] == ["2", "16", "128", "samples"]
    assert "12 paths" in paths.caption
    assert "every tenth step" in paths.caption
    for colour in COLOURS.values():  # of lines, and not of the points where they end
        assert len(re.findall(rf'd="M [^"]*" [^>]*style="fill: none; stroke: {colour.lower()}', paths.svg)) == 12
    # In the other figures, too, and with a point for each of three numbers of samples: hollow where no bias is measured.
    for figure, unmeasured in ((variance, ()), (bias, ("score", "pathwise"))):
        for name, colour in COLOURS.items():
            stroke = f'; stroke: {colour.lower()}"'
            hollow, filled = f'style="fill-opacity: 0{stroke}', f'style="fill: {colour.lower()}{stroke}'
            assert (figure.svg.count(hollow), figure.svg.count(filled)) == ((3, 0) if name in unmeasured else (0, 3))
    table = (tmp_path / "toy_paths.csv").read_text()
    for damaged in (table[: len(table) // 2], table[:-90], table.replace("weak,", "week,"), "a,b\n1,2\n"):
        (tmp_path / "toy_paths.csv").write_text(damaged)
        (section,) = beside.toy(tmp_path)
        assert "toy_paths.csv is damaged" in markdown([section])
        assert len(blocks([section], Figure)) == 2
    (tmp_path / "toy_paths.csv").unlink()
    (tmp_path / "toy_gradients.csv").write_text("estimator,samples\nscore,2\n")
    (section,) = beside.toy(tmp_path)
    assert "toy_gradients.csv is damaged" in markdown([section])


def test_runs_are_compared_in_equal_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Line] = []
    monkeypatch.setattr(beside.figures, "lines", lambda curves, *_, **__: drawn.extend(curves) or "<svg></svg>")
    header = "task,algorithm,seed,compared_at,finished,seconds,env_steps,return,return_std,episodes,command"
    evaluations = {  # seconds and returns
        ("reppo", 1): [(10, -5), (30, 2), (80, 10), (130, 40)],
        ("reppo", 2): [(11, -7), (41, 4), (90, 20), (140, 60)],
        ("sb3-ppo", 1): [(5, -1), (119, 3), (121, 100)],  # stopped
        ("sb3-sac", 1): [(5, -1), (80, 7)],
    }
    rows = [
        f"Ant-v5,{name},{seed},120,{name != 'sb3-ppo'},{seconds},{10 * seconds},{found},0,10,reppo"
        for (name, seed), points in evaluations.items()
        for seconds, found in points
    ]
    (tmp_path / "against.csv").write_text("\n".join([header, *rows]))
    (section,) = beside.in_equal_time(tmp_path)
    assert table([section], "against").rows == [
        # At 40 s, seed 2 has nothing but its evaluation before training. The end of the run is not that of the time.
        ["Ant-v5", "reppo", "120", "-2", "15", "10, 20", "50"],
        ["Ant-v5", "sb3-ppo", "120", "-1", "3", "3", "-"],
        ["Ant-v5", "sb3-sac", "120", "-1", "7", "7", "7"],
    ]
    assert [figure.id for figure in blocks([section], Figure)] == ["against-Ant-v5"]
    assert [(line.name, line.x[0], line.y[0]) for line in drawn] == [
        ("reppo", 11, -6),
        ("sb3-ppo", 5, -1),
        ("sb3-sac", 5, -1),
    ]
    (tmp_path / "against.csv").write_text("\n".join([header, rows[0].replace("reppo,1,120", "reppo,1,never")]))
    (section,) = beside.in_equal_time(tmp_path)
    assert "against.csv is damaged" in markdown([section])


def test_a_run_has_what_it_showed_last() -> None:
    curve = np.array([[0, 10.0, 5, 0, 1], [8, 20.0, 7, 0, 1]])
    run = Record(Key("s", "reppo", "e", 0), "complete", "", {}, 1, 1, None, curve)
    assert report.run_on(run, np.array([10.0, 19.0, 20.0, 25.0]), "seconds").tolist() == [5, 5, 7, 7]


def test_curves_against_seconds_begin_where_every_run_has_been_evaluated(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Line] = []
    monkeypatch.setattr(report.figures, "lines", lambda curves, *_, **__: drawn.extend(curves) or "<svg></svg>")

    def run(seed: int, first: float, cpu: str) -> Record:
        curve = np.array([[0, first, 100, 0, 1], [8, 50.0, 900, 0, 1]])
        description = {**DESCRIPTION, "hardware": {**DESCRIPTION["hardware"], "cpu": cpu}}
        return Record(Key("s", "reppo", TASKS[0], seed), "complete", "", description, 1, 1, None, curve)

    def figure(*cpus: str) -> Figure:
        runs = [run(seed, 10.0 + seed, cpu) for seed, cpu in enumerate(cpus)]
        return report.wall_clock("s", {"reppo": [report.Group("reppo", TASKS[0], runs)]}, PER_1000)

    caption = figure("Slow", "Slow", "Fast", "Slow").caption
    assert (drawn[0].x[0], drawn[0].x[-1]) == (13, 50)
    assert (drawn[0].y[0], drawn[0].y[-1]) == (0.1, 0.9)  # not 0, which no policy had
    assert caption.endswith("Not all on the same hardware: seeds 2 on Fast, 2 cores; seeds 0 to 1, 3 on Slow, 2 cores.")
    assert "hardware" not in figure("Slow", "Slow").caption


def test_an_algorithm_has_its_colour_in_every_figure() -> None:
    def colours(*names: str, published: bool = False) -> list[int]:
        x = np.arange(2.0)
        return [COLOURS_OF_FIGURES.index(colour) for colour, _ in styles([Line(n, x, x, x, x, published) for n in names])]

    assert colours("reppo", "reppo-averaged", "ppo", "sac") == [0, 6, 3, 4]
    assert colours("reppo", "ppo") == [0, 3]
    assert colours("sac", "reppo") == [4, 0]
    # Others have what is left; so has the second of two that share a colour.
    assert colours("mine", "reppo", "ppo") == [1, 0, 3]
    assert colours("ppo", "sb3-ppo") == [3, 0]
    # So has what was published, which is dashed, and none moves where one is absent.
    assert colours("reppo_large", "ppo_50M", "fasttd3_A", published=True) == [0, 3, 5]
    assert colours("reppo_large", "fasttd3_A", "mine", published=True) == [0, 5, 1]
    assert len(set(colours(*"abcdefg"))) == 7


def test_the_first_and_last_bars_are_whole() -> None:
    # A mark is 11 points high, and the frame would cut it if it ended near its middle.
    image = bars([Bar("a", 1, 0, 2), Bar("b", 1, 0, 2)], "bars", x="x")
    (frame,) = re.findall(r'<rect x="[^"]*" y="([\d.]*)" width="[^"]*" height="([\d.]*)"', image)
    top, height = map(float, frame)
    middles = [float(y) for y in re.findall(r'd="M [\d.]+ ([\d.]+) [^>]*stroke-width: 5"', image)]
    assert len(middles) == 2
    assert all(top + 6 < y < top + height - 6 for y in middles)


def test_many_curves_have_a_panel_each_beside_the_first() -> None:
    x = np.arange(3.0)
    few = [Line(f"curve{i}", x, x + i, x, x + 9) for i in range(CROWDED - 1)]
    many = [*few, Line("last", x, x, x, x)]
    legend, panels = lines(few, "t", x="x", y="y"), multiples(many, "t", x="x", y="y")
    assert [legend.count(f">curve{i}<") for i in range(CROWDED - 1)] == [1] * (CROWDED - 1)
    assert [panels.count(f">{curve.name}<") for curve in many] == [0] + [1] * (CROWDED - 1)
    assert legend.count("stroke-dasharray") == 0
    assert panels.count("stroke-dasharray") == CROWDED - 1  # the first one, in every panel


def test_ids_are_of_what_is_seen_and_not_of_the_last_bit() -> None:
    def figure(curve: str, clip: str, end: int) -> str:
        paths = f'<path id="{curve}" d="M 1 {end}"/><clipPath id="{clip}"/>'
        return inlined(f'<svg>{paths}<use xlink:href="#{curve}" clip-path="url(#{clip})"/></svg>', "t")

    here, there = figure("m0123456789", "p00000000aa", 2), figure("mfedcba9876", "p00000000bb", 2)
    assert here == there
    curve, clip = re.findall(r' id="([^"]+)"', here)
    assert curve != clip
    assert f'<use xlink:href="#{curve}" clip-path="url(#{clip})"/>' in here
    assert curve not in figure("m0123456789", "p00000000aa", 3)


def test_figures_take_the_ink_of_the_page() -> None:
    x = np.arange(3.0)
    image = lines([Line('a "<b>"', x, x, x - 1, x + 1)], 'a "<b>"', x="x", y="y")
    assert "currentColor" in image
    assert "#010203" not in image
    assert 'aria-label="a &quot;&lt;b&gt;&quot;"' in image
    assert "<metadata>" not in image
    assert "<text" in image  # text stays text
    assert image.count("font-family") == 1
    assert image == lines([Line('a "<b>"', x, x, x - 1, x + 1)], 'a "<b>"', x="x", y="y")
    assert "name" in bars([Bar("name", 1, 0, 2)], "bars", x="x", reference=0.5)
    path = inlined('<svg>\n   <path d="M 1.23456 4\nL 5.678 8.9 \nL 3 -0.04\nz"/></svg>', "t")
    assert path == f'<svg role="img" aria-label="t" font-family="{FONTS}">\n<path d="M 1.2 4 5.7 8.9 3 -0 z"/></svg>'
    curve = inlined('<svg><path d="M 0 1.5\nC 1 1 2 2 3.0 3\nL 4 4"/></svg>', "t")
    assert curve == f'<svg role="img" aria-label="t" font-family="{FONTS}"><path d="M 0 1.5 C 1 1 2 2 3 3 L 4 4"/></svg>'
    assert inlined("<?xml?><svg a='1'><g id=\"axes_1\"></g></svg>", "t") == (
        f'<svg a=\'1\' role="img" aria-label="t" font-family="{FONTS}"><g></g></svg>'
    )


def test_the_papers_order_is_told_of_either_way() -> None:
    def scores(*values: float) -> list[np.ndarray]:
        return [np.full(4, value) for value in values]

    of = {"reppo": scores(0.9, 0.8), "reppo-score_q": scores(0.5, 0.2), "reppo-score_gae": scores(0.3, 0.4)}
    q_gae, first = "reppo-score_q - reppo-score_gae", "reppo - reppo-score_q"
    # Over both tasks the last two have the same interquartile mean: (0.2 + 0.5) / 2 and (0.3 + 0.4) / 2.
    assert report.ordering(of, TASKS, REF_BEST).text == (
        "The paper's order of gradient estimators is reppo, reppo-score_q, reppo-score_gae. By IQM, ref_best, with "
        "differences of neighbours and their bootstrap intervals: "
        "On CartpoleBalance it holds: reppo 0.900, reppo-score_q 0.500, reppo-score_gae 0.300; "
        f"{first} 0.400 [0.400, 0.400], {q_gae} 0.200 [0.200, 0.200]. "
        "On CartpoleSwingup it does not hold: reppo 0.800, reppo-score_gae 0.400, reppo-score_q 0.200; "
        f"{first} 0.600 [0.600, 0.600], {q_gae} -0.200 [-0.200, -0.200]. "
        "Over all of them it cannot be told apart from chance: reppo 0.850, reppo-score_q 0.350, reppo-score_gae 0.350; "
        f"{first} 0.500 [0.500, 0.500], {q_gae} 0.000 [0.000, 0.000]."
    )


def test_an_order_within_chance_neither_holds_nor_fails() -> None:
    def text(*runs: list[float]) -> str:
        names = ("reppo", "reppo-score_q", "reppo-score_gae")
        return report.ordering(
            {name: [np.array(own)] for name, own in zip(names, runs, strict=True)}, TASKS[:1], REF_BEST
        ).text

    low, middle, high, wide = [0.1, 0.2] * 3, [0.4, 0.5] * 3, [0.8, 0.9] * 3, [0.0, 1.0] * 3
    assert "On CartpoleBalance it holds: " in text(high, middle, low)
    assert "it does not hold: " in text(middle, high, low)
    assert "it cannot be told apart from chance: " in text(high, low, low)  # a tie
    assert "it cannot be told apart from chance: " in text(high, wide, low)  # in the paper's order, by means
    assert "it cannot be told apart from chance: " in text(high, low, wide)  # in another, by means
    assert "it does not hold: " in text(low, high, wide)  # one pair is enough to refute it
    assert "it cannot be told apart from chance: " in text([0.9], [0.5], [0.1])  # one run says nothing of chance


def test_what_each_part_is_worth_is_ranked_either_way(tmp_path: Path) -> None:
    def scores(*values: float) -> list[np.ndarray]:
        return [np.full(4, value) for value in values]

    of = {"reppo": scores(0.9, 0.7), "reppo-no_aux": scores(0.7, 0.6), "reppo-small": scores(0.1, 0.1)}
    of["reppo-no_kl"] = scores(0.4, 0.2)  # like less data, it is not among what HL-Gauss is compared with
    found, note = report.worth("parts", {**of, "reppo-mse": scores(0.5, 0.5)}, "ref_best")
    assert isinstance(found, Table)
    assert [(row[0], row[2]) for row in found.rows] == [
        ("reppo-small", "0.700 [0.700, 0.700]"),
        ("reppo-no_kl", "0.500 [0.500, 0.500]"),
        ("reppo-mse", "0.300 [0.300, 0.300]"),
        ("reppo-no_aux", "0.150 [0.150, 0.150]"),
    ]
    said = (
        "In the paper, HL-Gauss matters most of the parts other than the KL constraint. By the mean over the run, ref_best, "
        "it "
    )
    assert note == Note(f"{said}holds: the drop of reppo-mse, 0.300 [0.300, 0.300], is the largest of 2.")
    unsure = [np.array([0.0, 1.8]), np.array([0.0, 0.0])]
    _, note = report.worth("parts", {**of, "reppo-mse": unsure}, "ref_best")
    assert "it holds: " in note.text  # pyright: ignore[reportAttributeAccessIssue]
    assert note.text.endswith("is the largest of 2, though chance alone may have made it.")  # pyright: ignore
    _, note = report.worth("parts", {**of, "reppo-mse": scores(0.9, 0.9)}, "ref_best")
    assert note == Note(
        f"{said}does not hold: the drop of reppo-mse, -0.100 [-0.100, -0.100], is number 2 of 2; the largest is that of "
        "reppo-no_aux, 0.150 [0.150, 0.150]."
    )
    wide = [np.array([0.0, 0.9]), np.array([0.0, 0.9])]  # less than that of no_aux, or more, by chance
    _, note = report.worth("parts", {"reppo": of["reppo"], "reppo-no_aux": wide, "reppo-mse": scores(0.9, 0.6)}, "ref_best")
    assert f"it {report.UNTOLD}: the drop of reppo-mse" in note.text  # pyright: ignore[reportAttributeAccessIssue]
    for algorithm, final in (("reppo", 1000.0), ("reppo-mse", 600.0), ("reppo-no_aux", 900.0)):
        add(tmp_path, algorithm, TASKS[0], 0, final)
    rows = {row[0]: row[2] for row in table(report.page(tmp_path), "estimators-parts").rows}
    # A run rises linearly in four evaluations: their mean is 0.625 of the last one.
    drops = {"reppo-mse": 250 / 999.8, "reppo-no_aux": 62.5 / 999.8}
    assert rows == {name: f"{drop:.3f} [{drop:.3f}, {drop:.3f}]" for name, drop in drops.items()}


def test_memory_is_what_runs_say_of_themselves(sections: list[Section]) -> None:
    assert table(sections, "estimators-memory").rows == [[env, "reppo", "1", "3.0", "0.5", "0.0", "1,024"] for env in TASKS]
    missing = next(entry for entry in blocks(sections, Missing) if entry.what.startswith("memory"))
    assert missing.command == "reppo bench laptop"


def test_memory_is_drawn_beside_what_was_learned_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[Bar, Bar, float]] = []
    monkeypatch.setattr(report.figures, "memory", lambda values, *_, **__: drawn.extend(values) or "<svg></svg>")

    def group(algorithm: str, replay: int | None, together: int = 1) -> report.Group:
        parts = None if replay is None else {"parameters": 2**20, "batch": 2**19, "replay": replay * 2**20}
        runs = []
        for seed, (peak, last) in enumerate(((600, 100), (700, 200), (900, 300))):
            key, curve = Key("s", algorithm, TASKS[0], seed), np.array([[0, 0, 0, 0, 1], [8, 9, last, 0, 1.0]])
            run = Record(key, "complete", "", DESCRIPTION, 1, together, peak * 2**20, curve, computed_memory_bytes=parts)
            runs.append(run)
        return report.Group(algorithm, TASKS[0], runs)

    of = {"reppo": [group("reppo", 0)], "sac": [group("sac", 30)], "old": [group("old", None)]}
    of["shared"] = [group("shared", 0, together=3)]
    (figure,) = report.memory_figure("s", of, PER_1000)
    assert isinstance(figure, Figure)
    assert figure.id == "s-memory-return"
    assert [held for held, *_ in drawn] == [Bar("reppo", 1.5, 1.5, 1.5), Bar("sac", 31.5, 1.5, 31.5)]
    assert [taken for *_, taken in drawn] == [700, 700]
    # Three runs in rliable's IQM: floor(3 / 4) are left out at either end.
    assert [learned.value for _, learned, _ in drawn] == [pytest.approx(0.2)] * 2
    assert not list(report.memory_figure("s", {"reppo": of["reppo"], "shared": of["shared"]}, PER_1000))


def test_a_bar_of_memory_is_its_replay_memory() -> None:
    image = memory([(Bar("sac", 30, 1, 30), Bar("", 0.5, 0.4, 0.6), 700)], "Memory", y="IQM")
    assert image.count('stroke-width: 5"') == 2
    assert [image.count(f">{text}<") for text in ("sac", "memory, MiB", "IQM", "100")] == [1, 1, 1, 1]
    ElementTree.fromstring(image)


def test_every_figure_of_the_paper_is_somewhere_or_missing(sections: list[Section], root: Path) -> None:
    rows = {row[0]: row[1:] for row in table(sections, "paper").rows}
    toy = rows["paths of gradient estimates on a 2-D surface; their variance and bias"]
    assert toy == ["-", "toy-paths, toy-variance, toy-bias", "reppo toy"]
    estimators = "gradient estimators: pathwise, score_q and score_gae"
    assert rows[estimators] == [
        "Suite estimators",
        "3680 of 3680 runs; published figures",
        "reppo bench ablations",
    ]
    assert "| reppo toy |" not in markdown(sections)
    assert "| `reppo toy` |" in markdown(sections)
    # Everything that the list names exists; and one complete suite lacks nothing.
    committed = report.page(root / "results")
    figures = {block.id for kind in (Figure, Table) for block in blocks(committed, kind)}
    for shown in contents.PAPER:
        assert {*shown.suites, *shown.smaller} <= SUITES.keys()
        assert {*shown.ids} <= figures
        cli.arguments(shown.command.split()[1], shown.command.split()[2:])
    here = [Section("Suite dmc23", []), Section("What was published", [Table("t", [], [], id="published-dmc-table")])]
    _, found = contents.contents(here, {name: (int(name != "dmc23"), 9) for name in SUITES})
    assert isinstance(found, Table)
    assert found.rows[2] == ["final returns on them", "Suite dmc23; What was published", "-", "-"]
    assert found.rows[5][2:] == ["published-wall-clock, published-wall-clock-tasks", "-"]
    assert found.rows[8][1:] == [
        "-",
        "1 of 9 runs; published-maniskill-efficiency, published-maniskill, published-maniskill-tasks, published-PokeCube-v1",
        "reppo bench maniskill8",
    ]


def test_the_committed_report_is_that_of_the_committed_results(root: Path) -> None:
    """But for the insides of figures: they are the same bytes only with one version of Matplotlib."""
    sections = report.page(root / "results")
    assert (root / "results" / "report" / "report.md").read_text() == markdown(sections), "run `reppo report results`"
    figures = {f"{figure.id}.svg" for figure in blocks(sections, Figure)}
    assert {path.name for path in (root / "results" / "report" / "figures").iterdir()} == figures

    def words(page: str) -> str:
        return re.sub(r"<svg .*?</svg>", "", page, flags=re.DOTALL)

    assert words((root / "results" / "report" / "index.html").read_text()) == words(html(sections))


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", str(tmp_path / "nowhere")]) == cli.USER_ERROR
    assert "there is no folder" in capsys.readouterr().err
    path = add(tmp_path, "reppo", TASKS[0], 0, 1.0)
    for suffix in (".json", ".csv"):
        shutil.copy(path.with_suffix(suffix), path.with_name("copy" + suffix))
    assert cli.main(["report", str(tmp_path)]) == cli.USER_ERROR
    assert "two versions of one run" in capsys.readouterr().err


BROWSER = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium here to load the page in")
def test_a_browser_loads_the_page_and_lays_out_every_figure(sections: list[Section], tmp_path: Path) -> None:
    page = tmp_path / "index.html"
    # A phone's width, by a frame: headless windows are never so narrow. The script writes what it measures.
    page.write_text(html(sections))
    frame = tmp_path / "frame.html"
    frame.write_text(
        '<iframe id="f" src="index.html" style="width:360px;height:640px;border:0"></iframe><pre id="out"></pre><script>'
        "f.onload=()=>{const d=f.contentDocument;const s=[...d.querySelectorAll('figure svg')].map(e=>"
        "e.getBoundingClientRect()).map(r=>[Math.round(r.width),Math.round(r.height)].join('x'));"
        "out.textContent='seen '+s.join(' ')+' page '+d.documentElement.scrollWidth}</script>"
    )
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000", "--dump-dom", frame.as_uri()]
    out = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    seen = re.search(r">seen ([\dx ]*) page (\d+)<", out)
    assert seen is not None, out[-500:]
    sizes = [tuple(map(int, size.split("x"))) for size in seen[1].split()]
    assert len(sizes) == len(blocks(sections, Figure))
    assert all(250 < width <= 360 and height > 50 for width, height in sizes), sizes
    assert int(seen[2]) <= 360  # nothing makes the page wider than the phone
