#include "plan.h"

#include <algorithm>
#include <cmath>

#include "error.h"
#include "message.h"

namespace uf {

const Tensor &Op::tensor(const char *tensor_name) const {
    static const Tensor *const none = new Tensor; // never freed: threads may be at work while the process exits
    for (const auto &[name, tensor] : tensors)
        if (name == tensor_name)
            return tensor;
    return *none;
}

const std::vector<OpRow> &op_table() {
    constexpr unsigned convolution = OpRow::kernel | OpRow::padding | OpRow::activation;
    // Never freed, likewise.
    static const auto *const table = new std::vector<OpRow>{
        {OpKind::stem, "stem", 1, 1, 1, 2, convolution, {"weight", "bias"}},
        {OpKind::conv, "conv", 1, 1, 1, 2, convolution, {"weight", "bias"}},
        {OpKind::up_conv,
         "up_conv",
         2,
         2,
         1,
         1,
         OpRow::padding | OpRow::crop | OpRow::activation,
         {"weight_up", "weight_skip", "bias"}},
        {OpKind::concat_conv,
         "concat_conv",
         2,
         2,
         1,
         1,
         convolution | OpRow::upsample | OpRow::crop,
         {"weight_a", "weight_b", "bias"}},
        {OpKind::head, "head", 1, 1, 0, 0, convolution, {"weight", "bias", "head_weight", "head_bias"}},
        {OpKind::output, "output", 1, 1, 0, 0, 0, {}},
        {OpKind::normalise, "normalise", 1, 1, 1, 1, 0, {}},
        {OpKind::conv_transpose, "conv_transpose", 1, 1, 1, 1, convolution | OpRow::stride, {"weight", "bias"}},
        {OpKind::pool, "pool", 1, 1, 1, 1, OpRow::mode | OpRow::kernel, {}},
        {OpKind::upsample, "upsample", 1, 1, 1, 1, OpRow::mode | OpRow::scale, {}},
        {OpKind::pad, "pad", 1, 1, 1, 1, OpRow::padding, {}},
        {OpKind::concat, "concat", 1, 64, 1, 1, 0, {}},
        {OpKind::add, "add", 2, 2, 1, 1, OpRow::activation, {}},
        {OpKind::activation, "activation", 1, 1, 1, 1, OpRow::activation, {}},
        {OpKind::affine, "affine", 1, 1, 1, 1, OpRow::activation, {"scale", "shift"}},
        {OpKind::l2_normalise, "l2_normalise", 1, 1, 1, 1, OpRow::mode, {}},
        {OpKind::quantise, "quantise", 1, 1, 1, 1, 0, {}},
        {OpKind::dequantise, "dequantise", 1, 1, 1, 1, 0, {}},
    };
    return *table;
}

const OpRow &op_row(OpKind kind) {
    for (const OpRow &row : op_table())
        if (row.kind == kind)
            return row;
    throw Error(UF_ERR_INTERNAL, "op kind without a row in the table");
}

namespace {

// Bounds that keep every size below 2^63 for sides up to 2^20, and every local one in an int.  The reader's are the
// other ends: factors are at least 1, shifts fit 32 bits, a slope is within 0 and 1.
constexpr int64_t largest_factor = 1 << 16;
constexpr int largest_padding = 1 << 12;
constexpr float largest_integer_bias = 1 << 30;

class Checker {
  public:
    explicit Checker(const Plan &plan) : plan_(plan) {}

    void check() {
        check_sizes();
        for (size_t i = 0; i < plan_.buffers.size(); ++i)
            check_buffer(i);
        for (const Op &op : plan_.ops) {
            op_ = &op;
            check_image_is_normalised();
            check_attributes();
            check_tensors();
            check_shapes();
            check_halos();
            check_types();
        }
        check_lives();
    }

  private:
    template <class... Parts> [[noreturn]] void bad(const Parts &...parts) const {
        const std::string where =
            op_ == nullptr ? "" : message(op_row(op_->kind).name, " ", in_quotes(op_->name), ": ");
        throw Error(UF_ERR_BAD_FILE, message("damaged engine file: ", where, parts..., "; freeze the network again"));
    }

