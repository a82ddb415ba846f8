"""One file for each step of the schema; a released file never changes."""
