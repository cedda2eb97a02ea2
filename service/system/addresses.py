"""Addresses of this machine: which are reached from it alone."""

import ipaddress


def is_loopback(address: str) -> bool:
    """Return whether only this machine reaches an address: `127.0.0.1`, `::1`, `::ffff:127.0.0.1`.

    A name is not one, not even localhost.
    """
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(found, "ipv4_mapped", None)
    return bool((mapped or found).is_loopback)
