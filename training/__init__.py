"""Ray Train: training records -> adapter and scoring module.

The loss, the order of data and the loop do not use Ray.
"""
