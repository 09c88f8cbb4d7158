"""What was learned of a whole service is deleted: when somebody says so, or when nothing has come of it for long.

A server keeps what it has learned of its own services within their settings. What no setting speaks of any more,
because the service was renamed or no longer remembers, goes by the bound here.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection
from contextlib import closing
from pathlib import Path
from typing import Final, get_args

from foreserve.errors import ConfigError
from foreserve.registry import choices
from foreserve.rows import connect
from foreserve.samples import samples_file
from foreserve.services.training import Tier, model_path

LEFT_DAYS: Final = 30.0
"""How long after its last answer a service is kept that is not served here: another server may share the folder."""


def forget_service(folder: Path, service: str) -> int:
    """Delete all that was learned of a service, its models too; returns how many answers that were.

    A server that runs gives up its models at the latest after its `train_s`. Raises ConfigError for a service of which
    nothing is known, and when the store cannot be written.
    """
    path = samples_file(folder)
    try:
        with closing(connect(path)) as database:
            database.execute("PRAGMA secure_delete = ON")
            with database:
                database.execute("BEGIN IMMEDIATE")
                known = _services(database)
                if service not in known:
                    raise ConfigError(
                        f"nothing was learned of a service {service!r} in {folder}{choices(service, sorted(known))}"
                    )
                (count,) = database.execute("SELECT count(*) FROM samples WHERE service = ?", (service,)).fetchone()
                _delete(database, folder, service)
                # Who serves it now has a model in memory, or one in training.
                database.execute("INSERT INTO models VALUES (?, 0, 0, 1, 0)", (service,))
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            return int(count)
    except (sqlite3.Error, OSError) as error:
        raise ConfigError(f"the learning store {path} cannot be written: {error}") from None


def learned_services(folder: Path) -> set[str]:
    """The services of which something was learned. Raises ConfigError when the store cannot be read."""
    path = samples_file(folder)
    if not path.exists():
        return set()
    try:
        with closing(connect(path)) as database:
            return set(_services(database))
    except sqlite3.Error as error:
        raise ConfigError(f"the learning store {path} cannot be read: {error}") from None


def expire_left(folder: Path, served: Collection[str], wall: float) -> list[str]:
    """Delete what was learned of services not in `served` whose newest answer is older than `LEFT_DAYS` at `wall`.

    Returns their names. Does nothing where there is no store. Raises sqlite3.Error and OSError.
    """
    path = samples_file(folder)
    if not path.exists():
        return []
    with closing(connect(path)) as database:
        database.execute("PRAGMA secure_delete = ON")
        with database:
            database.execute("BEGIN IMMEDIATE")
            newest = _services(database)
            left = [name for name, at in sorted(newest.items()) if name not in served]
            left = [name for name in left if newest[name] < wall - LEFT_DAYS * 86_400]
            for name in left:
                _delete(database, folder, name)
    return left


def _services(database: sqlite3.Connection) -> dict[str, float]:
    """When each was last heard of, in seconds since the epoch."""
    rows = database.execute(
        "SELECT service, max(at) FROM (SELECT service, at FROM samples UNION ALL SELECT service, at FROM models "
        "UNION ALL SELECT service, 0 FROM notes) GROUP BY service"
    )
    return {name: float(at) for name, at in rows.fetchall()}


def _delete(database: sqlite3.Connection, folder: Path, service: str) -> None:
    for table in ("samples", "models", "notes"):
        database.execute(f"DELETE FROM {table} WHERE service = ?", (service,))
    for tier in get_args(Tier):
        model_path(folder, service, tier).unlink(missing_ok=True)
