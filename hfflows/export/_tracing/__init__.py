"""From a file back to what it was made from, and forward again."""
