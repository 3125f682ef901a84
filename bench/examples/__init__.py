"""Networks in training; `python bench/train.py` runs them."""
