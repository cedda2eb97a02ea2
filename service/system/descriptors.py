"""File descriptors: how many connections leave enough for devices, decode processes and files."""

import resource
import sys

from service.settings import Settings

RESERVED, RESERVED_FOR_DEVICE = 64, 16
"""Descriptors kept for the process with its decode workers, and for each device."""
LEAST_CONNECTIONS = 8
"""Connections that may be open however few descriptors there are."""


def needed(settings: Settings, devices: int) -> int:
    """Return how many descriptors the settings need: for `max_connections`, or without it for as
    many clients as there are rows and as many again to refuse."""
    return (settings.max_connections or 2 * settings.rows) + _reserved(devices)


def raise_limit(wanted: int) -> int:
    """Raise the soft limit of open files to `wanted`, as far as the hard limit allows.

    Return the soft limit that is in force.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return sys.maxsize
    if soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else max(soft, min(wanted, hard))
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return soft


def connections(settings: Settings, devices: int, limit: int) -> int:
    """Return how many connections may be open where `limit` files may be."""
    room = max(LEAST_CONNECTIONS, limit - _reserved(devices))
    return min(settings.max_connections or room, room)


def _reserved(devices: int) -> int:
    return RESERVED + RESERVED_FOR_DEVICE * devices
