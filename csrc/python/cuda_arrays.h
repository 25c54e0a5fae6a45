// Memory, events and DLPack tensors of a GPU as Python classes, for unet_fast/cuda_arrays.py, which knows the
// protocols.
#pragma once

#include <pybind11/pybind11.h>

namespace uf::python {

void bind_cuda_arrays(pybind11::module_ &module);

} // namespace uf::python
