"""Offline classification of many images into one file: JSON Lines, CSV or Parquet.

`inputs` finds the images, and a source of `service.tools.sources` classifies them. `outputs` and
`parquet` write the file. `run` calls these in turn, and keeps the answers in a journal until then.
"""

from service.tools.bulk.inputs import ImageFiles
from service.tools.bulk.outputs import check
from service.tools.bulk.run import BulkPlan, classify_all, print_summary

__all__ = ["BulkPlan", "ImageFiles", "check", "classify_all", "print_summary"]
