"""The proof that nothing is lost: kills, signals, broken numbers, damaged files. Its tables are in docs/reliability.md.

    python benchmarks/reliability.py kills           # kill -9 at 200 random moments of a run, then resume
    python benchmarks/reliability.py saves           # kill -9 at 50 moments inside a save, then resume
    python benchmarks/reliability.py signals         # SIGTERM at 50 random moments, half of them with nothing compiled
    python benchmarks/reliability.py injection       # NaN, Inf and huge numbers in every place: the tests of that
    python benchmarks/reliability.py mutations       # 1,000 altered checkpoints, 500 altered configurations
    python benchmarks/reliability.py determinism     # one seed in several processes, and another seed
    python benchmarks/reliability.py evaluation      # a run with 20 evaluations and one with none
    python benchmarks/reliability.py cost            # what checkpoints cost the default run
    python benchmarks/reliability.py all             # everything

Each writes ``results/reliability_WHAT.csv``. The first three write a row when a trial ends and keep the rows that are there,
so that an interrupted campaign goes on. ``results/reliability.json`` names versions and hardware.

The processes that are killed or signalled are ``python -m reppo train ...``, started afresh and not altered in any way.
The processes that resume run the same entry point, but are forked from one that has imported the libraries and not yet
initialised JAX, which saves the seconds of importing.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import dataclasses
import functools
import hashlib
import io
import json
import multiprocessing
import os
import pickle
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import jax
import numpy as np

from reppo import checkpoint, cli, envs, keeper, loop, options, provenance
from reppo import outcome as written
from reppo.cli import startup, training
from reppo.config import PRESETS
from reppo.errors import ConfigError
from reppo.files import PARTIAL
from reppo.interrupt import KILLED, STOPPED
from reppo.run import Clock, Run
from reppo.sinks import Event

RESULTS = Path(__file__).parent.parent / "results"
ENV = "probe:TargetReach"
#: A run of seconds: 16 iterations of 64 steps, evaluations after 0, 8 and 16 of them, a checkpoint every 30 ms at most.
OPTIONS = shlex.split(
    "--preset cpu --total-steps 1024 --num-envs 8 --num-steps 8 --num-minibatches 2 --num-epochs 2 --target-samples 2 "
    "--actor-width 16 --critic-width 16 --num-bins 21 --episode-length 20 --num-evals 2 --eval-episodes 8 "
    "--checkpoint-minutes 0.0005"
)
REFERENCES = 3  #: runs that are left alone
PATIENCE = 300.0  #: seconds after which a process is said to hang

Row = dict[str, Any]


# ------------------------------------------------------------------------------------------- tables


def rows_of(path: Path) -> list[dict[str, str]]:
    """The rows of a table; none where it is not there."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def append(path: Path, row: Row) -> None:
    """Add a row to a table, with a header where it is new."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        table = csv.DictWriter(file, list(row))
        if new:
            table.writeheader()
        table.writerow(row)
    print(*(f"{name}={value}" for name, value in row.items()), flush=True)


def missing_trials(path: Path, trials: int) -> list[int]:
    done = {int(row["trial"]) for row in rows_of(path)}
    return [trial for trial in range(trials) if trial not in done]


# ------------------------------------------------------------------------------------------- processes


def start(argv: list[str], cache: Path, log: Path) -> subprocess.Popen[bytes]:
    """The program, afresh, with its compilation cache below ``cache``."""
    with log.open("wb") as file:
        command = [sys.executable, "-m", "reppo", *argv]
        return subprocess.Popen(command, stdout=file, stderr=file, env={**os.environ, "XDG_CACHE_HOME": str(cache)})


def _forked(argv: list[str], cache: str, log: str) -> None:
    from reppo.__main__ import main

    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ["XDG_CACHE_HOME"] = cache
    sys.argv = ["reppo", *argv]
    sys.exit(main())


FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["reppo.cli", "orbax.checkpoint", "matplotlib.figure", "matplotlib.backends.backend_agg"])


def run_forked(argv: list[str], cache: Path, log: Path) -> int:
    """The program in a process that finds its libraries imported; waits for it and returns its exit code."""
    process = FORKS.Process(target=_forked, args=(argv, str(cache), str(log)))
    process.start()
    process.join(PATIENCE)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise TimeoutError(f"{argv} did not end")
    return process.exitcode


# ------------------------------------------------------------------------------------------- what a run has come to


class Outcome(NamedTuple):
    """All that a finished run has computed."""

    arrays: dict[str, bytes]  #: of its last checkpoint: learner, optimisers, normaliser, environments
    rows: list[list[tuple[str, str]]]  #: of both tables, without their clocks

    @classmethod
    def of(cls, directory: Path) -> Outcome | None:
        """None where the last checkpoint is not that of a finished run."""
        found, damaged = checkpoint.newest(directory / "checkpoints")
        if found is None or damaged or not (directory / "summary.json").exists():
            return None
        arrays = {name: str((a.dtype, a.shape)).encode() + a.tobytes() for name, a in found.arrays.items()}
        rows = [row for table in ("metrics", "evaluations") for row in rows_of(directory / f"{table}.csv")]
        return cls(arrays, [[(k, v) for k, v in row.items() if not k.startswith("time/")] for row in rows])


class Uninterrupted(NamedTuple):
    """What every other run is compared with."""

    outcome: Outcome
    seconds: float  #: of a run that finds everything compiled
    cold_seconds: float  #: of one that compiles everything
    save_seconds: float  #: of the longest save


def train_argv(out: Path) -> list[str]:
    return ["train", ENV, *OPTIONS, "--out", str(out)]


def uninterrupted(work: Path) -> Uninterrupted:
    """Runs that are left alone, the first of which fills the compilation cache; raises where they are not the same."""
    seconds, saves, outcomes = [], [0.0], []
    for i in range(REFERENCES):
        out, began = work / f"reference{i}", time.perf_counter()
        process = start(train_argv(out), work / "cache", work / "log")
        for _, appeared in appearing_saves(out, process):
            while (out / "checkpoints").exists() and saving(out):
                time.sleep(0.0005)
            saves.append(time.perf_counter() - appeared)
        if process.wait() != 0:
            raise RuntimeError((work / "log").read_text())
        seconds.append(time.perf_counter() - began)
        outcomes.append(Outcome.of(out))
    if outcomes[0] is None or outcomes != outcomes[:1] * REFERENCES:
        raise RuntimeError("runs that were left alone are not the same")
    return Uninterrupted(outcomes[0], max(seconds[1:] or seconds), seconds[0], float(np.median(saves)))


def saving(out: Path) -> list[str]:
    """Names of what is being written, or deleted, among the checkpoints."""
    directory = out / "checkpoints"
    names = os.listdir(directory) if directory.exists() else []
    return [name for name in names if name.endswith((PARTIAL, checkpoint.REMOVED))]


def appearing_saves(out: Path, process: subprocess.Popen[bytes]) -> Iterator[tuple[str, float]]:
    """The name of every save as it begins, and when that was seen, until the process ends."""
    seen: set[str] = set()
    while process.poll() is None:
        for name in saving(out):
            if name.endswith(PARTIAL) and name not in seen:
                seen.add(name)
                yield name, time.perf_counter()
        time.sleep(0.001)


def phase(out: Path) -> str:
    """How far a process had come that is no more."""
    if not (out / "config.json").exists():
        return "before its directory"
    if not checkpoint.listing(out / "checkpoints"):
        return "before its first checkpoint"
    if (out / "summary.json").exists():
        return "after its end"
    return "training" if rows_of(out / "metrics.csv") else "before its first iteration"


def resumed(out: Path, work: Path, reference: Outcome) -> Row:
    """Resume a run to its end, or begin it again where it has no directory; and compare."""
    began, log = time.perf_counter(), work / "log"
    code = run_forked(["resume", str(out)], work / "cache", log)
    if not (out / "config.json").exists():
        said = log.read_text()
        if code != 2 or said.count("\n") != 1 or "is not a run directory" not in said:
            return {"resume": f"exit code {code}", "identical": False, "rows_identical": False}
        code = run_forked(train_argv(out), work / "cache", log)
    outcome = Outcome.of(out) if code == 0 else None
    litter = saving(out)
    return {
        "resume": "done" if code == 0 and not litter else f"exit code {code}, left {litter}",
        "identical": outcome is not None and outcome.arrays == reference.arrays,
        "rows_identical": outcome is not None and outcome.rows == reference.rows,
        "resume_seconds": round(time.perf_counter() - began, 2),
    }


def keep_failure(row: Row, out: Path, log: Path) -> None:
    """A run that did not end as it should is kept, to be looked at."""
    if row["identical"] and row["rows_identical"] and row.get("right", True):
        shutil.rmtree(out, ignore_errors=True)
        return
    kept = Path(tempfile.mkdtemp(prefix=f"reliability-{row['trial']}-"))
    shutil.copy(log, kept)
    if out.exists():
        shutil.move(out, kept)
    print(f"FAILED, see {kept}", flush=True)


# ------------------------------------------------------------------------------------------- kill -9


def killed_at(moment: float, out: Path, work: Path) -> bool:
    """Start a run and kill it after ``moment`` seconds; False where it had ended by then."""
    began = time.perf_counter()
    process = start(train_argv(out), work / "cache", work / "log")
    time.sleep(max(0.0, moment - (time.perf_counter() - began)))
    process.kill()
    return process.wait() == -signal.SIGKILL


def kills(table: Path, trials: int, work: Path) -> None:
    """At moments that are uniform over the seconds of a whole run, its imports included."""
    reference = uninterrupted(work)
    for trial in missing_trials(table, trials):
        draw, out = random.Random(f"kill {trial}"), work / f"run{trial}"
        while not killed_at(moment := draw.uniform(0.0, reference.seconds), out, work):
            shutil.rmtree(out)
        row = {"trial": trial, "second": round(moment, 3), "of": round(reference.seconds, 2), **found_after(out)}
        row |= resumed(out, work, reference.outcome)
        append(table, row)
        keep_failure(row, out, work / "log")


def found_after(out: Path) -> Row:
    """What a killed process has left behind."""
    found, damaged = checkpoint.newest(out / "checkpoints")
    row = {"killed": phase(out), "steps": found.progress.env_steps if found else 0, "damaged": len(damaged)}
    return {**row, "in_save": stage(out)}


def stage(out: Path) -> str:
    """How far a save was; empty where there was none under way."""
    for name in saving(out):
        path = out / "checkpoints" / name
        if name.endswith(checkpoint.REMOVED):
            return "removing an old one"
        if (path / "manifest.json").exists():
            return "syncing"
        written = [p for p in path.rglob("*") if p.is_file()]
        return "arrays written" if any(p.name == "_METADATA" for p in written) else "writing arrays"
    return ""


def killed_in_save(which: int, delay: float, out: Path, work: Path) -> bool:
    """Start a run and kill it ``delay`` after its save number ``which`` has begun; False where that was too late."""
    process = start(train_argv(out), work / "cache", work / "log")
    for number, (_, appeared) in enumerate(appearing_saves(out, process)):
        if number == which:
            time.sleep(max(0.0, delay - (time.perf_counter() - appeared)))
            process.kill()
    return process.wait() == -signal.SIGKILL and bool(saving(out))


def saves(table: Path, trials: int, work: Path) -> None:
    """At moments uniform over the duration of a save, in one of the first eight saves of a run.

    A save is under way while ``checkpoints/`` holds a name that ends in ``.partial`` or ``.removed``. This process watches
    for that name to appear; a kill counts where the killed process has left such a name behind, and is repeated
    otherwise.
    """
    reference = uninterrupted(work)
    for trial in missing_trials(table, trials):
        draw, out, attempts = random.Random(f"save {trial}"), work / f"run{trial}", 1
        while not killed_in_save(which := draw.randrange(8), delay := draw.uniform(0, reference.save_seconds), out, work):
            shutil.rmtree(out)
            attempts += 1
        row: Row = {"trial": trial, "save": which, "milliseconds": round(1000 * delay), "attempts": attempts}
        row |= found_after(out)
        row |= resumed(out, work, reference.outcome)
        append(table, row)
        keep_failure(row, out, work / "log")


# ------------------------------------------------------------------------------------------- signals


def signals(table: Path, trials: int, work: Path) -> None:
    """SIGTERM at moments uniform over the seconds of a whole run; every other run has an empty compilation cache."""
    reference = uninterrupted(work)
    for trial in missing_trials(table, trials):
        cold, draw, out = trial % 2 == 1, random.Random(f"signal {trial}"), work / f"run{trial}"
        while (row := signalled(draw, cold, reference, out, work)) is None:
            shutil.rmtree(out)
        row = {"trial": trial, **row, **resumed(out, work, reference.outcome)}
        append(table, row)
        keep_failure(row, out, work / "log")


def signalled(draw: random.Random, cold: bool, reference: Uninterrupted, out: Path, work: Path) -> Row | None:
    """One run that is asked to stop, and what it did; None where it had ended by then."""
    whole = reference.cold_seconds if cold else reference.seconds
    moment, began = draw.uniform(0.0, whole), time.perf_counter()
    with tempfile.TemporaryDirectory() as empty:
        log = work / "log"
        process = start(train_argv(out), Path(empty) if cold else work / "cache", log)
        time.sleep(max(0.0, moment - (time.perf_counter() - began)))
        if process.poll() is not None:
            return None
        process.send_signal(signal.SIGTERM)
        sent = time.perf_counter()
        code = process.wait(PATIENCE)
        seconds = time.perf_counter() - sent
    said = log.read_text().strip().rpartition("\n")[2]
    row = {"cold": cold, "second": round(moment, 3), "of": round(whole, 2), "exit_code": code}
    row |= {"exit_seconds": round(seconds, 3), **found_after(out)}
    computed = len(rows_of(out / "metrics.csv"))
    steps = row["steps"] * 16 // 1024  # iterations of the newest checkpoint
    if row["killed"] == "before its directory":  # the code of a process that the signal has ended
        right = code in (-signal.SIGTERM, KILLED + signal.SIGTERM)
    elif row["killed"] == "after its end":
        right = code in (0, -signal.SIGTERM)
    else:
        right = code == STOPPED and "reppo resume" in said
    return {**row, "lost_iterations": computed - steps, "right": right and computed == steps and not row["damaged"]}


# ------------------------------------------------------------------------------------------- numbers that are not finite

#: Tests whose names hold all that was tried, and the order in which they hold it.
INJECTIONS = {
    "test_an_environment_that_breaks_is_contained": ("value", "place", "step", "environments"),
    "test_a_gradient_that_breaks_skips_its_own_step": ("place", "value", "step"),
    "test_gradients_that_all_break_change_nothing": ("place", "value"),
}


def injection(table: Path, trials: int, work: Path) -> None:
    """The matrix that ``tests/test_faults.py`` runs, a row per case."""
    del trials
    report = work / "report.xml"
    tests = [f"tests/test_faults.py::{name}" for name in INJECTIONS]
    subprocess.run([sys.executable, "-m", "pytest", *tests, f"--junitxml={report}"], cwd=RESULTS.parent, check=False)
    table.unlink(missing_ok=True)
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        name, _, parameters = case.attrib["name"].rstrip("]").partition("[")
        found = dict(zip(INJECTIONS[name], parameters.split("-"), strict=True))
        gradient = name.endswith(("step", "nothing"))
        row = {
            "place": f"gradient of {found['place']}" if gradient else found["place"],
            "value": found["value"],
            "step": found.get("step", "all"),
            "environments": found.get("environments", ""),
            "contained": case.find("failure") is None and case.find("error") is None,
        }
        append(table, row)


# ------------------------------------------------------------------------------------------- altered files


class Hang(BaseException):
    """A load that does not end."""


def _ring(*args: object) -> None:
    raise Hang


class Canary:
    """Something that tells of itself when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def any_json(draw: random.Random, depth: int = 2) -> Any:
    """A JSON value, sizes at which programs break among them."""
    numbers = [0, -1, 1, 2**31, 2**63, 10**12, 10**30, 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf"), True, None]
    kinds: list[Callable[[], Any]] = [
        lambda: draw.choice(numbers),
        lambda: draw.randrange(-(10**6), 10**6),
        lambda: draw.choice(["", "x", "probe:Terminating", "../../etc/passwd", "0" * 1000, "\ud800", "\x00"]),
    ]
    if depth:
        kinds.append(lambda: [any_json(draw, depth - 1) for _ in range(draw.randrange(4))])
        kinds.append(lambda: {draw.choice("abc"): any_json(draw, depth - 1) for _ in range(draw.randrange(3))})
    return draw.choice(kinds)()


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where there is something in a JSON value."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield (*path, key)
        yield from places(child, (*path, key))


def altered_json(value: Any, draw: random.Random) -> Any:
    """The value with something in it replaced, removed or added."""
    holder, (*path, last) = value, draw.choice(list(places(value)))
    for key in path:
        holder = holder[key]
    what = draw.choice(["replace", "replace", "remove", "add"])
    if what == "remove":
        del holder[last]
    elif what == "add" and isinstance(holder, dict):
        holder[draw.choice(["x", "format", "env"])] = any_json(draw)
    else:
        holder[last] = any_json(draw)
    return value


def altered_bytes(content: bytes, kind: str, draw: random.Random) -> bytes:
    data = bytearray(content)
    if kind == "cut":
        return bytes(data[: draw.randrange(max(len(data), 1))])
    if kind == "lengthened":
        return bytes(data) + draw.randbytes(draw.randrange(1, 20))
    for _ in range(draw.randrange(1, 5) if data else 0):
        data[draw.randrange(len(data))] ^= draw.randrange(1, 256)
    return bytes(data)


def sign(path: Path, manifest: dict[str, Any]) -> None:
    """Write a manifest as a program would that knows the format: every sum agrees."""
    files = sorted(p for p in path.rglob("*") if p.is_file() and p.name != "manifest.json")
    if "files" in manifest:
        manifest["files"] = {str(p.relative_to(path)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
    manifest.pop("digest", None)
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    (path / "manifest.json").write_text(json.dumps({**manifest, "digest": digest}))


CHECKPOINT_KINDS = (
    "bytes flipped",
    "cut",
    "lengthened",
    "file removed",
    "file added",
    "files swapped",
    "pipe instead of a file",
    "pickle instead of a file",
    "field of the manifest",
    "signed field",
    "signed bytes",
    "signed pickle",
)


def alter_checkpoint(path: Path, kind: str, draw: random.Random, canary: Path) -> None:
    files = sorted(p for p in path.rglob("*") if p.is_file())
    file, other = draw.sample(files, 2)
    content = file.read_bytes()
    manifest = json.loads((path / "manifest.json").read_text())
    if kind == "file removed":
        file.unlink()
    elif kind == "file added":
        file.with_name(draw.choice(["extra", ".hidden", "manifest.json.partial"])).write_bytes(b"x")
    elif kind == "files swapped":
        file.write_bytes(other.read_bytes())
        other.write_bytes(content)
    elif kind == "pipe instead of a file":
        file.unlink()
        os.mkfifo(file)
    elif kind == "pickle instead of a file":
        file.write_bytes(pickle.dumps(Canary(canary)))
    elif kind == "field of the manifest":
        (path / "manifest.json").write_text(json.dumps(altered_json(manifest, draw)))
    elif kind == "signed field":
        sign(path, altered_json(manifest, draw))
    elif kind.startswith("signed"):
        array = draw.choice([p for p in files if p.name != "manifest.json"])
        array.write_bytes(pickle.dumps(Canary(canary)) if kind == "signed pickle" else altered_bytes(content, "flip", draw))
        sign(path, manifest)
    else:
        file.write_bytes(altered_bytes(content, kind, draw))


CONFIG_KINDS = ("bytes flipped", "cut", "lengthened", "field", "option", "command line")


def alter_config(path: Path, kind: str, draw: random.Random) -> None:
    content = path.read_bytes()
    if kind in ("field", "option"):
        description = json.loads(content)
        changed = altered_json(description["config"] if kind == "option" else description, draw)
        path.write_text(json.dumps({**description, "config": changed} if kind == "option" else changed))
    else:
        path.write_bytes(altered_bytes(content, kind, draw))


def altered_command(draw: random.Random) -> list[str]:
    """Options of a command line, one of which has some value."""
    flags = [flag for flag in options.flags_of(training.TrainArgs) if flag not in ("--wandb", "--out", "--config")]
    numbers = [
        "0",
        "-1",
        "1",
        "1e9",
        "1e400",
        "nan",
        "inf",
        "10" * 20,
        "0x10",
        "",
        "None",
        "true",
        "x",
        "1,000",
        "\x00",
        "-",
    ]
    value = draw.choice([*numbers, str(draw.uniform(-10, 10)), str(draw.randrange(10**6))])
    return [*OPTIONS, draw.choice(flags), value]


@contextlib.contextmanager
def printed(log: Path) -> Iterator[Callable[[], str]]:
    """What this process prints to stderr meanwhile, its libraries' threads included; read by the function it gives."""
    kept = os.dup(2)
    file = os.open(log, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    os.dup2(file, 2)
    try:
        yield log.read_text
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(file)


def tried(action: Callable[[], object]) -> tuple[str, str]:
    """``refused``, ``loaded``, or what should not be, and the message."""
    signal.setitimer(signal.ITIMER_REAL, 60.0)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            action()
    except ConfigError as error:
        return ("refused" if "\n" not in str(error) else "several lines"), str(error)
    except Hang:
        return "hung", ""
    except BaseException as error:
        return "traceback", f"{type(error).__name__}: {error}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
    return "loaded", ""


def mutations(table: Path, trials: int, work: Path) -> None:
    """Alter one thing of a finished run's only checkpoint, or of its configuration, and resume it.

    What is accepted is not trained with; its state must be that of the run, to the last bit. A pickle that is loaded makes
    a directory, which is looked for; the names that pickle looks up are recorded, too.
    """
    unpickled: list[str] = []
    sys.addaudithook(lambda event, args: unpickled.append(str(args)) if event == "pickle.find_class" else None)
    signal.signal(signal.SIGALRM, _ring)
    sound, canary, copy = work / "sound", work / "canary", work / "run"
    process = start([*train_argv(sound), "--keep-checkpoints", "1", "--no-keep-best"], work / "cache", work / "log")
    if process.wait() != 0:
        raise RuntimeError((work / "log").read_text())
    (saved,) = checkpoint.listing(sound / "checkpoints")
    expected = {name: array.tobytes() for name, array in checkpoint.read(saved).arrays.items()}
    accepted: list[Run] = []

    def not_driven(run: Run, *args: Any) -> Run:
        run.check_memory()
        accepted.append(run)
        return run

    def whole(run: Run) -> bool:
        arrays = checkpoint.to_host({"learner": run.state, "env": run.env_state})
        return {name: array.tobytes() for name, array in arrays.items()} == expected

    startup.quieten()
    loop._drive = not_driven
    written.provenance = functools.cache(provenance.provenance)  # it asks git, which takes most of the time
    counts: dict[tuple[str, str], Counter[str]] = {}
    for trial in range(trials):
        draw = random.Random(f"mutation {trial}")
        is_config = trial % 3 == 2
        kinds = CONFIG_KINDS if is_config else CHECKPOINT_KINDS
        kind = kinds[trial // 3 % len(kinds)]
        accepted.clear()
        unpickled.clear()
        shutil.rmtree(copy, ignore_errors=True)
        with printed(work / "stderr") as stderr:
            if kind == "command line":
                words = altered_command(draw)
                outcome, message = tried(lambda words=words: cli.run(["train", ENV, *words, "--out", str(copy)]))
            else:
                shutil.copytree(sound, copy)
                if is_config:
                    alter_config(copy / "config.json", kind, draw)
                else:
                    alter_checkpoint(copy / "checkpoints" / saved.name, kind, draw, canary)
                outcome, message = tried(lambda: accepted.append(loop.resume(copy)))
                if outcome == "loaded" and not whole(accepted[-1]):
                    # Whoever makes the sums agree has written another checkpoint, of whatever is in it.
                    outcome = "loaded as signed" if kind.startswith("signed") else "loaded wrongly"
            if "Traceback" in (noise := stderr()):
                outcome, message = "traceback", noise + message
        if canary.exists() or unpickled:
            outcome = "code executed"
        counts.setdefault(("configuration" if is_config else "checkpoint", kind), Counter())[outcome] += 1
        if outcome not in ("refused", "loaded", "loaded as signed"):
            print(trial, kind, outcome, message, flush=True)
    table.unlink(missing_ok=True)
    for (target, kind), outcomes in sorted(counts.items()):
        sound_ones = {name: outcomes.pop(name, 0) for name in ("refused", "loaded", "loaded as signed")}
        row = {"target": target, "altered": kind, "tried": sum(sound_ones.values()) + outcomes.total(), **sound_ones}
        append(table, {**row, "wrong": " ".join(f"{name}:{count}" for name, count in outcomes.items()) or 0})


# ------------------------------------------------------------------------------------------- same bits


def fingerprint(arrays: dict[str, np.ndarray]) -> str:
    """SHA-256 of the names, types, shapes and bytes of arrays."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape} ".encode() + array.tobytes())
    return digest.hexdigest()


def determinism(table: Path, trials: int, work: Path) -> None:
    """Processes of their own; the fingerprint is that of the last checkpoint: learner and environments."""
    del trials
    table.unlink(missing_ok=True)
    for i, (seed, seeds) in enumerate([(0, 1), (0, 1), (1, 1), (0, 2), (0, 2)]):
        out = work / f"run{i}"
        argv = [*train_argv(out), "--seed", str(seed), "--seeds", str(seeds)]
        if start(argv, work / "cache", work / "log").wait() != 0:
            raise RuntimeError((work / "log").read_text())
        policies = b"".join(path.read_bytes() for path in sorted(out.glob("policy*.npz")))
        found = fingerprint(checkpoint.read(checkpoint.listing(out / "checkpoints")[-1]).arrays)
        row = {"process": i + 1, "seed": seed, "seeds": seeds, "state": found[:16]}
        append(table, {**row, "policy_file": hashlib.sha256(policies).hexdigest()[:16]})


def evaluation(table: Path, trials: int, work: Path) -> None:
    """The same 20 iterations with an evaluation after each, with one at the end alone, and with none."""
    del trials, work
    table.unlink(missing_ok=True)
    config = cli.arguments("train", [ENV, *OPTIONS, "--total-steps", "1280", "--num-evals", "20"]).config

    def add(evaluations: int, run: Run) -> None:
        state = checkpoint.to_host({"learner": run.state, "env": run.env_state})
        append(table, {"iterations": run.iteration, "evaluations": evaluations, "state": fingerprint(state)[:16]})

    for evaluations in (20, 1):
        run = loop.train(ENV, dataclasses.replace(config, num_evals=evaluations))
        add(len(run.evaluations), run)
    run = Run(envs.make(ENV), config, [0], None)
    with jax.default_matmul_precision(config.precision):
        run.start()
        for _ in range(config.num_iterations):
            run.iterate(Clock(0.0))
    add(len(run.evaluations), run)


# ------------------------------------------------------------------------------------------- cost


def cost(table: Path, trials: int, work: Path) -> None:
    """Half of the default run with its evaluations as far apart as ever: how long the loop waits for checkpoints, and the
    processor time that they take. Only what follows the first iteration counts, without the compilation."""
    del trials
    table.unlink(missing_ok=True)
    waited, written = [0.0], [0.0]  # seconds of the loop; processor seconds of the thread
    began: list[tuple[float, float]] = []

    def timed(function: Callable[..., Any], clock: Callable[[], float], total: list[float]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            start = clock()
            try:
                return function(*args)
            finally:
                if began:
                    total[0] += clock() - start

        return call

    class FirstIteration:
        def begin(self, description: dict[str, Any]) -> None: ...

        def write(self, event: Event) -> None:
            if event.kind == "metrics" and not began:
                began.append((time.perf_counter(), time.process_time()))

        def close(self) -> None: ...

    keeper.Keeper.save = timed(keeper.Keeper.save, time.perf_counter, waited)
    keeper.Keeper.wait = timed(keeper.Keeper.wait, time.perf_counter, waited)
    checkpoint.Saver._write = timed(checkpoint.Saver._write, time.thread_time, written)
    default = PRESETS["cpu"]
    config = dataclasses.replace(default, total_steps=default.total_steps // 2, num_evals=default.num_evals // 2)
    cli.use_compilation_cache()
    run = loop.train(training.DEFAULT_ENV, config, out=work / "run", sinks=[FirstIteration()])
    seconds, cpu = time.perf_counter() - began[0][0], time.process_time() - began[0][1]
    saves = sum(row["iteration"] > 0 for row in run.evaluations)
    row = {"env": training.DEFAULT_ENV, "steps": run.env_steps, "seconds": round(seconds, 1), "cpu_seconds": round(cpu, 1)}
    row |= {"saves": saves, "waited_seconds": round(waited[0], 3), "thread_cpu_seconds": round(written[0], 3)}
    size = sum(p.stat().st_size for p in checkpoint.listing(work / "run" / "checkpoints")[-1].rglob("*") if p.is_file())
    append(
        table, {**row, "waited_share": round(waited[0] / seconds, 5), "cpu_share": round(written[0] / cpu, 5), "bytes": size}
    )


# ------------------------------------------------------------------------------------------- the command

CAMPAIGNS: dict[str, tuple[Callable[[Path, int, Path], None], int]] = {
    "kills": (kills, 200),
    "saves": (saves, 50),
    "signals": (signals, 50),
    "injection": (injection, 0),
    "mutations": (mutations, 1500),
    "determinism": (determinism, 0),
    "evaluation": (evaluation, 0),
    "cost": (cost, 0),
}

RESUMABLE = ("kills", "saves", "signals")  #: those that go on after the rows that there are; the others are made anew


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[*CAMPAIGNS, "all"])
    parser.add_argument("--trials", type=int, help="unset, as many as docs/reliability.md has")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the folder of the tables")
    args = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "reliability.json").write_text(json.dumps(provenance.provenance(), indent=2) + "\n")
    for name in CAMPAIGNS if args.what == "all" else [args.what]:
        campaign, trials = CAMPAIGNS[name]
        table, wanted = args.out / f"reliability_{name}.csv", args.trials or trials
        if name in RESUMABLE and not missing_trials(table, wanted):
            continue
        with tempfile.TemporaryDirectory() as work:
            campaign(table, wanted, Path(work))


if __name__ == "__main__":
    main()