    const Buffer &input(size_t i) const { return plan_.buffers[static_cast<size_t>(op_->inputs[i])]; }
    const Buffer &output(size_t i) const { return plan_.buffers[static_cast<size_t>(op_->outputs[i])]; }

    // The rules of the whole.

    void check_sizes() const {
        if (!plan_.legal(plan_.minimum))
            bad("size.minimum ", plan_.minimum, " is not legal by size.multiple ", plan_.multiple,
                " and size.remainder ", plan_.remainder);
        if (!plan_.legal(plan_.tile))
            bad("tile ", plan_.tile, " is not a legal size (n >= ", plan_.minimum, " and n % ", plan_.multiple,
                " == ", plan_.remainder, ")");
        if (plan_.minimum <= 2 * plan_.margin)
            bad("margin ", plan_.margin, " leaves nothing of the smallest legal size ", plan_.minimum);
        if (plan_.halo > 0 && plan_.halo % plan_.multiple != 0)
            bad("halo ", plan_.halo, " is not a multiple of ", plan_.multiple);
    }

    void check_buffer(size_t index) const {
        const Buffer &buffer = plan_.buffers[index];
        const auto check_extent = [&](const Extent &extent, const char *axis) {
            const auto broken = [&](const char *why) {
                bad("buffer ", in_quotes(buffer.name), ": ", axis, " (n * ", extent.multiply, " + ", extent.add, ") / ",
                    extent.divide, ' ', why);
            };
            if (extent.multiply > largest_factor || extent.divide > largest_factor)
                broken("is out of bounds");
            const int64_t smallest = plan_.minimum * extent.multiply + extent.add;
            if (smallest % extent.divide != 0 || plan_.multiple * extent.multiply % extent.divide != 0)
                broken("is not a whole number for every legal size");
            if (smallest < extent.divide)
                broken("is less than 1 for the smallest legal size");
        };
        check_extent(buffer.height, "height");
        check_extent(buffer.width, "width");
        const bool is_image = index == 0;
        if (is_image != (buffer.slot == -1))
            bad("buffer ", in_quotes(buffer.name), " has slot ", buffer.slot, "; only the image has -1");
        if (is_image && (buffer.name != "image" || buffer.channels != plan_.channels ||
                         !same(buffer.height, {1, 0, 1}) || !same(buffer.width, {1, 0, 1})))
            bad("buffer 0 must be 'image' with the ", plan_.channels, " channels and the size of the image");
    }

    // Every buffer is written once, before it is read, and shares its slot with none that lives at the same time.
    void check_lives() {
        op_ = nullptr;
        struct Life {
            int slot;
            size_t first, last; // ops
            size_t buffer;
        };
        constexpr size_t never = SIZE_MAX;
        std::vector<Life> lives(plan_.buffers.size());
        for (size_t i = 0; i < lives.size(); ++i)
            lives[i] = {plan_.buffers[i].slot, never, 0, i};
        lives[0].first = 0; // the image is there from the start
        for (size_t step = 0; step < plan_.ops.size(); ++step) {
            const Op &op = plan_.ops[step];
            const bool writes_result = op.kind == OpKind::head || op.kind == OpKind::output;
            if (writes_result != (step + 1 == plan_.ops.size()))
                bad("the last op, and only that, must be a head or an output; op ", step, " of ", plan_.ops.size(),
                    " is ", op_row(op.kind).name, " ", in_quotes(op.name));
            for (const int buffer : op.inputs) {
                Life &life = lives[static_cast<size_t>(buffer)];
                if (life.first == never)
                    bad("op ", in_quotes(op.name), " reads buffer ", in_quotes(plan_.buffers[life.buffer].name),
                        " before it is written");
                life.last = step;
            }
            for (const int buffer : op.outputs) {
                Life &life = lives[static_cast<size_t>(buffer)];
                if (life.first != never)
                    bad("op ", in_quotes(op.name), " writes buffer ", in_quotes(plan_.buffers[life.buffer].name),
                        " a second time");
                life.first = life.last = step;
            }
        }
        for (const Life &life : lives)
            if (life.first == never)
                bad("buffer ", in_quotes(plan_.buffers[life.buffer].name), " is never written");
        std::sort(lives.begin() + 1, lives.end(),
                  [](const Life &a, const Life &b) { return a.slot != b.slot ? a.slot < b.slot : a.first < b.first; });
        for (size_t i = 2; i < lives.size(); ++i)
            if (lives[i].slot == lives[i - 1].slot && lives[i].first <= lives[i - 1].last)
                bad("buffers ", in_quotes(plan_.buffers[lives[i - 1].buffer].name), " and ",
                    in_quotes(plan_.buffers[lives[i].buffer].name), " live at the same time in slot ", lives[i].slot);
    }

