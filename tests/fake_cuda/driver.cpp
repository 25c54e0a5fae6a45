// A libcuda.so.1 without a GPU, for the tests of csrc/cuda: the entry points that the library uses, see state.h.
#include <algorithm>
#include <cstring>
#include <thread>

#include "state.h"

using namespace fake;
using nlohmann::json;

namespace fake {

State &state() {
    static State *const one = new State;
    return *one;
}

std::byte *State::at(CUdeviceptr address, size_t bytes, int device) {
    auto found = memory.upper_bound(address);
    if (found != memory.begin()) {
        --found;
        const CUdeviceptr offset = address - found->first;
        if (offset <= found->second.bytes.size() && bytes <= found->second.bytes.size() - offset) {
            if (found->second.device != device)
                violate("memory of another device");
            return found->second.bytes.data() + offset;
        }
    }
    violate("a range of " + std::to_string(bytes) + " bytes is not within any allocation");
    return nullptr;
}

bool State::is_pinned(const void *address, size_t bytes) const {
    const auto *const first = static_cast<const std::byte *>(address);
    return std::any_of(pinned.begin(), pinned.end(), [&](const auto &entry) {
        return first >= entry.first && first + bytes <= entry.first + entry.second->size();
    });
}

size_t State::used_bytes(int device) const {
    size_t total = 0;
    for (const auto &entry : memory)
        total += entry.second.device == device ? entry.second.bytes.size() : 0;
    return total;
}

void State::drain(Stream &stream) {
    while (!stream.queue.empty()) {
        const std::function<void()> work = std::move(stream.queue.front());
        stream.queue.pop_front();
        work();
    }
}

void State::drain_all() {
    drain(arriving);
    for (const auto &entry : streams)
        drain(*entry.second);
}

} // namespace fake

namespace {

thread_local std::vector<CUcontext> current;

// The primary context of device i has the address i + 1.
CUcontext context_of(int device) { return reinterpret_cast<CUcontext>(static_cast<uintptr_t>(device) + 1); }
int current_device() {
    return current.empty() ? -1 : static_cast<int>(reinterpret_cast<uintptr_t>(current.back())) - 1;
}

constexpr CUresult invalid_value = 1, invalid_handle = 400, illegal_address = 700;

enum class Needs { nothing, driver, context };

// Runs the body of an entry point under the lock, unless the call is to fail.  A call that gives something back
// (`frees`) does so even then, as the driver's do, and without a current context.
template <class Body> CUresult call(const char *name, Needs needs, bool frees, const Body &body) {
    State &s = state();
    const std::lock_guard<std::recursive_mutex> lock(s.mutex);
    s.last_call = name;
    ++s.calls;
    s.drain(s.legacy);
    CUresult failure = s.lost;
    if (failure == 0 && s.calls == s.fail_at) {
        failure = s.fail_with;
        if (s.fail_is_lasting)
            s.lost = failure;
    }
    const auto doomed = s.calls_to_loss.find(current_device());
    if (failure == 0 && doomed != s.calls_to_loss.end() && --doomed->second < 0)
        failure = illegal_address;
    if (failure != 0 && !frees)
        return failure;
    if (needs != Needs::nothing && !s.initialised) {
        s.violate("before cuInit");
        return 3;
    }
    if (needs == Needs::context && !frees && current_device() < 0) {
        s.violate("no current context");
        return 201;
    }
    const CUresult result = body(s);
    return failure != 0 ? failure : result;
}

// Looks a handle up among the live ones.
template <class Map> auto *find(State &s, Map &map, const void *handle, const char *what) {
    const auto found = map.find(handle);
    if (found == map.end()) {
        s.violate(std::string("not a live ") + what);
        return static_cast<typename Map::mapped_type::element_type *>(nullptr);
    }
    return found->second.get();
}

template <class Map> CUresult destroy(State &s, Map &map, const void *handle, const char *what) {
    if (find(s, map, handle, what) == nullptr)
        return invalid_handle;
    map.erase(handle);
    return 0;
}

template <class Handle, class Object> Handle keep(std::map<const void *, std::unique_ptr<Object>> &map, Object object) {
    auto owned = std::make_unique<Object>(std::move(object));
    const void *const key = owned.get();
    map.emplace(key, std::move(owned));
    return reinterpret_cast<Handle>(const_cast<void *>(key));
}

bool is_legacy(CUstream stream) { return reinterpret_cast<uintptr_t>(stream) == 1; }

// A stream that calls may use now.  The legacy default stream by its other name, 1, comes after all others and before
// all that follows; null is not accepted, as the library has a stream of its own.
Stream *stream_of(State &s, CUstream stream) {
    s.drain(s.arriving);
    if (is_legacy(stream)) {
        s.drain_all();
        s.legacy.device = current_device();
        return &s.legacy;
    }
    Stream *const found = find(s, s.streams, stream, "stream");
    if (found != nullptr && found->device != current_device())
        s.violate("stream of another context");
    return found;
}

// Copies the parameters as the signature says, since the caller may reuse his memory.
CUresult read_launch(State &s, const CUDA_KERNEL_NODE_PARAMS &given, Launch &launch) {
    const KernelFunction *const function = find(s, s.functions, given.func, "function");
    if (function == nullptr)
        return invalid_handle;
    launch.function = given.func;
    const unsigned numbers[] = {given.gridDimX,  given.gridDimY,  given.gridDimZ,
                                given.blockDimX, given.blockDimY, given.blockDimZ};
    std::copy_n(numbers, 3, launch.grid);
    std::copy_n(numbers + 3, 3, launch.block);
    launch.shared_bytes = given.sharedMemBytes;
    if (given.extra != nullptr)
        s.violate("kernelParams and extra are both given");
    const json &arguments = (*function->description)["arguments"];
    for (const json &argument : arguments) {
        const std::string &kind = argument["kind"];
        const bool narrow = kind == "int32" || kind == "float32" || kind == "logit_threshold";
        uint64_t bits = 0;
        std::memcpy(&bits, given.kernelParams[launch.arguments.size()], narrow ? 4 : 8);
        launch.arguments.push_back(bits);
    }
    for (int i = 0; i < (*function->description)["hidden"].get<int>(); ++i) {
        uint64_t bits = 0;
        std::memcpy(&bits, given.kernelParams[launch.arguments.size()], 8);
        launch.arguments.push_back(bits);
    }
    check_launch(launch, *function, current_device());
    return 0;
}

// The description for as long as the process lives: the JSON library allocates to destroy, which a test may let fail.
std::shared_ptr<const json> kept(const json &description) {
    static std::map<std::string, std::shared_ptr<const json>> all;
    std::shared_ptr<const json> &place = all[description.dump()];
    if (place == nullptr)
        place = std::make_shared<const json>(description);
    return place;
}

} // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

