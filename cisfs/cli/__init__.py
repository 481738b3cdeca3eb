"""The commands, one module each: parse, call, report.  No logic, and nothing heavy at import."""
