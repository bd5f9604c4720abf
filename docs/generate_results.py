"""Write the tables of README.md and docs/results.md from the files in results/: `python docs/generate_results.py`.

The numbers are in `results/`, with the command that made each; the prose around them is here.
"""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from reppo.bench import beside, records, suites
from reppo.bench.page import Figure, Table
from reppo.bench.statistics import bootstrap, probability_of_improvement
from reppo.bench.statistics import mean as averages

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results"
BEGIN, END = "<!-- results: written by docs/generate_results.py -->\n", "<!-- end of results -->\n"

Row = dict[str, str]

#: What counts as solved: 0.9 of the best mean final return published for the task (50 million steps), where there is one.
PUBLISHED = {
    "playground:CartpoleBalance": 999.8,
    "playground:CartpoleSwingup": 875.4,
    "playground:PendulumSwingup": 627.2,
    "playground:ReacherEasy": 980.5,
    "playground:BallInCup": 974.8,
}
TAU = 0.9


def read(name: str) -> list[Row]:
    with (RESULTS / name).open(newline="") as file:
        return list(csv.DictReader(file))


def table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table, its first column left-aligned and the others right-aligned."""
    header = list(header)
    lines = ["| " + " | ".join(header) + " |", "|---" + "|---:" * (len(header) - 1) + "|"]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def by_env(rows: list[Row]) -> Iterator[tuple[str, list[Row]]]:
    for env in dict.fromkeys(row["env"] for row in rows):
        yield env, [row for row in rows if row["env"] == env]


def returns(rows: list[Row]) -> list[float]:
    return [float(row["return_mean"]) for row in rows]


def listed(values: Iterable[float]) -> str:
    return ", ".join(f"{value:.0f}" for value in values)


def solved(env: str, rows: list[Row]) -> str:
    if env not in PUBLISHED:
        return "no published figure"
    return f"{sum(value >= TAU * PUBLISHED[env] for value in returns(rows))} of {len(rows)}"


def quickstart() -> str:
    rows = read("quickstart.csv")
    lines = [
        [
            f"{row['seed']}, {row['start']} start",
            row["return_mean"],
            row["seconds"],
            row["cpu_seconds"],
            row["peak_memory_mb"],
        ]
        for row in rows
    ]
    return table(["`reppo train`, seed", "return", "seconds", "processor seconds", "peak MB"], lines)


def tasks() -> str:
    """One row per task: every seed's final return."""
    lines = []
    for env, rows in by_env(read("tasks.csv")):
        steps = int(rows[0]["total_steps"])
        best = f"{PUBLISHED[env]:.0f}" if env in PUBLISHED else "-"
        seconds, cpu = rows[0]["seconds"], rows[0]["cpu_seconds"]
        lines.append([f"`{env}`", f"{steps:,}", listed(returns(rows)), best, solved(env, rows), seconds, cpu])
    header = [
        "task",
        "steps",
        "return of seeds 10 to 14",
        "published",
        "solved",
        "seconds, 5 seeds",
        "processor seconds, 5 seeds",
    ]
    return table(header, lines)


def samples() -> str:
    """Returns by step and by the clock; the five seeds of a row are trained in one process."""
    lines, curves = [], read("samples_curves.csv")
    goal = TAU * PUBLISHED[curves[0]["env"]]
    rows = read("samples.csv")
    for start in sorted({row["start"] for row in rows}, key=lambda start: int(start.removeprefix("S="))):
        group = [row for row in rows if row["start"] == start]
        points: dict[int, list[tuple[float, float]]] = {}
        for row in curves:
            if row["start"] == start and row["env_steps"] != "0":
                points.setdefault(int(row["env_steps"]), []).append((float(row["eval/return"]), float(row["time/seconds"])))
        means = [statistics.mean(value for value, _ in found) for found in points.values()]
        first = next((f"{found[0][1]:.0f}" for found, mean in zip(points.values(), means, strict=True) if mean >= goal), "-")
        cells = [f"{statistics.mean(means):.0f}", first, listed(returns(group)), group[0]["cpu_seconds"]]
        lines.append([start.removeprefix("S="), *cells])
    header = ["S", "over the run", "mean solved, at second", "return of seeds 10 to 14", "processor seconds"]
    return table(header, lines)


def throughput() -> str:
    lines = []
    for row in read("throughput.csv"):
        speeds = [f"{int(row[f'{stage}_steps_per_s']):,}" for stage in ("rollout", "targets", "update", "iteration")]
        compiling = " + ".join(row[f"compile_{stage}_s"] for stage in ("first", "rollout", "update"))
        where = [f"`{row['config']}`", row["device"].removesuffix(" Processor").replace("(R)", ""), row["measured"][-5:]]
        lines.append([*where, row["epochs"], *speeds, compiling, row["peak_host_mb"]])
    header = [
        "configuration",
        "processor",
        "at",
        "epochs",
        "rollout",
        "targets",
        "update",
        "iteration",
        "compile, s",
        "peak MB",
    ]
    return table(header, lines)


