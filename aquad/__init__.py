"""aquad: backup and recovery for a Docker Compose stack, with proof."""

__version__ = "0.1.0"
