"""Word lists, story plots, facts and conversation builders behind `dataset/demo.py`."""