// ---- the control of the tests

// {"driver": 13000, "devices": [{"name": "...", "capability": 90, "memory": 1073741824, "shared": 232448}]}
EXPORT void fake_cuda_configure(const char *text) {
    State &s = state();
    const std::lock_guard<std::recursive_mutex> lock(s.mutex);
    const json options = json::parse(text);
    s.driver_version = options.value("driver", 13000);
    s.violations.clear();
    s.kernels_run = s.programmatic_edges = 0;
    s.peak_bytes = 0;
    s.streams_busy_at_once = 0;
    s.devices.clear();
    for (const json &device : options.value("devices", json::array({json::object()}))) {
        DeviceProperties properties;
        properties.name = device.value("name", properties.name);
        properties.capability = device.value("capability", properties.capability);
        properties.memory_bytes = device.value("memory", properties.memory_bytes);
        properties.shared_bytes = device.value("shared", properties.shared_bytes);
        s.devices.push_back(properties);
    }
    s.kernels_run_on.assign(s.devices.size(), 0);
}

// The n-th call from now fails with `error`; if `lasting`, so do all that follow.  n = 0: no call fails any more.
EXPORT void fake_cuda_fail(long n, int error, int lasting) {
    State &s = state();
    const std::lock_guard<std::recursive_mutex> lock(s.mutex);
    s.fail_at = n > 0 ? s.calls + n : 0;
    s.fail_with = error;
    s.fail_is_lasting = lasting != 0;
    s.lost = 0;
}

// The device is lost after so many more calls with its context current; calls < 0: it is there again.
EXPORT void fake_cuda_lose(int device, long calls) {
    State &s = state();
    const std::lock_guard<std::recursive_mutex> lock(s.mutex);
    s.calls_to_loss.erase(device);
    if (calls >= 0)
        s.calls_to_loss[device] = calls;
}

// Counts, live objects and violations as JSON; valid until the next call of this.
EXPORT const char *fake_cuda_report() {
    State &s = state();
    const std::lock_guard<std::recursive_mutex> lock(s.mutex);
    static std::string text;
    int contexts = 0;
    for (const auto &entry : s.retained)
        contexts += entry.second;
    json live = {{"contexts", contexts},        {"memory", s.memory.size()},           {"pinned", s.pinned.size()},
                 {"streams", s.streams.size()}, {"events", s.events.size()},           {"modules", s.modules.size()},
                 {"graphs", s.graphs.size()},   {"executables", s.executables.size()}, {"current", current.size()}};
    text = json{{"calls", s.calls},
                {"last_call", s.last_call},
                {"kernels_run", s.kernels_run},
                {"kernels_run_on", s.kernels_run_on},
                {"programmatic_edges", s.programmatic_edges},
                {"peak_bytes", s.peak_bytes},
                {"bus_bytes", s.bus_bytes},
                {"streams_busy_at_once", s.streams_busy_at_once},
                {"candidates_run", s.candidates_run},
                {"not_arrived", s.arriving.queue.size()},
                {"live", live},
                {"violations", s.violations}}
               .dump();
    return text.c_str();
}

