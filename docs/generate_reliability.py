"""Write docs/reliability.md from the files in results/: `python docs/generate_reliability.py`.

The numbers are in `results/reliability_*.csv`, with the command that makes each; the prose around them is here.
"""

from __future__ import annotations

import json
import statistics
from collections import Counter

from generate_results import RESULTS, ROOT, Row, read, table, write

TRUE = "True"


def column(rows: list[Row], name: str) -> list[float]:
    return [float(row[name]) for row in rows]


def count(rows: list[Row], **wanted: str) -> int:
    return sum(all(row[name] == value for name, value in wanted.items()) for row in rows)


def whole(rows: list[Row], planned: int) -> str:
    """How many trials there are, and whether that is all of them."""
    return f"{len(rows)}" if len(rows) >= planned else f"{len(rows)} of the {planned} that the command makes"


def identical(rows: list[Row]) -> str:
    same = count(rows, identical=TRUE, rows_identical=TRUE, resume="done")
    return f"{same} of {len(rows)}"


INTRODUCTION = """\
# Reliability

<!-- Written by docs/generate_reliability.py from results/. Do not edit. -->

No kill, no signal, no number that is not finite and no damaged file costs you a run: what had not reached the disk is
computed again, to the same bits. This page is the proof. Every table is made by the command above it:

    python benchmarks/reliability.py all && python docs/generate_reliability.py

What is promised:

| what happens | what you have |
|---|---|
| `kill -9`, or a crash | the newest checkpoint, whole; `reppo resume RUN` goes on to the same result |
| Ctrl-C, SIGTERM | the current iteration is finished and saved; exit code 75; `reppo resume RUN` goes on |
| a second Ctrl-C or SIGTERM | the process ends at once; the newest checkpoint is whole |
| a killed run had no checkpoint yet | `reppo resume RUN` says so and starts it from the beginning |
| a killed run had no directory yet | `reppo resume RUN` says that there is nothing to resume; start it again |
| a damaged checkpoint | it is set aside, and the one before it is used |
| a kill while a compiled program is cached | what was cut off is removed at the next start, and compiled again |
| NaN, infinity, absurd numbers | that step or update is left out, counted and shown; `reppo repro FILE` makes it again |
| a full disk, a read-only directory, a run that is in use | one line; what was there stays as it was |

"The same result" is meant to the last bit, on a CPU, with the same machine and versions. On a GPU a resumed run is as close
as two runs of one seed are there, which has not been tried yet. The state of a simulator that is not written in JAX cannot
be saved: a resumed run begins new episodes, and says so. Files are synced to the disk before they get their names, but no
power was cut to test that.
"""


def hardware() -> str:
    description = json.loads((RESULTS / "reliability.json").read_text())
    versions, machine = description["versions"], description["hardware"]
    return f"""\
Machine and versions: {machine["cpu"]}, {machine["platform"]}, Python {versions["python"]}, JAX {versions["jax"]};
`results/reliability.json` has them all. One core was used, at a low priority, on a machine that was busy with other work,
so that all seconds below are upper bounds. The program was being finished meanwhile: the revision in that file is
that of the last table.
"""


def kills() -> str:
    rows = read("reliability_kills.csv")
    phases = Counter(row["killed"] for row in rows)
    table_rows = [
        [name, phases[name], identical([row for row in rows if row["killed"] == name])]
        for name in (
            "before its directory",
            "before its first checkpoint",
            "before its first iteration",
            "training",
            "after its end",
        )
        if phases[name]
    ]
    inside = sum(bool(row["in_save"]) for row in rows)
    return f"""\
## kill -9 at any moment

    python benchmarks/reliability.py kills

A run of 16 iterations, with 3 evaluations and a checkpoint every 30 ms at most, is started afresh and killed at a moment
that is uniform over the seconds of a whole run, imports included (one that has ended by then does not count and is
repeated). Compiled programs come from the cache. Then the run is resumed to its end.
"Identical": every array of the last checkpoint, which are the networks, the optimisers, the multipliers, the normaliser's
statistics, the counters and the environments, has the bytes of the run that was left alone, and so has every row of both
tables but for its clocks. Trials: {whole(rows, 200)}; in {inside} of them a save was under way.

{table(["killed", "trials", "identical after resume"], table_rows)}
Where there was no directory yet, `reppo resume` said so in one line with exit code 2, and the run was started again.
Damaged checkpoints that a kill has left: {sum(int(row["damaged"]) for row in rows)}. What is killed is a process of its own,
`python -m reppo train`, unaltered; the processes that resume are forked from one that has imported the libraries, which
saves seconds and changes nothing else.
"""


