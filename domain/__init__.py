"""The rules of the marketplace: pure functions over msgspec structs; no I/O, no clock, no randomness."""
