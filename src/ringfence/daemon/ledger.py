"""The ledger on disk: JSON Lines in numbered segments, appended with group commit.

One thread writes. It takes everything that waits, writes it with one ``write`` and one ``fdatasync`` and only then
answers, so many writers share one trip to the disk. A batch that does not fit (a full disk) is cut off again: the file
never holds half a record. What a crash left behind at the end is cut off at the next start; nobody was told that it
was written.
"""

from __future__ import annotations

import asyncio
import json
import os
import queue
import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ringfence.application.errors import Unavailable

SEGMENT = 64 * 1024 * 1024
"""Bytes after which the next batch begins a new segment."""
CHUNK = 1024 * 1024
PAGE = 256
"""Records handed from the reading thread to the loop at a time."""


@dataclass(slots=True)
class _Batch:
    records: Sequence[Mapping[str, Any]]
    written: Future[Sequence[Mapping[str, Any]]]


class SegmentedLedger:
    """Implements :class:`ringfence.application.ports.Ledger`."""

    def __init__(self, directory: Path) -> None:
        """Open or make the ledger. Raises ``Unavailable`` if that is not possible."""
        self._directory = directory
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._number = max(self._numbers(), default=1)
            self._file, self._size = self._open(self._number)
        except OSError as error:
            raise self._unwritable(error) from error
        self._sequence = self._last_sequence()
        self.failure = ""
        """Why the last batch could not be written; empty when it could."""
        self._waiting: queue.SimpleQueue[_Batch | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write_all, name="ledger", daemon=True)
        self._thread.start()

    async def append(self, records: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        batch = _Batch(records, Future())
        self._waiting.put(batch)
        return await asyncio.shield(asyncio.wrap_future(batch.written))

    async def read(
        self, *, newest: int, matching: Sequence[bytes], since: float = 0.0
    ) -> AsyncIterator[Mapping[str, Any]]:
        """See the port. Segments that were not written to ``since`` then are left out."""
        found = self._newest(newest, matching) if newest else self._all(matching, since)
        while page := await asyncio.to_thread(_take, found, PAGE):
            for record in page:
                yield record

    def close(self) -> None:
        """Write what waits and end."""
        self._waiting.put(None)
        self._thread.join()
        os.close(self._file)

    # Files

    def _numbers(self) -> list[int]:
        return sorted(int(path.stem) for path in self._directory.glob("*.jsonl") if path.stem.isdigit())

    def _path(self, number: int) -> Path:
        return self._directory / f"{number:08d}.jsonl"

    def _open(self, number: int) -> tuple[int, int]:
        """Open a segment for appending, without the torn record that a crash may have left."""
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        file = os.open(self._path(number), flags, 0o600)
        size = _whole(file)
        if os.fstat(file).st_size != size:
            os.ftruncate(file, size)
        directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
        return file, size

    def _last_sequence(self) -> int:
        for line in self._backwards():
            return int(json.loads(line)["sequence"])
        return 0

    # Writing, on the one thread

    def _write_all(self) -> None:
        ending = False
        while not ending:
            batches = []
            first = self._waiting.get()
            while first is not None:
                batches.append(first)
                try:
                    first = self._waiting.get_nowait()
                except queue.Empty:
                    break
            ending = first is None
            if batches:
                self._commit(batches)

    def _commit(self, batches: Sequence[_Batch]) -> None:
        sequence = self._sequence
        lines: list[bytes] = []
        answers: list[tuple[_Batch, list[Mapping[str, Any]]]] = []
        for batch in batches:
            written: list[Mapping[str, Any]] = []
            for record in batch.records:
                sequence += 1
                numbered: Mapping[str, Any] = {"sequence": sequence, **record}
                lines.append(json.dumps(numbered, separators=(",", ":")).encode())
                written.append(numbered)
            answers.append((batch, written))
        try:
            self._put(b"\n".join(lines) + b"\n" if lines else b"")
        except OSError as error:
            failure = self._unwritable(error)
            self.failure = str(failure)
            for batch in batches:
                batch.written.set_exception(failure)
            return
        self._sequence = sequence
        self.failure = ""
        for batch, written in answers:
            batch.written.set_result(written)

    def _put(self, content: bytes) -> None:
        if self._size >= SEGMENT:
            file, size = self._open(self._number + 1)
            os.close(self._file)
            self._number, self._file, self._size = self._number + 1, file, size
        rest = memoryview(content)
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
            os.fdatasync(self._file)
        except OSError:
            os.ftruncate(self._file, self._size)
            raise
        self._size += len(content)

    def _unwritable(self, error: OSError) -> Unavailable:
        return Unavailable(
            f"the ledger `{self._directory}` cannot be written: {error.strerror}; nothing was changed",
            hint="make room on the disk; nothing is recorded, and nothing new is allowed to start, until then",
            code="ledger",
        )

    # Reading, on any thread: segments only grow

    def _all(self, matching: Sequence[bytes], since: float) -> Iterator[Mapping[str, Any]]:
        for number in self._numbers():
            with open(self._path(number), "rb") as file:
                if os.fstat(file.fileno()).st_mtime < since:
                    continue
                for line in file:
                    if line.endswith(b"\n") and all(needle in line for needle in matching):
                        yield json.loads(line)

    def _newest(self, count: int, matching: Sequence[bytes]) -> Iterator[Mapping[str, Any]]:
        found: list[bytes] = []
        for line in self._backwards():
            if all(needle in line for needle in matching):
                found.append(line)
                if len(found) == count:
                    break
        for line in reversed(found):
            yield json.loads(line)

    def _backwards(self) -> Iterator[bytes]:
        """Yield whole lines, newest first, in bounded memory."""
        for number in reversed(self._numbers()):
            with open(self._path(number), "rb") as file:
                at = _whole(file.fileno())
                rest = b""
                while at:
                    start = max(0, at - CHUNK)
                    rest, *lines = (os.pread(file.fileno(), at - start, start) + rest).split(b"\n")
                    yield from (line for line in reversed(lines) if line)
                    at = start
                if rest:
                    yield rest


def _whole(file: int) -> int:
    """Return where the last whole line of a file ends."""
    end = os.fstat(file).st_size
    while end and os.pread(file, 1, end - 1) != b"\n":
        start = max(0, end - CHUNK)
        end = start + os.pread(file, end - start, start).rfind(b"\n") + 1
    return end


def _take(source: Iterator[Mapping[str, Any]], count: int) -> list[Mapping[str, Any]]:
    page = []
    for record in source:
        page.append(record)
        if len(page) == count:
            break
    return page
