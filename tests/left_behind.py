"""What two runs left behind, compared by the tests."""

import numpy as np

from tools.folder import read_log


def checkpoint(folder):
    with np.load(folder / "checkpoint.npz", allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def differing(a, b):
    """The names in which two checkpoints differ, be it by a bit."""
    def bits(array):
        return array.dtype, array.shape, array.tobytes()
    return [name for name in {*a, *b} if name not in a or name not in b or bits(a[name]) != bits(b[name])]


def numbers(folder):
    """The log without what depends on the clock on the wall."""
    return [{name: value for name, value in line.items() if name != "tokens_per_second"}
            for line in read_log(folder)]
