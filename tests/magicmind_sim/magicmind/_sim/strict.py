"""Strictness: the surface and nothing else, every use of it recorded, every wrong use reported.

Python 3.7.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
_FILE = HERE.parent.parent / "surface.json"
SURFACE: dict[str, dict[str, Any]] = {
    name: facts["members"]
    for classes in json.loads(_FILE.read_text(encoding="utf-8")).values()
    for name, facts in classes.items()
    if "members" in facts
}
_recorded: set[str] = set()


def record(name: str) -> None:
    """Note that `name` of the surface was used: a line in the file of MAGICMIND_SIM_RECORD."""
    if name not in _recorded:
        _recorded.add(name)
        _append("MAGICMIND_SIM_RECORD", name)


def wrong(message: str) -> None:
    """Report a wrong use of the SDK: a line in the file of MAGICMIND_SIM_REPORT, and on stderr."""
    ours = [frame for frame in traceback.extract_stack() if str(HERE) not in frame.filename]
    place = "%s:%d" % (ours[-1].filename, ours[-1].lineno or 0) if ours else "?"
    _append("MAGICMIND_SIM_REPORT", "%s (%s)" % (message, place))
    sys.stderr.write("magicmind_sim: WRONG USE: %s (%s)\n" % (message, place))


def _append(variable: str, line: str) -> None:
    path = os.environ.get(variable)
    if path:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.write(descriptor, (line + "\n").encode("utf-8"))
        os.close(descriptor)


def _check(surface: str, name: str) -> None:
    if name in SURFACE[surface]:
        record("%s.%s" % (surface, name))
        return
    if name != "ok":  # asked of any answer, to find out whether it is a Status
        wrong("%s has no '%s'" % (surface, name))
    raise AttributeError("%s has no attribute %r" % (surface, name))


@functools.lru_cache(maxsize=None)
def _members(cls: type) -> frozenset[str]:
    """All names of the class, kept: `dir` is slow."""
    return frozenset(dir(cls))


class _Meta(type):
    def __getattribute__(cls, name: str) -> Any:
        if not name.startswith("_") and name != "mro":
            surface = type.__getattribute__(cls, "_surface")
            if surface:
                _check(surface, name)
        return type.__getattribute__(cls, name)


class Strict(object, metaclass=_Meta):
    """The base of all public classes: the members of `_surface`, and private ones."""

    _surface = ""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        if "__init__" in SURFACE.get(cls._surface, {}):
            record("%s.__init__" % cls._surface)
        elif cls._surface:
            wrong("%s is made by the SDK alone" % cls._surface)
        return object.__new__(cls)

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("_"):
            surface = type(self)._surface
            _check(surface, name)
            if name not in self.__dict__ and name not in _members(type(self)):
                raise NotImplementedError("the simulator does not have %s.%s" % (surface, name))
        return object.__getattribute__(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_"):
            _check(type(self)._surface, name)
        object.__setattr__(self, name, value)

    @classmethod
    def _made(cls, **private: Any) -> Any:
        """One that the SDK makes; not recorded as made by the caller."""
        made = object.__new__(cls)
        for name, value in private.items():
            object.__setattr__(made, name, value)
        return made
