"""What stage one does unless told otherwise, in Python and on the command line; no PyTorch, so that --help is quick."""

VIEWS = 16  # or as many as there are
VIEW_SEED = 0  # stage two's too, where it has no cache to follow
LAYERS = ("last",)
GRID = 1
BATCH_SIZE = 256
