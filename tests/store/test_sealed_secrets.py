"""The sealed file: whole or not at all, nobody else's, and nothing in it exchanged, changed or taken away unseen."""

from __future__ import annotations

import asyncio
import base64
import os
import stat
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringfence.application.errors import Unavailable
from ringfence.sandbox.credentials import SERVICES
from ringfence.sandbox.secrets import Kind, Secret
from ringfence.store import secrets as store
from ringfence.store.key_holders import KeyFile, Keyring
from ringfence.store.secrets import Backend, KeyHolder, SealedVault

CANARY = "sk-canary-5f2a7c"
OPENAI = Secret(kind=Kind.SERVICE, name="openai", parts=(("value", CANARY),), created=1.5)
CUSTOM = Secret(
    kind=Kind.CUSTOM,
    name="TOKEN",
    scope="i-1",
    command=("gh", "auth", "token"),
    refresh=3300.0,
    hosts=("*.example.com",),
    headers=("authorization", "x-key"),
    placeholder="sbx-cs-abcdefgh",
    in_body=True,
)


class FakeRing:
    """A keyring in memory, as the package `keyring` would hand it out."""

    def __init__(self) -> None:
        self.entries: dict[tuple[str, str], str] = {}

    def set_password(self, service: str, name: str, value: str) -> None:
        self.entries[service, name] = value

    def get_password(self, service: str, name: str) -> str | None:
        return self.entries.get((service, name))

    def delete_password(self, service: str, name: str) -> None:
        del self.entries[service, name]


@pytest.fixture
def ring(monkeypatch: pytest.MonkeyPatch) -> FakeRing:
    """A desktop: the package is installed, and a keyring answers."""
    found = FakeRing()
    package = ModuleType("keyring")
    package.get_keyring = lambda: found  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "keyring", package)
    return found


