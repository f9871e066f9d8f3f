"""Data sets that are written on first use, without a download."""

from __future__ import annotations

from pathlib import Path
from typing import Callable, Dict

from ipu_vit.data.whole_folder import holds_files
from ipu_vit.errors import UserError
from ipu_vit.settings import DataSettings


def prepare(data: DataSettings) -> None:
    """Write the data set that `data.prepare` names to `data.root`, unless something is there."""
    if data.prepare is None:
        return
    if data.root is None:
        raise UserError(f"data.prepare={data.prepare} needs data.root, the folder to write the images to")
    root = Path(data.root)
    if holds_files(root):
        return
    try:
        PREPARERS[data.prepare](root)
    except ImportError as error:
        raise UserError(f"data.prepare={data.prepare} needs {error.name}, which is not installed") from error
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"data.prepare={data.prepare} cannot write data.root={root}: {reason}") from error


def _digits(root: Path) -> None:
    from ipu_vit.data.digits import write_digits

    write_digits(root)


def _glyphs(root: Path) -> None:
    from ipu_vit.data.glyphs import write_glyphs

    write_glyphs(root)


PREPARERS: Dict[str, Callable[[Path], None]] = {"digits": _digits, "glyphs": _glyphs}
"""Each imports its module, and with it scikit-learn or matplotlib, only when called."""
