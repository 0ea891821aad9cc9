"""Where bytes lie: the repository's files on the local disk, and its journal."""
