"""File descriptors: how many connections leave enough for devices, decode workers and files."""

import resource
import sys

RESERVED, RESERVED_FOR_DEVICE = 64, 16
"""Descriptors that are reserved for the process with its decode workers, and for each device."""
LEAST_CONNECTIONS = 8
"""Minimum of connections that may be open, even if there are fewer descriptors."""


def needed(max_connections: int, rows: int, devices: int) -> int:
    """Return how many descriptors these settings need.

    If `max_connections` is 0, they are enough for one client for each row, and for the same number
    of clients that are refused.
    """
    return (max_connections or 2 * rows) + _reserved(devices)


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


def connections(max_connections: int, devices: int, limit: int) -> int:
    """Return how many connections may be open where `limit` files may be."""
    room = max(LEAST_CONNECTIONS, limit - _reserved(devices))
    return min(max_connections or room, room)


def _reserved(devices: int) -> int:
    return RESERVED + RESERVED_FOR_DEVICE * devices
