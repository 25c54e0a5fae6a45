"""The GPU kernels: Triton functions, one file per fused op, and `aot`, which compiles them for a plan without a GPU.

    common.py       what the kernels share: tiles of pixels, the tap loop, activations, the split sum
    stem.py conv.py up_conv.py concat_conv.py head.py conv_transpose.py plain.py     the kernels, with their candidates
    launch.py       how a kernel is described to the executor: arguments, grid, tiles
    aot.py          plan -> candidates -> machine code and JSON for the engine file

Importing this package imports neither triton nor torch; its modules, except `launch`, need triton.
"""
