// Contexts that wait for the next call of their shape, so that it need not allocate.
#pragma once

#include <cstddef>
#include <memory>
#include <mutex>
#include <vector>

#include "executor.h"

namespace uf {

// For what takes a few pointer operations, in any engine.  It is taken around fork, so that the child never finds it
// locked by a thread that does not exist there.
std::mutex &brief_mutex();

// A context with the memory of the engine around it, which is kept for the next call.
struct Workspace {
    std::unique_ptr<Context> context;
    std::vector<std::byte> pixels, results;
    std::vector<float> values;
    // Memory of at least so many bytes for the results of a full batch; the context's own where that saves a copy.
    std::byte *staging(size_t bytes);
    // Memory for at least so many numbers between pixels and results.
    float *scratch(size_t count);
    double bytes() const;
    std::vector<ImageView> images;
    std::vector<PixelTransform> transforms;
    std::vector<OutputView> outputs;
};

// A context for one pass.  Throws UF_ERR_OUT_OF_MEMORY where the pass needs more than the machine has.
std::unique_ptr<Workspace> make_workspace(const Executor &executor, const PassShape &shape);

class ContextPool {
  public:
    // What waits takes at most this much; the longest unused goes first, and a context above it is never kept.
    static constexpr double most_idle_bytes = 512.0 * 1024 * 1024;

    // Which must outlive the pool.
    explicit ContextPool(const Executor &executor);
    ContextPool(const ContextPool &) = delete;
    ContextPool &operator=(const ContextPool &) = delete;

    // One that waits, or a new one.  A call of a shape that has been seen allocates nothing.
    std::unique_ptr<Workspace> take(const PassShape &shape);
    // That which was used last; null where none waits.
    std::unique_ptr<Workspace> take_latest();
    void give_back(std::unique_ptr<Workspace> workspace);

  private:
    const Executor &executor_;
    std::vector<std::unique_ptr<Workspace>> idle_; // the latest used last
};

} // namespace uf
