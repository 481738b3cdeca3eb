"""`cisfs-runtime`, an OCI runtime: encrypted layers under a container's root, then runc."""
