"""`cisfs inspect --remote IMAGE`: what a registry shows to anyone of an image with sealed layers.

Calls `cisfs.registry.survey`, prints.  One call per process.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

from cisfs.cli.table import size
from cisfs.format.said import repeatable

if TYPE_CHECKING:
    from cisfs.registry.descriptor import Descriptor
    from cisfs.registry.samples import Samples
    from cisfs.registry.survey import Encrypted, Sealed, Survey
    from cisfs.runtime.images.suspects import Suspect


def run(args: argparse.Namespace) -> int:
    """Print what is there; return 0, unless something is in clear that should not be."""
    from cisfs.cli.registries import machine, reference_of, repository_of
    from cisfs.errors import IntegrityError
    from cisfs.registry.documents import parse_object
    from cisfs.registry.found import choose
    from cisfs.registry.survey import survey
    from cisfs.runtime.images import suspects

    reference = reference_of(args.layer)
    with repository_of(args, reference) as repository:
        found = repository.manifest(reference.target)
        seen = survey(repository, choose(found, repository.described, machine()))
    suspected = suspects.find(parse_object(seen.config, "the image's configuration"))
    if args.json:
        print(json.dumps(_document(str(reference), seen, suspected), indent=2))
    else:
        print("\n".join(_lines(str(reference), seen, suspected)))
    if seen.in_clear:
        raise IntegrityError(f"{reference}: no ciphertext: {', '.join(seen.in_clear)}")
    return 0


def _document(reference: str, seen: Survey, suspected: list[Suspect]) -> dict[str, object]:
    return {
        "image": reference,
        "digest": seen.manifest.descriptor.digest,
        "public": {
            "layers": [_blob(each) for each in seen.public],
            "suspects": [{"where": s.where, "name": s.name, "why": s.why} for s in suspected],
        },
        "sealed": [_sealed(each) for each in seen.sealed],
        "encrypted": [
            {**_blob(each.blob), "recipients": each.recipients, "samples": _samples(each.samples)}
            for each in seen.encrypted
        ],
    }


def _blob(blob: Descriptor) -> dict[str, object]:
    return {"digest": blob.digest, "size": blob.size, "type": blob.media_type}


def _sealed(each: Sealed) -> dict[str, object]:
    from cisfs.keys.signing import describe_signatures
    from cisfs.keys.slots import describe_slots

    return {
        "identity": each.layer.identity,
        "size": each.layer.size,
        "version": each.header.version,
        "unit_size": each.header.unit_size,
        "image_size": each.header.image_size,
        "slots": describe_slots(each.slots),
        "signatures": describe_signatures(each.signatures, each.layer.identity),
        "samples": _samples(each.samples),
    }


def _samples(samples: Samples) -> dict[str, object]:
    return {
        "count": samples.count,
        "size": samples.size,
        "vouched_for": samples.vouched,
        "look_random": samples.random,
    }


def _lines(reference: str, seen: Survey, suspected: list[Suspect]) -> Iterator[str]:
    yield f"image {reference}, {seen.manifest.descriptor.digest}"
    yield _heading("public", len(seen.public), sum(each.size for each in seen.public))
    for blob in seen.public:
        yield f"  {blob.digest}, {size(blob.size)}"
    for suspect in suspected:
        yield f"  in its configuration, {suspect}"
    yield _heading("sealed", len(seen.sealed), sum(each.layer.size for each in seen.sealed))
    for sealed in seen.sealed:
        yield from _sealed_lines(sealed)
    if seen.encrypted:
        total = sum(each.blob.size for each in seen.encrypted)
        yield _heading("encrypted as by ocicrypt", len(seen.encrypted), total)
        for encrypted in seen.encrypted:
            yield from _encrypted_lines(encrypted)


def _sealed_lines(each: Sealed) -> Iterator[str]:
    from cisfs.keys.signing import describe_signatures
    from cisfs.keys.slots import in_words

    yield f"  {each.layer.identity}, {size(each.layer.size)}"
    for slot in each.slots:
        yield f"    opened by: {repeatable(str(slot['type']))} {in_words(slot)}".rstrip()
    signatures = describe_signatures(each.signatures, each.layer.identity)
    for signature in signatures:
        yield f"    signed by: {signature['signer']}{'' if signature['valid'] else ', not valid'}"
    if not signatures:
        yield "    signed by nobody"
    yield f"    {_in_words(each.samples)}"


def _encrypted_lines(each: Encrypted) -> Iterator[str]:
    yield f"  {each.blob.digest}, {size(each.blob.size)}"
    for kind, count in each.recipients.items():
        yield f"    opened by: {count} {repeatable(kind)} key{'' if count == 1 else 's'}"
    yield f"    {_in_words(each.samples)}"


def _in_words(samples: Samples) -> str:
    looks = {
        True: "look like ciphertext",
        False: "do NOT look like ciphertext",
        None: "are too few bytes to tell",
    }[samples.random]
    whose = "what the identity vouches for" if samples.vouched else "vouched for by nothing"
    return f"{samples.count} samples, {size(samples.size)}, are {whose} and {looks}"


def _heading(name: str, count: int, total: int) -> str:
    layers = f"{count} layer{'' if count == 1 else 's'}"
    return f"{name}: {layers}, {size(total)}" if count else f"{name}: nothing"
