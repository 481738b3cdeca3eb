"""bytes and keys in, bytes out: AES-XTS, BLAKE3 tags, AES-SIV, HKDF; no I/O."""
