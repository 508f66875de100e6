"""How a step changes the weights: a rule for the matrices of the trunk, AdamW for everything else, their average.

Another optimizer is a new file with its `Rule`, and a line in `RULES` of optimizer.py.
"""
