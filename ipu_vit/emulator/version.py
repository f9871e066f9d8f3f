"""The version of PopTorch whose behaviour is emulated."""

POPTORCH_VERSION = "3.4.0"
