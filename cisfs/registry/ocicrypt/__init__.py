"""Encrypted OCI images as skopeo, podman and containerd have them: containers/ocicrypt's format."""
