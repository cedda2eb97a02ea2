"""The demo network, read back by OpenCV's dnn; and the reader of its weights, by hostile files."""

import collections
import io
import os
import pickle
import struct
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import pytest

from model_build import demo
from model_build.demo import efficientnet_lite0, torch_file
from service.decoding import images
from service.errors import BuildError

PHOTOS = resources.files("model_build") / "photos"


def blob(photo: bytes) -> np.ndarray:
    """The photo as the network's input: (1,3,224,224), RGB, mean 127, std 128."""
    row = np.zeros((224, 224, 3), np.uint8)
    images.decode_into(photo, row, 256, "bilinear", 50_000_000)
    return ((row.astype(np.float32) - 127) / 128).transpose(2, 0, 1)[None].copy()


def answer(net: cv2.dnn.Net, photo: bytes) -> np.ndarray:
    net.setInput(blob(photo))
    return net.forward().ravel()


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """What write_demo_sources writes."""
    return demo.write_demo_sources(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def network(sources: tuple[Path, Path]) -> cv2.dnn.Net:
    """The same as OpenCV reads it."""
    prototxt, caffemodel = sources
    return cv2.dnn.readNetFromCaffe(str(prototxt), str(caffemodel))


def test_it_knows_the_cat_and_the_coffee(network: cv2.dnn.Net) -> None:
    """The photos that the project ships are named rightly."""
    names = (resources.files("model_build") / "labels" / "2012.txt").read_text().splitlines()
    cat = np.argsort(-answer(network, (PHOTOS / "cat.png").read_bytes()))[:5]
    coffee = answer(network, (PHOTOS / "coffee.png").read_bytes()).argmax()
    assert any("cat" in names[place].replace(",", " ").split() for place in cat)
    assert names[coffee].split()[1] in ("espresso", "cup")


@pytest.mark.models
@pytest.mark.slow
def test_it_agrees_with_the_network_of_the_data_folder(
    network: cv2.dnn.Net, data_folder: Path, models_folder: Path
) -> None:
    """That one has the same weights, but rounded to float16: top-1 is the same everywhere."""
    model = models_folder / "efficientnet_lite0"
    other = cv2.dnn.readNetFromCaffe(f"{model}.prototxt", f"{model}.caffemodel")
    largest = 0.0
    for photo in sorted((data_folder / "photos").glob("*.JPEG"))[::16]:
        ours, theirs = (answer(net, photo.read_bytes()) for net in (network, other))
        largest = max(largest, float(np.abs(ours - theirs).max()))
        assert ours.argmax() == theirs.argmax()
    print(f"largest difference: {largest:.2g}")
    assert largest < 0.01


@pytest.mark.models
def test_rounded_the_same_way_it_is_the_same_network(
    sources: tuple[Path, Path], models_folder: Path, tmp_path: Path
) -> None:
    """With convolutions and fc rounded to float16 nothing is left of the difference."""
    tensors = torch_file.read_tensors(demo._weights_file())
    for name, values in tensors.items():
        if values.ndim > 1 or name == "_fc.bias":
            tensors[name] = values.astype(np.float16).astype(np.float32)
    rounded, model = tmp_path / "rounded", models_folder / "efficientnet_lite0"
    rounded.write_bytes(efficientnet_lite0.network(tensors).SerializeToString())
    ours = cv2.dnn.readNetFromCaffe(str(sources[0]), str(rounded))
    theirs = cv2.dnn.readNetFromCaffe(f"{model}.prototxt", f"{model}.caffemodel")
    photo = (PHOTOS / "cat.png").read_bytes()
    assert np.abs(answer(ours, photo) - answer(theirs, photo)).max() < 1e-5


def test_a_missing_package_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra there is one command to give."""
    monkeypatch.setattr(demo, "PACKAGE", "no_such_package_as_this")
    with pytest.raises(BuildError, match="not installed") as refused:
        demo._weights_file()
    assert "make install" in refused.value.remedy


def test_other_weights_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A file that is not the known one is not opened further, and nothing is written."""
    monkeypatch.setattr(demo, "SHA256", "0" * 64)
    with pytest.raises(BuildError, match="SHA-256"):
        demo.write_demo_sources(tmp_path)
    assert not list(tmp_path.iterdir())


class Named:
    """Pickles as a call of a global by its name, as PyTorch's pickles have them."""

    def __init__(self, call: Callable[..., Any], *arguments: object) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[object, ...]]:
        return self.call, self.arguments


def global_named(module: str, name: str) -> Callable[..., Any]:
    """A stand-in that pickles as the global `module.name`."""

    def stand_in() -> None:
        pass

    stand_in.__module__, stand_in.__qualname__ = module, name
    return stand_in


