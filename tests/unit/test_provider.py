"""Key providers: the bytes they get, and what becomes of each kind of answer."""

from __future__ import annotations

import json
import sys
from base64 import b64decode, b64encode
from pathlib import Path

import pytest

from cisfs.crypto.keys import SecretKey
from cisfs.errors import CisfsError, FormatError, UsageError, WrongKeyError
from cisfs.format.config import b64
from cisfs.keys.credentials import Identities
from cisfs.keys.provider import (
    TIMEOUT,
    TIMEOUT_VARIABLE,
    ProviderIdentity,
    ProviderRecipient,
    timeout,
)
from cisfs.keys.provider_config import VARIABLE
from cisfs.keys.slots import new_slot, open_slots

PACKET = b'{"id":"aWQ=","key":"a2V5"}'

# Keeps each request beside itself, and turns the bytes round to wrap and unwrap them.
PROVIDER = """
import base64, json, pathlib, sys
data = sys.stdin.buffer.read()
request = json.loads(data)
pathlib.Path(sys.argv[1], request["op"]).write_bytes(data)
turned = lambda text: base64.b64encode(base64.b64decode(text)[::-1]).decode()
if request["op"] == "keywrap":
    result = {"keywrapresults": {"annotation": turned(request["keywrapparams"]["optsdata"])}}
else:
    result = {"keyunwrapresults": {"optsdata": turned(request["keyunwrapparams"]["annotation"])}}
json.dump(result, sys.stdout)
"""


@pytest.fixture
def providers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of a configuration with one provider, `turn`."""
    monkeypatch.delenv(TIMEOUT_VARIABLE, raising=False)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "providers.json"))
    configure(tmp_path, "turn", PROVIDER)
    return tmp_path


def configure(directory: Path, name: str, code: str) -> None:
    script = directory / f"{name}.py"
    script.write_text(code)
    command = {"path": sys.executable, "args": [str(script), str(directory)]}
    file = directory / "providers.json"
    file.write_text(json.dumps({"key-providers": {name: {"cmd": command}}}))
    file.chmod(0o600)


def answering(directory: Path, answer: str) -> None:
    configure(directory, "turn", f"print({answer!r})")


def test_a_slot_made_by_a_provider_is_opened_by_it(providers: Path) -> None:
    master, identifier = SecretKey.generate(), bytes(16)
    slot = new_slot(master, ProviderRecipient("turn", "for me"), identifier)
    assert set(slot) == {"type", "recipient", "wrapped"}
    assert (slot["type"], slot["recipient"]) == ("provider:turn", "for me")
    mine = Identities((ProviderIdentity("turn"),))
    assert open_slots([slot], mine, identifier) == master
    with pytest.raises(WrongKeyError, match=r"key provider other \(no slot for it\)"):
        open_slots([slot], Identities((ProviderIdentity("other"),)), identifier)
    assert sorted(each.name for each in providers.iterdir() if "key" in each.name) == [
        "keyunwrap",
        "keywrap",
    ]


def test_the_requests_are_ocicrypts_to_the_byte(providers: Path) -> None:
    """Fields in Go's order, without white space, both objects of parameters always there."""
    slot = {"type": "provider:turn", **ProviderRecipient("turn", "a:b/ö").wrap(PACKET)}
    ProviderIdentity("turn").unwrap(slot)
    packet, turned = b64(PACKET), b64(PACKET[::-1])
    assert (providers / "keywrap").read_text() == (
        '{"op":"keywrap",'
        '"keywrapparams":{"ec":{"Parameters":{"turn":["'
        + b64("a:b/ö".encode())
        + '"]},"DecryptConfig":{"Parameters":{}}},"optsdata":"'
        + packet
        + '"},"keyunwrapparams":{"dc":null,"annotation":null}}'
    )
    assert (providers / "keyunwrap").read_text() == (
        '{"op":"keyunwrap",'
        '"keywrapparams":{"ec":null,"optsdata":null},'
        '"keyunwrapparams":{"dc":{"Parameters":{"turn":["RW5hYmxlZA=="]}},"annotation":"'
        + turned
        + '"}}'
    )
    assert b64decode("RW5hYmxlZA==") == b"Enabled"


