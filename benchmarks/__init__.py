"""How fast it is, and what of that is the machine's: `renoveasy bench`. See docs/benchmarks.md."""
