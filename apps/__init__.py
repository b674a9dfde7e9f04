"""Programs around a trained model; each is `python -m apps.NAME`."""

import os

os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "10")  # before NumPy is imported; see train.py
