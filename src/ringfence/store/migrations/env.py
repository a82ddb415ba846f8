"""Where Alembic enters. It is only ever run on the connection that :mod:`ringfence.store.database` hands over."""

from __future__ import annotations

from alembic import context

from ringfence.store.tables import METADATA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    transactional_ddl=True,
)
context.run_migrations()