    // The rules of one op.

    void check_image_is_normalised() const {
        const bool wants_image = op_->kind == OpKind::stem || op_->kind == OpKind::normalise;
        for (const int buffer : op_->inputs)
            if ((buffer == 0) != wants_image)
                bad(wants_image ? "reads " : "cannot read ", in_quotes(plan_.buffers[static_cast<size_t>(buffer)].name),
                    wants_image ? " instead of the image" : ", which only stem and normalise do");
        for (const int buffer : op_->outputs)
            if (buffer == 0)
                bad("writes to the image");
    }

    void check_attributes() const {
        const auto in = [&](const char *name, const auto &values, int low, int high) {
            for (const int value : values)
                if (value < low || value > high)
                    bad(name, ' ', list(values), " is not within ", low, " and ", high);
        };
        in("kernel", op_->kernel, 1, 4);
        in("stride", op_->stride, 1, 4);
        in("crop", op_->crop, 0, largest_padding);
        in("scale", std::array<int, 1>{op_->scale}, 2, 4);
        in("padding", op_->padding, op_->kind == OpKind::pad ? -largest_padding : 0, largest_padding);
        if (op_->kind != OpKind::activation && op_->activation > Activation::leaky_relu)
            bad("activation must be none, relu or leaky_relu here");
        const auto &padding = op_->padding;
        switch (op_->kind) {
        case OpKind::stem:
        case OpKind::conv:
        case OpKind::concat_conv:
        case OpKind::head:
        case OpKind::conv_transpose: // there it crops the full result, of which each pixel shall have a tap
            for (size_t i = 0; i < 4; ++i)
                if (padding[i] >= op_->kernel[i % 2])
                    bad("padding ", list(padding), " is not smaller than the kernel ", list(op_->kernel));
            break;
        case OpKind::up_conv:
            if (padding[0] > 1 || std::any_of(padding.begin(), padding.end(), [&](int p) { return p != padding[0]; }))
                bad("padding must be [0, 0, 0, 0] or [1, 1, 1, 1], not ", list(padding));
            break;
        default:
            break;
        }
        const bool pads = std::any_of(padding.begin(), padding.end(), [](int p) { return p != 0; });
        if (pads && (op_->crop[0] != 0 || op_->crop[1] != 0))
            bad("has both padding ", list(padding), " and crop ", list(op_->crop));
    }

    // `expected` may hold 0 for a number of channels that is the op's own; it is the same wherever it stands.
    void check_tensors() const {
        const int64_t ky = op_->kernel[0], kx = op_->kernel[1];
        const int64_t wider = op_->winograd ? 1 : 0; // positions of two outputs, where the direct form has taps of one
        const auto expect = [&](const char *name, const std::vector<int64_t> &expected) {
            const Tensor &tensor = op_->tensor(name);
            if (tensor.shape != expected)
                bad("tensor ", name, " has shape ", list(tensor.shape), ", expected ", list(expected));
        };
        const auto channels = [](const Buffer &buffer) { return static_cast<int64_t>(buffer.channels); };
        switch (op_->kind) {
        case OpKind::stem:
        case OpKind::conv:
        case OpKind::conv_transpose:
            expect("weight", {channels(output(0)), ky + wider, kx + wider, channels(input(0))});
            expect("bias", {channels(output(0))});
            break;
        case OpKind::up_conv:
            expect("weight_up", {2, 2, channels(output(0)), 2 + wider, 2 + wider, channels(input(0))});
            expect("weight_skip", {channels(output(0)), 3 + wider, 3 + wider, channels(input(1))});
            expect("bias", {3, 3, channels(output(0))});
            break;
        case OpKind::concat_conv:
            expect("weight_a", {channels(output(0)), ky, kx, channels(input(0))});
            expect("weight_b", {channels(output(0)), ky, kx, channels(input(1))});
            expect("bias", {channels(output(0))});
            break;
        case OpKind::head: {
            // The width between the two convolutions is the op's own.
            const Tensor &bias = op_->tensor("bias");
            if (bias.shape.size() != 1)
                bad("tensor bias has shape ", list(bias.shape), ", expected one axis");
            const int64_t width = bias.shape[0];
            expect("weight", {width, ky, kx, channels(input(0))});
            expect("head_weight", {plan_.output_channels, width});
            expect("head_bias", {plan_.output_channels});
            break;
        }
        case OpKind::affine:
            expect("scale", {channels(input(0))});
            expect("shift", {channels(input(0))});
            break;
        default:
            break;
        }
    }

