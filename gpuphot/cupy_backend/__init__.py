"""The GPU side. So far only the probe that tells whether a GPU could be used."""
