"""Accuracy over labelled images: over HTTP, as users meet the service, or straight on an artifact.

`labels` reads what is asked, `sources` answers, `journal` keeps the answers, `results` writes the
files, `run` goes from one to the next.
"""

from service.tools.evaluation.results import print_summary
from service.tools.evaluation.run import Plan, evaluate
from service.tools.evaluation.sources import on_artifact, over_http

__all__ = ["Plan", "evaluate", "on_artifact", "over_http", "print_summary"]