    // Sizes and channels of the outputs follow from those of the inputs.
    void check_shapes() const {
        const Buffer &x = input(0);
        const auto &padding = op_->padding;
        const auto expect = [&](const Extent &found, const Extent &expected, const char *axis) {
            if (!same(found, expected))
                bad(axis, " of the output is (n * ", found.multiply, " + ", found.add, ") / ", found.divide,
                    ", expected (n * ", expected.multiply, " + ", expected.add, ") / ", expected.divide);
        };
        const auto expect_output = [&](const Extent &height, const Extent &width) {
            expect(output(0).height, height, "height");
            expect(output(0).width, width, "width");
        };
        const auto expect_channels = [&](int channels) {
            if (output(0).channels != channels)
                bad("has ", output(0).channels, " output channels, expected ", channels);
        };
        const auto convolved = [&](const Extent &extent, size_t axis) {
            return plus(extent, padding[axis] + padding[axis + 2] - op_->kernel[axis] + 1);
        };
        const auto expect_result = [&](const Extent &height, const Extent &width) {
            const Extent result{1, -2 * static_cast<int64_t>(plan_.margin), 1};
            expect(height, result, "height");
            expect(width, result, "width");
        };
        switch (op_->kind) {
        case OpKind::stem:
        case OpKind::conv:
            expect_output(convolved(x.height, 0), convolved(x.width, 1));
            if (op_->outputs.size() == 2) {
                const Buffer &y = output(0), &pooled = output(1);
                if (pooled.channels != y.channels || !same(pooled.height, over(y.height, 2)) ||
                    !same(pooled.width, over(y.width, 2)))
                    bad("the pooled output must have half the size and all channels of the first");
            }
            break;
        case OpKind::head:
            expect_result(convolved(x.height, 0), convolved(x.width, 1));
            break;
        case OpKind::output:
            if (x.channels != plan_.output_channels)
                bad("input has ", x.channels, " channels, expected ", plan_.output_channels);
            expect_result(x.height, x.width);
            break;
        case OpKind::up_conv:
        case OpKind::concat_conv: {
            const int factor = op_->kind == OpKind::concat_conv && op_->upsample == UpsampleMode::none ? 1 : 2;
            const Extent height = times(x.height, factor), width = times(x.width, factor);
            check_second_covers(height, input(1).height, 0);
            check_second_covers(width, input(1).width, 1);
            expect_output(convolved(height, 0), convolved(width, 1));
            break;
        }
        case OpKind::normalise:
        case OpKind::activation:
        case OpKind::affine:
        case OpKind::l2_normalise:
        case OpKind::quantise:
        case OpKind::dequantise:
            expect_output(x.height, x.width);
            expect_channels(x.channels);
            break;
        case OpKind::conv_transpose: {
            const auto transposed = [&](const Extent &extent, size_t axis) {
                const int grown = op_->kernel[axis] - padding[axis] - padding[axis + 2];
                return plus(times(plus(extent, -1), op_->stride[axis]), grown);
            };
            expect_output(transposed(x.height, 0), transposed(x.width, 1));
            break;
        }
        case OpKind::pool:
            expect_output(over(x.height, op_->kernel[0]), over(x.width, op_->kernel[1]));
            expect_channels(x.channels);
            break;
        case OpKind::upsample:
            expect_output(times(x.height, op_->scale), times(x.width, op_->scale));
            expect_channels(x.channels);
            break;
        case OpKind::pad:
            for (size_t axis = 0; axis < 2; ++axis) {
                const int64_t size = (axis == 0 ? x.height : x.width).at(plan_.minimum);
                if (size + std::min(padding[axis], 0) + std::min(padding[axis + 2], 0) < 1)
                    bad("padding ", list(padding), " crops everything at the smallest legal size");
            }
            expect_output(plus(x.height, padding[0] + padding[2]), plus(x.width, padding[1] + padding[3]));
            expect_channels(x.channels);
            break;
        case OpKind::concat: {
            int channels = 0;
            for (size_t i = 0; i < op_->inputs.size(); ++i) {
                expect_output(input(i).height, input(i).width);
                channels += input(i).channels;
            }
            expect_channels(channels);
            break;
        }
        case OpKind::add:
            for (size_t i = 0; i < 2; ++i) {
                expect_output(input(i).height, input(i).width);
                expect_channels(input(i).channels);
            }
            break;
        }
    }

