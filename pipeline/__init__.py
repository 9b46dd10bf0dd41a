"""What happens, in order: the two stages and what surrounds them.

`stage_one.py` is stage one, `stage_two.py` stage two: `targets.py` is its data loader, `trainer.py` its loop. Import
the module that you need; this package imports nothing, so that the command line starts without PyTorch.
"""
