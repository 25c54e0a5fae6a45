// The engine: a checked plan and what runs it, which may change while it lives.
#pragma once

#include <list>
#include <memory>
#include <mutex>
#include <string>

#include "context_pool.h"
#include "engine_options.h"
#include "executor.h"
#include "images.h"
#include "keep_warm.h"
#include "plan.h"
#include "thread_pool.h"
#include "tiled_run.h"
#include "tiler.h"

namespace uf {

// Immutable but for the pool of idle contexts and for what runs it, which changes to the CPU when the GPU of an engine
// on device "auto" is lost, and to other kernels when it is tuned; any thread may call.
class Engine {
  public:
    // Throws UF_ERR_INVALID_ARGUMENT or UF_ERR_UNSUPPORTED for options that cannot be met.  A CPU executor that is
    // chosen here takes over the weights of `plan`.
    Engine(const std::shared_ptr<Plan> &plan, const EngineOptions &options);

    // An executor with what info() says about it.
    struct Description {
        std::string device, reason, precision, isa, tuning, tuning_file;
    };
    struct Backend {
        std::unique_ptr<Executor> executor;
        const Description *description = nullptr; // of the engine
        std::unique_ptr<ContextPool> contexts;
    };

    const Plan &plan() const { return *plan_; }
    // What runs the engine now.  Whoever holds it may go on with it when another takes its place.
    std::shared_ptr<const Backend> backend() const;
    // The strings live as long as the engine.
    uf_info info() const;

    // `layout` is that of the images and options; `outputs` must have been checked for its height and width.  On a CPU
    // it allocates nothing where a call of the same sizes has returned before and no other is running.
    void segment(const ImageBatch &images, const RunOptions &options, const Layout &layout, const OutputBatch &outputs);

    // See uf_engine_profile.
    Profile profile(const PassShape &shape) const { return backend()->executor->profile(shape); }
    // See uf_engine_tune.
    void tune(const PassShape &shape, const std::string &path);

    // For what failed on `lost` with `error`: whether it is worth another try, because that backend's GPU was lost and
    // the engine, opened with device "auto", now runs on the CPU.
    bool fall_back(const std::shared_ptr<const Backend> &lost, const Error &error);

  private:
    std::shared_ptr<const Backend> make_backend(std::unique_ptr<Executor> executor, const std::string &reason);
    // `next` takes the place of `old`, unless another has done so.
    void replace(const std::shared_ptr<const Backend> &old, std::shared_ptr<const Backend> next);

    TiledRun run_on(const Backend &backend) const;

    const std::shared_ptr<const Plan> plan_; // with weights where the engine was opened on a GPU, which may be lost
    const EngineOptions options_;
    const std::shared_ptr<ThreadPool> threads_;
    std::shared_ptr<const Backend> backend_; // under brief_mutex()
    std::list<Description> descriptions_;    // of all there were; under change_mutex_
    std::mutex change_mutex_;                // one change at a time
    std::unique_ptr<KeepWarm> keep_warm_;    // or null; ends first
};

} // namespace uf
