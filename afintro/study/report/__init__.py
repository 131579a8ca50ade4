"""Analyze finished cells and write the report: tables, figures, findings, model cards."""
