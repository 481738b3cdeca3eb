"""age recipients and identities: who opens what, and what a hostile file may cost."""

from __future__ import annotations

import resource
import subprocess
import sys
from base64 import b64decode
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from cisfs.crypto.keys import SecretKey
from cisfs.errors import CisfsError, FormatError, NoMemoryError, UsageError, WrongKeyError
from cisfs.format.config import b64
from cisfs.keys.age import (
    MAX_WORK_FACTOR,
    AgeIdentity,
    AgeRecipient,
    ScryptIdentity,
    ScryptRecipient,
    identities_in,
    recipients_in,
    ssh_identity,
)
from cisfs.keys.credentials import Identities, Passphrase
from cisfs.keys.slots import new_slots, open_slots
from tests.unit.age_files import scrypt_file

pyrage = pytest.importorskip("pyrage")

# From the examples of age's own documentation and tests: keys of nobody.
SECRET = b"AGE-SECRET-KEY-1GFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPQ4EGAEX"
PUBLIC = "age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj"
PAYLOAD = b"what is wrapped"
MASTER, LAYER = SecretKey(b"m" * 32), b"l" * 16
WORDS, OTHER_WORDS = Passphrase(b"correct horse"), Passphrase(b"battery staple")


def an_identity() -> AgeIdentity:
    key = pyrage.x25519.Identity.generate()
    return AgeIdentity(key, str(key.to_public()), "another")


def scrypt_slot(factor: int, passphrase: Passphrase = WORDS) -> dict[str, str | int]:
    wrapped = scrypt_file(PAYLOAD, passphrase.secret, factor)
    return {"type": "age", "recipient": "scrypt", "wrapped": b64(wrapped)}


def with_factor(slot: dict[str, str | int], factor: bytes) -> dict[str, str | int]:
    magic, stanza, rest = b64decode(str(slot["wrapped"])).split(b"\n", 2)
    stanza = stanza.rsplit(b" ", 1)[0] + b" " + factor
    return {**slot, "wrapped": b64(b"\n".join([magic, stanza, rest]))}


def test_an_identity_opens_its_slot_among_many() -> None:
    (mine,) = identities_in(SECRET, "mine")
    others = [an_identity() for _ in range(2)]
    assert mine.recipient == PUBLIC
    slots = new_slots(MASTER, [AgeRecipient(each.recipient) for each in [*others, mine]], LAYER)
    assert [slot["recipient"] for slot in slots] == [each.recipient for each in [*others, mine]]
    assert {slot["type"] for slot in slots} == {"age"}
    for each in [mine, *others]:
        assert open_slots(slots, Identities((each,)), LAYER) == MASTER
    with pytest.raises(WrongKeyError, match=r"tried: another \(no slot for it\)"):
        open_slots(slots[2:], Identities((others[0],)), LAYER)


def test_a_slot_that_does_not_say_whose_it_is_is_tried() -> None:
    (mine,) = identities_in(SECRET, "mine")
    slot = {"type": "age", **AgeRecipient(PUBLIC).wrap(PAYLOAD)}
    del slot["recipient"]
    assert mine.suits(slot)
    assert mine.unwrap(slot) == PAYLOAD
    assert an_identity().suits(slot)
    with pytest.raises(WrongKeyError, match="made for another key, or was altered"):
        an_identity().unwrap(slot)
    assert not mine.suits({**slot, "type": "jwe"})
    assert not mine.suits({**slot, "recipient": "scrypt"})


def test_every_byte_of_a_file_is_authenticated() -> None:
    (mine,) = identities_in(SECRET, "mine")
    slot = {"type": "age", **AgeRecipient(PUBLIC).wrap(PAYLOAD)}
    data = b64decode(str(slot["wrapped"]))
    for at in range(len(data)):
        altered = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        with pytest.raises(CisfsError):
            mine.unwrap({**slot, "wrapped": b64(altered)})


@pytest.mark.parametrize("wrapped", [None, 7, "%", b64(b""), b64(b"age-encryption.org/v2\n")])
def test_what_is_no_age_file_is_named(wrapped: str | int | None) -> None:
    (mine,) = identities_in(SECRET, "mine")
    slot: dict[str, str | int] = {"type": "age"}
    if wrapped is not None:
        slot["wrapped"] = wrapped
    for identity in (mine, ScryptIdentity(WORDS)):
        with pytest.raises(FormatError, match="a key slot's wrapped key is not"):
            identity.unwrap(slot)


@pytest.mark.slow
def test_a_passphrase_opens_what_was_made_for_it() -> None:
    """The only test that pays what age makes a passphrase cost: a second each way."""
    (slot,) = new_slots(MASTER, [ScryptRecipient(WORDS)], LAYER)
    assert (slot["type"], slot["recipient"]) == ("age", "scrypt")
    assert open_slots([slot], Identities((ScryptIdentity(WORDS),)), LAYER) == MASTER


def test_a_passphrase_opens_a_file_made_by_the_specification() -> None:
    slot = scrypt_slot(4)
    assert ScryptIdentity(WORDS).suits(slot)
    assert ScryptIdentity(WORDS).unwrap(slot) == PAYLOAD
    assert not ScryptIdentity(WORDS).suits({**slot, "recipient": PUBLIC})
    assert not ScryptIdentity(WORDS).suits({**slot, "type": "passphrase"})
    with pytest.raises(WrongKeyError, match="wrong passphrase for an age file"):
        ScryptIdentity(OTHER_WORDS).unwrap(slot)


@pytest.mark.parametrize("factor", [b"23", b"30", b"63", b"99"])
def test_a_file_that_is_too_dear_is_refused_before_it_costs_anything(factor: bytes) -> None:
    assert MAX_WORK_FACTOR == 22
    with pytest.raises(FormatError, match="scrypt work factor is not from 1 to 22"):
        ScryptIdentity(WORDS).unwrap(with_factor(scrypt_slot(1), factor))


