"""How fast is it, and beside what?  Timings against other frameworks: `python -m benchmarks`."""
