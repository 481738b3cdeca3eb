"""OCI registries: references, blobs, manifests and referrers, over HTTP."""
