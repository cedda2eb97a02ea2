"""A strict simulator of MagicMind's Python package; see the README beside it."""

from magicmind._sim import loading

loading.begin()