@pytest.fixture
def headless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a desktop: the package is there and chooses the backend that fails."""
    failing = type("Keyring", (), {"__module__": "keyring.backends.fail"})
    package = ModuleType("keyring")
    package.get_keyring = failing  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "keyring", package)


class NoSystem:
    protects = "-"

    def why_not(self) -> str:
        return "systemd does not run here"

    def fetch(self) -> bytes:
        raise AssertionError

    def keep(self, key: bytes) -> None:
        raise AssertionError


def vault(directory: Path, backend: Backend = "file") -> SealedVault:
    holders: dict[str, KeyHolder] = {
        "keyring": Keyring("test"),
        "systemd-creds": NoSystem(),
        "key-file": KeyFile(directory / "key"),
    }
    return SealedVault(directory, backend, holders)


def read(found: SealedVault) -> tuple[Secret, ...]:
    return tuple(asyncio.run(found.read()))


def write(found: SealedVault, *kept: Secret) -> None:
    asyncio.run(found.write(kept))


def test_what_is_written_is_read_by_the_next_daemon(tmp_path: Path) -> None:
    first = vault(tmp_path / "s")
    assert read(first) == ()
    assert not (tmp_path / "s").exists(), "looking makes nothing"
    write(first, OPENAI, CUSTOM)
    assert read(vault(tmp_path / "s")) == (OPENAI, CUSTOM)
    write(first)
    assert read(vault(tmp_path / "s")) == ()


TEXT = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=200)
SECRETS = st.builds(
    Secret,
    kind=st.sampled_from([Kind.CUSTOM, Kind.REGISTRY]),
    name=TEXT,
    scope=st.sampled_from(["", "host", "i-1"]),
    created=st.floats(allow_nan=False, allow_infinity=False),
    parts=st.lists(st.tuples(TEXT, TEXT), max_size=3).map(tuple),
    command=st.lists(TEXT, max_size=4).map(tuple),
    refresh=st.floats(0, 1e6),
    exclusive=st.booleans(),
    placeholder=TEXT,
    hosts=st.lists(TEXT, max_size=3).map(tuple),
    headers=st.lists(TEXT, max_size=3).map(tuple),
    username=TEXT,
)


@settings(max_examples=60, deadline=None)
@given(kept=st.lists(SECRETS, max_size=5), service=st.sampled_from(sorted(SERVICES)))
def test_anything_comes_back_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, kept: list[Secret], service: str
) -> None:
    directory = tmp_path_factory.mktemp("sealed")
    secrets = (*kept, replace(OPENAI, name=service))
    write(vault(directory), *secrets)
    assert read(vault(directory)) == secrets


def test_nothing_of_it_is_in_the_clear_and_everything_is_its_owner_s_alone(tmp_path: Path) -> None:
    directory = tmp_path / "s"
    write(vault(directory), OPENAI, CUSTOM)
    write(vault_after_reading(directory), OPENAI, CUSTOM)
    assert {path.name for path in directory.iterdir()} == {"key", "sealed"}
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    for path in directory.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        for text in (CANARY, "openai", "TOKEN", "example.com"):
            assert text.encode() not in path.read_bytes()
    assert CANARY not in repr(OPENAI)


def vault_after_reading(directory: Path) -> SealedVault:
    found = vault(directory)
    read(found)
    return found


def test_the_same_content_is_never_sealed_twice_alike(tmp_path: Path) -> None:
    found = vault(tmp_path)
    sealed = set()
    for _ in range(20):
        write(found, OPENAI)
        sealed.add((tmp_path / "sealed").read_bytes())
    nonces = {content.partition(b"\n")[2][:12] for content in sealed}
    assert len(sealed) == len(nonces) == 20


def test_every_changed_byte_is_noticed(tmp_path: Path) -> None:
    write(vault(tmp_path), OPENAI)
    path = tmp_path / "sealed"
    whole = path.read_bytes()
    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(Unavailable, match="cannot be opened") as refused:
            read(vault(tmp_path))
        assert CANARY not in str(refused.value)
    for cut in (0, 5, 40, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(Unavailable, match="cannot be opened"):
            read(vault(tmp_path))


def test_entries_of_two_installations_cannot_be_exchanged(tmp_path: Path) -> None:
    for name, value in (("mine", "sk-mine"), ("theirs", "sk-theirs")):
        write(vault(tmp_path / name), replace(OPENAI, parts=(("value", value),)))
    (tmp_path / "mine/sealed").write_bytes((tmp_path / "theirs/sealed").read_bytes())
    with pytest.raises(Unavailable, match="another key"):
        read(vault(tmp_path / "mine"))


def test_the_holder_in_the_first_line_is_part_of_what_is_sealed(tmp_path: Path, ring: FakeRing) -> None:
    write(vault(tmp_path, "keyring"), OPENAI)
    key = ring.entries["ringfence", "test"]
    path = tmp_path / "sealed"
    path.write_bytes(path.read_bytes().replace(b" keyring\n", b" key-file\n"))
    KeyFile(tmp_path / "key").keep(base64.b64decode(key))
    with pytest.raises(Unavailable, match="was changed"):
        read(vault(tmp_path))


@pytest.mark.parametrize("name", ["key", "sealed"])
def test_what_others_can_read_is_refused(tmp_path: Path, name: str) -> None:
    write(vault(tmp_path), OPENAI)
    (tmp_path / name).chmod(0o640)
    with pytest.raises(Unavailable, match="can be read by others") as refused:
        read(vault(tmp_path))
    assert "chmod 600" in refused.value.hint


def test_a_link_in_the_place_of_the_file_is_not_followed(tmp_path: Path) -> None:
    write(vault(tmp_path), OPENAI)
    (tmp_path / "sealed").rename(tmp_path / "elsewhere")
    (tmp_path / "sealed").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Unavailable, match="cannot be read"):
        read(vault(tmp_path))


@pytest.mark.parametrize("call", ["write", "fsync", "rename"])
def test_a_crash_in_the_middle_of_writing_keeps_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    found = vault(tmp_path)
    write(found, OPENAI)

    class Died(BaseException):
        pass

    def die(*_arguments: object, **_options: object) -> None:
        raise Died

    with monkeypatch.context() as patch:
        if call == "fsync":
            patch.setattr(store.os, "fsync", die)
        elif call == "rename":
            patch.setattr(Path, "rename", die)
        else:
            patch.setattr(store.os, "open", die)
        with pytest.raises(Died):
            write(found, CUSTOM)
    (tmp_path / "sealed.new").write_bytes(b"half of it")  # and what a power cut leaves
    assert read(vault(tmp_path)) == (OPENAI,)
    write(vault_after_reading(tmp_path), CUSTOM)
    assert read(vault(tmp_path)) == (CUSTOM,)


def test_a_full_disk_says_so_and_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = vault(tmp_path)
    write(found, OPENAI)

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(store.os, "fsync", full)
        with pytest.raises(Unavailable, match="No space left on device; nothing was changed"):
            write(found, CUSTOM)
    assert read(vault(tmp_path)) == (OPENAI,)


def test_what_was_not_read_is_not_overwritten(tmp_path: Path) -> None:
    write(vault(tmp_path), OPENAI)
    with pytest.raises(Unavailable, match="it has not been read"):
        write(vault(tmp_path), CUSTOM)
    assert read(vault(tmp_path)) == (OPENAI,)


def test_a_lost_key_is_named(tmp_path: Path) -> None:
    write(vault(tmp_path), OPENAI)
    (tmp_path / "key").unlink()
    with pytest.raises(Unavailable, match="the secrets cannot be opened without it"):
        read(vault(tmp_path))


# Who holds the key


def held(directory: Path, backend: Backend) -> tuple[str, str]:
    found = vault(directory, backend)
    read(found)
    custody = asyncio.run(found.custody())
    return custody.holder, custody.reason


def test_auto_takes_a_keyring_that_answers(tmp_path: Path, ring: FakeRing) -> None:
    write(vault(tmp_path, "auto"), OPENAI)
    assert list(ring.entries) == [("ringfence", "test")], "the probe is gone again"
    assert not (tmp_path / "key").exists()
    assert CANARY not in str(ring.entries)
    assert held(tmp_path, "auto") == ("keyring", "it holds the key already")
    assert read(vault(tmp_path, "auto")) == (OPENAI,)


def test_auto_says_why_it_took_a_file_and_stays_with_it(
    tmp_path: Path, headless: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert held(tmp_path, "auto") == (
        "key-file",
        "there is no keyring here (`keyring.backends.fail` was chosen)",
    )
    write(vault(tmp_path, "auto"), OPENAI)
    package = ModuleType("keyring")
    package.get_keyring = FakeRing  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "keyring", package)
    assert held(tmp_path, "auto") == ("key-file", "it holds the key already")


def test_keyring_on_a_machine_without_one_is_an_error_and_never_a_file(
    tmp_path: Path, headless: None
) -> None:
    with pytest.raises(Unavailable, match="is `keyring`, and there is none") as refused:
        write(vault(tmp_path, "keyring"), OPENAI)
    assert 'backend = "file"' in refused.value.hint
    assert not (tmp_path / "sealed").exists()


def test_without_the_package_there_is_no_keyring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "keyring", None)
    assert held(tmp_path, "auto") == ("key-file", "the package `keyring` is not installed")


@pytest.mark.parametrize("module", ["keyrings.alt.file", "keyring.backends.null"])
def test_a_keyring_that_keeps_plain_text_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    package = ModuleType("keyring")
    package.get_keyring = type("Keyring", (FakeRing,), {"__module__": module})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "keyring", package)
    assert held(tmp_path, "auto")[0] == "key-file"


@pytest.mark.parametrize("modules", [(), ("keyring.backends.SecretService", "keyrings.alt.file")])
def test_a_chain_of_keyrings_is_one_if_all_of_it_is(
    tmp_path: Path, ring: FakeRing, modules: tuple[str, ...]
) -> None:
    ring.backends = [type("Keyring", (), {"__module__": module})() for module in modules]  # type: ignore[attr-defined]
    assert held(tmp_path, "auto")[0] == "key-file"


def test_a_keyring_that_fails_or_forgets_is_none(tmp_path: Path, ring: FakeRing) -> None:
    ring.get_password = lambda *_name: None  # type: ignore[method-assign]
    assert held(tmp_path, "auto") == ("key-file", "it does not give back what it was given")
    ring.set_password = lambda *_name: 1 / 0  # type: ignore[method-assign]
    assert held(tmp_path, "auto") == ("key-file", "it failed: ZeroDivisionError")


def test_a_keyring_that_is_lost_is_an_error_and_not_an_empty_one(tmp_path: Path, ring: FakeRing) -> None:
    write(vault(tmp_path, "auto"), OPENAI)
    ring.entries.clear()
    with pytest.raises(Unavailable, match="the keyring has no key"):
        read(vault(tmp_path, "auto"))


def test_another_choice_seals_anew(tmp_path: Path, ring: FakeRing) -> None:
    write(vault(tmp_path, "keyring"), OPENAI)
    assert held(tmp_path, "file") == ("key-file", "it was chosen")
    ring.entries.clear()
    assert read(vault(tmp_path, "file")) == (OPENAI,)
    assert held(tmp_path, "keyring")[0] == "keyring"
    assert read(vault(tmp_path, "keyring")) == (OPENAI,)


def test_none_keeps_nothing_and_reads_nothing(tmp_path: Path) -> None:
    write(vault(tmp_path), OPENAI)
    off = vault(tmp_path, "none")
    assert read(off) == ()
    with pytest.raises(Unavailable, match="switched off"):
        write(off, CUSTOM)
    custody = asyncio.run(off.custody())
    assert (custody.holder, custody.reason) == (
        "",
        "secrets are switched off; a sealed file is there and not read",
    )
    assert read(vault(tmp_path)) == (OPENAI,)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give a file away")
def test_a_file_of_somebody_else_is_refused(tmp_path: Path) -> None:
    write(vault(tmp_path), OPENAI)
    os.chown(tmp_path / "sealed", 12345, 12345)
    with pytest.raises(Unavailable, match="is not yours"):
        read(vault(tmp_path))
