"""Whether a layer may be used: the host's trust policy, applied before any key is asked for.

The policy is /etc/cisfs/policy.toml, or the file that CISFS_POLICY names; without either anything
may be used.  A layer is judged under two names: the one that it was given, and the one that the
kernel has for the file which was opened, without symlinks.  Both must be admitted.  A path in the
caller's store says no more than the identity: the repository that the layer came from stands for
it, too.  Does not know the policy's language (`cisfs.layer.policy`).  Safe anywhere.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cisfs.crypto.signatures import is_valid
from cisfs.errors import CisfsError, FormatError, UntrustedError, UsageError
from cisfs.format.signatures import Signature
from cisfs.keys import signing
from cisfs.layer import detached, policy, store, trusted_file
from cisfs.layer.candidate import Admission, Candidate
from cisfs.layer.origin import NAME, Origin
from cisfs.layer.policy import Demand, Policy, Signer

FILE = Path("/etc/cisfs/policy.toml")
VARIABLE = "CISFS_POLICY"

_GONE = " (deleted)"  # what the kernel says of a file without a name (proc(5))


def from_environment() -> Admission:
    """Return what admits layers for a user's command: CISFS_POLICY goes before the host's policy.

    Whoever sets the variable of a process decides what it does anyway.  Raises UntrustedError.
    """
    return load(named_by_environment()).admit


def named_by_environment() -> Path | None:
    """Return the policy that CISFS_POLICY names, None for the host's."""
    named = os.environ.get(VARIABLE)
    return Path(named) if named else None


def of_host(path: Path | None = None) -> Admission:
    """Return what admits layers, whatever the environment: the policy at `path`, or the host's.

    Raises UntrustedError if the policy, or a signer that it names, will not do.
    """
    return load(path).admit


def load(path: Path | None = None) -> Judge:
    """Return the policy at `path` (default: the host's, if there is one).

    Raises UntrustedError.
    """
    where = FILE if path is None else path
    try:
        data = trusted_file.read(where)
    except FileNotFoundError:
        if path is None:
            return Judge(where, Policy((), None))
        raise UntrustedError(f"there is no policy {where}") from None
    try:
        return Judge(where, policy.parse(data, _key_of))
    except (UntrustedError, UsageError) as error:
        raise UntrustedError(f"policy {where}: {error}") from None


@dataclass(frozen=True, slots=True)
class Judge:
    """A policy, and where it is written."""

    path: Path
    policy: Policy

    def admit(self, candidate: Candidate) -> None:
        """Raise UntrustedError, with what is missing, if a layer on this host may not be used."""
        demands = [
            demand
            for path, name in _spellings(candidate)
            for demand in self.policy.demands(path, name, self._source(Path(path)))
        ]
        signatures = _Signatures(candidate)
        for demand in demands:
            self._check(str(candidate.path), demand, candidate.identity, signatures)

    def admit_as(self, candidate: Candidate, reference: str) -> None:
        """Raise UntrustedError if a layer that is here may not be used by a full reference."""
        signatures = _Signatures(candidate)
        for demand in self.policy.demands_of_reference(reference):
            self._check(reference, demand, candidate.identity, signatures)

    def check(self, identity: str, signatures: Sequence[Signature], reference: str) -> None:
        """Raise UntrustedError if what a full reference names in a registry may not be used.

        `signatures` are all that there are of the layer with this identity, not yet checked.
        """
        for demand in self.policy.demands_of_reference(reference):
            self._check(reference, demand, identity, _Signatures(None, signatures))

    def check_name(self, reference: str) -> None:
        """Raise UntrustedError if nothing by a full reference may be used, whoever signed it.

        For before a registry is asked: who names a layer is not to choose whom the host talks to.
        """
        for demand in self.policy.demands_of_reference(reference):
            if demand.forbids:
                self._check(reference, demand, "", _Signatures(None))

    def _source(self, path: Path) -> str:
        """Return the repository that the layer at a path of our store came from, "" for others."""
        if not self.policy.names_registries or not store.has_pulled(path):
            return ""
        try:
            return Origin.read(path.parent).name
        except (FormatError, OSError):
            raise UntrustedError(
                f"{path} may not be used: the policy {self.path} has rules about registries, and "
                f"{path.parent / NAME} does not say where it came from; remove both, and pull it "
                "again"
            ) from None

    def _check(self, what: str, demand: Demand, identity: str, signatures: _Signatures) -> None:
        where = f"the policy {self.path}, {demand.where}"
        if demand.forbids:
            raise UntrustedError(f"{what} may not be used: {where}, forbids it")
        if not demand.threshold:
            return
        if not identity:
            raise UntrustedError(
                f"{what} may not be used: {where}, asks for a signature, and vaults cannot be "
                "signed; make a layer of it with: cisfs seal"
            )
        missing = signatures.missing(demand.signers, identity)
        if len(demand.signers) - len(missing) >= demand.threshold:
            return
        raise UntrustedError(
            f"{what} may not be used: {where}, asks for {_in_words(demand)}; missing: "
            f"{', '.join(each.label for each in missing)}{signatures.problems()}"
        )


