"""The primitives in NumPy, vectorised over chunks of sources: the twin of ``cupy_backend``."""
