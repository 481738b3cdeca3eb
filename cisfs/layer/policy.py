"""The trust policy: whose signatures a layer needs under which name.

    [default]                                   # for what no rule is about; without it: anything
    signers = ["ed25519:BASE64"]                # or allow = true, or allow = false

    [[rule]]
    layers = ["payroll*", "/srv/layers/*.cis"]  # names in the host's directory, or absolute paths
    registries = ["registry.example/team/"]     # what is pulled from there, whenever it is used
    signers = ["/etc/cisfs/signers/alice.pub", "ed25519:BASE64"]
    threshold = 1                               # how many of them; default: all

All rules that are about a name hold together.  In names and paths `*`, `?` and `[...]` are as in a
shell and never stand for "/"; a component `**` stands for any number of them.  What cannot be
understood is an error, never passed over.  Knows no files (`cisfs.layer.admission`).  Pure
functions of immutable values; safe anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from cisfs.errors import UntrustedError
from cisfs.layer.reference import canonical_reference, is_below, prefix

_DECISIONS = {"allow", "signers", "threshold"}
_RULE = _DECISIONS | {"layers", "registries"}
_ANY_DEPTH = "**"


@dataclass(frozen=True, slots=True)
class Signer:
    """One who may have to sign: the 32-byte public key, and what the policy calls it."""

    key: bytes
    label: str


@dataclass(frozen=True, slots=True)
class Demand:
    """What one part of the policy asks of a layer: `threshold` of the `signers`; of nobody: 0.

    `forbids` is for whatever it is about, signed or not.
    """

    where: str
    forbids: bool = False
    signers: tuple[Signer, ...] = ()
    threshold: int = 0


@dataclass(frozen=True, slots=True)
class Rule:
    """Patterns of names, and what is asked of the layers that have one of them."""

    names: tuple[str, ...]
    paths: tuple[tuple[str, ...], ...]  # components
    registries: tuple[str, ...]
    demand: Demand

    def is_about(self, path: str, name: str) -> bool:
        """Tell whether it is about a layer at an absolute path, "" or its name in the host's."""
        spellings = (name, name.removesuffix(".cis")) if name else ()
        if any(fnmatchcase(each, pattern) for each in spellings for pattern in self.names):
            return True
        parts = tuple(path.strip("/").split("/"))
        return any(_matches(parts, pattern) for pattern in self.paths)

    def is_about_reference(self, reference: str) -> bool:
        """Tell whether it is about what a canonical reference names."""
        return any(is_below(reference, registry) for registry in self.registries)


@dataclass(frozen=True, slots=True)
class Policy:
    """All rules, and what holds where there is none."""

    rules: tuple[Rule, ...]
    default: Demand | None

    @property
    def names_registries(self) -> bool:
        """Whether it makes a difference where a layer was pulled from."""
        return any(rule.registries for rule in self.rules)

    def demands(self, path: str, name: str, source: str = "") -> list[Demand]:
        """Return all that is asked of a layer under one of its paths; `name`: see `Rule`.

        `source` is HOST/NAME that a pulled one came from, where that is another name of this path.
        """
        wanted = canonical_reference(source)
        return self._of(
            rule
            for rule in self.rules
            if rule.is_about(path, name) or (source and rule.is_about_reference(wanted))
        )

    def demands_of_reference(self, reference: str) -> list[Demand]:
        """Return all that is asked of what is pulled by a full reference, HOST/NAME[:TAG]."""
        wanted = canonical_reference(reference)
        return self._of(rule for rule in self.rules if rule.is_about_reference(wanted))

    def _of(self, rules: Iterable[Rule]) -> list[Demand]:
        found = [rule.demand for rule in rules]
        if not found and self.default is not None:
            found.append(self.default)
        return found


def parse(data: bytes, key_of: Callable[[str], bytes]) -> Policy:
    """Read a policy; `key_of` returns the public key that a signer's text names.

    Raises UntrustedError that says where in the policy what is wrong, what `key_of` raises.
    """
    import tomllib  # most hosts have no policy, and start many containers

    try:
        document = tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UntrustedError(f"it is not valid TOML ({error})") from None
    _check_fields(document, {"default", "rule"}, "")
    default = document.get("default")
    if default is not None:
        _check_fields(default, _DECISIONS, "[default]")
    rules = document.get("rule", [])
    if not isinstance(rules, list):
        raise UntrustedError("rule: write [[rule]], in double brackets")
    return Policy(
        rules=tuple(_rule(each, f"rule {at}", key_of) for at, each in enumerate(rules, 1)),
        default=_demand(default, "[default]", key_of) if default is not None else None,
    )


def _rule(value: object, where: str, key_of: Callable[[str], bytes]) -> Rule:
    fields = _check_fields(value, _RULE, where)
    layers = _texts(fields, "layers", where)
    registries = _texts(fields, "registries", where)
    if not layers and not registries:
        raise UntrustedError(f"{where}: it names neither layers nor registries")
    return Rule(
        names=tuple(each for each in layers if "/" not in each),
        paths=tuple(_components(each, where) for each in layers if "/" in each),
        registries=tuple(_registry(each, where) for each in registries),
        demand=_demand(fields, where, key_of),
    )


def _demand(fields: Mapping[str, object], where: str, key_of: Callable[[str], bytes]) -> Demand:
    allow = fields.get("allow")
    if (allow is None) == ("signers" not in fields):
        raise UntrustedError(f"{where}: it takes either signers or allow")
    if allow is not None:
        if not isinstance(allow, bool) or "threshold" in fields:
            raise UntrustedError(f"{where}: allow is true or false, and has no threshold")
        return Demand(where, forbids=not allow)
    signers = tuple(Signer(key_of(label), label) for label in _texts(fields, "signers", where))
    if len({each.key for each in signers}) != len(signers):
        raise UntrustedError(f"{where}: two of the signers have the same key")
    threshold = fields.get("threshold", len(signers))
    if type(threshold) is not int or not 1 <= threshold <= len(signers):
        raise UntrustedError(f"{where}: threshold is not a number from 1 to {len(signers)}")
    return Demand(where, signers=signers, threshold=threshold)


def _check_fields(value: object, known: set[str], where: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise UntrustedError(f"{where}: it is not a table")
    for key in value:
        if key not in known:
            raise UntrustedError(f"{where + ': ' if where else ''}unknown key {key!a}")
    return value


def _texts(fields: Mapping[str, object], key: str, where: str) -> Sequence[str]:
    """Return the list of texts at a key, () if it is not there; none may be empty."""
    if key not in fields:
        return ()
    value = fields[key]
    if not isinstance(value, list) or not value:
        raise UntrustedError(f"{where}: {key} is not a list of texts")
    if not all(isinstance(each, str) and each for each in value):
        raise UntrustedError(f"{where}: {key} is not a list of texts")
    return value


def _components(pattern: str, where: str) -> tuple[str, ...]:
    parts = pattern.split("/")
    if parts[0] or any(part in ("", ".", "..") for part in parts[1:]):
        raise UntrustedError(
            f"{where}: layers: {pattern!r} is neither a plain name nor an absolute path free of "
            "// and .."
        )
    return tuple(parts[1:])


def _registry(text: str, where: str) -> str:
    try:
        return prefix(text)
    except ValueError as error:
        raise UntrustedError(f"{where}: registries: {error}") from None


def _matches(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == _ANY_DEPTH:
        return any(_matches(parts[at:], pattern[1:]) for at in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])
