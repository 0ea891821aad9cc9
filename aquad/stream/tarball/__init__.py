"""One engine for every `.tar.gz`: PAX tar, a gzip member of its own for each file (big ones in chunks), and an index.

Together the members are one ordinary archive for `tar -xzf`; by the index a single file, or all of them in parallel, can
be had without reading the rest.
"""