// ---- the driver

EXPORT CUresult cuInit(unsigned flags) {
    return call("cuInit", Needs::nothing, false, [&](State &s) {
        if (s.devices.empty())
            return 100;
        s.initialised = true;
        return flags == 0 ? 0 : invalid_value;
    });
}

EXPORT CUresult cuDriverGetVersion(int *version) {
    return call("cuDriverGetVersion", Needs::nothing, false, [&](State &s) {
        *version = s.driver_version;
        return 0;
    });
}

EXPORT CUresult cuGetErrorName(CUresult error, const char **text) {
    static const std::map<CUresult, const char *> names = {
        {1, "CUDA_ERROR_INVALID_VALUE"},   {2, "CUDA_ERROR_OUT_OF_MEMORY"},       {100, "CUDA_ERROR_NO_DEVICE"},
        {200, "CUDA_ERROR_INVALID_IMAGE"}, {209, "CUDA_ERROR_NO_BINARY_FOR_GPU"}, {700, "CUDA_ERROR_ILLEGAL_ADDRESS"}};
    const auto found = names.find(error);
    *text = found == names.end() ? nullptr : found->second;
    return found == names.end() ? invalid_value : 0;
}

EXPORT CUresult cuGetErrorString(CUresult error, const char **text) {
    *text = error == 700 ? "an illegal memory access was encountered" : nullptr;
    return *text == nullptr ? invalid_value : 0;
}

EXPORT CUresult cuDeviceGetCount(int *count) {
    return call("cuDeviceGetCount", Needs::driver, false, [&](State &s) {
        *count = static_cast<int>(s.devices.size());
        return 0;
    });
}

EXPORT CUresult cuDeviceGet(CUdevice *device, int ordinal) {
    return call("cuDeviceGet", Needs::driver, false, [&](State &s) {
        if (ordinal < 0 || ordinal >= static_cast<int>(s.devices.size()))
            return 101;
        *device = ordinal;
        return 0;
    });
}

EXPORT CUresult cuDeviceGetName(char *name, int length, CUdevice device) {
    return call("cuDeviceGetName", Needs::driver, false, [&](State &s) {
        std::strncpy(name, s.devices.at(static_cast<size_t>(device)).name.c_str(), static_cast<size_t>(length));
        return 0;
    });
}

EXPORT CUresult cuDeviceGetAttribute(int *value, int attribute, CUdevice device) {
    return call("cuDeviceGetAttribute", Needs::driver, false, [&](State &s) {
        const DeviceProperties &properties = s.devices.at(static_cast<size_t>(device));
        switch (attribute) {
        case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR:
            *value = properties.capability / 10;
            return 0;
        case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR:
            *value = properties.capability % 10;
            return 0;
        case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN:
            *value = properties.shared_bytes;
            return 0;
        case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT:
            *value = 132;
            return 0;
        case CU_DEVICE_ATTRIBUTE_CLOCK_RATE:
            *value = 1'980'000;
            return 0;
        default:
            s.violate("unknown attribute");
            return invalid_value;
        }
    });
}

EXPORT CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
    return call("cuDevicePrimaryCtxRetain", Needs::driver, false, [&](State &s) {
        ++s.retained[device];
        *context = context_of(device);
        return 0;
    });
}

EXPORT CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) {
    return call("cuDevicePrimaryCtxRelease", Needs::driver, true, [&](State &s) {
        if (s.retained[device] == 0) {
            s.violate("released more often than retained");
            return 201;
        }
        --s.retained[device];
        return 0;
    });
}

EXPORT CUresult cuCtxPushCurrent_v2(CUcontext context) {
    return call("cuCtxPushCurrent", Needs::driver, false, [&](State &s) {
        const int device = static_cast<int>(reinterpret_cast<uintptr_t>(context)) - 1;
        if (s.retained[device] == 0) {
            s.violate("not a live context");
            return 201;
        }
        current.push_back(context);
        return 0;
    });
}

