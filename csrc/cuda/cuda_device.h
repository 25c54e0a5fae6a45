// One GPU, and owners for what is made on it.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <utility>

#include <sys/types.h>

#include "cuda/cuda_driver.h"
#include "error.h"

namespace uf::cuda {

// A GPU with its primary context (which other CUDA users of the process share).
class Device {
  public:
    // Throws UF_ERR_UNSUPPORTED where there is no such GPU.
    explicit Device(int ordinal);
    ~Device();
    Device(const Device &) = delete;
    Device &operator=(const Device &) = delete;

    static int count();

    const Driver &api() const { return api_; }
    CUcontext context() const { return context_; }
    int ordinal() const { return ordinal_; }
    int capability() const { return capability_; }         // 90 for 9.0
    int driver_version() const { return driver_version_; } // 13000 for CUDA 13.0
    int shared_bytes() const { return shared_bytes_; }     // that one block may ask for
    const std::string &name() const { return name_; }      // "NVIDIA H200"
    std::string description() const;                       // "NVIDIA H200 (compute capability 9.0)"
    int attribute(int which) const;                        // CU_DEVICE_ATTRIBUTE_...

    // Runs `body` with this device's context current on the calling thread.  Throws UF_ERR_DEVICE_LOST once the GPU was
    // lost, in `body` or before, and UF_ERR_UNSUPPORTED in a child process after a fork.
    template <class Body> void guarded(const Body &body) const;
    bool lost() const { return lost_; }
    // False in a child process after a fork, which must not call the driver.
    bool in_its_process() const;

  private:
    void require_usable() const;

    const Driver &api_;
    int ordinal_ = 0;
    CUdevice handle_ = 0;
    CUcontext context_ = nullptr;
    std::string name_;
    int capability_ = 0, driver_version_ = 0, shared_bytes_ = 0;
    pid_t process_;
    mutable std::atomic<bool> lost_{false};
};

// The device's context is the calling thread's current one for as long as this lives.
class Current {
  public:
    explicit Current(const Device &device) : device_(device) { device.api().context_push(device.context()); }
    ~Current() {
        CUcontext popped = nullptr;
        device_.api().context_pop.quietly(&popped);
    }
    Current(const Current &) = delete;
    Current &operator=(const Current &) = delete;

  private:
    const Device &device_;
};

template <class Body> void Device::guarded(const Body &body) const {
    require_usable();
    try {
        const Current current(*this);
        body();
    } catch (const Error &error) {
        if (error.status() == UF_ERR_DEVICE_LOST)
            lost_ = true;
        throw;
    }
}

// A handle of the driver that is given back with its owner, or nothing.  What fails then is not reported: the work that
// mattered has reported it.
template <class Handle> class Owned {
  public:
    using Destroy = Function<Handle> Driver::*;

    Owned() = default;
    Owned(std::shared_ptr<const Device> device, Handle handle, Destroy destroy)
        : device_(std::move(device)), handle_(handle), destroy_(destroy) {}
    ~Owned() { reset(); }
    Owned(Owned &&other) noexcept
        : device_(std::move(other.device_)), handle_(std::exchange(other.handle_, Handle{})), destroy_(other.destroy_) {
    }
    Owned &operator=(Owned &&other) noexcept {
        if (this != &other) {
            reset();
            device_ = std::move(other.device_);
            handle_ = std::exchange(other.handle_, Handle{});
            destroy_ = other.destroy_;
        }
        return *this;
    }
    Handle get() const { return handle_; }

  private:
    void reset() noexcept {
        if (handle_ == Handle{})
            return;
        if (!device_->in_its_process())
            return;
        const Driver &api = device_->api();
        const bool current = api.context_push.quietly(device_->context()) == 0;
        (api.*destroy_).quietly(handle_);
        CUcontext popped = nullptr;
        if (current)
            api.context_pop.quietly(&popped);
        handle_ = Handle{};
    }

    std::shared_ptr<const Device> device_;
    Handle handle_{};
    Destroy destroy_ = nullptr;
};

using DeviceMemory = Owned<CUdeviceptr>;
using PinnedMemory = Owned<void *>;
using Stream = Owned<CUstream>;
using Event = Owned<CUevent>;
using Graph = Owned<CUgraph>;
using GraphExec = Owned<CUgraphExec>;
using Module = Owned<CUmodule>;

// All need the device's context to be current.
DeviceMemory allocate_device(const std::shared_ptr<const Device> &device, size_t bytes);
PinnedMemory allocate_pinned(const std::shared_ptr<const Device> &device, size_t bytes);
Stream make_stream(const std::shared_ptr<const Device> &device);
// `flags`: CU_EVENT_DISABLE_TIMING, or CU_EVENT_DEFAULT for one that also holds the time.
Event make_event(const std::shared_ptr<const Device> &device, unsigned flags = CU_EVENT_DISABLE_TIMING);
// `image` is machine code, or PTX with a zero byte at its end.
Module load_module(const std::shared_ptr<const Device> &device, const std::string &image);

} // namespace uf::cuda
