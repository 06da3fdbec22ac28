"""What tables hold, in memory or mapped from files."""
