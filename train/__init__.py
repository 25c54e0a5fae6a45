"""Training of U-Nets in plain PyTorch.  `python -m train --help` lists the commands; `train.model.UNet` is the net."""
