"""What only the container image needs: who aquad is in it, and whose the repository is."""
