"""Signals, in small processes of their own that import nothing heavy."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from reppo.interrupt import KILLED, STOPPED, Interrupt, unheard

PROGRAM = """
import os, signal, sys, time
from reppo.interrupt import Interrupt

def wait(seconds=30.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end and not interrupt.requested:
        time.sleep(0.01)

def deaf():  # as inside a compiler: no handler of Python's runs
    import hashlib
    hashlib.pbkdf2_hmac("sha256", b"", b"", 100_000_000)

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # where the tests run under nohup, it is ignored
resumable = [{resumable}]
with Interrupt(lambda: "resume me" if resumable[0] else None) as interrupt:
    print("ready", flush=True)
{body}
print("end", interrupt.requested, flush=True)
"""


class Program:
    """A process whose body runs within an `Interrupt`."""

    def __init__(self, body: str, resumable: bool = True, **how: object):
        text = PROGRAM.format(body="\n".join("    " + line for line in body.splitlines()), resumable=resumable)
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **how}
        self.process = subprocess.Popen([sys.executable, "-c", text], text=True, **streams)  # pyright: ignore
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"
        time.sleep(0.1)

    def send(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)
        time.sleep(0.1)

    def end(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=10)
        return self.process.returncode, out, err or ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_the_first_signal_is_a_request(number: int) -> None:
    program = Program("wait()\ntime.sleep(0.2)")
    program.send(number)
    code, out, err = program.end()
    assert (code, out) == (0, f"end {number}\n")
    assert f"{signal.Signals(number).name}: finishing the iteration; a second signal stops at once" in err


@pytest.mark.parametrize(("resumable", "code"), [(True, STOPPED), (False, KILLED + signal.SIGINT)])
def test_the_second_signal_ends_the_process_at_once_even_inside_a_compiler(resumable: bool, code: int) -> None:
    program = Program("deaf()", resumable)
    program.send(signal.SIGTERM)
    program.send(signal.SIGINT)
    found, out, err = program.end()
    assert (found, out) == (code, "")
    assert "stopped at once; " + ("resume me" if resumable else "nothing is written yet") in err


def test_the_first_signal_ends_what_is_expendable_even_inside_a_compiler() -> None:
    program = Program("with interrupt.expendable():\n    deaf()")
    program.send()
    code, out, err = program.end()
    assert (code, out) == (STOPPED, "")
    assert "stopped; resume me" in err


def test_what_follows_an_expendable_phase_is_not_expendable() -> None:
    program = Program("with interrupt.expendable():\n    pass\nwait()")
    program.send()
    assert program.end()[:2] == (0, "end 15\n")


def test_a_request_before_an_expendable_phase_ends_it() -> None:
    program = Program("wait()\nwith interrupt.expendable():\n    wait()")
    program.send()
    assert program.end()[:2] == (STOPPED, "")


def test_a_full_pipe_that_nobody_reads_keeps_no_process_alive() -> None:
    read, write = os.pipe()
    os.set_blocking(write, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(write, b"x" * 4096)
    os.set_blocking(write, True)
    program = Program("with interrupt.expendable():\n    deaf()", stderr=write)
    program.send()
    assert program.end()[0] == STOPPED
    os.close(read)
    os.close(write)


def test_a_closed_pipe_keeps_no_process_alive() -> None:
    read, write = os.pipe()
    program = Program("with interrupt.expendable():\n    deaf()", stderr=write)
    os.close(read)
    os.close(write)
    program.send()
    assert program.end()[0] == STOPPED


def test_a_forked_worker_tells_its_parent_of_no_signal() -> None:
    body = "\n".join(
        [
            "import os, signal",
            "child = os.fork()",
            "if child == 0:",
            "    time.sleep(30)",
            "time.sleep(0.5)",
            "os.kill(child, signal.SIGTERM)",
            "_, status = os.waitpid(child, 0)",
            "print('child', os.WTERMSIG(status), flush=True)",
            "wait(0.3)",
        ]
    )
    code, out, _ = Program(body).end()
    assert (code, out.split()) == (0, ["child", str(int(signal.SIGTERM)), "end", "0"])


def test_processes_started_unheard_ignore_ctrl_c() -> None:
    with unheard():
        text = "print('on', flush=True); import time; time.sleep(0.5); print('end')"
        child = subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "on\n"
    child.send_signal(signal.SIGINT)
    assert (child.wait(10), child.stdout.read()) == (0, "end\n")
    assert signal.getsignal(signal.SIGINT) is not signal.SIG_IGN


def test_signals_that_were_ignored_stay_ignored() -> None:
    program = Program("wait(0.5)", preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))
    program.send(signal.SIGINT)
    assert program.end()[:2] == (0, "end 0\n")


@pytest.fixture
def own_handler() -> Iterator[object]:
    def handler(number: int, frame: object) -> None:
        pytest.fail("not to be called")

    old = signal.signal(signal.SIGTERM, handler)
    yield handler
    signal.signal(signal.SIGTERM, old)


def test_handlers_are_given_back(own_handler: object) -> None:
    files = len(list(Path("/proc/self/fd").iterdir()))
    own_wakeup = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(own_wakeup)
    with Interrupt(lambda: None) as interrupt:
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(100):
            time.sleep(0.01)
            if interrupt.requested:
                break
    assert interrupt.requested == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is own_handler
    wakeup = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup)
    assert wakeup == own_wakeup
    for _ in range(100):  # until the watcher has closed its end
        time.sleep(0.01)
        if len(list(Path("/proc/self/fd").iterdir())) == files:
            break
    assert len(list(Path("/proc/self/fd").iterdir())) == files
