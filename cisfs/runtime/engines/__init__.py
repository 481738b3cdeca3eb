"""The engines of others that `cisfs run` can start containers with: docker, podman."""
