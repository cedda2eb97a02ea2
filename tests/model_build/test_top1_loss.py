"""The loss of top-1 between two models that answer the same photos, and its interval."""

import math

import numpy as np
import pytest

from model_build import top1_loss
from model_build.top1_loss import Top1Loss


def test_the_loss_is_that_of_pairs() -> None:
    """Only photos that one of the two has right and the other wrong count."""
    classes = np.arange(6)
    expected = np.eye(6, dtype=np.float32)
    found = expected.copy()
    found[[0, 1, 2]] = expected[[1, 2, 3]]  # three photos are lost
    expected[5] = found[0]  # one is won
    loss = top1_loss.measured(expected, found, classes)
    assert loss == Top1Loss(images=6, reference_right=5, lost=3, won=1)
    assert loss.points == pytest.approx(100 * 2 / 6)
    assert "top-1 is 50.00 instead of 83.33 on 6 photos, a loss of 33.33 points" in str(loss)


@pytest.mark.parametrize(
    ("lost", "won", "images", "counts"),
    [(0, 0, 363, False), (5, 5, 363, False), (2, 0, 363, False), (12, 1, 363, True)],
)
def test_an_interval_that_excludes_zero(lost: int, won: int, images: int, counts: bool) -> None:
    """A few photos are no loss that counts; twelve against one are."""
    low, high = top1_loss.paired(lost, won, images)
    assert low < (lost - won) / (images + 2) < high
    assert (low > 0) == counts


def test_the_interval_covers_the_truth() -> None:
    """Of many samples of known shares, about 95 % of the intervals contain the true loss."""
    random = np.random.default_rng(7)
    lost_share, won_share, images = 0.03, 0.01, 363
    draws = random.multinomial(images, [lost_share, won_share, 1 - lost_share - won_share], 4000)
    hits = 0
    for lost, won, _ in draws.tolist():
        low, high = top1_loss.paired(lost, won, images)
        hits += low <= lost_share - won_share <= high
    assert math.isclose(hits / len(draws), 0.95, abs_tol=0.015)