def test_parameters_of_an_identity_reach_the_provider(providers: Path) -> None:
    slot = {"type": "provider:turn", **ProviderRecipient("turn").wrap(PACKET)}
    assert slot["recipient"] == ""
    assert ProviderIdentity("turn", "attested").unwrap(slot) == PACKET
    for operation, said in (("keywrap", "Enabled"), ("keyunwrap", "attested")):
        assert b64encode(said.encode()).decode() in (providers / operation).read_text()


def test_an_answer_may_be_a_list_of_numbers(providers: Path) -> None:
    answering(providers, json.dumps({"keyunwrapresults": {"optsdata": list(PACKET)}}))
    assert ProviderIdentity("turn").unwrap({"type": "provider:turn", "wrapped": "eA=="}) == PACKET


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "canary",
        "[]",
        "{}",
        '{"keyunwrapresults": "canary"}',
        '{"keyunwrapresults": {}}',
        '{"keyunwrapresults": {"optsdata": "canary%"}}',
        '{"keyunwrapresults": {"optsdata": 7}}',
        '{"keyunwrapresults": {"optsdata": [256]}}',
        '{"keyunwrapresults": {"optsdata": ["canary"]}}',
        '{"keyunwrapresults": {"optsdata": "canary"}, "canary": 1, "canary": 2}',
    ],
)
def test_garbage_is_told_without_being_quoted(providers: Path, answer: str) -> None:
    answering(providers, answer)
    words = r"^key provider turn: the answer has no keyunwrapresults\.optsdata in JSON$"
    with pytest.raises(CisfsError, match=words):
        ProviderIdentity("turn").unwrap({"type": "provider:turn", "wrapped": "eA=="})


def test_an_empty_answer_is_none(providers: Path) -> None:
    answering(providers, '{"keywrapresults": {"annotation": ""}}')
    with pytest.raises(CisfsError, match=r"^key provider turn: .*\.annotation is empty$"):
        ProviderRecipient("turn").wrap(PACKET)


def test_a_failure_is_told_with_its_last_words(providers: Path) -> None:
    configure(providers, "turn", "import sys; print('not attested', file=sys.stderr); sys.exit(2)")
    with pytest.raises(CisfsError, match=r"^key provider turn: not attested$") as raised:
        ProviderRecipient("turn").wrap(PACKET)
    assert type(raised.value) is CisfsError  # its exit status is not one of ours
    slot = {"type": "provider:turn", "wrapped": "eA=="}
    with pytest.raises(WrongKeyError, match=r"turn \(key provider turn: not attested\); the slots"):
        open_slots([slot], Identities((ProviderIdentity("turn"),)), bytes(16))


@pytest.mark.usefixtures("providers")
def test_a_provider_that_is_not_configured_is_told_with_those_that_are() -> None:
    with pytest.raises(UsageError, match=r"no key provider 'other' in .*, which has: turn$"):
        ProviderRecipient("other").wrap(PACKET)


def test_a_damaged_slot_reaches_no_provider(providers: Path) -> None:
    for slot in ({"type": "provider:turn"}, {"type": "provider:turn", "wrapped": "%"}):
        with pytest.raises(FormatError):
            ProviderIdentity("turn").unwrap(slot)
    assert not (providers / "keyunwrap").exists()


def test_the_time_it_may_take_is_in_the_environment(
    providers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert timeout() == TIMEOUT
    monkeypatch.setenv(TIMEOUT_VARIABLE, "0.5")
    configure(providers, "turn", "import time; time.sleep(600)")
    with pytest.raises(CisfsError, match=r"^key provider turn: no answer within 0\.5 s$"):
        ProviderRecipient("turn").wrap(PACKET)
    for bad in ("x", "0", "-1", "nan", "inf", "3601"):
        monkeypatch.setenv(TIMEOUT_VARIABLE, bad)
        with pytest.raises(UsageError, match=f"^{TIMEOUT_VARIABLE} is not a number of seconds"):
            timeout()
