"""TensorBoard's event files, written without TensorBoard.

Such a file is a row of records, each a length, its checksum, an `Event` and the checksum of that
(TFRecord, as in TensorFlow's `record_writer.cc`). Events are protocol buffers; the few fields used
here, with their numbers, are those of TensorFlow's `event.proto`, `summary.proto` and `tensor.proto`.
Writing them takes fewer lines than the package is megabytes, and spares a run its import of 1.4 s.

A run that continues opens another file, whose first event says from which update on TensorBoard is to
forget what earlier files hold: what was computed twice is shown once.
"""

from __future__ import annotations

import struct
import time
from pathlib import Path
from typing import Dict, List, Union

from ipu_vit.run_folder import make_folder, writing
from ipu_vit.tracking.sink import Sink

_SESSION_STARTS = 1
_STRINGS = 7  # the dtype
_RGBA = 4


class EventFile(Sink):
    """One more event file in a folder; each event is in it, whole, when the call returns."""

    def __init__(self, folder: Path, from_update: int) -> None:
        """Raises UserError if the folder cannot be written."""
        make_folder(folder, "output")
        # Numbered, because TensorBoard reads files in the order of their names, and clocks jump.
        number = 1 + sum(1 for _ in folder.glob("events.out.tfevents.*"))
        self._path = folder / f"events.out.tfevents.{number:08d}"
        with writing(self._path):
            self._file = self._path.open("ab", buffering=0)
        self._add(0, _field(3, b"brain.Event:2"))
        # What was written after the last update that counts is void; without one, everything is.
        self._add(from_update + 1 if from_update else 0, _field(7, _field(1, _SESSION_STARTS)))

    def figures(self, update: int, values: Dict[str, float]) -> None:
        self._add_values(update, [_field(1, name.encode()) + _field(2, value) for name, value in values.items()])

    def text(self, name: str, markdown: str) -> None:
        shape = _field(2, _field(1, 1))
        tensor = _field(1, _STRINGS) + _field(2, shape) + _field(8, markdown.encode())
        plugin = _field(1, _field(1, b"text"))
        self._add_values(0, [_field(1, f"{name}/text_summary".encode()) + _field(8, tensor) + _field(9, plugin)])

    def picture(self, update: int, name: str, png: bytes) -> None:
        width, height = struct.unpack(">II", png[16:24])  # of its header
        image = _field(1, height) + _field(2, width) + _field(3, _RGBA) + _field(4, png)
        self._add_values(update, [_field(1, name.encode()) + _field(4, image)])

    def close(self) -> None:
        self._file.close()

    def _add_values(self, update: int, values: List[bytes]) -> None:
        self._add(update, _field(5, b"".join(_field(1, value) for value in values)))

    def _add(self, update: int, content: bytes) -> None:
        event = b"\x09" + struct.pack("<d", time.time()) + _field(2, update) + content
        length = struct.pack("<Q", len(event))
        rest = length + _checksum(length) + event + _checksum(event)
        with writing(self._path):
            while rest:
                rest = rest[self._file.write(rest) :]


# --- protocol buffers ----------------------------------------------------------------------------


def _field(number: int, value: Union[int, float, bytes]) -> bytes:
    """A field: whole numbers as varints, others as 32-bit floats, bytes with their length."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    if isinstance(value, float):
        return _varint(number << 3 | 5) + struct.pack("<f", value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first, each but the last marked by its highest bit."""
    digits = bytearray()
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    digits.append(value)
    return bytes(digits)


# --- checksums -----------------------------------------------------------------------------------


def _table() -> List[int]:
    """The remainders of all bytes by the polynomial of CRC-32C, bits reversed (RFC 3720, appendix B.4)."""
    table = []
    for remainder in range(256):
        for _ in range(8):
            remainder = remainder >> 1 ^ (0x82F63B78 if remainder & 1 else 0)
        table.append(remainder)
    return table


_TABLE = _table()


def _checksum(content: bytes) -> bytes:
    """CRC-32C, turned by 15 bits and shifted by a constant, as TFRecord has it."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
