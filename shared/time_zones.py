"""The one time zone database: the pinned `tzdata` package, never the files of the machine, which differ."""

from importlib import import_module


def tz_release() -> str:
    """The IANA release of the pinned database, such as "2026f"; it stands beside each instant that it derived."""
    release: str = import_module("tzdata").IANA_VERSION  # a package of data, without types
    return release
