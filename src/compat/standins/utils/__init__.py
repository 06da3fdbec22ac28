"""What `from utils import ...` finds in a project without a folder `utils`."""

from .util import ensure_dir, inf_loop, read_json, write_json

__all__ = ["ensure_dir", "inf_loop", "read_json", "write_json"]
