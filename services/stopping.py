"""Ctrl-C, SIGTERM and the end of the terminal as one wish, at every phase: before the event loop, in it, after it."""

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

LINE = b"stopping\n"


class Signals:
    """Signals to stop, while it is entered. `asked` counts them.

    The first raises KeyboardInterrupt, later ones are left to it; once `hand_to` was called each one calls that
    function instead, so that an event loop can end its own work. What a child starts with is not changed.
    """

    def __init__(self) -> None:
        self.asked = 0
        self._heed: Callable[[], object] | None = None
        self._before: dict[signal.Signals, Any] = {}

    def hand_to(self, heed: Callable[[], object]) -> None:
        """From now on a signal calls `heed`, in the main thread, between two of its steps."""
        self._heed = heed

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # under nohup the end of the terminal is nothing to stop for
            if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._take)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _take(self, _number: int, _frame: FrameType | None) -> None:
        self.asked += 1
        if self.asked == 1:
            # not by print: the signal may have come in the middle of one
            os.write(sys.stderr.fileno(), b"\n" + LINE if sys.stderr.isatty() else LINE)
        if self._heed is not None:
            self._heed()
        elif self.asked == 1:
            raise KeyboardInterrupt
