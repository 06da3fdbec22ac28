"""Rows become batches: in which order, by whom they are read, where they live."""
