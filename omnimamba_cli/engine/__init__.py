"""What a command does, callable from Python: yields events, never prints."""
