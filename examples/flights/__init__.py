"""A month of real flights: one entity per aircraft, and an independent judge of what the entities remember.

Reading order: `aircraft` (the service), `commands` (what is sent to it), `batch` (what must come out), `compare`
(the verdict). `extract` made the data. `batch` imports nothing of the others: that is what makes it a judge.
"""
