"""Programs around a trained model; each is `python -m apps.NAME`."""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy is imported; see train.py
os.environ.setdefault("MKL_NUM_THREADS", "1")
