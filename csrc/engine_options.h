// What the options of an engine ask for: threads, and which executor runs the plan.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

#include "executor.h"
#include "plan.h"
#include "thread_pool.h"

namespace uf {

struct EngineOptions {
    std::string device = "auto", precision = "auto", cpu_isa = "auto";
    int threads = 0;             // 0: one per physical core that this process may use
    std::string thread_affinity; // "2,4-7"; empty: where the opening thread may run
    int64_t thread_priority = 0; // 1..99: SCHED_FIFO
    int64_t keep_warm_ms = 0;    // 0: not kept warm
    bool refuse_embedded_code = false;
};

// All throw UF_ERR_INVALID_ARGUMENT for values that unet_fast.h does not allow.
int checked_threads(const EngineOptions &options);
ThreadSchedule checked_schedule(const EngineOptions &options);
std::chrono::milliseconds checked_pause(const EngineOptions &options);

struct Choice {
    std::unique_ptr<Executor> executor;
    std::string reason; // one sentence
};

// The one place that knows which executors there are.  Throws UF_ERR_UNSUPPORTED too, and what a GPU that was asked for
// by name makes of it.
Choice choose_executor(const std::shared_ptr<Plan> &plan, const std::shared_ptr<ThreadPool> &threads,
                       const EngineOptions &options);

} // namespace uf
