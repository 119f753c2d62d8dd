"""What the rest is made of: protocols, weights, schemes, options, recipes, artifacts, targets."""
