"""Reading a prototxt: the network that it describes, in its TEST phase.

`read` returns a NetParameter without the layers of other phases and stages. A text that is not a
network is a BuildError with the line and the layer. A layer with an unknown field or value gets the
message as its `fault`. The fault is raised if the layer is needed, so that no needed layer is
silently changed.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf import text_format

from model_build.caffe import schema
from model_build.caffe.upgrade import upgrade
from model_build.file_kinds import foreign_kind
from service.errors import BuildError
from service.system import disk

MAX_TEXT_BYTES = 1 << 19
"""Maximum size of a prototxt: twice the largest published one."""
MAX_FIELDS = 16_000
"""Maximum number of fields, which bounds the parser's time: 1.5 times the largest published."""
DATA_LAYERS = frozenset(
    {"Data", "DummyData", "HDF5Data", "ImageData", "MemoryData", "WindowData", "AnnotatedData"}
)

# Possessive quantifiers (++ and similar) keep the time linear for every text.
_OLD_LAYER = re.compile(r"^([ \t]*+layer)s(?=\s*+:?+\s*+[{<])", re.MULTILINE)
_OLDEST_LAYER = re.compile(r"^[ \t]*+layers\s*+:?+\s*+[{<]\s*+layer\s*+:?+\s*+[{<]", re.MULTILINE)
_RULE = re.compile(r"\b(?:in|ex)clude\s*+:?+\s*+[{<]")
_OLD_TYPE = re.compile(r"\btype\s*+:\s*+[A-Z]")
_LAYER_START = re.compile(r"\blayers?+\s*+:?+\s*+[{<]")
_LAYER_NAME = re.compile(r"\bname\s*+:\s*+[\"']([^\"'\n]*+)")
# Tokens that show where a layer begins and ends: comments, strings (to the end of the line if they
# are not closed), braces, names of fields.
_TOKEN = re.compile(
    r"""\#[^\n]*+ | "(?:[^"\\\n]|\\.)*+"?+ | '(?:[^'\\\n]|\\.)*+'?+ | [{}<>] | [A-Za-z_]\w*+""",
    re.VERBOSE,
)


def read(path: Path) -> Any:
    """Return the NetParameter of the prototxt at `path`, with the layers of its TEST phase."""
    net = _parse(_todays(_text(path), str(path)), str(path))
    upgrade(net, str(path))
    if not net.layer:
        raise BuildError("The file has no layers.", DEPLOY, file=str(path))
    stages = set(net.state.stage)
    kept = [layer for layer in net.layer if _belongs(layer, stages, str(path))]
    del net.layer[:]
    net.layer.extend(kept)
    _refuse_training(net, str(path))
    return net


def is_todays(path: Path) -> bool:
    """Return whether the prototxt has the current form and only layers of the network."""
    text = _text(path)
    return not _OLD_LAYER.search(text) and not _RULE.search(text)


REMEDY = "Correct the text, or give a classifier's deploy prototxt in BVLC Caffe's terms."
DEPLOY = "Give the deploy prototxt, which describes the network as it answers."


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_TEXT_BYTES:
            detail = f"The file has {path.stat().st_size} bytes; the maximum is {MAX_TEXT_BYTES}."
            raise BuildError(detail, DEPLOY, file=str(path))
        data = path.read_bytes()
    except OSError as error:
        detail, remedy = disk.unreadable(path, error, "Name the prototxt.")
        raise BuildError(detail, remedy, file=str(path)) from error
    _check_kind(data, str(path))
    # Comments in other encodings are common. A damaged name is found where it is referred to.
    text = data.decode("utf-8-sig", errors="replace")
    if not text.strip():
        raise BuildError("The file is empty.", DEPLOY, file=str(path))
    fields = sum(map(text.count, ":{<,"))
    if fields > MAX_FIELDS:
        raise BuildError(
            f"The file has {fields} fields; the maximum is {MAX_FIELDS}.", DEPLOY, file=str(path)
        )
    return text


def _check_kind(data: bytes, file: str) -> None:
    """Raise BuildError for another kind of file or another encoding."""
    if what := foreign_kind(data):
        raise BuildError("The file is not a prototxt.", what, file=file)
    if encoding := disk.encoding(data):
        detail = f"The file is in {encoding}; a prototxt is UTF-8."
        raise BuildError(detail, disk.to_utf_8(encoding), file=file)
    if b"\0" in data:
        remedy = "Give the prototxt here, and the caffemodel as --caffemodel."
        raise BuildError("The file is binary data, not a prototxt.", remedy, file=file)


def _todays(text: str, file: str) -> str:
    """Return the text with `layer` for `layers` if the types are current, as in GoogLeNet-BN's."""
    if _OLDEST_LAYER.search(text):
        raise BuildError(
            "The file has Caffe's oldest form, `layers { layer {`, which is not supported.",
            "Use Caffe's tools upgrade_net_proto_text and upgrade_net_proto_binary to upgrade "
            "both files.",
            file=file,
        )
    return text if _OLD_TYPE.search(text) else _OLD_LAYER.sub(r"\1", text)


