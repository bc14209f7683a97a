"""The command line: parses, prints, and gives exit codes. No torch at module level, no model work."""
