"""The schema, step by step. Alembic finds the steps in ``versions``."""
