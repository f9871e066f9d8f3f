"""Trained weights from files: one adapter per format, and fitting what they hold to a model."""
