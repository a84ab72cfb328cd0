"""Services as users write them, each runnable with `python -m examples.<name>` from the repository's root."""
