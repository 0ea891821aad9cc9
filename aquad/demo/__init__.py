"""`make demo`: a real PostgreSQL server, a configuration tree and volumes, backed up, destroyed, and brought back with proof."""
