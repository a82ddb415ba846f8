"""Sandboxes, rules, the choice of a preset and the parts of it that are off."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "sandboxes",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("name", sa.Text(collation="NOCASE"), nullable=False, unique=True),
        sa.Column("desired", sa.Text, nullable=False),
        sa.Column("base", sa.Text, nullable=False),
        sa.Column("created", sa.Float, nullable=False),
        sa.Column("spec", sa.JSON, nullable=False),
    )
    op.create_table(
        "rules",
        sa.Column("position", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("id", sa.Text, nullable=False, unique=True),
        sa.Column("sandbox", sa.Text, sa.ForeignKey("sandboxes.id", ondelete="CASCADE"), index=True),
        sa.Column("created", sa.Float, nullable=False),
        sa.Column("created_via", sa.Text, nullable=False),
        sa.Column("body", sa.JSON, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table("disabled", sa.Column("name", sa.Text, primary_key=True))
    choice = op.create_table(
        "choice",
        sa.Column("one", sa.Integer, sa.CheckConstraint("one = 1"), primary_key=True),
        sa.Column("preset", sa.Text, nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
    )
    op.bulk_insert(choice, [{"one": 1, "preset": "", "revision": 0}])
