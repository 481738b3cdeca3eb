"""Version 1 of sealed layers, one scenario per file: sealed-v1, made by make_sealed.py.

A failure here means that existing layers can no longer be read, or are written differently.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cisfs import errors
from cisfs.crypto.keys import SecretKey
from cisfs.keys.credentials import Credential, Passphrase, RawKey
from cisfs.layer.sealed import SealedLayer, describe
from cisfs.layer.sealed_verify import verify_sealed
from cisfs.layer.sealing import StoredImage, seal_image
from tests.unit.vaults import same
from tests.vectors import make_sealed, reference_layer

HERE = Path(__file__).parent / "sealed-v1"
SCENARIOS = {path.stem: json.loads(path.read_text("ascii")) for path in sorted(HERE.iterdir())}
Scenario = dict[str, Any]


def having(field: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "scenario",
        [pytest.param(each, id=name) for name, each in SCENARIOS.items() if field in each],
    )


def in_hex(scenario: Scenario, name: str) -> bytes:
    return bytes.fromhex(scenario[name])


def image_of(scenario: Scenario) -> bytes:
    image = make_sealed.image(scenario["image size"])
    assert hashlib.sha256(image).hexdigest() == scenario["image sha256"]
    return image


def put(data: bytearray, pieces: list[tuple[int, str]]) -> bytearray:
    for offset, piece in pieces:
        new = bytes.fromhex(piece)
        data[offset : offset + len(new)] = new
    return data


def stored(scenario: Scenario) -> bytes:
    """The layer of a scenario, which is another one altered or has all its bytes."""
    if "of" not in scenario:
        data = put(bytearray(scenario["size"]), scenario["stored"])
        assert hashlib.sha256(data).hexdigest() == scenario["sha256"]
        return bytes(data)
    data = put(bytearray(stored(SCENARIOS[scenario["of"]])), scenario["patches"])
    return bytes(data[: scenario["size"]].ljust(scenario["size"], b"\0"))


@contextmanager
def opened(path: Path, credential: Credential) -> Iterator[SealedLayer]:
    layer = SealedLayer.open(path, credential)
    try:
        yield layer
    finally:
        layer.close()


def test_every_scenario_is_looked_at() -> None:
    for each in SCENARIOS.values():
        assert {"stored", "refusal", "damaged"} & set(each)
    assert len(SCENARIOS) >= 45


@having("stored")
def test_the_second_implementation_derives_the_same(scenario: Scenario) -> None:
    keys = in_hex(scenario, "layer key"), in_hex(scenario, "layer id")
    if "passphrase" in scenario:
        return  # its three slots are in the file alone
    salt, nonce, key_file = (in_hex(scenario, name) for name in ("salt", "nonce", "key file"))
    slot = reference_layer.key_file_slot(*keys, key_file, salt, nonce)
    parts = reference_layer.sealed(*keys, image_of(scenario), scenario["unit size"], [slot])
    data = parts.joined()
    assert hashlib.sha256(data).hexdigest() == scenario["sha256"]
    for offset, piece in scenario["stored"]:
        assert same(data[offset : offset + len(piece) // 2], bytes.fromhex(piece))
    assert same(reference_layer.opened(data, keys[0]), image_of(scenario))


@having("stored")
def test_layers_are_written(
    scenario: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the scenario's numbers in the place of random ones, byte by byte."""
    if "passphrase" in scenario:
        return  # a new layer has one slot
    drawn = iter([in_hex(scenario, name) for name in ("layer id", "salt", "nonce")])
    real = secrets.token_bytes

    def draw(size: int) -> bytes:
        return next(drawn) if size >= 12 else real(size)  # less is of a temporary name

    layer_key = SecretKey(in_hex(scenario, "layer key"))
    monkeypatch.setattr(SecretKey, "generate", lambda: layer_key)
    monkeypatch.setattr(secrets, "token_bytes", draw)
    image = image_of(scenario)
    fd = os.memfd_create("image")
    os.pwrite(fd, image, 0)
    credential = RawKey(in_hex(scenario, "key file"))
    path = tmp_path / "layer.cis"
    identity = seal_image(
        StoredImage(fd, len(image)), path, credential, unit_size=scenario["unit size"]
    )
    os.close(fd)
    assert identity == scenario["identity"]
    assert hashlib.sha256(path.read_bytes()).hexdigest() == scenario["sha256"]
    check_read(path, scenario, credential)


@having("passphrase")
def test_every_slot_opens(scenario: Scenario, tmp_path: Path) -> None:
    path = tmp_path / "layer.cis"
    path.write_bytes(stored(scenario))
    for credential in (
        RawKey(in_hex(scenario, "key file")),
        Passphrase(in_hex(scenario, "passphrase")),
    ):
        check_read(path, scenario, credential)
    said = describe(path)["slots"]
    assert isinstance(said, list)
    cost = {"kdf": "argon2id", "iterations": 1, "lanes": 1, "memory_kib": 8}
    assert [{key: each[key] for key in each if key != "id"} for each in said] == [
        {"type": "tpm2"},
        {"type": "passphrase", **cost},
        {"type": "key-file"},
    ]


def check_read(path: Path, scenario: Scenario, credential: Credential) -> None:
    with opened(path, credential) as layer:
        assert layer.identity == scenario["identity"]
        assert layer.header.layer_id == in_hex(scenario, "layer id")
        assert same(layer.reader().read(0, layer.image_size), image_of(scenario))


@having("refusal")
def test_bad_layers_are_refused(scenario: Scenario, tmp_path: Path) -> None:
    path = tmp_path / "layer.cis"
    path.write_bytes(stored(scenario))
    key = scenario.get("key file", SCENARIOS[scenario["of"]]["key file"])
    name, words = scenario["refusal"].split(": ", 1)
    with pytest.raises(errors.CisfsError) as caught:
        SealedLayer.open(path, RawKey(bytes.fromhex(key)))
    assert type(caught.value) is getattr(errors, name)
    assert words in str(caught.value)


@having("damaged")
def test_damaged_units_are_refused_and_no_others(scenario: Scenario, tmp_path: Path) -> None:
    path = tmp_path / "layer.cis"
    path.write_bytes(stored(scenario))
    whole = SCENARIOS[scenario["of"]]
    image, size = image_of(whole), whole["unit size"]
    with opened(path, RawKey(in_hex(whole, "key file"))) as layer:
        for unit in range(layer.geometry.unit_count):
            reader = layer.reader()
            if unit in scenario["damaged"]:
                with pytest.raises(errors.IntegrityError):
                    reader.read(unit * size, size)
            else:
                assert same(reader.read(unit * size, size), image[unit * size :][:size])
        assert list(verify_sealed(layer, 1))
