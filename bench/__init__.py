"""Benchmarks: `pytest bench/`.  What is measured, how, and how to read it stands in `bench/README.md`."""
