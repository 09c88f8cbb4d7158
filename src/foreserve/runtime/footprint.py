"""What memory a process holds, as the kernel of Linux counts it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec


class Footprint(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes. `pss` is the fair share: a page that n processes have counts a nth in each, so sums over processes hold.

    `private` is what would be free if this process ended, `shared` what others have as well. Both are of its pages in
    memory, each of which Rss would count in full in every process.
    """

    pss: int
    private: int
    shared: int


def footprint(pid: int | None = None) -> Footprint | None:
    """Of process `pid` (`None`: this one); `None` where it is gone, another user's, or the system does not tell.

    Walks its page tables: it takes milliseconds for each GiB in use.
    """
    try:
        figures = _kilobytes(Path(f"/proc/{pid or 'self'}/smaps_rollup").read_text().splitlines()[1:])
        return Footprint(
            pss=figures["Pss"],
            private=sum(figures.get(name, 0) for name in ("Private_Clean", "Private_Dirty", "Private_Hugetlb")),
            shared=sum(figures.get(name, 0) for name in ("Shared_Clean", "Shared_Dirty", "Shared_Hugetlb")),
        )
    except (OSError, KeyError):
        return None


class Writable(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes that only this process may write to: `reserved` is what RLIMIT_DATA bounds, `used` is in memory or swapped.

    Pages that it shares with the process it was forked from count, until either ends, as if it had written to them.
    """

    reserved: int
    used: int


def writable() -> Writable | None:
    """Of this process; counters that the kernel keeps, so it takes microseconds. `None` where they are not told."""
    try:
        figures = _kilobytes(Path("/proc/self/status").read_text().splitlines())
        return Writable(reserved=figures["VmData"], used=figures["RssAnon"] + figures["VmSwap"])
    except (OSError, KeyError):
        return None


def _kilobytes(lines: Iterable[str]) -> dict[str, int]:
    """Lines of the form `Name: 123 kB`, in bytes."""
    figures = {}
    for line in lines:
        name, _, rest = line.partition(":")
        words = rest.split()
        if len(words) == 2 and words[1] == "kB":
            figures[name] = int(words[0]) * 1024
    return figures
