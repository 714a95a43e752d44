"""Files that are there whole or not at all; memory of files that are mapped."""

import ctypes
import mmap
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from torch import Tensor


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Give the path of a neighbour to write to; at the end it takes the place of `path`.

    A stop or an error in between leaves what was there. Everybody may read the file, in a folder
    that others use too; folders are made as needed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        yield part
        part.chmod(0o644)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def release(weights: Tensor) -> None:
    """Give memory back that `weights` have only because a file is mapped.

    When they are used again, the system reads them again. Nothing changes but the memory: it is
    given back only on Linux, and only where all pages are as they are in the file.
    """
    size, start = mmap.PAGESIZE, weights.data_ptr()
    first, count = -(-start // size), (start + weights.nbytes) // size - -(-start // size)
    if sys.platform != "linux" or weights.device.type != "cpu" or count < 1:
        return
    try:
        with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
            pagemap.seek(8 * first)
            pages = np.frombuffer(pagemap.read(8 * count), "uint64")
    except OSError:
        return
    present, swapped, of_file = (pages >> bit & 1 for bit in map(np.uint64, (63, 62, 61)))
    if len(pages) == count and not (present & ~of_file & 1 | swapped).any():
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first * size), ctypes.c_size_t(count * size),
                                  mmap.MADV_DONTNEED)
