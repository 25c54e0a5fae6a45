// The fake driver's world: devices, memory, streams, graphs, all on the host.
//
// "Device" addresses are mapped nowhere, so that touching them outside the API is a segmentation fault.  Work on a
// stream waits in a queue until something synchronises, so that reading a result too early, or overwriting a source too
// early, gives wrong numbers here as it does on a GPU.  Every misuse is also recorded as a violation.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "cuda/cuda_driver.h"

namespace fake {

using namespace uf::cuda;

constexpr double copied_bytes_per_microsecond = 2e6;
constexpr CUdeviceptr first_device_address = 0x100000000000;

struct DeviceProperties {
    std::string name = "Fake H200";
    int capability = 90;
    size_t memory_bytes = size_t{1} << 30;
    int shared_bytes = 232448;
};

// What a kernel is: an entry of the JSON that stands in for machine code.  See kernels.cpp for its members.
struct KernelFunction {
    std::shared_ptr<const nlohmann::json> description;
    int device = 0;
    int allowed_shared_bytes = 48 * 1024;
};

struct Launch {
    CUfunction function = nullptr;
    unsigned grid[3] = {}, block[3] = {}, shared_bytes = 0;
    std::vector<uint64_t> arguments; // bits of each parameter, hidden ones included
};

struct Allocation {
    int device = 0;
    std::vector<std::byte> bytes;
};

struct Stream {
    int device = 0;
    std::deque<std::function<void()>> queue;
};

struct Event {
    int device = 0;
    bool timed = false;
    CUstream stream = nullptr; // of the last record
    bool reached = false;      // since then
    bool idle = false;         // the stream had nothing to do at the last record
    double microseconds = 0;   // on the clock at that time
};

struct Graph {
    struct Node {
        Launch launch;
        std::vector<CUgraphNode> after;
        std::vector<bool> programmatic; // of each edge
    };
    std::vector<std::unique_ptr<Node>> nodes;
};

struct GraphExec {
    CUgraph source = nullptr;
    int device = 0;
    std::vector<std::pair<CUgraphNode, Launch>> launches; // in order
};

class State {
  public:
    std::recursive_mutex mutex;
    std::vector<DeviceProperties> devices = {DeviceProperties{}};
    int driver_version = 13000;
    bool initialised = false;
    std::vector<std::string> violations;

    // Failures on demand.
    long calls = 0, fail_at = 0; // the call with this number fails; 0: none
    int fail_with = 0, lost = 0;
    bool fail_is_lasting = false;
    std::map<int, long> calls_to_loss; // of devices that will be lost
    std::string last_call;

    std::map<int, int> retained; // device -> references to its primary context
    std::map<CUdeviceptr, Allocation> memory;
    std::map<const std::byte *, std::unique_ptr<std::vector<std::byte>>> pinned;
    std::map<const void *, std::unique_ptr<Stream>> streams;
    Stream legacy;   // the default stream, whose work is done before the next call
    Stream arriving; // copies from ordinary host memory to a device, which end after the call that makes them
    std::map<const void *, std::unique_ptr<Event>> events;
    std::map<const void *, std::pair<int, std::vector<CUfunction>>> modules;
    std::map<const void *, std::unique_ptr<KernelFunction>> functions;
    std::map<const void *, std::unique_ptr<Graph>> graphs;
    std::map<const void *, std::unique_ptr<GraphExec>> executables;
    CUdeviceptr next_address = first_device_address;
    size_t peak_bytes = 0, bus_bytes = 0; // bus: between host and device memory
    long kernels_run = 0, programmatic_edges = 0;
    std::vector<long> kernels_run_on = {0};            // by device
    std::map<std::string, std::string> candidates_run; // by name of the op, the latest
    long streams_busy_at_once = 0;                     // at most, when a graph was launched
    double microseconds = 0; // a clock that only kernels, by their description, and copies on the device move

    void violate(const std::string &text) { violations.push_back(last_call + ": " + text); }
    // The host's copy of device memory; null, and a violation, where the range is not within one allocation.
    std::byte *at(CUdeviceptr address, size_t bytes, int device);
    bool is_pinned(const void *address, size_t bytes) const;
    size_t used_bytes(int device) const;
    void drain(Stream &stream);
    void drain_all();
};

State &state();

// Checks a launch against the kernel's description and, once its turn on the stream comes, runs the reference.
void check_launch(const Launch &launch, const KernelFunction &function, int device);
void run_kernel(const Launch &launch, const KernelFunction &function);

} // namespace fake
