"""Models on the Hugging Face hub: which of their files are needed, and getting those.

`huggingface_hub` does the transfers, into its own cache, which `transformers` uses too. A folder given
to `fetch` or by `IPU_VIT_CACHE` has that cache in its subfolder `huggingface`. `HF_ENDPOINT` names
another hub, `HF_TOKEN` opens private models.
"""

from __future__ import annotations

import json
import os
import re
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, Iterator, List, Optional, Union

from ipu_vit.errors import UserError
from ipu_vit.weights.cache import digest
from ipu_vit.weights.shapes import listed

# A model's weights are in the first of these that it has; an index lists the files they are spread over.
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
CONFIG = "config.json"


def fetch_from_hub(address: str, cache_folder: Optional[Union[str, Path]], forbidden: Optional[str]) -> Path:
    """The file that `hf:org/name[@revision]/file` names; without a file, a folder with config and weights.

    `forbidden` tells what forbids requests, if anything does: then only the cache is used.
    """
    repository = _Repository(address, cache_folder)
    path = repository.collect(repository.cached)
    if path is None and forbidden:
        raise UserError(f"weights={address} is not in the cache, and {forbidden} forbids to download it")
    return path or repository.download()


class _Repository:
    def __init__(self, address: str, cache_folder: Optional[Union[str, Path]]) -> None:
        match = re.fullmatch(r"hf:([\w.-]+/[\w.-]+)(?:@([\w.-]+))?(?:/([^#?]+))?", address)
        file = match[3] if match else None
        if match is None or (file and not all(part.strip(".") for part in file.split("/"))):
            raise UserError(f"weights={address} is not of the form hf:org/name[@revision][/file]")
        self._address, self._id, self._revision, self._file = address, match[1], match[2] or "main", file
        folder = cache_folder or os.environ.get("IPU_VIT_CACHE")
        self._cache = str(Path(folder).expanduser() / "huggingface") if folder else None  # None: the library's own
        self._endpoint = os.environ.get("HF_ENDPOINT") or None
        self._names: List[str] = []

    def collect(self, get: Callable[[str], Optional[Path]]) -> Optional[Path]:
        """What the address stands for, if `get` has all of it."""
        if self._file:
            return get(self._file)
        weights = next((path for path in map(get, WEIGHTS) if path), None)
        if weights is None or not all(get(name) for name in [CONFIG, *self._shards(weights)]):
            return None
        return weights.parent

    def cached(self, name: str) -> Optional[Path]:
        """A file of the repository in the cache, as it arrived; makes no request."""
        path = self._find(name)
        return path if path and _is_intact(path) else None

    def download(self) -> Path:
        """What the address stands for, from the hub."""
        from huggingface_hub import HfApi

        with self._explained():
            info = HfApi(endpoint=self._endpoint).model_info(self._id, revision=self._revision, timeout=30)
            self._names = [sibling.rfilename for sibling in info.siblings or []]
            path = self.collect(self._downloaded)
        if path is None:
            wanted = self._file or f"{CONFIG} with {' or '.join(WEIGHTS)}"
            raise UserError(f"weights={self._address} lacks {wanted}; it has {listed(self._names) or 'no files'}")
        return path

    def _downloaded(self, name: str) -> Optional[Path]:
        from huggingface_hub import hf_hub_download

        if name not in self._names:
            return None
        found = self._find(name)
        path = hf_hub_download(
            self._id,
            name,
            revision=self._revision,
            cache_dir=self._cache,
            endpoint=self._endpoint,
            force_download=found is not None and not _is_intact(found),
        )
        if not _is_intact(Path(path)):
            raise UserError(f"weights={self._address}: {name} has not arrived as the hub describes it; try again")
        return Path(path)

    def _find(self, name: str) -> Optional[Path]:
        from huggingface_hub import try_to_load_from_cache

        path = try_to_load_from_cache(self._id, name, cache_dir=self._cache, revision=self._revision)
        return Path(path) if isinstance(path, str) else None

    def _shards(self, weights: Path) -> List[str]:
        """The files that an index lists; none for a file that is no index."""
        if not weights.name.endswith(".index.json"):
            return []
        try:
            names = sorted(set(json.loads(weights.read_text())["weight_map"].values()))
            if all(re.fullmatch(r"\w[\w.-]*", name) for name in names):
                return names
        except (ValueError, KeyError, TypeError, AttributeError):
            pass
        raise UserError(f"weights={self._address}: {weights.name} does not list the files of the weights")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Say in a sentence what the library raises in many."""
        from huggingface_hub import errors

        label = f"weights={self._address}"
        try:
            yield
        except errors.GatedRepoError as error:
            raise UserError(
                f"{label} is open only to those who accepted its terms; do so on its page, and set HF_TOKEN"
            ) from error
        except errors.RepositoryNotFoundError as error:
            raise UserError(
                f"{label} does not exist on the hub, or is private and HF_TOKEN does not open it"
            ) from error
        except errors.RevisionNotFoundError as error:
            raise UserError(f"{label} has no revision {self._revision}") from error
        # HTTPError is the one of the library that it makes requests with: requests or httpx.
        except (OSError, errors.HTTPError) as error:
            reason = getattr(error, "strerror", None) or next(iter(str(error).splitlines()), type(error).__name__)
            raise UserError(f"{label} cannot be downloaded: {reason}") from error


def _is_intact(path: Path) -> bool:
    """Whether a file of the hub's cache has the sum that it is filed under; small files are under other names."""
    if not path.is_symlink():
        return True
    name = Path(os.readlink(path)).name
    return not re.fullmatch(r"[0-9a-f]{64}", name) or digest(path) == name
