"""Accuracy over labelled images: over HTTP, as clients use the service, or on an artifact.

`labels` reads the samples, and a source of `service.tools.sources` classifies them. `journal` keeps
the answers, and `results` writes the files. `run` calls these in turn.
"""

from service.tools.evaluation.results import print_summary
from service.tools.evaluation.run import Plan, evaluate
from service.tools.sources import on_artifact, over_http

__all__ = ["Plan", "evaluate", "on_artifact", "over_http", "print_summary"]
