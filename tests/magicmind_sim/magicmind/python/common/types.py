"""Data types of numpy and of MagicMind, one to the other."""

from magicmind._sim.values import get_datatype_by_numpy, get_numpy_dtype_by_datatype

__all__ = ["get_datatype_by_numpy", "get_numpy_dtype_by_datatype"]