EXPORT CUresult cuCtxPopCurrent_v2(CUcontext *context) {
    return call("cuCtxPopCurrent", Needs::driver, true, [&](State &s) {
        if (current.empty()) {
            s.violate("nothing to pop");
            return 201;
        }
        *context = current.back();
        current.pop_back();
        return 0;
    });
}

// The "image" is JSON: {"target": "sm_90", "driver": 12080, "kernels": {entry: description}}.
EXPORT CUresult cuModuleLoadDataEx(CUmodule *module, const void *image, unsigned count, int *options, void **values) {
    return call("cuModuleLoadDataEx", Needs::context, false, [&](State &s) {
        const json code = json::parse(static_cast<const char *>(image), nullptr, false);
        if (code.is_discarded()) {
            for (unsigned i = 0; i < count; ++i)
                if (options[i] == CU_JIT_ERROR_LOG_BUFFER)
                    std::strcpy(static_cast<char *>(values[i]), "not a fake image");
            return 200;
        }
        const std::string &target = code["target"];
        const int capability = s.devices.at(static_cast<size_t>(current_device())).capability;
        const bool ptx = target.rfind("compute_", 0) == 0;
        const int wanted = std::stoi(target.substr(ptx ? 8 : 3));
        const bool fits = ptx || wanted >= 90 ? (ptx ? wanted <= capability : wanted == capability)
                                              : wanted / 10 == capability / 10 && wanted <= capability;
        if (!fits)
            return 209;
        if (code["driver"].get<int>() > s.driver_version)
            return ptx ? 222 : 200;
        std::vector<CUfunction> functions;
        for (const json &description : code["kernels"]) {
            KernelFunction function;
            function.description = kept(description);
            function.device = current_device();
            functions.push_back(keep<CUfunction>(s.functions, std::move(function)));
        }
        static uintptr_t next = 0x1000;
        *module = reinterpret_cast<CUmodule>(next += 16);
        s.modules.emplace(*module, std::pair(current_device(), functions));
        return 0;
    });
}

EXPORT CUresult cuModuleUnload(CUmodule module) {
    return call("cuModuleUnload", Needs::context, true, [&](State &s) {
        const auto found = s.modules.find(module);
        if (found == s.modules.end()) {
            s.violate("not a live module");
            return invalid_handle;
        }
        s.drain_all();
        for (const CUfunction function : found->second.second)
            s.functions.erase(function);
        s.modules.erase(found);
        return 0;
    });
}

EXPORT CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
    return call("cuModuleGetFunction", Needs::context, false, [&](State &s) {
        const auto found = s.modules.find(module);
        if (found == s.modules.end()) {
            s.violate("not a live module");
            return invalid_handle;
        }
        for (const CUfunction candidate : found->second.second)
            if ((*s.functions.at(candidate)->description)["entry"] == name) {
                *function = candidate;
                return 0;
            }
        return 500;
    });
}

EXPORT CUresult cuFuncSetAttribute(CUfunction function, int attribute, int value) {
    return call("cuFuncSetAttribute", Needs::context, false, [&](State &s) {
        KernelFunction *const found = find(s, s.functions, function, "function");
        if (found == nullptr)
            return invalid_handle;
        if (attribute != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES ||
            value > s.devices.at(static_cast<size_t>(found->device)).shared_bytes)
            return invalid_value;
        found->allowed_shared_bytes = value;
        return 0;
    });
}

EXPORT CUresult cuMemAlloc_v2(CUdeviceptr *address, size_t bytes) {
    return call("cuMemAlloc", Needs::context, false, [&](State &s) {
        const int device = current_device();
        if (bytes == 0)
            return invalid_value;
        if (bytes > s.devices.at(static_cast<size_t>(device)).memory_bytes - s.used_bytes(device))
            return 2;
        // All ones are NaN in every float format.
        s.memory[s.next_address] = {device, std::vector<std::byte>(bytes, std::byte{0xFF})};
        *address = s.next_address;
        s.next_address += (bytes + 4096 + 511) / 512 * 512; // a gap, so that nobody runs from one into the next
        s.peak_bytes = std::max(s.peak_bytes, s.used_bytes(device));
        return 0;
    });
}

EXPORT CUresult cuMemFree_v2(CUdeviceptr address) {
    return call("cuMemFree", Needs::context, true, [&](State &s) {
        s.drain_all();
        if (s.memory.erase(address) == 0) {
            s.violate("not a live allocation");
            return invalid_value;
        }
        return 0;
    });
}

EXPORT CUresult cuMemHostAlloc(void **address, size_t bytes, unsigned) {
    return call("cuMemHostAlloc", Needs::context, false, [&](State &s) {
        auto owned = std::make_unique<std::vector<std::byte>>(bytes, std::byte{0xFF});
        *address = owned->data();
        s.pinned.emplace(owned->data(), std::move(owned));
        return bytes == 0 ? invalid_value : 0;
    });
}

