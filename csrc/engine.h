// The engine: a checked plan, the device that runs it, and the way of an image through tiles and passes.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "context_pool.h"
#include "executor.h"
#include "images.h"
#include "plan.h"
#include "thread_pool.h"
#include "tiler.h"

namespace uf {

struct EngineOptions {
    std::string device = "auto", precision = "auto", cpu_isa = "auto";
    int threads = 0; // 0: one per physical core that this process may use
    bool refuse_embedded_code = false;
};

// Immutable but for the pool of idle contexts and, on device "auto", the change to the CPU when the GPU is lost; any
// thread may call.
class Engine {
  public:
    // Throws UF_ERR_INVALID_ARGUMENT or UF_ERR_UNSUPPORTED for options that cannot be met.
    Engine(std::shared_ptr<const Plan> plan, const EngineOptions &options);

    const Plan &plan() const { return *plan_; }
    const Executor &executor() const { return *backend().executor; }
    // The strings live as long as the engine.
    uf_info info() const;

    // `layout` is that of the images and options; `outputs` must have been checked for its height and width.
    void segment(const ImageBatch &images, const RunOptions &options, const Layout &layout, const OutputBatch &outputs);

    // For what failed on `lost` with `error`: whether it is worth another try, because that executor's GPU was lost and
    // the engine, opened with device "auto", now runs on the CPU.
    bool fall_back(const Executor &lost, const Error &error);

  private:
    // An executor with what info() says about it.
    struct Backend {
        std::unique_ptr<Executor> executor;
        std::string device, reason, precision, isa;
        std::unique_ptr<ContextPool> contexts;
    };
    Backend make_backend(std::unique_ptr<Executor> executor, const std::string &reason) const;
    const Backend &backend() const { return *backend_.load(); }

    void segment_here(const ImageBatch &images, const RunOptions &options, const Layout &layout,
                      const OutputBatch &outputs);
    void run_abutting(const Layout &layout, const ImageBatch &images, const std::vector<PixelTransform> &transforms,
                      float threshold, const OutputBatch &outputs);
    void run_blended(const Layout &layout, const ImageBatch &images, int index, const PixelTransform &transform,
                     float threshold, const OutputView &output);
    void run_resized(const Layout &layout, const ImageBatch &images, const std::vector<PixelTransform> &transforms,
                     float threshold, const OutputBatch &outputs);

    const std::shared_ptr<const Plan> plan_;
    const EngineOptions options_;
    const std::shared_ptr<ThreadPool> threads_;
    Backend first_, fallback_; // both stay: other threads may still be in the first one
    std::atomic<const Backend *> backend_;
    std::mutex fallback_mutex_;
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
    const Executor *executor_; // that made the workspace
    std::unique_ptr<Workspace> workspace_;
    std::atomic_flag busy_ = ATOMIC_FLAG_INIT;
};

// Physical cores that this process may run on, at least 1.
int physical_cores();

} // namespace uf
