"""Checks of the machine: CPU, memory against the settings, port, access, limit of open files."""

import errno
import resource
import socket
from pathlib import Path

from service.artifact import Artifact
from service.keys import keys_of
from service.system import certificate, cgroup, descriptors
from service.tools.doctor.context import Context, Finding

PROCESS_BYTES = 256 << 20
"""Memory of an idle service or device host without its model. Measured on the CPU: 170 and 200
MB."""
BYTES_A_PIXEL = 16
"""Memory for each pixel of an image while it is decoded: docs/settings.md, max_pixels."""


def cpu(context: Context) -> Finding:
    """Check the number of decode workers against the cores, which also set the engine threads."""
    cores, wanted = cgroup.cores(context.root), context.settings.decode_processes
    quota = "no quota" if cores.quota is None else f"a quota of {cores.quota:g} (cgroup)"
    text = (
        f"{cores.affinity} cores by affinity, {quota}: {cores.count} used; decode processes: "
        f"{wanted or cores.count}"
    )
    if wanted > cores.count:
        remedy = "Set --decode-processes to 0, or give the service more cores."
        return Finding("cpu", "warn", f"{text}, more than there are cores", remedy)
    return Finding("cpu", "ok", text)


def memory(context: Context) -> Finding:
    """Check the maximum memory of the settings against this machine's memory and its limit."""
    if not isinstance(context.artifact, Artifact):
        return Finding(
            "memory", "skip", "not calculated: the size of a row depends on the artifact"
        )
    manifest, settings = context.artifact.manifest, context.settings
    row = manifest.input.height * manifest.input.width * 3 + manifest.output.classes * 4
    # The weights of an IR are in a file of the same stem.
    stem = context.artifact.model_path.stem
    model = sum(facts.size for name, facts in manifest.files.items() if Path(name).stem == stem)
    hosts = len(context.ordinals)
    needed = settings.rows * row + PROCESS_BYTES * (1 + hosts) + model * hosts
    most = needed + settings.max_receiving_bytes + settings.max_pixels * BYTES_A_PIXEL
    free, whose = _room(context.root)
    text = (
        f"{_megabytes(needed)} and at most {_megabytes(most)} ({settings.rows} rows of "
        f"{row / 1e3:.0f} kB, hosts: {hosts}, bodies, one large image); {whose} has "
    )
    text += _megabytes(free)
    if needed > free:
        return Finding("memory", "FAIL", text, "Give the service more memory, or set fewer --rows.")
    if most > free:
        remedy = (
            "Give the service more memory, or set a smaller --max-receiving-bytes and --max-pixels."
        )
        return Finding("memory", "warn", text, remedy)
    return Finding("memory", "ok", text)


def _room(root: Path) -> tuple[int, str]:
    """Return the available bytes, and their bound in words: the machine or its control group."""
    lines = (root / "proc/meminfo").read_text().splitlines()
    [available] = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    free, limit = int(available) * 1024, cgroup.memory_limit(root)
    if limit is not None and limit < free:
        return limit, "the limit of the container or service (cgroup)"
    return free, "the machine"


def port(context: Context) -> Finding:
    """Check that the service can listen on the address."""
    host, number = context.settings.host, context.settings.port
    where = f"{host}:{number}"
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.create_server((host, number), family=family):
            pass
    except OSError as error:
        remedy = _PORT_REMEDIES.get(
            error.errno or 0, "Give a --host that is an address of this machine."
        )
        # Python appends the address to the message; the finding has it already.
        why = (error.strerror or str(error)).partition(" (while attempting")[0]
        return Finding("port", "FAIL", f"{where}: {why}", remedy)
    except UnicodeError:  # a name that cannot be looked up
        return Finding("port", "FAIL", f"{where}: no such host", "Give an address as --host.")
    return Finding(
        "port", "ok", f"{where} is free" if number else f"{host}: a free port will be chosen"
    )


_PORT_REMEDIES = {
    errno.EADDRINUSE: "Stop the process that listens there (another topfive?), or give "
    "another --port.",
    errno.EACCES: "Give a --port of 1024 or more.",
}


def access(context: Context) -> Finding:
    """Check the file of keys, and that other machines cannot reach the service without one."""
    file = context.settings.keys_file
    found = keys_of(context.settings)
    if found is not None:
        return Finding("access", "ok", f"{len(found)} keys in {file}")
    if host := context.settings.public_host():
        remedy = "Create keys with topfive keys add --file FILE, and name it with --keys-file."
        return Finding(
            "access", "warn", f"every client that reaches {host} may use the service", remedy
        )
    return Finding("access", "ok", f"no keys: only this machine reaches {context.settings.host}")


def tls(context: Context) -> Finding:
    """Check that the certificate, its key and the CA of clients can be used, and for how long."""
    named = context.settings.tls_files()
    if named is None:
        return Finding("tls", "skip", "not needed: no TLS")
    found = certificate.read(named)
    if ending := found.ending():
        return Finding("tls", "warn", *ending)
    return Finding("tls", "ok", f"{named.certificate} ends in {found.days_left():.0f} days")


def files(context: Context) -> Finding:
    """Check the hard limit of open files; `serve` itself raises the soft limit."""
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    most, rows = context.settings.max_connections, context.settings.rows
    needed = descriptors.needed(most, rows, len(context.ordinals))
    text = f"{limit} files may be open; {needed} are enough for {context.settings.rows} rows"
    if 0 <= limit < needed:
        remedy = (
            f"Raise the limit: LimitNOFILE={needed} in systemd; docker run --ulimit nofile={needed}"
        )
        return Finding("files", "warn", f"{text}; the service accepts fewer connections", remedy)
    return Finding("files", "ok", text)


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"
