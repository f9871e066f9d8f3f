"""Vision Transformer training on Graphcore IPUs, and on a CPU that emulates them."""

__version__ = "0.1.0"