EXPORT CUresult cuMemFreeHost(void *address) {
    return call("cuMemFreeHost", Needs::context, true, [&](State &s) {
        s.drain_all();
        if (s.pinned.erase(static_cast<const std::byte *>(address)) == 0) {
            s.violate("not live pinned memory");
            return invalid_value;
        }
        return 0;
    });
}

EXPORT CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr target, const void *source, size_t bytes, CUstream stream) {
    return call("cuMemcpyHtoDAsync", Needs::context, false, [&](State &s) {
        Stream *const queue = stream_of(s, stream);
        const int device = current_device();
        if (queue == nullptr || s.at(target, bytes, device) == nullptr)
            return invalid_value;
        s.bus_bytes += bytes;
        if (s.is_pinned(source, bytes)) { // read when its turn comes
            queue->queue.push_back([&s, target, source, bytes, device] {
                if (std::byte *const to = s.at(target, bytes, device); to != nullptr)
                    std::memcpy(to, source, bytes);
            });
            return 0;
        }
        const auto *const first = static_cast<const std::byte *>(source);
        queue->queue.push_back([&s, target, copy = std::vector<std::byte>(first, first + bytes), device] {
            if (std::byte *const to = s.at(target, copy.size(), device); to != nullptr)
                std::memcpy(to, copy.data(), copy.size());
        });
        return 0;
    });
}

EXPORT CUresult cuMemcpyDtoHAsync_v2(void *target, CUdeviceptr source, size_t bytes, CUstream stream) {
    return call("cuMemcpyDtoHAsync", Needs::context, false, [&](State &s) {
        Stream *const queue = stream_of(s, stream);
        const int device = current_device();
        if (queue == nullptr || s.at(source, bytes, device) == nullptr)
            return invalid_value;
        s.bus_bytes += bytes;
        queue->queue.push_back([&s, target, source, bytes, device] {
            if (const std::byte *const from = s.at(source, bytes, device); from != nullptr)
                std::memcpy(target, from, bytes);
        });
        if (!s.is_pinned(target, bytes))
            s.drain(*queue);
        return 0;
    });
}

EXPORT CUresult cuMemcpy(CUdeviceptr target, CUdeviceptr source, size_t bytes) {
    return call("cuMemcpy", Needs::context, false, [&](State &s) {
        s.drain_all();
        // Like the driver's, by address: what lies in the range of device memory is device memory.
        const auto on_device = [&](CUdeviceptr address) {
            return address >= first_device_address && address < s.next_address;
        };
        const auto place = [&](CUdeviceptr address) {
            return on_device(address) ? s.at(address, bytes, current_device()) : reinterpret_cast<std::byte *>(address);
        };
        s.bus_bytes += on_device(target) != on_device(source) ? bytes : 0;
        std::byte *const to = place(target);
        const std::byte *const from = place(source);
        if (to == nullptr || from == nullptr)
            return invalid_value;
        if (on_device(target) && !on_device(source) && !s.is_pinned(from, bytes)) {
            // Ordinary host memory has been read on return; when it arrives is seen by who waits, or by other streams.
            s.arriving.queue.push_back(
                [&s, target, copy = std::vector<std::byte>(from, from + bytes), device = current_device()] {
                    if (std::byte *const place = s.at(target, copy.size(), device); place != nullptr)
                        std::memcpy(place, copy.data(), copy.size());
                });
            return 0;
        }
        std::memcpy(to, from, bytes);
        return 0;
    });
}

EXPORT CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr target, CUdeviceptr source, size_t bytes, CUstream stream) {
    return call("cuMemcpyDtoDAsync", Needs::context, false, [&](State &s) {
        Stream *const queue = stream_of(s, stream);
        const int device = current_device();
        if (queue == nullptr || s.at(target, bytes, device) == nullptr || s.at(source, bytes, device) == nullptr)
            return invalid_value;
        queue->queue.push_back([&s, target, source, bytes, device] {
            std::byte *const to = s.at(target, bytes, device);
            const std::byte *const from = s.at(source, bytes, device);
            if (to != nullptr && from != nullptr)
                std::memcpy(to, from, bytes);
            s.microseconds += static_cast<double>(bytes) / copied_bytes_per_microsecond;
        });
        return 0;
    });
}

