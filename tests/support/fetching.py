"""`topfive` with a network of the tests, in a process of its own.

    python tests/support/fetching.py PORT CERTIFICATES NAMES COMMAND serve ...

NAMES is JSON with the addresses of each name. Every connection is made to PORT on this machine,
with trust in the file CERTIFICATES.
"""

import json
import ssl
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from service import cli
from service.api.http import fetch
from tests.support.web import LocalNetwork

if __name__ == "__main__":
    _, port, certificates, names, *command = sys.argv
    trust = ssl.create_default_context(cafile=certificates)
    network = LocalNetwork(int(port), json.loads(names), trust)
    fetch.internet = lambda: fetch.NetworkAccess(network.resolve, network.transport)
    sys.argv = command
    cli.main()
