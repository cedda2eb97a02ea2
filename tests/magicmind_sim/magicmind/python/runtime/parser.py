"""The parser of framework files."""

from magicmind._sim.building import Parser

__all__ = ["Parser"]
