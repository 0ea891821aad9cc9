"""The daemon: a small loop that starts runs as child processes when they are due, and does no backup itself.

All it decides follows from the journal, the manifests and the clock (`jobs/slots.py`), so that it may be killed anywhere.
"""
