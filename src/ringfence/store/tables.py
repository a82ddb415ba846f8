"""The tables, as they are after the newest migration; ``migrations`` makes them, nothing else does."""

from __future__ import annotations

import sqlalchemy as sa

HEAD = "0001"
"""The newest migration. A database that says so needs no other look."""

METADATA = sa.MetaData()

SANDBOXES = sa.Table(
    "sandboxes",
    METADATA,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("name", sa.Text(collation="NOCASE"), nullable=False, unique=True),
    sa.Column("desired", sa.Text, nullable=False),
    sa.Column("base", sa.Text, nullable=False),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("spec", sa.JSON, nullable=False),
)

RULES = sa.Table(
    "rules",
    METADATA,
    sa.Column("position", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("id", sa.Text, nullable=False, unique=True),
    sa.Column("sandbox", sa.Text, sa.ForeignKey("sandboxes.id", ondelete="CASCADE"), index=True),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("created_via", sa.Text, nullable=False),
    sa.Column("body", sa.JSON, nullable=False),
    sqlite_autoincrement=True,
)

DISABLED = sa.Table("disabled", METADATA, sa.Column("name", sa.Text, primary_key=True))

CHOICE = sa.Table(
    "choice",
    METADATA,
    sa.Column("one", sa.Integer, sa.CheckConstraint("one = 1"), primary_key=True),
    sa.Column("preset", sa.Text, nullable=False),
    sa.Column("revision", sa.Integer, nullable=False),
)
"""One row: the preset, and the revision of the policy as a whole."""

VERSION = sa.Table(
    "alembic_version",
    METADATA,
    sa.Column("version_num", sa.String(32), nullable=False),
    sa.PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)
"""Alembic's own."""
