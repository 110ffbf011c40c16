"""How the playing of a trip is shown: a bar where somebody looks at a terminal, plain lines in a log."""

from typing import TextIO

from services.demo.trip_file import Step

_WIDTH = 30


class Progress:
    """A `player.Watcher` that writes to a stream: a bar on a terminal, else a line a step if `lines` are wanted."""

    def __init__(self, stream: TextIO, *, lines: bool) -> None:
        self._stream = stream
        self._lines = lines
        self._bar = stream.isatty()

    def __call__(self, done: int, total: int, step: Step) -> None:
        if self._bar:
            filled = _WIDTH * done // total
            bar = f"[{'#' * filled}{'.' * (_WIDTH - filled)}] {done}/{total} {said(step)}"
            # cut to 79 columns, so that no terminal wraps it, and cleared to the end of the line
            self._stream.write(f"\r{bar[:79]}\x1b[K{chr(10) if done == total else ''}")
        elif self._lines or done == total:
            self._stream.write(f"{done}/{total} {said(step)}\n")
        self._stream.flush()


def said(step: Step) -> str:
    """`4 Nov 16:00 ChangeStop amman`: the date by the clocks of the place, as the trip file has it."""
    thing = step.target if step.makes is None else step.makes
    words = [step.command, thing.id if thing else ""]
    if step.when is not None:
        words.insert(0, f"{step.when.day} {step.when:%b %H:%M}")
    return " ".join(word for word in words if word)
