"""What a device accepts, and what a vendor's converter takes, as data."""
