"""What a run looks like in the terminal: a live panel, or plain lines where stdout is no terminal.

The panel is drawn by a thread of its own, a few times a second, from what `Telemetry` has remembered: an event costs the
training loop no more than an assignment.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import os
import shlex
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.status import Status
from rich.text import Text

from reppo import run_directory
from reppo.algorithms import ALGORITHMS
from reppo.config import PRESETS
from reppo.plot import Curve, read_rows, short, spread, text_chart
from reppo.provenance import computer
from reppo.sinks import Event, Rows, best_evaluation

FRAMES_PER_SECOND = 4
MAX_WIDTH = 100  #: of the panel: a longer line is hard to read
TWO_COLUMNS = 80  #: terminal width from which the numbers stand in two columns
CHART_ROWS = (3, 9)  #: fewest and most rows of the learning curve; where there are fewer it is left out
CHART_WIDTH = 32  #: terminal width below which the learning curve is left out
WARNINGS = 3  #: how many of the latest warnings stay in sight

ACCENT, LABEL, ALERT = "cyan", "dim", "yellow"  # of the terminal's own palette, so that they suit light and dark alike


class Glyphs(NamedTuple):
    """The characters of a panel, for terminals that show Unicode and for those that do not."""

    plus_minus: str
    done: str
    to_do: str
    spinner: str
    alert: str


UNICODE = Glyphs("±", "━", "─", "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏", "▲")
ASCII = Glyphs("+/-", "=", "-", "-\\|/", "!")


def glyphs_for(console: Console) -> Glyphs:
    """Those that its encoding has."""
    return UNICODE if console.encoding.startswith("utf") else ASCII


# ------------------------------------------------------------------------------------------- numbers as text


def number(x: float, like: float | None = None) -> str:
    """A number as people read it: 1,234.5, 56.78, 0.912. Its decimals are those that suit ``like``, unset ``x``."""
    size = abs(x if like is None else like)
    if not math.isfinite(x) or size >= 1e7 or 0 < size < 1e-3:
        return f"{x:.4g}"
    return f"{x:,.{1 if size >= 100 or size == 0 else 2 if size >= 1 else 3}f}"


def small(x: float) -> str:
    """A quantity near one, its point always in the same place: 0.0723."""
    return f"{x:.4f}" if x == 0 or 1e-4 <= abs(x) < 1e3 else f"{x:.3g}"


def clock(seconds: float) -> str:
    """Seconds as 0:27 or 1:02:33."""
    minutes, seconds = divmod(round(max(seconds, 0.0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def return_text(rows: Rows, glyphs: Glyphs) -> str:
    """An evaluation: mean and standard deviation over the episodes of one seed, mean and range over several seeds."""
    _, mean, low, high = spread(rows)
    if len(rows) > 1:
        return f"{number(mean)} ({number(low, mean)} to {number(high, mean)})"
    return f"{number(mean)} {glyphs.plus_minus} {number(rows[0]['eval/return_std'], mean)}"


def option(name: str, value: Any) -> str:
    """A field of `reppo.Config` as it is written on the command line."""
    flag = name.strip("_").replace("_", "-")
    if isinstance(value, bool):
        return f"--{flag}" if value else f"--no-{flag}"
    words = value if isinstance(value, list | tuple) else [value]
    return " ".join([f"--{flag}", *(shlex.quote(str(word)) for word in words)])


def nearest_preset(config: dict[str, Any]) -> tuple[str, list[str]]:
    """The preset that a configuration is closest to, and the options that make the difference."""

    def differences(name: str) -> list[str]:
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in config.items() if hasattr(PRESETS[name], k)}
        return [option(k, v) for k, v in values.items() if v != getattr(PRESETS[name], k)]

    return min(((name, differences(name)) for name in PRESETS), key=lambda entry: len(entry[1]))


def shown(path: Path) -> str:
    """A path as short as it can be typed from here."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


# ------------------------------------------------------------------------------------------- what is known


