// The GPU kernels of an engine file as checked, plain data: "GPU kernels" in docs/design.md.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "executor.h"
#include "plan.h"

namespace uf {
class Value;
}

namespace uf::cuda {

// Sizes of one launch, for the symbols of grids and arguments.
struct LaunchSizes {
    int64_t count = 1;                          // N
    std::array<int64_t, 2> written{};           // H, W
    std::vector<std::array<int64_t, 2>> inputs; // H0, W0, H1, W1, ...
};

// An integer of the file, or a symbol.
struct Term {
    enum class Kind { integer, count, written, input } kind = Kind::integer;
    int64_t integer = 1;
    size_t input = 0; // of inputs
    size_t axis = 0;  // 0: height, 1: width
    int64_t at(const LaunchSizes &sizes) const;
};

// Product of `terms`, divided by `divisor`, rounded up.
struct Factor {
    std::vector<Term> terms;
    int64_t divisor = 1;
};

using Axis = std::vector<Factor>;

// The product of positive numbers.  Throws UF_ERR_INVALID_ARGUMENT above 2^60.
int64_t checked_product(std::initializer_list<int64_t> factors);

// The product of the factors, likewise.
int64_t axis_value(const Axis &axis, const LaunchSizes &sizes);

enum class ElementType { float32, fp16, bf16 };
int64_t element_bytes(ElementType type);

struct KernelArgument {
    enum class Kind {
        buffer,
        weight,
        scratch,
        image,
        image_stride,
        transform,
        result,
        result_stride,
        logit_threshold,
        int32,
        int64,
        float32
    } kind{};
    size_t index =
        0; // buffer: of Plan::buffers; weight: of KernelTable::weights; strides: 0 image, 1 row, 2 pixel, 3 channel
    Axis bytes; // scratch
    bool zeroed = false;
    Term value; // int32, int64
    float number = 0.0F;
};

// A constant tensor in the layout that a kernel reads.
struct PackedWeight {
    const Tensor *tensor = nullptr; // of the plan
    ElementType type{};
    std::vector<int64_t> shape, padded; // same rank, padded >= shape; the elements of `shape` are those of the tensor
};

struct KernelCode {
    int capability = 0; // 90 for compute capability 9.0
    bool ptx = false;   // runs on any capability from this one up; else machine code
    int rank = 0;       // smaller is the better guess
    size_t module = 0;  // of KernelTable::modules
    std::string entry;
    int warps = 1;
    int shared_bytes = 0;
    bool programmatic = false; // waits for its predecessor itself: may be launched before that one has ended
    int driver = 0;            // least version
    std::string target() const { return (ptx ? "compute_" : "sm_") + std::to_string(capability); }
};

// One candidate for one step of an op.
struct Kernel {
    size_t op = 0;
    int step = 0;
    std::optional<PixelType> pixel;   // of ops that read the image
    std::optional<ResultType> result; // of the op that writes the result
    std::string precision;            // "fp16", "bf16", "float32", "tf32"
    std::string candidate;
    std::array<Axis, 3> grid;
    std::vector<KernelArgument> arguments;
    int hidden = 0; // null pointers behind the arguments
    std::vector<KernelCode> codes;
};

struct KernelTable {
    std::vector<Kernel> kernels;
    std::vector<PackedWeight> weights; // equal ones once
    std::vector<std::string> modules;  // contents; std::string ends PTX with the zero byte that the driver wants
};

ElementType storage_of(const std::string &precision);
bool reads_image(const Op &op);
bool writes_result(const Op &op);

// The contents of a U8 tensor of the file; throws UF_ERR_BAD_FILE where there is none of that name.
using CodeTensor = std::function<std::string(const std::string &name)>;

// Whatever `kernels` holds, the result fits the plan, or this throws UF_ERR_BAD_FILE.  The table points into `plan`.
std::shared_ptr<const KernelTable> read_kernel_table(const Value &kernels, const Plan &plan, const CodeTensor &code);

} // namespace uf::cuda
