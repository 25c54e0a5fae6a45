// What all contexts of an engine share on one GPU: the kernels of a pass, ready to launch, and their weights.
#pragma once

#include <array>
#include <map>
#include <memory>
#include <vector>

#include "cuda/cuda_device.h"
#include "cuda/kernel_selection.h"

namespace uf::cuda {

// Immutable after construction.
class Program {
  public:
    // Loads the modules and uploads the weights that the first candidate of every step needs; those of all candidates
    // where `every_candidate`.  Throws what the driver reports.
    Program(std::shared_ptr<const Plan> plan, std::shared_ptr<const Device> device, Selection selection,
            bool every_candidate = false);

    const std::shared_ptr<const Plan> &shared_plan() const { return plan_; }
    const Plan &plan() const { return *plan_; }
    const std::shared_ptr<const Device> &device() const { return device_; }
    const Selection &selection() const { return selection_; }
    // The one of a step's candidates that runs.
    static const Candidate &chosen(const std::vector<Candidate> &candidates) { return candidates.front(); }
    bool has_loaded(const Candidate &candidate) const { return functions_.count(candidate.code) != 0; }
    CUfunction function(const Candidate &candidate) const { return functions_.at(candidate.code); }
    CUdeviceptr weight(size_t index) const { return weights_.get() + weight_offsets_.at(index); }

  private:
    void load(const Candidate &candidate);
    void upload_weights();

    const std::shared_ptr<const Plan> plan_;
    const std::shared_ptr<const Device> device_;
    const Selection selection_;
    std::map<size_t, Module> modules_; // by index into the kernel table
    std::map<const KernelCode *, CUfunction> functions_;
    std::map<size_t, size_t> weight_offsets_; // by index into the kernel table
    DeviceMemory weights_;
};

} // namespace uf::cuda
