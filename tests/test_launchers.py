"""`reppo bench --launcher`: what a cluster's engine is given, and what it gives back."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from reppo import cli
from reppo.bench import launchers
from reppo.bench.launchers import Command, Ray, Slurm
from reppo.errors import ConfigError
from reppo.interrupt import STOPPED

#: Says that it runs, and where; ends with 75 when it is asked to, as `reppo train` does.
WORKER = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (print("saved", flush=True), sys.exit(75)))
print("running in", os.getcwd(), "under", os.getppid(), end=", ")
print("heeds USR2:", signal.getsignal(signal.SIGUSR2) is not signal.SIG_IGN, flush=True)
time.sleep(60)
"""
WORDS = [sys.executable, "-c", WORKER]
ENDS = [sys.executable, "-c", "print('done'); raise SystemExit(3)"]


def until(condition: Any) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_command_writes_its_log_and_ignores_what_is_meant_for_its_parent(tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = Command(WORDS, [*WORDS, str(tmp_path / "run")], log)
    command.launch()
    until(lambda: log.exists() and "heeds" in log.read_text())
    command.ask()
    assert command.process is not None
    assert command.process.wait() == STOPPED
    assert log.read_text() == f"running in {Path.cwd()} under {os.getpid()}, heeds USR2: False\nsaved\n"


def test_a_command_that_is_interrupted_ends_once_its_process_has_saved(tmp_path: Path) -> None:
    log = tmp_path / "log"

    def interrupt() -> None:
        until(lambda: log.exists() and "heeds" in log.read_text())
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        Command(WORDS, WORDS, log)()
    thread.join()
    assert log.read_text().endswith("saved\n")


@pytest.mark.parametrize("begun", [True, False])
@pytest.mark.parametrize("resumes", [True, False])
def test_a_job_that_must_move_saves_and_goes_on_where_there_is_a_run(
    begun: bool, resumes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = SimpleNamespace(helpers=SimpleNamespace(DelayedSubmission=lambda function: function))
    monkeypatch.setattr(launchers, "package", lambda name: fake)
    log, run = tmp_path / "log", tmp_path / "run"
    if begun:
        run.mkdir()
        (run / "metrics.csv").touch()
    new, again = [*WORDS, "--out", str(run)], ["reppo", "resume", str(run)] if resumes else []
    command = Command(new, again, log)
    command.launch()
    until(lambda: log.exists() and "heeds" in log.read_text())
    moved = command.checkpoint()
    assert log.read_text().endswith("saved\n")
    assert moved.words == (again if begun and resumes else new)
    # One that cannot go on begins anew, and what it has done until then is kept.
    assert run.exists() == (begun and resumes)
    assert (tmp_path / "run.stopped" / "metrics.csv").exists() == (begun and not resumes)
    assert moved.process is None


@dataclasses.dataclass
class Job:
    """What submitit gives back, with an outcome that is known."""

    outcome: Any
    job_id: str = "7"
    cancelled: bool = False

    def result(self) -> int:
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome

    def cancel(self) -> None:
        self.cancelled = True
        self.outcome = RuntimeError("cancelled")


class Executor:
    def __init__(self, folder: Path, cluster: str):
        self.folder, self.cluster = folder, cluster
        self.parameters: dict[str, Any] = {}

    def update_parameters(self, **parameters: Any) -> None:
        if "nonsense" in parameters:
            raise NameError("Unknown argument(s): nonsense\nand more")
        self.parameters = parameters

    def submit(self, command: Command) -> Job:
        return Job(command() if command.words == ENDS else OSError("node failure\nat length"))


def test_what_slurm_is_asked_for_and_how_its_jobs_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launchers, "package", lambda name: SimpleNamespace(AutoExecutor=Executor))
    slurm = Slurm(tmp_path, launchers.settings(["timeout_min=60", "slurm_partition=gpu"]))
    assert (slurm.executor.folder, slurm.executor.cluster) == (tmp_path / "slurm", "slurm")
    assert slurm.executor.parameters == {"name": "reppo", "timeout_min": 60, "slurm_partition": "gpu"}
    log = tmp_path / "log"
    assert slurm.start(ENDS, ENDS, log).wait() == 3
    assert slurm.start(["lost"], ["lost"], log).wait() == 1
    assert log.read_text() == "done\n\nSlurm's job 7 did not end by itself: node failure\n"
    process = slurm.start(["lost"], ["lost"], log)
    process.stop()
    assert process.wait() == STOPPED
    with pytest.raises(ConfigError, match=r"^--launcher slurm: Unknown argument\(s\): nonsense$"):
        Slurm(tmp_path, {"nonsense": "1"})


def test_words_that_are_no_settings_and_engines_that_are_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [])
    for name in ("ray", "submitit"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    words = ["bench", "smoke", "--tasks", "TargetReach", "--results", str(tmp_path), "--work", str(tmp_path / "work")]
    for more, line in (
        (["--launcher", "slurm"], "--launcher slurm needs submitit: pip install 'reppo[slurm]'"),
        (["--launcher", "ray"], "--launcher ray needs ray: pip install 'reppo[ray]'"),
        (["--launcher-set", "gpus=1"], "--launcher local has no settings, got gpus"),
        (["--launcher-set", "gpus"], "--launcher-set takes NAME=VALUE, got 'gpus'"),
        (["--launcher-set", "a=1", "a=2"], "--launcher-set: a is given twice"),
    ):
        assert cli.main([*words, *more]) == 2
        assert line in capsys.readouterr().err


# ------------------------------------------------------------------------------------------- the real engines


def test_slurms_engine_on_this_machine(tmp_path: Path) -> None:
    pytest.importorskip("submitit", reason="needs reppo[slurm]")
    slurm = Slurm(tmp_path, {"cluster": "local", "timeout_min": "1"})
    log = tmp_path / "log"
    assert slurm.start(ENDS, ENDS, log).wait() == 3
    process = slurm.start(WORDS, WORDS, log)
    until(lambda: "heeds" in log.read_text())
    process.stop()
    assert process.wait() == STOPPED
    assert log.read_text().endswith("saved\n")


def test_slurms_engine_moves_a_job(tmp_path: Path) -> None:
    pytest.importorskip("submitit", reason="needs reppo[slurm]")
    slurm = Slurm(tmp_path, {"cluster": "local", "timeout_min": "1"})
    log, run = tmp_path / "log", tmp_path / "run"
    run.mkdir()
    process = slurm.start([*WORDS, str(run)], [sys.executable, "-c", "print('goes on')", str(run)], log)
    until(lambda: log.exists() and "heeds" in log.read_text())
    os.kill(int(log.read_text().split("under ")[1].split(",")[0]), signal.SIGUSR2)  # what Slurm sends before the end
    assert process.wait() == 0
    assert log.read_text().endswith("saved\ngoes on\n")


def test_ray_on_this_machine(tmp_path: Path) -> None:
    ray = pytest.importorskip("ray", reason="needs reppo[ray]")
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell has it for `reppo bench ... &`
    try:
        engine = Ray(tmp_path, {"num_cpus": "1"})
        log = tmp_path / "log"
        assert engine.start(ENDS, ENDS, log).wait() == 3
        process = engine.start(WORDS, WORDS, log)
        until(lambda: "heeds" in log.read_text())
        process.stop()
        assert process.wait() == STOPPED
        until(lambda: log.read_text().endswith("saved\n"))
    finally:
        signal.signal(signal.SIGINT, before)
        ray.shutdown()


def test_a_launchers_module_needs_no_engine() -> None:
    code = "import sys, reppo.bench.launchers as l; sys.exit(any(n in sys.modules for n in ('ray', 'submitit')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
