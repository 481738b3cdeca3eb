"""Everything mounted: the FUSE session, its server process, the mount table.  See each module."""
