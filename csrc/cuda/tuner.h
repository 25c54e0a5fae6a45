// Measures which candidate of each step is the fastest.
#pragma once

#include "cuda/tuning.h"
#include "executor.h"

namespace uf::cuda {

// Times the candidates of `selection`, which is in the engine file's order, on images of `shape`; PTX only where there
// is nothing else.  A candidate whose
// output is not that of the first one, within rounding, cannot win.  Throws what loading and running throw.
TuningTable tune(std::shared_ptr<const Plan> plan, std::shared_ptr<const Device> device, const Selection &selection,
                 const PassShape &shape);

} // namespace uf::cuda
