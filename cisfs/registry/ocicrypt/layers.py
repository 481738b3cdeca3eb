"""Encrypted layers, opened: nothing comes out before all of it was found authentic.

A layer is read twice.  The first time its ciphertext has to match the manifest's digest and the
HMAC, and its plaintext the digest that was wrapped with the key; what is kept of that is a hash of
each piece, 32 bytes for a MiB.  The second time the plaintext is given out, piece by piece, each
after its hash matched.  So no plaintext needs a place to wait in.

Does not know where ciphertext comes from, nor tars.  One thread for each layer.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from cisfs.crypto.hashes import unit_hash
from cisfs.errors import CisfsError, FormatError, IntegrityError
from cisfs.keys.credentials import Credential
from cisfs.keys.wrapping import Identity
from cisfs.registry.descriptor import Descriptor, short
from cisfs.registry.ocicrypt import mediatypes, packets
from cisfs.registry.ocicrypt.cipher import Decryption
from cisfs.registry.ocicrypt.options import PrivateOptions, PublicOptions, nonce_of
from cisfs.registry.ocicrypt.unpacking import unpacked_digest

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

# More than registries and engines take for a layer.
MAX_UNPACKED = 64 << 30

_PIECE = 1 << 20


def is_encrypted(descriptor: Descriptor) -> bool:
    """Tell whether a layer is encrypted as ocicrypt does it, by what its descriptor says."""
    return mediatypes.is_encrypted(descriptor.media_type)


def decrypt_layer(
    descriptor: Descriptor,
    fd: int,
    offered: Iterable[Identity | Credential],
    max_size: int = MAX_UNPACKED,
) -> VerifiedLayer:
    """Read all of an encrypted layer in the file `fd`, and return what gives out its plaintext.

    Reads through a duplicate of `fd`, from the file's beginning.  `max_size` is for what it unpacks
    to, if only that tells whether it is authentic.  Raises FormatError for what ocicrypt does not
    write, WrongKeyError if nothing `offered` opens it, IntegrityError if anything was altered,
    UsageError if it is too large, OSError.
    """
    own = os.dup(fd)
    try:
        with _named(descriptor):
            source = _Ciphertext(own, descriptor, *_options(descriptor, offered))
            return VerifiedLayer(source, max_size)
    except BaseException:
        os.close(own)
        raise


class Decrypting:
    """Opens the encrypted layers of an image, each as a stream that can be read once."""

    def __init__(
        self, offered: Sequence[Identity | Credential], max_size: int = MAX_UNPACKED
    ) -> None:
        """Open them with what is `offered`; `max_size` is for `decrypt_layer`."""
        self._offered = offered
        self._max_size = max_size

    def __call__(
        self, descriptor: Descriptor, ciphertext: Callable[[], BinaryIO]
    ) -> io.BufferedReader:
        """Return the layer's plaintext, which was found authentic; `ciphertext` opens its file.

        Raises what `decrypt_layer` raises; reading raises what `VerifiedLayer.pieces` raises.
        """
        with ciphertext() as file:
            layer = decrypt_layer(descriptor, file.fileno(), self._offered, self._max_size)
        return layer.open(close=True)


class VerifiedLayer:
    """The plaintext of a layer that was found authentic: compressed as it was before.

    `media_type` and `digest` are the plaintext's, `size` in bytes that of both.
    """

    def __init__(self, source: _Ciphertext, max_size: int) -> None:
        """Read all of `source`; raises as `decrypt_layer` does."""
        self._source = source
        self._max_size = max_size
        self._hashes: list[bytes] = []
        self.size = source.descriptor.size
        self.media_type = mediatypes.decrypted(source.descriptor.media_type)
        self.digest = self._verify()

    def pieces(self) -> Iterator[bytes]:
        """Yield the plaintext, up to 1 MiB at a time; as often as is wanted.

        Raises IntegrityError when the file was altered meanwhile, before any of that; OSError.
        """
        decryption = self._source.decryption()
        expected = iter(self._hashes)
        with _named(self._source.descriptor):
            for piece in self._source.pieces():
                if unit_hash(piece) != next(expected):
                    raise IntegrityError("it was altered while it was read")
                yield decryption.update(piece)

    def open(self, *, close: bool = False) -> io.BufferedReader:
        """Return a file of the plaintext, to be read once from its beginning to its end.

        With `close` the layer is closed with it.  Reading raises what `pieces` raises.
        """
        return io.BufferedReader(_Pieces(self.pieces(), self.close if close else None), _PIECE)

    def close(self) -> None:
        """Let go of the file, once."""
        os.close(self._source.fd)

    def __enter__(self) -> VerifiedLayer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _verify(self) -> str:
        """Note the pieces' hashes; returns the plaintext's digest."""
        source, decryption = self._source, self._source.decryption()
        stored, plain = hashlib.sha256(), hashlib.sha256()
        for piece in source.pieces():
            stored.update(piece)
            self._hashes.append(unit_hash(piece))
            plain.update(decryption.update(piece))
        if f"sha256:{stored.hexdigest()}" != source.descriptor.digest:
            raise IntegrityError("it has another content than its digest says")
        if not decryption.is_authentic(source.public.mac):
            raise IntegrityError("its HMAC does not match: it was altered, or is another layer's")
        digest = f"sha256:{plain.hexdigest()}"
        if not self._is_wrapped(digest):
            raise IntegrityError("its plaintext has another digest than was wrapped with its key")
        return digest

    def _is_wrapped(self, digest: str) -> bool:
        """Tell whether the digest that was wrapped is the plaintext's or of what it unpacks to."""
        wrapped = self._source.private.digest
        if wrapped == digest:
            return True
        try:
            with self.open() as plain:
                return wrapped == unpacked_digest(plain, self.media_type, self._max_size)
        except FormatError:  # what came out is not even compressed
            return False


