"""What training computes: the objective of a plan, without computing anything twice or in vain."""