@pytest.mark.parametrize("factor", [b"0", b"", b"-1", b"100", b"022", b"x", b"9" * 50])
def test_a_work_factor_that_is_no_number_is_refused(factor: bytes) -> None:
    with pytest.raises(FormatError, match="does not begin with one passphrase"):
        ScryptIdentity(WORDS).unwrap(with_factor(scrypt_slot(1), factor))


def test_a_file_for_a_key_takes_no_passphrase() -> None:
    slot = {"type": "age", **AgeRecipient(PUBLIC).wrap(PAYLOAD), "recipient": "scrypt"}
    with pytest.raises(FormatError, match="does not begin with one passphrase"):
        ScryptIdentity(WORDS).unwrap(slot)


def test_a_file_that_takes_more_memory_than_there_is_says_so() -> None:
    slot = with_factor(scrypt_slot(1), b"22")
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), before[1]))
    try:
        with pytest.raises(NoMemoryError, match="takes 4096 MiB of memory"):
            ScryptIdentity(WORDS).unwrap(slot)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def test_age_takes_no_passphrase_that_is_not_text() -> None:
    with pytest.raises(UsageError, match="not UTF-8"):
        ScryptRecipient(Passphrase(b"\xff")).wrap(PAYLOAD)
    with pytest.raises(UsageError, match="not UTF-8"):
        ScryptIdentity(Passphrase(b"\xff")).unwrap(scrypt_slot(1))


def test_an_identity_file_has_comments_and_several_keys() -> None:
    more = str(pyrage.x25519.Identity.generate())
    content = f"# created: today\n# public key: {PUBLIC}\n{SECRET.decode()}\r\n\n  {more}\n"
    found = identities_in(content.encode(), "keys.txt")
    assert [each.recipient for each in found] == [PUBLIC, found[1].recipient]
    assert {each.name for each in found} == {"keys.txt"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "there is no identity in keys.txt"),
        (b"# nothing\n", "there is no identity in keys.txt"),
        (SECRET[:-1] + b"Y", "keys.txt has a line that is no X25519 key of age"),
        (SECRET + b"\nAGE-PLUGIN-YUBIKEY-1QQ", "keys.txt has a line that is no X25519 key of age"),
        (PUBLIC.encode(), "keys.txt has a line that is no X25519 key of age"),
        (b"\xff", "keys.txt is no file of age recipients or identities"),
    ],
)
def test_what_is_no_identity_file_is_named(content: bytes, words: str) -> None:
    with pytest.raises(UsageError, match=f"^{words}$") as caught:
        identities_in(content, "keys.txt")
    assert b"AGE-" not in str(caught.value).encode()


def test_a_recipients_file_is_one_a_line() -> None:
    ssh = ed25519.Ed25519PrivateKey.generate().public_key()
    line = ssh.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    content = f"# the team\n{PUBLIC}\n\n{line} somebody@example\n"
    assert recipients_in(content.encode(), "team.txt") == [AgeRecipient(PUBLIC), AgeRecipient(line)]
    with pytest.raises(UsageError, match=r"^there is no recipient in team\.txt$"):
        recipients_in(b"#\n", "team.txt")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"correct horse", "team.txt has a line that is no age recipient"),
        (SECRET.lower(), "team.txt has a line that is no age recipient"),
        (SECRET, "team.txt has an age identity, which is private; name its public half"),
    ],
)
def test_what_a_recipients_file_should_not_have_is_not_repeated(line: bytes, words: str) -> None:
    with pytest.raises(UsageError, match=f"^{words}$"):
        recipients_in(PUBLIC.encode() + b"\n" + line + b"\n", "team.txt")


@pytest.mark.parametrize(
    "text", ["", "age1", PUBLIC[:-1], "age1yubikey1qq", "ssh-rsa AAAA", "x\x1b"]
)
def test_what_is_no_recipient_is_named(text: str) -> None:
    with pytest.raises(UsageError, match="is no age recipient: ") as caught:
        AgeRecipient.parse(text)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("kind", ["ed25519", "rsa"])
def test_an_ssh_key_opens_its_slot(kind: str) -> None:
    made: ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey
    if kind == "rsa":
        made = rsa.generate_private_key(65537, 2048)
    else:
        made = ed25519.Ed25519PrivateKey.generate()
    private = made.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    public = made.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    recipient = AgeRecipient.parse(f"{public} me@home")
    (slot,) = new_slots(MASTER, [recipient], LAYER)
    assert slot["recipient"] == public
    assert open_slots([slot], Identities((ssh_identity(private, "id"),)), LAYER) == MASTER


def test_an_ssh_key_that_age_does_not_take_is_named() -> None:
    made = ec.generate_private_key(ec.SECP256R1())
    private = made.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    for content in (private, private[:100], b""):
        with pytest.raises(UsageError, match="id is no SSH key that age takes"):
            ssh_identity(content, "id")


def test_no_key_shows_itself() -> None:
    (mine,) = identities_in(SECRET, "mine")
    shown = f"{mine!r} {ScryptIdentity(WORDS)!r} {ScryptRecipient(WORDS)!r}"
    assert "SECRET" not in shown
    assert "horse" not in shown


def test_without_pyrage_it_says_how_to_get_it(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['pyrage'] = None\n"
        "from cisfs.errors import UsageError\n"
        "from cisfs.keys.age import AgeRecipient\n"
        "try: AgeRecipient.parse('age1')\n"
        "except UsageError as error: print(error)\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, text=True, cwd=tmp_path
    ).stdout
    assert said.endswith("install it with: pip install cisfs[age]\n")
