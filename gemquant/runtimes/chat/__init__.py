"""Talking with a finished artifact: in the terminal, and as a server for other programs."""
