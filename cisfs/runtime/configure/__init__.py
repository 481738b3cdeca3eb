"""The engines' configurations: how each learns of the runtime `cisfs`, and forgets it."""
