"""Public images for the embedded engine: named, fetched with skopeo, unpacked with umoci, kept."""
