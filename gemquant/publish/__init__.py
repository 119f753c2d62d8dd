"""A finished artifact on its way to others: checked, described, signed, uploaded."""
