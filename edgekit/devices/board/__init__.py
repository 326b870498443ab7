"""What runs on a board: Python 3.8 or newer, numpy, and a runtime. These files are copied there as they are."""
