"""`topfive doctor`: what would keep this machine from serving, and what its cards really do.

`checks` has a table of small checks, `report` prints what they found. `walk` is `--card`: a tour of
a real card that answers what no machine without one can, written to a text that a user can send.
"""
