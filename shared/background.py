"""What tasks that run for ever need when something fails: to say it once, and to end all the same when they are to."""

import asyncio
import time

NEWS_SECONDS = 30.0


def heed_cancellation() -> None:
    """To be called where a failure is caught and something is tried again. Raises `CancelledError` if that was asked.

    A cancellation in the middle of a transaction whose connection is broken comes out as that connection's error: the
    rollback fails. Who takes it for a failure like others would never end.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


class News:
    """Tells whether a failure is to be logged: another one than the last, or the same after half a minute."""

    def __init__(self) -> None:
        self._last = ""
        self._told_at = 0.0

    def is_new(self, error: BaseException) -> bool:
        """Whether to say it; the kind of the error counts, its text may hold a time or an address."""
        kind, now = type(error).__name__, time.monotonic()
        if kind == self._last and now - self._told_at < NEWS_SECONDS:
            return False
        self._last, self._told_at = kind, now
        return True

    def over(self) -> None:
        """It works again: the next failure is news."""
        self._last = ""
