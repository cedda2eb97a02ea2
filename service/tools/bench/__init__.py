"""A device alone, under load: its throughput and latency, beside what `mm_run` says of it.

`device` measures, `report` prints, `mm_run` runs and reads the SDK's own load tool.
"""
