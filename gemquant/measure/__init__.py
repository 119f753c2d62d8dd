"""Everything that judges an artifact: quality, tasks, speed, gate, report."""