def hardware(name: str) -> str:
    description = json.loads((RESULTS / name).read_text())
    versions = description["versions"]
    cores = description["hardware"]["cpu_cores"]
    return f"{description['hardware']['cpu']}, {cores} cores, Python {versions['python']}, JAX {versions['jax']}"


def readme_section() -> str:
    rows = read("quickstart.csv")
    first_starts = [row for row in rows if row["start"] != "cached"]
    cold = [row for row in rows if row["start"] == "cold"]
    seconds = [float(row["seconds"]) for row in cold]
    cached = [float(row["seconds"]) for row in rows if row["start"] == "cached"]
    env = cold[0]["env"]
    return f"""\
`reppo train`, the default task (`{env}`), on {hardware("quickstart.json")}.
"Solved" means {TAU} of the best mean return published for the task.

| | |
|---|---|
| seeds | {", ".join(row["seed"] for row in first_starts)} |
| final greedy return | {listed(returns(first_starts))} (published, after 50 million steps: {PUBLISHED[env]:.0f}) |
| solved | {solved(env, first_starts)} |
| seconds, compilation included | {min(seconds):.0f} to {max(seconds):.0f}; {min(cached):.0f} with a warm compilation cache |

A slower machine takes twice as long, and the speed of shared ones drifts ([more](docs/results.md#the-default-run)).
Decisions [0010](docs/decisions/0010-cpu-preset.md), [0017](docs/decisions/0017-average.md) and
[0019](docs/decisions/0019-cut-episodes.md) say how the preset was chosen, and what its dips are.

{beside_others()}

{beside_official()}

[docs/results.md](docs/results.md) has every seed, other tasks, the speed of each stage, and the commands.
"""


def beside_official() -> str:
    """What `benchmarks/official.py` comes to at the official code's own number of samples."""
    found = [row for row in read("official.csv") if row["samples"] == "64"]
    speed = {code: statistics.median(speeds_of(found, code, "64")) for code in OFFICIAL_CODES}
    peak = {code: peak_of(found, code, "64") / 1000 for code in OFFICIAL_CODES}
    return f"""\
Beside the official code's own script, in turns on one machine, an iteration with networks of its size and as many samples is
{speed["equal"] / speed["official"]:.1f} times as fast and takes {peak["equal"]:.1f} GB instead of {peak["official"]:.1f};
with the paper's networks, which are smaller, {speed["paper"] / speed["official"]:.1f} times
([more](docs/results.md#beside-the-official-code))."""


def beside_others() -> str:
    """What the time of `benchmarks/against.py` comes to, on the tasks where REPPO is not alone."""
    found = next((b for s in beside.in_equal_time(RESULTS) for b in s.blocks if isinstance(b, Table)), None)
    if found is None:
        return ""
    mean = {(row[0], row[1]): row[4] for row in found.rows}
    seconds = {row[0]: row[2] for row in found.rows if row[1] != "reppo"}
    names = {"reppo": "REPPO", "sb3-ppo": "PPO", "sb3-sac": "SAC", "sbx-ppo": "PPO of SBX", "sbx-sac": "SAC of SBX"}
    rows = [[f"`{task}`", seconds[task], *(mean.get((task, name), "-") for name in names)] for task in seconds]
    return f"""\
Beside Stable-Baselines3 and SBX with RL Zoo's settings, or those of the most similar robot where it has none, in equal time
on one core from a cold start, mean returns of five seeds. REPPO steps EnvPool's copy of a task, but for CartPole, and the
others Gymnasium's:

{table(["task", "seconds", *names.values()], rows)}
On Ant an untrained policy stands still, for 765 to 999, and all fall from there at first.
[More of it](docs/results.md#beside-stable-baselines3-in-equal-time). Beside Brax's PPO and SAC, and FastTD3, ten seeds each:
[the suite `laptop`](docs/results.md#the-suite-laptop)."""


INTRODUCTION = """\
# Results

<!-- Written by docs/generate_results.py from results/. Do not edit. -->

Our numbers come from a command below and from the file that it wrote under `results/`, beside which a JSON file names
versions, hardware and revision; `results/memory.csv` has none, the rows of `results/against.csv` and of the trials
beside it name their own, and decision 0010 those of `results/epochs_trials.csv`. Every
seed that was started is listed. No option was chosen on seeds 10 to 14; that three of the six seeds of a default run failed
on another machine is why the target entropy was changed, and it was chosen on other seeds
(`results/entropy_quickstart.csv`, [decision 0010](decisions/0010-cpu-preset.md#why-another-target-entropy)). Seed 0, which
a user's first run has, was looked at as well.
"""


