"""What this project costs on top of loops written by hand: `make bench`."""