def _parse(text: str, file: str) -> Any:
    try:
        return text_format.Parse(text, schema.NetParameter())
    except text_format.ParseError:
        return _parse_apart(text, file)


def _parse_apart(text: str, file: str) -> Any:
    """Return the NetParameter of a faulty text, parsed layer by layer.

    A layer whose place in the network can be read gets a `fault`. Raise BuildError if the fault is
    elsewhere, or if a place cannot be read.
    """
    places = list(_layers(text))
    rest = _blanked(text, [(start, end) for _, start, end in places])
    try:
        net = text_format.Parse(rest, schema.NetParameter())
    except text_format.ParseError as error:
        line, column = error.GetLine() or 1, error.GetColumn() or 1
        layer = _layer_at(text, line, column)
        raise BuildError(_complaint(error, 0), REMEDY, file=file, layer=layer) from error
    layers = {"layer": iter(net.layer), "layers": iter(net.layers)}
    line, at = 0, 0
    for word, start, end in places:
        # Lines are counted from the previous layer, because there may be very many layers.
        line, at = line + text.count("\n", at, start), start
        _parse_layer(next(layers[word]), text[start:end], line, file)
    return net


def _parse_layer(layer: Any, text: str, line: int, file: str) -> None:
    """Parse the text between a layer's braces, which begins `line` lines into its file."""
    try:
        text_format.Parse(text, layer)
        return
    except text_format.ParseError as error:
        fault = _complaint(error, line)
    old = isinstance(layer, schema.V1LayerParameter)
    place = schema.V1LayerPlace() if old else schema.LayerPlace()
    try:
        text_format.Parse(text, place, allow_unknown_field=True)
    except (text_format.ParseError, RecursionError) as error:
        name = _LAYER_NAME.search(text)
        raise BuildError(fault, REMEDY, file=file, layer=name[1] if name else "") from error
    layer.ParseFromString(place.SerializeToString())
    layer.fault = fault


def _layers(text: str) -> Iterator[tuple[str, int, int]]:
    """Yield each layer: `layer` or `layers`, and where the inside of its braces begins and ends.

    If the braces of a text do not match, only the layers before that are yielded.
    """
    depth, start, word = 0, 0, ""
    for token in _TOKEN.finditer(text):
        found = token[0]
        if found in "{<":
            start = start if depth else token.end()
            depth += 1
        elif found in "}>":
            depth -= 1
            if not depth and word in ("layer", "layers"):
                yield word, start, token.start()
        elif not depth and found[0] not in "#\"'":
            word = found


def _blanked(text: str, places: list[tuple[int, int]]) -> str:
    """Return the text with spaces at the places, so that lines and columns do not change."""
    kept, at = [], 0
    for start, end in places:
        kept += [text[at:start], re.sub(r"[^\n]", " ", text[start:end])]
        at = end
    return "".join([*kept, text[at:]])


def _complaint(error: text_format.ParseError, above: int) -> str:
    """Return the message with its line in the file, given the number of lines above the text."""
    line, column = error.GetLine() or 1, error.GetColumn() or 1
    message = str(error).removeprefix(f"{line}:{column} : ").replace("caffe.", "")
    return f"Line {above + line}: {message[:300]}"


def _layer_at(text: str, line: int, column: int) -> str:
    """Return the name of the layer whose braces contain the place; empty if unknown."""
    place = sum(len(before) + 1 for before in text.split("\n")[: line - 1]) + column
    starts = [match.start() for match in _LAYER_START.finditer(text)]
    before = [start for start in starts if start < place]
    after = [start for start in starts if start >= place]
    if not before:
        return ""
    name = _LAYER_NAME.search(text, before[-1], after[0] if after else len(text))
    return name[1] if name else ""


def _belongs(layer: Any, stages: set[str], file: str) -> bool:
    """Return whether the layer is in the network's TEST phase, by Caffe's rules."""
    if layer.include and layer.exclude:
        raise BuildError(
            "The layer has include and exclude.", "Keep one of them.", file=file, layer=layer.name
        )
    if layer.include:
        return any(_meets(rule, stages) for rule in layer.include)
    return not any(_meets(rule, stages) for rule in layer.exclude)


def _meets(rule: Any, stages: set[str]) -> bool:
    return (
        (not rule.HasField("phase") or rule.phase == schema.TEST)
        and (not rule.HasField("min_level") or rule.min_level <= 0)
        and (not rule.HasField("max_level") or rule.max_level >= 0)
        and stages.issuperset(rule.stage)
        and stages.isdisjoint(rule.not_stage)
    )


def _refuse_training(net: Any, file: str) -> None:
    for layer in net.layer:
        if layer.type in DATA_LAYERS:
            detail = f"The layer type {layer.type} reads training data."
            raise BuildError(detail, DEPLOY, file=file, layer=layer.name)
