"""The mirror beside nginx and distribution, measured in one run. `python bench/run.py` begins here."""