def quickstart_section() -> str:
    return f"""\
## The default run

    python benchmarks/learning.py quickstart

One process per seed, from a cold start with an empty compilation cache; then the first seed again with the cache. Seconds
are wall time of the whole process, imports, compilation, evaluations and files included. Machines of this kind are shared,
and their speed drifts by a factor of two within a day: the processor seconds drift with it. Before episodes were cut
([decision 0019](decisions/0019-cut-episodes.md)) it took {before("quickstart_uncut")}
({solved_before("quickstart_uncut")}). With eight epochs instead of six, without cuts, it took
{before("quickstart_eight_epochs")} ({solved_before("quickstart_eight_epochs")}); in the hour of the table without cuts
seed 10 took 40 with them, read from the terminal. The preset before that, with 800,000 steps of four epochs, took
{before("quickstart_before_average")} in a fast hour, and 72 to 89 seconds in a slow one (`results/quickstart.csv` in
git at 18fa4f5: 858 to 875, six of six solved). Machine: {hardware("quickstart.json")}.

{quickstart()}"""


def before(name: str) -> str:
    """Seconds of the default run with an earlier preset."""
    rows = read(f"{name}.csv")
    cold = [float(row["seconds"]) for row in rows if row["start"] == "cold"]
    cached = min(float(row["seconds"]) for row in rows if row["start"] == "cached")
    processor = hardware(f"{name}.json").partition(",")[0]
    seconds = f"{min(cold):.0f} to {max(cold):.0f} seconds on an {processor}, and {cached:.0f} with the cache"
    return f"{seconds} (`results/{name}.csv`)"


def solved_before(name: str) -> str:
    cold = [row for row in read(f"{name}.csv") if row["start"] == "cold"]
    return f"{listed(returns(cold))}: {solved(cold[0]['env'], cold)} solved"


def tasks_section() -> str:
    return f"""\
## The cpu preset on several tasks

    python benchmarks/learning.py tasks

Five seeds at once in one process (`--seeds 5`), from a cold start; seconds are those of all five together, on one core.
Other programs used that core, too: the processor seconds tell more. "Published"
is the best mean final return of any method published for the task, at 50 million steps. Machine: {hardware("tasks.json")}.

{tasks()}
Before episodes were cut ([decision 0019](decisions/0019-cut-episodes.md)) the same seeds came to 482, 656, 694, 718 and
714 on ReacherEasy, to 1, 1, 17, 21 and 6 on PendulumSwingup, and to zero on BallInCup (`results/tasks.csv` in git at
26a0c31).
"""


def samples_section() -> str:
    return f"""\
## How many action samples should a target average?

    python benchmarks/learning.py samples

`--target-samples S` on the default task, five seeds at once in one process on one core, from a cold start, before the preset
cut episodes (`--cut-probability 0`). "Mean over the
run" is that of the ten evaluations and the five seeds. Solved is the default run's 788. Machine: {hardware("samples.json")}.

{samples()}
Two to four samples are solved first and cost 8 % more than one; more samples learn no more from a step, and 64 of them take
half as long again. So the preset's four stay. Over the run, the five rows are within what five seeds differ by.
"""


def throughput_section() -> str:
    cheetah = next(row for row in read("throughput.csv") if row["config"] == "cpu-cheetah")
    return f"""\
## Where the time goes

    python benchmarks/throughput.py --out results/throughput.csv

Environment steps per second of each stage; `update` contains the targets, and `iteration` is rollout and update together.
Two cores, {hardware("throughput.json").partition("cores, ")[2]}. "At" is the hour: the AMD's machine is shared, and was
slower by a third in the evening. Its rows are of an earlier revision, and their updates were compiled with XLA's defaults,
which is not how a run compiles them.

{throughput()}
We aimed at five times the official code at equal width, epochs and S, and reach 1.3 to 1.8 times with networks of its size,
1.8 to 2.6 with those of the paper ([beside it](#beside-the-official-code)). At width 512 the stages are matrix products and
little else: by hand count, an environment step costs about 44 MFLOP in the losses (4 epochs of critic and actor, forwards
and backwards) and 1.2 MFLOP for each sample of its target, so 121 MFLOP at S = 64 and 54 MFLOP at S = 8; with the
official code's networks about 1.4 times that. The AMD's two cores multiply matrices at about 175 GFLOP/s. Of that, at
S = 64 and equal sizes, ours uses nine tenths and the official code a half, so that no code could be much more than twice as
fast as the official one at equal work. Doing less is what is left, and what a smaller S does.

On CheetahRun with the `cpu` preset, the simulation takes {float(cheetah["rollout_share"]):.0%} of an iteration, as it
should, the greater part: [decision 0010](decisions/0010-cpu-preset.md#why-six-epochs).
"""


OFFICIAL_CODES = ("official", "equal", "paper")


