"""`topfive doctor --card`: the first hour on a real card, as one report that a user can send.

`write_report` runs a walk with the settings and a network, and writes a report without the names of
this machine. A failure is written like any other answer, and the walk continues. An interrupted
walk leaves the lines so far.
"""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from importlib.metadata import version
from io import FileIO
from pathlib import Path

from service import sdk
from service.errors import SettingsError
from service.system import disk
from service.tools.doctor import account, builds, cards
from service.tools.doctor.builds import NetworkFiles
from service.tools.doctor.scrub import scrubbed
from service.tools.doctor.walk import Walk, WalkOptions


def write_report(options: WalkOptions) -> bool:
    """Write the report; return whether every model was built and gave right answers.

    Raise SettingsError or SdkError if there is no SDK, no device, no network, or no output file.
    """
    timeout_s = options.settings.import_timeout_s
    found = sdk.find(options.settings.device_python, timeout_s)
    devices = sdk.chosen_devices("mlu", options.settings.devices, found.python, timeout_s)
    with _new_file(options.output) as file, tempfile.TemporaryDirectory() as folder:
        network = _network_files(options, Path(folder))
        count = sdk.device_count(found.python, timeout_s)
        reference = builds.reference(network, Path(folder) / "reference")
        ordinal, clusters = devices.ordinals[0], cards.clusters_here()
        walk = Walk(options, found, count, ordinal, Path(folder), network, reference, clusters)
        words = {Path(folder): "WORK", network.prototxt.parent: "NETWORK", Path.cwd(): "HERE"}
        words |= {network.image_dir: "PHOTOS"} if options.image_dir else {}
        _write(file, options.output, f"topfive {version('topfive')} doctor --card")
        try:
            for line in account.report_lines(walk):
                # Each line is written at once, so that an interrupted walk keeps its findings.
                _write(file, options.output, scrubbed(line, words))
        except KeyboardInterrupt:
            _write(file, options.output, "The report was interrupted here.")
            raise
    print(options.output, flush=True)
    return not walk.faults


@contextlib.contextmanager
def _new_file(path: Path) -> Iterator[FileIO]:
    """Create the file `path` and open it for writing; remove it if nothing was written.

    Raise SettingsError if the file exists.
    """
    with _writing(path):
        try:
            # Without a buffer: bytes that a full disk refuses are not written again at the end.
            file = path.open("xb", buffering=0)
        except FileExistsError:
            raise SettingsError(f"{path} already exists.", "Name another --output.") from None
    with file:
        try:
            yield file
        finally:
            if not file.tell():
                path.unlink()


def _write(file: FileIO, path: Path, line: str) -> None:
    with _writing(path):
        disk.write_whole(file, f"{line}\n".encode())


def _writing(path: Path) -> AbstractContextManager[None]:
    return disk.writing(path, SettingsError, "Name another --output.")


def _network_files(options: WalkOptions, folder: Path) -> NetworkFiles:
    if options.prototxt is None and options.caffemodel is None:
        demo = builds.write_demo(folder / "demo")
        photos = options.image_dir or demo.image_dir
        return NetworkFiles(demo.prototxt, demo.caffemodel, demo.preprocess, demo.labels, photos)
    if options.prototxt is None or options.caffemodel is None or not options.preprocess:
        raise SettingsError(
            "A network needs a prototxt, a caffemodel and a preprocessing.",
            "Give --prototxt, --caffemodel and --preprocess, or none of them to use the "
            "demo's network.",
        )
    # The copies are in a folder of their own, whose path is the only one to remove from the report.
    copies = folder / "network"
    copies.mkdir()
    prototxt, caffemodel = copies / options.prototxt.name, copies / options.caffemodel.name
    try:
        shutil.copyfile(options.prototxt, prototxt)
        shutil.copyfile(options.caffemodel, caffemodel)
    except OSError as error:
        detail, remedy = disk.unreadable(Path(error.filename), error, "Name a file that exists.")
        raise SettingsError(f"Cannot read {error.filename}: {detail}", remedy) from error
    image_dir = options.image_dir or builds.PHOTOS
    return NetworkFiles(prototxt, caffemodel, options.preprocess, options.labels, image_dir)
