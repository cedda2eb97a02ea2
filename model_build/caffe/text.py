"""A prototxt to the network that it describes, as it is at test time.

A file enters; a NetParameter leaves, of which the layers of other phases and stages are gone. What
is not a network's text is a BuildError with the line and the layer. A layer with a field or value
that Caffe does not have gets the complaint as its `fault`: it counts if the layer is needed, so
that nothing that the network depends on is skipped in silence.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf import text_format

from model_build.caffe import schema
from model_build.caffe.upgrade import upgrade
from model_build.strangers import stranger
from service.errors import BuildError
from service.system import disk

MAX_TEXT_BYTES = 1 << 19
"""Twice the largest published text."""
MAX_FIELDS = 16_000
"""Half as many again as the largest published text has: what takes a parser's time."""
DATA_LAYERS = frozenset(
    {"Data", "DummyData", "HDF5Data", "ImageData", "MemoryData", "WindowData", "AnnotatedData"}
)

# Quantifiers that give nothing back (++ and the like) keep the time linear, whatever the text.
_OLD_LAYER = re.compile(r"^([ \t]*+layer)s(?=\s*+:?+\s*+[{<])", re.MULTILINE)
_OLDEST_LAYER = re.compile(r"^[ \t]*+layers\s*+:?+\s*+[{<]\s*+layer\s*+:?+\s*+[{<]", re.MULTILINE)
_RULE = re.compile(r"\b(?:in|ex)clude\s*+:?+\s*+[{<]")
_OLD_TYPE = re.compile(r"\btype\s*+:\s*+[A-Z]")
_LAYER_START = re.compile(r"\blayers?+\s*+:?+\s*+[{<]")
_LAYER_NAME = re.compile(r"\bname\s*+:\s*+[\"']([^\"'\n]*+)")
# What tells where a layer begins and ends: comments, strings (to the line's end where they are not
# closed), braces, names of fields.
_TOKEN = re.compile(
    r"""\#[^\n]*+ | "(?:[^"\\\n]|\\.)*+"?+ | '(?:[^'\\\n]|\\.)*+'?+ | [{}<>] | [A-Za-z_]\w*+""",
    re.VERBOSE,
)


def read(path: Path) -> Any:
    """The NetParameter of the prototxt at `path`, with the layers of its TEST phase."""
    net = _parse(_todays(_text(path), str(path)), str(path))
    upgrade(net, str(path))
    if not net.layer:
        raise BuildError("it has no layers", DEPLOY, file=str(path))
    stages = set(net.state.stage)
    kept = [layer for layer in net.layer if _belongs(layer, stages, str(path))]
    del net.layer[:]
    net.layer.extend(kept)
    _refuse_training(net, str(path))
    return net


def is_todays(path: Path) -> bool:
    """Whether the prototxt at `path` is in today's form, and all of it is of the network."""
    text = _text(path)
    return not _OLD_LAYER.search(text) and not _RULE.search(text)


REMEDY = "correct the text, or give a classifier's deploy prototxt in BVLC Caffe's terms"
DEPLOY = "give the deploy prototxt, which describes the network as it answers"


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_TEXT_BYTES:
            detail = f"{path.stat().st_size} bytes; a prototxt has up to {MAX_TEXT_BYTES}"
            raise BuildError(detail, DEPLOY, file=str(path))
        data = path.read_bytes()
    except OSError as error:
        detail, remedy = disk.unreadable(path, error, "name the prototxt")
        raise BuildError(detail, remedy, file=str(path)) from error
    _check_kind(data, str(path))
    # Comments in other encodings are common; a damaged name is found by what refers to it.
    text = data.decode("utf-8-sig", errors="replace")
    if not text.strip():
        raise BuildError("empty", DEPLOY, file=str(path))
    fields = sum(map(text.count, ":{<,"))
    if fields > MAX_FIELDS:
        raise BuildError(f"{fields} fields; up to {MAX_FIELDS} are read", DEPLOY, file=str(path))
    return text