def official_section() -> str:
    found, lines = read("official.csv"), []
    for samples in dict.fromkeys(row["samples"] for row in found):
        speeds = {code: speeds_of(found, code, samples) for code in OFFICIAL_CODES}
        middle = {code: statistics.median(values) for code, values in speeds.items()}
        cells = [", ".join(f"{speed:,}" for speed in values) for values in speeds.values()]
        ratios = [f"{middle[code] / middle['official']:.2f}" for code in ("equal", "paper")]
        lines.append([samples, *cells, *ratios, *(f"{peak_of(found, code, samples):,}" for code in ("official", "equal"))])
    header = [
        "samples", "official code", "ours, its sizes", "ours, the paper's", "ratio, its sizes", "ratio, the paper's",
        "peak MB, official", "peak MB, ours, its sizes",
    ]  # fmt: skip
    (revision,) = {row["official_revision"] for row in found}
    default = statistics.median(speeds_of(found, "paper", "4")) / statistics.median(speeds_of(found, "official", "64"))
    return f"""\
## Beside the official code

    python benchmarks/official.py --checkout official

The official code's own training script at `{revision[:7]}` and ours, in turns, on one machine: environment steps per second
of whole iterations, a process each. CartpoleBalance, 256 environments, 32 steps, 8 minibatches, 4 epochs, width 512. Its
actor and its critic's encoder have a layer more than the paper's, 1.93 million parameters in all against 1.40, so ours is
measured with networks of either size. "Samples" are the actions of a target. What is replaced around its script, so that it
runs with today's packages, is in [the benchmark](../benchmarks/official.py). Machine: {hardware("official.json")}.

{table(header, lines)}
Each at its own default, 64 samples and its networks, 4 and the paper's, this package makes {default:.1f} times as many steps
a second. On an Intel Xeon, with the paper's networks, it was 3.1, 2.4 and 2.5 times at 64, 8 and 4 samples
(`results/official.csv` in git at 26a0c31).
"""


def speeds_of(rows: list[Row], code: str, samples: str) -> list[int]:
    return [int(row["steps_per_s"]) for row in rows if (row["code"], row["samples"]) == (code, samples)]


def peak_of(rows: list[Row], code: str, samples: str) -> int:
    return max(int(row["peak_host_mb"]) for row in rows if (row["code"], row["samples"]) == (code, samples))


def compiling() -> str:
    lines = []
    for env, rows in by_env(read("compiling.csv")):
        found = {(row["program"], row["options"]): row for row in rows}
        for program in dict.fromkeys(row["program"] for row in rows):
            pair = [found[program, options] for options in ("xla", "reppo")]
            seconds = [f"{float(row['compile_cpu_seconds']):.1f}" for row in pair]
            lines.append([f"`{env}`", program, *seconds, *(row["run_ms"] or "-" for row in pair)])
        totals = [sum(float(row["compile_cpu_seconds"]) for row in rows if row["options"] == o) for o in ("xla", "reppo")]
        lines.append([f"`{env}`", "all", *(f"{total:.1f}" for total in totals), "", ""])
    return table(["task", "program", "compile, XLA's defaults", "compile", "run, XLA's defaults", "run"], lines)


def compiling_section() -> str:
    return f"""\
## Compiling

    python benchmarks/compiling.py

What the options of `reppo.compiling` are worth with the `cpu` preset: processor seconds to compile, milliseconds to run
once, the two in turns. Another program used the machine's other core.
Machine: {hardware("compiling.json")}. [Decision 0016](decisions/0016-compiling.md) has the reasons.

{compiling()}"""


def startup_section() -> str:
    rows = read("startup.csv")
    lines = []
    for torch in dict.fromkeys(row["torch_installed"] for row in rows):
        for kind, words in (("all", "what the libraries ask for"), ("reppo", "what a run does")):
            found = [row for row in rows if row["torch_installed"] == torch and row["kind"] == kind]
            seconds, peak = ([float(row[column]) for row in found] for column in ("seconds", "peak_mb"))
            spread = f"{statistics.median(seconds):.1f} ({min(seconds):.1f}, {max(seconds):.1f})"
            lines.append([words, "yes" if torch == "True" else "no", spread, f"{statistics.median(peak):.0f}"])
    runs = len(rows) // len(lines)
    return f"""\
## Starting

    python benchmarks/startup.py

From the start of a process until the default task is made, before anything is compiled: importing what MuJoCo's and
TensorBoard's libraries ask for, PyTorch and Warp, or doing without what a run on a CPU does not use. Medians of {runs}
processes (least, most), the two kinds in turns, with another program on the other core. Machine: {hardware("startup.json")}.

{table(["imports", "PyTorch installed", "seconds", "peak MB"], lines)}"""


def memory_section() -> str:
    rows = [[f"`{row['command']}`", row["peak_memory_mb"]] for row in read("memory.csv")]
    return f"""\
## Memory of the paper's configuration

Peak memory of the whole process on a CPU, one iteration with its evaluations. The official code needs 8 GB at a sixteenth
of this batch, with its 64 action samples ([beside it](#beside-the-official-code)).

{table(["command", "peak MB"], rows)}"""


