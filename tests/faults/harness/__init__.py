"""Fault harnesses: any action on a repository, one fault at each of its calls, and the laws that must hold after each.

seam.py     counts the calls of an action, and makes the k-th one fail, be cut short, or be its last
child.py    runs an action in a forked child, so that it may die
places.py   where it runs: a directory, or a disk of its own whose power can be cut
laws.py     what must be true whatever happened
sweep.py    all of it, over every call or a sample of them
stacks.py   repositories and actions to sweep
rot.py      a FUSE file system with bit rot and unreadable sectors
process.py  the real program under strace: what it changes, and a fault at any of it
counts.py   how many faults there were, and how many broke a law
"""
