"""From a checkpoint to artifacts: plan, run, resume, external converters, estimates."""
