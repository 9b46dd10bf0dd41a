"""What both stages do unless told otherwise, in Python and on the command line; no PyTorch, so that --help is quick."""

DATA_VARIABLE = "DEMKD_DATA"  # of the environment: what `--data` is where nothing else says it
VIEWS = 16  # or as many as there are
VIEW_SEED = 0
LAYERS = ("last",)
GRID = 1
BATCH_SIZE = 256  # of stage one; a student's is in `recipe.TrainingOptions`
BATCH_SIZE_ON_CPU = 64  # of views above 64 pixels: larger batches spend their time on getting memory
METHOD = "dist-entropy"  # the best student of our study (docs/results.md); `de-mkd` is what was published
EPOCHS = 240  # of a student, as in the literature
REST_TEMPERATURES = (1.0, 2.0, 4.0)
SIZE = 224  # pixels a side, of a network for photos where nothing says another
CROP_RATIO = 0.875  # what an evaluation shows of a photo's shorter side: 224 of 256
LARGEST_INPUT = 4096  # pixels a side
