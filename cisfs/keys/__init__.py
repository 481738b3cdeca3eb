"""Passphrases and key files, and the key slots that they open."""
