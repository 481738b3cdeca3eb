"""Sources to sealed layers: what a directory or a tar holds, and the image made of it."""
