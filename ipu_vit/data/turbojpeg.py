"""libturbojpeg decodes a region of a JPEG, in four fifths of the time that the whole takes, on average.

Packages for Python decode whole images, with this library or another. But the wheels of one, `turbojpeg`, bring the
library with them, and its C interface is short and stable (TurboJPEG API, version 3), so that it is called directly.
"""

from __future__ import annotations

import ctypes
import threading
from ctypes import Structure, c_char_p, c_int, c_size_t, c_void_p
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from weakref import finalize

import numpy as np

LEFT_STEP = 32
"""Regions begin at multiples of the blocks that colours are stored in, 8 to 32 pixels wide."""

_DECOMPRESS = 1  # TJINIT_DECOMPRESS
_RGBX = 2  # TJPF_RGBX


class _Region(Structure):
    _fields_ = [("x", c_int), ("y", c_int), ("w", c_int), ("h", c_int)]


def _load() -> Any:
    package = find_spec("turbojpeg")
    if package is None or package.origin is None:
        return None
    files = list(Path(package.origin).parent.glob("turbojpeg.libs/libturbojpeg*"))
    if not files:
        return None
    library = ctypes.CDLL(str(files[0]))
    library.tj3Init.restype, library.tj3Init.argtypes = c_void_p, [c_int]
    library.tj3Destroy.restype, library.tj3Destroy.argtypes = None, [c_void_p]
    library.tj3DecompressHeader.argtypes = [c_void_p, c_char_p, c_size_t]
    library.tj3SetCroppingRegion.argtypes = [c_void_p, _Region]
    library.tj3Decompress8.argtypes = [c_void_p, c_char_p, c_size_t, c_void_p, c_int, c_int]
    library.tj3GetErrorStr.restype, library.tj3GetErrorStr.argtypes = c_char_p, [c_void_p]
    return library


library = _load()
"""None where there is no wheel for the machine."""


class _Decoder:
    def __init__(self) -> None:
        self._handle = library.tj3Init(_DECOMPRESS)
        finalize(self, library.tj3Destroy, self._handle)

    def decode(self, data: bytes, left: int, top: int, right: int, bottom: int) -> np.ndarray:
        pixels = np.empty((bottom - top, right - left, 4), np.uint8)
        if pixels.size == 0:  # which the library takes for the rest of the image, and memory that is not there
            raise ValueError(f"no pixels: columns {left} to {right}, rows {top} to {bottom}")
        self._check(library.tj3DecompressHeader(self._handle, data, len(data)))
        self._check(library.tj3SetCroppingRegion(self._handle, _Region(left, top, right - left, bottom - top)))
        self._check(library.tj3Decompress8(self._handle, data, len(data), pixels.ctypes.data, pixels.strides[0], _RGBX))
        return pixels

    def _check(self, failed: int) -> None:
        if failed:
            raise ValueError(library.tj3GetErrorStr(self._handle).decode())


class _OfThread(threading.local):
    def __init__(self) -> None:
        self.decoder = _Decoder()


_of_thread: Any = library and _OfThread()


def decode_region(data: bytes, left: int, top: int, right: int, bottom: int) -> np.ndarray:
    """Columns and rows of an image, as uint8, height × width × RGBX; `left` is a multiple of LEFT_STEP.

    Raises ValueError with the library's words, which may be a mere warning.
    """
    return _of_thread.decoder.decode(data, left, top, right, bottom)
