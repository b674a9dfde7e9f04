"""How fast is it, and beside what?  Timings against other frameworks: `python -m benchmarks`."""

import os

os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "10")  # before NumPy is imported; see train.py
