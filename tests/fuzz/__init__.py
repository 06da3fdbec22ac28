"""Readers of files against bytes that nobody would write: `make fuzz`, or `python -m tests.fuzz [TARGET ...]`."""

TARGETS = ("config", "json", "override", "csv", "idx", "npy", "npz", "checkpoint", "capsule", "manifest")
