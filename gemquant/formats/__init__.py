"""One file per container format; each writes it and reads it back. No algorithm lives here."""
