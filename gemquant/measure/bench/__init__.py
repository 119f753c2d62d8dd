"""How fast finished artifacts run, and in how much memory: each in its own process."""
