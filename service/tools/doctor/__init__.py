"""`topfive doctor`: checks whether this machine can serve, and experiments on a real card.

`checks` has a table of small checks, and `report` prints their findings. `first_card` is `--card`:
it answers the questions that only a machine with a card can answer, and writes a report that a user
can send.
"""
