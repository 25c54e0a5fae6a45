// Kernels one after the other over a fixed number of images, as an instantiated CUDA graph: those of a pass, or some.
#pragma once

#include <array>
#include <vector>

#include "cuda/pass_memory.h"
#include "cuda/program.h"
#include "executor.h"

namespace uf::cuda {

// What may differ between two launches of a graph.  Addresses on the device; strides in elements.
struct ImageArguments {
    PixelType type = PixelType::uint8;
    CUdeviceptr data = 0;
    std::array<int64_t, 4> strides{}; // image, row, pixel, channel
    bool operator==(const ImageArguments &other) const {
        return type == other.type && data == other.data && strides == other.strides;
    }
};
struct ResultArguments {
    ResultType type = ResultType::mask;
    CUdeviceptr data = 0;
    std::array<int64_t, 2> strides{}; // image, row
    std::array<int64_t, 2> written{}; // rows and columns, from the first
    float logit_threshold = 0.0F;
    bool operator==(const ResultArguments &other) const {
        return type == other.type && data == other.data && strides == other.strides && written == other.written &&
               logit_threshold == other.logit_threshold;
    }
};

// Sizes that the symbols of a step's kernels stand for.
LaunchSizes launch_sizes(const Plan &plan, const Op &op, const PassShape &shape);

// A step, with the candidate that runs; null: the first of those for the types of image and result.
struct PlannedLaunch {
    const Step *step = nullptr;
    const Candidate *candidate = nullptr;
};

// All steps of a pass.
std::vector<PlannedLaunch> whole_pass(const Program &program);

class PassGraph {
  public:
    // `program` and `memory` must outlive it.  The device's context must be current, here and in all that follows.
    PassGraph(const Program &program, const PassShape &shape, const PassMemory &memory, const ImageArguments &image,
              const ResultArguments &result, const std::vector<PlannedLaunch> &launches);

    // For the launches to come; those under way keep theirs.
    void set(const ImageArguments &image, const ResultArguments &result);
    void upload(CUstream stream) const;
    void launch(CUstream stream) const;

  private:
    struct Node {
        PlannedLaunch planned;
        LaunchSizes sizes;
        CUgraphNode handle = nullptr;
    };
    // A launch as the driver takes it; points into itself.
    struct Parameters {
        CUDA_KERNEL_NODE_PARAMS launch{};
        std::array<uint64_t, 72> values{}; // the reader allows 64 arguments and 8 hidden ones
        std::array<void *, 72> pointers{};
    };

    static const Candidate &candidate_of(const Node &node, const ImageArguments &image, const ResultArguments &result);
    void fill(Node &node, const ImageArguments &image, const ResultArguments &result, Parameters &parameters) const;
    uint64_t value(const KernelArgument &argument, const Node &node, const ImageArguments &image,
                   const ResultArguments &result) const;
    bool all_programmatic() const;
    void add_nodes();
    void update(Step::Role role, const ImageArguments &image, const ResultArguments &result);

    const Program &program_;
    const Driver &api_;
    const PassMemory &memory_;
    std::vector<Node> nodes_;
    ImageArguments image_;
    ResultArguments result_;
    Graph graph_; // owns the nodes, which the handles of updates name
    GraphExec executable_;
};

} // namespace uf::cuda
