"""The program: ``reppo``, or ``python -m reppo``."""

import gc
import signal
import sys


def main() -> int:
    """Entry point; returns the exit code."""
    # Python's collector walks over all that imports and traces have made, again and again: more than a second of a start.
    gc.set_threshold(100_000, 10, 10)
    # Importing takes seconds. Until it is done Ctrl-C ends the program as SIGTERM does, without a word about where it was.
    heeds_ctrl_c = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if heeds_ctrl_c:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from reppo import cli

    if heeds_ctrl_c:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
