"""What the paper shows, and where each of it is in the report, by content."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from reppo.bench.page import Block, Figure, Note, Section, Table


class Shown(NamedTuple):
    """A figure or table of the paper.

    Attributes:
        suites: those that make it, at the paper's size.
        smaller: those that make it on a CPU.
        ids: of what was published of it, or of our own figures that no suite makes.
    """

    what: str
    suites: tuple[str, ...]
    smaller: tuple[str, ...]
    ids: tuple[str, ...]

    @property
    def command(self) -> str:
        """That would make what is missing."""
        return f"reppo bench {self.suites[0]}" if self.suites else "reppo toy"


PAPER = (
    Shown(
        "paths of gradient estimates on a 2-D surface; their variance and bias",
        (),
        (),
        ("toy-paths", "toy-variance", "toy-bias"),
    ),
    Shown(
        "returns against steps on 23 DeepMind Control tasks, beside PPO, SAC and FastTD3",
        ("dmc23",),
        ("laptop", "balance"),
        ("published-dmc-ref-best", "published-dmc-1000"),
    ),
    Shown("final returns on them", ("dmc23",), ("laptop", "balance"), ("published-dmc-table",)),
    Shown(
        "curve and final return of each task",
        ("dmc23",),
        ("laptop", "balance"),
        ("published-CheetahRun", "published-dmc-tasks"),
    ),
    Shown(
        "reliability: runs that stay at 0.9 of the best published return",
        ("dmc23",),
        ("laptop", "balance", "estimators"),
        ("published-reliability", "published-reliability-table"),
    ),
    Shown(
        "returns against seconds",
        ("dmc23",),
        ("laptop", "balance"),
        ("published-wall-clock", "published-wall-clock-tasks"),
    ),
    Shown("memory, beside that of a replay memory", ("dmc23",), ("laptop", "balance"), ()),
    Shown(
        "128k, 64k and 32k samples for each update",
        ("dmc23",),
        ("parts",),
        ("published-dmc-table", "published-reliability"),
    ),
    Shown(
        "success on 8 tasks of ManiSkill, beside PPO",
        ("maniskill8",),
        (),
        ("published-maniskill-efficiency", "published-maniskill", "published-maniskill-tasks", "published-PokeCube-v1"),
    ),
    Shown(
        "humanoids that follow a joystick",
        ("humanoid",),
        (),
        ("published-humanoid", "published-G1JoystickFlatTerrain"),
    ),
    Shown(
        "parts taken out: HL-Gauss, auxiliary task, normalisation, KL constraint",
        ("ablations",),
        ("parts",),
        ("published-ablations", "published-ablations-64k", "published-ablations-32k", "published-ablations-table"),
    ),
    Shown(
        "gradient estimators: pathwise, score_q and score_gae",
        ("ablations",),
        ("estimators", "locomotion", "laptop", "balance"),
        (),
    ),
)

#: Suites that fit a CPU.
SMALLER = dict.fromkeys(name for shown in PAPER for name in shown.smaller)


def contents(sections: Sequence[Section], absent: Mapping[str, Sequence[int]]) -> Iterator[Block]:
    """A table with a row for each of `PAPER`; ``absent``: of every suite, how many runs it lacks, and has when complete."""
    place = {
        block.id: section.title
        for section in sections
        for block in section.blocks
        if isinstance(block, Figure | Table) and block.id
    }
    there = {section.title for section in sections}
    rows = []
    for shown in PAPER:
        short = [name for name in shown.suites if absent[name][0]]
        gone = [id for id in shown.ids if id not in place]
        suites = [title for name in (*shown.suites, *shown.smaller) if (title := f"Suite {name}") in there]
        where = dict.fromkeys([*suites, *(place[id] for id in shown.ids if id in place)])
        lacks = [f"{absent[name][0]} of {absent[name][1]} runs" for name in short]
        lacks += [", ".join(gone)] * bool(gone) + ["published figures"] * (not shown.ids)
        command = shown.command if short or (gone and not shown.suites) else "-"
        rows.append([shown.what, "; ".join(where) or "-", "; ".join(lacks) or "-", command])
    rows.append(["the algorithm and its settings", "docs/algorithm.md, docs/options.md", "-", "-"])
    yield Note(
        "By content, not by number: the sections of this page that have it, and what is missing. Suites for a CPU, "
        f"{', '.join(SMALLER)}, are far smaller than the paper's."
    )
    header = ["in the paper", "sections", "missing", "the command that would make it"]
    yield Table("", header, rows, id="paper")
