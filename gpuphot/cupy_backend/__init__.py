"""The primitives on a GPU, kernels launched through CuPy: the twin of ``numpy_backend``.

Only `probe` can be imported where CuPy is not installed.
"""
