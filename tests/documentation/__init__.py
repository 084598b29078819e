"""README and docs/: tables generated from the code; blocks and links that are checked."""
