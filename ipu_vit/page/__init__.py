"""The page of a run: `python -m ipu_vit report`."""
