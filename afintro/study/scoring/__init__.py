"""Turn answers into measures and estimates."""
