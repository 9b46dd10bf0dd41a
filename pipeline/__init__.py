"""What happens, in order: the two stages and what surrounds them.

`caching.py` is stage one, `distilling.py` stage two; `training.py` is the loop that every student and teacher is
trained by, `target_source.py` says where its soft targets come from. Import the module of the stage that you want; this
package imports nothing, so that the command line starts without PyTorch.
"""
