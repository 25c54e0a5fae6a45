// Every op on the fast CPU executor against the slow, obvious one, on random shapes, weights and images.
//
//     test_cpu_executor [first seed [number of seeds]]
//
// Each case is a small random plan: the image, normalised, goes through 1x1 convolutions that give the op under test
// its inputs, and all channels of its result come out unchanged.  Checked are the values for each instruction set and
// precision of this machine, that a pass allocates nothing once the threads run, and that a value depends neither on
// the number of threads, nor on the place in the batch, nor on what the context ran before: those must agree bit for
// bit.  Exits with 1 after the first case that fails.

#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <random>

#include "cpu/cpu_executor.h"
#include "error.h"

namespace {

std::atomic<int64_t> allocations{0}; // so far, in this process

} // namespace

void *operator new(size_t size) {
    ++allocations;
    if (void *memory = std::malloc(size))
        return memory;
    throw std::bad_alloc();
}
void operator delete(void *memory) noexcept { std::free(memory); }
void operator delete(void *memory, size_t) noexcept { std::free(memory); }

namespace {

using namespace uf;

class Random {
  public:
    explicit Random(unsigned seed) : generator_(seed) {}
    int integer(int low, int high) { return std::uniform_int_distribution<int>(low, high)(generator_); }
    float normal() { return std::normal_distribution<float>()(generator_); }
    bool coin() { return integer(0, 1) == 1; }
    template <class Choice> Choice choose(std::initializer_list<Choice> choices) {
        return choices.begin()[integer(0, static_cast<int>(choices.size()) - 1)];
    }

  private:
    std::mt19937 generator_;
};

// A plan for one image size, built op by op.
class PlanBuilder {
  public:
    PlanBuilder(Random &random, int channels, int height, int width) : random_(random) {
        plan_.channels = channels;
        plan_.precision = "bf16";
        plan_.output_kind = OutputKind::identity;
        add_buffer(channels, height, width);
    }

    int height(int buffer) const { return static_cast<int>(plan_.buffers[buffer].height.add); }
    int width(int buffer) const { return static_cast<int>(plan_.buffers[buffer].width.add); }
    int channels(int buffer) const { return plan_.buffers[buffer].channels; }

    // Each buffer has a slot of its own.
    int add_buffer(int channels, int height, int width) {
        Buffer buffer;
        buffer.name = std::to_string(plan_.buffers.size());
        buffer.channels = channels;
        buffer.height = {0, height, 1};
        buffer.width = {0, width, 1};
        buffer.slot = static_cast<int>(plan_.buffers.size()) - 1;
        plan_.buffers.push_back(buffer);
        plan_.slots = static_cast<int>(plan_.buffers.size()) - 1;
        return static_cast<int>(plan_.buffers.size()) - 1;
    }

    Op &add_op(OpKind kind, std::vector<int> inputs, std::vector<int> outputs) {
        Op op;
        op.kind = kind;
        op.name = std::to_string(plan_.ops.size());
        op.inputs = std::move(inputs);
        op.outputs = std::move(outputs);
        plan_.ops.push_back(op);
        return plan_.ops.back();
    }

    // Normal numbers, so scaled that a sum over `terms` of them has a variance of about one.
    void add_tensor(Op &op, const char *name, std::vector<int64_t> shape, int terms) {
        Tensor tensor;
        int64_t size = 1;
        for (const int64_t extent : shape)
            size *= extent;
        tensor.shape = std::move(shape);
        std::vector<float> values;
        for (int64_t i = 0; i < size; ++i)
            values.push_back(random_.normal() / std::sqrt(static_cast<float>(terms)));
        tensor.values = std::move(values);
        op.tensors.emplace_back(name, std::move(tensor));
    }

    void add_bias(Op &op, int channels) { add_tensor(op, "bias", {channels}, 4); }

