"""The version of vdeblur, which the build and all files read here."""

__version__ = "0.1.0"
