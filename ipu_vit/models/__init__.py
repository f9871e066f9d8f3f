"""The mathematics of the models: plain PyTorch, no word about devices."""
