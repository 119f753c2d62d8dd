"""How fast finished artifacts run, and in how much memory: each in a process of its own."""