class Pickler(pickle._Pickler):
    """The pickler written in Python, with globals that need not exist, and storages by id."""

    def save_global(self, obj: Any, name: str | None = None) -> None:
        """Write the name without looking it up."""
        self.write(f"c{obj.__module__}\n{obj.__qualname__}\n".encode())

    dispatch: ClassVar = {**pickle._Pickler.dispatch, type(global_named): save_global}

    def persistent_id(self, obj: Any) -> Any:
        """Storages are told by tuples that start with their name."""
        return obj if isinstance(obj, tuple) and obj[:1] == ("storage",) else None


def pickled(value: object) -> bytes:
    file = io.BytesIO()
    Pickler(file, 2).dump(value)
    return file.getvalue()


def torch_bytes(state: object, numbers: int = 12) -> bytes:
    """A file in PyTorch's old format: `state` and one storage of 0, 1, 2, …"""
    system = {"protocol_version": 1001, "little_endian": True}
    head = (torch_file.MAGIC, torch_file.PROTOCOL, system, state, ["0"])
    storage = struct.pack("<q", numbers) + np.arange(numbers, dtype="<f4").tobytes()
    return b"".join(map(pickled, head)) + storage


def tensor(
    offset: object,
    sizes: object,
    strides: object,
    kind: str = "FloatStorage",
    view: object = None,
) -> Named:
    storage = ("storage", global_named("torch", kind), "0", "cpu", 12, view)
    rebuild = global_named("torch._utils", "_rebuild_tensor_v2")
    return Named(rebuild, storage, offset, sizes, strides, False, collections.OrderedDict())


def read(data: bytes, folder: Path) -> dict[str, np.ndarray]:
    (folder / "weights.pth").write_bytes(data)
    return torch_file.read_tensors(folder / "weights.pth")


def test_strides_are_honoured(tmp_path: Path) -> None:
    """A transposed view with an offset is read as what it shows."""
    tensors = read(torch_bytes({"a": tensor(1, (2, 3), (1, 4)), "b": tensor(0, (), ())}), tmp_path)
    assert tensors["a"].tolist() == [[1, 5, 9], [2, 6, 10]]
    assert tensors["b"] == 0


@pytest.mark.parametrize(
    ("offset", "sizes", "strides"),
    [
        (0, (13,), (1,)),
        (1, (12,), (1,)),
        (0, (3, 4), (5, 1)),
        (0, (2,), (-1,)),
        (-1, (2,), (1,)),
        (12, (1,), (1,)),
        (0, (13,), (0,)),
        (0, (1 << 40,), (0,)),
        (0, (1 << 40, 1 << 40), (0, 0)),
        (0, (2,), (1 << 62,)),
        (1 << 70, (1,), (1,)),
        (0, (-1, -12), (1, 1)),
        (0, (2, 2), (1,)),
        (0, ("2",), (1,)),
    ],
)
def test_views_outside_their_storage_are_refused(
    offset: int, sizes: object, strides: object, tmp_path: Path
) -> None:
    """Neither offset, sizes nor strides reach memory that is not the file's."""
    with pytest.raises(BuildError, match=r"weights\.pth"):
        read(torch_bytes({"a": tensor(offset, sizes, strides)}), tmp_path)


@pytest.mark.parametrize("place", ["state", "tensor", "head"])
def test_a_forbidden_global_is_refused_and_not_run(place: str, tmp_path: Path) -> None:
    """A pickle that calls os.system leaves no trace but the error that names it."""
    trap = Named(os.system, f"touch {tmp_path / 'run'}")
    data = {
        "state": lambda: torch_bytes(trap),
        "tensor": lambda: torch_bytes({"a": trap}),
        "head": lambda: pickled(trap),
    }[place]()
    assert b"posix\nsystem" in data, "the trap is set"
    with pytest.raises(BuildError, match=r"posix\.system"):
        read(data, tmp_path)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "state",
    [
        {"a": 5, "b": tensor(0, (1,), (1,))},
        [tensor(0, (1,), (1,))],
        {"a": tensor(0, (1,), (1,), kind="CharStorage")},
        {"a": Named(global_named("builtins", "eval"), "1")},
        {"a": Named(global_named("torch._utils", "_rebuild_tensor_v2"), "short")},
        {"a": tensor(0, (1,), (1,), view=("1", 0, 1))},
        collections.OrderedDict(a=("storage", "<f8", "0", "cpu", 6, None)),
    ],
)
def test_what_is_no_tensor_is_refused(state: object, tmp_path: Path) -> None:
    """Other values, types and calls are errors, not guesses."""
    with pytest.raises(BuildError):
        read(torch_bytes(state), tmp_path)


def test_truncated_files_are_refused(tmp_path: Path) -> None:
    """Cut anywhere, even in numbers that no tensor shows, the file is refused by name."""
    state = {"a": tensor(0, (2,), (1,))}
    whole = torch_bytes(state)
    assert read(whole, tmp_path)["a"].tolist() == [0, 1]
    for length in range(len(whole)):
        with pytest.raises(BuildError, match=r"weights\.pth"):
            read(whole[:length], tmp_path)
    with pytest.raises(BuildError, match="11 numbers, not 12"):
        read(torch_bytes(state, numbers=11), tmp_path)
