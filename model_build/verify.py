"""An artifact against what it should answer."""

from collections.abc import Callable

from service.artifact import Artifact


def after_build(made: Artifact, python: str, ordinal: int, say: Callable[[str], None]) -> None:
    """At the end of a build for a card, before the artifact gets its name.

    `python` is the SDK's, `ordinal` the card. BuildError where the card does not answer as the
    reference does; where there is no card, that is said.
    """
    say("device against reference: not done")
