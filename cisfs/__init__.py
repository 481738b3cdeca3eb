"""cisfs: container layers that stay encrypted on disk and are decrypted while a container runs.

Holds the version and nothing else, so that importing any part loads only that part.  Knows none of
them.  Safe anywhere.
"""

__version__ = "0.1.0"
