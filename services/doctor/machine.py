"""This machine: its program, the kernel's clock and the room on disks."""

import ctypes
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from services.doctor.findings import Finding, fail, in_thread, ok, warn
from shared.migrations import head
from shared.time_zones import tz_release

WARN_FREE: Final = 0.20
FAIL_FREE: Final = 0.05
FAIL_BYTES: Final = 512 * 2**20
UNSYNCHRONISED: Final = 0x40  # STA_UNSYNC, adjtimex(2)
TIME_ERROR: Final = 5
_STATUS_AT: Final = 40
"""Where `status` stands in `struct timex` of a 64-bit Linux."""


async def program(version: str, services: Sequence[str]) -> list[Finding]:
    """What runs here."""
    heads = ", ".join(f"{name} {head(f'services/{name}/migrations')}" for name in services)
    found = f"attache {version}, Python {platform.python_version()}, time zones {tz_release()}, schemas {heads}"
    return [ok("program", found)]


async def kernel_clock() -> list[Finding]:
    """Whether the kernel's clock is kept right, where the kernel tells."""
    return [clock_finding(_adjtimex())]


def clock_finding(told: tuple[int, int] | None) -> Finding:
    """By adjtimex's own result and its status."""
    if told is None:
        return ok("clock kernel", "the kernel does not tell here")
    state, status = told
    if state == TIME_ERROR or status & UNSYNCHRONISED:
        return warn("clock kernel", "nothing keeps this machine's clock right", "run a time service (chrony, ntpd)")
    return ok("clock kernel", "synchronised")


def _adjtimex() -> tuple[int, int] | None:
    """Read only: `modes` is 0. A container without the right, or another system, is told nothing."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "adjtimex", None)
    if call is None or platform.machine() not in ("x86_64", "aarch64"):
        return None
    timex = ctypes.create_string_buffer(256)
    state = call(timex)
    return None if state < 0 else (state, ctypes.c_int.from_buffer(timex, _STATUS_AT).value)


async def disk(path: Path) -> list[Finding]:
    """The room at one path, of which nothing is read."""
    try:
        stat = await in_thread(lambda: os.statvfs(path))
    except OSError as error:
        return [fail(f"disk {path}", error.strerror or type(error).__name__, "mend DOCTOR_VOLUMES, or mount it")]
    return [disk_finding(str(path), stat.f_bavail * stat.f_frsize, stat.f_blocks * stat.f_frsize)]


def disk_finding(path: str, free: int, size: int) -> Finding:
    """By free and whole size in bytes."""
    share = free / size if size else 0.0
    found = f"{free / 2**30:.1f} of {size / 2**30:.1f} GB free ({share:.0%})"
    if share < FAIL_FREE or free < FAIL_BYTES:
        return fail(f"disk {path}", found, "make room now: a full disk stops every command")
    if share < WARN_FREE:
        return warn(f"disk {path}", found, "make room, or make the volume larger")
    return ok(f"disk {path}", found)
