"""A child process that speaks to a PKCS #11 token: a request in JSON in, an answer in JSON out.

    python -P -m cisfs.keys.pkcs11_token

"public" answers with an RSA public key and the hash that the token takes in OAEP, "decrypt" with
the packet in a slot; or with the token's name, if it needs a PIN and was given none.  The module,
which is somebody else's code, is loaded into no other process of ours.

Does not know URIs or slots.  One request and one session.
"""

from __future__ import annotations

import json
import re
import sys
from base64 import b64decode, b64encode, urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from cisfs.errors import CisfsError, UsageError, WrongKeyError
from cisfs.keys import memory

if TYPE_CHECKING:
    import pkcs11

_Request = dict[str, Any]
_Key = Any  # an object of a class that is put together at run time, of what the token can do


def main() -> int:
    """Answer the request on standard input."""
    memory.keep_private()
    memory.lock()
    try:
        answer = _answer(json.loads(sys.stdin.buffer.read()))
    except CisfsError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    json.dump(answer, sys.stdout)
    return 0


def _answer(request: _Request) -> dict[str, str]:
    try:
        import pkcs11  # here: an extra
    except ImportError:
        raise UsageError(
            "python-pkcs11 is not installed; install it with: pip install 'cisfs[pkcs11]'"
        ) from None
    try:
        token = _token(request)
        if request["op"] == "public":
            return _public(token, request)
        return _decrypt(token, request)
    except pkcs11.PKCS11Error as error:
        raise CisfsError(_in_words(error)) from None


def _token(request: _Request) -> pkcs11.Token:
    """Return the only token that the request names."""
    import pkcs11

    wanted = {
        "label": request["token"],
        "serial": request["serial"],
        "manufacturer_id": request["manufacturer"],
        "model": request["model"],
    }
    found = []
    for slot in pkcs11.lib(request["module"]).get_slots(token_present=True):
        if request["slot"] not in (None, slot.slot_id):
            continue
        token = slot.get_token()
        if pkcs11.TokenFlag.TOKEN_INITIALIZED not in token.flags:
            continue
        if all(value in (None, _text(getattr(token, name))) for name, value in wanted.items()):
            found.append(token)
    if not found:
        raise CisfsError(f"no such token in {request['module']}; is it plugged in?")
    if len(found) > 1:
        raise UsageError(f"{len(found)} tokens are meant; add token= or serial=")
    return found[0]


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _lacks_pin(token: pkcs11.Token, pin: str | None) -> bool:
    from pkcs11 import TokenFlag

    asks_itself = TokenFlag.PROTECTED_AUTHENTICATION_PATH in token.flags
    return pin is None and TokenFlag.LOGIN_REQUIRED in token.flags and not asks_itself


def _login(token: pkcs11.Token, pin: str | None) -> object | None:
    """Return what to log in with."""
    import pkcs11

    if pkcs11.TokenFlag.PROTECTED_AUTHENTICATION_PATH in token.flags:
        return pkcs11.PROTECTED_AUTH  # it has keys of its own to type the PIN on
    return pin


def _public(token: pkcs11.Token, request: _Request) -> dict[str, str]:
    """Return the public key, from an object of its own or a certificate."""
    from pkcs11 import Attribute, ObjectClass

    with token.open(user_pin=request["pin"]) as session:
        keys = list(_objects(session, request, ObjectClass.PUBLIC_KEY))
        if len(keys) > 1:
            raise UsageError(f"{len(keys)} public keys are meant; add object= or id=")
        if keys:
            n, e = keys[0][Attribute.MODULUS], keys[0][Attribute.PUBLIC_EXPONENT]
            return {"n": _b64url(n), "e": _b64url(e), "hash": _hash(keys[0])}
        certificates = list(_objects(session, request, ObjectClass.CERTIFICATE))
        if len(certificates) == 1:
            return _certified(certificates[0][Attribute.VALUE])
    raise UsageError("no such RSA public key or certificate in the token; use pkcs11:FILE.pem")


