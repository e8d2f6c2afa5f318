"""Text: tokens, chat templates, stop strings."""