def reached(suite: str, timed: range) -> str:
    """When the runs of a suite of one task first reach `TAU` of the best published return, and how they end; seconds are
    those of the seeds ``timed``."""
    found = [record for record in records.read_all(RESULTS).records if record.key.suite == suite]
    goal = TAU * PUBLISHED[found[0].key.env]
    rows = []
    for algorithm in suites.SUITES[suite].algorithms:
        own = [record for record in found if record.key.algorithm == algorithm]
        first = [(r, r.curve[r.returns >= goal][0]) for r in own if (r.returns >= goal).any()]
        seconds = [at[1] for record, at in first if record.key.seed in timed]
        whole = [record.seconds for record in own if record.key.seed in timed]
        cells = [
            f"{own[0].steps[-1]:,.0f}",
            f"{statistics.median(whole):.0f}",
            f"{len(first)} of {len(own)}",
            f"{statistics.median(at[0] for _, at in first):,.0f}" if first else "-",
            f"{statistics.median(seconds):.0f}" if seconds else "-",
            f"{statistics.mean(r.returns[-1] for r in own):.0f}",
            f"{statistics.median(r.returns[-1] for r in own):.0f}",
            f"{min(r.returns[-1] for r in own):.0f}, {max(r.returns[-1] for r in own):.0f}",
        ]
        rows.append([f"`{algorithm}`", *cells])
    header = [
        "algorithm",
        "steps",
        "seconds",
        "reach 0.9",
        "at step",
        "at second",
        "final return, mean",
        "median",
        "from, to",
    ]
    return table(header, rows)


def sac_ahead() -> str:
    """The chance that a run of Brax's SAC ends above one of REPPO after as many steps, with its bootstrap interval."""
    runs = [record for record in records.read_all(RESULTS).records if record.key.suite == "laptop"]
    finals = [np.array([r.returns[-1] for r in runs if r.key.algorithm == name]) for name in ("sac", suites.REPPO)]
    found = probability_of_improvement([finals[0]], [finals[1]])
    return f"{found.estimate:.2f} ({found.low:.2f} to {found.high:.2f})"


def laptop_section() -> str:
    return f"""\
## The suite `laptop`

    reppo bench laptop --at-once 2

CartpoleSwingup, 200,000 steps for all, ten seeds, each in a process of its own, two at a time on two cores, with programs in
the compilation cache but for the first of a kind; `reppo-averaged` was run after the others, on one core. REPPO's preset was
tuned on this task with other seeds, though these were looked at, and no baseline was tuned to this number of steps.
"Seconds" are of the whole process, the median; "reach 0.9" are the runs that have 0.9 of the best published mean at an
evaluation, the step and the second of that medians over those runs. [The report](../results/report/report.md) has
intervals, curves against steps and seconds, and every run. On two Intel Xeon cores, on which other programs ran at times in
the first quarter of an hour.

{reached("laptop", range(10, 20))}
`reppo` is the newest policy, as the paper evaluates it, and `reppo-averaged` the average that the preset deploys, which lags
behind while a run is half way. By the step Brax's SAC is ahead in the mean, though within chance: a run of it beats one of
`reppo` with a probability of {sac_ahead()}. It takes eight times as long; in that time REPPO has made the
400,000 steps of its preset several times over, and is at 844 to 863 after them ([the default run](#the-default-run)).
Brax's PPO ends at 153 to 226 and FastTD3 at 76 to 518. Their published settings are for tens of millions of steps.
FastTD3 replays every step 64 times, as published; its runs are a later hour's, beside tests on the other core.
The gradient estimators cannot be told apart after 200,000 steps: the paper's order does not show.
"""


def balance_section() -> str:
    return f"""\
### The suite `balance`

    reppo bench balance

CartpoleBalance, ten seeds, each in a process of its own on one core, with the preset as it was at first: four epochs, a KL
bound of 0.03, the paper's target entropy, no cuts. The baselines make a quarter of the steps. Seconds are those of seeds 2
to 9, which had one Intel Xeon core, with most programs in the compilation cache. Seeds 0 and 1 were run on another machine,
an AMD EPYC, the baselines' on half of a core: their seconds, which the report's curves have as well, are not comparable.

{reached("balance", range(2, 10))}
By the clock, REPPO reaches 0.9 before the baselines, and with every seed; by the step, the baselines that reach it are
sooner there. There are ten evaluations in a run, so a step is known to within a tenth of it. One seed of REPPO, 9, ends in a
dip, at 581 after 1000 before; `best.npz` keeps the policy from before. The score-function gradients do not fall
behind the pathwise one here; their order is within chance. With the preset's own target entropy, which explores more, every
seed of REPPO is above 990 after half of the steps ([decision
0010](decisions/0010-cpu-preset.md#why-another-target-entropy)).
"""


