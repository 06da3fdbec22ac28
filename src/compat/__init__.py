"""Projects written for the well-known pytorch-template, run as they are. The core does not know this room.

`python train.py -c their/config.json` comes here when the config has a section `arch`; docs/migrating.md is the manual.
"""
