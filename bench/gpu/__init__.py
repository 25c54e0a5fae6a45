"""Latency and throughput on one GPU, in one command of a few minutes: `python -m bench.gpu`.

Builds the package in place, freezes both presets for the GPU at hand, checks them against PyTorch in float64, measures
what the device can do at most, times our passes and PyTorch's, prints the table of targets with ceilings and ratios,
and stores everything as JSON with pictures.  Needs no network: bench/README.md says what has to be there.

    __main__.py     builds, runs the pieces, each in a process of its own, prints and stores
    piece.py        what one piece measures
    device.py       the clock: CUDA events and graphs; or the CPU, to rehearse the program without a GPU
    ceilings.py     measured matrix peak, bandwidth, cost of a graph node
    contestants.py  ours and PyTorch's, ready to be timed
    carried.py      kernels compiled on another machine
    report.py       table, JSON, plots
"""
