"""What turns token ids into logits for a finished artifact: one runtime per file."""
