"""A gate before the decoding of images, for tests of what happens meanwhile."""

import threading
from collections.abc import Callable


class Gate:
    """Stands in for `decode_into`: it waits until `open` is set. `calls` went in."""

    def __init__(self, decode_into: Callable[..., int]) -> None:
        self.entered, self.open = threading.Event(), threading.Event()
        self.calls = 0
        self._decode_into = decode_into

    def __call__(self, *arguments: object) -> int:
        self.calls += 1
        self.entered.set()
        assert self.open.wait(10)
        return self._decode_into(*arguments)
