"""SIGTERM, SIGINT and SIGHUP as a request to stop in good order.

Python runs its signal handlers only between bytecodes of the main thread, and compiling a simulator can keep that
thread away for a minute. So the signal's byte is read by a thread of its own (`signal.set_wakeup_fd`), which can also end
the process at once where nothing would be lost by it.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TextIO

STOPPED = 75  #: exit code of a run that was asked to stop and can be resumed (EX_TEMPFAIL of sysexits.h)
NOTHING_YET = "nothing is written yet"
KILLED = 128  #: plus the signal's number: exit code where there is nothing to resume, as a shell has it


class Interrupt:
    """A context that turns the first signal into `requested` and the second into an immediate exit.

    Signals that the process was started to ignore, as a shell starts ``reppo train &``, stay ignored.
    Within `expendable`, where the state on disk is all there is to save, the first signal ends the process too.
    ``how_to_resume`` makes the end of the sentence that says so, from what is on disk then; None where that is nothing:
    then ``otherwise`` is its end.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # the last one comes where a terminal is closed

    def __init__(self, how_to_resume: Callable[[], str | None], otherwise: str = NOTHING_YET):
        self.requested = 0  #: number of the first signal
        self.how_to_resume, self.otherwise = how_to_resume, otherwise
        self._expendable = False
        self._phase = threading.Lock()

    def __enter__(self) -> Interrupt:
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._old_fd = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        heeded = [number for number in self.SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        self._old_handlers = {number: signal.signal(number, self._handle) for number in heeded}
        _heeding.add(self._handle)
        threading.Thread(target=self._watch, name="signals", daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._old_fd)
        _heeding.discard(self._handle)
        os.close(self._write)  # the watcher reads the end of the pipe and returns

    @contextlib.contextmanager
    def expendable(self) -> Iterator[None]:
        """A phase in which nothing is computed that the disk does not hold: compiling, before the first iteration."""
        with self._phase:
            if self.requested:
                self._exit("stopped", self.requested)
            self._expendable = True
        try:
            yield
        finally:
            with self._phase:
                self._expendable = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.requested = self.requested or number  # the watcher has set it already, unless the main thread was quicker

    def _watch(self) -> None:
        seen = 0
        while byte := os.read(self._read, 1):
            if byte[0] not in self.SIGNALS:
                continue
            seen += 1
            with self._phase:
                self.requested = self.requested or byte[0]
                if self._expendable or seen > 1:
                    self._exit("stopped at once" if seen > 1 else "stopped", byte[0])
            self._say(f"reppo: {signal.Signals(byte[0]).name}: finishing the iteration; a second signal stops at once")
        os.close(self._read)

    @staticmethod
    def _say(text: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            if _listening(sys.stderr):
                print(text, file=sys.stderr, flush=True)

    def _exit(self, how: str, number: int) -> None:
        # No cleanup: the main thread may be inside a compiler. Every file that matters is renamed into place.
        how_to_resume = self.how_to_resume()
        file = sys.__stderr__ or sys.stderr  # a live display puts what it is told above itself, and will not live on
        with contextlib.suppress(OSError, ValueError):
            if _listening(file):  # written past the file's buffer, whose lock another thread may hold
                line = f"reppo: {how}; {how_to_resume or self.otherwise}\n"
                os.write(file.fileno(), ("\n" * file.isatty() + line).encode())
        os._exit(STOPPED if how_to_resume else KILLED + number)


def _forget() -> None:
    """In a forked worker: signals are for the process that was asked, and must not be told to it through its pipe."""
    if signal.getsignal(signal.SIGTERM) in _heeding:
        signal.set_wakeup_fd(-1)
        for number in Interrupt.SIGNALS:
            if signal.getsignal(number) in _heeding:
                signal.signal(number, signal.SIG_DFL)


_heeding: set[object] = set()  #: handlers of an `Interrupt` that is at work
os.register_at_fork(after_in_child=_forget)


@contextlib.contextmanager
def unheard(number: signal.Signals = signal.SIGINT) -> Iterator[None]:
    """Processes that are started within ignore Ctrl-C, which a terminal sends to all; their parent ends them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(number, before)


def _listening(file: TextIO) -> bool:
    """Whether a file takes a line now: a full pipe that nobody reads must keep no process alive."""
    return bool(select.select([], [file.fileno()], [], 0)[1])