def over_the_run(suite: str) -> str:
    """A suite's algorithms beside REPPO, on each task: returns over the run and at its end."""
    chosen, rows = suites.SUITES[suite], []
    found = [record for record in records.read_all(RESULTS).records if record.key.suite == suite]
    for env in chosen.tasks:
        runs = {name: [record for record in found if record.key[1:3] == (name, env)] for name in chosen.algorithms}
        # A seed's mean over its evaluations, that of the untrained policy left out.
        means = {name: np.array([record.returns[1:].mean() for record in own]) for name, own in runs.items()}
        for name, own in runs.items():
            finals = [record.returns[-1] for record in own]
            mean = bootstrap([means[name]], averages)
            better = probability_of_improvement([means[name]], [means[suites.REPPO]])
            rows.append(
                [
                    *([f"`{env}`" if name == suites.REPPO else ""] if len(chosen.tasks) > 1 else []),
                    f"`{name}`",
                    *([] if len(chosen.tasks) > 1 else [suites.ALGORITHMS[name].about.replace("|", "\\|")]),
                    f"{mean.estimate:.0f} ({mean.low:.0f} to {mean.high:.0f})",
                    "" if name == suites.REPPO else f"{better.estimate:.2f} ({better.low:.2f} to {better.high:.2f})",
                    f"{statistics.mean(finals):.0f}",
                    f"{statistics.median(finals):.0f}",
                    f"{min(finals):.0f}",
                ]
            )
    what = ["task", "algorithm"] if len(chosen.tasks) > 1 else ["algorithm", "what differs"]
    return table([*what, "over the run", "beats `reppo`", "at the end, mean", "median", "least"], rows)


OVER_THE_RUN = """"Over the run" is the mean over the ten evaluations and the seeds, which says how fast it learned.
"Beats `reppo`" is the chance that a seed has a greater mean over its run than a seed of `reppo`. Brackets are bootstrap
intervals of 95 % over the seeds."""


def estimators_section() -> str:
    return f"""\
## The suites `estimators` and `locomotion`

    reppo bench estimators
    reppo bench locomotion

The paper's gradient estimators with the `cpu` preset, 401,408 steps, the seeds of an algorithm in one process: on two tasks
of one action with seeds 10 to 19, and on two of six actions with seeds 10 to 14, which EnvPool simulates. No average of
weights (`--actor-average 0`). {OVER_THE_RUN} On one Intel Xeon core, with tests on the other.

{over_the_run("estimators")}
{over_the_run("locomotion")}
On the tasks of one action the three are alike, but for single seeds that are late: of the pathwise gradient none. On
CheetahRun the last of the paper's order is last: `score_gae` is far behind the other two, which use the learned Q. Four of
its five seeds had learned to run, at 316 to 521, and then lost it: as their entropy fell below its target, the temperature
rose, to 2.6, 3.7, 41 and 1080, where those of the other estimators stay below 0.05 after 100,000 steps, and entropy was
worth more than reward (`actor/alpha` in `metrics.csv` of the runs, which the command leaves under `runs/bench`). Its
gradient feels the temperature only through sampled advantages. Pathwise and `score_q` are alike on both; `score_q` takes up
to twice the time, for 16 samples of the critic at every state.
"""


def parts_section() -> str:
    return f"""\
## The suite `parts`

    reppo bench parts --at-once 2

Every part of REPPO taken out in turn: CartpoleSwingup with the `cpu` preset before it had more epochs, 401,408 steps, seeds
0 to 9 of an algorithm in one process. {OVER_THE_RUN} No average of weights (`--actor-average 0`), revision c96931a.

{over_the_run("parts")}
On this small task, with one action and a reward between 0 and 1, most parts make no difference that ten seeds can tell.
Two do. A quarter of the data per update is worse. Squared error learns faster than HL-Gauss, and each of its seeds is
above 790 at the end; in the paper HL-Gauss matters most of the parts other than the KL constraint, on harder tasks and
over 125 times the steps. At the edge of what ten seeds tell, a temperature that stays at 0.1 learns faster than one that
adapts, which at first falls, because the policy begins with more entropy than its target. Without the KL constraint it
learns as fast; its mean at the end is lower, within chance. There are fifteen comparisons: one beyond chance is to be
expected of them by chance. The order of the paper, pathwise above `score_q` above `score_gae`, shows in the final means
alone, and not beyond chance. What the parts are worth on the paper's tasks, `reppo bench ablations` would tell, on a GPU.
"""


