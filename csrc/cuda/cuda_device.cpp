#include "cuda/cuda_device.h"

#include <unistd.h>

#include <array>

#include "error.h"
#include "message.h"

namespace uf::cuda {

Device::Device(int ordinal) : api_(driver()), ordinal_(ordinal), process_(getpid()) {
    const int present = count();
    if (ordinal < 0 || ordinal >= present)
        throw Error(UF_ERR_UNSUPPORTED, present == 0 ? message("this machine has no GPU that CUDA can use")
                                                     : message("there is no device \"cuda:", ordinal,
                                                               "\"; this machine has cuda:0 to cuda:", present - 1));
    api_.device_get(&handle_, ordinal);
    std::array<char, 256> name{};
    api_.device_get_name(name.data(), static_cast<int>(name.size()) - 1, handle_);
    name_ = name.data();
    api_.driver_get_version(&driver_version_);
    capability_ = 10 * attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR) +
                  attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
    shared_bytes_ = attribute(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN);
    api_.primary_context_retain(&context_, handle_);
}

Device::~Device() {
    if (in_its_process())
        api_.primary_context_release.quietly(handle_);
}

bool Device::in_its_process() const { return getpid() == process_; }

int Device::count() {
    int present = 0;
    driver().device_get_count(&present);
    return present;
}

int Device::attribute(int which) const {
    int value = 0;
    api_.device_get_attribute(&value, which, handle_);
    return value;
}

std::string Device::description() const {
    return message(name_, " (compute capability ", capability_ / 10, '.', capability_ % 10, ')');
}

void Device::require_usable() const {
    if (lost_)
        throw Error(UF_ERR_DEVICE_LOST, message("cuda:", ordinal_,
                                                " was lost in an earlier call; close the engine and "
                                                "start a new process to use the GPU again"));
    if (!in_its_process())
        throw Error(UF_ERR_UNSUPPORTED, "CUDA cannot be used in a process that was forked after the engine was opened; "
                                        "open the engine in the child, or start processes with \"spawn\"");
}

DeviceMemory allocate_device(const std::shared_ptr<const Device> &device, size_t bytes) {
    CUdeviceptr address = 0;
    device->api().memory_allocate(&address, bytes);
    return {device, address, &Driver::memory_free};
}

PinnedMemory allocate_pinned(const std::shared_ptr<const Device> &device, size_t bytes) {
    void *address = nullptr;
    device->api().host_allocate(&address, bytes, CU_MEMHOSTALLOC_DEFAULT);
    return {device, address, &Driver::host_free};
}

Stream make_stream(const std::shared_ptr<const Device> &device) {
    CUstream stream = nullptr;
    // Not CU_STREAM_NON_BLOCKING: work of the caller on the default stream, which may still write the image, comes
    // first.
    device->api().stream_create(&stream, CU_STREAM_DEFAULT);
    return {device, stream, &Driver::stream_destroy};
}

Event make_event(const std::shared_ptr<const Device> &device, unsigned flags) {
    CUevent event = nullptr;
    device->api().event_create(&event, flags);
    return {device, event, &Driver::event_destroy};
}

Module load_module(const std::shared_ptr<const Device> &device, const std::string &image) {
    std::array<char, 1024> log{};
    std::array<int, 2> options = {CU_JIT_ERROR_LOG_BUFFER, CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES};
    std::array<void *, 2> values = {log.data(), reinterpret_cast<void *>(log.size() - 1)};
    CUmodule module = nullptr;
    try {
        device->api().module_load_data(&module, image.c_str(), static_cast<unsigned>(options.size()), options.data(),
                                       values.data());
    } catch (const Error &error) {
        throw Error(error.status(), log[0] == 0 ? error.what() : message(error.what(), ": ", log.data()));
    }
    return {device, module, &Driver::module_unload};
}

} // namespace uf::cuda
