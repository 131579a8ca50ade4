"""Crash-safe runs that let a model answer samples."""
