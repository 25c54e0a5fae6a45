// The engine: a checked plan, the device that runs it, and the way of an image through tiles and passes.
#pragma once

#include <atomic>
#include <list>
#include <memory>
#include <mutex>
#include <string>

#include "context_pool.h"
#include "executor.h"
#include "images.h"
#include "keep_warm.h"
#include "plan.h"
#include "thread_pool.h"
#include "tiler.h"

namespace uf {

struct EngineOptions {
    std::string device = "auto", precision = "auto", cpu_isa = "auto";
    int threads = 0;             // 0: one per physical core that this process may use
    std::string thread_affinity; // "2,4-7"; empty: wherever the process may run
    int64_t thread_priority = 0; // 1..99: SCHED_FIFO
    int64_t keep_warm_ms = 0;    // 0: not kept warm
    bool refuse_embedded_code = false;
};

// Immutable but for the pool of idle contexts and for what runs it, which changes to the CPU when the GPU of an engine
// on device "auto" is lost, and to other kernels when it is tuned; any thread may call.
class Engine {
  public:
    // Throws UF_ERR_INVALID_ARGUMENT or UF_ERR_UNSUPPORTED for options that cannot be met.
    Engine(std::shared_ptr<Plan> plan, const EngineOptions &options);

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

    void segment_here(const Backend &backend, const ImageBatch &images, const RunOptions &options, const Layout &layout,
                      const OutputBatch &outputs);
    void run_abutting(const Backend &backend, const Layout &layout, const ImageBatch &images, float threshold,
                      const OutputBatch &outputs);
    void run_blended(const Backend &backend, const Layout &layout, const ImageBatch &images, int index, float threshold,
                     const OutputView &output);
    void run_resized(const Backend &backend, const Layout &layout, const ImageBatch &images, float threshold,
                     const OutputBatch &outputs);

    const std::shared_ptr<Plan> plan_; // whose weights a CPU executor takes over
    const EngineOptions options_;
    const std::shared_ptr<ThreadPool> threads_;
    std::shared_ptr<const Backend> backend_; // under brief_mutex()
    std::list<Description> descriptions_;    // of all there were; under change_mutex_
    std::mutex change_mutex_;                // one change at a time
    std::unique_ptr<KeepWarm> keep_warm_;    // or null; ends first
};

// An explicit context: memory for one pass, one call at a time.
class Session {
  public:
    Session(std::shared_ptr<Engine> engine, const PassShape &shape);

    // Allocates nothing.  Throws UF_ERR_BUSY while another thread is inside.
    void run(const uf_image &image, float threshold, const uf_output &output, void *stream);

  private:
    void run_here(const ImageBatch &images, float threshold, const OutputBatch &outputs, void *stream);

    const std::shared_ptr<Engine> engine_;
    std::shared_ptr<const Engine::Backend> backend_; // that made the workspace, which has to go first
    std::unique_ptr<Workspace> workspace_;
    std::atomic_flag busy_ = ATOMIC_FLAG_INIT;
};

// Physical cores that this process may run on, at least 1.
int physical_cores();

} // namespace uf