class Telemetry:
    """What the displays remember of a run. ``now`` is the clock, in seconds."""

    def __init__(self, directory: Path | None, started: float | None = None, now: Callable[[], float] = time.perf_counter):
        self.directory, self.now = directory, now
        self.status = ""
        self.warnings: list[str] = []
        self.evaluations: list[Rows] = []  #: the rows of every evaluation, one row per seed
        self.metrics: dict[str, float] = {}  #: the latest metrics, averaged over seeds
        self.steps = 0.0
        self.algorithm = "reppo"
        self.env, self.seeds, self.config, self.spec, self.hardware = "", [], {}, {}, {}
        self._started = now() if started is None else started
        self._speeds: deque[float] = deque(maxlen=20)
        self._first: tuple[float, float] | None = None  # time and steps when the first iteration was over
        self._finish_at = math.nan

    def begin(self, description: dict[str, Any]) -> None:
        self.algorithm = str(description.get("algorithm", "reppo"))
        self.env, self.seeds = str(description["env"]), list(description["seeds"])
        self.config, self.spec = description["config"], description["spec"]
        self.hardware = description.get("hardware", {})

    def recall(self) -> None:
        """Take up what a run that is resumed has reached."""
        if self.directory is not None and (table := self.directory / "evaluations.csv").exists():
            for rows in iterations(read_rows(table)):
                self.write(Event("evaluations", rows))

    def write(self, event: Event) -> None:
        if event.kind == "status":
            self.status = event.text
        elif event.kind == "warning":
            self.warnings.append(event.text)
        elif event.rows:
            self.steps = max(self.steps, event.rows[0]["env_steps"])
            self._started = self.now() - event.rows[0].get("time/seconds", self.elapsed)
            if event.kind == "evaluations":
                self.evaluations.append(event.rows)
            else:
                self._measure(event.rows)

    def _measure(self, rows: Rows) -> None:
        self.status = "training"
        self.metrics = {name: finite_mean([row[name] for row in rows]) for name in rows[0]}
        now = self.now()
        if self._first is None:  # most of this iteration's time was compilation
            self._first = now, self.steps
            return
        self._speeds.append(self.metrics.get("time/steps_per_second", math.nan))
        seconds, steps = now - self._first[0], self.steps - self._first[1]
        self._finish_at = now + seconds * (self.total - self.steps) / max(steps, 1.0)

    @property
    def total(self) -> float:
        """Environment steps of the whole run, per seed: ``total_steps`` in whole iterations."""
        batch = self.config.get("num_envs", 1) * self.config.get("num_steps", 1)
        return float(-(-self.config.get("total_steps", 0) // batch) * batch)

    @property
    def best_possible(self) -> float | None:
        return self.spec.get("max_return")

    @property
    def elapsed(self) -> float:
        """Seconds of the run, those of earlier processes included."""
        return self.now() - self._started

    @property
    def left(self) -> float:
        """Seconds to the end at the pace so far, compilation apart; NaN while that is not known."""
        return max(self._finish_at - self.now(), 0.0) if self.steps < self.total else math.nan

    @property
    def speed(self) -> float:
        """Environment steps per second of all seeds together, over the latest iterations."""
        return finite_mean(list(self._speeds))

    @property
    def finished(self) -> bool:
        """Whether the evaluation at the end of the run is in."""
        return bool(self.evaluations) and self.evaluations[-1][0]["env_steps"] >= self.total > 0


def finite_mean(values: Sequence[float]) -> float:
    finite = [x for x in values if math.isfinite(x)]
    return sum(finite) / len(finite) if finite else math.nan


def iterations(rows: Rows) -> list[Rows]:
    """The rows of a table, those of one iteration together."""
    return [list(group) for _, group in itertools.groupby(rows, key=lambda row: row["iteration"])]


# ------------------------------------------------------------------------------------------- parts of the panel


class Cell(NamedTuple):
    label: str
    value: str
    note: str = ""

    def text(self, label_width: int, value_width: int = 0) -> Text:
        text = Text(f"{self.label:{label_width}}", style=LABEL)
        text.append(f"{self.value:>{value_width}}", style="not dim")
        return text.append(f" {self.note}") if self.note else text


def header(telemetry: Telemetry) -> Iterator[Text]:
    """What is trained, how, on what, and where its files go."""
    entries = [
        Cell("seeds" if len(telemetry.seeds) > 1 else "seed", ", ".join(map(str, telemetry.seeds))),
        Cell("device", computer(telemetry.hardware)),
        Cell("files", "none" if telemetry.directory is None else shown(telemetry.directory)),
    ]
    if telemetry.algorithm == "reppo":
        name, changes = nearest_preset(telemetry.config)
        entries.insert(0, Cell("preset", " ".join([name, *changes])))
    seen = {who: telemetry.spec.get(f"{who}_keys") for who in ("actor", "critic")}
    entries += [Cell(who, f"sees {', '.join(keys)}") for who, keys in seen.items() if keys]
    title = ALGORITHMS[telemetry.algorithm].title
    yield Text(f"{title} ", style=f"bold {ACCENT}").append(telemetry.env, style="bold default")
    for entry in entries:
        yield Text("  ") + entry.text(10)


def progress(telemetry: Telemetry, width: int, glyphs: Glyphs) -> Text:
    """The bar, the share that is done, and the time that is left."""
    share = min(telemetry.steps / telemetry.total, 1.0) if telemetry.total else 0.0
    words = f"{math.floor(100 * share):3d} %" + (f"   {clock(telemetry.left)} left" if math.isfinite(telemetry.left) else "")
    length = max(width - len(words) - 5, 0)
    done = round(share * length)
    text = Text("  ").append(glyphs.done * done, style=ACCENT).append(glyphs.to_do * (length - done), style=LABEL)
    return text.append(f" {words}")


def outcome(telemetry: Telemetry, glyphs: Glyphs) -> list[Cell]:
    """Where the run is and what it has reached."""
    cells = [Cell("steps", f"{telemetry.steps:,.0f}", f"of {telemetry.total:,.0f}")]
    if telemetry.evaluations:
        best = telemetry.best_possible
        note = "" if best is None else f"of {short(best)}"
        cells.append(Cell("return", return_text(telemetry.evaluations[-1], glyphs), note))
    if math.isfinite(telemetry.speed):
        cells.append(Cell("speed", f"{telemetry.speed:,.0f}", "steps/s"))
    return [*cells, Cell("elapsed", clock(telemetry.elapsed))]


def health(telemetry: Telemetry) -> list[Cell]:
    """What shows whether learning is well, with the value that each is held to."""
    config, metrics = telemetry.config, telemetry.metrics
    target = telemetry.spec.get("target_entropy", math.nan)
    cells = [
        ("KL", "actor/kl", f"bound {config.get('kl_bound', math.nan):.3g}"),
        ("entropy", "actor/entropy", f"target {target:.3g}"),
        ("alpha", "actor/alpha", ""),
        ("beta", "actor/beta", ""),
        ("critic error", "critic/error", ""),
    ]
    return [Cell(label, small(metrics[name]), note) for label, name, note in cells if name in metrics]


def numbers(telemetry: Telemetry, width: int, glyphs: Glyphs) -> list[Text]:
    """The numbers, in two columns where there is room."""
    left, right = outcome(telemetry, glyphs), health(telemetry)
    if width < TWO_COLUMNS:
        return [Text("  ") + cell.text(14) for cell in left + right]
    lines = []
    for a, b in itertools.zip_longest(left, right):
        line = Text("  ") + (a.text(10) if a else Text())
        line.pad_right(max(45 - line.cell_len, 2))
        lines.append(line + (b.text(13, 8) if b else Text()))
    return lines


def summary(telemetry: Telemetry, glyphs: Glyphs) -> Iterator[Text]:
    """How the run ended, where its files are, and what to type next."""
    words = f"Trained {telemetry.env} for {telemetry.steps:,.0f} steps in {clock(telemetry.elapsed)}"
    yield Text(words, style="bold")
    yield Text()
    entries: list[Cell] = []
    if telemetry.evaluations:
        rows = telemetry.evaluations[-1]
        over = f"mean of {len(rows)} seeds" if len(rows) > 1 else f"over {rows[0]['eval/episodes']:.0f} greedy episodes"
        most = "" if telemetry.best_possible is None else f", at most {short(telemetry.best_possible)}"
        entries.append(Cell("return", return_text(rows, glyphs), f" {over}{most}"))
        entries += [Cell(f"seed {row['seed']:.0f}", return_text([row], glyphs)) for row in rows if len(rows) > 1]
        trained = [row for event in telemetry.evaluations for row in event if row["iteration"] > 0]
        best = best_evaluation(trained, int(rows[0]["seed"])) if len(rows) == 1 and trained else rows[0]
        if best["iteration"] != rows[0]["iteration"]:
            entries.append(Cell("best", return_text([best], glyphs), f" at {best['env_steps']:,.0f} steps"))
    for entry in [*entries, *files(telemetry.directory)]:
        yield Text("  ") + entry.text(10)
    if telemetry.directory is not None and any(telemetry.directory.glob("policy*.npz")):
        yield Text()
        yield Text("Next: ").append(f"reppo eval {shlex.quote(shown(telemetry.directory))}", style=f"bold {ACCENT}")


def files(directory: Path | None) -> Iterator[Cell]:
    """The files that a user will want first, of those that are there."""
    names = {"curve": "curve.png", "policy": "policy.npz", "policies": "policy_seed*.npz"}
    names |= {"its best": "best.npz", "the best": "best_seed*.npz", "metrics": "metrics.csv"}
    for label, pattern in names.items():
        if directory is not None and any(directory.glob(pattern)):
            yield Cell(label, shown(directory / pattern))


# ------------------------------------------------------------------------------------------- the displays


class PlainDisplay:
    """Header, a line per evaluation and a summary, for logs and pipes. A `reppo.sinks.Sink`."""

    def __init__(self, console: Console, telemetry: Telemetry):
        self.console, self.telemetry = console, telemetry
        self.glyphs = glyphs_for(console)

    def prepare(self, text: str) -> None:
        """Say what takes time before the run begins; a log has no need of it."""

    def begin(self, description: dict[str, Any]) -> None:
        self.telemetry.begin(description)
        self.telemetry.recall()
        for line in header(self.telemetry):
            self._say(line)

    def write(self, event: Event) -> None:
        """Safe to call from any thread, as a signal handler's may."""
        self.telemetry.write(event)
        if event.kind in ("status", "warning"):
            self._say(Text(f"{clock(self.telemetry.elapsed):>8}  {'warning: ' * (event.kind == 'warning')}{event.text}"))
        if event.kind == "evaluations" and event.rows:
            self._say(self._evaluated(event.rows))

    def _evaluated(self, rows: Rows) -> Text:
        telemetry = self.telemetry
        width = len(f"{telemetry.total:,.0f}")
        words = [f"{clock(telemetry.elapsed):>8}", f"{rows[0]['env_steps']:>{width},.0f} steps"]
        words += [f"return {return_text(rows, self.glyphs)}"]
        words += [f"{telemetry.speed:,.0f} steps/s"] if math.isfinite(telemetry.speed) else []
        words += [f"KL {small(telemetry.metrics['actor/kl'])}"] if "actor/kl" in telemetry.metrics else []
        return Text("  ".join(words))

    def _say(self, line: Text) -> None:
        self.console.print(line, soft_wrap=True)  # never cut or broken: a path in it can be copied

    def close(self) -> None:
        pass

    def summarise(self) -> None:
        """Print how the run ended; to be called once it has ended well."""
        self._say(Text())
        for line in [*self._repeated(), *summary(self.telemetry, self.glyphs)]:
            self._say(line)

    def _repeated(self) -> list[Text]:
        """The warnings once more, because those of a log's middle are missed at its end."""
        told = [Text(f"warning: {warning}") for warning in dict.fromkeys(self.telemetry.warnings)]
        return [*told, Text()] if told else []


class Listened(Console):
    """A console that says nothing more once nobody reads it, as after ``reppo train | head``; the run goes on."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        with contextlib.suppress(OSError, ValueError):  # what is left in its buffer would break again at the end
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


class LiveDisplay(PlainDisplay):
    """A panel that is drawn over itself."""

    def __init__(self, console: Console, telemetry: Telemetry):
        super().__init__(console, telemetry)
        self._live: Live | Status | None = None
        self._over = False
        self._chart: tuple[tuple[int, ...], list[Text]] = (), []

    def prepare(self, text: str) -> None:
        self._start(self.console.status(text))

    def begin(self, description: dict[str, Any]) -> None:
        self._stop()
        super().begin(description)
        self._start(Live(self, console=self.console, refresh_per_second=FRAMES_PER_SECOND))

    def write(self, event: Event) -> None:
        self.telemetry.write(event)

    def close(self) -> None:
        self._over = True
        self._stop()

    def _repeated(self) -> list[Text]:
        return []  # they are in the last frame

    def _start(self, live: Live | Status) -> None:
        self._live = live
        live.start()
        self.console.show_cursor(True)  # hidden, it would stay so where the process is killed

    def _stop(self) -> None:
        if self._live is not None:
            self._live.stop()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for line in self.panel(min(options.max_width, MAX_WIDTH), console.height):
            line.no_wrap, line.overflow = True, "crop"
            yield line

    def panel(self, width: int, height: int) -> list[Text]:
        """The lines of a frame; the learning curve takes the rows that everything else leaves."""
        telemetry = self.telemetry
        top = [Text(), progress(telemetry, width, self.glyphs), Text(), *numbers(telemetry, width, self.glyphs)]
        end = [*self._alerts(width), *self._status()]
        rows = min(height - len(top) - len(end) - 4, CHART_ROWS[1])  # a blank, the axis and its labels, the cursor's line
        rows -= 1 - rows % 2  # an odd number has a middle for the middle label
        room = rows >= CHART_ROWS[0] and width >= CHART_WIDTH
        curve = self._curve(width, rows) if room and telemetry.evaluations else []
        return [*top, *curve, *end]

    def _curve(self, width: int, rows: int) -> list[Text]:
        """The learning curve, drawn anew only when it has changed."""
        telemetry = self.telemetry
        evaluations = list(telemetry.evaluations)
        key = (len(evaluations), width, rows)
        if self._chart[0] != key:
            lines = text_chart(
                Curve.of(evaluations),
                total=telemetry.total,
                best=telemetry.best_possible,
                width=width,
                height=rows,
                styles=(f"bold {ACCENT}", f"dim {ACCENT}", LABEL),
                unicode=self.glyphs is UNICODE,
            )
            self._chart = key, [Text(), *lines]
        return self._chart[1]

    def _status(self) -> list[Text]:
        if self._over:
            return []
        turn = self.glyphs.spinner[int(self.telemetry.now() * FRAMES_PER_SECOND) % len(self.glyphs.spinner)]
        return [Text(), Text(f"  {turn} ", style=ACCENT).append(self.telemetry.status, style="default")]

    def _alerts(self, width: int) -> list[Text]:
        """The latest warnings, in full."""
        lines = []
        for warning in list(dict.fromkeys(self.telemetry.warnings))[-WARNINGS:]:
            marks = itertools.chain(self.glyphs.alert, itertools.repeat(" "))
            wrapped = Text(warning, style=ALERT).wrap(self.console, max(width - 6, 8))
            lines += [Text(f"  {mark} ", style=ALERT) + line for mark, line in zip(marks, wrapped, strict=False)]
        return [Text(), *lines] if lines else []


def make_display(directory: Path | None, started: float | None = None) -> PlainDisplay:
    """The display for this terminal, or plain lines where there is none. ``started``: see `reppo.loop.train`."""
    console = Listened(highlight=False, markup=False, emoji=False)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # pyright: ignore[reportAttributeAccessIssue]
    live = console.is_terminal and not console.is_dumb_terminal
    return (LiveDisplay if live else PlainDisplay)(console, Telemetry(directory, started))


def capture(directory: Path, share: float = 1.0, width: int = 80, height: int = 30) -> Console:
    """The terminal as it was when a share of a run was done, drawn again from the run's files.

    The console has recorded it: ``capture(Path("runs/mine"), 0.6).export_svg(title="reppo train")``.
    """
    console = Console(file=io.StringIO(), record=True, width=width, height=height, force_terminal=True, highlight=False)
    now = 0.0
    telemetry = Telemetry(directory, 0.0, lambda: now)
    telemetry.begin(run_directory.read_description(directory))
    events = [Event("metrics", rows) for rows in iterations(read_rows(directory / "metrics.csv"))]
    events += [Event("evaluations", rows) for rows in iterations(read_rows(directory / "evaluations.csv"))]
    for event in sorted(events, key=lambda event: event.rows[0]["time/seconds"]):
        if event.rows[0]["env_steps"] <= share * telemetry.total:
            now = event.rows[0]["time/seconds"]
            telemetry.write(event)
    display = LiveDisplay(console, telemetry)
    display.glyphs, display._over = UNICODE, telemetry.finished
    for line in header(telemetry):
        console.print(line, soft_wrap=True)
    console.print(display)
    if telemetry.finished:
        display.summarise()
    return console
