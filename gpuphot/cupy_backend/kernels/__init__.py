"""CUDA sources (``.cu``, ``.cuh``) and the table of their kernels, `registry`."""