    // A tensor of that shape made of the image, which must have the same height and width.
    int add_input(int channels) {
        if (normalised_ < 0) {
            normalised_ = add_buffer(plan_.channels, height(0), width(0));
            add_op(OpKind::normalise, {0}, {normalised_});
        }
        const int buffer = add_buffer(channels, height(0), width(0));
        Op &op = add_op(OpKind::conv, {normalised_}, {buffer});
        add_tensor(op, "weight", {channels, 1, 1, plan_.channels}, plan_.channels);
        add_bias(op, channels);
        return buffer;
    }

    // Crops or pads with zeros at bottom and right.
    int resize(int buffer, int new_height, int new_width) {
        const int result = add_buffer(channels(buffer), new_height, new_width);
        add_op(OpKind::pad, {buffer}, {result}).padding = {0, 0, new_height - height(buffer),
                                                           new_width - width(buffer)};
        return result;
    }

    void random_activation(Op &op) {
        op.activation = random_.choose({Activation::none, Activation::relu, Activation::leaky_relu});
        op.slope = 0.1F;
    }

    // The kernel and padding of `op`, so that a window fits into height x width.
    void random_window(Op &op, int height, int width) {
        for (int axis = 0; axis < 2; ++axis) {
            op.kernel[axis] = random_.choose({1, 2, 3, 3, 3, 4});
            op.padding[axis] = random_.integer(0, op.kernel[axis] - 1);
            op.padding[axis + 2] = random_.integer(0, op.kernel[axis] - 1);
            const int size = axis == 0 ? height : width;
            if (size + op.padding[axis] + op.padding[axis + 2] < op.kernel[axis])
                op.padding[axis] = op.kernel[axis];
        }
    }

    Plan &plan() { return plan_; }

