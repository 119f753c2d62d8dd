"""Text → fixed token windows → blocks with statistics."""
