"""`topfive bench`: the throughput and latency of one device, or of a server under load.

`device` measures a device, `report` prints the result, and `mm_run` runs the SDK's own load tool
for comparison. `sweep` runs the loads of `load` on a server, and `load_report` and `load_plot`
write the results.
"""