  private:
    Random &random_;
    Plan plan_;
    int normalised_ = -1;
};

// Below, `result` is the buffer that shall come out, or -1 if the op writes the result itself.

int convolved(int size, const Op &op, int axis) {
    return size + op.padding[axis] + op.padding[axis + 2] - op.kernel[axis] + 1;
}

int channel_count(Random &random) { return random.choose({1, 2, 3, 5, 8, 16, 17, 24, 32, 40, 48, 64, 80}); }

int add_conv(Random &random, PlanBuilder &builder, OpKind kind) {
    const int input = kind == OpKind::stem ? 0 : builder.add_input(channel_count(random));
    const int outputs = channel_count(random), channels = builder.channels(input);
    Op window;
    builder.random_window(window, builder.height(input), builder.width(input));
    int height = convolved(builder.height(input), window, 0), width = convolved(builder.width(input), window, 1);
    const bool pools = height % 2 == 0 && width % 2 == 0;
    const int y = builder.add_buffer(outputs, height, width);
    const int pooled = pools ? builder.add_buffer(outputs, height / 2, width / 2) : -1;
    Op &op = builder.add_op(kind, {input}, {y});
    if (pools)
        op.outputs.push_back(pooled);
    op.kernel = window.kernel;
    op.padding = window.padding;
    builder.random_activation(op);
    builder.add_tensor(op, "weight", {outputs, op.kernel[0], op.kernel[1], channels},
                       op.kernel[0] * op.kernel[1] * channels);
    builder.add_bias(op, outputs);
    return pools && random.coin() ? pooled : y;
}

int add_up_conv(Random &random, PlanBuilder &builder) {
    const int padding = random.integer(0, 1), crop_top = padding == 1 ? 0 : random.integer(0, 2);
    const int crop_left = padding == 1 ? 0 : random.integer(0, 2);
    const int low_height = random.integer(2, 6), low_width = random.integer(2, 20);
    const int low = builder.resize(builder.add_input(channel_count(random)), low_height, low_width);
    const int skip = builder.resize(builder.add_input(channel_count(random)), 2 * low_height + 2 * crop_top,
                                    2 * low_width + 2 * crop_left);
    const int outputs = channel_count(random);
    const int y = builder.add_buffer(outputs, 2 * low_height - 2 + 2 * padding, 2 * low_width - 2 + 2 * padding);
    Op &op = builder.add_op(OpKind::up_conv, {low, skip}, {y});
    op.kernel = {3, 3};
    op.padding = {padding, padding, padding, padding};
    op.crop = {crop_top, crop_left};
    builder.random_activation(op);
    const int channels = builder.channels(low) + builder.channels(skip);
    builder.add_tensor(op, "weight_up", {2, 2, outputs, 2, 2, builder.channels(low)}, 4 * channels);
    builder.add_tensor(op, "weight_skip", {outputs, 3, 3, builder.channels(skip)}, 9 * channels);
    builder.add_tensor(op, "bias", {3, 3, outputs}, 4);
    return y;
}

int add_concat_conv(Random &random, PlanBuilder &builder) {
    const auto mode = random.choose(
        {UpsampleMode::none, UpsampleMode::nearest, UpsampleMode::bilinear, UpsampleMode::bilinear_corners});
    const int scale = mode == UpsampleMode::none ? 1 : 2;
    const int a = builder.resize(builder.add_input(channel_count(random)), random.integer(2, 9), random.integer(2, 20));
    const int up_height = scale * builder.height(a), up_width = scale * builder.width(a);
    Op window;
    builder.random_window(window, up_height, up_width);
    if (random.coin()) {
        window.padding = {0, 0, 0, 0};
        window.kernel = {std::min(window.kernel[0], up_height), std::min(window.kernel[1], up_width)};
        window.crop = {random.integer(0, 2), random.integer(0, 2)};
    }
    const int b = builder.resize(builder.add_input(channel_count(random)), up_height + 2 * window.crop[0],
                                 up_width + 2 * window.crop[1]);
    const int outputs = channel_count(random);
    const int y = builder.add_buffer(outputs, convolved(up_height, window, 0), convolved(up_width, window, 1));
    Op &op = builder.add_op(OpKind::concat_conv, {a, b}, {y});
    op.kernel = window.kernel;
    op.padding = window.padding;
    op.crop = window.crop;
    op.upsample = mode;
    builder.random_activation(op);
    const int terms = op.kernel[0] * op.kernel[1] * (builder.channels(a) + builder.channels(b));
    builder.add_tensor(op, "weight_a", {outputs, op.kernel[0], op.kernel[1], builder.channels(a)}, terms);
    builder.add_tensor(op, "weight_b", {outputs, op.kernel[0], op.kernel[1], builder.channels(b)}, terms);
    builder.add_bias(op, outputs);
    return y;
}

int add_head(Random &random, PlanBuilder &builder) {
    const int input = builder.add_input(channel_count(random)), channels = builder.channels(input);
    Op window;
    builder.random_window(window, builder.height(input), builder.width(input));
    Op &op = builder.add_op(OpKind::head, {input}, {});
    op.kernel = window.kernel;
    op.padding = window.padding;
    builder.random_activation(op);
    const int features = channel_count(random), outputs = random.integer(1, 5);
    builder.add_tensor(op, "weight", {features, op.kernel[0], op.kernel[1], channels},
                       op.kernel[0] * op.kernel[1] * channels);
    builder.add_bias(op, features);
    builder.add_tensor(op, "head_weight", {outputs, features}, features);
    builder.add_tensor(op, "head_bias", {outputs}, 4);
    Plan &plan = builder.plan();
    plan.output_channels = outputs;
    plan.output_kind = outputs == 1 ? random.choose({OutputKind::identity, OutputKind::sigmoid})
                                    : random.choose({OutputKind::identity, OutputKind::softmax});
    return -1;
}

int add_conv_transpose(Random &random, PlanBuilder &builder) {
    const int input = builder.add_input(channel_count(random)), outputs = channel_count(random);
    const int channels = builder.channels(input);
    Op shape;
    int size[2] = {builder.height(input), builder.width(input)};
    for (int axis = 0; axis < 2; ++axis) {
        shape.kernel[axis] = random.integer(1, 4);
        shape.stride[axis] = random.integer(1, 4);
        const int full = (size[axis] - 1) * shape.stride[axis] + shape.kernel[axis];
        shape.padding[axis] = full > 4 ? random.integer(0, shape.kernel[axis] - 1) : 0;
        shape.padding[axis + 2] = full - shape.padding[axis] > 4 ? random.integer(0, shape.kernel[axis] - 1) : 0;
        size[axis] = full - shape.padding[axis] - shape.padding[axis + 2];
    }
    const int y = builder.add_buffer(outputs, size[0], size[1]);
    Op &op = builder.add_op(OpKind::conv_transpose, {input}, {y});
    op.kernel = shape.kernel;
    op.stride = shape.stride;
    op.padding = shape.padding;
    builder.random_activation(op);
    builder.add_tensor(op, "weight", {outputs, op.kernel[0], op.kernel[1], channels}, 4 * channels);
    builder.add_bias(op, outputs);
    return y;
}

int add_pool(Random &random, PlanBuilder &builder) {
    const std::array<int, 2> kernel = {random.integer(1, 4), random.integer(1, 4)};
    const int height = random.integer(1, 5), width = random.integer(1, 5);
    const int input = builder.resize(builder.add_input(channel_count(random)), height * kernel[0], width * kernel[1]);
    const int y = builder.add_buffer(builder.channels(input), height, width);
    Op &op = builder.add_op(OpKind::pool, {input}, {y});
    op.kernel = kernel;
    op.pool = random.choose({PoolMode::max, PoolMode::average});
    return y;
}

int add_upsample(Random &random, PlanBuilder &builder) {
    const int input = builder.add_input(channel_count(random)), scale = random.integer(2, 4);
    const int y =
        builder.add_buffer(builder.channels(input), scale * builder.height(input), scale * builder.width(input));
    Op &op = builder.add_op(OpKind::upsample, {input}, {y});
    op.scale = scale;
    op.upsample = random.choose({UpsampleMode::nearest, UpsampleMode::bilinear, UpsampleMode::bilinear_corners});
    return y;
}

int add_pad(Random &random, PlanBuilder &builder) {
    const int input = builder.add_input(channel_count(random));
    std::array<int, 4> padding{};
    for (int &side : padding)
        side = random.integer(-1, 3);
    const int height = builder.height(input) + padding[0] + padding[2];
    const int width = builder.width(input) + padding[1] + padding[3];
    if (height < 1 || width < 1)
        return input;
    const int y = builder.add_buffer(builder.channels(input), height, width);
    builder.add_op(OpKind::pad, {input}, {y}).padding = padding;
    return y;
}

int add_concat(Random &random, PlanBuilder &builder) {
    std::vector<int> inputs;
    int channels = 0;
    for (int i = random.integer(1, 10); i > 0; --i) {
        inputs.push_back(builder.add_input(random.integer(1, 20)));
        channels += builder.channels(inputs.back());
    }
    const int y = builder.add_buffer(channels, builder.height(0), builder.width(0));
    builder.add_op(OpKind::concat, inputs, {y});
    return y;
}

int add_elementwise(Random &random, PlanBuilder &builder, OpKind kind) {
    const int channels = channel_count(random);
    std::vector<int> inputs = {builder.add_input(channels)};
    if (kind == OpKind::add)
        inputs.push_back(builder.add_input(channels));
    const int y = builder.add_buffer(channels, builder.height(0), builder.width(0));
    Op &op = builder.add_op(kind, inputs, {y});
    builder.random_activation(op);
    if (kind == OpKind::activation) {
        op.activation = random.choose({Activation::none, Activation::relu, Activation::leaky_relu, Activation::sigmoid,
                                       Activation::tanh, Activation::softmax});
    }
    if (kind == OpKind::affine) {
        builder.add_tensor(op, "scale", {channels}, 1);
        builder.add_tensor(op, "shift", {channels}, 1);
    }
    return y;
}

int add_l2_normalise(Random &random, PlanBuilder &builder) {
    const int channels = channel_count(random);
    const int input = builder.add_input(channels);
    const int y = builder.add_buffer(channels, builder.height(0), builder.width(0));
    builder.add_op(OpKind::l2_normalise, {input}, {y}).line = random.choose({Line::column, Line::row});
    return y;
}

int add_kind(OpKind kind, Random &random, PlanBuilder &builder) {
    switch (kind) {
    case OpKind::stem:
    case OpKind::conv:
        return add_conv(random, builder, kind);
    case OpKind::up_conv:
        return add_up_conv(random, builder);
    case OpKind::concat_conv:
        return add_concat_conv(random, builder);
    case OpKind::head:
        return add_head(random, builder);
    case OpKind::conv_transpose:
        return add_conv_transpose(random, builder);
    case OpKind::pool:
        return add_pool(random, builder);
    case OpKind::upsample:
        return add_upsample(random, builder);
    case OpKind::pad:
        return add_pad(random, builder);
    case OpKind::concat:
        return add_concat(random, builder);
    case OpKind::add:
    case OpKind::activation:
    case OpKind::affine:
        return add_elementwise(random, builder, kind);
    case OpKind::l2_normalise:
        return add_l2_normalise(random, builder);
    case OpKind::normalise:
    case OpKind::output:
        break; // in all of them
    case OpKind::quantise:
    case OpKind::dequantise:
        break; // judged by tests/test_int8.py
    }
    return builder.add_input(3);
}

struct Pictures {
    std::vector<float> pixels; // (count, height, width, channels), or channels first
    std::vector<ImageView> views;
    std::vector<PixelTransform> transforms;
};

struct Case {
    std::shared_ptr<const Plan> plan;
    PassShape shape;
    Pictures pictures;
    int64_t values = 0; // of one result, as probability
    int64_t row_values = 0;
    bool has_mask = false;
};

Pictures random_pictures(Random &random, const PassShape &shape, int channels) {
    Pictures pictures;
    const int64_t plane = static_cast<int64_t>(shape.height) * shape.width, image = plane * channels;
    for (int64_t i = 0; i < shape.count * image; ++i)
        pictures.pixels.push_back(random.normal());
    const bool planar = random.coin();
    for (int n = 0; n < shape.count; ++n) {
        ImageView view;
        view.type = PixelType::float32;
        view.data = reinterpret_cast<const std::byte *>(pictures.pixels.data() + n * image);
        view.channel_stride = 4 * (planar ? plane : 1);
        view.pixel_stride = 4 * (planar ? 1 : channels);
        view.row_stride = view.pixel_stride * shape.width;
        if (random.coin()) { // upside down
            view.data += view.row_stride * (shape.height - 1);
            view.row_stride = -view.row_stride;
        }
        PixelTransform transform;
        for (int c = 0; c < 4; ++c)
            transform.scale[c] = 0.5F + 0.1F * c, transform.shift[c] = 0.3F - 0.2F * c;
        pictures.views.push_back(view);
        pictures.transforms.push_back(transform);
    }
    return pictures;
}

Case random_case(unsigned seed, OpKind kind) {
    Random random(seed);
    Case result;
    result.shape = {random.integer(1, 3), random.integer(2, 13), random.integer(1, 60)};
    PlanBuilder builder(random, random.integer(1, 4), result.shape.height, result.shape.width);
    const int y = add_kind(kind, random, builder);
    Plan &plan = builder.plan();
    int height, width;
    if (y >= 0) {
        plan.output_channels = builder.channels(y);
        builder.add_op(OpKind::output, {y}, {});
        height = builder.height(y);
        width = builder.width(y);
    } else {
        const Op &head = plan.ops.back();
        height = convolved(builder.height(head.inputs[0]), head, 0);
        width = convolved(builder.width(head.inputs[0]), head, 1);
    }
    result.row_values = static_cast<int64_t>(width) * plan.output_channels;
    result.values = height * result.row_values;
    result.has_mask = plan.output_kind != OutputKind::identity;
    result.pictures = random_pictures(random, result.shape, plan.channels);
    result.plan = std::make_shared<const Plan>(plan);
    return result;
}

// Results of images [first, first + count), poisoned before; `allocated` counts what the pass took from the heap.
std::vector<float> run(Context &context, const Case &test, const Pictures &pictures, int first, int count,
                       int64_t *allocated = nullptr) {
    std::vector<float> result(static_cast<size_t>(count * test.values), std::numeric_limits<float>::quiet_NaN());
    std::vector<OutputView> outputs;
    for (int n = 0; n < count; ++n) {
        outputs.push_back({reinterpret_cast<std::byte *>(result.data() + n * test.values), ResultType::probability,
                           test.row_values * 4});
    }
    const int64_t before = allocations;
    context.run(pictures.views.data() + first, pictures.transforms.data() + first, count, 0.0F, outputs.data(),
                nullptr);
    if (allocated != nullptr)
        *allocated = allocations - before;
    return result;
}

std::vector<uint8_t> run_mask(Context &context, const Case &test) {
    const int64_t row = test.row_values / test.plan->output_channels, size = test.values / test.plan->output_channels;
    std::vector<uint8_t> result(static_cast<size_t>(test.shape.count * size), 77);
    std::vector<OutputView> outputs;
    for (int n = 0; n < test.shape.count; ++n) {
        outputs.push_back({reinterpret_cast<std::byte *>(result.data() + n * size), ResultType::mask, row});
    }
    context.run(test.pictures.views.data(), test.pictures.transforms.data(), test.shape.count, 0.2F, outputs.data(),
                nullptr);
    return result;
}

double relative_error(const std::vector<float> &found, const std::vector<float> &expected) {
    double difference = 0.0, norm = 0.0;
    for (size_t i = 0; i < found.size(); ++i) {
        difference += std::pow(static_cast<double>(found[i]) - expected[i], 2);
        norm += std::pow(static_cast<double>(expected[i]), 2);
    }
    return std::sqrt(difference / std::max(norm, 1e-30)); // NaN if any value is
}

bool same_bits(const std::vector<float> &a, const std::vector<float> &b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// Rounding of two ops, of which the first may cancel; the reference sums in float64.
double tolerance(const std::string &precision) { return precision == "float32" ? 2e-6 : 2e-2; }

// Empty if all is well.
std::string failure(const Case &test, const std::string &isa, const std::string &precision) {
    const auto reference = make_reference_executor(test.plan)->make_context(test.shape);
    const std::vector<float> expected = run(*reference, test, test.pictures, 0, test.shape.count);

    const auto pool = std::make_shared<ThreadPool>(1), threads = std::make_shared<ThreadPool>(3);
    const auto executor = make_cpu_executor(test.plan, pool, precision, isa);
    const auto context = executor->make_context(test.shape);
    Pictures poison = test.pictures;
    const std::vector<float> nans(poison.pixels.size(), std::numeric_limits<float>::quiet_NaN());
    for (size_t n = 0; n < poison.views.size(); ++n) {
        poison.views[n].data += reinterpret_cast<const std::byte *>(nans.data()) -
                                reinterpret_cast<const std::byte *>(test.pictures.pixels.data());
    }
    run(*context, test, poison, 0, test.shape.count);
    const std::vector<float> found = run(*context, test, test.pictures, 0, test.shape.count);
    const double error = relative_error(found, expected);
    if (!(error <= tolerance(precision)))
        return "relative error " + std::to_string(error);

    const auto threaded = make_cpu_executor(test.plan, threads, precision, isa)->make_context(test.shape);
    run(*threaded, test, poison, 0, test.shape.count); // the first loop starts the threads
    int64_t allocated = 0;
    if (!same_bits(found, run(*threaded, test, test.pictures, 0, test.shape.count, &allocated)))
        return "3 threads differ from 1";
    if (allocated != 0)
        return "a pass made " + std::to_string(allocated) + " allocations";

    for (int n = 0; n < test.shape.count; ++n) {
        const std::vector<float> batched(found.begin() + n * test.values, found.begin() + (n + 1) * test.values);
        if (!same_bits(batched, run(*context, test, test.pictures, n, 1))) {
            return "image " + std::to_string(n) + " differs alone from in a batch";
        }
    }
    if (test.has_mask && precision == "float32") {
        const std::vector<uint8_t> mask = run_mask(*threaded, test), expected_mask = run_mask(*reference, test);
        size_t differing = 0;
        for (size_t i = 0; i < mask.size(); ++i)
            differing += mask[i] != expected_mask[i];
        if (differing > mask.size() / 1000 + 1)
            return std::to_string(differing) + " pixels of the mask differ";
    }
    return "";
}

const std::pair<OpKind, const char *> kinds[] = {
    {OpKind::stem, "stem"},
    {OpKind::conv, "conv"},
    {OpKind::up_conv, "up_conv"},
    {OpKind::concat_conv, "concat_conv"},
    {OpKind::head, "head"},
    {OpKind::normalise, "normalise, output"},
    {OpKind::conv_transpose, "conv_transpose"},
    {OpKind::pool, "pool"},
    {OpKind::upsample, "upsample"},
    {OpKind::pad, "pad"},
    {OpKind::concat, "concat"},
    {OpKind::add, "add"},
    {OpKind::activation, "activation"},
    {OpKind::affine, "affine"},
    {OpKind::l2_normalise, "l2_normalise"},
};

bool offers(const std::string &isa, const std::string &precision) {
    if (precision == "bf16")
        return isa == "avx512_bf16" || isa == "neon_bf16";
    return precision == "float32" || isa == "neon_fp16" || isa == "neon_bf16";
}

// The instruction sets of this machine, best first.
std::vector<std::string> instruction_sets(const Case &test) {
    std::vector<std::string> result;
    const auto pool = std::make_shared<ThreadPool>(1);
    for (const char *isa : {"avx512_bf16", "avx512", "avx2", "neon_bf16", "neon_fp16", "neon", "portable"}) {
        try {
            if (make_cpu_executor(test.plan, pool, "float32", isa)->isa() == isa)
                result.push_back(isa);
        } catch (const Error &) { // of another kind of CPU
        }
    }
    return result;
}

} // namespace

int main(int count, char **arguments) {
    const unsigned first = count > 1 ? static_cast<unsigned>(std::atoi(arguments[1])) : 0;
    const unsigned seeds = count > 2 ? static_cast<unsigned>(std::atoi(arguments[2])) : 20;
    const std::vector<std::string> isas = instruction_sets(random_case(0, OpKind::stem));
    int runs = 0;
    for (unsigned seed = first; seed < first + seeds; ++seed) {
        for (const auto &[kind, name] : kinds) {
            const Case test = random_case(seed, kind);
            for (const std::string &isa : isas) {
                for (const char *precision : {"float32", "bf16", "fp16"}) {
                    if (!offers(isa, precision))
                        continue;
                    const std::string text = failure(test, isa, precision);
                    ++runs;
                    if (text.empty())
                        continue;
                    std::printf("FAILED: %s, seed %u, %s, %s: %s\n", name, seed, isa.c_str(), precision, text.c_str());
                    return 1;
                }
            }
        }
    }
    std::printf("passed: %d runs on", runs);
    for (const std::string &isa : isas)
        std::printf(" %s", isa.c_str());
    std::printf("\n");
    return 0;
}
