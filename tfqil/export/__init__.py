"""Export: freeze, lower, convert, pack, inspect, verify.

The names are not imported here: `inspect` and `runtime` work without TensorFlow.
"""
