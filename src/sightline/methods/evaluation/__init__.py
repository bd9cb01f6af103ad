"""How far an attribution can be trusted.

The methods are `trust` and `pointing`. They rest on `attribution_method` (the attribution of any
method in one form), `faithfulness` (scores after pixels are removed), `randomization` (networks
with shuffled weights), `annotations` (images whose objects are marked) and `verdict` (numbers in
words). `summary` is the short form of `trust` for the report.
"""
