"""The commands of ``lightning-same``."""
