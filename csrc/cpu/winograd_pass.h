// The part of the CPU executor that runs the ops in Winograd's form: how their tiles are shared out among tasks, and
// what follows a tile while the caches hold it.
#pragma once

#include <vector>

#include "activations.h"
#include "cpu_program.h"
#include "pass.h"
#include "winograd.h"

namespace uf {

// For passes of at most `group` images of one shape.
class WinogradPass {
  public:
    // `program` and `buffers`, which are those of the plan, laid out, have to outlive it.
    WinogradPass(const CpuProgram &program, const std::vector<Activations> &buffers, int group);
    // Whether the op is run here.
    static bool runs(const PreparedOp &prepared) { return !prepared.winograd.empty(); }

    // What memory it needs, and where it gets it, aligned to a cache line.  Worker w has scratch + w * scratch_size.
    size_t transformed_bytes() const { return transformed_size_; } // windows that all workers share
    size_t scratch_bytes() const;                                  // per worker
    void place(std::byte *transformed, std::byte *scratch, size_t scratch_size);

    // Runs op number `index`.
    void run(size_t index, const Pass &pass) const;

  private:
    // In a worker's scratch: what a Winograd convolution works with, then features and logits of a head.
    struct WinogradScratch {
        int64_t features = 0, logits = 0, bytes = 0;
    };

    WinogradScratch winograd_scratch(const PreparedOp &prepared) const;
    const std::vector<WinogradSchedule> &schedules_of(const PreparedOp &prepared) const;
    void run_band(const PreparedOp &prepared, size_t number, const Pass &pass, int64_t band_begin,
                  int64_t band_end) const;
    void finish_range(const PreparedOp &prepared, size_t number, const ChannelBlock &block, const WinogradPhase &phase,
                      int64_t begin, int64_t end, const Lines &lines, std::byte *features) const;
    void finish_block(const PreparedOp &prepared, size_t number, const ChannelBlock &block, int64_t begin,
                      int64_t end) const;
    WinogradTarget output_target(const Op &op, const WinogradConvolution &convolution, const TileRun &run) const;
    WinogradTarget head_target(const PreparedOp &prepared, const TileRun &run, std::byte *features) const;
    void frame_and_pool(const Op &op, const WinogradConvolution &convolution, const ChannelBlock &block,
                        const TileRun &run) const;
    void finish_head(const PreparedOp &prepared, const Pass &pass, int64_t begin, int64_t end, std::byte *features,
                     std::byte *logits) const;
    std::byte *scratch_of(int worker) const { return scratch_ + static_cast<size_t>(worker) * scratch_size_; }

    const CpuProgram &program_;
    const Activations *buffers_;                           // as in the plan
    std::vector<std::vector<WinogradSchedule>> schedules_; // [op][convolution]
    std::byte *transformed_ = nullptr;                     // windows of a whole pass
    size_t transformed_size_ = 0;
    std::byte *scratch_ = nullptr;
    size_t scratch_size_ = 0; // per worker
};

} // namespace uf
