// The plan: what an engine file says, checked, as plain data.  See docs/design.md for the meaning of every op.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace uf {

namespace cuda {
struct KernelTable;
}

enum class OpKind {
    stem,
    conv,
    up_conv,
    concat_conv,
    head,
    output,
    normalise,
    conv_transpose,
    pool,
    upsample,
    pad,
    concat,
    add,
    activation,
    affine,
    l2_normalise,
    quantise,
    dequantise
};
enum class Activation { none, relu, leaky_relu, sigmoid, tanh, softmax };
enum class UpsampleMode { none, nearest, bilinear, bilinear_corners };
enum class PoolMode { max, average };
enum class Line { column, row };
enum class OutputKind { sigmoid, softmax, identity };
enum class NormalisationKind { fixed, standardise };

// Height or width of a buffer for an input of that height or width: (n * multiply + add) / divide, exact for legal n.
struct Extent {
    int64_t multiply = 1, add = 0, divide = 1;
    int64_t at(int64_t n) const { return (n * multiply + add) / divide; }
};

struct Buffer {
    std::string name;
    int channels = 0;
    Extent height, width;
    int halo = 0;       // zero pixels that readers want around it
    int slot = -1;      // -1: the image
    float scale = 0.0F; // above 0: uint8, of which one step is so much; 0: floating point
};

// Floats that are its own, or that lie in memory which it keeps alive.  Copies share them.
class Floats {
  public:
    Floats() = default;
    Floats(std::vector<float> values) : size_(values.size()) {
        auto owner = std::make_shared<const std::vector<float>>(std::move(values));
        first_ = std::shared_ptr<const float>(owner, owner->data());
    }
    Floats(std::shared_ptr<const float> first, size_t size) : first_(std::move(first)), size_(size) {}

    const float *data() const { return first_.get(); }
    const float *begin() const { return data(); }
    const float *end() const { return data() + size_; }
    size_t size() const { return size_; }
    bool empty() const { return size_ == 0; }
    const float &operator[](size_t index) const { return data()[index]; }

  private:
    std::shared_ptr<const float> first_;
    size_t size_ = 0;
};

// A tensor of the file; empty when the op has none of that name.
struct Tensor {
    std::vector<int64_t> shape;
    Floats values;                // of a float32 tensor, aligned as such
    std::vector<int8_t> integers; // of an int8 tensor
    bool empty() const { return values.empty() && integers.empty(); }
};

struct Op {
    OpKind kind{};
    std::string name;
    std::vector<int> inputs, outputs;       // indices into Plan::buffers
    std::array<int, 2> kernel{1, 1};        // ky, kx
    std::array<int, 4> padding{0, 0, 0, 0}; // top, left, bottom, right
    std::array<int, 2> stride{1, 1};
    std::array<int, 2> crop{0, 0}; // top, left
    int scale = 2;
    Activation activation = Activation::none;
    float slope = 0.0F;
    UpsampleMode upsample = UpsampleMode::none;
    PoolMode pool = PoolMode::max;
    Line line = Line::column;  // what l2_normalise takes the norm of
    bool int8 = false;         // reads uint8 and has int8 weights
    bool winograd = false;     // these in Winograd's form
    float output_scale = 0.0F; // above 0: writes uint8 of that scale
    std::vector<std::pair<std::string, Tensor>> tensors;

    // The tensor of that name; an empty one if there is none.
    const Tensor &tensor(const char *tensor_name) const;
};

struct Normalisation {
    NormalisationKind kind = NormalisationKind::fixed;
    std::vector<float> mean, std; // per channel, for fixed
    float epsilon = 1e-6F;        // for standardise
};

struct Plan {
    std::string name, precision; // precision: "float32", "bf16", "fp16" or "int8"
    int channels = 1;            // of the image
    Normalisation normalisation;
    OutputKind output_kind = OutputKind::sigmoid;
    int output_channels = 1;
    float threshold = 0.5F;
    int multiple = 1, remainder = 0, minimum = 1; // legal sides
    int tile = 256;
    int margin = 0; // valid padding takes this off each side: output side = n - 2 * margin
    int halo = -1;  // -1: no exact tiling
    int slots = 0;
    std::vector<Buffer> buffers;                      // [0] is the image
    std::vector<Op> ops;                              // the last one writes the output
    std::shared_ptr<const cuda::KernelTable> kernels; // GPU code; null where the file has none or it was not wanted

    // Whether a pixel of the result can be one byte: one class against background, or the index of a class.
    bool has_mask() const {
        return output_kind == OutputKind::sigmoid ? output_channels == 1
                                                  : output_kind == OutputKind::softmax && output_channels <= 256;
    }
    // Exact tiles begin at multiples of this, so that poolings fall as in the whole image, and where rounding depends
    // on it the pixels that Winograd's form takes two by two.
    int64_t grid() const {
        const bool in_pairs = std::any_of(ops.begin(), ops.end(), [](const Op &op) { return op.winograd; });
        return int64_t{multiple} * (in_pairs ? 2 : 1);
    }
    bool legal(int64_t side) const { return side >= minimum && side % multiple == remainder; }
    // The smallest legal side that is not below `side`.
    int64_t next_legal(int64_t side) const {
        return side <= minimum ? minimum : side + ((remainder - side) % multiple + multiple) % multiple;
    }
};

// What an op kind takes and has: its row in the table of docs/design.md.
struct OpRow {
    enum Attribute : unsigned {
        kernel = 1,
        padding = 2,
        stride = 4,
        crop = 8,
        activation = 16,
        upsample = 32,
        mode = 64,
        scale = 128
    };
    OpKind kind;
    const char *name;
    int least_inputs, most_inputs, least_outputs, most_outputs;
    unsigned attributes; // each of them must be given
    std::vector<const char *> tensors;
};
const std::vector<OpRow> &op_table();
const OpRow &op_row(OpKind kind);

// Throws UF_ERR_BAD_FILE unless the plan can be run for every legal size: attributes in range, tensors of the right
// shapes, sizes that follow from each other, buffers written before they are read and alone in their slots.  Names,
// indices of buffers and counts of inputs and outputs are the reader's to check.
void check_plan(const Plan &plan);

} // namespace uf
