"""One run: built, checked, begun, gone on with, opened again."""
