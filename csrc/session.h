// An explicit context of the C API.
#pragma once

#include <atomic>
#include <memory>

#include "context_pool.h"
#include "engine.h"
#include "images.h"

namespace uf {

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

} // namespace uf
