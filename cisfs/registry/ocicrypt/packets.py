"""Wrapped keys of encrypted layers: annotations of a descriptor, made and opened with our keys.

`org.opencontainers.image.enc.keys.KIND` holds packets in base64 with commas between, each with the
private options for one or more recipients (containers/ocicrypt, encryption.go).  KIND is `jwe`,
`pkcs11` or `provider.NAME`, and what is in a packet is then what a key slot of that type has in
`wrapped` (docs/FORMAT.md, 2.1); `pgp` and `pkcs7` are not opened here.

Does not know layers.  Pure but for devices and services that recipients and identities ask; not for
several threads at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from cisfs.errors import CisfsError, FormatError, UsageError, WrongKeyError
from cisfs.format.config import SlotFields, b64, from_b64, load
from cisfs.format.said import repeatable
from cisfs.keys.credentials import Credential, Passphrase, RawKey
from cisfs.keys.wrapping import Identity, Recipient
from cisfs.registry.ocicrypt.options import PublicOptions

PREFIX = "org.opencontainers.image.enc."
PUBLIC_OPTIONS = PREFIX + "pubopts"
MAX_PACKETS = 256

_KEYS = PREFIX + "keys."
_PROVIDER, _PROVIDER_SLOT = "provider.", "provider:"
_SAME = ("jwe", "pkcs11")  # kinds that are called what our slots are


def without(annotations: Mapping[str, str]) -> dict[str, str]:
    """Return the annotations that are not about encryption."""
    return {name: value for name, value in annotations.items() if not name.startswith(PREFIX)}


def kinds(annotations: Mapping[str, str]) -> list[str]:
    """Return what kinds of key a layer is encrypted for, as the annotations name them."""
    return sorted(name.removeprefix(_KEYS) for name in annotations if name.startswith(_KEYS))


def recipients(annotations: Mapping[str, str]) -> dict[str, int]:
    """Return how many recipients of each kind a layer is encrypted for, as far as anyone can see.

    Of a kind that is not known here, each packet counts as one.  Raises FormatError.
    """
    return {
        kind: sum(_recipients_of(kind, packet) for packet in _packets(annotations, kind))
        for kind in kinds(annotations)
    }


def public_options(annotations: Mapping[str, str]) -> PublicOptions:
    """Return what anyone may know about how a layer is encrypted.  Raises FormatError."""
    if PUBLIC_OPTIONS not in annotations:
        raise FormatError("it has no public options: its annotations were lost on the way")
    return PublicOptions.parse(from_b64(annotations[PUBLIC_OPTIONS], "the public options"))


def check(recipients: Sequence[Credential | Recipient]) -> None:
    """Raise UsageError unless there is a recipient, and ocicrypt has packets for all of them."""
    if not recipients:
        raise UsageError("encrypted for nobody: name a recipient, as in -r jwe:KEY.pem")
    for each in recipients:
        _kind(each)


def wrap(private: bytes, recipients: Sequence[Credential | Recipient]) -> dict[str, str]:
    """Return the annotations that give each of the recipients the private options.

    Raises UsageError as `check` does, CisfsError when a device or service fails.
    """
    from cisfs.keys.jwe import JweRecipient, encrypt

    check(recipients)
    packets: dict[str, list[str]] = {}
    keys = [each.public for each in recipients if isinstance(each, JweRecipient)]
    if keys:  # one packet for all of them, as ocicrypt makes it
        packets["jwe"] = [b64(encrypt(private, keys))]
    for each in recipients:
        if not isinstance(each, JweRecipient):
            kind, recipient = _kind(each)
            packets.setdefault(kind, []).append(_wrapped(recipient, private))
    return {_KEYS + kind: ",".join(several) for kind, several in packets.items()}


def unwrap(annotations: Mapping[str, str], offered: Iterable[Identity | Credential]) -> bytes:
    """Return the private options in the first packet that one of `offered` opens.

    Raises FormatError if there are no packets or too many, WrongKeyError if none opens: the message
    says what was tried.
    """
    slots = list(_slots(annotations))
    tried = []
    for each in offered:
        found = _try(slots, each)
        if isinstance(found, bytes):
            return found
        tried.append(found)
    raise WrongKeyError(
        f"no key opens the layer; tried: {'; '.join(tried) or 'nothing'}; "
        f"it is for keys of: {repeatable(', '.join(kinds(annotations)))}"
    )


def _kind(recipient: Credential | Recipient) -> tuple[str, Recipient]:
    if isinstance(recipient, (Passphrase, RawKey)):
        raise UsageError("ocicrypt knows no passphrases or key files: name a public key")
    if recipient.type in _SAME:
        return recipient.type, recipient
    if recipient.type.startswith(_PROVIDER_SLOT):
        return recipient.type.replace(_PROVIDER_SLOT, _PROVIDER, 1), recipient
    raise UsageError(f"ocicrypt knows no {recipient.type} recipients: name a public key (jwe:FILE)")


def _wrapped(recipient: Recipient, private: bytes) -> str:
    try:
        return str(recipient.wrap(private)["wrapped"])
    except ValueError:  # RFC 8017, section 7.1.1: longer than the key allows
        raise UsageError(
            f"the {recipient.type} key is too short for ocicrypt's {len(private)} bytes: take an "
            "RSA key of 3072 bits, or set OCICRYPT_OAEP_HASHALG=sha1"
        ) from None


def _slots(annotations: Mapping[str, str]) -> Iterator[SlotFields]:
    """Yield each packet that may be opened here, as the key slot that it would be.

    Raises FormatError if there is none of any kind, or too many.
    """
    packets = [
        (kind, packet) for kind in kinds(annotations) for packet in _packets(annotations, kind)
    ]
    if not 1 <= len(packets) <= MAX_PACKETS:
        raise FormatError(f"the layer has {len(packets)} wrapped keys, not 1 to {MAX_PACKETS}")
    for kind, packet in packets:
        if kind in _SAME:
            yield {"type": kind, "wrapped": packet}
        elif kind.startswith(_PROVIDER):
            yield {"type": kind.replace(_PROVIDER, _PROVIDER_SLOT, 1), "wrapped": packet}


def _packets(annotations: Mapping[str, str], kind: str) -> list[str]:
    return [packet for packet in annotations[_KEYS + kind].split(",") if packet]


def _recipients_of(kind: str, packet: str) -> int:
    """Count whom a packet is for: JWE and ocicrypt's PKCS #11 list them."""
    if kind not in _SAME:
        return 1
    listed = load(from_b64(packet, "a wrapped key")).get("recipients")
    return len(listed) if isinstance(listed, list) else 1


def _try(slots: Iterable[SlotFields], offered: Identity | Credential) -> bytes | str:
    """Return what is in the first packet that `offered` opens, or in words why there is none."""
    if isinstance(offered, (Passphrase, RawKey)):
        return "a passphrase or key file (which ocicrypt does not know)"
    why = "no packet for it"
    for slot in slots:
        if not offered.suits(slot):
            continue
        try:
            return offered.unwrap(slot)
        except CisfsError as error:  # of this packet or this device; another may do
            why = str(error)
    return f"{offered.name} ({why})"
