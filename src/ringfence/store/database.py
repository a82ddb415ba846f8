"""The store on SQLite: one connection on one thread, one writer, every method one transaction.

``journal_mode=WAL`` and ``synchronous=FULL``: what a method returned from survives a power cut. Transactions begin with
``BEGIN IMMEDIATE``, so that a reader never has to become a writer half-way, where SQLite answers ``SQLITE_BUSY``
without waiting. This is the only package that contains SQL; what goes in and comes out are the application's values.

A failure of SQLite is told apart by its code: a full disk, a foreign writer and a damaged file need different hints.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.pool import StaticPool

from ringfence.application.errors import Conflict, NotFound, RingfenceError, Unavailable
from ringfence.application.ports import PolicyChange, PolicyRecord, RuleRecord, SandboxRecord
from ringfence.policy.governance import Base
from ringfence.sandbox.model import Desired
from ringfence.store.specs import spec_from_json, spec_to_json
from ringfence.store.tables import CHOICE, DISABLED, HEAD, METADATA, RULES, SANDBOXES, VERSION

_Answer = TypeVar("_Answer")

BUSY_TIMEOUT = 5.0
"""Seconds to wait for a writer that is not us: a backup, a person with ``sqlite3``."""
_MIGRATIONS = Path(__file__).with_name("migrations")


class Database:
    """Implements :class:`ringfence.application.ports.Store`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._engine = sa.create_engine(
            sa.URL.create("sqlite", database=str(path)),
            poolclass=StaticPool,
            connect_args={"check_same_thread": False, "timeout": BUSY_TIMEOUT, "isolation_level": None},
        )
        event.listen(self._engine, "connect", _prepare)
        event.listen(self._engine, "begin", _begin)

    async def open(self) -> None:
        """Make the database or bring it up to date. Raises ``Unavailable`` for one that cannot be used."""
        await self._run(self._migrate)

    async def close(self) -> None:
        await self._on_thread(self._engine.dispose)
        self._thread.shutdown()

    async def sandboxes(self) -> Sequence[SandboxRecord]:
        return await self._run(_read_sandboxes)

    async def add_sandbox(self, record: SandboxRecord, rules: Sequence[RuleRecord]) -> PolicyRecord:
        def add(db: sa.Connection) -> PolicyRecord:
            name = record.spec.name
            if db.execute(sa.select(SANDBOXES.c.id).where(SANDBOXES.c.name == name)).first():
                raise Conflict(
                    f"sandbox `{name}` already exists",
                    hint=f"`sbx run {name}` attaches to it; `sbx rm {name}` removes it",
                    code="sandbox-exists",
                )
            row = {
                "id": record.spec.id,
                "name": name,
                "desired": record.desired,
                "base": record.base,
                "created": record.created,
                "spec": spec_to_json(record.spec),
            }
            db.execute(sa.insert(SANDBOXES).values(row))
            return _apply(db, PolicyChange(added=tuple(rules))) if rules else _read_policy(db)

        return await self._run(add)

    async def desire(self, sandbox: str, desired: Desired) -> None:
        def write(db: sa.Connection) -> None:
            done = db.execute(
                sa.update(SANDBOXES).where(SANDBOXES.c.id == sandbox).values(desired=desired.value)
            )
            if not done.rowcount:
                raise NotFound(f"sandbox `{sandbox}` not found")

        await self._run(write)

    async def forget(self, sandbox: str) -> PolicyRecord:
        def drop(db: sa.Connection) -> PolicyRecord:
            db.execute(sa.delete(SANDBOXES).where(SANDBOXES.c.id == sandbox))
            return _read_policy(db)

        return await self._run(drop)

    async def policy(self) -> PolicyRecord:
        return await self._run(_read_policy)

    async def change(self, change: PolicyChange) -> PolicyRecord:
        return await self._run(lambda db: _apply(db, change))

    async def check(self) -> str:
        def look(db: sa.Connection) -> str:
            said = str(db.exec_driver_sql("PRAGMA quick_check(1)").scalar_one())
            return "" if said == "ok" else said

        return await self._run(look)

    def _migrate(self, db: sa.Connection) -> None:
        tables = sa.inspect(db).get_table_names()
        if not tables:
            create(db)
        elif VERSION.name not in tables or db.scalar(sa.select(VERSION.c.version_num)) != HEAD:
            upgrade(db, self._path)

    async def _run(self, work: Callable[[sa.Connection], _Answer]) -> _Answer:
        """Run one transaction on the store's thread. A caller that goes away does not tear it apart."""

        def transact() -> _Answer:
            try:
                with self._engine.begin() as db:
                    return work(db)
            except DBAPIError as error:
                raise self._told_apart(error) from error

        return await self._on_thread(transact)

    async def _on_thread(self, work: Callable[[], _Answer]) -> _Answer:
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._thread, work))

    def _told_apart(self, error: DBAPIError) -> RingfenceError:
        if isinstance(error, IntegrityError):
            return Conflict(f"the database refuses the change: {error.orig}", code="store-conflict")
        code = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF
        hint = _HINTS.get(code, "look at `sbx doctor`")
        return Unavailable(
            f"the database `{self._path}` cannot be used: {error.orig}; nothing was changed",
            hint=hint,
            code="storage-full" if code == sqlite3.SQLITE_FULL else "store",
        )