def differences() -> str:
    """Every difference taken back in turn: returns over the run and at its end."""
    lines = []
    for env, rows in by_env(read("differences.csv")):

        def seeds(variant: str, rows: list[Row] = rows) -> list[list[float]]:
            """Every seed's returns, but for that of the untrained policy."""
            found: dict[str, list[float]] = {}
            for row in rows:
                if row["variant"] == variant and row["env_steps"] != "0":
                    found.setdefault(row["seed"], []).append(float(row["return"]))
            return list(found.values())

        over_the_run = {variant: np.array([statistics.mean(seed) for seed in seeds(variant)]) for variant in VARIANTS}
        for variant, about in VARIANTS.items():
            finals = [seed[-1] for seed in seeds(variant)]
            if not finals:
                continue
            mean = bootstrap([over_the_run[variant]], averages)
            better = probability_of_improvement([over_the_run[variant]], [over_the_run["ours"]])
            lines.append(
                [
                    f"`{env}`" if variant == "ours" else "",
                    about,
                    f"{mean.estimate:.0f} ({mean.low:.0f} to {mean.high:.0f})",
                    "" if variant == "ours" else f"{better.estimate:.2f} ({better.low:.2f} to {better.high:.2f})",
                    f"{statistics.mean(finals):.0f}",
                    f"{min(finals):.0f}",
                ]
            )
    return table(["task", "what differs", "over the run", "beats ours", "at the end, mean", "least"], lines)


#: Of `benchmarks/differences.py`, in words.
VARIANTS = {
    "ours": "nothing",
    "end-at-truncation": "a time limit counts as a termination",
    "lost-successor": "the successor at a time limit is the next episode's first observation",
    "truncated-rows-masked": "truncated rows do not train the critic",
    "bonus-at-every-end": "the successor's entropy is paid after a termination, too",
    "one-target-sample": "one sample in a target instead of 4",
    "clipped-densities": "every density at the action clipped to 0.999, in the actor's loss, too",
    "least-std-0.1": "a floor of 0.1 under the standard deviation",
    "one-key-an-epoch": "the same noise in every minibatch of an epoch",
    "no-normaliser": "observations are not normalised",
    "one-scale": "one mean and variance for all dimensions",
    "epsilon-0.01": "1e-2 added to the variance instead of 1e-5",
    "first-states-once": "first states drawn once per run",
}


def differences_section() -> str:
    return f"""\
## The differences from the official code

    python benchmarks/differences.py

What [differences.md](differences.md) lists, taken back in turn, as far as a small function or an option does it, and two
things that nobody proposes, for scale: every time limit as an end, and no normaliser. That is the `cpu`
preset before it cut episodes, seeds 740 to 749 of a variant at once. "Over the run" is the mean over the ten
evaluations and the ten seeds, with a bootstrap interval of 95 % over the seeds. "Beats ours" is the chance that a seed
has a greater mean over its run than one of ours. Machine: {hardware("differences.json")}.

{differences()}
On Pendulum, whose episodes are cut every 200 steps, ten seeds tell hardly any of these from ours. The row of the entropy
after a termination is there for scale: Pendulum never terminates, so that it differs by rounding alone. To take a time
limit for an end, or one variance for all dimensions, costs the most while it learns, and the policies are as good in the
end. Densities of clipped actions left one of ten seeds at -1000; that variant clips in the actor's loss too, which the
official code does not. The benchmark's other three tasks have not been run.
"""


def uncut_at_a_third(task: str) -> str:
    """REPPO's mean after a third of the time, before its preset cut episodes."""
    rows = [row for row in read("cut_against.csv") if row["task"] == task and "--cut-probability 0" in row["command"]]
    ((_, _, _, third, *_),) = beside.compared(task, rows)[1]
    return third


def measured_again() -> str:
    """The tasks of `results/against_again.csv`, all algorithms in turns; all cells but those of a whole run."""
    rows = read("against_again.csv")
    tasks = dict.fromkeys(row["task"] for row in rows)
    lines = [line for task in tasks for line in beside.compared(task, [row for row in rows if row["task"] == task])[1]]
    header = ["task", "algorithm", "seconds", "mean at a third", "mean at the end", "every seed, at the end"]
    return table(header, [[f"`{line[0]}`", *line[1:6]] for line in lines])


