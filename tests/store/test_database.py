"""What the store promises: transactions whole or not at all, order kept, revisions that only grow."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from ringfence.application.errors import Conflict, NotFound, Unavailable
from ringfence.application.ports import PolicyChange, RuleRecord, SandboxRecord
from ringfence.policy.governance import Base
from ringfence.sandbox.model import Desired, Limits, Owner, SandboxSpec, Workspace
from ringfence.store import database
from ringfence.store.database import Database
from ringfence.store.tables import HEAD, METADATA


def spec(name: str = "lab", identifier: str = "i-1") -> SandboxSpec:
    return SandboxSpec(
        id=identifier,
        name=name,
        agent="shell",
        owner=Owner(uid=1000, gid=1000, name="dev"),
        runtime="gvisor",
        workspaces=(Workspace(path="/w"), Workspace(path="/docs", readonly=True)),
        environment=(("A", "1"), ("B", "zwei ä")),
        limits=Limits(cpus=1.5, memory=1 << 30),
        anonymous=True,
    )


def rule(identifier: str, sandbox: str = "") -> RuleRecord:
    return RuleRecord(
        id=identifier, sandbox=sandbox, created=2.0, body={"effect": "deny", "resources": ["x.org"]}
    )


def use(path: Path, work: Callable[[Database], Awaitable[None]]) -> None:
    async def whole() -> None:
        store = Database(path)
        try:
            await store.open()
            await work(store)
        finally:
            await store.close()

    asyncio.run(whole())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ringfence.db"


def test_what_goes_in_comes_out_after_a_restart(path: Path) -> None:
    record = SandboxRecord(spec=spec(), desired=Desired.RUNNING, base=Base.OWN, created=1.0)

    async def write(store: Database) -> None:
        policy = await store.add_sandbox(record, [rule("r-1", "i-1")])
        assert [each.id for each in policy.rules] == ["r-1"]

    async def read(store: Database) -> None:
        assert list(await store.sandboxes()) == [record]
        assert (await store.policy()).rules == (rule("r-1", "i-1"),)

    use(path, write)
    use(path, read)


def test_a_name_is_taken_whatever_its_case_and_nothing_is_changed(path: Path) -> None:
    async def work(store: Database) -> None:
        await store.add_sandbox(SandboxRecord(spec=spec("Lab")), [])
        before = await store.policy()
        with pytest.raises(Conflict, match="already exists"):
            await store.add_sandbox(SandboxRecord(spec=spec("lAB", "i-2")), [rule("r-1", "i-2")])
        assert await store.policy() == before
        assert len(await store.sandboxes()) == 1

    use(path, work)


def test_forgetting_a_sandbox_forgets_its_rules_and_no_others(path: Path) -> None:
    async def work(store: Database) -> None:
        await store.change(PolicyChange(added=(rule("r-0"),)))
        await store.add_sandbox(SandboxRecord(spec=spec()), [rule("r-1", "i-1")])
        policy = await store.forget("i-1")
        assert [each.id for each in policy.rules] == ["r-0"]
        assert list(await store.sandboxes()) == []

    use(path, work)


def test_every_change_grows_the_revision_and_a_refused_one_does_nothing(path: Path) -> None:
    async def work(store: Database) -> None:
        one = await store.change(PolicyChange(preset="balanced", added=(rule("r-1"), rule("r-2"))))
        two = await store.change(
            PolicyChange(disabled=frozenset({"default-x", "default-y/part"}), removed=("r-1",))
        )
        assert (one.revision, two.revision) == (1, 2)
        assert two.preset == "balanced"
        assert two.disabled == {"default-x", "default-y/part"}
        assert [each.id for each in two.rules] == ["r-2"]
        with pytest.raises(Conflict):
            await store.change(PolicyChange(preset="deny-all", added=(rule("r-2"),)))
        with pytest.raises(Conflict):
            await store.change(PolicyChange(added=(rule("r-3", "no such sandbox"),)))
        assert await store.policy() == two

    use(path, work)


def test_rules_keep_the_order_in_which_they_were_written(path: Path) -> None:
    async def work(store: Database) -> None:
        for number in (3, 1, 2):
            await store.change(PolicyChange(added=(rule(f"r-{number}"),)))
        await store.change(PolicyChange(removed=("r-2",)))
        policy = await store.change(PolicyChange(added=(rule("r-0"),)))
        assert [each.id for each in policy.rules] == ["r-3", "r-1", "r-0"]

    use(path, work)


def test_what_is_desired_is_kept_for_a_sandbox_that_is_there(path: Path) -> None:
    async def work(store: Database) -> None:
        await store.add_sandbox(SandboxRecord(spec=spec()), [])
        await store.desire("i-1", Desired.REMOVED)
        assert (await store.sandboxes())[0].desired is Desired.REMOVED
        with pytest.raises(NotFound):
            await store.desire("i-2", Desired.REMOVED)

    use(path, work)


def test_a_hundred_changes_at_once_all_count(path: Path) -> None:
    async def work(store: Database) -> None:
        await asyncio.gather(*(store.change(PolicyChange(added=(rule(f"r-{n}"),))) for n in range(100)))
        policy = await store.policy()
        assert policy.revision == 100
        assert len(policy.rules) == 100

    use(path, work)


def test_a_full_disk_is_told_and_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare = database._prepare

    def small(connection: sqlite3.Connection, record: object) -> None:
        prepare(connection, record)
        connection.execute("PRAGMA max_page_count=40")

    monkeypatch.setattr(database, "_prepare", small)

    async def work(store: Database) -> None:
        before = await store.change(PolicyChange(preset="balanced"))
        body = {"effect": "deny", "resources": ["x" * 200_000]}
        with pytest.raises(Unavailable, match="nothing was changed") as refused:
            await store.change(PolicyChange(preset="deny-all", added=(RuleRecord(id="r-1", body=body),)))
        assert refused.value.code == "storage-full"
        assert "make room" in refused.value.hint
        assert await store.policy() == before
        assert (await store.change(PolicyChange(added=(rule("r-1"),)))).revision == before.revision + 1

    use(path, work)


def test_a_foreign_writer_is_waited_for_and_then_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_TIMEOUT", 0.05)

    async def work(store: Database) -> None:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unavailable) as refused:
            await store.change(PolicyChange(preset="balanced"))
        assert "another program" in refused.value.hint
        other.execute("ROLLBACK")
        other.close()
        assert (await store.change(PolicyChange(preset="balanced"))).preset == "balanced"

    use(path, work)


def test_a_file_that_is_no_database_is_refused_and_left_alone(path: Path) -> None:
    path.write_bytes(b"not a database, but somebody's" * 100)
    with pytest.raises(Unavailable, match="cannot be used"):
        use(path, lambda _store: asyncio.sleep(0))
    assert path.read_bytes().startswith(b"not a database")


def test_a_database_of_a_newer_version_is_refused(path: Path) -> None:
    use(path, lambda _store: asyncio.sleep(0))
    with sqlite3.connect(path) as db:
        db.execute("UPDATE alembic_version SET version_num = '9999'")
    db.close()
    with pytest.raises(Unavailable, match="newer version"):
        use(path, lambda _store: asyncio.sleep(0))


def test_a_new_database_is_what_the_migrations_make(tmp_path: Path) -> None:
    schemas = []
    for name, make in (("created", database.create), ("migrated", lambda db: database.upgrade(db, tmp_path))):
        engine = sa.create_engine(f"sqlite:///{tmp_path / name}")
        with engine.begin() as db:
            make(db)
            rows = db.exec_driver_sql(
                "SELECT type, name, tbl_name FROM sqlite_master ORDER BY type, name"
            ).all()
            columns = {t: sa.inspect(db).get_columns(t) for t in sa.inspect(db).get_table_names()}
            keys = {t: sa.inspect(db).get_foreign_keys(t) for t in columns}
            content = [db.exec_driver_sql(f"SELECT * FROM {t}").all() for t in sorted(columns)]
            schemas.append(repr((rows, columns, keys, content)))
            assert compare_metadata(MigrationContext.configure(db), METADATA) == []
        engine.dispose()
    assert schemas[0] == schemas[1]
    assert ScriptDirectory(str(Path(database.__file__).with_name("migrations"))).get_current_head() == HEAD


def test_what_was_written_is_durable_and_sound(path: Path) -> None:
    async def work(store: Database) -> None:
        await store.change(PolicyChange(preset="balanced"))
        assert await store.check() == ""

    use(path, work)
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    db.close()


def test_a_damaged_row_is_no_sandbox(path: Path) -> None:
    use(path, lambda store: store.add_sandbox(SandboxRecord(spec=spec()), []))  # type: ignore[arg-type]
    with sqlite3.connect(path) as db:
        db.execute('UPDATE sandboxes SET spec = \'{"id": "i-1"}\'')
    db.close()
    with pytest.raises(Unavailable, match="cannot be read"):
        use(path, lambda store: store.sandboxes())  # type: ignore[arg-type]