def require(candidate: Candidate, wanted: Sequence[Signer], files: Sequence[Path]) -> None:
    """Raise UntrustedError unless each of `wanted` has signed a layer, whatever the policy.

    Signatures count that are embedded, in one of `files`, or beside the layer.  Raises FormatError
    and OSError for `files` that cannot be read.
    """
    given: list[Signature] = []
    for path in files:
        held = detached.read(path)
        if held.identity != candidate.identity:
            raise UntrustedError(
                f"{path} has signatures of another layer, {held.identity}; {candidate.path} is "
                f"{candidate.identity}"
            )
        given += held.signatures
    signatures = _Signatures(candidate, given)
    missing = signatures.missing(wanted, candidate.identity)
    if missing:
        raise UntrustedError(
            f"{candidate.path}, {candidate.identity}, has no valid signature of "
            f"{', '.join(each.label for each in missing)}{signatures.problems()}"
        )


class _Signatures:
    """The signatures of one layer; files beside it are read when an embedded one is missing."""

    def __init__(self, candidate: Candidate | None, more: Sequence[Signature] = ()) -> None:
        embedded = candidate.signatures if candidate is not None else ()
        self._found = [*embedded, *more]
        self._files = iter(_beside(candidate)) if candidate is not None else iter(())
        self._problems: list[str] = []

    def missing(self, signers: Iterable[Signer], identity: str) -> list[Signer]:
        """Return those of the signers of whom there is no valid signature over the identity."""
        return [signer for signer in signers if not self._has(signer.key, identity)]

    def _has(self, signer: bytes, identity: str) -> bool:
        while not any(
            each.signer == signer and is_valid(signer, each.signature, identity)
            for each in self._found
        ):
            path = next(self._files, None)
            if path is None:
                return False
            self._take(path, identity)
        return True

    def problems(self) -> str:
        """What kept signatures from being counted, to be added to a message."""
        return "".join(f" ({each})" for each in self._problems)

    def _take(self, path: Path, identity: str) -> None:
        try:
            held = detached.read(path)
        except FileNotFoundError:
            return
        except OSError as error:
            self._problems.append(f"cannot read {path}: {error.strerror}")
            return
        except CisfsError as error:
            self._problems.append(str(error))
            return
        if held.identity == identity:
            self._found += held.signatures
        else:
            self._problems.append(f"{path} has signatures of another layer")


def _in_words(demand: Demand) -> str:
    if len(demand.signers) == 1:
        return "a signature"
    return f"{demand.threshold} of {len(demand.signers)} signatures"


def _key_of(text: str) -> bytes:
    """Return the public key of a signer in the policy; files are as trusted as the policy is."""

    def read(path: Path) -> bytes:
        if not path.is_absolute():
            raise UntrustedError(f"signer {text!r} is neither ed25519:BASE64 nor an absolute path")
        try:
            return trusted_file.read(path)
        except FileNotFoundError:
            raise UntrustedError(f"there is no signer {path}") from None

    return signing.signer(text, read)


def _spellings(candidate: Candidate) -> Iterator[tuple[str, str]]:
    """Yield each path of a layer, and its name in the host's directory or ""."""
    directories = {str(store.DIRECTORY), os.path.realpath(store.DIRECTORY)}
    for path in dict.fromkeys(_paths(candidate)):
        directory, _, name = path.rpartition("/")
        yield path, name if directory in directories else ""


def _paths(candidate: Candidate) -> Iterator[str]:
    for path in (
        os.path.abspath(candidate.path),
        os.readlink(f"/proc/self/fd/{candidate.fd}").removesuffix(_GONE),
    ):
        yield "/" + path.lstrip("/")  # "//x" is another spelling of "/x" (path_resolution(7))


def _beside(candidate: Candidate) -> Iterable[Path]:
    given = candidate.path.absolute()
    return dict.fromkeys((detached.beside(given), detached.beside(given.resolve())))
