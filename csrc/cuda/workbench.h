// Kernels run by themselves: memory of one pass with an image in it, and a clock.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "cuda/pass_graph.h"
#include "cuda/pass_memory.h"
#include "cuda/program.h"

namespace uf::cuda {

class Workbench {
  public:
    // The device's context must be current, here and in all that follows.  `program` must outlive it.
    Workbench(const Program &program, const PassShape &shape);

    // What steps that read the image or write the result get from now on: random pixels of that type, or staging.
    void set_image(PixelType type);
    void set_result(ResultType type);

    // Puts NaN (for a mask: 255) where `op` writes.
    void poison_outputs(const Op &op);
    // What `op` has written, bit by bit; done on return.
    std::vector<std::byte> outputs(const Op &op);

    // Runs the launches once, one after the other; done on return.
    void run(const std::vector<PlannedLaunch> &launches);

    // Seconds that one round of the launches takes, in a graph that repeats them so often that the graph's own start
    // does not count.  Made first, so that several can be measured by turns.
    class Clock {
      public:
        Clock(Workbench &bench, std::vector<PlannedLaunch> launches);
        double seconds();

      private:
        Workbench &bench_;
        int rounds_ = 1;
        std::unique_ptr<PassGraph> graph_;
    };

    // Seconds between two marks around what `enqueue` puts on the stream.  It is put there once before, untimed: at the
    // first mark the GPU is then busy, so that the time the host takes to submit the rest does not count.
    template <class Enqueue> double timed(const Enqueue &enqueue) {
        enqueue(stream_.get());
        api().event_record(begin_.get(), stream_.get());
        enqueue(stream_.get());
        return elapsed();
    }

    const Driver &api() const { return program_.device()->api(); }
    const PassMemory &memory() const { return memory_; }

  private:
    // Address and bytes of everything that an op writes.
    std::vector<std::pair<CUdeviceptr, size_t>> places(const Op &op) const;
    void upload(const void *data, size_t bytes, CUdeviceptr to);
    void zero_scratch();
    double elapsed();
    std::unique_ptr<PassGraph> graph_of(const std::vector<PlannedLaunch> &launches) const;

    const Program &program_;
    const PassShape shape_;
    const PassMemory memory_;
    const Stream stream_;
    const Event begin_, end_;
    ImageArguments image_;
    ResultArguments result_;
};

// Middle of some times.
double median(std::vector<double> values);

} // namespace uf::cuda
