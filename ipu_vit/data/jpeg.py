"""JPEG files, decoded by libjpeg-turbo from the top down to the row that is needed.

A random crop ends above the image's lower edge more often than not, and libjpeg-turbo has no way to
leave off early that Python could reach. But its decoder believes the header: told that the image is lower
than it is, it decodes the rows that are left, to the same numbers, and skips the rest of the data.
"""

from __future__ import annotations

from typing import Optional, Tuple, Union

import numpy as np
import simplejpeg

Data = Union[bytes, bytearray]

START, END = b"\xff\xd8", b"\xff\xd9"

FRAMES = (0xC0, 0xC1)
"""Markers of headers of sequential frames (ITU-T T.81, table B.1); in progressive ones rows are all over the file."""

START_OF_SCAN = 0xDA

CONTEXT = 2
"""Rows below a row that its colours depend on, where colours have half the resolution and are interpolated."""


class Truncated(Exception):
    """Data are missing. libjpeg fills the place with grey, and Pillow would return that."""

    def __init__(self) -> None:
        super().__init__("JPEG data is truncated")


def size_of(data: Data) -> Optional[Tuple[int, int]]:
    """Width and height of a JPEG that `decode_jpeg` may be asked to decode, else none."""
    if not data.startswith(START):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    return None if colours == "CMYK" else (width, height)  # Pillow knows that Adobe stores these inverted


def decode_jpeg(data: Data, width: int, height: int, rows: Optional[int] = None) -> np.ndarray:
    """The upper `rows`, else all, as uint8, rows × width × RGB.

    Raises Truncated, or ValueError with libjpeg's words, if the data are damaged so far as they are decoded.
    """
    if rows is not None and rows + CONTEXT < height:
        lower = _lowered(data, height, rows + CONTEXT)
        if lower is not None:
            data, height = lower, rows + CONTEXT
    pixels = np.empty((height, width, 3), np.uint8)
    try:
        simplejpeg.decode_jpeg(data, buffer=pixels)
    except ValueError as error:
        # The first complaint is the one that is heard, and if it is about data behind the last row, all are decoded.
        complaint = str(error).lower()
        if "premature end" in complaint:
            raise Truncated from error
        if "extraneous bytes before marker" not in complaint:
            raise
    return pixels[:rows]


def _lowered(data: Data, height: int, rows: int) -> Optional[bytearray]:
    """The file with a header that says `rows`; none if it is cut, as must be noticed, or unlike others."""
    place = _place_of_height(data)
    if not data.endswith(END) or place is None or data[place : place + 2] != height.to_bytes(2, "big"):
        return None
    lower = bytearray(data)
    lower[place : place + 2] = rows.to_bytes(2, "big")
    return lower


def _place_of_height(data: Data) -> Optional[int]:
    """Where in the file the image's height stands, in two bytes (ITU-T T.81, B.2.2)."""
    place = len(START)
    while place + 9 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker in FRAMES:
            return place + 5
        if marker == START_OF_SCAN:
            return None
        # Any number of 0xFF may stand before a marker.
        place += 1 if marker == 0xFF else 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return None