def _check_kind(data: bytes, file: str) -> None:
    """Raise BuildError for the bytes of another kind of file, or in another encoding."""
    if what := stranger(data):
        raise BuildError("not a prototxt", f"it is {what}", file=file)
    if encoding := disk.encoding(data):
        detail = f"a text in {encoding}; a prototxt is UTF-8"
        raise BuildError(detail, disk.to_utf_8(encoding), file=file)
    if b"\0" in data:
        remedy = "give the prototxt; the caffemodel is the other file"
        raise BuildError("binary data, not a prototxt", remedy, file=file)


def _todays(text: str, file: str) -> str:
    """The text, with `layer` for `layers` where the types are today's, as in GoogLeNet-BN's."""
    if _OLDEST_LAYER.search(text):
        raise BuildError(
            "`layers { layer {` is the oldest form of Caffe's, which is not read",
            "upgrade both files with Caffe's upgrade_net_proto_text and upgrade_net_proto_binary",
            file=file,
        )
    return text if _OLD_TYPE.search(text) else _OLD_LAYER.sub(r"\1", text)


def _parse(text: str, file: str) -> Any:
    try:
        return text_format.Parse(text, schema.NetParameter())
    except text_format.ParseError:
        return _parse_apart(text, file)


def _parse_apart(text: str, file: str) -> Any:
    """Return the NetParameter of a text that has something wrong in it, layer by layer.

    A layer whose place in the network can be read gets a `fault`. Raise BuildError if what is wrong
    is elsewhere, or if a place cannot be read.
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
        # Counted on, not from the beginning: there may be very many layers.
        line, at = line + text.count("\n", at, start), start
        _parse_layer(next(layers[word]), text[start:end], line, file)
    return net


def _parse_layer(layer: Any, text: str, line: int, file: str) -> None:
    """Parse the text between a layer's braces, which begins `line` lines down its file."""
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
    """Yield the layers: `layer` or `layers`, where the inside of its braces begins, where it ends.

    A text whose braces do not match yields no more than the layers before that.
    """
    depth, start, word = 0, 0, ""
    for token in _TOKEN.finditer(text):
        said = token[0]
        if said in "{<":
            start = start if depth else token.end()
            depth += 1
        elif said in "}>":
            depth -= 1
            if not depth and word in ("layer", "layers"):
                yield word, start, token.start()
        elif not depth and said[0] not in "#\"'":
            word = said


def _blanked(text: str, places: list[tuple[int, int]]) -> str:
    """Return the text with spaces at the places, so that lines and columns stay what they are."""
    kept, at = [], 0
    for start, end in places:
        kept += [text[at:start], re.sub(r"[^\n]", " ", text[start:end])]
        at = end
    return "".join([*kept, text[at:]])


def _complaint(error: text_format.ParseError, above: int) -> str:
    """Return what is wrong in which line, of a text that has so many lines above it."""
    line, column = error.GetLine() or 1, error.GetColumn() or 1
    said = str(error).removeprefix(f"{line}:{column} : ").replace("caffe.", "")
    return f"line {above + line}: {said[:300]}"


def _layer_at(text: str, line: int, column: int) -> str:
    """The name of the layer in whose braces the place is, if it can be told."""
    place = sum(len(before) + 1 for before in text.split("\n")[: line - 1]) + column
    starts = [match.start() for match in _LAYER_START.finditer(text)]
    before = [start for start in starts if start < place]
    after = [start for start in starts if start >= place]
    if not before:
        return ""
    name = _LAYER_NAME.search(text, before[-1], after[0] if after else len(text))
    return name[1] if name else ""


def _belongs(layer: Any, stages: set[str], file: str) -> bool:
    """Whether the layer is part of the network at test time, by Caffe's rules."""
    if layer.include and layer.exclude:
        raise BuildError("it has include and exclude", "keep one", file=file, layer=layer.name)
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
            detail = f"{layer.type} reads training data"
            raise BuildError(detail, DEPLOY, file=file, layer=layer.name)
