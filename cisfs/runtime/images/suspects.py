"""What looks like a secret in an image's configuration, which stays public.

A list of patterns and names: it finds what people forget, and is no proof that nothing is there.
What is found is named and never repeated.  Pure functions over parsed JSON; safe anywhere.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from cisfs.format.said import repeatable

Json = dict[str, Any]

ENVIRONMENT, LABEL, HISTORY = "Env", "Labels", "history"
KEPT_OF_HISTORY = ("created", "empty_layer")  # which say nothing of what a step was

# Each is what its issuer says that it looks like.  Strangers write configurations of megabytes, so
# what is repeated without bound is gone through from its beginning only.
_PATTERNS = [
    (re.compile(pattern), why)
    for pattern, why in (
        (r"-----BEGIN [A-Z ]*PRIVATE KEY-----", "a private key"),
        (r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b", "an access key of AWS"),
        (r"\bgh[oprsu]_[A-Za-z0-9]{36}|\bgithub_pat_\w{22}", "a token of GitHub"),
        (r"\bglpat-[\w-]{20}", "a token of GitLab"),
        (r"\bxox[abeprs]-[\w-]{10}", "a token of Slack"),
        (r"\bAIza[\w-]{35}", "a key of Google's API"),
        (r"\b[rs]k_live_[0-9A-Za-z]{16}", "a key of Stripe"),
        (r"\bnpm_[A-Za-z0-9]{36}|\bpypi-[\w-]{50}", "a token of a package registry"),
        (r"\bhv[sb]\.[\w-]{20}", "a token of Vault"),
        (r"\bAGE-SECRET-KEY-1[0-9A-Z]{20}", "an identity of age"),
        (
            r"(?<![\w-])(?=[\w-]*?\beyJ[\w-]{8})[\w-]++\.eyJ[\w-]{8,}+\.",
            "a JSON web token",
        ),
        (r"(?<=[\w+.-])://[^\s/@:]*+:[^\s/@]++@", "a URL with a password"),
    )
]
_SECRET_WORDS = frozenset(
    ("password", "passwd", "passphrase", "pass", "secret", "secrets", "token", "credential",
     "credentials", "apikey", "auth", "pwd", "pgpass")
)  # fmt: skip
# Words that are often written as one with what is before them.
_SECRET_ENDINGS = ("password", "passwd", "passphrase", "apikey", "secretkey", "accesskey",
                   "privatekey")  # fmt: skip
_KINDS_OF_KEY = frozenset(
    ("api", "access", "private", "secret", "encryption", "signing", "session", "master", "ssh")
)
_PUBLIC_WORDS = frozenset(
    ("sha", "sha1", "sha256", "sha512", "md5", "digest", "checksum", "commit", "revision", "gpg",
     "fingerprint", "hash", "integrity", "version", "public", "url", "file", "path", "dir")
)  # fmt: skip
_COMMANDS = ("Entrypoint", "Cmd", "Shell")
# An assignment or an option in the command of a build.
_ASSIGNED = re.compile(
    r"(?<![\w-])(?>[\w-]*?-(?=[A-Za-z]))([\w-]++)[= ](?=\S)(\S+)"
    r"|\b([A-Za-z_]\w*+)=(\"[^\"]*\"|'[^']*'|\S+)"
)
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_TOKEN = re.compile(r"[\w+/=-]{20,}")  # a random text is no shorter
_RANDOM = 3.9  # bits for each character; words and paths have less, random base64 has more
_REPEATED = "a value that was taken out elsewhere"
_DISTINCT = 6  # characters of a value that is known again in the midst of a text


@dataclass(frozen=True, slots=True)
class Suspect:
    """A place in the configuration, and what is there: never the text itself."""

    where: str
    name: str
    why: str

    def __str__(self) -> str:
        """Return it for a message."""
        return f"{repeatable(f'{self.where} {self.name}')}: looks like {self.why}"


def find(document: Json, values: Collection[str] = ()) -> list[Suspect]:
    """Return what looks like a secret in an image's configuration (OCI image-spec, config.md).

    So does what repeats one of the `values`, which are secrets wherever they are.
    """
    return [
        Suspect(where, name, why)
        for where, name, text in _texts(document)
        if (why := reason("" if where not in (ENVIRONMENT, LABEL) else name, text))
        or (why := _REPEATED if repeats(text, values) else None)
    ]


def repeats(text: str, values: Collection[str]) -> bool:
    """Whether one of the values is in a text; one of a few characters only as a word."""
    return any(
        value in text
        and (is_distinct(value) or re.search(rf"(?<!\w){re.escape(value)}(?!\w)", text))
        for value in values
    )


def is_distinct(value: str) -> bool:
    """Whether a value is long enough to be known again in the midst of a text."""
    return len(value) >= _DISTINCT


def reason(name: str, text: str) -> str | None:
    """Return why a text of that name looks like a secret, None if it does not."""
    for pattern, why in _PATTERNS:
        if pattern.search(text):
            return why
    if not name:
        return _assigned(text)
    if _names_secret(name) and _is_value(text):
        return "a secret, by its name"
    return None if _is_public(name) else _random(text)


def _assigned(text: str) -> str | None:
    for found in _ASSIGNED.finditer(text):
        name, value = (found[1], found[2]) if found[1] else (found[3], found[4].strip("\"'"))
        if _names_secret(name) and _is_value(value):
            return "a secret, by the name of what it is assigned to"
    return None


def _names_secret(name: str) -> bool:
    words = [word.lower() for word in _WORD.findall(name)]
    if set(words) & _PUBLIC_WORDS:
        return False
    if set(words) & _SECRET_WORDS or any(word.endswith(_SECRET_ENDINGS) for word in words):
        return True
    return any(a in _KINDS_OF_KEY and b == "key" for a, b in itertools.pairwise(words))


def _is_value(text: str) -> bool:
    """Whether a text is what it is about, and not where to find it."""
    return bool(text) and not text.startswith(("/", "$", "./")) and text.lower() not in (
        "true", "false", "yes", "no", "0", "1", "none", "null"
    )  # fmt: skip


def _is_public(name: str) -> bool:
    return bool({word.lower() for word in _WORD.findall(name)} & _PUBLIC_WORDS)


def _random(text: str) -> str | None:
    for token in _TOKEN.findall(text):
        kinds = sum(any(map(kind, token)) for kind in (str.isdigit, str.islower, str.isupper))
        if kinds == 3 and "/" not in token[:2] and _entropy(token) >= _RANDOM:
            return f"{len(token)} random characters"
    return None


def _entropy(text: str) -> float:
    counts = Counter(text)
    return -sum(n / len(text) * math.log2(n / len(text)) for n in counts.values())


def _texts(document: Json) -> Iterator[tuple[str, str, str]]:
    """Yield (where, name, text) of what the configuration says."""
    config = _mapping(document.get("config"))
    for each in _list(config.get(ENVIRONMENT)):
        name, _, value = str(each).partition("=")
        yield ENVIRONMENT, name, value
    for name, value in _mapping(config.get(LABEL)).items():
        yield LABEL, name, str(value)
    for where, value in config.items():
        if where in _COMMANDS:
            yield where, "", " ".join(map(str, _list(value)))
        elif where == "Healthcheck":
            yield where, "", " ".join(map(str, _list(_mapping(value).get("Test"))))
        elif where not in (ENVIRONMENT, LABEL):
            yield where, "", "\n".join(_said(value))
    for where, value in document.items():
        if where not in ("config", HISTORY, "rootfs"):
            yield where, "", "\n".join(_said(value))
    for number, entry in enumerate(_list(document.get(HISTORY)), 1):
        yield HISTORY, str(number), history_text(entry)


def _said(value: object) -> Iterator[str]:
    """Yield all text in a value of whatever kind, as NAME=TEXT where it has a name."""
    waiting = [("", value)]
    while waiting:
        name, inner = waiting.pop()
        if isinstance(inner, dict):
            waiting += [(str(key), each) for key, each in inner.items()]
        elif isinstance(inner, list):
            waiting += [(name, each) for each in inner]
        elif inner is not None:
            yield f"{name}={inner}" if name else str(inner)


def history_text(entry: object) -> str:
    """Return what an entry of the history says of its step."""
    return " ".join(
        str(said) for key, said in _mapping(entry).items() if key not in KEPT_OF_HISTORY
    )


def _mapping(value: object) -> Json:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