def against_section() -> str:
    """The table of the report's section; its figures are files of the report."""
    (section,) = beside.in_equal_time(RESULTS)
    (found,) = (block for block in section.blocks if isinstance(block, Table))
    rows = [[f"`{task}`", *cells] for task, *cells in found.rows]
    figures = [f"![{b.title}](../results/report/figures/{b.id}.svg)" for b in section.blocks if isinstance(b, Figure)]
    return f"""\
## Beside Stable-Baselines3, in equal time

    python benchmarks/against.py --cores 0 1

Every run in a process of its own on one core, two at a time, from a cold start: imports, compilation and evaluations
count. REPPO has its `cpu` preset, and EnvPool's copy of a task where there is one. Stable-Baselines3, and SBX, which is
the same in JAX, have the settings that RL Baselines3 Zoo publishes for the task, of MuJoCo's those for Gymnasium's older
release, on their own vectors of Gymnasium's environments. The Zoo has none for the two tasks that come from DeepMind
Control, where they have those of HalfCheetah and Walker2d (`pip install "shimmy[dm-control]"`), nor for gymnax's
Breakout-MinAtar, where REPPO is alone. Returns are
means over ten greedy episodes; seeds 10 to 14. "At a third" is what a run had after a third of the time; where it had not
been evaluated since, that is its untrained policy. "Of the run" is the mean after all of an algorithm's steps, where every
run made them: REPPO's are 401,408, which it has made long before the time is up but on Ant and WalkerWalk, where it takes
197 to 212 and 121 to 134 seconds; on Breakout they are 800,768, in 274 to 468 seconds. Machine:
{hardware("against.json")}. CheetahRun and WalkerWalk ran later than the others, one at a time, with tests on the
other core.

REPPO's runs of Pendulum, CartPole, HalfCheetah and Ant were made later than the others', on a processor of the same kind
in an hour when REPPO took 1.3 to 1.6 times as long for the same steps, and with other programs on the other core. That is
to its disadvantage: with the preset before it cut episodes, in the others' hour, it had after a third of the time
{uncut_at_a_third("Pendulum-v1")} on Pendulum and {uncut_at_a_third("HalfCheetah-v5")} on HalfCheetah
(`results/cut_against.csv` has those runs, and [decision 0019](decisions/0019-cut-episodes.md) what the cuts are worth by the
step).

{table(found.header, rows)}
We aim at the return that the best of the others has at the end, in a third of the time. On HalfCheetah REPPO has more than
that by then in the mean, on CheetahRun three times as much, and on WalkerWalk, where the others have learned nothing yet, as
much; on CartPole it is at 493 by then; on
Pendulum, in the slow hour, it is not there. On Ant four of REPPO's five seeds come above the untrained policy within the
time, and no run of the others: it stands still, for about 990, that of SBX's SAC for 765 to 905, and all fall from there
when they begin to learn. REPPO falls first and climbs again; after all of its steps every seed is far above. The Zoo has SAC
collect 10,000 steps on HalfCheetah and Ant before it learns. SBX makes about as many steps as Stable-Baselines3 in that
time, with one environment and small networks.

On HalfCheetah runs without cuts learned less from their 401,408 steps than with eight epochs
([decision 0010](decisions/0010-cpu-preset.md#why-six-epochs)): `--num-epochs 8` is worth its time on tasks of many
actions. On CheetahRun and WalkerWalk that was so, too.

At times tests used the processors as well. One such time fell on Pendulum's seed 14; that seed's runs without cuts and those
of the others were made again afterwards, and only these are in the tables. On Ant one seed of REPPO, 14, is at 32 after
the two minutes.

Three of the tasks once more, seed by seed and all algorithms in turns on one core, while up to fifteen other programs had
the other one (`results/against_again.csv`). They slow down whoever's turn it is: REPPO's 401,408 steps took 34 to 68 seconds
on Pendulum, and 206 to 416 on Ant. At the end of the time it is ahead of the others on all three, as before.

{measured_again()}
On a slower machine, an AMD EPYC, with the preset of 4 epochs and a KL bound of 0.03, REPPO was at 4723 on HalfCheetah after
120 seconds, Stable-Baselines3's PPO at 428, and on Ant REPPO was the worst of the five with 88 (`results/against.csv` in git
at 84c0ae7). Breakout-MinAtar was run earlier, beside other programs, with that preset and without the average of weights.

{chr(10).join(figures)}
"""


#: Each is on the page once its file is there.
SECTIONS = {
    "quickstart.csv": quickstart_section,
    "tasks.csv": tasks_section,
    "samples.csv": samples_section,
    "throughput.csv": throughput_section,
    "official.csv": official_section,
    "startup.csv": startup_section,
    "compiling.csv": compiling_section,
    "memory.csv": memory_section,
    "against.csv": against_section,
    "bench/laptop": laptop_section,
    "bench/balance": balance_section,
    "bench/locomotion": estimators_section,
    "bench/parts": parts_section,
    "differences.csv": differences_section,
}


def results_page() -> str:
    sections = [section() for name, section in SECTIONS.items() if (RESULTS / name).exists()]
    return "\n".join([INTRODUCTION, *sections])


def write(path: Path, text: str) -> None:
    path.write_text(text)
    print(f"wrote {path.relative_to(ROOT)}")


def readme() -> str:
    """README.md with its results section renewed."""
    text = (ROOT / "README.md").read_text()
    before, after = text[: text.index(BEGIN) + len(BEGIN)], text[text.index(END) :]
    return before + "\n" + readme_section() + "\n" + after


if __name__ == "__main__":
    write(ROOT / "README.md", readme())
    write(ROOT / "docs" / "results.md", results_page())
