"""The load generator: one process, one event loop, whose own share of the time is measured too."""
