"""What `from parse_config import ConfigParser` finds in a project without that file."""

from src.compat.their_config import ConfigParser

__all__ = ["ConfigParser"]
