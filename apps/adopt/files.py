"""What lies in a file of weights?  safetensors: a header in JSON, then numbers, read and written a block at a time.

    8 bytes, little-endian: the length of the header
    the header:             {"NAME": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}, …}
    the numbers             of all tensors, one after the other

Nothing is mapped: a mapped file that is cut short meanwhile would end the program without a word.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from state import replacing
from tools.folder import read_json

BLOCK = 1 << 20  # numbers converted at a time
DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True)
class Entry:
    """Where the numbers of one tensor lie."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int

    def read(self) -> np.ndarray:
        """The tensor in float32."""
        size, out = math.prod(self.shape), np.empty(self.shape, np.float32)
        flat, kind = out.reshape(-1), np.dtype(DTYPES[self.dtype])
        with open(self.path, "rb", buffering=0) as file:
            file.seek(self.start)
            for i in range(0, size, BLOCK):
                block = np.fromfile(file, kind, min(BLOCK, size - i))
                if len(block) < min(BLOCK, size - i):
                    raise ValueError(f"{self.path} has become shorter while it was read")
                part = flat[i:i + BLOCK]
                if self.dtype == "BF16":  # the upper half of a float32
                    np.left_shift(block, 16, out=part.view(np.uint32), dtype=np.uint32)
                else:
                    part[...] = block
        return out


def header(path: Path) -> dict[str, Entry]:
    """The tensors of one file; ValueError if it is missing, damaged or cut short."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or 8 + length > size:
                raise ValueError("its header is longer than the file" if size >= 8 else f"it has {size} bytes")
            found = json.loads(file.read(length))
        entries = {}
        for name, about in found.items():
            if name == "__metadata__":
                continue
            start, stop = (8 + length + offset for offset in about["data_offsets"])
            if about["dtype"] not in DTYPES:
                raise ValueError(f"{name} is of type {about['dtype']}; known are {', '.join(DTYPES)}")
            wanted = math.prod(about["shape"]) * np.dtype(DTYPES[about["dtype"]]).itemsize
            if stop - start != wanted or stop > size or start < 8 + length:
                raise ValueError(f"{name} should take {wanted} bytes; it ends at byte {stop} of {size}")
            entries[name] = Entry(path, about["dtype"], tuple(about["shape"]), start)
        return entries
    except FileNotFoundError:
        raise ValueError(f"there is no file {path}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no whole safetensors file: {error}") from None


def tensors(folder: Path) -> dict[str, Entry]:
    """All tensors of a model, in one file or in shards; ValueError says what is missing where."""
    if (folder / INDEX).exists():
        places = read_json(folder / INDEX).get("weight_map")
        if not isinstance(places, dict) or not places:
            raise ValueError(f"{folder / INDEX} has no weight_map, which says in which shard a tensor lies")
        shards = {name: header(folder / name) for name in sorted(set(places.values()))}
        for name, shard in places.items():
            if name not in shards[shard]:
                raise ValueError(f"{folder / shard} lacks {name}, which {INDEX} says is in it")
        return {name: shards[shard][name] for name, shard in places.items()}
    if not (folder / SINGLE).exists():
        others = sorted(path.name for pattern in ("*.bin", "*.pt", "*.gguf", "*.h5") for path in folder.glob(pattern))
        raise ValueError(f"there is no {SINGLE} in {folder}, nor {INDEX}"
                         + (f"; {others[0]} is of a format that is not read" if others else ""))
    return header(folder / SINGLE)


def write(path: Path, shapes: dict[str, tuple[int, ...]], read: Callable[[str], np.ndarray]) -> None:
    """Write tensors as float32, one after the other, beside the file that is then replaced."""
    about: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, shape in shapes.items():
        stop = start + 4 * math.prod(shape)
        about[name], start = {"dtype": "F32", "shape": shape, "data_offsets": [start, stop]}, stop
    text = json.dumps(about).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            array = np.ascontiguousarray(read(name), "<f4")
            assert array.shape == shape, name
            file.write(array.data)