def saves() -> str:
    rows = read("reliability_saves.csv")
    stages = Counter(row["in_save"] for row in rows)
    table_rows = [
        [name, stages[name], identical([row for row in rows if row["in_save"] == name])] for name in sorted(stages)
    ]
    return f"""\
## kill -9 inside a save

    python benchmarks/reliability.py saves

A save is under way while `checkpoints/` holds a name that ends in `.partial` (it is written) or `.removed` (it is deleted).
Another process watches the directory, without any change to the program, and kills it at a moment that is uniform over the
duration of a save, in one of the first eight saves. A kill counts where the dead process has left such a name behind; it is
repeated otherwise. Trials: {whole(rows, 50)}.

{table(["the save was", "trials", "identical after resume"], table_rows)}
Writing the arrays takes most of a save, so that chance finds it. `tests/test_checkpoint.py` therefore also stops four saves
at every single change that they make to the file system, one after the other.
"""


def signals() -> str:
    rows = read("reliability_signals.csv")
    table_rows = []
    for cold in ("False", "True"):
        for name in dict.fromkeys(row["killed"] for row in rows):
            group = [row for row in rows if row["killed"] == name and row["cold"] == cold]
            if group:
                codes = ", ".join(sorted({row["exit_code"] for row in group}))
                seconds = column(group, "exit_seconds")
                table_rows.append(
                    [
                        f"{name}{', nothing compiled' if cold == TRUE else ''}",
                        len(group),
                        codes,
                        f"{count(group, right=TRUE)} of {len(group)}",
                        f"{statistics.median(seconds):.2f}, {max(seconds):.2f}",
                        identical(group),
                    ]
                )
    header = ["signal came", "trials", "exit code", "right", "seconds to exit: median, largest", "identical after resume"]
    return f"""\
## SIGTERM at any moment

    python benchmarks/reliability.py signals

The same run gets SIGTERM at a moment that is uniform over its seconds. In every other trial the compilation cache is empty,
so that most of that time is compilation. "Right": the exit code is 75 where there is a directory to resume, with the words
that say how; it is that of a process which the signal has ended (-15 here, 143 in a shell) where there is nothing yet, or
where everything is written and the process is on its way out; the newest checkpoint is whole; and it holds every iteration
that the tables hold, so that none is computed again. Trials: {whole(rows, 50)}.

{table(header, table_rows)}"""


def injection() -> str:
    rows = read("reliability_injection.csv")
    places = dict.fromkeys(row["place"] for row in rows)
    table_rows = [
        [
            place,
            *(
                f"{count(rows, place=place, value=value, contained=TRUE)} of {count(rows, place=place, value=value)}"
                for value in ("nan", "inf", "1e30")
            ),
        ]
        for place in places
    ]
    return f"""\
## Numbers that are not finite

    python benchmarks/reliability.py injection

Each cell is the number of cases that were contained. In an environment there are six cases: the first, a middle and the
last step of a rollout, in one environment and in all. Of a gradient there are four: the first, a middle and the last
minibatch of an update, and all. Contained means, for an environment: its own row alone is masked, the count is right, all
parameters stay finite, and the normaliser's statistics are those of the other rows, computed by hand. For a gradient: the
step of that optimiser alone is skipped and counted, and everything stays finite. The cases are tests,
`tests/test_faults.py`, and run in CI.

{table(["place", "NaN", "+Inf", "1e30"], table_rows)}"""


