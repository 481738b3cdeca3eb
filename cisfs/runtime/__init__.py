"""Containers: overlay plans, OCI bundles, private namespaces and the engine that runs them."""
