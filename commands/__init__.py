"""The commands by theme: options in, one function of `api.py` called, what it gives shown. cli.py lists them."""
