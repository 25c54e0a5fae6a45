// The CPU executors: the fast one, and the slow, obvious one that it is tested against.
#pragma once

#include <memory>
#include <string>

#include "executor.h"
#include "thread_pool.h"

namespace uf {

// `precision`: "auto", "float32" or "bf16"; `isa`: "auto" or a name, at most which is used.  Throws uf::Error
// (UF_ERR_UNSUPPORTED, UF_ERR_INVALID_ARGUMENT) when this CPU or build has no such thing.  Packs the weights; `spare`
// is null, or the plan again where nobody else needs its weights: each is freed once it is packed.
std::unique_ptr<Executor> make_cpu_executor(std::shared_ptr<const Plan> plan, std::shared_ptr<ThreadPool> pool,
                                            const std::string &precision, const std::string &isa,
                                            Plan *spare = nullptr);

// float32, one thread, plain loops with float64 sums.
std::unique_ptr<Executor> make_reference_executor(std::shared_ptr<const Plan> plan);

} // namespace uf
