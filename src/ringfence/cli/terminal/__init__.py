"""What stands between a command and a person: escaping, colour, tables, questions."""
