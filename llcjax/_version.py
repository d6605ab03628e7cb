"""The version of llcjax, named once."""

__version__ = "0.1.0"
