"""What a run looks like in the terminal."""

from __future__ import annotations

from typing import Any

from reppo.sinks import Event


class PlainDisplay:
    """A line per evaluation, for logs and pipes."""

    def begin(self, description: dict[str, Any]) -> None:
        print(f"{description['env']}, seeds {description['seeds']}", flush=True)

    def write(self, event: Event) -> None:
        if event.kind in ("status", "warning"):
            print(("warning: " if event.kind == "warning" else "") + event.text, flush=True)
        if event.kind == "evaluations":
            for row in event.rows:
                print(
                    f"{row['time/seconds']:7.1f} s  {row['env_steps']:>12,.0f} steps  seed {row['seed']:.0f}  "
                    f"return {row['eval/return']:8.1f} ± {row['eval/return_std']:.1f}",
                    flush=True,
                )

    def close(self) -> None:
        pass


def make_display(directory: object) -> PlainDisplay:
    return PlainDisplay()
