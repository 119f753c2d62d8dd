"""Artifacts whose numbers another program decides: ours are the checks, manifest and certificate.

A plain folder goes in, written here; the tool runs as a worker; what it wrote is read back,
measured and sealed like any other artifact.
"""
