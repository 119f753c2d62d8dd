"""Is an artifact still as good as its baseline: paired comparison, budgets, verdicts."""
