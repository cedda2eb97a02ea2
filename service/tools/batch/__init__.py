"""Offline classification of many images into one file: JSON Lines, CSV or Parquet.

`inputs` finds the images, and a source of `service.tools.sources` classifies them. `outputs` and
`parquet` write the file. `run` calls these in turn, and keeps the answers in a journal until then.
"""

from service.tools.batch.inputs import ImageFiles
from service.tools.batch.outputs import check
from service.tools.batch.run import BatchPlan, classify_all, print_summary

__all__ = ["BatchPlan", "ImageFiles", "check", "classify_all", "print_summary"]
