"""The memory of a process as it counts where pages are shared: proportional set size, never resident set size.

A page that `k` processes map adds one k-th of itself to the Pss of each, so that sums over processes are what the
machine really holds; their Rss would count it `k` times.
"""

from __future__ import annotations

from pathlib import Path

import msgspec


class ProcessMemory(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes: `pss` is this process's share, `private` what only it maps, `shared` what it maps together with others."""

    pss: int
    private: int
    shared: int


def process_memory(pid: int | str = "self") -> ProcessMemory | None:
    """Of a process, from its `smaps_rollup`; `None` where it is gone, another user's or the system does not tell."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return None
    kib: dict[str, int] = {}
    for line in text.splitlines()[1:]:
        name, _, rest = line.partition(":")
        kib[name] = int(rest.split()[0])
    if "Pss" not in kib:
        return None
    return ProcessMemory(
        pss=1024 * kib["Pss"],
        private=1024 * sum(kib.get(name, 0) for name in ("Private_Clean", "Private_Dirty", "Private_Hugetlb")),
        shared=1024 * sum(kib.get(name, 0) for name in ("Shared_Clean", "Shared_Dirty", "Shared_Hugetlb")),
    )