EXPORT CUresult cuMemcpy2DUnaligned_v2(const CUDA_MEMCPY2D *copy) {
    return call("cuMemcpy2DUnaligned", Needs::context, false, [&](State &s) {
        s.drain_all();
        const bool on_device =
            copy->srcMemoryType == CU_MEMORYTYPE_DEVICE && copy->dstMemoryType == CU_MEMORYTYPE_DEVICE;
        const bool rows_apart = copy->srcPitch >= copy->WidthInBytes && copy->dstPitch >= copy->WidthInBytes;
        if (!on_device || !rows_apart || copy->WidthInBytes == 0 || copy->Height == 0) {
            s.violate("not a rectangle in device memory");
            return invalid_value;
        }
        for (size_t row = 0; row < copy->Height; ++row) {
            std::byte *const to = s.at(copy->dstDevice + row * copy->dstPitch, copy->WidthInBytes, current_device());
            const std::byte *const from =
                s.at(copy->srcDevice + row * copy->srcPitch, copy->WidthInBytes, current_device());
            if (to == nullptr || from == nullptr)
                return invalid_value;
            std::memcpy(to, from, copy->WidthInBytes);
        }
        return 0;
    });
}

EXPORT CUresult cuMemsetD8Async(CUdeviceptr target, unsigned char value, size_t bytes, CUstream stream) {
    return call("cuMemsetD8Async", Needs::context, false, [&](State &s) {
        Stream *const queue = stream_of(s, stream);
        const int device = current_device();
        if (queue == nullptr || s.at(target, bytes, device) == nullptr)
            return invalid_value;
        queue->queue.push_back([&s, target, value, bytes, device] {
            if (std::byte *const to = s.at(target, bytes, device); to != nullptr)
                std::memset(to, value, bytes);
        });
        return 0;
    });
}

EXPORT CUresult cuPointerGetAttribute(void *value, int attribute, CUdeviceptr address) {
    return call("cuPointerGetAttribute", Needs::context, false, [&](State &s) {
        auto found = s.memory.upper_bound(address);
        const bool device = found != s.memory.begin() && address - (--found)->first < found->second.bytes.size();
        if (!device && !s.is_pinned(reinterpret_cast<const void *>(address), 1))
            return invalid_value;
        if (attribute == CU_POINTER_ATTRIBUTE_MEMORY_TYPE)
            *static_cast<unsigned *>(value) = device ? CU_MEMORYTYPE_DEVICE : 1;
        else if (attribute == CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL)
            *static_cast<int *>(value) = device ? found->second.device : 0;
        else
            return invalid_value;
        return 0;
    });
}

EXPORT CUresult cuStreamCreate(CUstream *stream, unsigned) {
    return call("cuStreamCreate", Needs::context, false, [&](State &s) {
        fake::Stream made;
        made.device = current_device();
        *stream = keep<CUstream>(s.streams, std::move(made));
        return 0;
    });
}

EXPORT CUresult cuStreamDestroy_v2(CUstream stream) {
    return call("cuStreamDestroy", Needs::context, true, [&](State &s) {
        if (fake::Stream *const found = find(s, s.streams, stream, "stream"); found != nullptr)
            s.drain(*found);
        return destroy(s, s.streams, stream, "stream");
    });
}

EXPORT CUresult cuStreamSynchronize(CUstream stream) {
    return call("cuStreamSynchronize", Needs::context, false, [&](State &s) {
        fake::Stream *const found = stream_of(s, stream);
        if (found == nullptr)
            return invalid_handle;
        s.drain(*found);
        return 0;
    });
}

EXPORT CUresult cuStreamGetCtx(CUstream stream, CUcontext *context) {
    return call("cuStreamGetCtx", Needs::context, false, [&](State &s) {
        if (is_legacy(stream)) {
            *context = current.back();
            return 0;
        }
        const fake::Stream *const found = find(s, s.streams, stream, "stream");
        if (found == nullptr)
            return invalid_handle;
        *context = context_of(found->device);
        return 0;
    });
}

EXPORT CUresult cuEventCreate(CUevent *event, unsigned flags) {
    return call("cuEventCreate", Needs::context, false, [&](State &s) {
        fake::Event made;
        made.device = current_device();
        made.timed = flags == CU_EVENT_DEFAULT;
        *event = keep<CUevent>(s.events, std::move(made));
        return 0;
    });
}

EXPORT CUresult cuEventDestroy_v2(CUevent event) {
    return call("cuEventDestroy", Needs::context, true, [&](State &s) { return destroy(s, s.events, event, "event"); });
}

// Not called by the library: by callers, on their streams.
EXPORT CUresult cuLaunchHostFunc(CUstream stream, void (*function)(void *), void *argument) {
    return call("cuLaunchHostFunc", Needs::context, false, [&](State &s) {
        fake::Stream *const queue = stream_of(s, stream);
        if (queue == nullptr)
            return invalid_handle;
        queue->queue.push_back([function, argument] { std::thread(function, argument).join(); });
        return 0;
    });
}

