"""nn.Modules only: no files, no network, no printing; each built from one config."""
