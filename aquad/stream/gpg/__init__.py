"""Encryption by gpg (2.2 or later), as child processes. The owner of gpg."""