EXPORT CUresult cuEventRecord(CUevent event, CUstream stream) {
    return call("cuEventRecord", Needs::context, false, [&](State &s) {
        fake::Event *const found = find(s, s.events, event, "event");
        fake::Stream *const queue = stream_of(s, stream);
        if (found == nullptr || queue == nullptr)
            return invalid_handle;
        found->stream = stream;
        found->reached = false;
        found->idle = queue->queue.empty();
        queue->queue.push_back([&s, event] {
            const auto live = s.events.find(event);
            if (live == s.events.end())
                return;
            live->second->reached = true;
            live->second->microseconds = s.microseconds;
        });
        return 0;
    });
}

EXPORT CUresult cuEventElapsedTime(float *milliseconds, CUevent begin, CUevent end) {
    constexpr CUresult not_ready = 600;
    return call("cuEventElapsedTime", Needs::context, false, [&](State &s) {
        const fake::Event *const first = find(s, s.events, begin, "event"), *const last =
                                                                                find(s, s.events, end, "event");
        if (first == nullptr || last == nullptr || !first->timed || !last->timed)
            return invalid_handle;
        if (!first->reached || !last->reached)
            return not_ready;
        if (first->idle)
            s.violate("time that begins on an idle stream, so that it holds the host's submission");
        *milliseconds = static_cast<float>((last->microseconds - first->microseconds) * 1e-3);
        return 0;
    });
}

// Runs all of the event's stream: more than needed, but whoever relies on an event that he did not record, or forgets
// to wait, still finds out.
EXPORT CUresult cuEventSynchronize(CUevent event) {
    return call("cuEventSynchronize", Needs::context, false, [&](State &s) {
        const fake::Event *const found = find(s, s.events, event, "event");
        if (found == nullptr)
            return invalid_handle;
        const auto stream = s.streams.find(found->stream);
        if (stream != s.streams.end())
            s.drain(*stream->second);
        return 0;
    });
}

EXPORT CUresult cuEventQuery(CUevent event) {
    constexpr CUresult not_ready = 600;
    return call("cuEventQuery", Needs::context, false, [&](State &s) {
        const fake::Event *const found = find(s, s.events, event, "event");
        if (found == nullptr)
            return invalid_handle;
        const auto stream = s.streams.find(found->stream);
        return stream == s.streams.end() || stream->second->queue.empty() ? 0 : not_ready;
    });
}

EXPORT CUresult cuStreamWaitEvent(CUstream stream, CUevent event, unsigned) {
    return call("cuStreamWaitEvent", Needs::context, false, [&](State &s) {
        const fake::Event *const found = find(s, s.events, event, "event");
        fake::Stream *const queue = stream_of(s, stream);
        if (found == nullptr || queue == nullptr)
            return invalid_handle;
        queue->queue.push_back([&s, source = found->stream] {
            const auto other = s.streams.find(source);
            if (other != s.streams.end())
                s.drain(*other->second);
        });
        return 0;
    });
}

EXPORT CUresult cuGraphCreate(CUgraph *graph, unsigned) {
    return call("cuGraphCreate", Needs::context, false, [&](State &s) {
        *graph = keep<CUgraph>(s.graphs, fake::Graph{});
        return 0;
    });
}

EXPORT CUresult cuGraphDestroy(CUgraph graph) {
    return call("cuGraphDestroy", Needs::context, true, [&](State &s) { return destroy(s, s.graphs, graph, "graph"); });
}

EXPORT CUresult cuGraphAddKernelNode(CUgraphNode *node, CUgraph graph, const CUgraphNode *after, size_t count,
                                     const CUDA_KERNEL_NODE_PARAMS *parameters) {
    return call("cuGraphAddKernelNode", Needs::context, false, [&](State &s) {
        fake::Graph *const found = find(s, s.graphs, graph, "graph");
        if (found == nullptr)
            return invalid_handle;
        auto made = std::make_unique<fake::Graph::Node>();
        if (const CUresult result = read_launch(s, *parameters, made->launch); result != 0)
            return result;
        made->after.assign(after, after + count);
        made->programmatic.assign(count, false);
        *node = reinterpret_cast<CUgraphNode>(made.get());
        found->nodes.push_back(std::move(made));
        return 0;
    });
}

