"""Names of the first layout that exported model cards import; they go with the next version."""
