"""The places of the checkout that tests read."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PHOTOS = ROOT / "model_build" / "photos"
"""The photos that are part of the package."""
