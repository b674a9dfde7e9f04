"""How fast is it, and beside what?  Timings against other frameworks: `python -m benchmarks`."""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy is imported; see train.py
os.environ.setdefault("MKL_NUM_THREADS", "1")
