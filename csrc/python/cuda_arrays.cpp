#include "cuda_arrays.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cuda/cuda_device.h"
#include "dlpack.h"
#include "errors.h"
#include "message.h"

namespace uf::python {

namespace {

using cuda::CUstream;
using Sizes = std::vector<int64_t>;

CUstream stream_at(uintptr_t handle) { return reinterpret_cast<CUstream>(handle); }

// The end of what had been put on a stream when it was made.
class Event {
  public:
    Event(const std::shared_ptr<const cuda::Device> &device, uintptr_t stream) : device_(device) {
        translated([&] {
            device->guarded([&] {
                event_ = cuda::make_event(device);
                device->api().event_record(event_.get(), stream_at(stream));
            });
        });
    }

    bool done() const {
        constexpr cuda::CUresult not_ready = 600;
        bool done = true;
        translated([&] {
            device_->guarded([&] {
                const cuda::CUresult result = device_->api().event_query.quietly(event_.get());
                done = result != not_ready;
                if (done && result != 0)
                    cuda::throw_failure("cuEventQuery", result);
            });
        });
        return done;
    }

    void close() {
        event_ = {};
        device_.reset();
    }
    void wait() const {
        translated([&] { device_->guarded([&] { device_->api().event_synchronize(event_.get()); }); });
    }

    // What is put on `stream` from now on comes after this.
    void hold(uintptr_t stream) const {
        translated(
            [&] { device_->guarded([&] { device_->api().stream_wait_event(stream_at(stream), event_.get(), 0); }); });
    }

  private:
    std::shared_ptr<const cuda::Device> device_;
    cuda::Event event_;
};

// What a DLPack tensor of ours points to, until its consumer has done with it; on any thread, with the GIL or without.
template <class Managed> struct Exported {
    Managed managed = {};
    std::shared_ptr<const cuda::DeviceMemory> memory;
    Sizes shape, strides;
};

template <class Managed> void delete_exported(Managed *managed) {
    delete static_cast<Exported<Managed> *>(managed->manager);
}

// A capsule that nobody took has its old name and owns its tensor.
template <class Managed> void destroy_capsule(PyObject *capsule) {
    if (PyCapsule_IsValid(capsule, Managed::name) != 0) {
        auto *const managed = static_cast<Managed *>(PyCapsule_GetPointer(capsule, Managed::name));
        without_gil([&] { managed->deleter(managed); });
    }
}

// An allocation on a GPU, freed with the last of this object and of the tensors made of it.
class Memory {
  public:
    Memory(const std::shared_ptr<const cuda::Device> &device, size_t bytes) : device_(device), bytes_(bytes) {
        translated([&] {
            device->guarded(
                [&] { memory_ = std::make_shared<const cuda::DeviceMemory>(cuda::allocate_device(device, bytes)); });
        });
    }
    void close() {
        memory_.reset();
        device_.reset();
    }
    uintptr_t address() const { return memory_->get(); }

    // Once all work of the device that blocks the legacy default stream is done.
    void fetch(const py::array &target) const {
        if (static_cast<size_t>(target.nbytes()) != bytes_ || !target.writeable())
            throw py::value_error("target must be writeable and as large as the memory");
        const auto to = reinterpret_cast<cuda::CUdeviceptr>(target.data());
        translated([&] { device_->guarded([&] { device_->api().copy(to, memory_->get(), bytes_); }); });
    }

    // A capsule with a tensor in C order of unsigned integers or floats of `bits` bits.
    py::capsule dlpack(const Sizes &shape, bool is_float, int bits, bool versioned) const {
        return versioned ? exported<dlpack::ManagedVersioned>(shape, is_float, bits)
                         : exported<dlpack::Managed>(shape, is_float, bits);
    }

  private:
    template <class Managed> py::capsule exported(const Sizes &shape, bool is_float, int bits) const {
        auto owner = std::make_unique<Exported<Managed>>();
        owner->memory = memory_;
        owner->shape = shape;
        owner->strides.assign(shape.size(), 1);
        for (size_t axis = shape.size(); axis-- > 1;)
            owner->strides[axis - 1] = owner->strides[axis] * shape[axis];
        Managed &managed = owner->managed;
        if constexpr (std::is_same_v<Managed, dlpack::ManagedVersioned>)
            managed.version = {1, 0};
        managed.manager = owner.get();
        managed.deleter = delete_exported<Managed>;
        managed.tensor.data = reinterpret_cast<void *>(memory_->get());
        managed.tensor.device = {dlpack::device_cuda, device_->ordinal()};
        managed.tensor.axes = static_cast<int32_t>(shape.size());
        managed.tensor.dtype = {static_cast<uint8_t>(is_float ? 2 : 1), static_cast<uint8_t>(bits), 1};
        managed.tensor.shape = owner->shape.data();
        managed.tensor.strides = owner->strides.data();
        PyObject *const capsule = PyCapsule_New(&managed, Managed::name, destroy_capsule<Managed>);
        if (capsule == nullptr)
            throw py::error_already_set();
        owner.release();
        return py::reinterpret_steal<py::capsule>(capsule);
    }

    std::shared_ptr<const cuda::Device> device_;
    const size_t bytes_;
    std::shared_ptr<const cuda::DeviceMemory> memory_;
};

// The tensor of somebody's capsule, which is taken out of it and given back when this object goes.
class Tensor {
  public:
    explicit Tensor(const py::object &capsule) {
        if (!take<dlpack::ManagedVersioned>(capsule) && !take<dlpack::Managed>(capsule))
            throw py::type_error("__dlpack__() gave no capsule with a tensor, or one that was used before");
    }
    ~Tensor() {
        if (give_back_ != nullptr)
            give_back_(managed_);
    }
    Tensor(const Tensor &) = delete;
    Tensor &operator=(const Tensor &) = delete;

