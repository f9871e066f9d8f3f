"""Models on the Hugging Face hub: which of their files are needed, and where they are.

A model that `transformers` or another program has already put into Hugging Face's own cache is used from
there. What is downloaded goes into ours, by the commit that it is of:

    FOLDER/HOST/ORG--NAME/COMMIT/       files
    FOLDER/HOST/ORG--NAME/main.commit   the commit that `main` was when it was downloaded

`HF_ENDPOINT` names another hub; `HF_TOKEN`, or logging in with Hugging Face's tool, opens private models.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Callable, List, Mapping, Optional, Tuple
from urllib.parse import quote, urlsplit

from ipu_vit.errors import UserError
from ipu_vit.weights.atomic import replacing
from ipu_vit.weights.cache import Entry, Progress, digest
from ipu_vit.weights.download import Source, obtain
from ipu_vit.weights.shapes import listed

CONFIG = "config.json"
PREPARATION = "preprocessor_config.json"
# A model's weights are in the first of these that it has; an index lists the files they are spread over.
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


class HubModel:
    """What `hf:org/name[@revision][/file]` stands for: that file, or a folder with configuration and weights."""

    def __init__(self, address: str, folder: Path) -> None:
        from huggingface_hub.utils import HFValidationError, validate_repo_id

        try:
            match = re.fullmatch(r"hf:([\w.-]+/[\w.-]+)(?:@(\w[\w.-]*))?(?:/([^#?]+))?", address)
            if match is None or not all(part.strip(".") for part in (match[3] or "file").split("/")):
                raise HFValidationError
            validate_repo_id(match[1])
        except HFValidationError as error:
            raise UserError(f"weights={address} is not of the form hf:org/name[@revision][/file]") from error
        self.label = f"weights={address}"
        self._id, self._revision, self._file = match[1], match[2] or "main", match[3]
        self._hub = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
        self._host = str(urlsplit(self._hub).hostname)
        self._folder = folder / self._host / self._id.replace("/", "--")

    def cached(self) -> Optional[Path]:
        """The file or folder, if all of it is on this machine as it was downloaded."""
        return self._collect(self._in_our_cache) or self._collect(self._in_library_cache)

    def download(self, progress: Progress) -> Path:
        """The file or folder, from the hub."""
        from huggingface_hub import get_token

        commit, files = self._list()
        token = get_token()

        def get(name: str) -> Optional[Path]:
            if name not in files:
                return None
            url = f"{self._hub}/{self._id}/resolve/{commit}/{quote(name)}"
            source = Source(url, f"{self.label} ({name})", files[name], token)
            return obtain(source, self._entry(commit, name), progress)

        path = self._collect(get)
        if path is None:
            wanted = self._file or f"{CONFIG} with {' or '.join(WEIGHTS)}"
            raise UserError(f"{self.label} lacks {wanted}; it has {listed(sorted(files)) or 'no files'}")
        with replacing(str(self._ref)) as file:
            file.write(commit.encode())
        return path

    def _collect(self, get: Callable[[str], Optional[Path]]) -> Optional[Path]:
        """The file or folder, if `get` has all of it."""
        if self._file:
            return get(self._file)
        weights = next((path for path in map(get, WEIGHTS) if path), None) if get(CONFIG) else None
        if weights is None or not all(map(get, self._shards(weights))):
            return None
        get(PREPARATION)  # which a model may lack
        return weights.parent

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
        raise UserError(f"{self.label}: {weights.name} does not list the files of the weights")

    def _list(self) -> Tuple[str, Mapping[str, Optional[str]]]:
        """The commit that the revision is now, and its files with their sums; small files have none."""
        from huggingface_hub import HfApi, errors

        try:
            info = HfApi(endpoint=self._hub).model_info(
                self._id, revision=self._revision, files_metadata=True, timeout=30
            )
        except errors.GatedRepoError as error:
            raise UserError(
                f"{self.label} is open only to those who accepted its terms; do so on its page, and set HF_TOKEN"
            ) from error
        except errors.RepositoryNotFoundError as error:
            raise UserError(f"{self.label} does not exist, or is private and HF_TOKEN does not open it") from error
        except errors.RevisionNotFoundError as error:
            raise UserError(f"{self.label} has no revision {self._revision}") from error
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{self.label} cannot be looked up: {self._host} does not answer as a hub does") from error
        # HTTPError is that of the library which makes the requests: requests or httpx.
        except (OSError, errors.HTTPError) as error:
            raise UserError(f"{self.label} cannot be looked up on {self._host}: {_reason(error)}") from error
        commit = info.sha or ""
        if not _is_commit(commit):
            raise UserError(f"{self.label} cannot be looked up: {self._host} does not tell the commit")
        return commit, {file.rfilename: file.lfs.sha256 if file.lfs else None for file in info.siblings or []}

    @property
    def _ref(self) -> Path:
        return self._folder / f"{self._revision}.commit"

    def _entry(self, commit: str, name: str) -> Entry:
        return Entry(self._folder / commit / name)

    def _in_our_cache(self, name: str) -> Optional[Path]:
        try:
            commit = self._revision if _is_commit(self._revision) else self._ref.read_text()
        except (OSError, ValueError):
            return None
        return self._entry(commit, name).find()

    def _in_library_cache(self, name: str) -> Optional[Path]:
        """A file that another program has downloaded. Large ones are links to a file named by its sum."""
        from huggingface_hub import try_to_load_from_cache

        path = try_to_load_from_cache(self._id, name, revision=self._revision)
        if not isinstance(path, str):
            return None
        target = os.path.basename(os.readlink(path)) if os.path.islink(path) else ""
        if re.fullmatch(r"[0-9a-f]{64}", target) and digest(Path(path)) != target:
            return None
        return Path(path)


def _is_commit(revision: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{40}", revision) is not None


def _reason(error: BaseException) -> str:
    """What was at the root of it; the libraries around wrap it in many words."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return getattr(error, "strerror", None) or next(iter(str(error).splitlines()), type(error).__name__)
