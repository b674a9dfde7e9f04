"""Shared by all tests: hypothesis tries the same examples on every machine, and leaves no folder behind."""

import os
import tempfile

from hypothesis import settings

os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", os.path.join(tempfile.gettempdir(), "hypothesis"))
settings.register_profile("house", max_examples=25, deadline=None, derandomize=True, database=None)
settings.load_profile("house")
