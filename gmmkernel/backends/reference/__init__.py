"""The NumPy reference: the specification that every other backend repeats bit for bit.

Read it in this order: `arithmetic`, `philox`, `normal`, `transition`, `sums`.
"""
