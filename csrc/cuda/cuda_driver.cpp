#include "cuda/cuda_driver.h"

#include <dlfcn.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <string>

#include "error.h"
#include "message.h"

namespace uf::cuda {

namespace {

// Set once, never freed: engines may outlive the static objects of this library.
std::atomic<const Driver *> loaded{nullptr};

std::unique_ptr<Driver> load() {
    void *const handle = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) {
        const char *why = dlerror();
        throw Error(UF_ERR_UNSUPPORTED, message("this machine has no NVIDIA driver (", why == nullptr ? "" : why,
                                                "); install it, or use device \"cpu\""));
    }
    auto driver = std::make_unique<Driver>();
#define UF_CUDA_BIND(member, symbol, ...) driver->member.bind(#symbol, dlsym(handle, #symbol));
    UF_CUDA_FUNCTIONS(UF_CUDA_BIND)
    UF_CUDA_OPTIONAL_FUNCTIONS(UF_CUDA_BIND)
#undef UF_CUDA_BIND
#define UF_CUDA_REQUIRE(member, symbol, ...)                                                                           \
    if (!driver->member)                                                                                               \
        throw Error(UF_ERR_UNSUPPORTED, "the NVIDIA driver of this machine is too old: it has no " #symbol             \
                                        "; update it to one for CUDA 12 or newer, or use device \"cpu\"");
    UF_CUDA_FUNCTIONS(UF_CUDA_REQUIRE)
#undef UF_CUDA_REQUIRE
    return driver;
}

uf_status status_of(CUresult result) {
    switch (result) {
    case 2: // CUDA_ERROR_OUT_OF_MEMORY
        return UF_ERR_OUT_OF_MEMORY;
    case 34:  // STUB_LIBRARY
    case 46:  // DEVICE_UNAVAILABLE: busy, or another process has it alone
    case 36:  // CALL_REQUIRES_NEWER_DRIVER
    case 100: // NO_DEVICE
    case 101: // INVALID_DEVICE
    case 209: // NO_BINARY_FOR_GPU
    case 221: // JIT_COMPILER_NOT_FOUND
    case 222: // UNSUPPORTED_PTX_VERSION
    case 223: // JIT_COMPILATION_DISABLED
    case 803: // SYSTEM_DRIVER_MISMATCH
    case 804: // COMPAT_NOT_SUPPORTED_ON_DEVICE
        return UF_ERR_UNSUPPORTED;
    case 200: // INVALID_IMAGE
    case 218: // INVALID_PTX
        return UF_ERR_BAD_FILE;
    // After these the driver fails every call of the process, or the GPU has left.
    case 4:   // DEINITIALIZED
    case 214: // ECC_UNCORRECTABLE
    case 220: // NVLINK_UNCORRECTABLE
    case 226: // CONTAINED
    case 700: // ILLEGAL_ADDRESS
    case 702: // LAUNCH_TIMEOUT
    case 709: // CONTEXT_IS_DESTROYED
    case 710: // ASSERT
    case 714: // HARDWARE_STACK_ERROR
    case 715: // ILLEGAL_INSTRUCTION
    case 716: // MISALIGNED_ADDRESS
    case 717: // INVALID_ADDRESS_SPACE
    case 718: // INVALID_PC
    case 719: // LAUNCH_FAILED
    case 721: // TENSOR_MEMORY_LEAK
    case 911: // EXTERNAL_DEVICE
    case 999: // UNKNOWN
        return UF_ERR_DEVICE_LOST;
    default:
        return UF_ERR_DEVICE;
    }
}

} // namespace

void throw_failure(const char *call, CUresult result) {
    const char *name = nullptr, *text = nullptr;
    if (const Driver *const driver = loaded; driver != nullptr) {
        driver->get_error_name.quietly(result, &name);
        driver->get_error_string.quietly(result, &text);
    }
    std::string failure = message(call, " failed: ", name == nullptr ? "error" : name, ' ', result);
    if (text != nullptr)
        failure += message(" (", text, ")");
    throw Error(status_of(result), failure);
}

const Driver &driver() {
    static std::mutex mutex;
    static const Driver *opened = nullptr;
    static bool ready = false;
    const std::lock_guard<std::mutex> lock(mutex);
    if (!ready) {
        if (opened == nullptr)
            loaded = opened = load().release();
        opened->init(0);
        ready = true;
    }
    return *opened;
}

} // namespace uf::cuda
