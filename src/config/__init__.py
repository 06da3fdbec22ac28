"""Words become checked values, and names become classes. Imports nothing heavy until a class is asked for."""

from src.config.load import config_from_dict, load_config
from src.config.settings import Component, Config, DataSettings, LossTerm, PartSettings, ScheduleSettings

__all__ = [
    "Component",
    "Config",
    "DataSettings",
    "LossTerm",
    "PartSettings",
    "ScheduleSettings",
    "config_from_dict",
    "load_config",
]