    std::pair<int, int> device() const { return {tensor_->device.type, tensor_->device.number}; }
    uintptr_t address() const { return reinterpret_cast<uintptr_t>(tensor_->data) + tensor_->byte_offset; }
    Sizes shape() const { return {tensor_->shape, tensor_->shape + tensor_->axes}; }
    bool read_only() const { return read_only_; }

    // As NumPy names it where NumPy has it.
    std::string dtype() const {
        static const char *const kinds[] = {"int", "uint", "float", "opaque", "bfloat", "complex"};
        const dlpack::DataType &type = tensor_->dtype;
        const std::string lanes = type.lanes == 1 ? "" : message('x', type.lanes);
        if (type.code == 6)
            return "bool" + lanes;
        return message(type.code < 6 ? kinds[type.code] : "unknown", static_cast<int>(type.bits), lanes);
    }

    Sizes strides_bytes() const {
        Sizes strides(static_cast<size_t>(tensor_->axes), 1);
        if (tensor_->strides != nullptr)
            strides.assign(tensor_->strides, tensor_->strides + tensor_->axes);
        else
            for (size_t axis = strides.size(); axis-- > 1;)
                strides[axis - 1] = strides[axis] * tensor_->shape[axis];
        for (int64_t &stride : strides)
            stride *= (tensor_->dtype.bits * tensor_->dtype.lanes + 7) / 8;
        return strides;
    }

  private:
    template <class Managed> bool take(const py::object &capsule) {
        if (PyCapsule_IsValid(capsule.ptr(), Managed::name) == 0)
            return false;
        auto *const managed = static_cast<Managed *>(PyCapsule_GetPointer(capsule.ptr(), Managed::name));
        if constexpr (std::is_same_v<Managed, dlpack::ManagedVersioned>) {
            if (managed->version.major != 1)
                throw py::type_error(message("__dlpack__() gave a tensor of DLPack ", managed->version.major, '.',
                                             managed->version.minor, ", this library reads 1.x and older"));
            read_only_ = (managed->flags & dlpack::flag_read_only) != 0;
        }
        if (PyCapsule_SetName(capsule.ptr(), Managed::used_name) != 0)
            throw py::error_already_set();
        managed_ = managed;
        tensor_ = &managed->tensor;
        if (managed->deleter != nullptr)
            give_back_ = [](void *tensor) {
                auto *const mine = static_cast<Managed *>(tensor);
                mine->deleter(mine);
            };
        return true;
    }

    void *managed_ = nullptr;
    void (*give_back_)(void *) = nullptr;
    const dlpack::Tensor *tensor_ = nullptr;
    bool read_only_ = false;
};

std::shared_ptr<const cuda::Device> open_device(int ordinal) {
    std::shared_ptr<const cuda::Device> device;
    translated([&] { device = std::make_shared<const cuda::Device>(ordinal); });
    return device;
}

// A GPU, by the primary context that all users of the process share.
class Device {
  public:
    explicit Device(int ordinal) : device_(open_device(ordinal)) {}

    void close() { device_.reset(); }
    static int count() {
        int present = 0;
        translated([&] { present = cuda::Device::count(); });
        return present;
    }

    std::unique_ptr<Memory> allocate(size_t bytes) const { return std::make_unique<Memory>(device_, bytes); }
    std::unique_ptr<Event> record(uintptr_t stream) const { return std::make_unique<Event>(device_, stream); }
    void synchronise(uintptr_t stream) const {
        translated([&] { device_->guarded([&] { device_->api().stream_synchronize(stream_at(stream)); }); });
    }

  private:
    std::shared_ptr<const cuda::Device> device_;
};

} // namespace

void bind_cuda_arrays(py::module_ &module) {
    py::class_<Event>(module, "Event", closed_without_gil<Event>())
        .def("done", &Event::done)
        .def("wait", &Event::wait)
        .def("hold", &Event::hold, py::arg("stream"));
    py::class_<Memory>(module, "Memory", closed_without_gil<Memory>())
        .def_property_readonly("address", &Memory::address)
        .def("fetch", &Memory::fetch, py::arg("target"))
        .def("dlpack", &Memory::dlpack, py::kw_only(), py::arg("shape"), py::arg("is_float"), py::arg("bits"),
             py::arg("versioned"));
    py::class_<Tensor>(module, "Tensor")
        .def(py::init<const py::object &>(), py::arg("capsule"))
        .def_property_readonly("device", &Tensor::device)
        .def_property_readonly("address", &Tensor::address)
        .def_property_readonly("dtype", &Tensor::dtype)
        .def_property_readonly("shape", &Tensor::shape)
        .def_property_readonly("strides_bytes", &Tensor::strides_bytes)
        .def_property_readonly("read_only", &Tensor::read_only);
    py::class_<Device>(module, "Device", closed_without_gil<Device>())
        .def(py::init<int>(), py::arg("ordinal"))
        .def_static("count", &Device::count)
        .def("allocate", &Device::allocate, py::arg("size_bytes"))
        .def("record", &Device::record, py::arg("stream"))
        .def("synchronise", &Device::synchronise, py::arg("stream"));
}

} // namespace uf::python
