"""A year of the daemon: the real keeper and real runs on small data, under a clock that is set from slot to slot.

python -m tests.soak [--days 365] [--seed N]
"""
