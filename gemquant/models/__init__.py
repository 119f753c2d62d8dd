"""All that is true only of Gemma: names, (1 + w) norms, AWQ pairs, softcaps, windows, BOS."""