_HINTS = {
    sqlite3.SQLITE_FULL: "make room on the disk, then repeat the command",
    sqlite3.SQLITE_IOERR: "make room on the disk or check it, then repeat the command",
    sqlite3.SQLITE_BUSY: "another program has the database locked; end it",
    sqlite3.SQLITE_READONLY: "the state directory must be writable for the daemon",
    sqlite3.SQLITE_CANTOPEN: "the state directory must be writable for the daemon",
    sqlite3.SQLITE_CORRUPT: "restore the file from a backup, or move it away to begin anew",
    sqlite3.SQLITE_NOTADB: "restore the file from a backup, or move it away to begin anew",
}


def create(db: sa.Connection) -> None:
    """Make a new database as the migrations would, without the third of a second that it takes to import them."""
    METADATA.create_all(db)
    db.execute(sa.insert(CHOICE).values(one=1, preset="", revision=0))
    db.execute(sa.insert(VERSION).values(version_num=HEAD))


def upgrade(db: sa.Connection, path: Path) -> None:
    """Bring a database up to date, step by step."""
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = db
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise Unavailable(
            f"the database `{path}` was written by a newer version",
            hint="use that version again, or move the file away to begin anew",
            code="store-too-new",
        ) from error


def _prepare(connection: sqlite3.Connection, _record: object) -> None:
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "trusted_schema=OFF"):
        connection.execute(f"PRAGMA {pragma}")


def _begin(db: sa.Connection) -> None:
    db.exec_driver_sql("BEGIN IMMEDIATE")


def _read_sandboxes(db: sa.Connection) -> list[SandboxRecord]:
    return [
        SandboxRecord(
            spec=spec_from_json(row.spec),
            desired=Desired(row.desired),
            base=Base(row.base),
            created=row.created,
        )
        for row in db.execute(sa.select(SANDBOXES).order_by(SANDBOXES.c.created, SANDBOXES.c.name))
    ]


def _read_policy(db: sa.Connection) -> PolicyRecord:
    choice = db.execute(sa.select(CHOICE)).one()
    return PolicyRecord(
        revision=choice.revision,
        preset=choice.preset,
        disabled=frozenset(db.scalars(sa.select(DISABLED.c.name))),
        rules=tuple(
            RuleRecord(
                id=row.id,
                sandbox=row.sandbox or "",
                created=row.created,
                created_via=row.created_via,
                body=row.body,
            )
            for row in db.execute(sa.select(RULES).order_by(RULES.c.position))
        ),
    )


def _apply(db: sa.Connection, change: PolicyChange) -> PolicyRecord:
    choice: dict[str, object] = {"revision": CHOICE.c.revision + 1}
    if change.preset is not None:
        choice["preset"] = change.preset
    if change.disabled is not None:
        db.execute(sa.delete(DISABLED))
        for name in sorted(change.disabled):
            db.execute(sa.insert(DISABLED).values(name=name))
    for identifier in change.removed:
        db.execute(sa.delete(RULES).where(RULES.c.id == identifier))
    if change.added:
        db.execute(
            sa.insert(RULES),
            [
                {
                    "id": rule.id,
                    "sandbox": rule.sandbox or None,
                    "created": rule.created,
                    "created_via": rule.created_via,
                    "body": dict(rule.body),
                }
                for rule in change.added
            ],
        )
    db.execute(sa.update(CHOICE).values(choice))
    return _read_policy(db)
