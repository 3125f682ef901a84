"""``python -m adafactor_native`` prints the configuration."""

from adafactor_native.config import show_config

show_config()
