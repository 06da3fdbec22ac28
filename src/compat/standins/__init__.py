"""Modules that files of a project import under these names, for a project that does not bring its own."""
