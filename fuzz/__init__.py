"""Coverage-guided fuzzing of everything that reads hostile bytes.

One module per reader; its ``one(data)`` feeds the reader and asserts what must hold for any bytes. ``python -m fuzz``
runs it under atheris (dependency group ``fuzz``) from the repository's root::

    python -m fuzz --seconds 60          # everything
    python -m fuzz sniff dns             # these

What crashes is written into ``fuzz/corpus/<name>``, and the test suite runs ``one`` over all of that and over
mutations of it: a crash that was found once is a test from then on. What merely reaches new code is kept in the
temporary directory.
"""
