"""What happens, in order: the two stages and what surrounds them.

`stage_one.py` is stage one, `stage_two.py` stage two; `training.py` is the loop that every student and teacher is
trained by, `target_source.py` says where its soft targets come from. Import the module of the stage that you want; this
package imports nothing, so that the command line starts without PyTorch.
"""
