"""Compiled GPU code executed on the CPU: PTX, as nvcc and Triton emit it, interpreted over NumPy arrays.

`parse` reads the text of a kernel, `translate` turns each of its basic blocks into a Python function over arrays with
one entry for each thread, `machine` launches it: memory, warps, barriers. `arithmetic` says what an instruction
computes. `cuda` and `triton_driver` bring launches of the CUDA extension and of Triton to the machine, `calls` takes
what the ops ask of a backend and asks it of another.
"""