    // The second input of a fused concat is cropped to the size of the first; with padding it must have just that size.
    void check_second_covers(const Extent &first, const Extent &second, size_t axis) const {
        const bool pads = op_->padding[axis] != 0 || op_->padding[axis + 2] != 0;
        const Extent wanted = plus(first, op_->crop[axis]);
        const bool covers = second.multiply * wanted.divide >= wanted.multiply * second.divide &&
                            second.at(plan_.minimum) >= wanted.at(plan_.minimum);
        if (pads ? !same(first, second) : !covers)
            bad("input ", in_quotes(input(1).name), " does not fit input ", in_quotes(input(0).name), " with crop ",
                list(op_->crop));
    }

    // Executors rely on the zeros around a buffer, so it must have as many as any reader pads with.
    void check_halos() const {
        if (op_->kind == OpKind::pad || op_->kind == OpKind::conv_transpose || op_->kind == OpKind::stem)
            return;
        const int needed = *std::max_element(op_->padding.begin(), op_->padding.end());
        for (size_t i = 0; i < op_->inputs.size(); ++i)
            if (input(i).halo < needed)
                bad("pads ", in_quotes(input(i).name), " by ", needed, ", which has a halo of ", input(i).halo);
    }

    // Which buffers are uint8, and that int32 holds what int8 ops add up.
    void check_types() const {
        const bool reads_bytes = op_->int8 || op_->kind == OpKind::dequantise;
        const bool converts = op_->kind == OpKind::quantise;
        for (size_t i = 0; i < op_->inputs.size(); ++i)
            if ((input(i).scale > 0.0F) != reads_bytes)
                bad("reads ", in_quotes(input(i).name), ", which is ", reads_bytes ? "not " : "", "of uint8");
        if (op_->output_scale > 0.0F) {
            if (!converts && op_->kind != OpKind::stem && !(op_->int8 && op_->kind != OpKind::head))
                bad("cannot write uint8");
            if (!converts && op_->activation != Activation::relu)
                bad("writes uint8, which takes the activation relu");
        } else if (converts || (op_->int8 && op_->kind != OpKind::head)) {
            bad("lacks output_scale");
        }
        if ((reads_bytes || op_->output_scale > 0.0F) && plan_.precision != "int8")
            bad("reads or writes uint8 in a file of precision ", plan_.precision);
        if (op_->int8)
            check_int8();
    }

    // What the weights of all channels number `row`, counted through the tensor, are multiplied with at most.
    double largest_input(const Tensor &tensor, size_t row) const {
        if (!op_->winograd)
            return 255.0;
        // Bytes, and the 128 by which executors may keep numbers as bytes, times what outputs take of a position.
        const auto side = static_cast<size_t>(tensor.shape[tensor.shape.size() - 2]);
        const size_t position = row % (side * side);
        const auto taken = [&](size_t along) { return side == 4 && along == 1 ? 2.0 : 1.0; };
        return (255.0 + 128.0) * taken(position / side) * taken(position % side);
    }

