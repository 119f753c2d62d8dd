"""What was measured and decided: as Markdown, JUnit XML, JSON, and one HTML page."""