def _hash(key: _Key) -> str:
    """Return the better hash of those that the token takes in OAEP; SoftHSM 2.6 takes SHA-1 only.

    It is the token's public half that is tried: that takes no PIN.
    """
    import pkcs11

    try:
        key.encrypt(b"", **_oaep("sha256"))
    except pkcs11.PKCS11Error:
        return "sha1"
    return "sha256"


def _certified(der: bytes) -> dict[str, str]:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

    try:
        key = x509.load_der_x509_certificate(der).public_key()
    except ValueError:
        raise CisfsError("the token's certificate cannot be read") from None
    if not isinstance(key, RSAPublicKey):
        raise UsageError("the token's certificate has no RSA key")
    numbers = key.public_numbers()
    n, e = (each.to_bytes((each.bit_length() + 7) // 8, "big") for each in (numbers.n, numbers.e))
    return {"n": _b64url(n), "e": _b64url(e), "hash": "sha256"}


def _decrypt(token: pkcs11.Token, request: _Request) -> dict[str, str]:
    import pkcs11

    pin = request["pin"]
    if _lacks_pin(token, pin):
        return {"token": token.label}
    with token.open(user_pin=_login(token, pin)) as session:
        keys = _private_keys(session, request)
        if not keys:
            raise WrongKeyError("the token has no such private key for it")
        another = _another_key(request)
        for key in keys:
            try:
                packet = key.decrypt(b64decode(request["blob"]), **_oaep(request["hash"]))
            except another:
                continue
            except (pkcs11.ArgumentsBad, pkcs11.MechanismInvalid, pkcs11.MechanismParamInvalid):
                raise CisfsError(f"the token cannot do RSA-OAEP with {request['hash']}") from None
            return {"packet": b64encode(packet).decode("ascii")}
    raise WrongKeyError("it was made for another key")


def _another_key(request: _Request) -> tuple[type[Exception], ...]:
    """Return how a token says that a key is not the right one."""
    import pkcs11

    said = (pkcs11.EncryptedDataInvalid, pkcs11.EncryptedDataLenRange)
    # SoftHSM 2.6; where it is known to be the right key, the token has really failed.
    return said if request["n"] is not None else (*said, pkcs11.GeneralError)


def _private_keys(session: pkcs11.Session, request: _Request) -> list[_Key]:
    """Return the private half of the key with the modulus that a slot was made for.

    All private keys that are meant, if the slot does not tell.
    """
    from pkcs11 import Attribute, ObjectClass

    keys = list(_objects(session, request, ObjectClass.PRIVATE_KEY))
    if request["n"] is None:
        return keys
    wanted = urlsafe_b64decode(request["n"] + "=" * (-len(request["n"]) % 4))
    return [key for key in keys if key[Attribute.MODULUS].lstrip(b"\0") == wanted][:1]


def _objects(
    session: pkcs11.Session, request: _Request, kind: pkcs11.ObjectClass
) -> Iterator[_Key]:
    from pkcs11 import Attribute, KeyType, ObjectClass

    template: dict[pkcs11.Attribute, object] = {Attribute.CLASS: kind}
    if kind != ObjectClass.CERTIFICATE:
        template[Attribute.KEY_TYPE] = KeyType.RSA
    if request["label"] is not None:
        template[Attribute.LABEL] = request["label"]
    if request["id"] is not None:
        template[Attribute.ID] = bytes.fromhex(request["id"])
    yield from session.get_objects(template)


def _oaep(hash_name: str) -> dict[str, object]:
    from pkcs11 import MGF, Mechanism

    hashes = {"sha256": (Mechanism.SHA256, MGF.SHA256), "sha1": (Mechanism.SHA_1, MGF.SHA1)}
    parameters = (*hashes[hash_name], None)  # no label
    return {"mechanism": Mechanism.RSA_PKCS_OAEP, "mechanism_param": parameters}


def _in_words(error: pkcs11.PKCS11Error) -> str:
    """Return an error's own words, or its name, PinIncorrect, in words."""
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(error).__name__).lower()
    return " ".join(str(error).split()) or f"the token says: {name}"


def _b64url(data: bytes) -> str:
    return urlsafe_b64encode(data.lstrip(b"\0")).rstrip(b"=").decode("ascii")


if __name__ == "__main__":
    sys.exit(main())
