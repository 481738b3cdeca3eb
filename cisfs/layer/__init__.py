"""Vaults as objects: files, trees, journal, verify; synchronous, knows no FUSE."""
