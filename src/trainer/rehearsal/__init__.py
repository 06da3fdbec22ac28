"""What is tried on a few rows before a run begins."""
