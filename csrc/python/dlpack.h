// The structures by which array libraries hand each other their memory, as the DLPack standard lays them out.
#pragma once

#include <cstdint>

namespace uf::python::dlpack {

constexpr int32_t device_cuda = 2;
constexpr uint64_t flag_read_only = 1;

struct Device {
    int32_t type, number;
};

struct DataType {
    uint8_t code; // 0 int, 1 uint, 2 float, 4 bfloat, 5 complex, 6 bool
    uint8_t bits;
    uint16_t lanes;
};

struct Tensor {
    void *data;
    Device device;
    int32_t axes;
    DataType dtype;
    int64_t *shape;
    int64_t *strides; // in elements; null: C order
    uint64_t byte_offset;
};

// In a capsule named "dltensor".
struct Managed {
    static constexpr const char *name = "dltensor", *used_name = "used_dltensor";
    Tensor tensor;
    void *manager;
    void (*deleter)(Managed *);
};

struct Version {
    uint32_t major, minor;
};

// Since version 1, in a capsule named "dltensor_versioned".
struct ManagedVersioned {
    static constexpr const char *name = "dltensor_versioned", *used_name = "used_dltensor_versioned";
    Version version;
    void *manager;
    void (*deleter)(ManagedVersioned *);
    uint64_t flags;
    Tensor tensor;
};

} // namespace uf::python::dlpack