EXPORT CUresult cuGraphAddDependencies_v2(CUgraph graph, const CUgraphNode *from, const CUgraphNode *to,
                                          const CUgraphEdgeData *data, size_t count) {
    return call("cuGraphAddDependencies", Needs::context, false, [&](State &s) {
        fake::Graph *const found = find(s, s.graphs, graph, "graph");
        if (found == nullptr)
            return invalid_handle;
        for (size_t i = 0; i < count; ++i) {
            const auto node = std::find_if(found->nodes.begin(), found->nodes.end(), [&](const auto &candidate) {
                return reinterpret_cast<CUgraphNode>(candidate.get()) == to[i];
            });
            if (node == found->nodes.end() || data[i].to_port != 0 || data[i].from_port != data[i].type)
                return invalid_value;
            (*node)->after.push_back(from[i]);
            (*node)->programmatic.push_back(data[i].type == 1);
        }
        return 0;
    });
}

EXPORT CUresult cuGraphInstantiateWithFlags(CUgraphExec *executable, CUgraph graph, unsigned long long) {
    return call("cuGraphInstantiate", Needs::context, false, [&](State &s) {
        const fake::Graph *const found = find(s, s.graphs, graph, "graph");
        if (found == nullptr)
            return invalid_handle;
        fake::GraphExec made;
        made.source = graph;
        made.device = current_device();
        CUgraphNode previous = nullptr;
        for (const auto &node : found->nodes) {
            // Each kernel reads what the one before it wrote, and all of it runs in one arena.
            if (previous == nullptr ? !node->after.empty() : node->after != std::vector<CUgraphNode>{previous})
                s.violate("the kernels are not one chain");
            for (const bool programmatic : node->programmatic) {
                s.programmatic_edges += programmatic ? 1 : 0;
                if (programmatic)
                    for (const auto &member : found->nodes)
                        if (!(*s.functions.at(member->launch.function)->description)["pdl"].get<bool>())
                            s.violate("a programmatic edge in a chain with a kernel that does not wait");
            }
            previous = reinterpret_cast<CUgraphNode>(node.get());
            made.launches.emplace_back(previous, node->launch);
        }
        *executable = keep<CUgraphExec>(s.executables, std::move(made));
        return 0;
    });
}

EXPORT CUresult cuGraphExecDestroy(CUgraphExec executable) {
    return call("cuGraphExecDestroy", Needs::context, true,
                [&](State &s) { return destroy(s, s.executables, executable, "executable graph"); });
}

EXPORT CUresult cuGraphExecKernelNodeSetParams(CUgraphExec executable, CUgraphNode node,
                                               const CUDA_KERNEL_NODE_PARAMS *parameters) {
    return call("cuGraphExecKernelNodeSetParams", Needs::context, false, [&](State &s) {
        fake::GraphExec *const found = find(s, s.executables, executable, "executable graph");
        if (found == nullptr || find(s, s.graphs, found->source, "graph of these nodes") == nullptr)
            return invalid_handle;
        for (auto &[handle, launch] : found->launches)
            if (handle == node) {
                Launch changed;
                if (const CUresult result = read_launch(s, *parameters, changed); result != 0)
                    return result;
                launch = changed;
                return 0;
            }
        s.violate("a node of another graph");
        return invalid_handle;
    });
}

EXPORT CUresult cuGraphUpload(CUgraphExec executable, CUstream stream) {
    return call("cuGraphUpload", Needs::context, false, [&](State &s) {
        const bool known = find(s, s.executables, executable, "executable graph") != nullptr;
        return known && stream_of(s, stream) != nullptr ? 0 : invalid_handle;
    });
}

EXPORT CUresult cuGraphLaunch(CUgraphExec executable, CUstream stream) {
    return call("cuGraphLaunch", Needs::context, false, [&](State &s) {
        const fake::GraphExec *const found = find(s, s.executables, executable, "executable graph");
        fake::Stream *const queue = stream_of(s, stream);
        if (found == nullptr || queue == nullptr)
            return invalid_handle;
        if (found->device != current_device())
            s.violate("graph of another context");
        const auto busy = [&](const auto &entry) {
            return entry.second.get() != queue && !entry.second->queue.empty();
        };
        s.streams_busy_at_once =
            std::max(s.streams_busy_at_once, 1 + std::count_if(s.streams.begin(), s.streams.end(), busy));
        for (const auto &[handle, launch] : found->launches)
            queue->queue.push_back([&s, launch = launch] {
                const fake::KernelFunction *const function = find(s, s.functions, launch.function, "function");
                if (function == nullptr)
                    return;
                run_kernel(launch, *function);
                ++s.kernels_run;
                ++s.kernels_run_on[static_cast<size_t>(function->device)];
                s.candidates_run[(*function->description)["op"]["name"]] =
                    function->description->value("candidate", "");
                s.microseconds += function->description->value("microseconds", 10.0);
            });
        return 0;
    });
}
