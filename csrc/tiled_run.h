// The way of images through tiles and passes, on one executor.
#pragma once

#include "context_pool.h"
#include "executor.h"
#include "images.h"
#include "plan.h"
#include "thread_pool.h"
#include "tiler.h"

namespace uf {

class TiledRun {
  public:
    // All must outlive it.
    TiledRun(const Plan &plan, ThreadPool &threads, const Executor &executor, ContextPool &contexts)
        : plan_(plan), threads_(threads), executor_(executor), contexts_(contexts) {}

    // `layout` is that of the images; `outputs` must have been checked for its height and width.  What the host has to
    // see (statistics, blending, resizing) must be in host memory, on both sides.
    void run(const Layout &layout, const ImageBatch &images, float threshold, const OutputBatch &outputs) const;

  private:
    void run_abutting(const Layout &layout, const ImageBatch &images, float threshold,
                      const OutputBatch &outputs) const;
    void run_blended(const Layout &layout, const ImageBatch &images, int index, float threshold,
                     const OutputView &output) const;
    void run_resized(const Layout &layout, const ImageBatch &images, float threshold, const OutputBatch &outputs) const;

    const Plan &plan_;
    ThreadPool &threads_;
    const Executor &executor_;
    ContextPool &contexts_;
};

} // namespace uf
