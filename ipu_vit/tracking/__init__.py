"""Where the figures of a run go: TensorBoard, the page of `report`, CSV, Weights & Biases."""
