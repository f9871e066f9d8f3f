"""Images on their way to the device.

Sources of images are `folder`, `packed` (written by `pack`), `cifar`, `flowers`, `pets`, `hugging_face` and
`generated`; `part` takes a part of one, and `sources` opens those of the settings. `decode` reads a file (`jpeg`: as
far as it is needed) to a `picture`, `augment` makes the model's square of it (where: `crops`; how: `resize`; what
else: `autoaugment`, `randaugment`, `jitter`, `erasing`; as the settings say: `transforms`), `samples` says which image
is which sample of a run (random numbers: `streams`), and `ondevice` normalises inside the model.
`prepare` writes the small data sets (`digits`, `glyphs`) that need no download.

This file imports nothing, so that asking for one part does not load the others' libraries.
"""
