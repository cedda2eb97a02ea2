"""Whether a client accepts a media type (RFC 9110 12.5.1)."""


def accepts(accept: str, media_type: str) -> bool:
    """Return whether `accept`, the value of an Accept header, includes `media_type`.

    The most specific range that matches decides; a weight of 0 excludes the type.
    """
    ranges = ("*/*", f"{media_type.partition('/')[0]}/*", media_type)
    best, accepted = -1, False
    for part in accept.lower().split(","):
        name, *parameters = (piece.strip() for piece in part.split(";"))
        if name in ranges and ranges.index(name) > best:
            best = ranges.index(name)
            accepted = not any(_is_zero(each) for each in parameters)
    return accepted


def names(accept: str, media_type: str) -> bool:
    """Return whether `accept` names `media_type` itself, and does not exclude it by a weight of 0.

    Programs send */*, or nothing. Only a browser names text/html.
    """
    for part in accept.lower().split(","):
        name, *parameters = (piece.strip() for piece in part.split(";"))
        if name == media_type:
            return not any(_is_zero(each) for each in parameters)
    return False


def _is_zero(parameter: str) -> bool:
    return parameter.startswith("q=0") and not parameter[2:].strip("0.")
