"""Version 1 of signatures, one scenario per file: signature-v1, made by make_signatures.py.

A failure here means that existing signatures count for nothing any more, or that more than these
count.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cisfs import errors
from cisfs.crypto.signatures import SigningKey, is_valid, sign, signer_of
from cisfs.format.signatures import Signature, SignatureFile
from tests.vectors import make_signatures

HERE = Path(__file__).parent / "signature-v1"
SCENARIOS = {path.stem: json.loads(path.read_text("ascii")) for path in sorted(HERE.iterdir())}
Scenario = dict[str, Any]


def having(field: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "scenario",
        [pytest.param(each, id=name) for name, each in SCENARIOS.items() if field in each],
    )


def test_every_scenario_is_looked_at() -> None:
    for each in SCENARIOS.values():
        assert {"refusal", "valid"} & set(each)
    assert len(SCENARIOS) >= 34


@having("valid")
def test_signatures_are_worth_what_they_are(scenario: Scenario) -> None:
    held = SignatureFile.parse(scenario["file"].encode("ascii"))
    assert held.identity == scenario["identity"]
    assert held.pack() == scenario["file"].encode("ascii")
    judged = {
        each.signer.hex(): is_valid(each.signer, each.signature, held.identity)
        for each in held.signatures
    }
    assert judged == {
        **dict.fromkeys(scenario["valid"], True),
        **dict.fromkeys(scenario["invalid"], False),
    }


def test_signatures_are_made_byte_by_byte() -> None:
    key = SigningKey.from_private_bytes(make_signatures.SEED)
    assert signer_of(key).hex() == make_signatures.PUBLIC  # as RFC 8032 has it
    scenario = SCENARIOS["file-one"]
    made = Signature(signer_of(key), sign(key, scenario["identity"]))
    assert SignatureFile(scenario["identity"], (made,)).pack() == scenario["file"].encode("ascii")


@having("refusal")
def test_other_files_are_refused(scenario: Scenario) -> None:
    name, words = scenario["refusal"].split(": ", 1)
    with pytest.raises(errors.CisfsError) as caught:
        SignatureFile.parse(scenario["file"].encode("ascii"))
    assert type(caught.value) is getattr(errors, name)
    assert words in str(caught.value)
