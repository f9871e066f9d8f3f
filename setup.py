"""Presets and small weights lie at the top of the repository; a package carries them as `ipu_vit/share`.

Everything else about the package is in pyproject.toml, which has no way to say this.
"""

from setuptools import find_namespace_packages, setup

SHARED = {"configs": "*.yml", "weights": "*.npz"}

setup(
    packages=[
        *find_namespace_packages(include=["ipu_vit*"], exclude=["*__pycache__"]),
        *(f"ipu_vit.share.{folder}" for folder in SHARED),
    ],
    package_dir={f"ipu_vit.share.{folder}": folder for folder in SHARED},
    package_data={f"ipu_vit.share.{folder}": [pattern] for folder, pattern in SHARED.items()},
)