@dataclass(frozen=True, slots=True)
class _Ciphertext:
    """A layer's file, and what goes with it."""

    fd: int
    descriptor: Descriptor
    public: PublicOptions
    private: PrivateOptions

    def decryption(self) -> Decryption:
        return Decryption(self.private.key, nonce_of(self.public, self.private))

    def pieces(self) -> Iterator[bytes]:
        """Yield the bytes, all pieces but the last of the same size.

        Raises IntegrityError unless there are as many as the descriptor says.
        """
        size, offset = self.descriptor.size, 0
        while offset < size:
            piece = _read(self.fd, min(_PIECE, size - offset), offset)
            offset += len(piece)
            yield piece
        if os.pread(self.fd, 1, size):
            raise IntegrityError(f"it has more than {size} bytes")


class _Pieces(io.RawIOBase):
    """Pieces as a file."""

    def __init__(self, pieces: Iterator[bytes], closed: Callable[[], None] | None) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")
        self._closed = closed

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        if not self._rest:
            self._rest = memoryview(next(self._pieces, b""))
        into = memoryview(buffer).cast("B")
        size = min(len(into), len(self._rest))
        into[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size

    def close(self) -> None:
        closed, self._closed = self._closed, None
        super().close()
        if closed is not None:
            closed()


@contextmanager
def _named(descriptor: Descriptor) -> Iterator[None]:
    """Have our errors say which layer they are about."""
    try:
        yield
    except CisfsError as error:
        raise type(error)(f"encrypted layer {short(descriptor.digest)}: {error}") from None


def _options(
    descriptor: Descriptor, offered: Iterable[Identity | Credential]
) -> tuple[PublicOptions, PrivateOptions]:
    """Return a layer's options, which are complete.  Raises FormatError, WrongKeyError."""
    mediatypes.decrypted(descriptor.media_type)
    public = packets.public_options(descriptor.annotations)
    private = PrivateOptions.parse(packets.unwrap(descriptor.annotations, offered))
    nonce_of(public, private)
    return public, private


def _read(fd: int, size: int, offset: int) -> bytes:
    """Return `size` bytes.  Raises IntegrityError if there are fewer."""
    data = os.pread(fd, size, offset)
    while len(data) < size:
        more = os.pread(fd, size - len(data), offset + len(data))
        if not more:
            raise IntegrityError(f"it ends after {offset + len(data)} bytes")
        data += more
    return data
