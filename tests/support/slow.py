"""Cases of which `make test` runs a few; the other cases are `slow`, for `make test-all`."""

from collections.abc import Collection, Iterable

import pytest
from _pytest.mark.structures import ParameterSet


def few(cases: Iterable[str], quick: Collection[str]) -> list[str | ParameterSet]:
    """Return the cases for `parametrize`; those that are not among `quick` have the mark `slow`."""
    return [case if case in quick else pytest.param(case, marks=pytest.mark.slow) for case in cases]
