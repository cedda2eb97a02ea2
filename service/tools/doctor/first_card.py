"""`topfive doctor --card`: the first hour on a real card, as one text that a user can send.

Settings and a network enter; a text leaves, without this machine's names. What fails on the way is
written down like any other answer, and the walk goes on; an interrupted one leaves what it has.
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
from service.tools.doctor.builds import Source
from service.tools.doctor.scrub import scrubbed
from service.tools.doctor.walk import Asked, Walk


def first_hour(asked: Asked) -> bool:
    """Walk through it all, write the text; whether every model was built and answered rightly.

    SettingsError or SdkError where it cannot begin: no SDK, no device, no network, no such output.
    """
    timeout_s = asked.settings.import_timeout_s
    found = sdk.find(asked.settings.device_python, timeout_s)
    devices = sdk.chosen_devices("mlu", asked.settings.devices, found.python, timeout_s)
    with _new_file(asked.output) as file, tempfile.TemporaryDirectory() as folder:
        source = _source(asked, Path(folder))
        count = sdk.device_count(found.python, timeout_s)
        reference = builds.reference(source, Path(folder) / "reference")
        ordinal, clusters = devices.ordinals[0], cards.clusters_here()
        walk = Walk(asked, found, count, ordinal, Path(folder), source, reference, clusters)
        words = {Path(folder): "WORK", source.prototxt.parent: "NETWORK", Path.cwd(): "HERE"}
        words |= {source.image_dir: "PHOTOS"} if asked.image_dir else {}
        _write(file, asked.output, f"topfive {version('topfive')} doctor --card")
        try:
            for line in account.told(walk):
                # At once: an hour on a card is worth what it has found, whatever ends it.
                _write(file, asked.output, scrubbed(line, words))
        except KeyboardInterrupt:
            _write(file, asked.output, "The report was interrupted here.")
            raise
    print(asked.output, flush=True)
    return not walk.faults


@contextlib.contextmanager
def _new_file(path: Path) -> Iterator[FileIO]:
    """`path` opened for writing, and removed if nothing was written; it must not be there."""
    with _writing(path):
        try:
            # Without a buffer: what a full disk does not take is not tried again at the end.
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


def _source(asked: Asked, folder: Path) -> Source:
    if asked.prototxt is None and asked.caffemodel is None:
        demo = builds.write_demo(folder / "demo")
        photos = asked.image_dir or demo.image_dir
        return Source(demo.prototxt, demo.caffemodel, demo.preprocess, demo.labels, photos)
    if asked.prototxt is None or asked.caffemodel is None or not asked.preprocess:
        raise SettingsError(
            "A network needs a prototxt, a caffemodel and a preprocessing.",
            "Give --prototxt, --caffemodel and --preprocess, or none of them to use the "
            "demo's network.",
        )
    # In a folder of their own, whose path is all that has to be taken out of the text.
    copies = folder / "network"
    copies.mkdir()
    prototxt, caffemodel = copies / asked.prototxt.name, copies / asked.caffemodel.name
    try:
        shutil.copyfile(asked.prototxt, prototxt)
        shutil.copyfile(asked.caffemodel, caffemodel)
    except OSError as error:
        detail, remedy = disk.unreadable(Path(error.filename), error, "Name a file that exists.")
        raise SettingsError(f"Cannot read {error.filename}: {detail}", remedy) from error
    image_dir = asked.image_dir or builds.PHOTOS
    return Source(prototxt, caffemodel, asked.preprocess, asked.labels, image_dir)
