"""The only one with the Docker socket: shows and moves the containers that settings name, and nothing else."""