def mutations() -> str:
    rows = read("reliability_mutations.csv")
    header = [
        "altered",
        "trials",
        "refused in one line",
        "loaded, right to the last bit",
        "loaded as signed",
        "anything else",
    ]
    parts = []
    for target in ("checkpoint", "configuration"):
        group = [row for row in rows if row["target"] == target]
        lines: list[list[object]] = []
        for r in group:
            tried, *fine = (int(r[name]) for name in ("tried", "refused", "loaded", "loaded as signed"))
            lines.append([r["altered"], tried, *fine, tried - sum(fine)])
        lines.append(["all", *(sum(int(str(line[i])) for line in lines) for i in range(1, 6))])
        parts.append(f"Altered {target}s:\n\n{table(header, lines)}")
    return f"""\
## Damaged and foreign files

    python benchmarks/reliability.py mutations

One thing of a finished run is altered, at random, and the run is resumed. "Signed" means that every checksum was made
anew, as only a program that knows the format can: what it wrote may then be loaded, if it fits. "Anything else" would be a
traceback on any thread, a message of several lines, no end within a minute, numbers that nobody wrote, or code that was
executed: pickles that tell of themselves stand in for files, and Python's audit hook listens for any that is opened.
A command line is that of `reppo train`, with one option set to something. What is loaded has been checked to the point
where training would begin.

{chr(10).join(parts)}
Two earlier passes found that signed checkpoints could make threads of Orbax print tracebacks, and that one with a number
for its versions ended in a traceback. Both were mended, have tests, and this table was made after that.
"""


def determinism() -> str:
    rows = read("reliability_determinism.csv")
    lines = [[row["process"], row["seed"], row["seeds"], f"`{row['state']}`", f"`{row['policy_file']}`"] for row in rows]
    return f"""\
## The same seed, the same bytes

    python benchmarks/reliability.py determinism

SHA-256, first 16 digits, of all arrays of the last checkpoint and of the policy files, each row from a process of its own.

{table(["process", "seed", "seeds at once", "arrays", "policy files"], lines)}"""


def evaluation() -> str:
    rows = read("reliability_evaluation.csv")
    lines = [[row["evaluations"], row["iterations"], f"`{row['state']}`"] for row in rows]
    return f"""\
## Evaluations leave training untouched

    python benchmarks/reliability.py evaluation

The first row counts the evaluation before training, too.

{table(["evaluations", "iterations", "SHA-256 of learner and environments"], lines)}"""


def cost() -> str:
    (row,) = read("reliability_cost.csv")
    lines = [
        [
            "seconds that the loop waited for checkpoints",
            row["waited_seconds"],
            row["seconds"],
            f"{float(row['waited_share']):.2%}",
        ],
        [
            "processor seconds of the thread that writes",
            row["thread_cpu_seconds"],
            row["cpu_seconds"],
            f"{float(row['cpu_share']):.2%}",
        ],
    ]
    return f"""\
## What checkpoints cost

    python benchmarks/reliability.py cost

The default task (`{row["env"]}`, {int(row["steps"]):,} steps of the preset `cpu` as it was, four epochs), with checkpoints
as often as by default, after each evaluation: {row["saves"]} of them here, each of {int(row["bytes"]) / 1e6:.1f} MB.
Compilation does not count as time of the run.

{table(["", "for checkpoints", "of the run", "share"], lines)}"""


SECTIONS = {
    "kills": kills,
    "saves": saves,
    "signals": signals,
    "injection": injection,
    "mutations": mutations,
    "determinism": determinism,
    "evaluation": evaluation,
    "cost": cost,
}


def document() -> str:
    found = [section() for name, section in SECTIONS.items() if (RESULTS / f"reliability_{name}.csv").exists()]
    return "\n".join([INTRODUCTION, hardware(), *found])


if __name__ == "__main__":
    write(ROOT / "docs" / "reliability.md", document())
