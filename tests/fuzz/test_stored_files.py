"""Any bytes for a stored file: reading gives its content or one of our errors, nothing else."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cisfs.errors import CisfsError
from cisfs.layer.file import EncryptedFile, FileContext
from cisfs.layer.vault import Vault
from tests.unit import vaults
from tests.unit.vaults import UNIT


@pytest.fixture(scope="module")
def vault(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vault]:
    with vaults.opened(vaults.make(tmp_path_factory.mktemp("fuzz") / "vault")) as vault:
        yield vault


def valid(vault: Vault, plain: bytes) -> bytes:
    fd = os.memfd_create("valid")
    file = EncryptedFile.create(fd, vault.context)
    file.truncate(len(plain))
    for at in range(0, len(plain), UNIT):
        if any(plain[at : at + UNIT]):
            file.write(at, plain[at : at + UNIT])
    stored = os.pread(fd, 1 << 20, 0)
    os.close(fd)
    return stored


def read_or_our_error(stored: bytes, context: FileContext) -> bytes | None:
    fd = os.memfd_create("stored")
    try:
        os.pwrite(fd, stored, 0)
        file = EncryptedFile.open(fd, context)
        file.damaged_units()
        return bytes(file.read(0, file.size))
    except CisfsError:
        return None
    finally:
        os.close(fd)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stored=st.binary(max_size=300))
def test_any_bytes(vault: Vault, stored: bytes) -> None:
    assert read_or_our_error(stored, replace(vault.context, journal=None)) is None


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), size=st.sampled_from([0, 1, 100, UNIT, 2 * UNIT + 7, 9 * UNIT]))
def test_altered_files_are_what_they_were_or_refused(
    vault: Vault, data: st.DataObject, size: int
) -> None:
    plain = b"x" * min(size, UNIT) + bytes(max(0, size - UNIT))
    stored = bytearray(valid(vault, plain))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(stored)))
        stored[at : at + data.draw(st.integers(0, 40))] = data.draw(st.binary(max_size=40))
    got = read_or_our_error(bytes(stored), replace(vault.context, journal=None))
    assert got is None or vaults.same(got, plain)