    void check_int8() const {
        const bool doubles = op_->kernel == std::array<int, 2>{2, 2} && op_->stride == op_->kernel &&
                             op_->padding == std::array<int, 4>{0, 0, 0, 0};
        const bool possible = op_->kind == OpKind::conv || op_->kind == OpKind::up_conv || op_->kind == OpKind::head ||
                              (op_->kind == OpKind::concat_conv && op_->upsample == UpsampleMode::none) ||
                              (op_->kind == OpKind::conv_transpose && doubles);
        if (!possible || op_->activation == Activation::leaky_relu)
            bad("has no int8 form");
        const bool in_tiles =
            op_->padding == std::array<int, 4>{1, 1, 1, 1} &&
            (op_->kind == OpKind::up_conv || (op_->kind == OpKind::conv && op_->kernel == std::array<int, 2>{3, 3}));
        if (op_->winograd && !in_tiles)
            bad("has no Winograd form in int8: it takes a conv of kernel [3, 3] or an up_conv, with padding "
                "[1, 1, 1, 1]");
        const Tensor &bias = op_->tensor("bias"), &scale = op_->tensor("scale");
        const auto outputs = static_cast<size_t>(bias.shape.back());
        if (scale.shape != std::vector<int64_t>{static_cast<int64_t>(outputs)})
            bad("tensor scale has shape ", list(scale.shape), ", expected [", outputs, ']');
        std::vector<double> most(outputs, 0.0);
        for (const auto &[name, tensor] : op_->tensors) {
            // Outputs are the first axis but for the four phases of weight_up, of which each pixel takes one.
            const size_t phases = name == "weight_up" ? 4 : 1;
            const size_t each = tensor.integers.size() / (phases * outputs);
            std::vector<double> sums(phases * outputs, 0.0);
            const auto channels = static_cast<size_t>(tensor.shape.back());
            const int8_t *weight = tensor.integers.data();
            for (size_t i = 0; i < tensor.integers.size(); i += channels) {
                int64_t sum = 0;
                for (size_t channel = 0; channel < channels; ++channel)
                    sum += std::abs(*weight++);
                sums[i / each] += largest_input(tensor, i / channels) * static_cast<double>(sum);
            }
            for (size_t output = 0; output < outputs; ++output) {
                double largest = 0.0;
                for (size_t phase = 0; phase < phases; ++phase)
                    largest = std::max(largest, sums[phase * outputs + output]);
                most[output] += largest;
            }
        }
        for (size_t i = 0; i < bias.values.size(); ++i)
            if (bias.values[i] != std::floor(bias.values[i]) || std::abs(bias.values[i]) > largest_integer_bias)
                bad("tensor bias holds ", bias.values[i], ", expected whole numbers up to 2^30");
        for (size_t output = 0; output < outputs; ++output) {
            double largest = 0.0;
            for (size_t i = output; i < bias.values.size(); i += outputs)
                largest = std::max(largest, static_cast<double>(std::abs(bias.values[i])));
            const double sum = most[output] + largest, factor = static_cast<double>(scale.values[output]);
            const float step = op_->output_scale > 0.0F ? op_->output_scale : 1.0F;
            // Of the sum, and of its product, which stays below 2^31 even if each of its numbers was rounded up.
            constexpr double sum_limit = 2147483647.0, product_limit = 2147482624.0;
            const bool product_fits =
                sum * factor <= product_limit * static_cast<double>(step) && std::isfinite(scale.values[output] / step);
            if (!(factor >= 0.0) || sum > sum_limit || (op_->output_scale > 0.0F && !product_fits))
                bad("sums of output channel ", output, " do not fit int32");
        }
    }

    static Extent plus(const Extent &e, int64_t n) { return {e.multiply, e.add + n * e.divide, e.divide}; }
    static Extent times(const Extent &e, int64_t n) { return {e.multiply * n, e.add * n, e.divide}; }
    static Extent over(const Extent &e, int64_t n) { return {e.multiply, e.add, e.divide * n}; }
    static bool same(const Extent &a, const Extent &b) {
        return a.multiply * b.divide == b.multiply * a.divide && a.add * b.divide == b.add * a.divide;
    }

    const Plan &plan_;
    const Op *op_ = nullptr; // the one that is being checked, for messages
};

} // namespace

void check_plan(const Plan &plan) { Checker(plan).check(); }

} // namespace uf
